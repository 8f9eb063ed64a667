"""README.md of an exported encoder: the model card, with the mask that the export applies and the probes' results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shards import store, typed_json
from shards.typed_json import Count, Share
from xtra.data import MEAN, STD
from xtra.model import ModelConfig
from xtra.official.encoder_files import PREPROCESSOR, PROGRAM, SHORT_SIDE, Masked

MASKED = {
    "causal": "block-causal: a token attends to the tokens of its own block and of all earlier blocks, row by row",
    "none": "without a mask: every token attends to all others",
}


@dataclass(frozen=True)
class Measured:
    """The fields of a probe's result (`xtra/probe/result.py`) that a card uses."""

    set: str
    head: str
    encoder: str
    samples_seen: Count
    accuracy: Share
    low: float
    high: float
    total: Count
    selected_on: str = "holdout"
    mask: str = ""  # "": the encoder's own


@dataclass(frozen=True)
class Facts:
    """The contents of a card."""

    name: str  # of the run or the official file
    target: str  # encoder, timm or torch
    model: ModelConfig
    parameters: int
    samples_seen: int  # 0: unknown
    manifest: str  # "": unknown
    mask: Masked  # applied by the export
    license: str  # of the weights; "": not given
    of_a_run: bool
    probes: Sequence[Measured] = ()
    difference: float | None = None  # from the tokens of `xtra.load`; None: not compared


def own_mask(model: ModelConfig) -> Masked:
    """The mask of pretraining and probes: block-causal, or none after prefix attention."""
    return "none" if model.prefix else "causal"


def measured(run: str, samples_seen: int) -> tuple[list[Measured], list[str]]:
    """The results of a run's probes of its own encoder at `samples_seen`, and a line for each unreadable one."""
    found, damaged = [], []
    for name in store.names(store.join(run, "probes")):
        if not name.endswith(".json") or name[0] in "._":
            continue
        try:
            result = typed_json.read(Measured, store.join(run, "probes", name))
        except store.StoreError as error:
            damaged.append(f"not in the card: {error}")
            continue
        if (result.encoder, result.samples_seen) == ("trained", samples_seen):
            found.append(result)
    return found, damaged


def card(f: Facts) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    parts = [_front(f), _about(f), _attention(f), _measured(f), _loading(f), _pictures(f), _licence(f)]
    return "\n\n".join(parts) + "\n"


def _front(f: Facts) -> str:
    library = {"encoder": "library_name: transformers", "timm": "library_name: timm"}.get(f.target)
    lines = [
        *([library] if library else []),
        "pipeline_tag: image-feature-extraction",
        *([f"license: {f.license}"] if f.license else []),
        "tags:",
        "- image-feature-extraction",
        "- self-supervised-learning",
        "- xtra",
    ]
    return "\n".join(["---", *lines, "---"])


def _about(f: Facts) -> str:
    c = f.model
    seen = f"{f.samples_seen:,} samples seen" if f.samples_seen else "samples seen unknown"
    data = f"; dataset manifest {f.manifest}" if f.manifest else ""
    return f"""# {f.name}: an XTRA encoder

A vision transformer pretrained without labels by predicting the next block of pixels
([XTRA, arXiv 2411.15648](https://arxiv.org/abs/2411.15648)). The encoder alone: {f.parameters:,} parameters,
width {c.width}, {c.depth} layers of {c.heads} heads, {c.image} px images, {c.patch} px patches,
blocks of {c.block} x {c.block} patches; {seen}{data}."""


def _attention(f: Facts) -> str:
    own = own_mask(f.model)
    words = {"causal": ("under the block-causal mask", "so"), "none": ("with prefix attention", "without a mask")}
    trained, read = words[own]
    what = f"The encoder was pretrained {trained}, and `xtra probe` reads it {read}"
    what += " by default." if f.mask == own else ": this export gives different tokens."
    compared = ""
    if f.difference is not None:
        compared = f"\nTokens differ from those of `xtra.load` under this mask by at most {f.difference:.1e}, on noise."
    return f"""## Mask: {f.mask}

Attention here is {MASKED[f.mask]}. {what}{compared}"""


def _measured(f: Facts) -> str:
    own = own_mask(f.model)
    masks: tuple[Masked, Masked] = ("causal", "none") if f.mask == "causal" else ("none", "causal")
    lines = ["## What was measured", ""]
    if f.probes:
        lines += [f"| set | probe | mask {masks[0]} (this export) | mask {masks[1]} |", "|---|---|---|---|"]
    missing = [] if f.probes else list(masks)
    for row in dict.fromkeys((p.set, p.head, p.selected_on) for p in f.probes):
        mine = [p for p in f.probes if (p.set, p.head, p.selected_on) == row]
        found = {mask: [p for p in mine if (p.mask or own) == mask] for mask in masks}
        missing += [mask for mask in masks if not found[mask]]
        biased = ", point chosen on the evaluation set: overestimates accuracy" if row[2] == "eval" else ""
        cells = " | ".join(_accuracy(found[mask]) for mask in masks)
        lines.append(f"| {_cell(row[0])} | {_cell(row[1])}{biased} | {cells} |")
    if f.probes:
        lines += ["", "Top-1 accuracy with its 95 % interval, on frozen features, by `xtra probe`."]
    if missing:
        what = "To measure the rest" if f.probes else "Neither mask was measured. To measure them"
        run = f.name if f.of_a_run else "imported"
        first = "" if f.of_a_run else f"xtra export {f.name} --to run --out {run}\n"
        asked = {mask: "" if mask == own else f" --mask {mask}" for mask in masks if mask in missing}
        commands = "\n".join(f"xtra probe {run}{words} --train … --eval …" for words in asked.values())
        how = f"{what}, with a labelled training set and evaluation set for the dots:"
        lines += [*([""] if f.probes else []), f"{how}\n\n```\n{first}{commands}\n```"]
    return "\n".join(lines)


def _accuracy(results: Iterable[Measured]) -> str:
    said = [f"{p.accuracy:.1%} ({p.low:.1%} to {p.high:.1%}, {p.total:,} images)" for p in results]
    return "; ".join(said) or "not measured"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# ---- loading -------------------------------------------------------------------------------------------------------


def _loading(f: Facts) -> str:
    c = f.model
    shapes = f"""`images` are [B, 3, {c.image}, {c.image}], prepared as below. `tokens` are [B, {c.tokens}, {c.width}],
after the last norm and in raster order: row by row over the image. The dot is this folder."""
    body = {"encoder": _transformers, "timm": _timm, "torch": _program}[f.target](f)
    return f"## How to load it\n\n{shapes}\n\n{body}"


def _transformers(f: Facts) -> str:
    return """With transformers. It runs `modeling_xtra.py` of this folder, which `trust_remote_code` allows.
Without that it refuses to load: transformers has no class that applies the mask.

```python
from transformers import AutoModel
model = AutoModel.from_pretrained(".", trust_remote_code=True)
tokens = model(images).last_hidden_state
```

With torch alone, by the same file:

```python
from modeling_xtra import load
model = load(".")
tokens = model(images)
```

Probes read tokens before the last norm: `model(images, output_hidden_states=True).hidden_states` of the first,
`model.layers(images)` of the second. The attentive probe reads the mean of the last layers, the linear one the mean
over the tokens of the last layer, which is `pooler_output`."""


def _timm(f: Facts) -> str:
    c = f.model
    block = f"row // {c.block} * {c.grid // c.block} + column // {c.block}"
    return f"""With timm (transformers opens the folder through timm):

```python
import timm
model = timm.create_model("local-dir:.", pretrained=True).eval()
tokens = model.forward_features(images)
```

timm's model has no block-causal mask. Its `forward_features` takes one, which gives the tokens under mask causal:

```python
import torch
row, column = torch.arange({c.tokens}) // {c.grid}, torch.arange({c.tokens}) % {c.grid}
block = {block}
mask = block[:, None] >= block[None, :]  # True: may attend
causal = model.forward_features(images, attn_mask=mask[None, None])
```

Probes read tokens before the last norm: `model.forward_intermediates(images, norm=False)`."""


def _program(f: Facts) -> str:
    return f"""With torch alone; the program takes any number of images, and the mask is part of it:

```python
import torch
model = torch.export.load("{PROGRAM}").module()
tokens = model(images)
```

`xtra probe --encoder torch:{PROGRAM} --train … --eval … --out …` measures it like any other
encoder: by the tokens after the last norm, where a probe of the run reads the layers before it."""


def _pictures(f: Facts) -> str:
    c = f.model
    where = f"`{PREPROCESSOR}` says the same to transformers. " if f.target != "torch" else ""
    colour = f"mean {', '.join(map(str, MEAN))} and standard deviation {', '.join(map(str, STD))}"
    return f"""## Pictures

RGB; short side {round(c.image / SHORT_SIDE)} px (bicubic), central {c.image} x {c.image} px; values 0 to 1,
then the channels' {colour} taken out.
{where}`xtra probe` resizes the short side to {c.image} px unless `--resize` says otherwise."""


def _licence(f: Facts) -> str:
    code = "`modeling_xtra.py` is under the Apache License 2.0. " if f.target == "encoder" else ""
    if f.license:
        return f"## Licence\n\n{code}The weights: {f.license}."
    return f"""## Licence

{code}No licence was named for the weights when they were exported (`xtra export --license`): ask those who gave them
to you."""
