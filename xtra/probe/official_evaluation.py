"""Official probe checkpoints, encoder and classifier in one file, evaluated as they are: nothing trains."""

from __future__ import annotations

import time

import numpy as np
import torch

from shards import store
from shards.manifest import Manifest
from xtra.probe import heads
from xtra.probe.config import Config, published_resize
from xtra.probe.encoders import of_xtra
from xtra.probe.evaluate import accuracy, score
from xtra.probe.features import Encode, Feature, Labelled, Progress, keys_and_labels, numbered
from xtra.probe.heads import Candidates
from xtra.probe.official_probe import read_probe
from xtra.probe.result import ProbeResult, write
from xtra.run import checkpoint


def evaluate_official(config: Config, evaluation: Manifest, since: float, say: Progress) -> ProbeResult:
    """The result of `config.checkpoint` on this set, written to `config.out` if given.

    Raises ValueError for a file that is not an official probe, and for a set with other classes.
    """
    at = config.checkpoint
    if not at or any(store.exists(store.join(at, name)) for name in ("config.json", checkpoint.COMMIT)):
        raise ValueError("train is empty: give the labelled dataset that trains the heads")
    for name in ("heads", "encoder", "pixels", "protocol", "strict"):
        if getattr(config, name) != getattr(Config, name):
            raise ValueError(f"{name} applies to heads that train; an official probe is only evaluated: leave it out")
    official = read_probe(at)
    keys, found = keys_and_labels(evaluation)
    if not (labels := evaluation.classes):
        raise ValueError(f"{evaluation.dataset}: has no class list, which gives the probe's order: import it again")
    module = heads.of_official(official.kind, official.attention_heads, official.state).to(config.on)
    if official.classes != len(labels):
        raise ValueError(
            f"{at}: has {official.classes} classes, {evaluation.dataset} has {len(labels)}: evaluate it on the set "
            "that it was trained for"
        )
    frozen = of_xtra(official.encoder.requires_grad_(False), "official")
    mark = frozen.fingerprint()
    frozen = frozen.to(config.on)
    feature = Feature("tokens" if official.kind == "attentive" else "pooled", official.layers)
    resize = config.resize or published_resize(frozen.image)
    encode = Encode(
        encoder=frozen,
        wanted=(feature,),
        token_dtype=torch.float32,
        device=config.on,
        batch=config.encode_batch,
        resize=resize,
        seed=config.seed,
        threads=config.threads,
        precision=config.precision,
    )
    class_N = numbered(evaluation, keys, found, labels)
    eval_set = Labelled(evaluation, class_N, np.zeros(len(class_N), bool))
    candidates = [Candidates(official.kind, feature, ({},), module)]
    (answers,) = score(candidates, encode.evaluation(eval_set, "evaluate", say))
    notes = [line for line in official.report if line.startswith(("assumed", "read from"))]
    result = ProbeResult(
        checkpoint=at,
        samples_seen=0,
        manifest_train="",
        encoder="official",
        lr=None,
        weight_decay=None,
        selection=(),
        protocol="; ".join([f"as it came, image {frozen.image} of {resize}, encoder in {config.precision}", *notes]),
        layers=official.layers,
        selected_on="nothing",
        fingerprint=mark,
        image=frozen.image,
        **accuracy(official.kind, answers.said_GN[0].numpy(), eval_set, labels),
        seconds=round(time.monotonic() - since, 3),
    )
    if config.out:
        write(config.out, result)
    return result
