import json
import re
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import run_folders
from made_datasets import jpeg, make_dataset, rows_of, write_unit
from origin import Origin, picture
from places import ROOT

from ingest.record import Reason
from jobs import cli, flags, verbs
from jobs.report import dataset_page
from jobs.report.ledger import read_runs
from shards.manifest import make_version, read_manifest
from shards.store import StoreError

TRAIN = ["--samples", "192", "--batch", "64", "--checkpoint-every", "64"]


def xtra(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, **options
    )


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


# ---- help ----


def test_help_lists_every_verb_in_80_columns(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for name, verb in verbs.VERBS.items():
        assert f"  {name}" in text
        assert verb.help in text
    assert cli.main([]) == 0
    assert capsys.readouterr().out == text


def test_help_imports_none_of_the_rooms_and_is_quick():
    heavy = "{'torch', 'ray', 'pyarrow', 'numpy', 'tyro', 'tqdm', 'fsspec', 'PIL'}"
    code = f"import jobs.cli, sys; jobs.cli.main(['--help']); sys.exit(str({heavy} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stderr.strip() == ""
    times = []
    for _ in range(3):  # CPU seconds: on a quiet machine that is the wait, and on a busy one it is still the same
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        xtra("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


@pytest.mark.parametrize("verb", [*verbs.VERBS, "train demo32", "bench parity"])
def test_every_verb_describes_its_flags(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "--" in text


@pytest.mark.parametrize("verb", [*(name for name in verbs.VERBS if name not in ("train", "bench")), "train demo32"])
def test_every_flag_says_what_it_is(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A comment that the formatter breaks in two is no help any more, without a word."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    boxes = "\n".join(line.rstrip("│ ") for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    entries = re.split(r"^│ (?:--|  )(?=[a-z])", boxes, flags=re.MULTILINE)[1:]  # xtra deploy has values, not flags
    assert len(entries) >= 2
    kinds = re.compile(
        r"^[a-z][a-z0-9._-]*(, --[a-z.-]+)?|\{[^}]*\}|\[[^]]*\]+|\b(?:STR|INT|FLOAT)\b|\||│|\((default: .*|required)\)$"
    )
    said = {entry.split()[0]: kinds.sub("", " ".join(entry.replace("│", " ").split())).strip() for entry in entries}
    assert [flag for flag, text in said.items() if len(text) < 4] == []


MANUAL = ("ingest", "stream", "train", "probe")


def test_the_manual_names_flags_and_reasons_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    for verb in [*(name for name in verbs.VERBS if name not in ("train", "bench")), "train demo32", "bench parity"]:
        with pytest.raises(SystemExit):
            cli.main([*verb.split(), "--help"])
    there = set(re.findall(r"--[a-z][a-z0-9.-]*", capsys.readouterr().out))
    pages = {name: (ROOT / name).read_text() for name in ("README.md", *(f"docs/{name}.md" for name in MANUAL))}
    named = {flag for text in pages.values() for flag in re.findall(r"--[a-z][a-z0-9.]*(?:-[a-z0-9]+)*", text)}
    assert len(named) > 60
    assert named - there == set()
    assert all(f"| `{reason}` | {dataset_page.MEANINGS[reason]} |" in pages["docs/ingest.md"] for reason in Reason)


# ---- mistakes ----

MISTAKES = [
    (["trian"], "'trian' is not a verb; did you mean train?: xtra --help lists them"),
    (["train"], "RECIPE is missing: give one of"),
    (["train", "demo23"], "recipe 'demo23' is unknown; did you mean demo32?"),
    (["train", "demo32", "--optim.lrr", "3"], "--optim.lrr is not a flag; did you mean --optim.lr?: xtra train --help"),
    (["train", "demo32", "--optim.lr=abc"], "--optim.lr: could not convert string to float: 'abc'"),
    (["train", "demo32", "--batch", "0"], "batch is 0; it must be at least 1"),
    (["train", "demo32", "--model.heads", "5"], "model.heads is 5; it must divide the width"),
    (["train", "demo32", "--workers", "many"], "--workers is 'many'; it must be a whole number"),
    (["train", "demo32"], "--data and --out must be given, such as --data s3://bucket/set --out s3://bucket/new: xtra"),
    (["train", "demo32", "./set"], "did you mean --data ./set?: xtra train --help lists them"),
    (["train", "demo32", "--worker", "2"], "--worker is not a flag; did you mean --workers?"),
    (["train", "demo32", "--lr", "2"], "--lr is not a flag; did you mean --optim.lr?"),
    (["train", "demo32", "--val.ever", "2"], "--val.ever is not a flag; did you mean --val.every?"),
    (["train", "demo32", "--samples", "1e6.5"], "--samples is '1e6.5'; it must be a whole number, such as 1500, 1.5k"),
    (["train", "demo32", "--samples", "1.5"], "--samples is '1.5'; it must be a whole number, such as 1500, 1.5k"),
    (
        ["train", "demo32", "--dropped", "skp"],
        "--dropped is 'skp'; it must be one of compute, skip, subset; did you mean",
    ),
    (["ingest"], "--urls and --out must be given, such as --urls list.txt --out s3://bucket/new: xtra ingest --help"),
    (["ingest", "list.txt"], "did you mean --urls list.txt?"),
    (["ingest", "--urls", "nowhere.txt", "--out"], "--out"),
    (["import"], "SOURCE is missing: xtra import SOURCE"),
    (["import", "/no/such/set", "--out", "/tmp/x"], "/no/such/set: there is no such folder or tar"),
    (["scale", "--data", "a", "--out", "b"], "--probe.train and --probe.eval must be given, such as --probe.train"),
    (["scale", "--data", "a", "--out", "b", "--sample", "3"], "--sample is not a flag; did you mean --samples?"),
    (
        ["probe", "run", "--train", "a", "--eval", "b", "--encoder", "tired"],
        "encoder is 'tired'; it must be trained, random",
    ),
    (["probe", "run", "--train", "a", "--eval", "b", "--augment", "wild"], "--augment is 'wild'; it must be one of"),
    (["probe", "run", "--train", "a"], "--eval must be given, such as --eval s3://bucket/labelled/eval"),
    (["peek"], "DATASET is missing: xtra peek DATASET"),
    (["peek", "/no/such/dataset"], "/no/such/dataset: is not a dataset"),
    (["peek", "/no/such/dataset", "--reason", "404"], "reason is '404': it must be one of kept, dns"),
    (["sweep"], "FOLDER is missing: xtra sweep FOLDER"),
    (["sweep", "/no/such/dataset"], "/no/such/dataset: is neither a dataset nor a run"),
    (["sweep", "/no/such/dataset", "--older-than", "soon"], "older_than is 'soon': give a number and m, h, d or w"),
    (["check"], "DATASET is missing: xtra check DATASET"),
    (["check", "one", "two"], "'two' is not a flag, and no flag before it takes it: xtra check --help"),
    (["check", "/no/such/dataset"], "/no/such/dataset: is not a dataset"),
    (["select", "/no/such/dataset"], "/no/such/dataset: is not a dataset"),
    (["status", "/no/such/folder"], "/no/such/folder: is neither a dataset nor a run, and contains none"),
    (["report", "/no/such/folder"], "/no/such/folder: contains no run"),
    (["bench", "parrot"], "'parrot' is not a subject; did you mean parity?"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_to_do_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xtra")
    assert said in err
    assert err.count("\n") == 1
    assert not set(err) & set("╭│╰─"), "the parser's box"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["import", "pictures", "--out", ""], "--out"),
        (["import", "", "--out", "x"], "a word"),
        (["check", ""], "a word"),
        (["ingest", "--urls", "list.txt", "--out="], "--out"),
        (["train", "demo32", "--data", " ", "--out", "x"], "--data"),
        (["scale", "--data", "d", "--out", "o", "--recipes", "demo32", "--probe.train", ""], "--probe.train"),
        (["sweep", ""], "a word"),
    ],
)
def test_an_empty_value_is_refused_and_nothing_is_written(
    words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said == f"xtra {words[0]}: {name} is empty: give a value (was a shell variable not set?)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["import", "https://TOKEN9@host/a.tar", "--out", "x", "--in-place"],
        ["import", "https://host/a.tar?sig=TOKEN9", "--out", "x", "--in-place"],
        ["import", "https://host/a.tar?token=TOKEN9", "--out", "x"],
        ["train", "demo32", "--data", "https://me:TOKEN9@host/ds@1", "--out", "x"],
        ["train", "demo32", "--data", "d", "--mix", "https://me:TOKEN9@host/ds=0.3", "--out", "x"],
        ["probe", "run", "--train=https://TOKEN9@host/t", "--eval", "e"],
        ["ingest", "--urls", "https://host/list.txt?signature=TOKEN9", "--out", "x"],
        ["scale", "--data", "d", "--out", "s3://TOKEN9@b/o", "--recipes", "demo32"],
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, said = capsys.readouterr()
    assert "is a URL with a user name, signature or key, which would be stored" in said
    assert said.count("\n") == 1
    assert "TOKEN9" not in out + said
    assert list(tmp_path.iterdir()) == []


def test_flags_with_underscores_and_equals_are_understood():
    @dataclass(frozen=True)
    class Inner:
        some_rate: float = 1.0

    @dataclass(frozen=True)
    class Config:
        url: str
        inner: Inner = Inner()
        is_quick: bool = False

    made = flags.parse(Config, ["--url=x=y", "--inner.some_rate", "-0.5", "--is-quick"], "xtra test")
    assert made == Config("x=y", Inner(-0.5), True)
    assert flags.parse(Config, ["--no-is-quick"], "xtra test", default=made).is_quick is False


def test_anything_else_that_is_raised_is_a_bug_and_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken(call: flags.Call) -> None:
        raise KeyError("ours")

    monkeypatch.setitem(verbs.VERBS, "broken", verbs.Verb("", "", broken))
    with pytest.raises(KeyError):
        cli.main(["broken"])


# ---- verbs ----


def test_check_exits_1_when_it_finds_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = make_dataset(tmp_path, [5, 5])
    assert cli.main(["check", str(tmp_path), "--json"]) == 0
    assert last_json(capsys)["samples"] == 10
    tar = tmp_path / "shards" / made.shards[1].tar
    tar.write_bytes(tar.read_bytes()[:-600] + b"\1" * 600)
    assert cli.main(["check", str(tmp_path)]) == 1
    assert made.shards[1].tar in capsys.readouterr().out


def test_select_gives_an_address_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_dataset(tmp_path, [40])
    assert cli.main(["select", str(tmp_path), "--subset", "10", "--seed", "3", "--json"]) == 0
    reported = last_json(capsys)
    chosen = read_manifest(reported["address"])
    assert (chosen.samples, chosen.digest) == (reported["samples"], reported["digest"])
    assert 0 < chosen.samples < 40


def test_select_says_what_its_rules_took_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_dataset(tmp_path, [20])
    first = rows_of(0, 2)
    write_unit(str(tmp_path), 1, [row | {"row": 20 + n, "key": f"again{n}"} for n, row in enumerate(first)])
    make_version(str(tmp_path), "test")
    assert cli.main(["select", str(tmp_path), "--rules.near-distance", "-1", "--json"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"kept +22 +100\.0 %\n  duplicate +2 +9\.1 %\nsamples +20 +90\.9 %\n", out)
    reported = json.loads(out.splitlines()[-1])
    assert (reported["samples"], reported["deselected"]) == (20, {"duplicate": 2})
    assert read_manifest(str(tmp_path)).digest == reported["digest"], "it is the newest version now"


def test_sweep_says_first_and_then_removes_what_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = make_dataset(tmp_path, [5])
    lost = tmp_path / "shards/000000-b2.tar"
    lost.write_bytes(b"x" * 2000)
    assert cli.main(["sweep", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would remove 1 objects, 2 kB: 1 of attempts that lost, 0 left by")
    assert lost.exists()
    assert cli.main(["sweep", str(tmp_path), "--json"]) == 0
    assert last_json(capsys)["objects"] == ["shards/000000-b2.tar"]
    assert not lost.exists()
    assert (tmp_path / "shards" / made.shards[0].tar).exists()


def test_status_and_report_read_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2).write_text("{")
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    assert last_json(capsys)["status"][0]["samples_seen"] == 12800
    assert cli.main(["report", str(tmp_path), "--note", "a note", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert "a note" in Path(result["report"]).read_text()
    assert (len(result["problems"]), "is not JSON" in err) == (1, True)


def test_doctor_exits_1_when_something_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    assert {c["level"] for c in last_json(capsys)["checks"]} <= {"ok", "warn"}
    (tmp_path / "file").touch()
    assert cli.main(["doctor", "--url", str(tmp_path / "file/below")]) == 1


def test_parity_fails_above_its_bar(monkeypatch: pytest.MonkeyPatch):
    from jobs.bench import parity

    for error, code in ((1e-12, 0), (1e-8, 1), (float("nan"), 1)):
        monkeypatch.setattr(parity, "run", lambda config, e=error: {"ratios": {"max_relative_error": e}})
        assert cli.main(["bench", "parity", "--vectors", "x"]) == code


def test_ingest_accounts_for_every_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Origin() as origin:
        paths = [*(f"/ok/{i}.jpg" for i in range(8)), "/status/404", "/status/503", "/html"]
        (tmp_path / "urls.txt").write_text("".join(f"{origin.url(path)}\n" for path in paths))
        flags = ["--urls", str(tmp_path / "urls.txt"), "--out", str(tmp_path / "set"), "--unit", "4"]
        assert cli.main(["ingest", *flags, "--fetch.allow-private", "127.0.0.1", "--fetch.retries", "0", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    counts = {" ".join(words[:-3]): words[-3] for line in out[:9] if len(words := line.split()) > 3}
    assert counts == {
        "links": "11",
        "failed, may work later": "1",
        "http_5xx": "1",
        "gone, or not ours to take": "1",
        "http_404": "1",
        "no picture that we keep": "1",
        "not_an_image": "1",
        "kept": "8",
        "samples": "8",
    }
    again = out[out.index("1 link may work later; to retry them:") + 1]
    kept = ["--fetch.allow-private", "127.0.0.1", "--fetch.retries", "0"]
    assert shlex.split(again) == ["xtra", "ingest", "--retry", "--out", str(tmp_path / "set"), *kept]
    result = json.loads(out[-1])
    assert result["links"] == result["kept"] + sum(result["reasons"].values()) == 11
    assert result["samples"] == result["kept"] - sum(result["deselected"].values()) == 8
    assert (result["retryable"], result["not_chosen"], result["units"], result["units_done"]) == (1, 0, 3, 3)
    assert read_manifest(result["address"]).samples == 8
    assert "http_404" in Path(result["page"]).read_text()


def test_a_dry_run_says_what_a_list_would_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with Origin() as origin:
        urls = [origin.url(f"/ok/{i}.jpg" if i % 2 else f"/status/404?{i}") for i in range(400)]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        flags = ["--urls", str(tmp_path / "urls.txt"), "--out", str(tmp_path / "set"), "--dry-run", "50"]
        assert cli.main(["ingest", *flags, "--fetch.allow-private", "127.0.0.1", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("50 of 400 links tried in ")
    assert out[1].endswith("; nothing was written")
    result = json.loads(out[-1])
    assert result["kept"]["low"] <= 200 <= result["kept"]["high"]
    assert result["reasons"].keys() == {"http_404"}
    assert [path.name for path in tmp_path.iterdir()] == ["urls.txt"]


def test_a_page_that_cannot_be_written_is_a_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The dataset is whole without it."""

    def full(*words: Any, **more: Any) -> None:
        raise StoreError("s3://b/ingest.html: cannot be written (503)")

    monkeypatch.setattr("jobs.report.dataset_page.write", full)
    (tmp_path / "set/cat").mkdir(parents=True)
    (tmp_path / "set/cat/1.jpg").write_bytes(picture("1"))
    assert cli.main(["import", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["page"] is None
    assert err == "xtra import: the page was not written: s3://b/ingest.html: cannot be written (503)\n"


def test_import_makes_a_labelled_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(name))
    assert cli.main(["import", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--json"]) == 0
    result = last_json(capsys)
    assert (result["links"], result["kept"], result["reasons"]) == (3, 3, {})
    assert read_manifest(f"{tmp_path / 'out'}@{result['version']}").classes == ("cat", "dog")


def test_scale_trains_and_probes_a_grid_and_a_rerun_has_nothing_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_dataset(tmp_path / "set", [40])
    data, out = str(tmp_path / "set"), str(tmp_path / "study")
    words = ["scale", "--data", data, "--out", out, "--samples", "64", "128", "--probe.train", data]
    words += ["--probe.eval", data, "--probe.heads", "linear", "--probe.epochs", "1", "--probe.views", "1", "--json"]
    assert cli.main(words) == 0
    first = last_json(capsys)
    assert (first["runs"], first["trained"], first["stopped"]) == (4, 4, False)
    assert cli.main(words) == 0
    again = last_json(capsys)
    assert (again["runs"], again["trained"], again["probed"]) == (4, 0, 0)
    ledger = read_runs(out)
    assert {(r.variant, r.samples_seen, r.head, r.encoder) for r in ledger.rows} == {
        ("xtra", 64, "linear", "trained"),
        ("xtra", 128, "linear", "trained"),
        ("aim", 64, "linear", "trained"),
        ("aim", 128, "linear", "trained"),
        ("xtra", 0, "linear", "random"),
        ("xtra", 0, "pixels", "none"),
        ("aim", 0, "linear", "random"),
    }
    assert len(ledger.rows) == 7


def test_train_then_probe_then_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_dataset(tmp_path / "set", [40, 30])
    run, data = str(tmp_path / "runs/one"), str(tmp_path / "set")
    assert cli.main(["train", "demo32", "--data", data, "--out", run, *TRAIN, "--optim.lr", "2e-3", "--json"]) == 0
    result = last_json(capsys)
    assert (result["samples_seen"], result["stopped"]) == (192, False)
    assert json.loads(Path(run, "config.json").read_text())["optim"]["lr"] == 2e-3
    quick = ["--train", data, "--eval", data, "--epochs", "2", "--views", "1", "--batch", "16"]
    words = ["probe", run, *quick, "--heads", "linear", "--pixels", "--augment", "linear-b", "--json"]
    assert cli.main(words) == 0
    *said, found = capsys.readouterr().out.splitlines()
    assert {p["head"] for p in json.loads(found)["probes"]} == {"linear", "pixels"}
    assert "augmented anew every epoch" in json.loads(found)["probes"][0]["protocol"]
    assert "classes, encoder trained at 192 samples" in said[0]
    assert [line.split()[0] for line in said[1:3]] == ["linear", "pixels"]
    assert said[3].startswith("points chosen on images of the training set that no head trained on")
    assert "the training set has" in said[4], "the two sets are one here"
    remarks = [f"{p['head']}: {p['remark']}" for p in json.loads(found)["probes"] if p["remark"]]
    assert said[5:] == remarks, "such as that lr is at the edge of its grid"
    assert max(map(len, said)) <= 80
    assert cli.main(["report", str(tmp_path / "runs"), "--json"]) == 0
    report = last_json(capsys)
    assert (report["runs"], report["rows"], report["problems"]) == (1, 2, [])


def test_an_import_that_finds_all_committed_sees_what_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures, out = tmp_path / "pictures" / "cat", tmp_path / "out"
    pictures.mkdir(parents=True)
    for number in range(3):
        (pictures / f"{number}.jpg").write_bytes(jpeg(number))
    words = ["import", str(tmp_path / "pictures"), "--out", str(out), "--filter.min-side", "8"]
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    (tar,) = (out / "shards").glob("*.tar")
    tar.unlink()
    capsys.readouterr()
    assert cli.main(words) == 1
    assert f"committed, but missing or of another size: {tar.name}: xtra check" in capsys.readouterr().err
    assert cli.main(["select", f"{out}@1", "--subset", "2"]) == 1
