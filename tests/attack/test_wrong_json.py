"""Wrong JSON in a dataset, a run or a probe result is one line that names the file, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wrong_json

from ingest import events
from shards import dataset, manifest, store, typed_json


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("values", "at_least"),
    [(wrong_json.dataset_values, 767), (wrong_json.run_values, 630), (wrong_json.probe_values, 400)],
)
def test_no_wrong_value_is_a_traceback(tmp_path: Path, values: object, at_least: int) -> None:
    found = list(values(tmp_path))  # type: ignore[operator]
    bad = [each for each in found if each.bad]
    assert not bad, f"{len(bad)} of {len(found)}: {bad[:12]}"
    assert len(found) >= at_least


def test_an_object_is_named_with_its_field(tmp_path: Path) -> None:
    made = str(wrong_json.make_dataset(tmp_path))
    url = f"{made}/commits/000000.json"
    whole = json.loads(store.read(url))
    for change, why in (
        ({"kept": "x"}, r"field 'kept': Expected int, got str"),
        ({"links": -1}, r"field 'links': Expected int >= 0"),
        ({"reasons": {"dns": None}}, r"field 'reasons\[...\]': Expected int, got null"),
        ({"unit": 1}, r"field 'unit': is 1"),
        ({"tar_bytes": 10**30}, r"a number in it is too large"),
    ):
        store.put_json(url, whole | change)
        with pytest.raises(store.StoreError, match=why) as refused:
            dataset.read_commit(made, 0)
        assert str(refused.value).startswith(f"{url}: ")
        assert "\n" not in str(refused.value)
    store.put_json(url, whole | {"of_a_newer_build": [1]})
    assert dataset.read_commit(made, 0).kept == whole["kept"]
    store.put_json(url, {name: value for name, value in whole.items() if name != "supersedes"})  # of an older one
    assert dataset.read_commit(made, 0).supersedes == {}


def test_a_newer_format_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    made = str(wrong_json.make_dataset(tmp_path))
    info = json.loads(store.read(f"{made}/dataset.json"))
    store.put_json(f"{made}/dataset.json", info | {"format": 3, "units": "many"})
    with pytest.raises(ValueError, match="has format 3, this build reads 2: upgrade"):
        dataset.read_info(made)
    store.put_json(f"{made}/dataset.json", info | {"format": "x"})
    with pytest.raises(ValueError, match="field 'format': Expected int, got str"):
        dataset.read_info(made)


@pytest.mark.parametrize("value", ["[" * 1000 + "]" * 1000, "NaN", '"\\ud800"', "1" * 30, "{"])
def test_values_without_sense_are_refused(value: str) -> None:
    with pytest.raises(store.StoreError, match=r"^a\.json: is not JSON \("):
        typed_json.parse(value, "a.json")


@pytest.mark.parametrize(
    "line",
    [
        '{"at": "noon", "kind": "unit", "about": "1", "detail": ""}',
        '{"at": 1e300, "kind": "unit", "about": "1", "detail": ""}',
        '{"at": 1, "kind": "unit"}',
        '{"at": 1, "kin',
    ],
)
def test_a_damaged_log_segment_is_a_line_of_the_page(tmp_path: Path, line: str) -> None:
    made = str(wrong_json.make_dataset(tmp_path))
    good = '{"at": 1.5, "kind": "host", "about": "a.example", "detail": "paused", "newer": 1}'
    store.put(f"{made}/events/20260101T000000-a-1-000000.jsonl", f"{good}\n{line}\n".encode())
    store.put(f"{made}/events/.DS_Store", b"\0\1")
    found = list(events.read_events(made))
    assert [event.kind for event in found] == ["host", "damaged"]
    assert found[1].detail.startswith("line 2: ")
    from jobs.report import dataset_page

    url = dataset_page.write(made)
    text = store.read(url).decode()
    assert "a.example" in text
    assert "damaged" in text
    assert wrong_json.command("status", made)[0] == "read"


def test_files_that_are_not_ours_do_not_matter(tmp_path: Path) -> None:
    run = wrong_json.make_run(tmp_path)
    for stray in (
        *("attempts/.DS_Store", "attempts/.nfs0001", "metrics/notes.jsonl", "metrics/._000001-000000.jsonl"),
        *("checkpoints/old/COMMIT.json", "probes/._x.json", "events/.DS_Store", "events/notes.jsonl"),
    ):
        (run / stray).parent.mkdir(parents=True, exist_ok=True)
        (run / stray).write_bytes(b"\0\xff")
    outcome, said = wrong_json.command("report", str(run))
    assert outcome == "read"
    assert "problem" not in said.lower()
    from xtra.run import folder

    assert folder.attempts(str(run)) == [1]


def test_rules_of_a_manifest_stay_in_their_folder(tmp_path: Path) -> None:
    made = str(wrong_json.make_dataset(tmp_path))
    newest = manifest.read_version(made, max(dataset.numbers(made, "versions", ".json")))
    url = f"{made}/manifests/{newest.digest}.json"
    head = json.loads(store.read(url))
    head["rules"]["file"] = "../dataset.json"
    store.put_json(url, head)
    with pytest.raises(ValueError, match="its rules are outside manifests/"):
        manifest.read_manifest(made)


@pytest.mark.parametrize(("field", "value"), [("accuracy", 7), ("total", "x"), ("selection", [{"lr": "x"}])])
def test_a_damaged_probe_result_costs_its_own_line(tmp_path: Path, field: str, value: object) -> None:
    wrong_json.probe(wrong_json.write_run(tmp_path / "runs/good", samples=1280))
    path = wrong_json.probe(wrong_json.write_run(tmp_path / "runs/other", samples=1280, seed=1))
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert wrong_json.command("report", str(tmp_path / "runs"))[0] == "read"
    page = (tmp_path / "runs/report.html").read_text()
    assert "31.0" in page
    assert f"{path}: field &#x27;{field}" in page or f"{path}: field '{field}" in page
