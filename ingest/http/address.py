"""Which addresses may be connected to: public ones on the web's ports, and what the user allows by name."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@lru_cache
def networks(allowed: tuple[str, ...]) -> tuple[_Network, ...]:
    """Parse a user's list. Raises ValueError naming the entry that is neither an address nor a network."""
    parsed = []
    for text in allowed:
        try:
            parsed.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise ValueError(f"fetch.allow_private: {text!r} is not an address or network like 10.0.0.0/8") from None
    return tuple(parsed)


def refusal(ip: str, port: int, allowed: tuple[str, ...]) -> str | None:
    """Why an address may not be connected to, with the flag that allows it where it may be the user's own; or None."""
    address = ipaddress.ip_address(ip.split("%")[0])
    inner = _unwrap(address)
    if any(candidate in network for candidate in (address, inner) for network in networks(allowed)):
        return None
    public = inner.is_global and not inner.is_multicast and (inner.version == 4 or inner in _GLOBAL_V6)
    if public and port in (80, 443):
        return None
    why = f"port {port} is not 80 or 443" if public else f"{ip} is not a public address"
    # No hint for a cloud's metadata service or an address that no server has: a stranger's list may name these.
    no_hint = inner.is_link_local or inner.is_multicast or inner.is_unspecified or inner.is_reserved
    return why if no_hint else f"{why}; if it is yours: --fetch.allow-private {inner}"


def is_named(addresses: Iterable[str], allowed: tuple[str, ...]) -> bool:
    """Whether the user allows by name all of these addresses that may be connected to at all."""
    known = [ipaddress.ip_address(text.split("%")[0]) for text in addresses]
    inside = [any(_unwrap(each) in net or each in net for net in networks(allowed)) for each in known]
    open_to_all = (refusal(str(each), 443, ()) is None for each, named in zip(known, inside) if not named)
    return any(inside) and not any(open_to_all)


def is_named_host(name: str, allowed: tuple[str, ...]) -> bool:
    """The same for a host in a URL, without a DNS look-up: an address, or a name of this machine (RFC 6761)."""
    name = name.strip("[]").removesuffix(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return is_named(("127.0.0.1", "::1"), allowed)
    try:
        return is_named((name,), allowed)
    except ValueError:
        return False


def _unwrap(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo), where the packets would end up."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
