"""The flags of `xtra submit`: a command is checked here by its own parser before it is sent to a cluster."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jobs.flags import Call, Help, Stopped, nearest, parse
from jobs.terminal import say

ACTIONS = ("list", "logs", "stop", "wait")
HERE = (
    "submit",
    "deploy",
    "doctor",
    "status",
    "peek",
    "plan",
)  # verbs about the machine they run on, or quick ones
ON_WORKERS = ("train", "ingest", "scale")  # workers do their work; the driver itself does that of all others
PLACES = ("urls", "out", "data", "source", "dataset", "runs", "ledger", "url", "checkpoint", "train", "eval", "rows")
AGAIN_SECONDS = 5.0  # in which a second Ctrl-C stops the job
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Config:
    """Flags of `xtra submit` itself; they come before the verb."""

    address: str = ""  # the cluster's dashboard, http://HOST:8265; RAY_API_SERVER_ADDRESS or RAY_ADDRESS if empty
    wait: bool = True  # follow the job to its end, showing its output and returning its exit status
    name: str = ""  # name of the job, before its number; VERB-<last part of --out> if empty
    on: tuple[str, ...] = ()  # KEY=VALUE labels of the node to run the driver on
    driver_cpus: float | None = None  # CPUs for the driver; None: 1 for verbs that work in it (not on the head), else 0
    driver_gpus: float = 0.0  # GPUs for the driver
    driver_memory: str = ""  # memory for the driver, such as 4G
    code: Literal["image", "here"] = "image"  # which code to run. here: send this checkout; image: the cluster image's
    retries: int = 3  # how often a job whose node or head died is resubmitted


class _Checked(BaseException):
    """Carries a verb's parsed config, raised instead of doing its work."""

    def __init__(self, made: list[Any]) -> None:
        self.made = made


class _Checking(Call):
    def _read(self, *words: Any, **more: Any) -> NoReturn:
        raise _Checked(super()._read(*words, **more))


def submit(call: Call, verbs: Mapping[str, Any]) -> Any:
    """`xtra submit [--flags] VERB …`, and `xtra submit list | logs ID | stop ID | wait ID`."""
    flags, rest = _split(call.words)
    also = f"These flags come before VERB. Jobs: xtra submit {' | '.join(ACTIONS)}."
    settings = parse(Config, flags, "xtra submit", page=Help("xtra submit VERB …", also, call.examples))
    if not rest:
        raise ValueError(f"VERB is missing: give a verb, or one of {', '.join(ACTIONS)}")
    if rest[0] in ACTIONS:
        return _action(call, rest[0], rest[1:], flags)
    verb, words = rest[0], list(rest[1:])
    if verb not in verbs or verb in HERE:
        there = [name for name in verbs if name not in HERE]
        what = "runs here, at once" if verb in verbs else "is not a verb"
        raise ValueError(f"{verb!r} {what}{nearest(verb, [*there, *ACTIONS])}: give one of {', '.join(there)}")
    made = check(verb, verbs[verb], words)
    wanted = _wanted(settings, verb, [*words, *(["--json"] if call.json else [])], made)
    from jobs import cluster

    jobs = cluster.Jobs(settings.address)
    job = jobs.submit(wanted)
    say(f"{job}: submitted to {jobs.head.address}", file=sys.stderr, flush=True)
    if not settings.wait:
        say(f"xtra submit logs {job} follows it, xtra submit stop {job} stops it", file=sys.stderr)
        return {"job": job, "address": jobs.head.address}
    return _wait(call, jobs, job, wanted, settings.retries)


def check(verb: str, made: Any, words: Sequence[str]) -> list[Any]:
    """What a verb parses from its words, its config last. Raises ValueError as the verb would; starts nothing."""
    checking = _Checking(verb, made.takes, list(words))
    try:
        made.run(checking)
    except _Checked as checked:
        found = checked.made
    else:
        raise AssertionError(f"{verb} has no config")
    if verb == "train" and (probes := Call("train", "", list(words)).prefixed("probe")):
        from jobs import probe_verb

        probe_verb.read_beside(probes)
    for field in dataclasses.fields(found[-1]):
        value = getattr(found[-1], field.name)
        if field.name in PLACES and isinstance(value, str) and value and not re.match(r"/|[a-z0-9+]+://", value):
            raise ValueError(
                f"--{field.name.replace('_', '-')} is {value!r}; on a cluster that is a path inside the job's own "
                "folder: give a bucket's URL, or an absolute path that every node has"
            )
    return found


def _wanted(settings: Config, verb: str, words: list[str], made: list[Any]) -> Any:
    from jobs import cluster

    folder = next((str(value) for name in ("out", *PLACES) if (value := getattr(made[-1], name, ""))), "")
    cpus = settings.driver_cpus
    if cpus is None:  # 0 if workers do the work and the driver only waits for them
        cpus = 0.0 if verb in ON_WORKERS or (verb == "probe" and made[0].wanted().most > 1) else 1.0
    if settings.name and not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", settings.name):
        raise ValueError(f"--name is {settings.name!r}; it must be letters, digits, '_', '.' and '-'")
    for name, number in (("driver-cpus", cpus), ("driver-gpus", settings.driver_gpus), ("retries", settings.retries)):
        if not number >= 0:
            raise ValueError(f"--{name} is {number}; it must be 0 or more")
    return cluster.Submission(
        words=(verb, *words),
        base=settings.name or cluster.name_of(verb, folder),
        folder=folder,
        code=settings.code,
        cpus=cpus,
        gpus=settings.driver_gpus,
        memory=_bytes(settings.driver_memory),
        on=dict(_pair(text) for text in settings.on),
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text)
    if text and found is None:
        raise ValueError(f"--driver-memory is {text!r}; it must be a number of bytes, such as 4G")
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value) or "," in text:
        raise ValueError(f"--on is {text!r}; it must be KEY=VALUE, a label of nodes")
    return name, value


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of submit itself, and the words from the verb on."""
    single = {"--wait", "--no-wait", "--help", "-h"}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        flag = words[at]
        at += 1 if flag in single or "=" in flag else 2
        while flag == "--on" and at < len(words) and re.match(r"[^-=]+=", words[at]):
            at += 1
    return list(words[:at]), list(words[at:])


# --- existing jobs ---


def _action(call: Call, action: str, words: list[str], before: list[str]) -> Any:
    asked = Call(f"submit {action}", "" if action == "list" else "ID", words, json=call.json)
    job = asked.first()
    prog = f"xtra submit {action}"
    settings = parse(Config, [*before, *asked.words], prog, page=Help(f"{prog} {asked.takes}".strip()))
    if action == "list" and job is not None:
        raise ValueError(f"list takes no word, but {job!r} was given: xtra submit wait {job} waits for a job")
    if action != "list" and job is None:
        raise ValueError(f"ID is missing: xtra submit {action} ID; xtra submit list shows them")
    from jobs import cluster

    jobs = cluster.Jobs(settings.address)
    if action == "list":
        return _list(jobs)
    wanted = jobs.known(str(job))
    if action == "stop":
        return _stop(call, jobs, str(job), wait=settings.wait)
    return _wait(call, jobs, str(job), wanted, settings.retries if action == "wait" else 0)


def _list(jobs: Any) -> Any:
    found = [
        {
            "job": job.submission_id,
            "status": str(job.status.value),
            "exit_code": job.driver_exit_code,
            "since": _moment(job.start_time),
            "until": _moment(job.end_time),
            "entrypoint": job.entrypoint,
        }
        for job in jobs.head.jobs()
    ]
    width = max((len(str(row["job"])) for row in found), default=0)
    for row in found:
        code = "" if row["exit_code"] is None else str(row["exit_code"])
        say(f"{row['job']:<{width}}  {row['status']:<9} {code:>3}  {row['since']:<19}  {row['entrypoint']}")
    if not found:
        say(f"{jobs.head.address}: no jobs", file=sys.stderr)
    return {"jobs": found}


def _moment(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000)) if milliseconds else ""


def _stop(call: Call, jobs: Any, job: str, wait: bool) -> Any:
    from jobs import cluster

    info = jobs.head.info(job)
    if info.status.is_terminal():
        say(f"{job}: has already ended ({info.status.value})", file=sys.stderr)
        return {"job": job, "status": str(info.status.value)}
    jobs.head.stop(job)
    say(f"{job}: stopping: it has {cluster.STOP_SECONDS} s to save", file=sys.stderr, flush=True)
    stop = call.stoppable()
    until = time.monotonic() + cluster.STOP_SECONDS + 30
    while wait and not info.status.is_terminal() and not stop.is_set() and time.monotonic() < until:
        time.sleep(0.5)
        info = jobs.head.info(job) or info
    if info.status.is_terminal():
        say(f"{job}: {info.status.value}")
    return {"job": job, "status": str(info.status.value)}


def _wait(call: Call, jobs: Any, job: str, wanted: Any, retries: int) -> Any:
    """Show the job's output as it comes, then take its exit status and, with --json, its last line."""
    from jobs import cluster

    shown = Shown(call.json)
    now = [job]
    stop = call.stoppable()
    call.on_stop = lambda: None
    follower = cluster.Follower(jobs.head, stop.is_set, _remark, shown.line)
    try:
        ended = jobs.wait(job, wanted, retries, is_done, follower, now.append)
        if ended is None:
            call.quiet = True  # the job was not stopped, and a rerun would find it running
            _offer(now[-1])
            return None
    except Stopped:
        jobs.head.stop(now[-1])
        say(f"{now[-1]}: stopping: it has {cluster.STOP_SECONDS} s to save", file=sys.stderr)
        raise
    call.on_stop = None
    call.exit_code = ended.exit_code
    error = shown.error if ended.exit_code and not ended.lost else ""
    if ended.why and not error:
        _remark(f"{ended.job}: {ended.why}")
    elif error and shown.last != error:
        say(error, file=sys.stderr)  # after Ray's last output
    return shown.result


def _remark(words: str) -> None:
    say(f"xtra submit: {words}", file=sys.stderr, flush=True)


def _offer(job: str) -> None:
    """Say that the job was not stopped and how to stop it, and wait for a second Ctrl-C."""
    say(
        f"{job} goes on: xtra submit wait {job} follows it again, xtra submit stop {job} stops it; "
        f"Ctrl-C within {AGAIN_SECONDS:.0f} s stops it now",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(AGAIN_SECONDS)


def is_done(folder: str) -> bool:
    """Whether a run or a dataset is finished, by its folder alone; False if that cannot be read."""
    from jobs import status
    from shards.store import StoreError

    try:
        found = status.read_status(folder)
    except (ValueError, OSError, StoreError):
        return False
    return len(found) == 1 and status.finished(found[0])


class Shown:
    """Shows a job's lines on our own output. With --json the last one is held back, to end this command's output."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json
        self.result: Any = None
        self.last = ""
        self.error = ""  # the last error line of the verb

    def line(self, line: str) -> None:
        self.last = line if line.strip() else self.last
        if re.match(r"xtra [a-z]+(?: [a-z-]+)?: ", line):
            self.error = line
            say(line, file=sys.stderr, flush=True)
            return
        if self.json and line.startswith("{"):
            self.result = _object(line)
            return
        say(line.expandtabs(), file=sys.stderr if self.json else sys.stdout, flush=True)


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
