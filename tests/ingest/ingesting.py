"""Lists of URLs of the test origin, ingested, and what a dataset then holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from origin import Origin

from ingest.http.fetcher import FetchConfig
from ingest.run import IngestResult
from shards import manifest, store
from shards.dataset import (
    committed_units,
    read_commit,
    read_table,
)

FETCH = FetchConfig(allow_private=("127.0.0.1",), backoff=0.01, deadline=5, connections=16, max_bytes=1 << 20)


# path -> verdict; a line that is no path stands as it is.
MIXED = {
    **{f"/ok/{n}.jpg": "kept" for n in range(20)},
    "/ok/a.png": "kept",
    "/ok/a.gif": "kept",
    "/status/404": "http_404",
    "/status/410": "http_410",
    "/status/403": "http_4xx",
    "/status/500": "http_5xx",
    "/status/429": "http_429",
    "/flaky/1/x": "kept",
    "/redirect/2": "kept",
    "/loop": "too_many_redirects",
    "/goto?http://10.0.0.1/": "blocked_address",
    "/truncated": "truncated_body",
    "/reset": "connect",
    "/endless": "too_large",
    "/html": "not_an_image",
    "/empty": "not_an_image",
    "/cut/a.jpg": "undecodable",
    "ftp://a/b.jpg": "bad_url",
    "no url at all": "bad_url",
}


def write_list(path: Path, origin: Origin, paths: list[str]) -> str:
    urls = [origin.url(p) if p.startswith("/") else p for p in paths]
    path.write_text("".join(f"n{row % 7:08d}_{row}\t{url}\n" for row, url in enumerate(urls)))
    return str(path)


def rows_of(dataset: str) -> list[dict[str, Any]]:
    """All index rows of the committed units."""
    found = []
    for unit in committed_units(dataset):
        index = read_commit(dataset, unit).index
        found += read_table(store.join(dataset, "shards", index)).to_pylist()
    return found


def tars_of(dataset: str) -> list[bytes]:
    commits = [read_commit(dataset, unit) for unit in committed_units(dataset)]
    return [store.read(store.join(dataset, "shards", commit.tar)) for commit in commits]


def balance(result: IngestResult, links: int) -> None:
    assert not result.stopped
    assert result.links == links == result.kept + sum(result.reasons.values())
    made = manifest.read_manifest(result.dataset)
    assert (made.digest, made.links, made.kept, made.samples) == (result.version, links, result.kept, result.kept)
    assert made.reasons == result.reasons
    assert sorted(row["row"] for row in rows_of(result.dataset)) == list(range(links))
