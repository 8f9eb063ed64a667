"""What the end of a transfer means: a body, another place to ask, or a reason why there is neither."""

from __future__ import annotations

import errno
from typing import NamedTuple

import pycurl

from ingest.http.transfer import Slot
from ingest.lists import quote
from ingest.record import Reason

SILENT = (Reason.DNS, Reason.CONNECT, Reason.TIMEOUT)  # without a status: nobody answered


class Outcome(NamedTuple):
    """How a transfer ended, or a link that was not asked for."""

    reason: Reason | None = None  # why there is no body; None: there is one, or it leads elsewhere
    detail: str = ""
    status: int = 0  # 0: there was no answer
    target: str | None = None  # the URL that a redirect leads to
    network: bool = False  # it shows that there is a network: somebody answered, if only to refuse
    pause: int = 0  # seconds for which the host asks us to wait

    @property
    def silent(self) -> bool:
        """Nobody answered."""
        return not self.status and self.reason in SILENT


_RETRY_AFTER: int = getattr(pycurl, "RETRY_AFTER")  # noqa: B009 its stubs do not know it yet
_E_TOO_LARGE = 100  # a header line; pycurl has no name for it

_BY_ERROR = {
    Reason.DNS: (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY),
    Reason.TIMEOUT: (pycurl.E_OPERATION_TIMEDOUT,),
    Reason.BAD_URL: (pycurl.E_URL_MALFORMAT,),
    Reason.TLS: (
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_INVALIDCERTSTATUS,
        pycurl.E_SSL_SHUTDOWN_FAILED,
        pycurl.E_SSL_ENGINE_INITFAILED,
    ),
    Reason.TRUNCATED_BODY: (pycurl.E_PARTIAL_FILE, pycurl.E_BAD_CONTENT_ENCODING),
    Reason.TOO_LARGE: (pycurl.E_FILESIZE_EXCEEDED, _E_TOO_LARGE),
}
_REASON_OF = {code: reason for reason, codes in _BY_ERROR.items() for code in codes}


def reason_of_status(status: int) -> Reason:
    """The reason of a final HTTP status that is not a success."""
    if status == 429:
        return Reason.HTTP_429
    if status == 408:
        return Reason.TIMEOUT
    if status == 404:
        return Reason.HTTP_404
    if status == 410:
        return Reason.HTTP_410
    return Reason.HTTP_5XX if status >= 500 else Reason.HTTP_4XX


def outcome(slot: Slot, error: int, message: str) -> Outcome:
    """The outcome of a transfer that ended with libcurl's error and message; its data is still in the slot."""
    status = slot.status
    target = _redirect(slot) if 300 <= status < 400 else None
    reason, detail = (None, "") if target else _reason(slot, error, message)
    pause = slot.curl.getinfo(_RETRY_AFTER) if status in (429, 503) else 0
    return Outcome(reason, detail, status, target, _network(slot, error), pause)


def _reason(slot: Slot, error: int, message: str) -> tuple[Reason | None, str]:
    """Why a transfer that is not a redirect gave no body; (None, "") when it did."""
    if slot.ended is not None:
        return slot.ended
    if slot.status >= 300:
        return reason_of_status(slot.status), f"status {slot.status}"
    if error == 0:
        return slot.decode()
    if slot.refused and not slot.connected:
        return Reason.BLOCKED_ADDRESS, slot.refused
    broken = Reason.TRUNCATED_BODY if slot.size else Reason.CONNECT
    return _REASON_OF.get(error, broken), " ".join(f"curl {error}: {message}".split())[:200]


def _redirect(slot: Slot) -> str | None:
    """Where a transfer with a 3xx status leads, as a URL; None if it does not."""
    target = slot.curl.getinfo_raw(pycurl.REDIRECT_URL)
    return quote(target.decode("utf-8", "surrogateescape")) if target else None


def _network(slot: Slot, error: int) -> bool:
    if slot.status or error == 0:
        return True
    if error == pycurl.E_COULDNT_CONNECT:
        return not slot.config.proxy and slot.curl.getinfo(pycurl.OS_ERRNO) == errno.ECONNREFUSED
    return _REASON_OF.get(error) is Reason.TLS
