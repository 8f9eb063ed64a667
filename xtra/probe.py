"""Probes: how good a frozen encoder's features are for classification, measured on labelled sets.

One pass of the encoder feeds every head of the grid (`xtra/heads.py`): learning rates x weight decays x layer sets. By
default the grid point is chosen on a tenth of the training set that no head trained on; the published protocol chooses
it on the evaluation set. The images are shown in a few views that are encoded once, or augmented anew in every epoch.

What is probed: the residual streams after the encoder's last layers, before any final norm, with the block-causal mask
of pretraining. attentive: their mean over the last layers, every token. linear, knn, logreg: of the last one, averaged
over tokens. pixels: the image itself under the linear head, which any encoder has to beat.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from shards import store
from shards.manifest import Manifest, read_manifest
from xtra import checkpoint, heads
from xtra.augment import Augment
from xtra.augmented import Augmented
from xtra.encoders import FrozenEncoder, of_xtra, open_encoder
from xtra.evaluate import Score, accuracy, choose, score
from xtra.features import (
    DTYPES,
    Cache,
    Encode,
    Feature,
    Features,
    Labelled,
    Progress,
    labelled,
)
from xtra.heads import Candidates, Head
from xtra.leakage import Shared, shared
from xtra.model import build, model_config
from xtra.official_evaluation import evaluate_official
from xtra.probe_result import ProbeResult, wilson, write
from xtra.quick import Logistic, Neighbours
from xtra.unfinished import Unfinished

__all__ = ["Config", "ProbeResult", "new_head", "run", "train", "wilson"]
_DEFAULT_LAYERS = 6  # of the published attentive probe
_OFFICIAL_RESIZE = {
    224: 256,
    256: 300,
}  # short side before the centre crop, by image size (config/pretrain, config/eval)


@dataclass(frozen=True)
class Config:
    checkpoint: str = ""  # a run folder (its newest checkpoint) or one checkpoint of it: RUN/checkpoints/000000012800
    train: str = ""  # labelled dataset that trains the heads
    eval: str = ""  # labelled dataset that the result is about
    out: str = ""  # folder that gets probes/*.json; the run's own if empty
    encoder: str = (
        "trained"  # or random (the run's architecture, initial weights), timm:NAME, timm:NAME:FILE, torch:FILE
    )
    # knn and logreg are quick: they look at one view of each image, and no schedule or learning rate is theirs.
    heads: tuple[Literal["attentive", "linear", "knn", "logreg"], ...] = ("attentive", "linear")
    pixels: bool = False  # also a linear classifier of raw pixels
    # holdout: the grid point is chosen on images of train that no head trained on. published: as the paper's numbers
    # were made, all of train trains and the point is chosen on eval itself, which flatters.
    protocol: Literal["holdout", "published"] = "holdout"
    # The paper's grid is 1e-4 to 8e-3 at batches of 512 to 4096 and 100 epochs; short probes of small sets need more.
    lrs: tuple[float, ...] = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2, 5e-2)
    weight_decays: tuple[float, ...] = (0.1,)  # one more axis of the grid
    # attentive: the mean of the last n layers, for each n; empty: of the last 6, or of all if the encoder has fewer
    layer_sets: tuple[int, ...] = ()
    linear_layer_sets: tuple[int, ...] = (1,)  # linear, knn, logreg: the same, averaged over tokens
    attention_heads: int = 16
    batch: int = 256
    epochs: int = 20
    warmup_epochs: float = 0.0
    warmup_start: float = 0.1  # share of a point's own rate that its warm-up starts from
    min_lr: float = 1e-5
    warmup_defect: bool = False  # the published scheduler without warm-up: a point's peak is warmup_start of its rate
    betas: tuple[float, float] = (0.9, 0.95)  # of the official configs; the paper's Table 2 says 0.9 0.999
    clip: float = 3.0
    augment: Augment | None = None  # of every epoch, on the fly; None: `views` of each image, encoded once and kept
    views: int = 2  # of each training image, without augment: the centre crop, then random crops with flips
    holdout: float = 0.1  # share of the training set, by hash of the key, that chooses the grid point
    knn: tuple[int, ...] = (5, 10, 20, 50, 100, 200)  # numbers of neighbours to choose from
    logreg: tuple[float, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2)  # inverse strengths of regularisation to choose from
    strict: bool = False  # refuse sets that share images
    resize: int | None = None  # short side before the centre crop; the image size if None
    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; heads train in fp32
    encode_batch: int = 128
    threads: int = 2  # that decode
    cache_gb: float = 8.0  # refuse to keep more features than this in memory
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of token features
    save_minutes: float = 10.0  # between the states that a probe with augment goes on from when it was interrupted

    def __post_init__(self) -> None:
        for name in ("attention_heads", "batch", "epochs", "views", "encode_batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("layer_sets", "linear_layer_sets", "knn"):
            if any(n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name} has {min(getattr(self, name))}; each must be at least 1")
        if not self.lrs or not self.weight_decays or not self.linear_layer_sets:
            raise ValueError("the grid is empty: give at least one each of lrs, weight_decays and linear_layer_sets")
        if ("knn" in self.heads and not self.knn) or ("logreg" in self.heads and not self.logreg):
            raise ValueError(
                "the grid is empty: give at least one of knn, and of logreg, where these heads are asked for"
            )
        if min(self.logreg, default=1.0) <= 0:
            raise ValueError(f"logreg has {min(self.logreg)}; each must be above 0")
        if not self.heads and not self.pixels:
            raise ValueError("there is nothing to probe: give heads (attentive, linear, knn, logreg) or pixels")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; it must lie between 0 and 1")
        if self.warmup_defect and self.warmup_epochs:
            raise ValueError(f"warmup_defect is of schedules without warm-up; warmup_epochs is {self.warmup_epochs:g}")
        if not 0 < self.warmup_start <= 1:
            raise ValueError(f"warmup_start is {self.warmup_start}; it must be a share, above 0 and at most 1")
        if self.encoder not in ("trained", "random") and not self.encoder.startswith(("timm:", "torch:")):
            raise ValueError(f"encoder is {self.encoder!r}; it must be trained, random, timm:NAME or torch:FILE")


@dataclass(frozen=True)
class Probed:
    """The encoder that is probed, and where it is from."""

    encoder: FrozenEncoder
    label: str  # trained, random, official, or the name of somebody else's
    out: str  # folder that gets the results and the state of an interrupted probe; "": none does
    checkpoint: str = ""
    samples_seen: int = 0  # 0 for encoders that are not from a run of ours


def run(config: Config, progress: Progress | None = None) -> list[ProbeResult]:
    """Train, choose and evaluate: one result a kind of head, each also written to
    `probes/<set>-<head>-<encoder>-<samples seen>.json`. Without `train`, `checkpoint` is an official probe checkpoint,
    which is evaluated as it is.

    Memory: without `augment` a cache holds `views` x training images, each of tokens x width values of `cache_dtype`
    for every layer set (attentive), width float32 (linear) and the bytes of the image (pixels): 50,000 images of 64
    tokens and 192 channels are 1.2 GB a view. Raises ValueError for sets without usable labels, a cache above
    `cache_gb`, a layer set deeper than the encoder and, if `strict`, sets that share images.
    """
    since, say = time.monotonic(), progress or (lambda what, done, total: None)
    if not config.eval:
        raise ValueError("eval is empty: give the labelled dataset that the result is about")
    if not config.train:
        return [evaluate_official(config, read_manifest(config.eval), since, say)]
    probed = _open(config)
    published = config.protocol == "published"
    train_set, eval_set, labels = labelled(
        read_manifest(config.train), read_manifest(config.eval), 0.0 if published else config.holdout
    )
    both = _shared(config, train_set.manifest, eval_set.manifest)
    encode = _encode(config, probed.encoder)

    found = _fit(config, probed, encode, train_set, len(labels), say)
    evaluated = score(found, encode.evaluation(eval_set, "evaluate", say), len(labels))
    selected = evaluated
    if not published:
        selected = score(found, encode.evaluation(train_set, "choose", say, only=train_set.held), len(labels))
    count = len(eval_set.class_N) if published else len(train_set.held)
    return [
        _result(config, probed, best, train_set, eval_set, labels, both, since)
        for best in choose(found, selected, evaluated, count)
    ]


# --- what is probed ------------------------------------------------------------------------------------------------


def _open(config: Config) -> Probed:
    """Raises ValueError when there is no committed checkpoint, or nothing says which model is meant."""
    if config.encoder not in ("trained", "random"):
        if not config.out:
            raise ValueError(f"out is empty: name the folder that gets the results of {config.encoder}")
        encoder = open_encoder(config.encoder).to(config.device)
        return Probed(encoder, encoder.name, config.out)
    given = (config.checkpoint or config.out).rstrip("/")
    if not given or not (config.checkpoint or config.encoder == "random"):
        raise ValueError("checkpoint is empty: give a run folder, or one of its checkpoints")
    is_checkpoint = store.exists(store.join(given, checkpoint.COMMIT))
    run = given.rsplit("/", 2)[0] if is_checkpoint else given
    url, seen = "", 0
    if config.encoder == "random":
        settings = store.read_json(store.join(run, "config.json"))
        encoder = build(model_config(settings["model"]), settings["seed"]).encoder
    else:
        url = given if is_checkpoint else checkpoint.latest(run) or ""
        if not url:
            raise ValueError(f"{run}: holds no committed checkpoint: name a run folder or one of its checkpoints")
        seen = store.read_json(store.join(url, checkpoint.COMMIT))["samples_seen"]
        encoder = checkpoint.load_encoder(url)
    frozen = of_xtra(encoder.requires_grad_(False), config.encoder).to(config.device)
    return Probed(frozen, config.encoder, config.out or run, url, seen)


def _shared(config: Config, training: Manifest, evaluation: Manifest) -> Shared:
    both = shared(training, evaluation)
    if config.strict and both.total:
        raise ValueError(f"{both}: import sets that do not overlap, or leave out strict")
    return both


def _kinds(config: Config) -> tuple[str, ...]:
    return (*config.heads, *(("pixels",) if config.pixels else ()))


def _features(config: Config, encoder: FrozenEncoder, kind: str) -> tuple[Feature, ...]:
    """What heads of this kind see, one for every layer set."""
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
        device=config.device,
        batch=config.encode_batch,
        resize=config.resize,
        seed=config.seed,
        threads=config.threads,
        precision=config.precision,
    )


# --- training ------------------------------------------------------------------------------------------------------


def _fit(
    config: Config, probed: Probed, encode: Encode, train_set: Labelled, classes: int, say: Progress
) -> list[Candidates]:
    """Everything that the config asks for, trained on what is not held out."""
    asked = [(kind, feature) for kind in _kinds(config) for feature in _features(config, encode.encoder, kind)]
    quick = [(kind, feature) for kind, feature in asked if kind in ("knn", "logreg")]
    stepped = [new_head(config, kind, f, encode, classes) for kind, f in asked if (kind, f) not in quick]
    if stepped and config.augment is not None:
        _train_augmented(config, probed, _only(encode, [head.feature for head in stepped]), train_set, stepped, say)
        encode = _only(encode, [feature for _, feature in quick])
    if not encode.wanted:
        return [head.trained() for head in stepped]
    from_views = bool(stepped) and config.augment is None
    cache = Cache(encode, train_set, config.views if from_views else 1, config.batch, config.cache_gb)
    cache.fill(say)
    if from_views:
        schedule = _schedule(config, cache.images, config.epochs * cache.images)
        train(stepped, cache.epochs(config.epochs), schedule, say)
    return [
        *(head.trained() for head in stepped),
        *(_quick(config, kind, feature, cache, classes, say) for kind, feature in quick),
    ]


def _only(encode: Encode, features: Sequence[Feature]) -> Encode:
    return dataclasses.replace(encode, wanted=tuple(dict.fromkeys(features)))


def new_head(config: Config, kind: str, feature: Feature, encode: Encode, classes: int) -> Head:
    """Untrained, with a copy of its initial weights for every learning rate and weight decay."""
    points = heads.grid(config.lrs, config.weight_decays)
    width = encode.stored[feature][0][-1]
    if kind == "attentive":
        module = heads.AttentiveHeads(len(points), width, classes, config.attention_heads, config.seed)
    else:
        module = heads.LinearHeads(len(points), width, classes, config.seed)
    module = module.to(config.device)
    return Head(kind, feature, points, module, heads.StackedAdamW(module, points, config.betas, config.clip))


def _schedule(config: Config, images: int, samples: int) -> heads.Schedule:
    warmup = round(config.warmup_epochs * images)
    return heads.Schedule(samples, warmup, config.warmup_start, config.min_lr, config.batch, config.warmup_defect)


def train(
    stepped: Sequence[Head], source: Iterable[Features], schedule: heads.Schedule, say: Progress, seen: int = 0
) -> None:
    """Every grid point of every head, over the same batches, from `seen` samples on to the end of the schedule."""
    for features in source:
        for head in stepped:
            head.step(features, schedule, seen)
        seen += len(features)
        say("train heads", seen, schedule.samples)
    assert seen == schedule.samples, "the source shows what the schedule counts"


def _train_augmented(
    config: Config, probed: Probed, encode: Encode, train_set: Labelled, stepped: Sequence[Head], say: Progress
) -> None:
    """From where an interrupted probe of the same settings left off, if one did."""
    assert config.augment is not None
    aside = ("out", "threads", "save_minutes", "cache_gb", "strict")  # nothing follows from these
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}
    settings |= {"checkpoint": probed.checkpoint, "train": train_set.manifest.digest}
    unfinished = Unfinished(probed.out, settings, 60 * config.save_minutes)
    position = unfinished.load(stepped)
    source = Augmented(encode, train_set, config.augment, config.batch, config.epochs, position)

    def keep(what: str, done: int, total: int) -> None:
        if unfinished.due() and done < total:
            unfinished.save(stepped, source.position)
        say(what, done, total)

    schedule = _schedule(config, source.images, source.samples)
    train(stepped, source, schedule, keep, source.position.trained)
    unfinished.remove()


def _quick(config: Config, kind: str, feature: Feature, cache: Cache, classes: int, say: Progress) -> Candidates:
    """From the first view of every image, the centre crop."""
    x_TD = cache.features.of(feature)[: cache.images].to(config.device)
    label_T = cache.features.labels_B[: cache.images].to(config.device)
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
    since: float,
) -> ProbeResult:
    pixels = best.kind == "pixels"
    result = ProbeResult(
        checkpoint="" if pixels else probed.checkpoint,
        samples_seen=0 if pixels else probed.samples_seen,
        manifest_train=train_set.manifest.digest,
        encoder="none" if pixels else probed.label,
        lr=best.chosen.get("lr"),
        weight_decay=best.chosen.get("weight_decay"),
        selection=best.selection,
        protocol=_protocol(config, probed.encoder, best.kind),
        layers=best.feature.layers,
        chosen=best.chosen,
        selected_on="eval" if config.protocol == "published" else "holdout",
        epochs=None if best.kind in ("knn", "logreg") else config.epochs,
        warmup_defect=config.warmup_defect,
        shared_sha256=both.sha256,
        shared_phash=both.phash,
        **accuracy(best.kind, best.right_C, eval_set, labels),
        seconds=round(time.monotonic() - since, 3),
    )
    write(probed.out, result)
    return result


def _protocol(config: Config, encoder: FrozenEncoder, kind: str) -> str:
    """The settings in words."""
    c = config
    if c.protocol == "published":
        words = ["published: all of train trains, grid point chosen on eval itself"]
    else:
        words = [f"grid point chosen on {c.holdout:.0%} of train that no head trained on"]
    words += [f"image {encoder.image}" + (f" of {c.resize}" if c.resize else ""), f"encoder in {c.precision}"]
    if kind == "knn":
        return ", ".join([*words, "centre crops, votes of the nearest by cosine similarity"])
    if kind == "logreg":
        return ", ".join([*words, "centre crops, logistic regression by L-BFGS"])
    a = c.augment
    shown = f"{c.views} views, encoded once" if a is None else f"augmented anew every epoch ({a})"
    words += [shown, f"{c.epochs} epochs", f"batch {c.batch}", f"AdamW {c.betas[0]:g} {c.betas[1]:g}"]
    if c.warmup_defect:
        words.append(f"no warm-up and its published defect: peaks are {c.warmup_start:g} of the rates named")
    elif c.warmup_epochs:
        words.append(f"warm-up {c.warmup_epochs:g} epochs from {c.warmup_start:g} of the rate")
    words.append(f"cosine to {c.min_lr:g}")
    return ", ".join([*words, f"clip {c.clip:g}", f"seed {c.seed}"])
