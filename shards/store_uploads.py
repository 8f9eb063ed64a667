"""Incomplete multipart uploads to S3: a killed writer leaves its parts, which cost money.

Listings of objects do not show them (Amazon S3 API reference: ListMultipartUploads, ListParts, AbortMultipartUpload).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shards import store_remote


@dataclass(frozen=True)
class Upload:
    name: str  # of the intended object, below the folder
    upload_id: str
    begun: float  # seconds since 1970, by the store's clock


def unfinished(url: str) -> list[Upload]:
    """The incomplete uploads under a folder, by name; none if the store is not S3. Raises StoreError."""
    if not url.startswith("s3://"):
        return []
    bucket, prefix = _place(url)
    found = [
        Upload(each["Key"][len(prefix) :], each["UploadId"], each["Initiated"].timestamp())
        for page in _pages(url, "list_multipart_uploads", ("KeyMarker", "UploadIdMarker"), Bucket=bucket, Prefix=prefix)
        for each in page.get("Uploads") or ()
        if each["Key"].startswith(prefix)
    ]
    return sorted(found, key=lambda upload: (upload.name, upload.upload_id))


def parts(url: str, upload: Upload) -> tuple[int, float]:
    """(bytes of the uploaded parts, time of the last one): a living writer's upload may have begun long ago. Raises
    Missing if it has ended, StoreError."""
    bucket, prefix = _place(url)
    name = {"Bucket": bucket, "Key": prefix + upload.name, "UploadId": upload.upload_id}
    size, last = 0, upload.begun
    for page in _pages(url, "list_parts", ("PartNumberMarker",), **name):
        for part in page.get("Parts") or ():
            size, last = size + part["Size"], max(last, part["LastModified"].timestamp())
    return size, last


def abort(url: str, upload: Upload) -> None:
    """Remove the upload's parts; no error if it has ended."""
    bucket, prefix = _place(url)
    fs, _ = store_remote.client(url)

    def end() -> None:
        with contextlib.suppress(FileNotFoundError):  # NoSuchUpload: completed or aborted meanwhile
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=prefix + upload.name, UploadId=upload.upload_id)

    store_remote.call("remove an incomplete upload", f"{url}/{upload.name}", end)


def _place(url: str) -> tuple[str, str]:
    """Bucket and key prefix of a folder, ending in a slash, so that no other folder's name matches."""
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    return bucket, prefix + "/" if prefix else ""


def _pages(url: str, verb: str, markers: tuple[str, ...], **asked: Any) -> Iterator[dict[str, Any]]:
    fs, _ = store_remote.client(url)
    while True:
        page = store_remote.call("list incomplete uploads", url, lambda asked=dict(asked): fs.call_s3(verb, **asked))
        yield page
        following = {marker: page.get(f"Next{marker}") for marker in markers}
        if not page.get("IsTruncated") or not all(following.values()):
            return
        asked |= following
