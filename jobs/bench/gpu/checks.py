"""Correctness checks on a device: parity, attention, and bfloat16 against float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtra import drop_path
from xtra.attention import IMPLEMENTATIONS, attend, causal_of
from xtra.blocks import block_causal_mask, target_blocks
from xtra.data import normalise
from xtra.loss import next_block_loss
from xtra.model import SIZES, build
from xtra.optim import OptimConfig, learning_rate, make_optimizer

Row = dict[str, Any]
FLOAT64, FLOAT32, BFLOAT16 = 1e-9, 1e-3, 2e-2  # relative errors explained by rounding; kernels may use TF32 for float32
APART = 0.02  # share of the final loss by which bfloat16 may differ from float32


def row(check: str, what: str, value: float, bar: float) -> Row:
    return {
        "name": f"{check}: {what}",
        "check": check,
        "what": what,
        "value": value,
        "bar": bar,
        "ok": bool(value <= bar),
    }


def official_numbers(vectors: str, device: torch.device) -> Iterator[Row]:
    """The parity vectors, computed on the device in float64. Raises ImportError without safetensors."""
    from jobs.bench import parity

    for case in parity.read_cases(vectors):
        with torch.device(device):  # the model is made here
            errors = parity.compare(replace(case, tensors={name: t.to(device) for name, t in case.tensors.items()}))
        yield row("parity", f"{case.name}, float64", max(errors.values()), FLOAT64)


def same_as_cpu(device: torch.device) -> Row:
    """Loss and gradients of a small model in float64 on the device against those on the CPU."""
    config = replace(SIZES["tiny64"], drop_path=0.5)
    images = torch.randn(4, 3, config.image, config.image, generator=torch.Generator().manual_seed(0)).double()
    drop_LSB = drop_path.scales(config.drop_path, config.depth, 0, np.zeros(4, int), np.arange(4))

    def found(where: torch.device) -> list[Tensor]:
        model = build(config, 0, where).double()
        model.encoder.attention = model.decoder.attention = "dense"
        x = images.to(where)
        loss = next_block_loss(model(x, drop_LSB), target_blocks(x, config.side))
        return [t.cpu() for t in (loss.detach(), *torch.autograd.grad(loss, list(model.parameters())))]

    worst = max(error(a, b) for a, b in zip(found(device), found(torch.device("cpu"))))
    return row("device against CPU", "loss and gradients, float64", worst, FLOAT64)


def error(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; infinite if one is NaN."""
    apart = float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30))
    return apart if apart == apart else float("inf")


def attention_agrees(
    implementation: str, head_width: int, dtype: torch.dtype, device: torch.device, tokens: int = 240
) -> Row:
    """An implementation's output and gradients against softmax(q k') v in float64. Raises what torch raises."""
    generator = torch.Generator().manual_seed(head_width)
    x = torch.randn(2, tokens, 3, 4, head_width, generator=generator).to(device, dtype)
    q, k, v = inputs = [t.detach().requires_grad_() for t in x.permute(2, 0, 3, 1, 4).unbind(0)]
    out_grad = torch.randn(2, 4, tokens, head_width, generator=generator).to(device, dtype)
    out = attend(q, k, v, causal_of(tokens, 16, head_width, device, implementation))
    ours = [out, *torch.autograd.grad(out, inputs, out_grad)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    hidden = ~block_causal_mask(tokens, 16, device)
    scores = (exact[0] @ exact[1].mT / head_width**0.5).masked_fill(hidden, -torch.inf)
    wanted = scores.softmax(-1) @ exact[2]
    theirs = [wanted, *torch.autograd.grad(wanted, exact, out_grad.double())]
    bar = {torch.float64: FLOAT64, torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}[dtype]
    worst = max(error(a.detach(), b.detach()) for a, b in zip(ours, theirs))
    return row(
        "attention", f"{implementation}, {tokens} x {head_width}, {str(dtype).removeprefix('torch.')}", worst, bar
    )


def finite_gradients(implementation: str, head_width: int, device: torch.device, tokens: int) -> Row:
    """The number of non-finite values in an implementation's bfloat16 output and gradients when every logit is about
    -120: cuDNN's backward pass failed where the log-sum-exp was below minus the log of float32's largest number."""
    generator = torch.Generator().manual_seed(head_width)
    x = 0.1 * torch.randn(2, tokens, 3, 4, head_width, generator=generator)
    x[:, :, 0, :, 0], x[:, :, 1, :, 0] = 1.0, -120 * head_width**0.5
    q, k, v = inputs = [
        t.detach().requires_grad_() for t in x.to(device, torch.bfloat16).permute(2, 0, 3, 1, 4).unbind()
    ]
    out = attend(q, k, v, causal_of(tokens, 16, head_width, device, implementation))
    wrong = sum(int((~t.isfinite()).sum()) for t in [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    return row("attention", f"{implementation}, {tokens} x {head_width}, bfloat16, low logits", float(wrong), 0.0)


def implementations(device: torch.device, run: Callable[[str, Callable[[], Row]], None]) -> None:
    """Every implementation at B/16's and H/14's head widths; `run` gets a name and a function that computes a row."""
    cuda = device.type == "cuda"
    for implementation in IMPLEMENTATIONS:
        flex = implementation.startswith("flex")  # each dtype is compiled separately, which takes seconds
        if flex and not cuda:
            continue  # torch has no backward pass for it there
        for head_width in (64, 80, 128) if cuda else (8,):
            for dtype in [torch.bfloat16] if flex else [torch.float64, torch.bfloat16]:
                tokens = 240 if cuda else 48
                name = f"attention {implementation}, {tokens} x {head_width}, {str(dtype).removeprefix('torch.')}"
                run(
                    name, lambda a=implementation, w=head_width, d=dtype, n=tokens: attention_agrees(a, w, d, device, n)
                )
            if flex:
                continue  # not a cuDNN kernel; compiled for every shape
            for tokens in (64, 192, 240) if cuda else (48, 64):
                name = f"attention {implementation}, {tokens} x {head_width}, low logits"
                run(name, lambda a=implementation, w=head_width, n=tokens: finite_gradients(a, w, device, n))


def made_pictures(count: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size]: soft shapes, which are predictable."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, size, size)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(count, 3, cells, cells, generator=generator) / cells**0.5
        total += F.interpolate(noise, size=(size, size), mode="bicubic")
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return ((total - low) / (high - low) * 255).to(torch.uint8)


def precision_runs(device: torch.device, steps: int, batch: int, size: str) -> Iterator[Row]:
    """The same training in float32, with another seed, and in bfloat16 with and without a float32 decoder: the mean
    loss over the last tenth relative to float32's, and whether bfloat16 stays within APART of it."""
    config = SIZES[size]
    pictures = made_pictures(8 * batch, config.image).to(device)
    optim = OptimConfig(lr=1e-3, warmup=0.1)

    def final(bf16: bool, decoder_fp32: bool, seed: int) -> float:
        model = build(config, seed, device, decoder_fp32)
        optimizer = make_optimizer(model, optim)
        losses = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(optim, step * batch, steps * batch, batch)
            at = step % 8 * batch
            images = normalise(pictures[at : at + batch])
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                predictions = model(images)
            loss = next_block_loss(predictions, target_blocks(images, config.side))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return statistics.fmean(torch.stack(losses[-max(1, steps // 10) :]).tolist())

    reference = final(False, True, 0)
    what = f"of {reference:.4f} after {steps} steps of {size}"
    yield row("fp32, another seed", what, abs(final(False, True, 1) / reference - 1), float("inf"))
    for name, decoder_fp32 in (("bf16, decoder fp32", True), ("bf16", False)):
        yield row(name, what, abs(final(True, decoder_fp32, 0) / reference - 1), APART)
