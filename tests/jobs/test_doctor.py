import threading
from importlib import metadata
from pathlib import Path

import pytest

from jobs import doctor, pillow_simd
from shards import store


def test_this_machine_passes_and_every_line_says_what(capsys: pytest.CaptureFixture[str]):
    checks = doctor.run(doctor.Config())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks) == 15
    assert {"python", "torch", "ray", "PIL", "libcurl", "cores", "memory", "/dev/shm", "disk"} <= {
        c.what for c in checks
    }
    assert not [c for c in checks if c.level == "fail"], "the tests run, so nothing essential is missing"
    assert all(c.next_step for c in checks if c.level != "ok" and c.what != "memory")


def test_variables_are_named_and_their_values_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "visible-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "visible-secret")
    check = doctor.aws()
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in check.detail
    doctor.run(doctor.Config())
    assert "visible-" not in capsys.readouterr().out


def test_no_other_distribution_here_has_our_names_and_one_that_does_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert doctor.clashes() == []
    other = tmp_path / "thief-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1.0\n")
    (other / "top_level.txt").write_text("shards\nthief\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.clashes() == ["shards by thief"]
    (found,) = [check for check in doctor.run(doctor.Config()) if check.what == "names"]
    assert (found.level, found.detail) == ("fail", "also provided by others: shards by thief")


def test_half_of_the_credentials_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert (doctor.aws().level, doctor.aws().next_step) == ("warn", "set AWS_SECRET_ACCESS_KEY as well")


def test_pillow_simd_is_built_optimised_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CFLAGS", raising=False)
    assert {"-O3", "-mavx2"} <= set(pillow_simd.build_environment()["CFLAGS"].split())
    monkeypatch.setenv("CFLAGS", "-O0 -I/opt/include")
    assert pillow_simd.build_environment()["CFLAGS"].split()[-3:] == ["-O0", "-I/opt/include", "-mavx2"]


def test_the_accelerator_of_the_jpeg_check_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(doctor.entropy, "library", lambda: tmp_path / "none.so")
    assert doctor.walker().level == "warn"
    if not doctor.entropy.build(tmp_path / "none.so"):
        assert doctor.walker() == doctor.Check("ok", "JPEG check", "entropy.c, and Pillow")


def test_missing_headers_of_pillow_simd_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(pillow_simd, "has_avx2", lambda: True)
    monkeypatch.setattr(pillow_simd, "missing_headers", lambda: ["webp/decode.h", "tiffio.h"])
    assert doctor.simd() == doctor.Check(
        "warn", "pillow-simd", "not in use: no webp/decode.h, tiffio.h", "install libwebp-dev, libtiff-dev; make setup"
    )
    assert {"a C compiler", *pillow_simd.HEADERS} == set(doctor.PACKAGES), "every header has its package"


def test_two_packages_under_one_name_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    assert doctor.pil().level == "fail"
    assert "overwrite each other" in doctor.pil().detail


def test_a_store_that_holds_put_if_absent_passes_and_is_left_clean(base: str):
    store.put(store.join(base, "mine"), b"")
    check = doctor.object_store(base)
    assert (check.level, check.what) == ("ok", "store")
    assert store.names(base) == ["mine"]


def test_a_store_that_overwrites_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both = threading.Barrier(2, timeout=10)

    def overwrite(url: str, body: bytes) -> bool:
        both.wait()
        store.put(url, body)
        return True

    monkeypatch.setattr(store, "put_if_absent", overwrite)
    check = doctor.object_store(str(tmp_path))
    assert check.level == "fail"
    assert "let 2 of 2 writers create one key" in check.detail
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_fails_with_its_next_step(on_moto: None):
    check = doctor.object_store("s3://no-such-bucket-here/x")
    assert check.level == "fail"
    assert "the bucket does not exist" in check.detail
    assert check.next_step == "make it first"
