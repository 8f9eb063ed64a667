"""What is compiled is compiled once: not again for the short last batch, for validation or for a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_datasets import make_dataset
from torch._dynamo.testing import CompileCounterWithBackend

from shards import store
from shards.stream.order import Order
from xtra import compiled, micro_batch, train
from xtra.loss import next_block_loss
from xtra.model import SIZES, ModelConfig
from xtra.optim import OptimConfig
from xtra.validation import Validation

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # likewise, on importing its compiler
]

MODEL = ModelConfig(16, 4, 2, 32, 3, 2, bridge=48, dec_width=48, dec_depth=2, dec_heads=2, head=40, drop_path=0.5)
SAMPLES, BATCH = 44, 16  # two whole batches and a short one


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37])
    return str(base)


def config(data: str, out, **changes) -> train.Config:
    base = train.Config(
        model=MODEL,
        samples=SAMPLES,
        batch=BATCH,
        data=data,
        out=str(out),
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        order=Order(seed=2, lanes=4, chunk=4, window=2),
        checkpoint_every=BATCH,
        val=Validation(data, every=BATCH, batch=32),
        threads=1,
        device="cpu",
        compile="on",
    )
    return replace(base, **changes)


def losses(run) -> list[float]:
    folder, rows = store.join(str(run), "metrics"), {}
    for name in store.names(folder):
        for line in store.read(store.join(folder, name)).decode().splitlines():
            rows[json.loads(line)["samples_seen"]] = json.loads(line)
    return [rows[seen][name] for seen in sorted(rows) for name in ("loss", "val_loss")]


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are compiled, by a compiler that leaves them as they are."""
    torch._dynamo.reset()
    compiled.compiled_loss.cache_clear()
    counter = CompileCounterWithBackend("eager")
    honest = torch.compile

    def counted(what, *, fullgraph, dynamic, mode=None):
        assert fullgraph
        return honest(what, fullgraph=fullgraph, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", counted)
    yield counter
    compiled.compiled_loss.cache_clear()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"dropped": "skip"}, {"micro": 6}, {"precision": "bf16"}], ids=str)
def test_a_run_compiles_in_its_first_step_and_first_validation_and_never_again(data, tmp_path, graphs, change):
    after: list[int] = []

    def steps(row) -> None:
        if "samples" in row:
            after.append(graphs.frame_count)

    count = iter(range(100))
    asked = config(data, tmp_path / "run", **change)
    stopped = train.run(asked, stop=lambda: next(count) >= 1, progress=steps)
    assert (stopped.stopped, stopped.samples_seen) == (True, 2 * BATCH)
    assert after[1] == after[0], "the second step compiled something"
    train.run(asked, progress=steps)  # resumed, with the short last batch and its validation
    print(f"graphs after each step {after}: {change}")
    assert after == [after[0]] * 3
    train.run(replace(asked, out=str(tmp_path / "eager"), compile="off"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "eager"), rel=2e-2 if change else 1e-5)


def test_images_that_fill_a_batch_up_count_nothing():
    predictions, targets = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 4, 5)
    mean = next_block_loss([predictions[:3]], targets[:3]) * (3 / 7)
    weight_B = compiled.weights(3, 4, 7, torch.device("cpu"))
    filled = next_block_loss([predictions], targets, weight_B=weight_B)
    torch.testing.assert_close(filled, mean)
    (ours,), (theirs,) = (torch.autograd.grad(loss, predictions, retain_graph=True) for loss in (filled, mean))
    torch.testing.assert_close(ours, theirs)
    assert not ours[3].any()
    image = torch.arange(12).view(1, 3, 2, 2)
    assert torch.equal(compiled.filled(image, 3), image.expand(3, -1, -1, -1))
    assert compiled.filled_numbers(np.array([5, 7]), 4).tolist() == [5, 7, 5, 5]
    assert compiled.filled_numbers(np.array([5, 7]), 2).tolist() == [5, 7]


# --- memory ---


@pytest.mark.parametrize(("gb", "size", "micro", "passes"), [
    (80, "b16", 0, 0), (141, "b16", 0, 0), (80, "h14", 0, 0), (141, "h14", 0, 0)
])  # fmt: skip
def test_what_the_formula_takes_fits_and_is_not_half_of_it(gb, size, micro, passes):
    model = replace(SIZES[size], drop_path=0.2)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in train.Xtra(model).parameters())
    free = int(gb * 1e9) - 4 * parameters - micro_batch.fixed_bytes(parameters, 1, parameters)
    fits = micro_batch.images_that_fit(model, True, False, free)
    micro = micro_batch.even_parts(2048, fits)
    used = 18 * parameters + micro * micro_batch.kept_bytes(model, True, False)
    print(f"{size}, {gb} GB: {fits} images fit, micro {micro}, {used / 1e9:.0f} GB kept; 2,048 at once "
          f"{(18 * parameters + 2048 * micro_batch.kept_bytes(model, True, False)) / 1e9:.0f} GB")  # fmt: skip
    assert 0.5 * gb < used / 1e9 < 0.95 * gb


@pytest.mark.parametrize(("share", "fits", "part"), [
    (2048, 3000, 2048), (2048, 600, 512), (2048, 500, 416), (256, 300, 256), (29, 300, 29), (10, 3, 3), (7, 1, 1),
    (100, 51, 50), (100, 60, 56),
])  # fmt: skip
def test_parts_are_even_and_fit(share, fits, part):
    assert micro_batch.even_parts(share, fits) == part <= max(fits, 1)


def test_a_run_on_a_gpu_takes_what_fits_and_halves_what_did_not(data, tmp_path, monkeypatch):
    """The GPU's memory is made up; the model is on the CPU."""
    said: list[str] = []
    parameters = sum(p.numel() for p in train.build(MODEL).parameters())
    room = micro_batch.fixed_bytes(parameters, 1, parameters) + int(
        12.5 * micro_batch.image_bytes(MODEL, False, False) / micro_batch.FILL
    )
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: room)
    asked = config(data, tmp_path / "whole", compile="off", val=Validation())
    whole = replace(asked, out=str(tmp_path / "eager"), micro=BATCH)

    def run(config: train.Config) -> str:
        said.clear()
        train.run(config, progress=lambda row: said.append(row.get("remark", "")))
        return next(remark for remark in said if "passes" in remark or "pass" in remark)

    assert run(asked).endswith("in 2 passes")
    honest, tries = train._forward_backward, []

    def short_of_memory(model, batch, config, *rest):
        tries.append(config.micro)
        if config.micro > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return honest(model, batch, config, *rest)

    monkeypatch.setattr(train, "_forward_backward", short_of_memory)
    assert run(replace(asked, out=str(tmp_path / "halved"))).endswith("in 4 passes")
    assert tries[:2] == [8, 4]
    with pytest.raises(ValueError) as failed:
        train.run(whole)
    assert str(failed.value) == (
        f"{tmp_path}/eager: a step of 16 images in one pass does not fit in the GPU's memory: give --micro 8 or less "
        "(CUDA out of memory. Tried to allocate 2 GiB)"
    )


def test_threads_are_a_ranks_share_of_the_cores(monkeypatch):
    from xtra.device import decoding_threads

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpu = torch.device("cuda")
    assert decoding_threads(torch.device("cpu")) == 2
    assert decoding_threads(gpu) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert decoding_threads(gpu) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert decoding_threads(gpu) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert decoding_threads(gpu) == 32


def test_compiled_where_it_can_be_on_a_gpu_and_never_by_itself_on_a_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "compile_model", lambda model: calls.append(model))
    monkeypatch.setattr(compiled, "unavailable", lambda: "")
    base = train.Config(model=MODEL, samples=1, batch=1)
    cpu, gpu, model = torch.device("cpu"), torch.device("cuda"), train.build(MODEL)
    assert train._compile(base, model, cpu) == train._compile(replace(base, compile="off"), model, gpu) == ()
    assert calls == []
    assert train._compile(base, model, gpu) == train._compile(replace(base, compile="on"), model, cpu) == ()
    assert len(calls) == 2
    monkeypatch.setattr(compiled, "unavailable", lambda: "triton is not installed")
    assert train._compile(base, model, gpu) == (
        "nothing is compiled, which makes training slower: triton is not installed",
    )
    assert len(calls) == 2
