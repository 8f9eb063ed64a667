"""Safetensors files: written so that a full disk is an OSError, or piece by piece so that they can be hashed."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A local safetensors file. Raises OSError for a disk that is full or fails, which the library does not."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        if (said := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(path)) from None


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file (huggingface.co/docs/safetensors) piece by piece, straight from the tensors' memory.

    The caller can hash it while writing it. A file from the library's save_file would have to be read again, which
    costs as much CPU as this whole function, and disk time if the file does not fit into memory next to the state.
    """
    header: dict[str, Any] = {}
    end = 0
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # each at a multiple of its size
    for name, t in tensors.items():
        begin, end = end, end + t.nbytes
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for t in tensors.values():
        if t.nbytes:
            yield t.detach().reshape(-1).view(torch.uint8).numpy().data
