"""Pictures for the report: what models predict as they see more samples, and test images that a probe got wrong.

Both need more than run folders: checkpoints, and datasets that can still be opened. Where these are gone, the page says
so and leaves the pictures out.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.report.html import escaped, safe
from jobs.report.ledger import Run
from jobs.report.measured import Measured
from jobs.report.tables import human
from shards import manifest, store

ROWS = 4  # predicted images
COLUMNS = 5  # checkpoints, evenly spaced over samples seen
WRONG = 18  # test images
SIDE = 96  # pixels, the longest side of a stored picture
GONE = "the checkpoints, or the images to predict, are gone."


def predictions(found: Sequence[Measured], runs: Sequence[Run]) -> str:
    """One row per image: the image, then its prediction by each checkpoint of the most accurate training."""
    chosen = _checkpoints(found, runs)
    if not chosen:
        return ""
    data = _held_out(chosen[-1][0])
    if not data:
        return f"<p>Not shown: {GONE}</p>"
    try:
        rows = _predicted([url for _, url, _ in chosen], data)
    except (ValueError, OSError):
        return f"<p>Not shown: {GONE}</p>"
    heads = ["image", *(f"{human(seen)} samples" for _, _, seen in chosen), "free run"]
    top = "".join(f"<th>{escaped(head)}</th>" for head in heads)
    body = "".join(
        "<tr>"
        + "".join(f'<td><img src="{uri}" alt="image {number}, {escaped(head)}"></td>' for head, uri in zip(heads, row))
        + "</tr>"
        for number, row in enumerate(rows, 1)
    )
    text = (
        "Every block is predicted from the true blocks before it, and shown with the true block's mean and contrast; "
        "the first block, which is not predicted, shows its mean colour. In the free run, by the last checkpoint, only "
        "the first quarter is given; every other block is predicted from predictions. Held-out images."
    )
    return (
        f'<p>{escaped(chosen[-1][0].name)}. {text}</p><div class="wide" tabindex="0" role="region" '
        f'aria-label="predictions"><table class="pictures"><thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _checkpoints(found: Sequence[Measured], runs: Sequence[Run]) -> list[tuple[Run, str, int]]:
    """(run, checkpoint, samples seen) of the line and seed with the highest accuracy at the largest count."""
    most = max((m.row.samples_seen for m in found), default=0)
    best = max((m for m in found if m.row.samples_seen == most), key=lambda m: (m.accuracy, m.run.name), default=None)
    if best is None:
        return []
    mine = {m.run.url for m in found if m.line is best.line and m.seed == best.seed}
    at = {
        seen: (run, store.join(run.url, "checkpoints", f"{seen:012d}"), seen)
        for run in sorted(runs, key=lambda run: run.samples_seen)
        if run.url in mine
        for seen, commit in run.checkpoints.items()
        if _whole(run, seen, commit)
    }
    kept = [at[seen] for seen in sorted(at)]
    wanted = min(COLUMNS, len(kept))
    return [kept[round(k * (len(kept) - 1) / max(1, wanted - 1))] for k in range(wanted)]


def _whole(run: Run, seen: int, commit: Mapping[str, Any]) -> bool:
    names = [name for name in commit.get("files") or {} if name.endswith("model.safetensors")]
    folder = store.join(run.url, "checkpoints", f"{seen:012d}")
    return bool(names) and all(store.exists(store.join(folder, name)) for name in names)


def _held_out(run: Run) -> str:
    """The dataset of the held-out loss, else the training set, if it can be opened."""
    for address in ((run.config.get("val") or {}).get("data"), run.info.get("dataset")):
        if address and _opened(str(address)) is not None:
            return str(address)
    return ""


def _opened(address: str) -> manifest.Manifest | None:
    try:
        return manifest.read_manifest(address)
    except (ValueError, OSError):
        return None


def _predicted(checkpoints: Sequence[str], data: str) -> list[list[str]]:
    """Data URIs, [images][1 + checkpoints + 1]."""
    import torch

    from xtra import generate
    from xtra.data import normalise

    columns: list[np.ndarray] = []
    for at, url in enumerate(checkpoints):
        model = generate.load_model(url).eval()
        c = model.config
        order_K = generate.shown_order(c)
        _, pixels = generate.images(generate.Config(url, data, "-", samples=ROWS, rows=ROWS), c.image)
        images = normalise(pixels)
        with torch.no_grad():
            columns += [generate.to_pixels(images)] * (at == 0)
            columns.append(generate.to_pixels(generate.teacher_forced(model, images, order_K)))
            if at == len(checkpoints) - 1:
                columns.append(generate.to_pixels(generate.free_run(model, images, order_K, max(1, c.blocks // 4))))
    return [[_uri(column[row]) for column in columns] for row in range(len(columns[0]))]


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


# ---- test images that were got wrong ----


def mistakes(result: Mapping[str, Any]) -> str:
    """Some test images that a probe got wrong, with the true and the predicted class."""
    wrong = result.get("mistakes") or ()
    version = _opened(str(result.get("eval") or "")) if wrong else None
    if version is None or version.digest != result.get("manifest_eval"):
        return ""
    labels = [str(label) for label in result.get("labels") or ()]
    chosen = list(wrong)[:WRONG]
    try:
        bodies = _bodies(version, [int(row) for row, _, _ in chosen])
    except (ValueError, OSError):
        return ""
    figures = []
    for (row, is_class, taken), body in zip(chosen, bodies):
        if picture := _decoded(body):
            words = f"{_label(labels, is_class)}, predicted {_label(labels, taken)}"
            figures.append(
                f'<figure><img src="{picture}" alt="test image {int(row)}: {safe(words, 120)}">'
                f"<figcaption>{safe(words, 120)}</figcaption></figure>"
            )
    return f'<div class="thumbs">{"".join(figures)}</div>' if figures else ""


def _label(labels: Sequence[str], number: int) -> str:
    return labels[number] if 0 <= number < len(labels) else "nothing"


def _bodies(version: manifest.Manifest, rows: Sequence[int]) -> list[bytes]:
    """The stored bytes of samples, given by their number in the manifest's order."""
    from shards.selection import selected_index

    starts = np.concatenate([[0], np.cumsum(version.counts)])
    found = []
    for row in rows:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        index = selected_index(version, shard, ["offset", "length"]).slice(row - int(starts[shard]), 1).to_pylist()[0]
        found.append(store.read_range(version.tar_url(shard), index["offset"], index["length"]))
    return found


def _decoded(body: bytes) -> str:
    from jobs.report.survey import thumbnail

    jpeg = thumbnail(body, SIDE)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""
