"""CIFAR archives and PCAM files made to break in: one line each, nothing called, nothing read from elsewhere.

A pickle is a program for a small machine, so hostile ones are assembled here instruction by instruction.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_benchmarks import write

from ingest.sets import folders, import_benchmark
from ingest.sets.benchmarks import BENCHMARKS
from ingest.sets.layouts import arrays


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def dtype(code: str, state: bytes = b"") -> bytes:
    return b"cnumpy\ndtype\n(" + text(code) + b"\x89\x88tR" + (state + b"b" if state else b"")


ARRAY, MAKE, ENCODE = b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n"
EMPTY = MAKE + b"(" + ARRAY + b"(" + number(0) + b"t" + raw(b"b") + b"tR"
NO_FLAGS = b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"t"
STATE = b"(" + number(1) + b"(" + number(1) + b"t"  # version 1, shape (1,)
HOSTILE = {
    "an object array over bytes": ARRAY + b"((" + number(1) + b"t" + dtype("O8") + raw(b"A" * 8) + b"tR",
    "an object dtype without its flags": EMPTY + STATE + dtype("O8", NO_FLAGS) + b"\x89" + raw(b"A" * 8) + b"tb",
    "an array of 2^50 bytes": ARRAY + b"((" + number(1 << 50) + b"t" + dtype("u1") + b"tR",
    "more bytes than there are": EMPTY
    + b"("
    + number(1)
    + b"("
    + number(1 << 50)
    + b"t"
    + dtype("u1")
    + b"\x89B\0\0\0\0tb",
    "a negative size": EMPTY + b"(" + number(1) + b"(" + number(-1) + b"t" + dtype("u1") + b"\x89" + raw(b"") + b"tb",
    "a column-major array": EMPTY + STATE + dtype("u1") + b"\x88" + raw(b"A") + b"tb",
    "a state for a name": ARRAY + b"}b",
    "a state twice": EMPTY + STATE + dtype("u1") + b"\x89" + raw(b"A") + b"tb(tb",
    "another codec": ENCODE + b"(" + text("a") + text("utf-32") + b"tR",
    "a call of the system": b"cos\nsystem\n(" + text("touch RAN") + b"tR",
    "numpy's own loader": b"cnumpy\nload\n(" + text("RAN") + b"tR",
}


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_a_pickle_that_is_not_cifars_is_refused_and_runs_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("cifar10", "pickles", tmp_path / "source")
    batch = b"\x80\x03}" + text("data") + HOSTILE[what] + b"s" + text("labels") + b"]s."
    (tmp_path / "source/cifar-10-batches-py/data_batch_3").write_bytes(batch)
    with pytest.raises(ValueError, match=r"data_batch_3: .*get the archive again") as refused:
        arrays.read_cifar10(tmp_path / "source", BENCHMARKS["cifar10"], tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "RAN").exists()


def test_nothing_of_numpy_or_codecs_can_be_called() -> None:
    for named in arrays._NAMES.values():
        assert isinstance(named, arrays._Named)
        assert named.make.__module__ == arrays.__name__


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_array_is_what_numpy_would_make_of_it(protocol: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    body = pickle.dumps({"data": data}, protocol)
    found = arrays._array(arrays._unpickled(lambda _: body, "x")["data"])
    assert found is not None
    np.testing.assert_array_equal(found, data)
    turned = pickle.dumps({"data": np.asfortranarray(data)}, protocol)
    assert arrays._array(arrays._unpickled(lambda _: turned, "x")["data"]) is None


def patches(folder: Path, **how: object) -> folders.Config:
    """PCAM's files, whose pixels are stored as `how` says."""
    folder.mkdir()
    pixels = np.zeros((2, 96, 96, 3), np.uint8)
    for split in ("train", "valid"):
        base = folder / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{base}_y.h5", "w") as file:
            file.create_dataset("y", data=np.zeros((2, 1, 1, 1), "u1"))
        with h5py.File(f"{base}_x.h5", "w") as file:
            if "link" in how:
                file["x"] = h5py.ExternalLink(str(how["link"]), "x")
            elif "virtual" in how:
                layout = h5py.VirtualLayout(pixels.shape, "u1")
                layout[:] = h5py.VirtualSource(str(how["virtual"]), "x", pixels.shape)
                file.create_virtual_dataset("x", layout)
            elif "external" in how:
                file.create_dataset("x", pixels.shape, "u1", external=[(str(how["external"]), 0, pixels.size)])
            else:
                file.create_dataset("x", data=pixels, **how)
    return folders.Config(str(folder), str(folder.parent / "out"), set="pcam", counts="any")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("external", "keeps its data in other files"),
        ("virtual", "is a view of other files"),
        ("link", "leads to another"),
    ],
)
def test_an_hdf5_file_does_not_bring_another_file_of_this_machine(how: str, why: str, tmp_path: Path) -> None:
    other = tmp_path / "secret"
    if how == "external":
        other.write_bytes(b"private key " * 5000)
    else:
        with h5py.File(other, "w") as file:
            file.create_dataset("x", data=np.full((2, 96, 96, 3), 7, "u1"))
    config = patches(tmp_path / "source", **{how: other})
    with pytest.raises(ValueError, match=f"_x.h5: x {why}") as refused:
        import_benchmark.run(config, BENCHMARKS["pcam"])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 96, 96, 3), "compression": "gzip", "shuffle": True}])
def test_what_publishers_use_of_hdf5_is_read(options: dict[str, object], tmp_path: Path) -> None:
    config = patches(tmp_path / "source", **options)
    result = import_benchmark.run(config, BENCHMARKS["pcam"])
    assert [part.kept for part in result.splits] == [2, 2]
