"""torch.compile for a training step, with shapes that stay constant from the first step to the last.

Layers are compiled one by one, with one graph for the first of a width and one for all others; so are patches, bridge,
heads and loss. A graph fits one shape, and a new one costs seconds. So if the model is compiled, a short batch (a
rank's last part, the run's last batch, validation's last) is padded with images of weight 0.

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

FORMS = 64  # most compiled forms of one function: torch's limit of 8 is below a layer's number, with validation's


def unavailable() -> str:
    """Why nothing can be compiled for a GPU here; "" if it can."""
    from torch.utils._triton import has_triton_package

    if not has_triton_package():
        return "triton is not installed"
    return "" if shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") else "there is no C compiler"


def compile_model(model: Xtra, mode: str | None = None) -> None:
    """Compile the parts of the model, each as one full graph; a part that cannot be one raises when it first runs."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(FORMS, torch._dynamo.config.recompile_limit)
    # Sizes are constants, except the numbers of kept images (drop_path.mark_kept): by default, torch would treat two
    # parts that share their code, such as bridge and head, as one with varying width.
    varies = [*model.encoder.blocks, model.encoder.norm] if model.encoder.skip_dropped else []
    for part in _parts(model):
        part.compile(mode=mode, fullgraph=True, dynamic=None if part in varies else False)
    embed = torch.compile(model.encoder.embed, mode=mode, fullgraph=True, dynamic=False)
    model.encoder.embed = embed  # pyrefly: ignore
    model.compiled = model.encoder.compiled = True


def uncompile(model: Xtra) -> None:
    """Undo `compile_model`, and discard everything compiled for other settings."""
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
    """`next_block_loss` against the images' own blocks, in the order of `perm_K`, if given."""
    targets_BKP = target_blocks(images_B3HW, side)
    if perm_K is not None:
        targets_BKP = targets_BKP[:, perm_K]
    return next_block_loss(predictions, targets_BKP, config, weight_B, prefix_B)


@functools.cache
def compiled_loss() -> Callable[..., Tensor]:
    """`loss_of`, compiled."""
    return torch.compile(loss_of, fullgraph=True, dynamic=False)


def filled(images_B3HW: Tensor, to: int) -> Tensor:
    """The images padded to `to` by repeating the first one."""
    missing = to - len(images_B3HW)
    return torch.cat((images_B3HW, images_B3HW[:1].expand(missing, -1, -1, -1))) if missing > 0 else images_B3HW


def filled_numbers(numbers_B: np.ndarray, to: int) -> np.ndarray:
    """Like `filled`, for the images' epochs or sample numbers."""
    return np.concatenate((numbers_B, np.repeat(numbers_B[:1], max(0, to - len(numbers_B)))))


def weights(images: int, to: int, total: int, device: torch.device) -> Tensor:
    """[to] float32, for `loss_of`: an image's share of a mean over `total`, and 0 for padding."""
    return sent((torch.arange(to) < images).float() / total, device)
