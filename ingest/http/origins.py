"""The known hosts and origins by name: found from a URL, evicted when there are too many."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from ingest.http.address import is_named_host, refusal
from ingest.http.hosts import Host, Manners, Origin
from ingest.http.robots import ANYTHING, Robots
from ingest.lists import MAX_URL, check_url
from ingest.record import Reason

MEMORY = 64 << 20  # bytes for the state of hosts without links
HOST_SIZE = 3072  # bytes of memory, about

_PLAIN = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]+)?)(?:[/?][!-~]*)?")


class Origins:
    """Finds the origin of a URL. `robots`: whether robots.txt is asked for; `shared`: whether hosts may be asked only
    with a lease; `guard`: the allowed addresses, where a proxy connects for us."""

    def __init__(self, manners: Manners, robots: bool, shared: bool, guard: tuple[str, ...] | None = None) -> None:
        self.hosts: dict[str, Host] = {}
        self._by_text: dict[str, Origin] = {}
        self._manners, self._robots, self._shared, self._guard = manners, robots, shared, guard
        self._robots_size = 0  # bytes of memory, about

    def locate(self, url: str) -> Origin | str:
        """The origin of a URL, or why we would never ask for it."""
        plain = _PLAIN.fullmatch(url) if len(url) <= MAX_URL else None
        if plain and (known := self._by_text.get(plain[1])):
            return known
        why = check_url(url)
        if why is not None:
            return why
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
        text = f"{parts.scheme}://[{name}]" if ":" in name else f"{parts.scheme}://{name}"
        if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
            text += f":{port}"
        return self._by_text.get(text) or self._new(text, name, port or 80)

    def _new(self, text: str, name: str, port: int) -> Origin:
        host_name = name.removesuffix(".")
        host = self.hosts.get(host_name)
        if host is None:
            limit = 0 if self._shared else self._manners.per_host
            host = self.hosts[host_name] = Host(host_name, self._manners, limit, self._manners.interval)
            host.unlimited = bool(self._manners.unlimited) and is_named_host(name, self._manners.unlimited)
            if self._guard is not None or _is_address(name):
                host.known_until = float("inf")
        origin = self._by_text[text] = Origin(text, host)
        host.origins.append(origin)
        if not self._robots:
            origin.robots, origin.until = ANYTHING, float("inf")
        if self._guard is not None and (why := _refused_literal(name, port, self._guard)):
            origin.failure, origin.until = (Reason.BLOCKED_ADDRESS, why), float("inf")
        return origin

    def one(self, text: str, number: int) -> Origin | None:
        """The origin of that text; if it is empty, the number-th known one."""
        if not text and self._by_text:
            text = list(self._by_text)[number % len(self._by_text)]
        return self._by_text.get(text)

    def evict(self, now: float, held: Callable[[Host], bool]) -> Iterator[Origin]:
        """Evict hosts that are idle and not `held` when the state of all hosts takes too much memory; yields their
        origins."""
        if self._size <= MEMORY:
            return
        for host in list(self.hosts.values()):
            if self._size <= MEMORY * 3 // 4:
                return
            paused = max(host.paused_until, host.closed_until) > now
            if not host.idle() or paused or held(host) or any(origin.asking for origin in host.origins):
                continue
            for origin in host.origins:
                self.forget_robots(origin)
                del self._by_text[origin.text]
                yield origin
            del self.hosts[host.name]

    @property
    def _size(self) -> int:
        return HOST_SIZE * len(self.hosts) + self._robots_size

    def learn_robots(self, origin: Origin, robots: Robots | None, failure: tuple[Reason, str] | None) -> None:
        """Keep the rules of an origin, or why there are none."""
        self._robots_size += robots.size if robots else 0
        origin.robots, origin.failure = robots, failure

    def forget_robots(self, origin: Origin) -> None:
        self._robots_size -= origin.robots.size if origin.robots else 0
        origin.robots = origin.failure = None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refused_literal(name: str, port: int, allowed: tuple[str, ...]) -> str | None:
    """Why an address in a URL may not be asked for through a proxy; the proxy checks names."""
    try:
        return refusal(name, port, allowed)
    except ValueError:
        return None
