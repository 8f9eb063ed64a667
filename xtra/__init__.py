"""XTRA: a block-causal vision transformer pretrained by predicting the next block of pixels (arXiv 2411.15648).

These functions are the commands in Python (docs/api.md). torch is imported when one of them is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.stream import Dataset
    from xtra.model import Encoder
    from xtra.probe import ProbeResult, embedding
    from xtra.train import Config, TrainResult

__all__ = ["embed", "evaluate", "load", "pretrain"]

Place = str | os.PathLike[str]


def load(path: Place) -> Encoder:
    """The trained encoder, in eval mode, from a run folder (its newest checkpoint), a checkpoint folder, or an official
    checkpoint (a .ckpt file or a DeepSpeed folder).

    Raises ValueError naming the file if there is none or it does not fit.
    """
    from xtra import official
    from xtra.run import checkpoint

    path = os.fspath(path)
    return official.load_encoder(path) if official.is_official(path) else checkpoint.load_encoder(path)


def embed(
    encoder: Encoder | Place, /, dataset: Dataset | Place, out: Place, *, progress: bool = True, **settings: Any
) -> embedding.Embedded:
    """Write the vectors of a dataset's pictures to `out`, as Parquet files of key, label, vector; a rerun makes the
    missing parts. `settings`: the fields of `xtra.probe.embedding.Config`, the flags of `xtra embed`.

    `encoder` is one from `load`, which is not modified, or a path that `load` accepts. Raises ValueError for missing
    inputs, an unknown setting, and an `out` that contains something else.
    """
    from shards.bar import bar
    from shards.typed_json import changed
    from xtra.probe import embedding

    words = {"data": _address(dataset), "out": os.fspath(out)}
    given = _named(encoder, words)
    config = changed(embedding.Config(), settings | words)
    with bar("images", progress) as report:
        return embedding.run(config, report, encoder=given)


def evaluate(
    encoder: Encoder | Place,
    /,
    train: Dataset | Place,
    eval: Dataset | Place,  # noqa: A002  (the flag's own name)
    *,
    progress: bool = True,
    **settings: Any,
) -> list[ProbeResult]:
    """Probe a frozen encoder: train heads on one labelled set, evaluate them on another; one result per kind of head.
    `settings`: the fields of `xtra.probe.Config`, the flags of `xtra probe`.

    `encoder` is one from `load`, which is not modified, or what `xtra probe` accepts: then the results are also written
    to `out`, or the run's folder. Raises ValueError for missing inputs, sets without usable labels, and an unknown
    setting.
    """
    from shards import scratch
    from shards.bar import bar
    from shards.typed_json import changed
    from xtra import probe
    from xtra.device import chosen

    words = {"train": _address(train), "eval": _address(eval)}
    given = _named(encoder, words)
    config = changed(probe.Config(), settings | words | {"device": chosen(settings.get("device", "auto"))})
    with bar("images", progress) as report, scratch.folder("xtra-evaluate-") as aside:
        if given is not None and not config.out:
            config = changed(config, {"out": str(aside)})
        return probe.run(config, lambda what, done, total: report(done, total, what), given)


def pretrain(
    config: Config | str,
    *,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> TrainResult:
    """Train in this process, without Ray, until `samples` are seen; a rerun continues from the newest checkpoint.
    `config` is the name of a recipe or a complete Config; `settings` are its fields, like the flags of `xtra train`, at
    least `data` and `out`; a dict changes fields of a nested config (`optim={"lr": 1e-3}`).

    `stop` is called after every step; True ends the run with a checkpoint. Raises ValueError for missing inputs, an
    unknown setting, a run that was begun with other settings, and a run that another process is provably working on.
    """
    from shards.bar import bar
    from shards.typed_json import changed
    from xtra import recipes, train
    from xtra.run import at_work, attempts

    whole = changed(recipes.get(config) if isinstance(config, str) else config, settings)
    newest = max(attempts(whole.out), default=0) if whole.out else 0
    if newest and (other := at_work(whole.out, newest)) is not None and other.proved:
        raise ValueError(f"{other}: wait for it or stop it")
    with bar("samples", progress) as report:

        def show(row: dict[str, Any]) -> None:
            if "remark" in row:
                logging.getLogger("xtra").info(row["remark"])
            else:
                report(row["samples_seen"], row["samples"], note=f"loss {row['loss']:.4f}" if row["loss"] else "")

        return train.run(whole, stop, show)


def _named(encoder: Encoder | Place, words: dict[str, str]) -> Encoder | None:
    """The encoder, if one was passed; if it was named, None, and the flags that name it are added to `words`."""
    if not isinstance(encoder, str | os.PathLike):
        return encoder
    name = os.fspath(encoder)
    words |= {"encoder": name} if name.startswith(("timm:", "torch:")) else {"checkpoint": name}
    return None


def _address(dataset: Dataset | Place) -> str:
    """The address of a dataset version, open or named."""
    if isinstance(dataset, str | os.PathLike):
        return os.fspath(dataset)
    return f"{dataset.manifest.dataset}@{dataset.manifest.digest}"
