"""Checkpoints made to hang, to crash or to fill the memory of who opens them: each is one line, soon, and small."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xtra.official import read_official
from xtra.official.unpickle import read

OPEN = b"\x80\x02"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def tensor(shape: list[int], stride: list[int], values: int = 4, after: bytes = b"") -> bytes:
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + integer(values) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(integer, each)) + b"t" for each in (shape, stride))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return (
        rebuild + b"(" + storage + after + integer(0) + sizes + b"\x89" + name("collections", "OrderedDict") + b")RtR"
    )


def state(**items: bytes) -> bytes:
    return OPEN + b"}" + text("state_dict") + b"}" + b"".join(text(k) + v + b"s" for k, v in items.items()) + b"s."


def next_to_weights(value: bytes) -> bytes:
    """A value next to a state dict that is in order."""
    inner = b"}" + text("enc.pos_embed") + tensor([4], [1]) + b"s"
    return OPEN + b"}" + text("x") + value + b"s" + text("state_dict") + inner + b"s."


DOUBLED = b"]q\0" + b"".join(b"]q%c(h%ch%ce" % (k + 1, k, k) for k in range(45)) + b"0" * 46 + b"h\x2d"
BAD = {
    "a dict in itself": OPEN + b"}q\0" + text("x") + b"h\0s.",
    "200,000 lists in one another": next_to_weights(b"]" * 200_000 + b"a" * 199_999),
    "200,000 tuples as a key": next_to_weights(b"}N" + b"\x85" * 200_000 + b"Ns"),
    "memo index 2^31": OPEN + b"Nr" + struct.pack("<I", 0x7FFFFFFF) + b".",
    "memo index in words": OPEN + b"Np99999999999999999\n.",
    "a text of 3 GB": OPEN + b"X" + struct.pack("<I", 3 << 30) + b"abc.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "16 bytes as 2^33 floats": state(**{"enc.pos_embed": tensor([1 << 33], [0])}),
    "a storage of 2^62 floats": state(**{"enc.pos_embed": tensor([4], [1], 1 << 62)}),
    "a negative storage": state(**{"enc.pos_embed": tensor([4], [1], -4)}),
    "a negative shape": state(**{"enc.pos_embed": tensor([-4, -1], [1, 1])}),
    "a shape of text": state(
        **{"enc.pos_embed": name("torch._utils", "_rebuild_tensor_v2") + b"(" + text("x") + b"tR"}
    ),
    "a reference that is a list": OPEN + b"]Q.",
    "a storage that becomes another file's": state(
        **{"enc.pos_embed": tensor([4], [1], after=b"}" + text("member") + text("secret") + b"sb")}
    ),
    "a tensor that reads otherwise": state(**{"enc.pos_embed": tensor([4], [1]) + b"}" + text("read") + b"Nsb"}),
    "a function of ours that is changed": next_to_weights(
        name("torch._utils", "_rebuild_parameter") + b"(N}" + text("__defaults__") + b"(" + integer(1) + b"tstb"
    ),
    "nothing": b"",
    "no end": OPEN + b"}",
    "an extension": OPEN + b"\x82\x01.",
    "a million digits": OPEN + b"I" + b"9" * 1_000_000 + b"\n.",
}


def checkpoint(folder: Path, pickled: bytes) -> Path:
    path = folder / "hostile.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(16))
    return path


@pytest.mark.parametrize("what", BAD)
def test_a_hostile_checkpoint_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = checkpoint(tmp_path, BAD[what])
    with pytest.raises(ValueError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: data.pkl cannot be read (")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_objects_that_many_share_are_counted_once(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, next_to_weights(DOUBLED))  # 45 lists, each twice the last: 2^45 paths
    assert len(read(path).root["x"]) == 2
    with pytest.raises(ValueError, match="its sizes cannot be read"):
        read_official(str(path))


@pytest.mark.parametrize("layers", [999_999_999, -5])
def test_the_layers_that_a_name_promises_are_not_believed(tmp_path: Path, layers: int) -> None:
    names = ("enc.pos_embed", "enc.patch_embed.proj.weight", "enc.blocks.0.mlp.fc1.weight")
    tensors = {names[0]: tensor([1, 4, 1], [4, 1, 1]), names[1]: tensor([1, 1, 2, 2], [1, 1, 1, 1])}
    tensors |= {names[2]: tensor([4, 1], [1, 1]), f"enc.blocks.{layers}.x": tensor([4], [1])}
    with pytest.raises(ValueError, match=r"sizes cannot be read|do not fit|no model of these sizes"):
        read_official(str(checkpoint(tmp_path, state(**tensors))))


def test_sizes_are_compared_with_the_model_before_anything_is_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, state(**{"enc.pos_embed": tensor([1, 4], [4, 1])}))
    with zipfile.ZipFile(path, "w") as archive:  # its bytes are missing, which reading would find
        archive.writestr("archive/data.pkl", state(**{"enc.pos_embed": tensor([1, 4], [4, 1])}))
    with pytest.raises(ValueError, match="these official weights do not fit the model config"):
        read_official(str(path), size="b16")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["memo index 2^31", "200,000 lists in one another", "16 bytes as 2^33 floats"])
def test_it_takes_2_seconds_and_500_mb_at_most(tmp_path: Path, what: str) -> None:
    lines = [
        "import pathlib, resource, sys, time",
        "from xtra.official.unpickle import read",
        "before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()",
        "try: read(pathlib.Path(sys.argv[1]))",
        "except ValueError: pass",
        "print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(checkpoint(tmp_path, BAD[what]))]
    seconds, megabytes = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert seconds < 2
    assert megabytes < 500
