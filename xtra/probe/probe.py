"""Probes: how good a frozen encoder's features are for classification, measured on labelled sets.

One pass of the encoder feeds every head of the grid (`xtra/probe/heads.py`): learning rates x weight decays x layer
sets. By default the grid point is chosen on a tenth of the training set that no head trained on; the published protocol
chooses it on the evaluation set. The images are shown in a few views that are encoded once, or augmented again in every
epoch.

Heads read the residual streams after the encoder's last layers, before any final norm, with the block-causal mask of
pretraining unless `mask` says otherwise. attentive: the mean over the last layers, for every token. linear, knn,
logreg: the last layer, averaged over tokens. pixels: the image itself under the linear head, a baseline that any
encoder has to beat.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shards import folder_kind, roles, store
from shards.manifest import Manifest, read_manifest
from xtra.device import check_device, freed_memory_kept
from xtra.model import Encoder, build, model_config
from xtra.probe import heads
from xtra.probe.augmented_features import Augmented
from xtra.probe.config import Config, in_words
from xtra.probe.encoders import FrozenEncoder, of_xtra, open_encoder
from xtra.probe.evaluate import Score, accuracy, choose, score
from xtra.probe.features import DTYPES, Cache, Encode, Feature, Features, Labelled, Progress, labelled
from xtra.probe.heads import Candidates, Head
from xtra.probe.kept_views import KeptViews
from xtra.probe.knn_logreg import Logistic, Neighbours
from xtra.probe.official_evaluation import evaluate_official
from xtra.probe.overlap import Shared, shared
from xtra.probe.result import ProbeResult, edge, write
from xtra.probe.resume import Unfinished
from xtra.run import checkpoint, records

__all__ = ["Config", "ProbeResult", "new_head", "run", "train"]
_QUICK = ("knn", "logreg")
_DEFAULT_LAYERS = 6  # of the published attentive probe


@dataclass(frozen=True)
class Probed:
    """The encoder to probe, and its origin."""

    encoder: FrozenEncoder
    label: str  # trained, random, official, or another encoder's name
    out: str  # folder for the results and the state of an interrupted probe; "": not written
    fingerprint: str
    own: bool = False  # `out` is the folder of the encoder's own run
    checkpoint: str = ""  # of a run, or another encoder's spec
    samples_seen: int = 0  # 0 for encoders that are not from one of our runs


def run(config: Config, progress: Progress | None = None, encoder: Encoder | None = None) -> list[ProbeResult]:
    """Train, choose and evaluate: one result per kind of head, each also written to
    `probes/<set>-<head>-<encoder>-<samples seen>.json` (`ProbeResult.name`). Without `train`, `checkpoint` is an
    official probe checkpoint, which is only evaluated.

    Memory: without `augment`, a cache holds `views` x training images, each with tokens x width values of `cache_dtype`
    for every layer set (attentive), width float32 (linear) and the bytes of the image (pixels): 50,000 images with 64
    tokens and 192 channels take 1.2 GB per view. `encoder` is one of ours, in memory, which is not modified; otherwise
    the config names one. Raises ValueError for sets without usable labels, a cache above `cache_gb`, a layer set deeper
    than the encoder and, if `strict`, sets that share images.
    """
    since, say = time.monotonic(), progress or (lambda what, done, total: None)
    if not config.eval:
        raise ValueError("eval is empty: give the labelled dataset to evaluate on")
    if config.out:
        folder_kind.require(config.out, "results of probes", "run", "probes")
    check_device(config.on)
    if not config.train and config.mask != "own":
        raise ValueError(f"mask is {config.mask}, but an official probe was trained with its own mask: leave it out")
    if not config.train:
        return [evaluate_official(config, read_manifest(config.eval), since, say)]
    probed = open_probed(config) if encoder is None else _given(config, encoder)
    published = config.protocol == "published"
    train_set, eval_set, labels = labelled(
        read_manifest(config.train), read_manifest(config.eval), 0.0 if published else config.holdout
    )
    both = _shared(config, train_set.manifest, eval_set.manifest)
    encode = _encode(config, probed.encoder)
    unfinished = _unfinished(config, probed, train_set.manifest, since)
    kept = _kept_views(config, probed, train_set.manifest, since, say)
    say = kept.say

    with freed_memory_kept(config.on):
        found = _fit(config, unfinished, kept, encode, train_set, len(labels), say)
        evaluated = score(found, encode.evaluation(eval_set, "evaluate", say))
        selected = evaluated
        if not published:
            selected = score(found, encode.evaluation(train_set, "choose", say, only=train_set.held))
    count = len(eval_set.class_N) if published else len(train_set.held)
    best = choose(found, selected, evaluated, count)
    seconds = round(time.monotonic() - min(unfinished.since, kept.since), 3)
    results = [_result(config, probed, one, train_set, eval_set, labels, both, seconds) for one in best]
    for result in results:
        write(probed.out, result, probed.own)
    kept.remove()
    unfinished.remove()  # only now: before, a full disk could still lose an hour of training
    return results


# --- the encoder ---------------------------------------------------------------------------------------------------


def open_probed(config: Config) -> Probed:
    """The encoder to probe. Raises ValueError if there is no committed checkpoint, or the config names no model."""
    if config.encoder not in ("trained", "random"):
        if not config.out:
            raise ValueError(f"out is empty: give the folder for the results of {config.encoder}")
        encoder = open_encoder(config.encoder)
        mark = encoder.fingerprint()
        return Probed(encoder.to(config.on), encoder.name, config.out, mark, checkpoint=config.encoder)
    if not (config.checkpoint or (config.encoder == "random" and config.out)):
        raise ValueError("checkpoint is empty: give a run folder, or one of its checkpoints")
    given = store.absolute(config.checkpoint or config.out)  # absolute, since the run is a parent folder
    if store.is_local(given) and store.local_path(given).is_file():
        raise ValueError(f"{given}: is a file: give a run folder; without train, an official probe checkpoint")
    is_checkpoint = store.exists(store.join(given, checkpoint.COMMIT))
    run = given.rsplit("/", 2)[0] if is_checkpoint else given
    url, seen = "", 0
    if config.encoder == "random":
        settings = records.read_settings(run)
        encoder = build(model_config(settings["model"]), settings.get("seed", 0)).encoder
    else:
        url = given if is_checkpoint else checkpoint.latest(run) or ""
        if not url:
            also = folder_kind.instead(run)
            raise ValueError(f"{run}: holds no committed checkpoint{also}: give a run folder or one of its checkpoints")
        seen = checkpoint.read_commit(url)["samples_seen"]
        encoder = checkpoint.load_encoder(url)
    frozen = of_xtra(encoder.requires_grad_(False), config.encoder, config.mask)
    mark, out = frozen.fingerprint(), store.absolute(config.out) if config.out else run
    return Probed(frozen.to(config.on), config.encoder, out, mark, out == run, url, seen)


def _given(config: Config, encoder: Encoder) -> Probed:
    if not config.out:
        raise ValueError("out is empty: give the folder for the results of this encoder")
    frozen = of_xtra(copy.deepcopy(encoder).requires_grad_(False), "given")
    mark = frozen.fingerprint()
    return Probed(frozen.to(config.on), frozen.name, config.out, mark)


def _shared(config: Config, training: Manifest, evaluation: Manifest) -> Shared:
    both = shared(training, evaluation)
    if config.strict and both.total:
        raise ValueError(f"{both}: import sets that do not overlap, or leave out strict")
    return both


def _kinds(config: Config) -> tuple[str, ...]:
    return (*config.heads, *(("pixels",) if config.pixels else ()))


def _features(config: Config, encoder: FrozenEncoder, kind: str) -> tuple[Feature, ...]:
    """The features for heads of this kind, one for every layer set."""
    if kind == "pixels":
        return (Feature("pixels"),)
    if kind == "attentive":
        return tuple(Feature("tokens", n) for n in config.layer_sets or (min(_DEFAULT_LAYERS, encoder.depth),))
    return tuple(Feature("pooled", n) for n in config.linear_layer_sets)


def _encode(config: Config, encoder: FrozenEncoder) -> Encode:
    wanted = dict.fromkeys(feature for kind in _kinds(config) for feature in _features(config, encoder, kind))
    return Encode(
        encoder=encoder,
        wanted=tuple(wanted),
        token_dtype=DTYPES[config.cache_dtype],
        device=config.on,
        batch=config.encode_batch,
        resize=config.resize,
        seed=config.seed,
        threads=config.threads,
        precision=config.precision,
    )


# --- training ------------------------------------------------------------------------------------------------------


def _fit(
    config: Config,
    unfinished: Unfinished,
    kept: KeptViews,
    encode: Encode,
    train_set: Labelled,
    classes: int,
    say: Progress,
) -> list[Candidates]:
    """All heads in the config, trained on the samples that are not held out."""
    asked = [(kind, feature) for kind in _kinds(config) for feature in _features(config, encode.encoder, kind)]
    quick = [(kind, feature) for kind, feature in asked if kind in _QUICK]
    stepped = [new_head(config, kind, f, encode, classes) for kind, f in asked if (kind, f) not in quick]
    if stepped:
        _check_batches(config, len(train_set.kept))
    if stepped and config.augment is not None:
        features = _only(encode, [head.feature for head in stepped])
        _train_augmented(config, unfinished, features, train_set, stepped, say)
        encode = _only(encode, [feature for _, feature in quick])
    if not encode.wanted:
        return [head.trained() for head in stepped]
    from_views = bool(stepped) and config.augment is None
    cache = Cache(encode, train_set, config.views if from_views else 1, config.batch, config.cache_gb)
    kept.fill(cache)
    if from_views:
        schedule = _schedule(config, cache.images, config.epochs * cache.images)
        train(stepped, cache.epochs(config.epochs), schedule, say)
    return [
        *(head.trained() for head in stepped),
        *(_quick(config, kind, feature, cache, classes, say) for kind, feature in quick),
    ]


def _check_batches(config: Config, images: int) -> None:
    """Refuse steps with one image, for which batch norm has no statistics."""
    least = config.batch if config.augment else images // math.ceil(images / config.batch)
    if least < 2:
        raise ValueError(
            f"batch is {config.batch} and {images} images train, so one step would have 1 image; batch norm needs 2: "
            "give a larger batch or a larger set"
        )


def _only(encode: Encode, features: Sequence[Feature]) -> Encode:
    return dataclasses.replace(encode, wanted=tuple(dict.fromkeys(features)))


def new_head(config: Config, kind: str, feature: Feature, encode: Encode, classes: int) -> Head:
    """Untrained heads, with a copy of the initial weights for every learning rate and weight decay."""
    points = heads.grid(config.lrs, config.weight_decays)
    width = encode.stored[feature][0][-1]
    if kind == "attentive":
        module = heads.AttentiveHeads(len(points), width, classes, config.attention_heads, config.seed)
    elif kind in ("linear", "pixels"):
        module = heads.LinearHeads(len(points), width, classes, config.seed)
    else:
        raise ValueError(f"head {kind!r} is unknown: it must be attentive, linear or pixels")
    module = module.to(config.on)
    return Head(kind, feature, points, module, heads.StackedAdamW(module, points, config.betas, config.clip))


def _schedule(config: Config, images: int, samples: int) -> heads.Schedule:
    warmup = round(config.warmup_epochs * images)
    return heads.Schedule(samples, warmup, config.warmup_start, config.min_lr, config.batch, config.warmup_defect)


def train(
    stepped: Sequence[Head], source: Iterable[Features], schedule: heads.Schedule, say: Progress, seen: int = 0
) -> None:
    """Train every grid point of every head on the same batches, from `seen` samples to the end of the schedule."""
    for features in source:
        for head in stepped:
            head.step(features, schedule, seen)
        seen += len(features)
        say("train heads", seen, schedule.samples)
    assert seen == schedule.samples, "the source must show as many samples as the schedule has"


def _kept_views(config: Config, probed: Probed, train: Manifest, since: float, say: Progress) -> KeptViews:
    """The views encoded by an interrupted probe with these settings."""
    settings = {name: dataclasses.asdict(config)[name] for name in roles.names(Config, "law", "trial")}
    settings["heads"] = [kind for kind in config.heads if kind not in _QUICK]
    settings |= {"quick": [kind for kind in config.heads if kind in _QUICK]}
    settings |= {"fingerprint": probed.fingerprint, "train": train.digest, "device": config.on, "kept": "views"}
    return KeptViews(probed.out, settings, 60 * config.save_minutes, since, say)


def _unfinished(config: Config, probed: Probed, train: Manifest, since: float) -> Unfinished:
    """The state of this probe's training, identified by exactly the inputs of the training."""
    settings = roles.chosen(Config, dataclasses.asdict(config), "law", "trial")
    if config.mask == "own":  # as in states of older builds, which have no mask setting
        del settings["mask"]
    settings["heads"] = [kind for kind in config.heads if kind not in _QUICK]
    settings |= {"fingerprint": probed.fingerprint, "train": train.digest, "device": config.on}
    return Unfinished(probed.out, settings, 60 * config.save_minutes, since)


def _train_augmented(
    config: Config,
    unfinished: Unfinished,
    encode: Encode,
    train_set: Labelled,
    stepped: Sequence[Head],
    say: Progress,
) -> None:
    """Train from where an interrupted probe with the same settings stopped, if any. The last state is always saved."""
    assert config.augment is not None
    position = unfinished.load(stepped)
    if position is not None:
        say(f"going on at {position.trained:,} samples", position.trained, config.epochs * len(train_set.kept))
    source = Augmented(encode, train_set, config.augment, config.batch, config.epochs, position)

    def keep(what: str, done: int, total: int) -> None:
        if unfinished.due() and done < total:
            unfinished.save(stepped, source.position)
        try:
            say(what, done, total)
        except BaseException:  # the caller may end it here, between two steps
            unfinished.save(stepped, source.position)
            raise

    schedule = _schedule(config, source.images, source.samples)
    train(stepped, source, schedule, keep, source.position.trained)
    unfinished.save(stepped, source.position)


def _quick(config: Config, kind: str, feature: Feature, cache: Cache, classes: int, say: Progress) -> Candidates:
    """Fit on the first view of every image, the centre crop."""
    x_TD = cache.features.of(feature)[: cache.images].to(config.on)
    label_T = cache.features.labels_B[: cache.images].to(config.on)
    say(kind, 0, cache.images)
    if kind == "knn":
        neighbours = Neighbours(x_TD, label_T, classes, config.knn)
        return Candidates(kind, feature, _points("k", neighbours.ks, feature), neighbours)
    logistic = Logistic(x_TD, label_T, classes, config.logreg)
    return Candidates(kind, feature, _points("c", config.logreg, feature), logistic)


def _points(name: str, values: Sequence[float], feature: Feature) -> tuple[dict[str, float], ...]:
    return tuple({name: value, "layers": feature.layers} for value in values)


# --- results ----------------------------------------------------------------------------------------------------------


def _result(
    config: Config,
    probed: Probed,
    best: Score,
    train_set: Labelled,
    eval_set: Labelled,
    labels: tuple[str, ...],
    both: Shared,
    seconds: float,
) -> ProbeResult:
    pixels, quick = best.kind == "pixels", best.kind in _QUICK
    return ProbeResult(
        checkpoint="" if pixels else probed.checkpoint,
        samples_seen=0 if pixels else probed.samples_seen,
        manifest_train=train_set.manifest.digest,
        encoder="none" if pixels else probed.label,
        lr=best.chosen.get("lr"),
        weight_decay=best.chosen.get("weight_decay"),
        selection=best.selection,
        protocol=in_words(config, probed.encoder.image, best.kind, best.selection),
        layers=best.feature.layers,
        chosen=best.chosen,
        selected_on="eval" if config.protocol == "published" else "holdout",
        epochs=None if quick else config.epochs,
        warmup_defect=config.warmup_defect and not quick,
        fingerprint="" if pixels else probed.fingerprint,
        image=probed.encoder.image,
        remark="" if quick else edge(best.selection),
        seed=config.seed,
        mask="" if pixels or config.mask == "own" else config.mask,
        shared_sha256=both.sha256,
        shared_phash=both.phash,
        **accuracy(best.kind, best.said_N, eval_set, labels),
        seconds=seconds,
    )
