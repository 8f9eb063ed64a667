"""Where tests keep their datasets: a temporary folder, or a real S3 store when XTRA_TEST_S3 names its endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import bucket, need_s3, start_moto
from places import SHARED

STORES = ["local", "moto", "s3"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes (-n 2 --dist loadgroup), a file stays in one of them, which keeps its
    module's fixtures; and all that needs Ray in one, because a second driver would join the first one's cluster."""
    for item in items:
        group = "ray" if "ray_cluster" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real images that lies beside a development checkout."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout: reference vectors and real images are not here")
    return SHARED


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """An S3 server in this process (moto), for what does not need a real store."""
    server = start_moto()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def on_moto(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards import store_remote

    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(store_remote, "_filesystems", {})


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster for the whole session: starting one takes some 10 s."""
    import ray

    from jobs.cluster import start_ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(params=STORES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on each kind of store; "s3" is the real one and is skipped where none is given."""
    if request.param == "local":
        return str(tmp_path / "data")
    if request.param == "moto":
        request.getfixturevalue("on_moto")
    else:
        need_s3()
    return bucket() + "/data"
