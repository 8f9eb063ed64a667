"""What a folder holds, by the names in it, on every kind of store."""

from __future__ import annotations

import pytest

from shards import folder_kind, store


@pytest.mark.parametrize(
    ("names", "kind", "mark"),
    [
        ((), None, ""),
        (("README.md", "notes/todo.txt"), None, ""),
        (("dataset.json", "commits/000000.json"), "dataset", "dataset.json"),
        (("links/000000.parquet",), "dataset", "links"),
        (("config.json",), "run", "config.json"),
        (("config.json", "run.json", "probes/a.json"), "run", "run.json"),
        (("config.json", "model.safetensors"), "export", "model.safetensors"),
        (("xtra.ckpt",), "export", "xtra.ckpt"),
        (("probes/a.json",), "probes", "probes"),
        (("report.html", "one/run.json"), "study", "one/run.json"),
        (("train/dataset.json", "eval/dataset.json"), "study", "eval/dataset.json"),
    ],
)
def test_the_kind_of_a_folder(base: str, names: tuple[str, ...], kind: str | None, mark: str) -> None:
    for name in names:
        store.put(store.join(base, name), b"{}")
    held = folder_kind.look(base)
    assert (held and held.kind) == kind
    assert kind is None or (held is not None and held.name == mark)


def test_another_kind_is_refused_by_name_and_its_own_goes_on(base: str) -> None:
    store.put(store.join(base, "run.json"), b"{}")
    with pytest.raises(ValueError, match=r"holds a run \(run\.json\), and a dataset would be mixed into it"):
        folder_kind.require(base, "a dataset", "dataset")
    folder_kind.require(base, "a run", "run")
    store.put(store.join(base, "dataset.json"), b"{}")  # an older build let this happen: both go on, nothing else comes
    folder_kind.require(base, "a run", "run")
    folder_kind.require(base, "a dataset", "dataset")
    with pytest.raises(ValueError, match=r"holds a dataset \(dataset\.json\), and an export"):
        folder_kind.require(base, "an export", "export")
    folder_kind.require(store.join(base, "new"), "an export", "export")
