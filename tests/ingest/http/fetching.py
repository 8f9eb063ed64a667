"""A fetcher as tests use it, with what it reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ingest.http.fetcher import FetchConfig, Fetcher
from ingest.record import Event, Fetched, Link


def config(**options: Any) -> FetchConfig:
    return FetchConfig(**{"allow_private": ("127.0.0.0/8",), "backoff": 0.01, "cool_off": 0.05, **options})


class Run:
    """A fetcher, the events it recorded, and the results of its URLs."""

    def __init__(self, leases: Any = None, **options: Any) -> None:
        self.events: list[Event] = []
        self.fetcher = Fetcher(config(**options), leases=leases, record=self.events.append)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetcher.close()

    def get(self, *urls: str) -> list[Fetched]:
        """In the order of the URLs."""
        return sorted(self.as_they_come(*urls), key=lambda f: f.link.row)

    def as_they_come(self, *urls: str) -> Iterator[Fetched]:
        links = [Link(f"k{row}", url, (), row) for row, url in enumerate(urls)]
        got = 0
        for fetched in self.fetcher.run(links):
            if fetched is not None:
                got += 1
                yield fetched
        assert got == len(urls)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def text(body: str, status: int = 200, **headers: str) -> Callable[[Any], None]:
    return lambda handler: handler.reply(body.encode(), status, **headers)
