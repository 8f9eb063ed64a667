"""Slips: the wrong folder, the wrong version, a second start, typing mistakes. Each is one line that names the thing
and the next step, with its exit code, and harms nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kill_verbs import MODEL
from made_datasets import jpeg, make_dataset

from jobs import cli
from xtra.run import live, this_process

TRAIN = ("--samples", "32", "--batch", "16", "--device", "cpu", "--threads", "1", *MODEL)
PROBE = ("--epochs", "1", "--batch", "8", "--heads", "linear", "--views", "1", "--lrs", "1e-2", "--device", "cpu")
SHORT = {"TRAIN": TRAIN, "PROBE": PROBE}


@dataclass(frozen=True)
class Slip:
    words: str
    said: str  # part of the last line on stderr
    code: int = 2


ONE_KIND_IN_ANOTHER = [
    Slip(
        "ingest --urls list.txt --out study/run", "study/run: holds a run (run.json), and a dataset would be mixed into"
    ),
    Slip(
        "ingest --urls list.txt --out study",
        "study: holds runs or datasets in folders of their own (imported/run.json)",
    ),
    Slip(
        "ingest --urls list.txt --out encoder", "encoder: holds an exported encoder (model.safetensors), and a dataset"
    ),
    Slip(
        "ingest --urls list.txt --out probed", "probed: holds results of probes (probes), and a dataset would be mixed"
    ),
    Slip("ingest --retry --out study/run", "study/run: holds a run (run.json), and a dataset would be mixed into it"),
    Slip("import pictures --out study/run", "study/run: holds a run (run.json), and a dataset would be mixed into it"),
    Slip("import tars --in-place --out study/run", "study/run: holds a run (run.json), and a dataset would be mixed"),
    Slip(
        "import pictures --set cifar10 --out data", "data: holds a dataset (dataset.json), and two datasets, train and"
    ),
    Slip("train demo32 --data data --out data TRAIN", "data: holds a dataset (dataset.json), and a run would be mixed"),
    Slip("train demo32 --data data --out study TRAIN", "study: holds runs or datasets in folders of their own"),
    Slip(
        "train demo32 --data data --out encoder TRAIN", "encoder: holds an exported encoder (model.safetensors), and a"
    ),
    Slip("train demo32 --data data --out probed TRAIN", "probed: holds results of probes (probes), and a run would be"),
    Slip("train demo32 --data data --out list.txt TRAIN", "list.txt is a file, but must be a folder: move it, or"),
    Slip(
        "probe study/run --train data --eval data --out data PROBE", "data: holds a dataset (dataset.json), and results"
    ),
    Slip("probe study/run --train data --eval data --out study PROBE", "study: holds runs or datasets in folders of"),
    Slip(
        "generate study/run --data data --out data", "data: holds a dataset (dataset.json), and pictures would be mixed"
    ),
    Slip("generate study/run --data data --out study/run", "study/run: holds a run (run.json), and pictures would be"),
    Slip("export study/run --out data", "data: holds a dataset (dataset.json), and an export would be mixed into it"),
    Slip("export study/run --out study/run", "study/run: holds a run (run.json), and an export would be mixed into it"),
    Slip(
        "export xtra.ckpt --to run --heads 2 --dec-heads 2 --out study/run",
        "study/run: is not empty: choose another --out",
    ),
    Slip(
        "scale --data data --out data --recipes demo32 --samples 8 --probe.train data --probe.eval data",
        "data: holds a dataset (dataset.json), and a study would be mixed into it: give another --out",
    ),
]
WRONG_FOLDER = [
    Slip(
        "import pictures --out pictures", "pictures: is in SOURCE, pictures, which stays as it is: give another --out"
    ),
    Slip("import data --out new", "data: holds a dataset (dataset.json), not pictures to import: check SOURCE"),
    Slip("import picture --out new", "picture: there is no such folder or tar: check --source"),
    Slip("import notes --out new", "notes: holds no pictures (bmp, gif, jpeg, jpg, mpo, png, tif, tiff, webp)"),
    Slip("ingest --urls lst.txt --out new", "lst.txt: there is no such list: check --urls"),
    Slip("ingest --urls study/run --out new", "study/run: holds a run (run.json), no list: check --urls"),
    Slip("ingest --urls list.txt --out s3:/bucket/x", "out s3:/bucket/x: is missing a slash: give s3://bucket/x"),
    Slip("ingest --urls list.txt --out /proc/none", "/proc/none: cannot write: No such file or directory"),
    Slip("ingest --urls list.txt --out data", "data: was made with another list_sha256"),
    Slip(
        "train demo32 --data study/run --out new TRAIN", "study/run: is not a dataset (no dataset.json): make one with"
    ),
    Slip(
        "probe data --train data --eval data PROBE",
        "data: holds no committed checkpoint, but a dataset (dataset.json):",
    ),
    Slip("probe study --train data --eval data PROBE", "study: holds no committed checkpoint, but runs or datasets in"),
    Slip("export encoder --out new", "encoder: holds no committed checkpoint, but an exported encoder (model.safetens"),
    Slip("select study/run --subset 4", "study/run: is not a dataset (no dataset.json): make one with xtra ingest or"),
    Slip(
        "status pictures", "pictures: is neither a dataset nor a run, and contains none: give an --out of xtra ingest,"
    ),
    Slip("sweep pictures", "pictures: is neither a dataset nor a run: give the --out of xtra ingest, train or probe"),
    Slip("trace study/imported nokey", "", code=1),
]
WRONG_VERSION = [
    Slip("train demo32 --data data@7 --out new TRAIN", "data: has no version 7: it has versions 1"),
    Slip(
        "train demo32 --data data@abcdef01 --out new TRAIN", "data: 0 manifests start with abcdef01: it has versions 1"
    ),
    Slip("select data@9 --subset 4", "data: has no version 9: it has versions 1"),
    Slip("select data --subset 400", "subset of 400 samples: data has 24: give 1 to 24"),
    Slip(
        "export study/run/checkpoints/000000000099 --out new", "checkpoints/000000000099: holds no committed checkpoint"
    ),
]
SECOND_START = [
    Slip("train demo32 --data data --out study/live TRAIN", "stop it, or give --take-over to continue in its place"),
    Slip("train demo32 --data data --out study/live TRAIN --workers 1", "attempt 1 is at work on it (process "),
    Slip(
        "train demo32 --data data --out study/run TRAIN --seed 1", "study/run: was begun with seed = 0, now 1: use the"
    ),
    Slip("train demo32 --data other --out study/run TRAIN", "study/run: was begun on manifest "),
]
TYPING = [
    Slip("tran demo32", "'tran' is not a verb; did you mean train?"),
    Slip("train demo23 --data data --out new", "recipe 'demo23' is unknown; did you mean demo32?"),
    Slip("train demo32 --data data --out new --sample 32", "--sample is not a flag; did you mean --samples?"),
    Slip("train demo32 --data data TRAIN", "--out must be given, such as --out s3://bucket/new"),
    Slip("train demo32 --data data --out new --take-ovr", "--take-ovr is not a flag"),
    Slip("ingest --url list.txt --out new", "--url is not a flag; did you mean --urls?"),
    Slip("probe study/run --train data --eval data --augment publishd", "--augment is 'publishd'; it must be one of"),
    Slip("generate study/run --data data --out new --device gpu", "device is gpu: Expected one of cpu, cuda"),
    Slip("select data --subset 4 --rules.near-distance 0", "subset and rules: use one, then apply the other to the"),
    Slip("peek data --reason undecodeable", "reason is 'undecodeable': it must be one of kept, dns,"),
]
ALL = ONE_KIND_IN_ANOTHER + WRONG_FOLDER + WRONG_VERSION + SECOND_START + TYPING


def xtra(*words: str) -> None:
    assert cli.main(list(words)) == 0, words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of every kind, and a run that another process is at work on."""
    root, threads = tmp_path_factory.mktemp("slips"), torch.get_num_threads()
    torch.set_num_threads(1)
    make_dataset(root / "data", [14, 10])
    make_dataset(root / "other", [9])
    for number in range(6):
        path = root / "pictures" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (root / "list.txt").write_text("http://127.0.0.1:9/a.jpg\n")
    for name in ("notes/todo.txt", "tars/a.tar"):
        (root / name).parent.mkdir()
        (root / name).write_bytes(b"")
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
    ):
        patch.chdir(root)
        for run in ("study/run", "study/live"):
            xtra("train", "demo32", "--data", "data", "--out", run, *TRAIN)
        xtra("export", "study/run", "--out", "encoder")
        xtra("export", "study/run", "--to", "official", "--out", "official")
        (root / "official" / "xtra.ckpt").rename(root / "xtra.ckpt")
        heads = ("--heads", "2", "--dec-heads", "2")  # of a width that no published size has
        xtra("export", "xtra.ckpt", "--to", "run", "--out", "study/imported", *heads)
        xtra("probe", "study/run", "--train", "data", "--eval", "data", "--out", "probed", *PROBE)
        begun_by(other, root / "study" / "live")
        yield root
        other.kill()
    torch.set_num_threads(threads)


def begun_by(other: subprocess.Popen[bytes], run: Path) -> None:
    """As if another process had begun the run's attempt, and not ended it."""
    file = run / "attempts" / "000001.json"
    driver = dataclasses.replace(this_process(), pid=other.pid, started=live._started(other.pid) or 0)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"driver": dataclasses.asdict(driver)}))
    for events in (run / "events").glob("*.jsonl"):
        lines = [line for line in events.read_text().splitlines() if json.loads(line)["event"] != "done"]
        events.write_text("".join(f"{line}\n" for line in lines))


def everything(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in root.rglob("*")
    }


def test_there_are_at_least_forty() -> None:
    assert len(ALL) >= 40
    assert len({slip.words for slip in ALL}) == len(ALL)


@pytest.mark.parametrize("slip", ALL, ids=lambda slip: slip.words)
def test_a_slip_is_one_line_and_harms_nothing(
    place: Path, slip: Slip, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "process" in slip.said and not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    monkeypatch.chdir(place)
    before = everything(place)
    words = [given for word in slip.words.split() for given in SHORT.get(word, (word,))]
    assert cli.main(words) == slip.code
    said = capsys.readouterr().err.splitlines()
    assert said[-1:] == [line for line in said[-1:] if line.startswith("xtra") and slip.said in line]
    assert len(said) == (1 if slip.code == 2 else 0)
    assert everything(place) == before


def test_who_means_it_takes_a_live_run_over(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    xtra("train", "demo32", "--data", "data", "--out", "study/live", *TRAIN, "--take-over")
    assert "study/live: attempt 1 is at work on it (process " in (err := capsys.readouterr().err)
    assert "continuing in its place; it ends when it next saves" in err
    assert "going on at 32 samples" in err
    assert sorted(path.name for path in (place / "study/live/attempts").iterdir()) == ["000001.json", "000002.json"]


def test_where_nobody_knows_a_line_says_so_and_the_run_goes_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    shutil.copytree(place / "study/live", tmp_path / "live")
    for later in (tmp_path / "live/attempts").glob("000002*"):
        later.unlink()
    file = tmp_path / "live/attempts/000001.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in begun.items() if name != "driver"}))  # of an older build
    xtra("train", "demo32", "--data", "data", "--out", str(tmp_path / "live"), *TRAIN)
    said = [line for line in capsys.readouterr().err.splitlines() if "may still be at work on it" in line]
    assert len(said) == 1
    assert said[0].endswith("continuing in its place; it ends when it next saves")
