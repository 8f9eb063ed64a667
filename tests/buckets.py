"""New buckets on the store that the AWS variables name, and the real store where one is given."""

from __future__ import annotations

import os
import threading
import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer


def start_moto() -> ThreadedMotoServer:
    """An S3 server in this process, for what does not need a real store.

    It looks whether a key is there and then writes it, in threads: puts take turns here, as If-None-Match promises.
    """
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, turn = S3Response.put_object, threading.Lock()

    def in_turn(self: S3Response) -> object:
        with turn:
            return put(self)

    S3Response.put_object = in_turn
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    return server


def bucket() -> str:
    """A new bucket on the store that the AWS variables name."""
    from shards import store_remote

    name = f"xtra-test-{uuid.uuid4().hex[:12]}"
    store_remote.client("s3://x/y")[0].mkdir(name)
    return f"s3://{name}"


def need_s3() -> None:
    if not os.environ.get("XTRA_TEST_S3"):
        pytest.skip("XTRA_TEST_S3 does not name the endpoint of a real S3 store")
    assert os.environ.get("AWS_ENDPOINT_URL") == os.environ["XTRA_TEST_S3"], "the AWS variables name another store"


# For tests of many seconds: in a folder always, on the other stores in `make test-all`.
buckets_are_slow = pytest.mark.parametrize(
    "base", ["local", *(pytest.param(store, marks=pytest.mark.slow) for store in ("moto", "s3"))], indirect=True
)
