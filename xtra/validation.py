"""The pretraining loss on a held-out dataset: every image once, centre crops, no drop path, the first block order."""

from __future__ import annotations

import torch
from torch import Tensor

from shards.manifest import Manifest
from xtra.blocks import target_blocks
from xtra.compiled import filled
from xtra.config import Validation
from xtra.data import eval_batches, normalise
from xtra.distributed import sum_numbers, world_of
from xtra.loss import LossConfig, next_block_loss
from xtra.model import Xtra


@torch.no_grad()
def validation_loss(
    model: Xtra,
    manifest: Manifest,
    config: Validation,
    loss: LossConfig,
    device: torch.device,
    bf16: bool = False,
    threads: int = 2,
    perm_K: Tensor | None = None,
) -> float:
    """The mean loss over the manifest's images; ranks take batches in turn, and all return the same number.

    Raises ValueError naming a sample that does not decode.
    """
    rank, world = world_of()
    size = model.config.image
    total = torch.zeros(2, dtype=torch.float64, device=device)  # sum of image losses, images
    for batch in eval_batches(manifest, config.batch, size, config.resize or size, threads=threads, part=(rank, world)):
        images = normalise(batch.images_B3HW.to(device, non_blocking=True))
        count = len(images)
        if model.compiled:
            images = filled(images, config.batch)
        targets_BKP = target_blocks(images, model.config.side)
        if perm_K is not None:
            targets_BKP = targets_BKP[:, perm_K]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predictions = model(images, perm_K=perm_K)
        wanted = [prediction[:count] for prediction in predictions]
        total[0] += next_block_loss(wanted, targets_BKP[:count], loss).double() * count
        total[1] += count
        batch.release()
    images_loss, images_seen = sum_numbers(total).tolist()
    assert images_seen == manifest.samples, "every image once"
    return images_loss / images_seen
