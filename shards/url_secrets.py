"""URLs that carry a secret: a user name, or a query parameter that grants access. These must not be written anywhere.

Datasets, runs and pages are shared, and a signed link or password in them would be shared, too. Keys of stores come
from the environment, so a place whose URL holds a secret is refused. The URLs of pictures are part of the user's list
and stay unchanged; the URLs that they redirect to are stored without secrets.
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
                f"{name} is a URL with a user name, signature or key, which would be stored: leave that out; keys "
                "come from the standard AWS variables or the machine's role"
            )


def masked(text: str) -> str:
    """A text, such as a list's line or an error, with user names and secret values in its URLs replaced by "…"."""
    if "://" not in text:
        return text
    return _VALUE.sub(r"\1…", _USER.sub("…@", text))


def without_secrets(url: str) -> str:
    """A URL without its user name and secret parameters; the same string if it has none."""
    if not carries_secret(url):
        return url
    try:
        parts = urlsplit(url)
        kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not _NAME.fullmatch(name)]
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, urlencode(kept), parts.fragment))
    except ValueError:
        return masked(url)
