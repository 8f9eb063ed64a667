"""The fetcher's settings, checked, and its user agent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingest.http.address import networks
from ingest.http.robots import PRODUCT

VERSION = "0.1"
PROJECT = "https://github.com/xtra-pretrain/xtra-pretrain"
RATE = 20.0  # requests/s to one host unless the user sets another rate


@dataclass(frozen=True)
class FetchConfig:
    """How to fetch. Times in seconds, sizes in bytes."""

    allow_private: tuple[str, ...] = ()  # private addresses or networks that may be fetched from
    per_host: int = 8  # concurrent transfers per host name
    per_host_rate: float | None = None  # requests/s to one host; 0: no limit; None: 20, but no limit for allow_private
    connections: int = 128  # concurrent transfers in total
    # time that the transfers of one link may take, including redirects and retries but not waiting
    deadline: float = 60.0
    # longest wait for a host while no other link can go on; waits for our own limits do not count
    patience: float = 300.0
    connect_timeout: float = 10.0  # time to open one connection, including TLS
    low_speed: int = 1000  # bytes/s; a transfer that is slower for low_speed_seconds times out
    low_speed_seconds: int = 15  # how long a transfer may be slower than low_speed
    max_bytes: int = 32 << 20  # largest body, after decompression; a larger one is cut off as it arrives
    retries: int = 2  # further attempts at a link in one run, after failures that may be temporary
    backoff: float = 1.0  # wait before the first retry; it doubles each time, with jitter
    redirects: int = 5  # redirects to follow for one link
    robots: bool = True  # obey robots.txt (RFC 9309, and Crawl-delay up to 10 s)
    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "none")  # words of X-Robots-Tag to obey
    max_pause: float = 120.0  # give up a host whose pauses (Retry-After) add up to more, with few successes
    breaker: int = 8  # pause a host for cool_off after this many failures in a row; three times as long the next time
    cool_off: float = 5.0  # first pause of a host after breaker failures in a row
    outage_limit: float = 3600.0  # how long to wait for a network that is down; 0: count every failure
    proxy: str = ""  # http(s) or socks5h proxy; it must check addresses itself, since we then cannot
    contact: str = ""  # address or page where site owners can reach you; becomes part of the user agent
    in_memory: int = 1 << 20  # bodies up to this size stay in memory; larger ones go to files in scratch

    def __post_init__(self) -> None:
        for name in ("per_host", "connections", "deadline", "patience", "connect_timeout", "max_bytes", "breaker"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fetch.{name} is {getattr(self, name)}: it must be more than 0")
        not_negative = ("retries", "redirects", "backoff", "low_speed", "low_speed_seconds", "max_pause", "cool_off")
        for name in (*not_negative, "outage_limit", "per_host_rate"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"fetch.{name} is {getattr(self, name)}: it must be 0 or more")
        if not self.contact.isprintable() or not self.contact.isascii():
            raise ValueError(f"fetch.contact is {self.contact!r}: use one line of plain ASCII")
        if self.proxy and not re.fullmatch(r"(https?|socks5h)://[^@/?#\s]+/?", self.proxy):
            raise ValueError(
                f"fetch.proxy is {self.proxy.rpartition('@')[2]!r}: give http://HOST:PORT, https:// or socks5h://, "
                "without a user name"
            )
        networks(self.allow_private)

    @property
    def user_agent(self) -> str:
        return f"{PRODUCT}/{VERSION} (+{PROJECT}{'; ' if self.contact else ''}{self.contact})"

    @property
    def rate(self) -> float:
        """Requests/s to one host; 0: no limit."""
        return RATE if self.per_host_rate is None else self.per_host_rate

    @property
    def unlimited(self) -> tuple[str, ...]:
        """The addresses to which no rate applies: those of allow_private, unless the user sets a rate."""
        return self.allow_private if self.per_host_rate is None else ()
