"""The only way to print to the user's terminal: removes control characters that names and servers may contain."""

from __future__ import annotations

import sys
from typing import TextIO


def clean(text: str) -> str:
    """The text with every unprintable character except line ends replaced by U+FFFD."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def say(text: object = "", file: TextIO | None = None, flush: bool = False) -> None:
    """Print it. Untrusted names (tar members, hosts, sets, runs) cannot move the cursor or set the title."""
    print(clean(str(text)), file=file or sys.stdout, flush=flush)
