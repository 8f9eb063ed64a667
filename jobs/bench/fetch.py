"""Images per CPU second of our ingest against img2dataset's and Daft's: one origin, one list, one core for the client.

Each client runs as its users run it, one command from list to tars (Daft: a script, to Parquet), pinned to the first
core; the origin has the last one. CPU is the user + system time of the client's whole process tree, start-up included.
All outputs are read back, so that none wins by losing pictures. A ratio is ours over theirs on the long list: the
median of interleaved rounds.

Ratios that end in `_marginal` exclude start-up: they divide the additional images of a long list over a short one by
the additional CPU time. What is left of the short list's is start-up (`..._start_up_s`).

They do not check the same. Ours refuses private addresses, obeys robots.txt, caps and paces, and records a verdict, the
sha256 of every body and of every tar; in mode keep it reads each header, in mode decode it finds damage anywhere in the
data. img2dataset records the sha256 of bodies, and looks at no picture unless it resizes. Daft stores bytes; in mode
decode it decodes each picture and leaves out what fails, but its decoder accepts damaged data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.bench import result
from jobs.bench.origin import Served, serving
from jobs.bench.peers import environments

SHORT = 5  # the long list is this many times the short one
RESIZE = 384  # short side
SIDES = {"keep": "110000", "resize": "110000,181000,281000,462000"}  # bytes of 500x375, 640x480, 800x600, 1024x768


@dataclass(frozen=True)
class Config:
    """What to measure."""

    images: int = 10_000  # in the long list; resize uses a fifth of it, https a tenth
    rounds: int = 3
    modes: tuple[str, ...] = ("keep", "decode", "resize", "https")
    data: str | None = None  # a folder or tar of real JPEGs to serve; default: synthetic ones
    hosts: int = 4  # addresses in the list
    threads: int = 16  # of img2dataset; its best setting on the reference machine
    scratch: str | None = None  # a folder for lists and outputs: a few GB for 10,000 images

    def __post_init__(self) -> None:
        for name, least in (("images", 50), ("rounds", 1), ("hosts", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(f"modes has {mode!r}: give some of {', '.join(MODES)}")


@dataclass(frozen=True)
class Mode:
    """One comparison: the words of its ratios, each client's flags, and the divisor of Config.images."""

    ratios: tuple[str, ...]
    ours: tuple[str, ...]
    img2dataset: tuple[str, ...]
    daft: tuple[str, ...] | None = None  # None: not compared
    part: int = 1
    pictures: str = "keep"
    tls: bool = False

    @property
    def peers(self) -> tuple[str, ...]:
        return ("img2dataset",) if self.daft is None else ("img2dataset", "daft")


_RAW = ("--disable_all_reencoding=True",)
MODES = {
    "keep": Mode(("keep",), ("--filter.no-decode-check",), _RAW, ()),
    "decode": Mode(("full", "decode_check"), (), _RAW, ("--decode",)),
    "resize": Mode(
        ("resize",),
        (f"--filter.resize={RESIZE}", "--filter.quality=95"),
        (
            f"--image_size={RESIZE}",
            "--resize_mode=keep_ratio",
            "--resize_only_if_bigger=True",  # as ours: smaller pictures stay unchanged
            "--skip_reencode=True",
            "--encode_quality=95",
        ),
        part=5,
        pictures="resize",
    ),
    "https": Mode(("https_keep",), ("--filter.no-decode-check",), _RAW, part=10, tls=True),
}


@dataclass(frozen=True)
class Run:
    """One client's run over one list."""

    cpu: float  # seconds, over its whole process tree
    wall: float
    rss: int  # bytes, of its largest process
    kept: int


def run(config: Config) -> dict[str, Any]:
    """Measure the modes and print a line each. Raises ValueError if a client fails, or if their bodies differ."""
    pythons = {"img2dataset": environments.build(environments.IMG2DATASET)}
    if any("daft" in MODES[mode].peers for mode in config.modes):
        pythons["daft"] = environments.build(environments.DAFT)
    rows = []
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as name:
        for mode in config.modes:
            rows.append(_measure(config, mode, Path(name) / mode, pythons))
            print(_line(rows[-1]), flush=True)
    return result("fetch", rows, ratios_of(rows))


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        mode = MODES[row["mode"]]
        for word in mode.ratios:
            for peer in mode.peers:
                found[f"{word}_vs_{peer}"] = row[f"{peer}_ratio"]
                found[f"{word}_vs_{peer}_marginal"] = row[f"{peer}_ratio_marginal"]
                found[f"{word}_start_up_s_{peer}"] = row[f"{peer}_start_up_s"]
            found[f"{word}_start_up_s"] = row["ours_start_up_s"]
    return found


def _measure(config: Config, mode: str, folder: Path, pythons: dict[str, Path]) -> dict[str, Any]:
    spec = MODES[mode]
    long = max(50, config.images // spec.part)
    lengths = (long // SHORT, long)
    folder.mkdir()
    cores = sorted(os.sched_getaffinity(0))
    with serving(
        cpu=cores[-1],
        bytes=SIDES[spec.pictures],
        bodies=256,
        hosts=config.hosts,
        data=config.data,
        tls=folder / "tls" if spec.tls else None,
    ) as origin:
        clients = ("ours", *spec.peers)
        commands = {who: _command(who, spec, config, pythons) for who in clients}
        rounds = []
        for turn in range(config.rounds):
            # The order changes from round to round, so that none always runs on the warmer machine.
            order = clients[turn % len(clients) :] + clients[: turn % len(clients)]
            rounds.append(
                {
                    (who, length): _client(who, commands[who], _list(folder, origin, length), folder, cores[0], origin)
                    for length in lengths
                    for who in order
                }
            )
            _agree(mode, rounds[-1], folder, clients, lengths)
    return _row(mode, config, origin, lengths, rounds)


def _command(who: str, spec: Mode, config: Config, pythons: dict[str, Path]) -> list[str]:
    """A client's command, without list and output."""
    if who == "ours":
        return [sys.executable, "-m", "jobs.cli", "ingest", "--fetch.allow-private=127.0.0.0/8", *spec.ours]
    if who == "daft":
        return [str(pythons[who]), str(Path(__file__).with_name("peers") / "fetch.py"), *(spec.daft or ())]
    return [
        str(pythons[who].parent / who),
        "--input_format=txt",
        "--output_format=webdataset",
        "--extract_exif=False",  # we do not do this either
        f"--thread_count={config.threads}",
        *spec.img2dataset,
    ]


def _list(folder: Path, origin: Served, length: int) -> Path:
    path = folder / f"{length}.txt"
    path.write_text("".join(f"{origin.url(f'/ok/{n}.jpg', n)}\n" for n in range(length)))
    return path


def _client(who: str, command: list[str], urls: Path, folder: Path, core: int, origin: Served) -> Run:
    """Run one client to its end, on one core. Raises ValueError if it fails."""
    out = folder / f"{who}-{urls.stem}"
    shutil.rmtree(out, ignore_errors=True)
    words = {
        "ours": [f"--urls={urls}", f"--out={out}", f"--scratch={folder}"],
        "img2dataset": [f"--url_list={urls}", f"--output_folder={out}"],
        "daft": [f"--urls={urls}", f"--out={out}"],
    }
    env = environments.environment()
    if who == "ours":
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
    if origin.authorities:
        env["SSL_CERT_FILE"] = origin.authorities
    log = folder / f"{who}.log"
    with log.open("wb") as file:
        started = os.times().elapsed
        process = subprocess.Popen(
            [*command, *words[who]],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        _, status, usage = os.wait4(process.pid, 0)  # includes all children that it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = os.times().elapsed - started
    if process.returncode != 0:
        said = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise ValueError(f"{who} failed with status {process.returncode}: {said[-1]}")
    return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss << 10, sum(1 for _ in _bodies(out)))


def _bodies(out: Path) -> Iterator[bytes]:
    for path in sorted(out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read()
    for path in sorted(out.rglob("*.parquet")) if not any(out.rglob("*.tar")) else ():
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(256, columns=["body"]):
                yield from batch["body"].to_pylist()


def _agree(
    mode: str, runs: dict[tuple[str, int], Run], folder: Path, clients: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    """Require that all kept every image and, unless they re-encoded, the same bytes."""
    for length in lengths:
        for who in clients:
            kept = runs[who, length].kept
            if kept != length:
                raise ValueError(f"{mode}: {who} kept {kept} of {length} images; see {folder}")
        if mode != "resize":
            ours, *others = (
                sorted(hashlib.sha256(body).digest() for body in _bodies(folder / f"{who}-{length}")) for who in clients
            )
            for who, theirs in zip(clients[1:], others):
                if ours != theirs:
                    raise ValueError(f"{mode}: ours and {who} kept different bodies; see {folder}")


def _row(
    mode: str, config: Config, origin: Served, lengths: tuple[int, int], rounds: list[dict[tuple[str, int], Run]]
) -> dict[str, Any]:
    short, long = lengths

    def cost(runs: dict[tuple[str, int], Run], who: str) -> float:
        return runs[who, long].cpu / long

    def marginal(runs: dict[tuple[str, int], Run], who: str) -> float:
        return (runs[who, long].cpu - runs[who, short].cpu) / (long - short)

    row: dict[str, Any] = {
        "mode": mode,
        "images": long,
        "short_list": short,
        "mean_bytes": origin.mean_bytes,
        "hosts": config.hosts,
        "rounds": len(rounds),
    }
    for who in ("ours", *MODES[mode].peers):
        cpu_ms = 1000 * statistics.median(cost(runs, who) for runs in rounds)
        row |= {
            f"{who}_cpu_ms": cpu_ms,
            f"{who}_cpu_ms_marginal": 1000 * statistics.median(marginal(runs, who) for runs in rounds),
            f"{who}_start_up_s": statistics.median(
                runs[who, short].cpu - short * marginal(runs, who) for runs in rounds
            ),
            f"{who}_wall_s": statistics.median(runs[who, long].wall for runs in rounds),
            f"{who}_peak_rss_mb": max(runs[who, long].rss for runs in rounds) / 1e6,
            f"{who}_images_per_cpu_s": 1000 / cpu_ms,
        }
    for peer in MODES[mode].peers:
        for name, by in (("ratio", cost), ("ratio_marginal", marginal)):
            ratios = [by(runs, peer) / by(runs, "ours") for runs in rounds]
            row |= {f"{peer}_{name}": statistics.median(ratios), f"{peer}_{name}s": ratios}
    return row


def _line(row: dict[str, Any]) -> str:
    def figures(who: str) -> str:
        marginal, start_up = row[f"{who}_cpu_ms_marginal"], row[f"{who}_start_up_s"]
        return f"{row[f'{who}_cpu_ms']:.3f} ms CPU per image ({marginal:.3f} after {start_up:.2f} s of start-up)"

    lines = [f"{row['mode']:7} {row['images']:6,} images of {row['mean_bytes'] / 1000:.0f} KB:  ours {figures('ours')}"]
    for peer in MODES[row["mode"]].peers:
        each = row[f"{peer}_ratio_marginals"]
        lines.append(
            f"        {peer} {figures(peer)}:  {row[f'{peer}_ratio']:.2f}x ({row[f'{peer}_ratio_marginal']:.2f}x, "
            f"{min(each):.2f} to {max(each):.2f})"
        )
    return "\n".join(lines)
