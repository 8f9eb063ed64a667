"""What torch.compile makes of a training step, in shapes that stay the same from the first step to the last.

Layers are compiled one by one, with one graph for the first of a width and one for all others; so are patches, bridge,
heads and loss. A graph is good for one shape, and a new one costs seconds. So where the model is compiled, a batch that
is short (a rank's last part, the run's last batch, validation's last) is filled up with images that count nothing.

Shapes: B images, K blocks.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xtra.blocks import target_blocks
from xtra.device import sent
from xtra.loss import LossConfig, next_block_loss
from xtra.model import Xtra

FORMS = 64  # of one function that are compiled: torch's own limit of 8 is less than a layer has, with validation's


def unavailable() -> str:
    """Why nothing can be compiled for a GPU here; "" where it can."""
    from torch.utils._triton import has_triton_package

    if not has_triton_package():
        return "triton is not installed"
    return "" if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") else "there is no C compiler"


def compile_model(model: Xtra, mode: str | None = None) -> None:
    """Compile the parts of the model, each as one whole graph; what cannot be one raises when it first runs."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(FORMS, torch._dynamo.config.recompile_limit)
    # Sizes are constants, but for the numbers of kept images (drop_path.mark_kept): left to itself, torch would take
    # two parts that share their code, such as bridge and head, for one of varying width.
    varies = [*model.encoder.blocks, model.encoder.norm] if model.encoder.skip_dropped else []
    for part in _parts(model):
        part.compile(mode=mode, fullgraph=True, dynamic=None if part in varies else False)
    embed = torch.compile(model.encoder.embed, mode=mode, fullgraph=True, dynamic=False)
    model.encoder.embed = embed  # pyrefly: ignore
    model.compiled = model.encoder.compiled = True


def uncompile(model: Xtra) -> None:
    """Undo `compile_model`; what was compiled for other settings is forgotten."""
    import torch._dynamo

    for part in _parts(model):
        part._compiled_call_impl = None
    vars(model.encoder).pop("embed", None)
    model.compiled = model.encoder.compiled = False
    torch._dynamo.reset()
    compiled_loss.cache_clear()


def _parts(model: Xtra) -> list[Any]:
    layers = [*model.encoder.blocks, *model.decoder.blocks]
    return [*layers, model.encoder.norm, model.decoder.norm, model.bridge, *model.heads]


def loss_of(
    predictions: Sequence[Tensor],
    images_B3HW: Tensor,
    side: int,
    perm_K: Tensor | None,
    weight_B: Tensor | None,
    config: LossConfig,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """`next_block_loss` against the images' own blocks, in the order of `perm_K`, where there is one."""
    targets_BKP = target_blocks(images_B3HW, side)
    if perm_K is not None:
        targets_BKP = targets_BKP[:, perm_K]
    return next_block_loss(predictions, targets_BKP, config, weight_B, prefix_B)


@functools.cache
def compiled_loss() -> Callable[..., Tensor]:
    """`loss_of`, compiled."""
    return torch.compile(loss_of, fullgraph=True, dynamic=False)


def filled(images_B3HW: Tensor, to: int) -> Tensor:
    """So many images, the first one again in the place of those that are missing."""
    missing = to - len(images_B3HW)
    return torch.cat((images_B3HW, images_B3HW[:1].expand(missing, -1, -1, -1))) if missing > 0 else images_B3HW


def filled_numbers(numbers_B: np.ndarray, to: int) -> np.ndarray:
    """As `filled`, of the images' epochs or sample numbers."""
    return np.concatenate((numbers_B, np.repeat(numbers_B[:1], max(0, to - len(numbers_B)))))


def weights(images: int, to: int, total: int, device: torch.device) -> Tensor:
    """[to] float32, for `loss_of`: an image's share of a mean over `total`, and 0 for what is filled up."""
    return sent((torch.arange(to) < images).float() / total, device)
