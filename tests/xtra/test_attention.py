"""Every way of computing attention computes the same numbers, alone and in the model, compiled or not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import AotEagerAndRecordGraphs, CompileCounterWithBackend
from torch.nn.attention import SDPBackend

from xtra import attention, drop_path, recipes, train
from xtra.attention import IMPLEMENTATIONS, Causal, attend, causal_of, run_ends
from xtra.blocks import block_causal_mask, target_blocks
from xtra.compiled import compile_model, uncompile
from xtra.loss import next_block_loss
from xtra.model import SIZES, build

CPU = torch.device("cpu")
pytestmark = [  # both are torch's remarks on what torch does
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


@pytest.fixture
def flex_trains_on_cpus(monkeypatch):
    """torch refuses that, though what it does where it is not compiled is right there, too."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)


def qkv(tokens: int = 48, width: int = 8) -> list[torch.Tensor]:
    """As the model's: strided views of one tensor."""
    x = torch.randn(2, tokens, 3, 3, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [t.detach().requires_grad_() for t in x.permute(2, 0, 3, 1, 4).unbind(0)]


def output_and_grads(inputs: list[torch.Tensor], causal: Causal) -> list[torch.Tensor]:
    out = attend(*inputs, causal)
    return [out.detach(), *torch.autograd.grad(out.pow(3).sum(), inputs)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("tokens", "per_block"), [(240, 16), (48, 16), (60, 4), (16, 16), (48, 1)], ids=str)
@pytest.mark.usefixtures("flex_trains_on_cpus")
def test_every_implementation_is_softmax_over_what_a_token_may_see(implementation, tokens, per_block):
    q, k, v = inputs = qkv(tokens)
    hidden = ~block_causal_mask(tokens, per_block)
    wanted = ((q @ k.mT) / 8**0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    theirs = [wanted.detach(), *torch.autograd.grad(wanted.pow(3).sum(), inputs)]
    causal = causal_of(tokens, per_block, 8, CPU, implementation)
    for ours, reference in zip(output_and_grads(inputs, causal), theirs):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_runs_of_queries_are_whole_blocks_and_cover_every_pair_that_is_visible():
    assert run_ends(240, 16, "dense") == (240,)
    assert run_ends(240, 16, "halves") == (128, 240)
    assert run_ends(240, 16, "quarters") == (64, 128, 192, 240)
    assert run_ends(240, 16, "blocks") == tuple(range(16, 241, 16))
    assert run_ends(240, 16, "quarters-cudnn") == (64, 128, 192, 240)
    assert run_ends(240, 16, "flex128") == (128, 240)
    assert run_ends(240, 16, "flex64") == (64, 128, 192, 240)
    assert run_ends(240, 1, "quarters") == (240,)
    assert run_ends(16, 16, "halves") == (16,)


def test_a_run_of_one_block_needs_no_mask_and_plain_causal_attention_has_none():
    assert not causal_of(48, 16, 8, CPU, "blocks").masked
    assert causal_of(48, 1, 8, CPU, "quarters").mask_NN is None


def test_auto_takes_halves_on_a_cpu_where_they_pay_and_what_was_measured_on_a_gpu(monkeypatch):
    assert attention.chosen(CPU, 240, 64) == "halves"
    assert attention.chosen(CPU, 60, 64) == "dense"
    monkeypatch.setattr(attention, "ON_GPU", {(240, 64): "flex128"})
    assert attention.chosen(torch.device("cuda"), 240, 64) == "flex128"
    assert attention.chosen(torch.device("cuda"), 240, 80) == "dense"
    assert causal_of(240, 16, 8, CPU) is causal_of(240, 16, 64, CPU)  # made once


GPU = torch.device("cuda")
EFFICIENT, CUDNN, FLASH, MATH = (
    getattr(SDPBackend, name) for name in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "FLASH_ATTENTION", "MATH")
)


@pytest.mark.parametrize("keys", range(16, 1025, 16))
def test_cudnn_never_has_a_mask_where_its_gradients_are_not_finite(keys):
    assert (attention.kernels(GPU, True, True, keys)[0] is CUDNN) == (keys % 128 != 64)
    assert attention.kernels(GPU, True, False, keys)[0] is CUDNN  # no mask, no fault


def test_the_kernel_on_a_gpu_is_what_the_arm_says_and_on_a_cpu_torchs_own():
    assert attention.kernels(GPU, False, True, 240) == [EFFICIENT, MATH]
    assert attention.kernels(GPU, False, False, 16) == [FLASH, EFFICIENT, MATH]
    assert attention.kernels(CPU, True, True, 240) == []
    assert causal_of(240, 16, 64, CPU, "quarters-cudnn").cudnn
    assert not causal_of(240, 16, 64, CPU, "quarters").cudnn


@pytest.mark.parametrize("implementation", ["dense", "quarters", "blocks", "flex128"])
def test_the_kernels_that_run_have_names(implementation, monkeypatch):
    inputs = [t.float() for t in qkv(240)]
    causal = causal_of(240, 16, 8, CPU, implementation)
    assert attention.kernel_names(*inputs, causal) == (implementation if implementation == "flex128" else "flash")
    monkeypatch.setattr(attention, "kernels", lambda device, cudnn, masked, keys: [MATH] if keys == 64 else [])
    mixed = {"dense": "flash", "quarters": "math+flash", "blocks": "flash+math", "flex128": "flex128"}
    assert attention.kernel_names(*inputs, causal) == mixed[implementation]


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_the_kernel_is_part_of_a_compiled_graph(monkeypatch):
    """Traced with torch's own choice on a CPU, the graph has one fused call; with the plain one forced, none."""

    def calls() -> set[str]:
        torch._dynamo.reset()
        record = AotEagerAndRecordGraphs()
        torch.compile(attend, fullgraph=True, backend=record)(*(t.float() for t in qkv()), causal)
        return {
            str(node.target).split(".")[1] for node in record.fw_graphs[0].graph.nodes if "aten" in str(node.target)
        }

    causal = causal_of(48, 16, 8, CPU, "dense")
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    assert fused in calls()
    monkeypatch.setattr(attention, "kernels", lambda *which: [MATH])
    assert fused not in calls()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tiles_of_64_have_a_setting_for_the_backward_pass_on_an_h100(monkeypatch):
    """In autograd's thread as in this one, whatever was compiled there before."""
    from torch._inductor.virtualized import V

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))

    def fitting(head_width: int) -> int:
        settings = V.choices.get_flex_attention_bwd_configs(head_width, torch.bfloat16, "cuda")
        return sum(not any(64 % n for n in (s.block_m1, s.block_n1, s.block_m2, s.block_n2)) for s in settings)

    with ThreadPoolExecutor(1) as other:
        if attention._tiles_of_64.cache_info().currsize == 0:
            assert other.submit(fitting, 64).result() == 0
        attention._tiles_of_64()
        for head_width in (64, 80, 128):
            assert fitting(head_width) == other.submit(fitting, head_width).result() == 1
    assert set(attention.FLEX_64) == {"fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_stages", "fwd_num_warps"}


def test_what_is_made_under_inference_mode_serves_training_later():
    attention._made.cache_clear()
    with torch.inference_mode():
        causal_of(48, 16, 8, CPU, "dense")
    output_and_grads(qkv(48), causal_of(48, 16, 8, CPU, "dense"))


SMALL = replace(
    SIZES["tiny32"], block=4, width=128, depth=2, dec_depth=2, dec_width=64, head=64, bridge=64
)  # 48 tokens, 16 to a block
ON_CPUS = [implementation for implementation in IMPLEMENTATIONS if not implementation.startswith("flex")]


def images(config) -> torch.Tensor:
    return torch.randn(2, 3, config.image, config.image, generator=torch.Generator().manual_seed(1))


def loss_and_grads(model, x) -> list[torch.Tensor]:
    loss = next_block_loss(model(x), target_blocks(x, model.config.side))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def use(model, implementation: str) -> None:
    model.encoder.attention = model.decoder.attention = implementation


@pytest.mark.parametrize("implementation", ["auto", *ON_CPUS])
def test_a_model_trains_the_same_with_every_arm(implementation):
    model, x = build(SMALL, 0).double(), images(SMALL).double()
    use(model, "dense")
    wanted = loss_and_grads(model, x)
    use(model, implementation)
    for ours, theirs in zip(loss_and_grads(model, x), wanted):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * float(theirs.abs().max()))


@pytest.mark.slow
def test_compiled_layers_are_two_graphs_for_all_layers_of_a_width():
    torch._dynamo.reset()
    model, x = build(SMALL, 0), images(SMALL)
    use(model, "quarters")
    wanted = loss_and_grads(model, x)
    counter = CompileCounterWithBackend("eager")
    for block in (*model.encoder.blocks, *model.decoder.blocks):
        block.compile(backend=counter, fullgraph=True)
    for ours, theirs in zip(loss_and_grads(model, x), wanted):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert counter.frame_count == 4  # the first layer has no branch before it to add


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_forms_of_a_layer_are_compiled(monkeypatch):
    """torch stops at 8, and goes on without compiling."""
    import torch._dynamo

    torch._dynamo.reset()
    config = replace(SMALL, drop_path=0.5)
    model, x = build(config, 0), images(config)
    model.encoder.skip_dropped = True
    counter = CompileCounterWithBackend("eager")
    honest = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, *, mode=None, **how: honest(what, backend=counter, **how))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        compile_model(model)
        model(x, drop_path.scales(config.drop_path, config.depth, 0, np.zeros(2, int), np.arange(2)))
        model(x, torch.ones(2, 2, 2))
        model(x)
    assert counter.frame_count >= 4
    uncompile(model)
    assert not model.compiled
    assert model.encoder.blocks[0]._compiled_call_impl is None


def test_flex_attention_is_traced_into_compiled_layers():
    """Forward only: torch trains with it on GPUs alone."""
    torch._dynamo.reset()
    model, x = build(SMALL, 0), images(SMALL)
    use(model, "dense")
    with torch.no_grad():
        (wanted,) = model(x)
        use(model, "flex128")
        counter = CompileCounterWithBackend("eager")
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            block.compile(backend=counter, fullgraph=True)
        torch.testing.assert_close(model(x)[0], wanted, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 4  # the first layer has no branch before it to add


def test_a_run_on_a_cpu_refuses_what_torch_trains_with_on_gpus_only():
    config = replace(recipes.get("demo32"), data="x", out="y", device="cpu", attention="flex128")
    with pytest.raises(ValueError, match="attention is flex128, which torch trains with on GPUs only: use auto"):
        train.run(config)
    with pytest.raises(ValueError, match="attention is 'flash'; it must be auto or one of dense, dense-cudnn, halves"):
        replace(config, attention="flash")


def test_bfloat16_trains_on_a_cpu_with_attention_in_float32() -> None:
    model = build(SIZES["tiny32"], 0)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    seen: list[torch.dtype] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        out = real(query, *rest, **named)
        seen.append(out.dtype)
        return out

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        model(image)
        trained, seen[:] = set(seen), []
        with torch.no_grad():
            model(image)
    assert (trained, set(seen)) == ({torch.float32}, {torch.bfloat16})
