"""The training run: exact resuming, the same step at any world size, honest stops, refusals that name the cause."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from made_datasets import make_dataset, rows_of, write_unit
from places import FOLDERS
from safetensors.torch import load_file

from shards import store
from shards.manifest import make_version
from shards.selection import subset
from shards.stream.order import Order
from xtra import train
from xtra.model import ModelConfig
from xtra.optim import OptimConfig
from xtra.run import checkpoint, folder as run_folder

MODEL = ModelConfig(16, 4, 2, 32, 2, 2, bridge=48, dec_width=32, dec_depth=1, dec_heads=2, head=40, drop_path=0.3)


def config(data, out, **changes) -> train.Config:
    base = train.Config(
        model=MODEL,
        samples=120,
        batch=10,
        data=str(data),
        out=str(out),
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        order=Order(seed=2, lanes=4, chunk=4, window=2),
        checkpoint_every=30,
        threads=1,
    )
    return dataclasses.replace(base, **changes)


def metrics(run) -> list[dict]:
    folder = store.join(str(run), "metrics")
    rows = {}
    for name in store.names(folder):  # later attempts override
        for line in store.read(store.join(folder, name)).decode().splitlines():
            row = json.loads(line)
            rows[row["samples_seen"]] = row
    return [rows[seen] for seen in sorted(rows)]


def losses(run) -> list[float]:
    return [row["loss"] for row in metrics(run)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37], bad=(5,))
    return base


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    result = train.run(config(data, out))
    assert (result.samples_seen, result.stopped) == (120, False)
    return out


def test_a_run_learns_and_records_itself(whole):
    rows = metrics(whole)
    assert [r["samples_seen"] for r in rows] == list(range(10, 130, 10))
    assert rows[-1]["loss"] < rows[0]["loss"]
    facts = store.read_json(str(whole / "run.json"))
    cursor = checkpoint_state(whole)["cursor"]
    assert cursor["manifest"] == facts["manifest"]
    assert cursor["samples_seen"] == 120
    assert checkpoint.committed(str(whole)) == [90, 120]


def checkpoint_state(run) -> dict:
    folder = checkpoint.latest(str(run))
    attempt = store.read_json(store.join(folder, "COMMIT.json"))["attempt"]
    return store.read_json(store.join(folder, f"{attempt:06d}", "state.json"))


def test_stopped_and_resumed_losses_are_bit_equal(data, whole, tmp_path):
    steps = iter(range(99))
    first = train.run(config(data, tmp_path / "run"), stop=lambda: next(steps) == 4)
    assert (first.stopped, first.samples_seen) == (True, 50)
    second = train.run(config(data, tmp_path / "run"))
    assert (second.attempt, second.samples_seen) == (2, 120)
    assert losses(tmp_path / "run") == losses(whole)
    assert same_weights(tmp_path / "run", whole)


def same_weights(one, two) -> bool:
    a, b = (checkpoint.load_encoder(str(run)).state_dict() for run in (one, two))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_has_nothing_left_to_do(data, whole):
    again = train.run(config(data, whole))
    assert (again.samples_seen, again.loss, again.stopped) == (120, None, False)


RUN = """
import sys; sys.path[:0] = sys.argv[3:]
from test_train import config
from xtra import train
settings = config(sys.argv[1], sys.argv[2], samples=240, checkpoint_every=40)
train.run(settings, progress=lambda row: "loss" in row and print(row["samples_seen"], flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_equal(data, tmp_path):
    command = [sys.executable, "-c", RUN, str(data), str(tmp_path / "run"), *FOLDERS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in process.stdout:
            if int(line) >= 110:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    done = checkpoint.committed(str(tmp_path / "run"))
    assert done
    assert done[-1] < 240
    train.run(config(data, tmp_path / "run", samples=240, checkpoint_every=40))
    train.run(config(data, tmp_path / "alone", samples=240, checkpoint_every=40))
    redone = [row for row in metrics(tmp_path / "run") if row["samples_seen"] > done[-1]]
    alone = [row for row in metrics(tmp_path / "alone") if row["samples_seen"] > done[-1]]
    assert [r["loss"] for r in redone] == [r["loss"] for r in alone]
    assert same_weights(tmp_path / "run", tmp_path / "alone")


def one_rank(rank: int, world: int, setup: str, settings: train.Config) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{setup}", rank=rank, world_size=world)
    try:
        train.run(settings)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_another_world_size_takes_the_same_step_to_rounding(data, whole, tmp_path, world):
    out = tmp_path / "run"
    run_ranks(one_rank, world, str(tmp_path / "setup"), config(data, out))
    ours, alone = metrics(out), metrics(whole)
    assert ours[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)
    assert ours[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-6)
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in alone], rel=1e-3)


def several(rank: int, world: int, setup: str, runs: list[tuple[train.Config, int]]) -> None:
    """Runs one after another, each stopped after so many steps (0: not)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{setup}", rank=rank, world_size=world)
    try:
        for settings, steps in runs:
            left = iter(range(1000))
            train.run(settings, stop=lambda left=left, steps=steps: next(left) == steps - 1)
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_that_share_the_optimiser_out_or_resume_take_the_same_steps_to_the_bit(data, tmp_path, monkeypatch):
    plain = config(data, tmp_path / "plain")
    shared = dataclasses.replace(plain, out=str(tmp_path / "shared"), shard_optimizer=True)
    again = dataclasses.replace(plain, out=str(tmp_path / "again"))
    runs = [(plain, 0), (shared, 5), (shared, 0), (again, 5), (again, 0)]
    run_ranks(several, 2, str(tmp_path / "setup"), runs)
    for run in ("shared", "again"):
        assert losses(tmp_path / run) == losses(tmp_path / "plain")
        assert same_weights(tmp_path / run, tmp_path / "plain")
    folder = Path(checkpoint.latest(str(tmp_path / "shared")), "000002")
    parts = [load_file(folder / f"optim-0000{rank}-of-00002.safetensors") for rank in (0, 1)]
    whole = load_file(Path(checkpoint.latest(str(tmp_path / "plain")), "000001", "optim.safetensors"))
    assert not parts[0].keys() & parts[1].keys()
    assert {**parts[0], **parts[1]}.keys() == whole.keys()
    assert all(torch.equal({**parts[0], **parts[1]}[name], value) for name, value in whole.items())
    assert (
        min(sum(t.numel() for t in part.values()) for part in parts) > 0.4 * sum(t.numel() for t in whole.values()) / 2
    )
    # Another world size loads the parts: here one rank, without and with the switch.
    for switch in (False, True):
        longer = dataclasses.replace(shared, out=str(tmp_path / "shared"), shard_optimizer=switch)
        assert train.run(longer).samples_seen == 120


def first_gradients(run) -> dict[str, torch.Tensor]:
    """The clipped gradients of a run's first and only step: AdamW's first moment is then (1 - beta1) times them."""
    folder = checkpoint.latest(str(run))
    state = load_file(f"{folder}/000001/optim.safetensors")
    return {name: value / 0.1 for name, value in state.items() if name.endswith("/exp_avg")}


@pytest.mark.slow
def test_another_world_size_finds_the_same_gradients(data, tmp_path):
    """Drop path on, one step, fp32: every parameter's gradient, relative to the largest of that parameter."""
    one_step = config(data, tmp_path / "one", samples=10)
    train.run(one_step)
    three = dataclasses.replace(one_step, out=str(tmp_path / "three"))
    run_ranks(one_rank, 3, str(tmp_path / "setup"), three)
    alone, ours = first_gradients(tmp_path / "one"), first_gradients(tmp_path / "three")
    assert alone.keys() == ours.keys()
    for name, gradient in alone.items():
        assert (ours[name] - gradient).abs().max() <= 1e-6 * max(gradient.abs().max(), 1e-6), name


def test_a_run_changes_its_world_size_half_way(data, whole, tmp_path):
    steps = iter(range(99))
    train.run(config(data, tmp_path / "run"), stop=lambda: next(steps) == 5)
    run_ranks(one_rank, 2, str(tmp_path / "setup"), config(data, tmp_path / "run"))
    assert losses(tmp_path / "run")[:6] == losses(whole)[:6]
    assert losses(tmp_path / "run")[6] == pytest.approx(losses(whole)[6], rel=1e-6)


def test_gradients_are_those_of_the_whole_batch_in_parts(data, tmp_path, whole):
    train.run(config(data, tmp_path / "run", micro=3))
    assert metrics(tmp_path / "run")[0]["grad_norm"] == pytest.approx(metrics(whole)[0]["grad_norm"], rel=1e-5)


def test_random_block_order_bf16_and_a_short_last_batch_run(data, tmp_path):
    model = dataclasses.replace(MODEL, order="random", predict=2)
    result = train.run(config(data, tmp_path / "run", model=model, samples=33, precision="bf16"))
    assert result.samples_seen == 33
    assert [r["samples_seen"] for r in metrics(tmp_path / "run")] == [10, 20, 30, 33]


def test_a_run_stays_on_the_version_it_began_with(tmp_path):
    base = str(tmp_path / "data")
    first = make_dataset(base, [40])
    steps = iter(range(99))
    train.run(config(base, tmp_path / "run"), stop=lambda: next(steps) == 3)
    write_unit(base, 1, rows_of(40, 30))
    make_version(base, "more")
    train.run(config(base, tmp_path / "run"))
    assert checkpoint_state(tmp_path / "run")["cursor"]["manifest"] == first.digest


def test_another_manifest_is_refused_unless_asked_for(tmp_path):
    base = str(tmp_path / "data")
    manifest = make_dataset(base, [60])
    train.run(config(base, tmp_path / "run", samples=30))
    other = config(subset(manifest, 30).address, tmp_path / "run", samples=30)
    with pytest.raises(ValueError, match=f"begun on manifest {manifest.digest[:16]}"):
        train.run(other)
    train.run(dataclasses.replace(other, other_manifest=True))


def test_other_settings_are_refused_by_name(data, whole):
    with pytest.raises(ValueError, match=r"begun with model\.depth = 2, now 3"):
        train.run(config(data, whole, model=dataclasses.replace(MODEL, depth=3)))
    with pytest.raises(ValueError, match=r"begun with optim\.lr = 0\.001, now 0\.1"):
        train.run(config(data, whole, optim=OptimConfig(lr=0.1, warmup=0.1)))


def test_a_setting_newer_than_the_run_was_at_its_default(data, tmp_path):
    settings = config(data, tmp_path / "run", samples=10)
    train.run(settings)
    written = tmp_path / "run" / "config.json"
    older = json.loads(written.read_text())
    del older["augment"]["randaugment"], older["tf32"]
    written.write_text(json.dumps(older | {"decoder_fp32": True}))  # as it was by default, in float32 all the same
    run_folder.terms(settings.out, settings)
    augment = dataclasses.replace(settings.augment, randaugment="rand-m9-mstd0.5-inc1")
    with pytest.raises(ValueError, match=r"begun with augment\.randaugment = '', now 'rand-m9"):
        run_folder.terms(settings.out, dataclasses.replace(settings, augment=augment))
    with pytest.raises(ValueError, match="begun with tf32 = False, now True"):
        run_folder.terms(settings.out, dataclasses.replace(settings, tf32=True))


def test_another_batch_size_is_allowed_and_said(data, tmp_path):
    steps = iter(range(99))
    train.run(config(data, tmp_path / "run"), stop=lambda: next(steps) == 3)
    rows = []
    train.run(config(data, tmp_path / "run", batch=20), progress=rows.append)
    assert "the batch is now 20; the run began with 10" in rows[0]["remark"]
    assert [r["samples_seen"] for r in metrics(tmp_path / "run")][3:6] == [40, 60, 80]


def test_a_later_attempt_fences_an_earlier_one_off(data, tmp_path):
    out = tmp_path / "run"

    def take_over() -> bool:
        store.put_json_if_absent(str(out / "attempts" / "000002.json"), {"attempt": 2})
        return False

    result = train.run(config(data, out), stop=take_over)
    assert (result.stopped, result.samples_seen) == (True, 30)
    assert checkpoint.committed(str(out)) == []


def test_a_run_that_another_process_began_first_is_joined_on_its_terms(tmp_path, monkeypatch):
    base, out = str(tmp_path / "data"), str(tmp_path / "run")
    first = make_dataset(base, [40])
    settings = config(base, out)
    facts = run_folder._facts

    def overtaken(manifest, *rest):  # between reading the dataset and writing run.json
        monkeypatch.setattr(run_folder, "_facts", facts)
        run_folder.open_run(out, settings, 1)
        write_unit(base, 1, rows_of(40, 30))
        make_version(base, "more")
        return facts(make_version(base, "more"), *rest)

    monkeypatch.setattr(run_folder, "_facts", overtaken)
    opened = run_folder.open_run(out, settings, 1)
    assert (opened.attempt.number, opened.manifest.digest) == (2, first.digest)


def test_too_many_bad_samples_stop_the_run(tmp_path):
    base = str(tmp_path / "data")
    rows = rows_of(0, 40)
    for row in rows[::3]:
        row["body"] = row["body"][:150]
    make_dataset(tmp_path / "other", [1])
    store.put(f"{base}/dataset.json", store.read(f"{tmp_path}/other/dataset.json"))
    write_unit(base, 0, rows)
    make_version(base, "broken")
    with pytest.raises(ValueError, match="did not decode, more than --max-bad"):
        train.run(config(base, tmp_path / "run"))


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="is not a dataset"):
        train.run(config(tmp_path / "nothing", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_missing_flags_are_named(data):
    with pytest.raises(ValueError, match="--data is missing"):
        train.run(config("", "x"))
    with pytest.raises(ValueError, match="micro is -1"):
        config(data, "x", micro=-1)
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        config(data, "x", precision="fp8")


def test_rows_say_what_the_step_cost(whole):
    for row in metrics(whole):
        assert row.keys() == {
            "samples_seen", "lr", "seconds", "cpu_seconds", "samples_per_s", "data_wait", "memory_bytes", "loss",
            "grad_norm",
        }  # fmt: skip
        assert row["memory_bytes"] > 50e6


def test_the_plan_is_said_in_steps_epochs_and_passes(data, tmp_path):
    said = []
    train.run(config(data, tmp_path / "run", samples=30, micro=4), progress=lambda row: said.append(row.get("remark")))
    assert said[0] == "30 samples are 3 steps of 10, 0.395 epochs of 76; a step is 1 x 10 images, in 3 passes"


def test_branches_that_drop_path_zeroes_can_be_skipped(data, whole, tmp_path):
    train.run(config(data, tmp_path / "skip", dropped="skip"))
    assert losses(tmp_path / "skip") == pytest.approx(losses(whole), rel=1e-3)
    assert losses(tmp_path / "skip")[0] == pytest.approx(losses(whole)[0], rel=1e-6)
    train.run(config(data, tmp_path / "subset", dropped="subset"))
    assert losses(tmp_path / "subset")[0] != losses(whole)[0]
    assert losses(tmp_path / "subset")[-1] < losses(tmp_path / "subset")[0]
