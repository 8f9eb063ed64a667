"""URLs that carry a secret: a user name, or a query parameter that grants access. None may get into what we write.

A dataset, a run or a page is shared; a signed link or a password in one of them is shared with it. Keys of stores come
from the environment, so a place whose URL holds one is refused. URLs of pictures are somebody's list and stay as they
are; where a server redirected them is stored without what it signed.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_WORDS = "sig|signature|token|key|key-?id|key-pair-id|credentials?|password|passwd|secret|policy"
_NAMES = rf"(?:x-(?:amz|goog|ms)-[\w-]*|[\w-]*(?:{_WORDS}))"
_NAME = re.compile(_NAMES, re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/?#\s@]*@")
_VALUE = re.compile(rf"((?:^|[?&;])({_NAMES})=)[^&;#\s]+", re.IGNORECASE)


def carries_secret(url: str) -> bool:
    """Whether a URL has a user name or a query parameter named like a signature, token, key or password."""
    if "://" not in url or not ("?" in url or "@" in url):
        return False
    if _USER.search(url):
        return True
    query = url.partition("?")[2].partition("#")[0]
    return any(_NAME.fullmatch(part.partition("=")[0]) for part in re.split("[&;]", query) if part)


def refuse_secrets(**places: str) -> None:
    """Raises ValueError naming the place, without its URL."""
    for name, url in places.items():
        if carries_secret(url):
            raise ValueError(
                f"{name} is a URL with a user name, signature or key, which would be stored: give it without; keys "
                "come from the standard AWS variables or the machine's role"
            )


def masked(text: str) -> str:
    """Any text, such as a line of a list or an error: user names and secret values in it become "…"."""
    if "://" not in text:
        return text
    return _VALUE.sub(r"\1…", _USER.sub("…@", text))


def without_secrets(url: str) -> str:
    """A URL without its user name and its secret parameters; the same string where it has none."""
    if not carries_secret(url):
        return url
    try:
        parts = urlsplit(url)
        kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not _NAME.fullmatch(name)]
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, urlencode(kept), parts.fragment))
    except ValueError:
        return masked(url)
