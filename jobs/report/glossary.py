"""The words of the report, for a reader who got it by mail."""

from __future__ import annotations

from jobs.report.html import escaped

WORDS = {
    "XTRA": "A vision transformer that is trained to predict the pixels of the next block of an image from the blocks "
    "before it (arXiv 2411.15648). XTRA 4x4: a block is 4 x 4 tokens.",
    "AIM": "Autoregressive image model (arXiv 2401.08541): the same idea with blocks of one token, and a prefix of "
    "tokens that see each other.",
    "AIM-like 1x1": "Blocks of one token in XTRA's own model: plain causal order. It is what the XTRA paper calls AIM "
    "in its ablations, and has no prefix attention.",
    "prefix": "The first tokens of an image, a random number of them, see each other in both directions, and only what "
    "follows is predicted; probes see all tokens in both directions. AIM itself is trained so.",
    "token, block": "An image is cut into square patches, one token each; a block is a square of tokens that are "
    "predicted together.",
    "96x4/4": "The encoder's width (96), its layers (4), and the side of a patch in pixels (4). B/16 and H/14 are the "
    "usual names of ViT-Base with patches of 16 px and ViT-Huge with patches of 14 px.",
    "line": "In charts: all runs with the same settings on the same images, whatever their seed and length.",
    "samples seen": "Images that the training has been shown, repeats included. It is what a training costs.",
    "unique images": "Different images among them. It is what must be collected.",
    "FLOPs": "Floating-point operations of the training, our count of what the official code computes.",
    "trunk, branch": "A training at a constant learning rate, and a run that goes on from one of its checkpoints while "
    "the rate decays to 0. A branch is the result for its number of samples.",
    "seed": "The number that chance is drawn from. Runs that differ in it alone are repetitions.",
    "probe": "A small classifier that is trained on the frozen encoder's features; its accuracy measures the encoder.",
    "linear": "A probe that sees the mean of all tokens.",
    "attentive": "A probe that learns which tokens to look at: one query that attends to them.",
    "hold-out": "A part of the probe's training images on which its learning rate is chosen, so that the test images "
    "have no say in it.",
    "training loss, held-out loss": "The mean error of the predicted pixels, on the training images and on images that "
    "were never trained on.",
    "interval": "Where the true value is expected: 95 of 100 such intervals hold it; of laws and multipliers, 90.",
    "paired": "Both sides are compared on the same images and seeds, so that what those have in common cancels.",
    "declared, exploratory": "A comparison that was chosen before anything ran, and all others. Of many exploratory "
    "ones some look decided by chance; Holm's adjustment takes that into account.",
    "multiplier": "How many times fewer samples, images or FLOPs one line needs than another for the same accuracy.",
    "efficient front": "The points that no other point beats at the same or a lower cost.",
}


def section() -> str:
    return (
        "<dl>" + "".join(f"<dt>{escaped(word)}</dt><dd>{escaped(text)}</dd>" for word, text in WORDS.items()) + "</dl>"
    )
