"""`xtra generate`: a model's predictions as pictures that fit a slide. One column per image, four captioned rows:

1. the truth: the image, resized and centre-cropped
2. every block predicted from the true blocks before it: the paper's figure 4. The model predicts pixels normalised by
   their block (xtra/loss.py); mean and deviation are the true block's, as in the official src/utils/aim.py, so a first
   block, which is not predicted, is its flat mean
3. the context of the free run: the first `given` blocks
4. a free run: the first `given` blocks are true, every other is predicted from predictions and takes mean and deviation
   from its existing neighbours. The official code has no free run

Shapes: B images, K blocks, P pixel values per block (channel, row, column).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards import folder_kind, store
from shards.manifest import read_manifest
from shards.pixels import image
from shards.stream import Order, Stream
from xtra import official
from xtra.blocks import block_orders, join_blocks, target_blocks
from xtra.config import GenerateConfig as Config
from xtra.data import MEAN, STD, centred, normalise
from xtra.device import check_device, chosen
from xtra.loss import EPS, next_block_loss
from xtra.model import ModelConfig, Xtra
from xtra.run import checkpoint

SLIDE = (1920, 1080)  # least pixels, and the aspect ratio
LEFT, ABOVE, BELOW = 310, 170, 30  # pixels for captions, for title and image keys, and empty
MARGIN, GAP = 40, 8
UNSEEN = 0.75  # gray of blocks that are not given
INK, SOFT = "#1f2328", "#59616b"


@dataclass(frozen=True)
class GenerateResult:
    out: str
    files: tuple[str, ...]
    keys: tuple[str, ...]  # of the images, from the left
    loss: float  # of the head that is shown, over these images


@torch.no_grad()
def run(config: Config, progress: Callable[[int, int], None] = lambda done, total: None) -> GenerateResult:
    """Write the pictures. Raises ValueError for a missing checkpoint or dataset, or an impossible head or count."""
    store.require(checkpoint=config.checkpoint, data=config.data, out=config.out)
    folder_kind.require(config.out, "pictures")
    device = chosen(config.device)
    check_device(device)
    model, seen = load_model(config.checkpoint).to(device).eval(), samples_seen(config.checkpoint)
    c = model.config
    if config.head >= c.predict:
        raise ValueError(f"head is {config.head}; this model has 0..{c.predict - 1}")
    given = config.given or max(1, c.blocks // 4)
    if not 1 <= given < c.blocks:
        raise ValueError(f"given is {given}; with {c.blocks} blocks it must be 1..{c.blocks - 1}")
    keys, pixels = images(config, c.image)
    order_K = shown_order(c)
    files: list[str] = []
    losses: list[float] = []
    for start in range(0, len(keys), config.rows):
        x = normalise(pixels[start : start + config.rows].to(device))
        shown = [
            Row("truth", f"the images, cropped to {c.image} x {c.image} pixels", x),
            Row("prediction", _said(config.head), teacher_forced(model, x, order_K, config.head)),
            Row(
                "context",
                f"the first {given} of {c.blocks} blocks: all that the free run is given",
                only_given(x, c.side, order_K, given),
            ),
            Row(
                "free run",
                f"the other {c.blocks - given} blocks, one by one, each from predictions",
                free_run(model, x, order_K, given),
            ),
        ]
        targets = target_blocks(x, c.side)[:, order_K.to(x.device)]
        head_loss = next_block_loss([_predict(model, x, order_K)[config.head]], targets[:, config.head :])
        losses += [float(head_loss)] * len(x)
        files.append(f"grid-{len(files):03d}.png")
        title, facts = _headings(config, c, seen, float(head_loss))
        picture = slide(shown, title, facts, keys[start : start + config.rows])
        store.put(store.join(config.out, files[-1]), picture)
        progress(start + len(x), len(keys))
    return GenerateResult(config.out, tuple(files), tuple(keys), sum(losses) / len(losses))


def shown_order(config: ModelConfig) -> Tensor:
    """int64 [K]: the blocks in the order of prediction; the first of several orders."""
    return block_orders(config.blocks, 0)[0] if config.order == "random" else torch.arange(config.blocks)


def _said(head: int) -> str:
    """The caption of predictions from true blocks."""
    far = f" that end {head} before it" if head else " before it"
    first = "the first one shows" if head == 0 else f"the first {1 + head} show"
    return f"each block from the true ones{far}; {first} a mean colour"


def samples_seen(path: str) -> int | None:
    """The samples seen at a run's newest checkpoint, or the given one; None for an official checkpoint."""
    if official.is_official(path):
        return None
    return checkpoint.find(path).commit.get("samples_seen")


def _headings(config: Config, c: ModelConfig, seen: int | None, loss: float) -> tuple[str, str]:
    """The title, and the line of facts below it."""
    parts = [part for part in config.checkpoint.rstrip("/").split("/") if part]
    run = parts[-3] if len(parts) > 2 and parts[-2] == "checkpoints" else parts[-1]
    across = c.image // c.side
    facts = [
        f"{seen:,} samples seen" if seen is not None else "",
        f"blocks of {c.side} x {c.side} pixels, {across} x {across} of them",
        "raster order" if c.order != "random" else "the first of its random orders",
        f"loss {loss:.3f} on these images",
        f"images of {config.data.rstrip('/').rpartition('/')[2]}",
    ]
    return f"What {run} predicts", "   ·   ".join(filter(None, facts))


def load_model(path: str) -> Xtra:
    """The whole model from a run, a checkpoint, or an official checkpoint."""
    if not official.is_official(path):
        return checkpoint.load_model(checkpoint.find(path))
    found = official.read_official(path)
    if found.encoder_only:
        raise ValueError(f"{path}: has only the encoder, which predicts nothing: use a pretraining checkpoint")
    with torch.device("meta"):
        model = Xtra(found.config)
    model.load_state_dict(dict(found.weights), assign=True)
    return model


def images(config: Config, size: int) -> tuple[list[str], Tensor]:
    """Keys and uint8 [samples, 3, size, size] of random samples of the set that decode."""
    manifest = read_manifest(config.data)
    wanted = min(config.samples, manifest.samples)
    keys: list[str] = []
    pixels: list[np.ndarray] = []
    with closing(Stream(manifest, Order(seed=config.seed), config.rows, 0, manifest.samples)) as stream:
        for samples in stream:
            for sample in samples:
                try:
                    pixels.append(centred(sample.body, size, config.resize or size))
                except image.Undecodable:
                    continue
                keys.append(sample.key)
            if len(keys) >= wanted:
                break
    if not keys:
        raise ValueError(f"{config.data}: none of its {manifest.samples} samples decodes: run xtra check --decode")
    return keys[:wanted], torch.from_numpy(np.stack(pixels[:wanted]))


# ---- predictions ---------------------------------------------------------------------------------------------------


def _predict(model: Xtra, images_B3HW: Tensor, order_K: Tensor) -> list[Tensor]:
    """Each head's normalised predictions [B, K-1-head, P], in block order."""
    return model(images_B3HW, perm_K=order_K.to(images_B3HW.device))


def teacher_forced(model: Xtra, images_B3HW: Tensor, order_K: Tensor, head: int = 0) -> Tensor:
    """[B, 3, H, W]: each block predicted by the head from true ones, with the true block's mean and deviation."""
    side, order_K = model.config.side, order_K.to(images_B3HW.device)
    blocks_BKP = target_blocks(images_B3HW, side)
    var, mean = torch.var_mean(blocks_BKP, dim=-1, keepdim=True)
    drawn_BKP = mean.expand_as(blocks_BKP).clone()
    later = order_K[1 + head :]
    drawn_BKP[:, later] += _predict(model, images_B3HW, order_K)[head] * (var[:, later] + EPS).sqrt()
    return join_blocks(drawn_BKP, side)


def free_run(model: Xtra, images_B3HW: Tensor, order_K: Tensor, given: int) -> Tensor:
    """[B, 3, H, W]: the first `given` blocks of the images, and all others predicted one by one."""
    c = model.config
    blocks_BKP = target_blocks(images_B3HW, c.side).clone()
    blocks_BKP[:, order_K[given:]] = 0  # later blocks must not leak
    for position in range(given, c.blocks):
        block, there = int(order_K[position]), order_K[:position].tolist()
        prediction_BP = _predict(model, join_blocks(blocks_BKP, c.side), order_K)[0][:, position - 1]
        mean_B1, std_B1 = _from_neighbours(blocks_BKP, block, there, c)
        blocks_BKP[:, block] = prediction_BP * std_B1 + mean_B1
    return join_blocks(blocks_BKP, c.side)


def only_given(images_B3HW: Tensor, side: int, order_K: Tensor, given: int) -> Tensor:
    """[B, 3, H, W]: the first `given` blocks of the images, the others gray."""
    blocks_BKP = target_blocks(images_B3HW, side).clone()
    gray_3 = (UNSEEN - torch.tensor(MEAN)) / torch.tensor(STD)
    gray_P = gray_3.repeat_interleave(side * side).to(blocks_BKP)
    blocks_BKP[:, order_K[given:].to(blocks_BKP.device)] = gray_P
    return join_blocks(blocks_BKP, side)


def _from_neighbours(blocks_BKP: Tensor, block: int, there: list[int], c: ModelConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation for a missing block: the mean of the pixel rows and columns that touch it, and the deviation
    of their blocks; or of all existing blocks, if none touches it."""
    rows = round(c.blocks**0.5)
    row, column = divmod(block, rows)
    # (row, column) of the neighbour, and which of its pixels [3, side, side] touch ours
    touching = [(row - 1, column, np.s_[:, -1:, :]), (row + 1, column, np.s_[:, :1, :])]
    touching += [(row, column - 1, np.s_[:, :, -1:]), (row, column + 1, np.s_[:, :, :1])]
    edges: list[Tensor] = []
    around: list[int] = []
    for r, k, part in touching:
        if 0 <= r < rows and 0 <= k < rows and r * rows + k in there:
            around.append(r * rows + k)
            edges.append(blocks_BKP[:, around[-1]].unflatten(1, (3, c.side, c.side))[(slice(None), *part)].flatten(1))
    if not around:
        return blocks_BKP[:, there].mean((1, 2))[:, None], blocks_BKP[:, there].var(-1).mean(1).add(EPS).sqrt()[:, None]
    return torch.cat(edges, 1).mean(1, keepdim=True), blocks_BKP[:, around].var(-1).mean(1).add(EPS).sqrt()[:, None]


# ---- pictures ------------------------------------------------------------------------------------------------------


def to_pixels(images_B3HW: Tensor) -> np.ndarray:
    """Normalised images as uint8 [B, H, W, 3]."""
    x = images_B3HW.float().cpu() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class Row:
    """One version of all images."""

    name: str
    caption: str
    images_B3HW: Tensor


def slide(rows: Sequence[Row], title: str, facts: str, keys: Sequence[str]) -> bytes:
    """A PNG of at least SLIDE pixels with its aspect ratio: one row per version, one column per image; small images are
    enlarged by a whole number, so that each pixel is a square."""
    cells = np.stack([to_pixels(row.images_B3HW) for row in rows])  # [rows, images, H, W, 3]
    size, across, down = cells.shape[2], cells.shape[1], len(rows)
    room = SLIDE[0] - LEFT - across * GAP, SLIDE[1] - ABOVE - BELOW - down * GAP
    times = max(1, min(room[0] // (across * size), room[1] // (down * size)))
    cells = cells.repeat(times, 2).repeat(times, 3)
    step = size * times + GAP
    width = max(SLIDE[0], LEFT + across * step)
    height = max(SLIDE[1], ABOVE + down * step + BELOW, -(-width * SLIDE[1] // SLIDE[0]))
    width = max(width, -(-height * SLIDE[0] // SLIDE[1]))
    words = [(MARGIN, 30, 34, INK, title), (MARGIN, 84, 20, SOFT, facts)]
    for row, version in enumerate(rows):
        top = ABOVE + row * step
        words.append((MARGIN, top, 26, INK, version.name))
        words.append((MARGIN, top + 38, 17, SOFT, textwrap.fill(version.caption, 27)))
    letters = max(4, step // 10)  # letters of 16 pixels that fit an image's width
    for column, key in enumerate(keys):
        short = key if len(key) <= letters else "…" + key[1 - letters :]  # keys mostly differ at the end
        words.append((LEFT + column * step, ABOVE - 28, 16, SOFT, short))
    pixels = _lettered(width, height, words)
    for row, versions in enumerate(cells):
        for column, cell in enumerate(versions):
            top, left = ABOVE + row * step, LEFT + column * step
            pixels[top : top + len(cell), left : left + len(cell)] = cell
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _lettered(width: int, height: int, words: Sequence[tuple[int, int, int, str, str]]) -> np.ndarray:
    """uint8 [height, width, 3]: white, with words (left, top, size in pixels, colour, text)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dots = 100  # per inch
    figure = Figure((width / dots, height / dots), dpi=dots, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for left, top, size, colour, text in words:
        figure.text(
            left / width,
            1 - top / height,
            "".join(c if ord(c) < 0x250 or c == "…" else "?" for c in text),  # the font has these
            color=colour,
            fontsize=size * 72 / dots,
            verticalalignment="top",
            parse_math=False,
        )
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
