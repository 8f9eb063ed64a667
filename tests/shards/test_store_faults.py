"""The door to storage while the store stumbles: what it says is done is done, once and whole; what it cannot do it
says in one line. On moto, and on a real S3 store where one is given, both behind the fault proxy."""

import os
import threading
import time

import pytest
from buckets import bucket, need_s3
from fault_proxy import FaultProxy, Rule

from shards import store, store_remote

pytestmark = pytest.mark.slow  # real outages take seconds

BODY = bytes(range(256)) * 1000
STUMBLES = [
    Rule("slow_down", times=1),
    Rule("reset", times=1),
    Rule("reset_upload", method="PUT|POST", times=1, after=1000),
    Rule("reset_reply", times=2, after=1000),
    Rule("cut", times=2, after=1000),
    Rule("lost_reply", times=1),
    Rule("outage", times=1, seconds=0.4),
]


@pytest.fixture(params=["moto", "s3"])
def proxy(request, monkeypatch):
    """A proxy before a store that this process has already reached; `proxy.base` is an empty folder there."""
    if request.param == "moto":
        request.getfixturevalue("on_moto")
    else:
        need_s3()
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(store_remote, "_filesystems", {})
        monkeypatch.setattr(store_remote, "_reached", set())
        proxy.base = bucket() + "/data"
        store.put(store.join(proxy.base, "old"), b"old")
        yield proxy


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(store_remote, "PATIENCE", 1.0)
    monkeypatch.setattr(store_remote, "FIRST_PATIENCE", 1.0)


def large(tmp_path, size=40 << 20):
    """A file that goes up in several parts."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    assert size > 2 * store.PART
    return path


@pytest.mark.parametrize("rule", STUMBLES, ids=lambda rule: rule.fault)
def test_every_call_survives_a_stumble(proxy, rule, tmp_path):
    def stumble():
        proxy.use(rule)

    url, before = store.join(proxy.base, "x"), proxy.counts[rule.fault]
    calls = [
        lambda: store.put(url, BODY),
        lambda: store.read(url),
        lambda: store.read_range(url, 1000, 5000),
        lambda: store.exists(url),
        lambda: store.names(proxy.base),
        lambda: store.put_if_absent(store.join(proxy.base, "commit"), BODY),
        lambda: store.open_read(url).read(),
        lambda: store.delete(url),
    ]
    results = []
    for call in calls:
        stumble()
        results.append(call())
        if rule.fault == "outage":
            time.sleep(0.5)  # one that a call did not wait out must not meet the next
    assert results == [None, BODY, BODY[1000:6000], True, ["old", "x"], True, BODY, None]
    proxy.use()
    assert store.names(proxy.base) == ["commit", "old"]
    assert store.read(store.join(proxy.base, "commit")) == BODY
    assert proxy.counts[rule.fault] > before


@pytest.mark.parametrize("rule", STUMBLES, ids=lambda rule: rule.fault)
def test_a_file_of_many_parts_goes_up_whole(proxy, rule, tmp_path):
    path, url = large(tmp_path), store.join(proxy.base, "tar")
    proxy.use(rule)
    store.put_file(url, path)
    proxy.use()
    assert store.read(url) == path.read_bytes()
    assert store.names(proxy.base) == ["old", "tar"]
    assert any("partNumber" in asked for _, asked, _ in proxy.log)


def test_a_lost_reply_to_the_last_step_of_an_upload_is_no_failure(proxy, tmp_path):
    path, url = large(tmp_path), store.join(proxy.base, "tar")
    proxy.use(Rule("lost_reply", method="POST", path="uploadId", times=1))
    store.put_file(url, path)
    assert proxy.counts["lost_reply"] == 1
    assert store.read(url) == path.read_bytes()


def test_an_upload_that_cannot_end_leaves_no_object(proxy, impatient, tmp_path):
    path, url = large(tmp_path), store.join(proxy.base, "tar")
    proxy.use(Rule("slow_down", method="POST", path="uploadId"), Rule("reset", method="PUT", path="partNumber=2"))
    with pytest.raises(store.StoreError, match=rf"^{url}: cannot write"):
        store.put_file(url, path)
    proxy.use()
    assert store.names(proxy.base) == ["old"]


def test_what_outlasts_the_clients_own_retries_is_tried_again(proxy):
    for fault in ("slow_down", "reset", "lost_reply"):
        proxy.use(Rule(fault, nth=(1, 2, 3, 4)))
        store.put(store.join(proxy.base, fault), BODY)
        proxy.use(Rule(fault, nth=(1, 2, 3, 4)))
        assert store.read(store.join(proxy.base, fault)) == BODY


def test_an_outage_of_seconds_is_waited_out(proxy):
    proxy.outage(6)
    time.sleep(0.2)
    store.put(store.join(proxy.base, "x"), BODY)
    assert store.read(store.join(proxy.base, "x")) == BODY


def test_a_store_that_stays_away_is_named_with_the_object(proxy, impatient, tmp_path):
    (tmp_path / "f").write_bytes(BODY)
    proxy.outage(600)
    time.sleep(0.2)
    url = store.join(proxy.base, "x")
    calls = {
        "write": [
            lambda: store.put(url, BODY),
            lambda: store.put_file(url, tmp_path / "f"),
            lambda: store.put_if_absent(url, BODY),
        ],
        "read": [lambda: store.read(url), lambda: store.read_range(url, 0, 1), lambda: store.open_read(url)],
        "list": [lambda: store.names(url)],
        "delete": [lambda: store.delete(url)],
        "look up": [lambda: store.exists(url)],
    }
    for verb, actions in calls.items():
        for action in actions:
            with pytest.raises(
                store.StoreError, match=rf"^{url}: cannot {verb}.*: the store does not answer"
            ) as caught:
                action()
            assert "\n" not in str(caught.value)
            assert not isinstance(caught.value, store.Missing)


def test_what_the_store_has_understood_is_not_asked_again(proxy):
    store.put(store.join(proxy.base, "x"), b"0123")
    asked = proxy.counts["requests"]
    with pytest.raises(store.Missing):
        store.read(store.join(proxy.base, "nothing"))
    with pytest.raises(store.StoreError):
        store.read_range(store.join(proxy.base, "x"), 100, 10)
    with pytest.raises(store.StoreError, match="the bucket does not exist"):
        store.put("s3://xtra-there-is-no-such-bucket/x", b"")
    assert proxy.counts["requests"] - asked <= 6


@pytest.mark.parametrize("fault", ["lost_reply", "slow_down", "reset_upload"])
def test_of_many_writers_behind_faults_exactly_one_commits(proxy, fault):
    for n in range(3):
        url = store.join(proxy.base, f"commit-{n}")
        proxy.use(Rule(fault, method="PUT", path=f"commit-{n}", chance=0.5, times=8))
        barrier, wins = threading.Barrier(6), []

        def race(body: bytes, url=url, barrier=barrier, wins=wins) -> None:
            barrier.wait()
            if store.put_if_absent(url, body):
                wins.append(body)

        racers = [threading.Thread(target=race, args=(b"writer %d" % i,)) for i in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        proxy.use()
        assert wins == [store.read(url)]
    assert proxy.counts[fault] > 0


def test_a_commit_whose_reply_is_lost_is_still_ours(proxy):
    url = store.join(proxy.base, "commit")
    proxy.use(Rule("lost_reply", method="PUT", nth=(1, 2, 3, 4, 5)))
    assert store.put_if_absent(url, b"mine")
    proxy.use(Rule("lost_reply", method="PUT", nth=(1,)))
    assert not store.put_if_absent(url, b"theirs")
    assert store.read(url) == b"mine"


def test_a_body_that_breaks_off_is_read_on_from_where_it_broke(proxy, tmp_path):
    path, url = large(tmp_path), store.join(proxy.base, "tar")
    store.put_file(url, path)
    proxy.use(Rule("cut", method="GET", chance=0.3, after=3 << 20), Rule("reset_reply", method="GET", chance=0.2))
    with store.open_read(url) as file:
        assert file.read(10) == path.read_bytes()[:10]
        file.seek(39 << 20)
        assert file.read() == path.read_bytes()[39 << 20 :]
        file.seek(0)
        assert file.read() == path.read_bytes()
    assert proxy.counts["cut"] + proxy.counts["reset_reply"] > 0
