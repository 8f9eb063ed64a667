import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import run_folders
from made_datasets import make_dataset, rows_of, write_unit

from jobs.run_status import ENDED, RunStatus
from jobs.status import Config, DatasetStatus, as_dict, read_status, run, text
from shards import store
from shards.dataset import DatasetInfo, write_info
from shards.manifest import make_version
from xtra.run import ended, folder

NOW = datetime(2026, 11, 21, 11, 5, tzinfo=UTC)


def test_a_finished_dataset_balances(tmp_path: Path):
    made = make_dataset(tmp_path / "d", [20, 30], bad=(3, 25, 26))
    (status,) = read_status(str(tmp_path / "d"))
    assert isinstance(status, DatasetStatus)
    assert (status.units, status.planned, status.committed) == (2, 2, 2)
    assert (status.links, status.kept, status.reasons) == (50, 47, {"http_404": 3})
    assert (status.versions, status.newest, status.samples) == (1, made.digest, 47)
    assert status.tar_bytes == sum(shard.tar_bytes for shard in made.shards)
    assert "47 of 50 links (94.0 %)" in text(status)
    assert "rerun" not in text(status)


def test_units_committed_after_the_newest_version_are_counted(tmp_path: Path):
    make_dataset(tmp_path, [20])
    write_unit(str(tmp_path), 1, rows_of(20, 10, bad=(21,)))
    (status,) = read_status(str(tmp_path))
    assert isinstance(status, DatasetStatus)
    assert (status.committed, status.links, status.kept, status.samples) == (2, 30, 29, 20)


def test_an_ingest_that_has_committed_nothing_says_how_to_go_on(tmp_path: Path):
    info = DatasetInfo("list", "0" * 64, units=7, unit=10, config_digest="c", image_build="t")
    write_info(str(tmp_path), info)
    (status,) = read_status(str(tmp_path))
    assert isinstance(status, DatasetStatus)
    assert (status.committed, status.links, status.newest) == (0, 0, None)
    assert "0 of 7 committed" in text(status)
    assert "7 units to do: if no ingest is running, rerun the same command" in text(status)


def test_an_ingest_under_way_says_how_fast_it_is_and_what_happened_last(tmp_path: Path):
    write_info(str(tmp_path), DatasetInfo("list", "0" * 64, units=10, unit=60, config_digest="c", image_build="t"))
    asked = datetime(2026, 11, 21, 11, 0, tzinfo=UTC)
    for unit in range(4):  # the first one days before, by another run
        begin = asked + timedelta(seconds=30 * unit) - (timedelta(days=3) if unit == 0 else timedelta(0))
        rows = rows_of(60 * unit, 60, bad=range(60 * unit, 60 * unit + 60, 4))
        write_unit(
            str(tmp_path), unit, [row | {"fetched_at": begin + timedelta(seconds=n % 30)} for n, row in enumerate(rows)]
        )
    events = [
        {"at": asked.timestamp() + at, "kind": "pause", "about": f"host{at}\x1b[2J", "detail": "429"} for at in (5, 9)
    ]
    (tmp_path / "events").mkdir()
    (tmp_path / "events/20261121T110000-a-1-000000.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (status,) = read_status(str(tmp_path))
    assert isinstance(status, DatasetStatus)
    assert status.asked_at == "2026-11-21T11:01:59+00:00"
    assert status.links_per_s == pytest.approx(180 / 89)
    assert status.seconds_left == pytest.approx(360 / (180 / 89))
    assert status.last_event_at == "2026-11-21T11:00:09+00:00"
    assert "cost     about 11.87, 17.80 to come, at 360 an hour" in text(status, NOW, price=360)
    said = text(status, NOW)
    assert "asked    3 min ago (2026-11-21 11:01:59), at about 2 links/s, 3 min left at that" in said
    assert "pause host9" in said
    assert "\x1b" not in said


def test_a_finished_ingest_says_what_a_retry_would_take(tmp_path: Path):
    write_info(str(tmp_path), DatasetInfo("list", "0" * 64, 1, 20, config_digest="c", image_build="t", not_chosen=7))
    rows = rows_of(0, 20, bad=range(5))
    rows[0]["reason"] = rows[1]["reason"] = "timeout"
    write_unit(str(tmp_path), 0, rows)
    make_version(str(tmp_path), "ingest")
    (status,) = read_status(str(tmp_path))
    assert isinstance(status, DatasetStatus)
    assert (status.retryable, status.not_chosen, status.retries) == (2, 7, 0)
    said = text(status, NOW)
    assert f"2linksmayworklater:xtraingest--retry--out{tmp_path}" in "".join(said.split())
    assert "7 lines not chosen" in said


def test_a_run_says_where_it_is(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a", samples=12800)
    config = json.loads((folder / "config.json").read_text())
    run_folders.write_json(folder / "config.json", config | {"samples": 25600})
    run_folders.write_json(folder / "attempts/000002.json", run_folders.attempt(2))
    run_folders.write_probe(folder, 0.2)
    (status,) = read_status(str(folder))
    assert isinstance(status, RunStatus)
    assert (status.samples_seen, status.samples, status.checkpoint) == (12800, 25600, 12800)
    assert (status.samples_per_s, status.seconds_left) == (256.0, 50.0)
    assert (status.attempt, status.host, status.probes) == (2, "node-3", 1)
    assert (status.last_event, status.last_event_at) == ("end", "2026-11-21T11:00:00+00:00")
    said = text(status, NOW)
    for words in ("12,800 of 25,600 samples (50.0 %)", "256.0 images/s, 50 s left", "end 5 min ago", "1 probes"):
        assert words in said


def test_a_run_that_has_just_begun_shows_what_is_known(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a", samples=12800, commit=False)
    for part in ("metrics", "events"):
        for file in (folder / part).iterdir():
            file.unlink()
    (status,) = read_status(str(folder))
    assert isinstance(status, RunStatus)
    assert (status.samples_seen, status.loss, status.checkpoint, status.last_event) == (0, None, None, None)
    assert "saved    none yet" in text(status, NOW)


def test_a_damaged_run_is_a_problem_and_not_a_crash(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    (folder / "events/000001-000000.jsonl").write_text('{"at": ')
    (folder / "run.json").write_text("{")
    (status,) = read_status(str(folder))
    said = text(status, NOW)
    assert "run.json:isnotJSON" in "".join(said.split())  # lines may end anywhere in a long path
    assert max(map(len, said.splitlines())) <= 80


def test_a_folder_of_both_is_listed_and_lines_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    deep = tmp_path / ("long-name-" * 9)
    make_dataset(deep / "set", [5], bad=(1,))
    run_folders.write_run(deep / "run")
    statuses = run(Config(str(deep)))
    assert [as_dict(s)["kind"] for s in statuses] == ["run", "dataset"]
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    json.dumps([as_dict(s) for s in statuses])


def test_a_folder_with_neither_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="is neither a dataset nor a run, and contains none"):
        read_status(str(tmp_path))


def test_both_are_read_from_a_bucket(base: str, tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "local")
    for path in sorted(folder.rglob("*.json*")):
        store.put(store.join(base, "run", str(path.relative_to(folder))), path.read_bytes())
    make_dataset(store.join(base, "set"), [5], bad=(1,))
    remote, dataset = read_status(base)
    (local,) = read_status(str(folder))
    assert as_dict(remote) | {"checkpoint_at": None} == as_dict(local) | {
        "run": store.join(base, "run"),
        "checkpoint_at": None,
    }
    assert isinstance(dataset, DatasetStatus)
    assert (dataset.links, dataset.kept) == (5, 4)


# --- watched ---


def lost_and_drained(folder: Path) -> Path:
    """A run of 25,600 samples at its half, in its third attempt: the first was lost, the second drained."""
    run = run_folders.write_run(folder, samples=12800)
    config = json.loads((run / "config.json").read_text())
    run_folders.write_json(run / "config.json", config | {"samples": 25600})
    for number in (2, 3):
        began = {"since": f"2026-11-21T1{number}:00:00+00:00", "world": 4}
        run_folders.write_json(run / f"attempts/{number:06d}.json", run_folders.attempt(number) | began)
    ended(str(run), 1, "lost", "rank 1: it died\x1b[2J")
    ended(str(run), 1, "drained", "said later, and not kept")
    ended(str(run), 2, "drained", "a node of the group was about to go")
    events = [{"at": f"2026-11-21T13:{minute:02d}:00+00:00", "event": "resume"} for minute in (1, 31)]
    (run / "events/000003-000000.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    rows = [run_folders.metric(s, began_at=6400, mfu_paper=0.41, data_wait=0.05) for s in range(6528, 12801, 128)]
    run_folders.write_metrics(run, 3, 0, rows)
    return run


def test_a_run_that_is_trained_says_its_pace_its_attempts_and_its_cost(tmp_path: Path):
    run = lost_and_drained(tmp_path / "r")
    (status,) = read_status(str(run))
    assert isinstance(status, RunStatus)
    assert (status.stage, status.seconds_left, status.mfu) == ("training", 50.0, 0.41)
    assert status.data_wait == pytest.approx(0.1)  # 0.05 s of each step's half second
    assert [(a.number, a.ended, a.world) for a in status.attempts] == [(1, "lost", 1), (2, "drained", 4), (3, "", 4)]
    assert status.attempts[-1].device_hours == pytest.approx(4 * 31 / 60)
    said = text(status, NOW, price=3.0)
    for words in (
        "stage    training",
        "▇",
        "10.0 % of the time for data, MFU 41.0 %",
        "at 12,800 samples ",
        "attempt  3 on node-3 since 2026-11-21 13:00:00, 4 workers",
        "         1 lost: rank 1: it died",
        "         2 drained: a node of the group was about to go",
        f"{status.device_hours:,.2f} device-hours, {3 * status.device_hours:,.2f} at 3 an hour",
    ):
        assert words in said, said
    assert "\x1b" not in said
    assert ENDED == folder.ENDED
    for file in [*run.glob("*/*.json*")]:
        os.utime(file, (1, 1))
    (silent,) = read_status(str(run))
    assert isinstance(silent, RunStatus)
    assert (silent.stage, silent.seconds_left) == ("silent", None)  # nobody knows when it will go on


def test_watching_ends_when_all_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_folder = lost_and_drained(tmp_path / "r")
    looks: list[float] = []

    def stopped(seconds: float) -> bool:
        looks.append(seconds)
        if len(looks) == 2:
            run_folders.write_commit(run_folder, 25600, json.loads((run_folder / "run.json").read_text())["manifest"])
        return False

    (status,) = run(Config(str(run_folder), watch=True, every=2), stopped)
    assert looks == [2, 2]
    assert status.stage == "done"  # type: ignore[union-attr]
    assert capsys.readouterr().out.count("run      ") == 3
    assert run(Config(str(run_folder), watch=True), lambda seconds: True)


def test_a_probes_folder_says_what_it_holds(tmp_path: Path):
    source = run_folders.write_run(tmp_path / "r")
    run_folders.write_probe(source, 0.25, set_name="mine")
    (tmp_path / "p").mkdir()
    (source / "probes").rename(tmp_path / "p" / "probes")
    (status,) = read_status(str(tmp_path / "p"))
    assert as_dict(status)["kind"] == "probes"
    assert "25.0 %  mine linear trained at 12,800 samples" in text(status)


def test_a_wrong_number_of_workers_costs_a_line(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    (folder / "attempts").mkdir(exist_ok=True)
    (folder / "attempts/000001.json").write_text('{"attempt": 1, "world": [2]}')
    (status,) = read_status(str(folder))
    assert "attempts/000001.json:field'world'" in "".join(text(status, NOW).split())
