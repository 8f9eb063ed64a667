"""Rows of the attack that mutate files: each round in a forked child that may take 5 s of CPU and 1 GB, and no more."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mutators

SECONDS = 5  # of CPU
MEMORY = 1 << 30  # bytes
WALL = 120.0  # seconds, on a machine that has other things to do
BATCH = 500  # JPEGs that one process takes
SOURCES = Path(__file__).resolve().parents[2] / "shards" / "pixels"
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def random_of(row: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{row} {seed} {number}")


def apart(act: Callable[[], object]) -> str:
    """Do it in a forked child: "fine", "refused" where it raised a ValueError, else what went wrong in words."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "fine"
        try:
            os.close(read)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            _limit()
            said = str(act() or "fine")
        except ValueError as error:
            said = "refused" if "\n" not in str(error) else f"several lines: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            os.write(write, said[:400].encode("utf-8", "replace"))
            os._exit(0)
    os.close(write)
    status = _wait(pid)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    if status is None:
        return f"takes longer than {WALL:.0f} s"
    if status != 0 or not said:
        return f"died: {signal.Signals(-status).name if status < 0 else status}"
    return said


def _limit() -> None:
    """From what this process has by now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))


def _wait(pid: int) -> int | None:
    """The exit status, below 0 for a signal; None where it had to be killed."""
    until, pause = time.monotonic() + WALL, 0.001
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def prepared(folder: Path, make: str) -> Path:
    """What a function of `wrong_json` makes in the folder, by a process of its own, so that this one has no threads."""
    code = f"import pathlib, sys, wrong_json; wrong_json.{make}(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=_environment())
    return folder


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


# --- pictures ------------------------------------------------------------------------------------------------------


def build(folder: Path) -> Path:
    """The C libraries with their driver, under ASAN and UBSAN."""
    made = folder / "fuzz_jpeg"
    objects = []
    renamed = tuple(f"-Dcrop_{name}=plain_{name}" for name in ("views", "shrink", "sizes", "codec", "fast"))
    for number, (source, flags) in enumerate(
        (
            (SOURCES / "entropy.c", ("-std=c11",)),
            (SOURCES / "crop.c", ("-std=gnu11", "-ffp-contract=off")),
            (SOURCES / "crop.c", ("-std=gnu11", "-ffp-contract=off", *renamed)),
            (Path(__file__).with_name("fuzz_jpeg.c"), ("-std=c11", "-Wall", "-Wextra")),
        )
    ):
        objects.append(str(folder / f"{number}.o"))
        subprocess.run(["cc", *SANITIZED, *flags, "-c", "-o", objects[-1], str(source)], check=True)
    subprocess.run(["cc", *SANITIZED, "-o", str(made), *objects, "-ljpeg", "-lm"], check=True)
    return made


def jpegs(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    driver = build(folder)
    for begin in range(first, last, BATCH):
        numbers = range(begin, min(begin + BATCH, last))
        bodies = [_record(random_of("jpeg", seed, number)) for number in numbers]
        done = subprocess.run([str(driver)], input=b"".join(bodies), capture_output=True)
        if done.returncode == 0:
            slow = float(done.stdout.split()[-1]) > SECONDS
            yield from ["one takes too long" if slow else "fine"] * len(numbers)
            continue
        said = done.stderr.decode("utf-8", "replace")
        where = [line for line in said.splitlines() if line.isdigit()]
        report = next((line for line in said.splitlines() if "ERROR" in line or "runtime error" in line), "died")
        yield f"JPEG {begin + int(where[-1] if where else 0)}: {report}"
        yield from ["fine"] * (len(numbers) - 1)


def _record(rng: random.Random) -> bytes:
    body = mutators.jpeg(rng)
    side = rng.randint(1, 64)
    view = [rng.randrange(20), rng.randrange(20), rng.randint(1, 60), rng.randint(1, 60), side, side, 0, 0, 0]
    if rng.random() < 0.5:
        view[4:9] = [side + rng.randrange(200), side + rng.randrange(200), 0, 0, 1]
    if rng.random() < 0.05:
        view[rng.randrange(8)] = rng.randint(-(1 << 31), (1 << 31) - 1)
    return struct.pack("<11i", len(body), side, *view) + body


def images(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    from ingest.filter import FilterConfig, judge
    from ingest.record import Fetched, Link

    rules = FilterConfig(min_side=1)

    def act(body: bytes) -> str:
        found = judge(Fetched(Link("k", "http://a/1", (), 0), body, None, "", 200, "", 1, 0, 0.0), rules)
        return "fine" if found.picture is not None else "refused"

    for number in range(first, last):
        body = mutators.picture(random_of("image", seed, number))
        yield apart(lambda body=body: act(body))  # type: ignore[misc]


# --- files that are read ---------------------------------------------------------------------------------------------


def tars(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    from ingest.filter import FilterConfig
    from ingest.sets import folders, in_place

    path = folder / "mutated.tar"
    config = folders.Config(str(path), str(folder / "out"), filter=FilterConfig(min_side=1))
    for number in range(first, last):
        path.write_bytes(mutators.tar(random_of("tar", seed, number)))
        yield apart(lambda: in_place._index(config, str(path), None, lambda: False) and None)


def tables(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    from shards import check, dataset, manifest, rules, selection
    from shards.stream import index

    made = prepared(folder, "make_dataset") / "dataset"
    url = str(made)
    names = sorted(path for folder in ("shards", "links", "manifests") for path in (made / folder).glob("*.parquet"))

    def act(choice: int) -> None:
        version = manifest.read_manifest(url)
        if choice == 0:
            check.run(check.Config(url, jobs=1))
        for number in range(len(version.shards)):
            selection.selected_index(version, number)
            index.read_index(version, number)
            dataset.read_plan(url, number)
        if version.rules:
            list(rules.verify(url, version.rules))

    act(0)  # what is not damaged can be read
    for number in range(first, last):
        rng = random_of("parquet", seed, number)
        path = rng.choice(names)
        whole, choice = path.read_bytes(), rng.randrange(3)
        path.write_bytes(mutators.parquet(whole, rng))
        yield apart(lambda choice=choice: act(choice))  # type: ignore[misc]
        path.write_bytes(whole)


def objects(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    import wrong_json

    prepared(folder, "make_dataset")
    run = prepared(folder, "make_run") / "runs/one"
    shutil.copytree(run, folder / "whole")
    import jobs.report.scaling
    import jobs.status  # noqa: F401

    readers: list[tuple[Path, tuple[str, ...]]] = []
    readers += [(folder / "dataset" / name, words) for name, words in wrong_json._read_by(folder / "dataset")]
    own = [path for path in sorted(run.rglob("*.json")) if "probes" not in path.parts]
    readers += [(path, (verb, str(run))) for path in own for verb in ("report", "status")]
    readers += [(path, ("report", str(run))) for path in sorted((run / "probes").glob("*.json"))]

    for words in {words[0]: words for _, words in readers}.values():  # imports what the verb needs, once
        assert wrong_json.command(*words)[0] == "read", words

    def act(words: tuple[str, ...]) -> str:
        outcome, _ = wrong_json.command(*words)
        return {"read": "fine", "one line": "refused"}.get(outcome, outcome)

    for number in range(first, last):
        rng = random_of("json", seed, number)
        path, words = rng.choice(readers)
        whole = path.read_bytes()
        path.write_bytes(mutators.json_object(whole, rng))
        yield apart(lambda words=words: act(words))  # type: ignore[misc]
        path.write_bytes(whole)


def checkpoints(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    from xtra.official import read_official

    path = folder / "mutated.ckpt"
    for number in range(first, last):
        path.write_bytes(mutators.checkpoint(random_of("pickle", seed, number)))
        yield apart(lambda: read_official(str(path)) and None)


def robots(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    from ingest.http import robots as rules

    def act(text: bytes, paths: list[str]) -> str:
        parsed = rules.parse(text)
        began = time.process_time()
        for path in paths:
            parsed.allows(path)
        each = (time.process_time() - began) / len(paths)
        return f"{1000 * each:.1f} ms a URL" if each > 0.002 else "fine"

    for number in range(first, last):
        rng = random_of("robots", seed, number)
        text = mutators.robots(rng)
        paths = ["/" + "".join(rng.choices("ab/%.*z", k=rng.randrange(1900))) for _ in range(20)]
        yield apart(lambda text=text, paths=paths: act(text, paths))  # type: ignore[misc]
