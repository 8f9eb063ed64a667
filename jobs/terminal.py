"""The one door to the user's terminal: lines without the control characters that names and servers may bring."""

from __future__ import annotations

import sys
from typing import TextIO


def clean(text: str) -> str:
    """Printable: everything else, but for the ends of lines, becomes a replacement character."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def say(text: object = "", file: TextIO | None = None, flush: bool = False) -> None:
    """Print it. What strangers named (members of tars, hosts, sets, runs) cannot move the cursor or set a title."""
    print(clean(str(text)), file=file or sys.stdout, flush=flush)
