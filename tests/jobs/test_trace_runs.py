"""`xtra trace` on runs: every step that it names had the sample, at any world size, and no other step had."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from made_datasets import make_dataset
from ranks import small_set
from test_train import config

from jobs import cli, trace
from jobs.trace import seen as seen_module
from shards import store
from shards.manifest import read_manifest
from shards.selection import subset
from xtra import train
from xtra.optim import OptimConfig
from xtra.run import checkpoint, read_metrics

BROKEN = (70, 66)


class Died(Exception):
    pass


def one_attempt(rank: int, world: int, setup: str, settings: train.Config, log: str, steps: int, dies: bool) -> None:
    """Train so many steps (0: to the end), and log the keys of each batch that the loop was given; dies: after the last
    of them, without a checkpoint."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{setup}", rank=rank, world_size=world)
    given = train.train_batches

    def logged(*args, **more):
        for number, batch in enumerate(given(*args, **more)):
            if dies and number == steps:
                raise Died
            with Path(f"{log}-{rank}").open("a") as file:
                file.write(json.dumps(batch.keys) + "\n")
            yield batch

    train.train_batches = logged
    left = iter(range(1000))
    try:
        train.run(settings, stop=lambda: not dies and next(left) == steps - 1)
    finally:
        train.train_batches = given
        if world > 1:
            torch.distributed.destroy_process_group()


def logged_keys(log, world):
    """[step][rank] -> keys."""
    parts = [[json.loads(line) for line in Path(f"{log}-{rank}").read_text().splitlines()] for rank in range(world)]
    return list(zip(*parts, strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four attempts at one run: (run, dataset, {(step, rank, index): key} by attempt)."""
    base = tmp_path_factory.mktemp("trained")
    small_set(str(base / "data"), [61, 40, 9], BROKEN)
    whole = config(base / "data", base / "runs" / "one", samples=260)
    shown, first_step = {}, 0
    for number, (world, batch, steps, dies) in enumerate(
        [(1, 10, 5, 0), (2, 12, 4, 0), (1, 10, 4, 1), (2, 7, 0, 0)], 1
    ):
        settings = dataclasses.replace(whole, batch=batch)
        words = (str(base / f"setup{number}"), settings, str(base / f"log{number}"), steps, bool(dies))
        if world > 1:
            run_ranks(one_attempt, world, *words)
        elif dies:
            with pytest.raises(Died):
                one_attempt(0, 1, *words)
        else:
            one_attempt(0, 1, *words)
        keys = logged_keys(base / f"log{number}", world)
        shown[number] = {
            (first_step + step + 1, rank, index): key
            for step, of_ranks in enumerate(keys)
            for rank, of_rank in enumerate(of_ranks)
            for index, key in enumerate(of_rank)
        }
        first_step += len(keys) - dies  # the step after the last checkpoint is done again
    return str(base / "runs" / "one"), str(base / "data"), shown


def test_every_step_that_is_named_had_the_sample_and_no_other_had(trained):
    run, _, shown = trained
    keys = tuple(f"k{row:06d}" for row in range(110))
    found = trace.run(trace.Config(run, keys))
    assert found.problems == found.unknown == ()
    (saw,) = found.runs
    traced = {number: {} for number in shown}
    replaced, put = [], []
    for life, one in zip(found.lives, saw.seen):
        for s in one.sightings:
            if s.in_place_of:
                put.append((s.attempt, s.samples_seen, s.in_place_of, life.key))
                continue
            if s.instead:
                replaced.append((s.attempt, s.samples_seen, life.key, s.instead))
            assert traced[s.attempt].setdefault((s.step, s.rank, s.rank_index), s.instead or life.key)
    assert traced == shown
    assert sorted(put) == sorted(replaced) != []
    assert {key for *_, key, _ in replaced} == {f"k{row:06d}" for row in BROKEN}


def test_steps_are_those_of_the_metrics_and_what_was_done_again_is_said(trained):
    run, _, shown = trained
    (saw,) = trace.run(trace.Config(run, ("example.org",))).runs
    rows = read_metrics(run, [])
    assert (saw.steps, saw.samples_seen) == (len(rows), rows[-1].samples_seen) == (len(rows), 260)
    named = {(s.step, s.samples_seen) for one in saw.seen for s in one.sightings if not s.undone}
    assert sorted(named) == [(number, row.samples_seen) for number, row in enumerate(rows, 1)]
    undone = {(s.attempt, s.step) for one in saw.seen for s in one.sightings if s.undone}
    assert undone == {(3, max(step for step, *_ in shown[3]))}
    assert [remark.partition(": ")[2][:36] for remark in saw.remarks] == [
        "attempt 3 has no recorded end: steps after"[:36]
    ]


def test_checkpoints_saw_what_came_before_them(trained):
    run, _, _ = trained
    (saw,) = trace.run(trace.Config(run, ("example.org",))).runs
    assert list(saw.checkpoints) == checkpoint.committed(run)
    for at, count in saw.checkpoints.items():
        before = [o for o in saw.seen if any(s.samples_seen <= at for s in o.sightings if not (s.undone or s.instead))]
        assert count == len(before) == sum(at in one.checkpoints for one in saw.seen)


def test_a_list_of_withdrawn_urls_is_answered_by_run_and_checkpoint(trained, tmp_path, capsys):
    run, dataset, _ = trained
    withdrawn = tmp_path / "withdrawn.txt"
    withdrawn.write_text("".join(f"http://example.org/{row}.jpg\n" for row in range(60, 80)))
    words = ["trace", dataset, "--file", str(withdrawn), "--runs", str(Path(run).parent)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert f"{run}: 18 of 20 seen in 260 samples" in out, "those that do not decode were never shown"
    assert f"checkpoint {checkpoint.committed(run)[-1]:,}: 18 of 20" in out


def test_a_dataset_that_has_moved_is_given_by_its_new_place(trained, tmp_path):
    run, dataset, _ = trained
    moved = shutil.copytree(dataset, tmp_path / "moved")
    there = trace.run(trace.Config(str(moved), ("k000002",), runs=(run,))).runs[0].seen[0]
    here = trace.run(trace.Config(run, ("k000002",))).runs[0].seen[0]
    assert there.sightings == here.sightings != ()


def test_of_very_many_sightings_only_the_first_is_given(trained, monkeypatch):
    run, _, _ = trained
    full = trace.run(trace.Config(run, ("example.org",))).runs[0]
    monkeypatch.setattr(seen_module, "MOST", 10)
    brief = trace.run(trace.Config(run, ("example.org",))).runs[0]
    assert (full.firsts_only, brief.firsts_only) == (False, True)
    assert brief.checkpoints == full.checkpoints
    for one, all_of_it in zip(brief.seen, full.seen):
        sure = [s for s in all_of_it.sightings if not (s.undone or s.in_place_of)]
        assert [s for s in one.sightings if not s.in_place_of] == sure[:1]


def test_a_subset_shows_only_what_it_selects(trained, tmp_path):
    _, dataset, _ = trained
    small = subset(read_manifest(dataset), 30)
    train.run(config(small.address, tmp_path / "run", samples=20))
    found = trace.run(trace.Config(str(tmp_path / "run"), ("example.org",)))
    assert sum(one.selected for one in found.runs[0].seen) == small.samples
    assert sum(one.times for one in found.runs[0].seen) == 20
    assert {one.selected for one in found.runs[0].seen if one.times} == {True}


def test_a_mixture_and_a_branch_are_traced_through_both_folders(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    make_dataset(one, [40, 30])
    make_dataset(two, [25])
    constant = OptimConfig(lr=1e-3, warmup_lr=0.0, warmup=20, schedule="constant", decay=0.25)
    whole = config(one, tmp_path / "runs" / "trunk", mix=(f"{two}=0.25",), samples=90, keep_at=(90,))
    one_attempt(
        0,
        1,
        "",
        dataclasses.replace(whole, optim=dataclasses.replace(constant, decay=0.0)),
        f"{tmp_path}/log",
        0,
        False,
    )
    branch = dataclasses.replace(
        whole, samples=120, optim=constant, branch=whole.out, out=str(tmp_path / "runs" / "branch"), keep_at=()
    )
    one_attempt(0, 1, "", branch, f"{tmp_path}/log", 0, False)
    keys = logged_keys(tmp_path / "log", 1)
    assert len(keys) == 12
    found = trace.run(trace.Config(str(tmp_path / "runs"), ("example.org",)))
    traced = {run.run.rpartition("/")[2]: [] for run in found.runs}
    for run in found.runs:
        for life, seen in zip(found.lives, run.seen):
            traced[run.run.rpartition("/")[2]] += [(s.step, s.index, life.key, s.run) for s in seen.sightings]
    expected = [(n, i, key) for n, (of_rank,) in enumerate(keys, 1) for i, key in enumerate(of_rank)]
    assert sorted(row[:3] for row in traced["branch"]) == expected
    assert sorted(row[:3] for row in traced["trunk"]) == expected[:90]
    assert {row[3] for row in traced["branch"] if row[0] <= 9} == {whole.out}
    assert {row[3] for row in traced["branch"] if row[0] > 9} == {branch.out}
    shutil.rmtree(whole.out)
    alone = trace.run(trace.Config(branch.out, ("example.org",))).runs[0]
    assert (
        sorted((s.step, s.index, life.key) for life, seen in zip(found.lives, alone.seen) for s in seen.sightings)
        == expected
    )
    assert "the trunk is gone" in alone.remarks[0]


def test_an_attempt_that_was_killed_is_remarked_and_its_batch_follows_from_its_metrics(trained, tmp_path):
    run, _, _ = trained
    torn = Path(shutil.copytree(run, tmp_path / "torn"))
    for name in store.names(str(torn / "events")):
        if name.startswith("000004-"):
            (torn / "events" / name).unlink()
    before, after = (trace.run(trace.Config(str(place), ("example.org",))).runs[0] for place in (run, torn))
    assert ["attempt 4 has no recorded end" in remark for remark in after.remarks] == [False, True]
    for one, other in zip(before.seen, after.seen):
        places = [(s.attempt, s.step, s.index, s.rank) for s in one.sightings if not s.in_place_of]
        assert [(s.attempt, s.step, s.index, s.rank) for s in other.sightings if not s.in_place_of] == places
