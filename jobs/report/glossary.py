"""The report's glossary, for a reader who has only the page."""

from __future__ import annotations

from jobs.report.html import escaped

WORDS = {
    "XTRA": "A vision transformer that is trained to predict the pixels of the next block of an image from the blocks "
    "before it (arXiv 2411.15648). XTRA 4x4: a block is 4 x 4 tokens.",
    "AIM": "Autoregressive image model (arXiv 2401.08541): the same idea with blocks of one token, and a prefix of "
    "tokens that attend to each other.",
    "AIM-like 1x1": "Blocks of one token in XTRA's own model, in plain causal order. The XTRA paper calls this AIM in "
    "its ablations; it has no prefix attention.",
    "prefix": "A random number of an image's first tokens attend to each other in both directions, and only the tokens "
    "after them are predicted; in probes, all tokens attend in both directions. AIM itself is trained this way.",
    "token, block": "An image is cut into square patches, one token each; a block is a square of tokens that are "
    "predicted together.",
    "96x4/4": "The encoder's width (96), its number of layers (4), and the side of a patch in pixels (4). B/16 and "
    "H/14 are the usual names of ViT-Base with 16 px patches and ViT-Huge with 14 px patches.",
    "line": "In charts: all runs with the same settings on the same images, whatever their seed and length.",
    "samples seen": "Images shown in training, repeats included: the cost of a training.",
    "unique images": "Distinct images among them: the number that must be collected.",
    "FLOPs": "Floating-point operations of the training, our count of what the official code computes.",
    "trunk, branch": "A trunk trains at a constant learning rate; a branch continues from one of its checkpoints while "
    "the rate decays to 0. A branch is the result for its number of samples.",
    "seed": "The number that starts the random generators. Runs that differ only in it are repetitions.",
    "probe": "A small classifier that is trained on the frozen encoder's features; its accuracy measures the encoder.",
    "linear": "A probe that sees the mean of all tokens.",
    "attentive": "A probe that learns which tokens to look at: one query that attends to them.",
    "validation split": "A part of the probe's training images on which its learning rate is chosen, so that the test "
    "images do not influence the choice.",
    "training loss, held-out loss": "The mean error of the predicted pixels, on the training images and on images that "
    "were never trained on.",
    "interval": "The range in which the true value is expected: 95 of 100 such intervals contain it (90 of 100 for "
    "laws and multipliers).",
    "paired": "Both sides are compared on the same images and seeds, so that effects common to both cancel.",
    "declared, exploratory": "A declared comparison was chosen before anything ran; all others are exploratory. Among "
    "many exploratory ones, some look decided by chance; Holm's adjustment corrects for that.",
    "multiplier": "How many times fewer samples, images or FLOPs one line needs than another for the same accuracy.",
    "efficient front": "The points that no other point beats at the same or a lower cost.",
}


def section() -> str:
    return (
        "<dl>" + "".join(f"<dt>{escaped(word)}</dt><dd>{escaped(text)}</dd>" for word, text in WORDS.items()) + "</dl>"
    )
