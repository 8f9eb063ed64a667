"""The stream in other people's trainers: what it gives, and that it resumes exactly, on any number of ranks."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from made_datasets import jpeg, make_dataset, plan_unit, rows_of, write_unit
from places import ROOT
from torch.utils.data import DataLoader

from shards.dataset import DatasetInfo, write_info
from shards.manifest import make_version
from shards.stream.order import Order
from xtra import adapters
from xtra.adapters import TorchBatches, WdsSamples

ORDER = Order(seed=3, lanes=5, chunk=4, window=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 33], bad=(5,))
    return str(base)


def pictures(data, world, batches, state=None):
    """Of each global batch, {key: digest of its pixels} of all ranks together; and the state after them."""
    found, states = [{} for _ in range(batches)], []
    for rank in range(world):
        ours = TorchBatches(data, 10, 16, rank=rank, world=world, order=ORDER, seed=3, threads=1)
        if state is not None:
            ours.load_state_dict(json.loads(json.dumps(state)))
        loader = DataLoader(ours, batch_size=None)
        for step, batch in enumerate(itertools.islice(loader, batches)):
            assert batch["image"].shape[1:] == (3, 16, 16)
            assert batch["labels"] == [[f"c{int(key[1:]) % 5}"] for key in batch["key"]]
            digests = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in batch["image"]]
            found[step] |= dict(zip(batch["key"], digests))
        states.append(ours.state_dict())
    assert all(one == states[0] for one in states), "any rank's state will do"
    return found, states[0]


def test_a_torch_loader_resumes_exactly_at_any_world_size(data):
    whole, end = pictures(data, 1, 9)
    parts, state = pictures(data, 2, 3)
    for world, batches in ((3, 2), (1, 1), (4, 3)):
        more, state = pictures(data, world, batches, state)
        parts += more
    assert parts == whole
    assert state == end
    assert state["samples_seen"] == 90
    assert len({key for batch in whole[:7] for key in batch}) == 70, "no sample twice in an epoch"


def test_iterating_again_goes_on_and_stop_at_ends_it(data):
    ours = TorchBatches(data, 10, 16, rank=0, world=1, order=ORDER, stop_at=25)
    first = [batch["key"] for batch in itertools.islice(ours, 1)]
    rest = [batch["key"] for batch in ours]
    assert [len(keys) for keys in first + rest] == [10, 10, 5]
    assert len({key for keys in first + rest for key in keys}) == 25
    assert ours.state_dict()["samples_seen"] == 25


def test_workers_are_refused_in_words(data, monkeypatch):
    monkeypatch.setattr(adapters, "get_worker_info", lambda: SimpleNamespace(num_workers=4))  # as within a worker
    for ours in (TorchBatches(data, 10, 16, rank=0, world=1), WdsSamples(data, 10, rank=0, world=1)):
        with pytest.raises(ValueError, match=r"num_workers is 4: .* DataLoader\(..., batch_size=None, num_workers=0\)"):
            next(iter(ours))


def test_what_does_not_fit_is_refused(data, tmp_path):
    state = TorchBatches(data, 10, 16, rank=0, world=1).state_dict()
    with pytest.raises(ValueError, match=r"the state was saved for order .*'seed': 0.* this stream reads .*'seed': 1"):
        TorchBatches(data, 10, 16, rank=0, world=1, seed=1).load_state_dict(state)
    make_dataset(tmp_path, [5])
    with pytest.raises(
        ValueError, match=f"the state was saved for manifest {state['manifest']}, but this stream reads"
    ):
        WdsSamples(str(tmp_path), 10, rank=0, world=1).load_state_dict(state)
    with pytest.raises(ValueError, match="rank is 2 of a world of 2: ranks are 0 to 1"):
        WdsSamples(data, 10, rank=2, world=2)
    with pytest.raises(ValueError, match="batch is 0"):
        TorchBatches(data, 0, 16, rank=0, world=1)


def samples(data, world, each, state=None):
    """What all ranks together give as each takes `each` samples, and their state."""
    found, states = [], []
    for rank in range(world):
        ours = WdsSamples(data, 12, rank=rank, world=world, order=ORDER)
        if state is not None:
            ours.load_state_dict(state)
        found += itertools.islice(ours, each)
        states.append(ours.state_dict())
    assert all(one == states[0] for one in states)
    return sorted((sample["__key__"], sample["jpg"], sample["json"]) for sample in found), states[0]


def test_wds_samples_resume_exactly_at_any_world_size(data):
    first, state = samples(data, 2, 12)
    more, state = samples(data, 3, 4, state)
    rest, state = samples(data, 1, 36, state)
    whole, end = samples(data, 1, 72)
    assert sorted(first + more + rest) == whole
    assert state == end
    assert state["samples_seen"] == 72
    assert [key for key, _, _ in whole] == [f"k{row:06d}" for row in range(73) if row != 5]
    assert all(body == jpeg(int(key[1:])) for key, body, _ in whole)


def test_a_state_between_batches_is_that_of_the_last_whole_one(data):
    ours = WdsSamples(data, 12, rank=0, world=1, order=ORDER)
    seen = [(i + 1, ours.samples_seen) for i, _ in enumerate(itertools.islice(ours, 25))]
    assert seen == [(n, n // 12 * 12) for n in range(1, 26)]


STAGES = """
import json, sys, webdataset as wds
from xtra.adapters import WdsSamples
samples = WdsSamples(sys.argv[1], 8, rank=0, world=1, stop_at=20)
pipeline = wds.DataPipeline(samples, wds.decode("rgb8"), wds.to_tuple("__key__", "jpg;png;webp", "cls", "json"))
print(json.dumps([[key, list(pixels.shape), cls, about["labels"]] for key, pixels, cls, about in pipeline]))
"""


def test_the_stages_of_webdataset_take_it(tmp_path):
    rows = rows_of(0, 20, classes=3)
    plan_unit(str(tmp_path), 0, rows)
    write_unit(str(tmp_path), 0, rows)
    write_info(str(tmp_path), DatasetInfo("t", "0" * 64, 1, 20, "c", "t", classes=("c2", "c1", "c0")))
    make_version(str(tmp_path), "test")
    # A process of its own: webdataset leaves its files open, which is a warning, and warnings are errors here.
    program = [sys.executable, "-c", STAGES, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, check=True, timeout=120, cwd=ROOT)
    expected = [[f"k{row:06d}", [32, 32, 3], 2 - row % 3, [f"c{row % 3}"]] for row in range(20)]
    assert sorted(json.loads(done.stdout)) == expected


GIVEN = """
rank, world, state, seen = 1, 2, None, []
def step(*what):
    seen.append(what)
    if len(seen) % 3 == 0:
        raise StopIteration
"""


def test_the_trainers_of_the_manual_run(data):
    """Both snippets of docs/stream.md, on a small dataset; only names that it leaves to the reader are given here."""
    section = (ROOT / "docs/stream.md").read_text().partition("## 4. In your own trainer")[2].partition("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) == 2
    parts = [GIVEN]
    for snippet in snippets:
        small = snippet.replace("s3://bucket/name", data).replace("1024", "8").replace("512", "4")
        body = "".join(f"    {line}\n" for line in small.splitlines())
        parts.append(f"try:\n{body}except StopIteration:\n    pass\n")
    parts.append("print([[tuple(getattr(one, 'shape', ())) or len(one) for one in what] for what in seen])")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str([[(4, 3, 224, 224)]] * 3 + [[4, 4]] * 3)
