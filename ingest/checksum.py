"""The md5, sha1 or sha256 that a list gives for a URL's bytes: parse it, and compare the fetched bytes.

The algorithm is known by the column's name or the length: 32, 40 or 64 hexadecimal digits, or 24, 28 or 44 characters
of base64 (as in Open Images and Google's TsvHttpData-1.0).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

SIZES = {"md5": 16, "sha1": 20, "sha256": 32}  # bytes
_HEX = re.compile("[0-9a-f]+")


def parse(text: str | None, column: str) -> str | None:
    """`algorithm:hexadecimal`, or `?` and the text if it is not a hash; None for an empty cell."""
    text = (text or "").strip()
    if not text:
        return None
    named = next((name for name in ("sha256", "sha1", "md5") if name in column.lower().replace("-", "")), None)
    start, colon, rest = text.partition(":")
    if colon and start.lower() in SIZES:  # sha256:e3b0…
        named, text = start.lower(), rest.strip()
    for name, size in SIZES.items():
        if named in (None, name) and (digits := _digits(text, size)):
            return f"{name}:{digits}"
    return f"?{text}"


def _digits(text: str, size: int) -> str:
    """The hexadecimal digits of a hash of `size` bytes; "" if the text is not one."""
    if len(text) == 2 * size:
        return text.lower() if _HEX.fullmatch(text.lower()) else ""
    if len(text) == 4 * -(-size // 3):
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            return ""
        return raw.hex() if len(raw) == size else ""
    return ""


def difference(body: bytes, sha256: str, expected: str | None) -> str:
    """How the bytes' hash differs from the expected one, in words; "" if it does not. `sha256` is that of the bytes."""
    if expected is None:
        return ""
    name, _, digits = expected.partition(":")
    if expected.startswith("?"):
        return f"the list says {expected[1:60]!r}, which is no md5, sha1 or sha256"
    own = sha256 if name == "sha256" else hashlib.new(name, body, usedforsecurity=False).hexdigest()
    return "" if own == digits else f"{name} is {own}, the list says {digits}"
