"""Which addresses may be connected to: public ones on the web's ports, and what the user allows by name."""

from __future__ import annotations

import ipaddress
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
    # No hint at a cloud's metadata service, or at what no server has: a list of strangers may well name these.
    nobody = inner.is_link_local or inner.is_multicast or inner.is_unspecified or inner.is_reserved
    return why if nobody else f"{why}; if it is yours: --fetch.allow-private {inner}"


def _unwrap(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo), where the packets would end up."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
