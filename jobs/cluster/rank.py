"""One rank of a group: every run in turn, with torch.distributed already set up by Ray Train."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import ray.train

from jobs.cluster.desk import Talk
from shards.pixels import leave_no_core


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The results of the runs, up to the first that was stopped.

    Raises ValueError for the reasons of train.run(), a plain one that any process can unpickle.
    """
    from xtra import train
    from xtra.run import say_driver, stalled

    leave_no_core()
    say_driver(job["driver"])
    rank = ray.train.get_context().get_world_rank()
    talk = Talk(job["desk"], job["group"], job["stall"], rank)
    results: list[dict[str, Any]] = []
    try:
        for config in job["configs"]:
            talk.begin(functools.partial(stalled, config.out, rank))
            result = train.run(config, talk.stop, functools.partial(talk.note, config.out))
            results.append(dataclasses.asdict(result))
            if result.stopped:
                break
    except ValueError as error:
        raise ValueError(str(error)) from None
    finally:
        talk.close()
    return {"results": results}
