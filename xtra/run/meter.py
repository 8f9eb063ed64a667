"""A run's use of the machine: model FLOPs utilisation, counted in two ways, and memory."""

from __future__ import annotations

import resource
from dataclasses import dataclass, fields

import torch

from xtra.attention import chosen, run_ends
from xtra.flops import Shape, flops_done, flops_per_image, peak_flops
from xtra.model import ModelConfig


@dataclass(frozen=True)
class Cost:
    """FLOPs per training image in the paper's code and in ours, and the machines' peak."""

    paper: int
    done: int
    peak: float | None  # FLOP/s of all ranks' GPUs together; None if unknown, as on a CPU

    def utilisation(self, samples_per_s: float) -> dict[str, float]:
        """MFU in the official code's FLOPs (comparable with peers) and in the FLOPs that are really computed."""
        if self.peak is None:
            return {}
        return {
            "mfu_paper": samples_per_s * self.paper / self.peak,
            "mfu_done": samples_per_s * self.done / self.peak,
        }


def shape_of(model: ModelConfig) -> Shape:
    return Shape(**{field.name: getattr(model, field.name) for field in fields(Shape)})


def attention_ends(
    model: ModelConfig, device: torch.device, attention: str = "auto", last_block: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the runs of queries end in training, for the encoder's and the decoder's attention."""
    tokens = model.tokens - (0 if last_block else model.per_block)

    def ends(head_width: int) -> tuple[int, ...]:
        implementation = chosen(device, tokens, head_width) if attention == "auto" else attention
        return run_ends(tokens, model.per_block, implementation)

    return ends(model.width // model.heads), ends(model.dec_width // model.dec_heads)


def cost(model: ModelConfig, device: torch.device, world: int, skips: bool = False, attention: str = "auto") -> Cost:
    """The cost of an image. `skips`: branches zeroed by drop path are not computed (on average half the last rate)."""
    shape = shape_of(model)
    keep = 1 - model.drop_path / 2 if skips else 1.0
    done = flops_done(shape, attention_ends(model, device, attention), keep)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return Cost(flops_per_image(shape), done, peak * world if peak else None)


def memory_bytes(device: torch.device) -> int:
    """The peak memory of this process so far: on its GPU, or in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
