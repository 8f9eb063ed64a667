"""One probe of an untrained encoder, on this build or on an older one: its CPU seconds, and what they go to.

    PYTHONPATH=TREE python probe.py '{"recipe": "tiny_imagenet_block4", "settings": {...}}'      prints one JSON object

This file runs as a script, so that each probe has a process of its own, and the build is that of the tree. Torch has
one thread: what other threads do is then decoding, and reading what is decoded.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

from xtra import probe, recipes
from xtra.model import Encoder, ModelConfig, build

encoder_seconds = 0.0


class Timed(Encoder):
    """An encoder that counts the CPU seconds of this thread in its forward passes."""

    def layers(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        global encoder_seconds
        since = time.thread_time()
        streams = super().layers(*args, **kwargs)
        encoder_seconds += time.thread_time() - since
        return streams


def timed(model: ModelConfig) -> Encoder:
    """The encoder with its initial weights, which take as long as trained ones."""
    encoder = Timed(model)
    encoder.load_state_dict(build(model).encoder.state_dict())
    return encoder


def measured(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the probe; CPU seconds by what they went to, without imports, and its results."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    config = probe.Config(**given)
    encoder = timed(recipes.get(recipe).model)
    training = [0.0, 0.0]  # seconds of the heads, and when the last report came

    def say(what: str, done: int, total: int) -> None:
        now = time.thread_time()
        training[0] += now - training[1] if what == "train heads" else 0.0
        training[1] = now

    process, thread = time.process_time(), time.thread_time()
    found = probe.run(config, say, encoder)
    whole, main = time.process_time() - process, time.thread_time() - thread
    return {
        "cpu_seconds": whole,
        "encoder_seconds": encoder_seconds,
        "decoding_seconds": whole - main,
        "heads_seconds": training[0],
        "rest_seconds": main - encoder_seconds - training[0],
        "right": {result.head: result.right for result in found},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
