"""WebDataset tars of others become a dataset without being copied, of the samples that the webdataset library sees."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from buckets import bucket
from test_class_folders import picture, write_tar

from ingest.sets import folders, in_place
from jobs import cli
from shards import check, manifest, selection, store, sweep
from shards.dataset import read_plan, read_table
from shards.stream.stream import once

# Writes a set, then prints what it reads. In a separate process: webdataset leaves its files open, which is a
# warning, and warnings are errors here.
WEBDATASET = """
import hashlib, json, sys, webdataset
for t in range(2):
    with webdataset.TarWriter(f"{sys.argv[1]}/train-{t:04d}.tar") as out:
        for i in range(9):
            body = open(f"{sys.argv[2]}/{t}-{i}.bin", "rb").read()
            if i % 3 == 0:
                sample = {"jpg": body, "cls": 10 * t + i}
            elif i % 3 == 1:
                sample = {"png": body, "json": {"label": f"n{i}", "caption": "x" * 300}}
            else:
                sample = {"webp": body, "txt": f"class {i}"}
            key = ["n01/", "", "a b/"][i % 3] + f"{t}-{i}" + "é" * (i == 8) + "l" * 120 * (i == 7)
            out.write({"__key__": key, **sample})
paths = [f"{sys.argv[1]}/train-{t:04d}.tar" for t in range(2)]
samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
pictures = ((s["__key__"], s.get("jpg") or s.get("png") or s["webp"]) for s in samples)
print(json.dumps([(key, hashlib.sha256(body).hexdigest()) for key, body in pictures]))
"""


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars by webdataset's own writer: three formats, three kinds of label, keys that are none of ours."""
    folder, bodies = tmp_path_factory.mktemp("set"), tmp_path_factory.mktemp("bodies")
    for t in range(2):
        for i in range(9):
            (bodies / f"{t}-{i}.bin").write_bytes(picture(10 * t + i, ["JPEG", "PNG", "WEBP"][i % 3]))
    program = [sys.executable, "-c", WEBDATASET, str(folder), str(bodies)]
    done = subprocess.run(program, capture_output=True, check=True, timeout=60)
    (folder / "read.json").write_bytes(done.stdout)
    return folder


def streamed(dataset: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Key -> (labels, sha256 of the bytes)."""
    found = {}
    for batch in once(manifest.read_manifest(dataset), 4):
        for sample in batch:
            found[sample.key] = (sample.labels, hashlib.sha256(sample.body).hexdigest())
    return found


def rows(dataset: str) -> list[dict]:
    version = manifest.read_manifest(dataset)
    return [row for shard in version.shards for row in read_table(f"{dataset}/shards/{shard.index}").to_pylist()]


def test_a_set_by_webdatasets_own_writer_streams_as_webdataset_reads_it(tars: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = in_place.run(folders.Config(str(tars), out, in_place=True))
    assert (result.links, result.kept, result.samples, result.units) == (18, 18, 18, 2)
    ours = streamed(out)
    paths = [str(tars / f"train-{t:04d}.tar") for t in range(2)]
    theirs = json.loads((tars / "read.json").read_text())
    assert [digest for _, digest in ours.values()] == [digest for _, digest in theirs]
    labels = [labels for labels, _ in ours.values()]
    assert labels[:3] == [("0",), ("n1",), ("class 2",)]
    assert labels[9:12] == [("10",), ("n1",), ("class 2",)]
    assert list(ours)[:3] == ["n01_0-0", "0-1", "a_b_0-2"]
    assert all(read_plan(out, unit)["key"].to_pylist() for unit in (0, 1))
    notes = {row["key"]: row["detail"] for row in rows(out)}
    assert notes["0-1"] == ""
    assert notes["n01_0-0"] == "in the tar its key is 'n01/0-0'"
    long = [row for row in rows(out) if row["member"].endswith("l.png")]
    assert [len(row["key"]) for row in long] == [90, 90]
    assert [shard.tar for shard in manifest.read_manifest(out).shards] == paths
    assert not list(Path(out).rglob("*.tar")), "nothing was copied"
    assert check.run(check.Config(out)).ok
    sums = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    assert [shard.tar_sha256 for shard in manifest.read_manifest(out).shards] == sums
    assert {store.read_json(f"{out}/{name}")["format"] for name in ("dataset.json", f"manifests/{head_of(out)}")} == {1}


def head_of(out: str) -> str:
    return manifest.read_manifest(out).digest + ".json"


def test_a_rerun_does_what_is_left_and_gives_the_same_as_one_run(tars: Path, tmp_path: Path) -> None:
    pattern, asked = str(tars / "train-{0000..0001}.tar"), iter(range(100))
    config = folders.Config(pattern, str(tmp_path / "out"), threads=1, in_place=True)
    stopped = in_place.run(config, stop=lambda: next(asked) > 12)
    assert (stopped.stopped, stopped.units_done) == (True, 1)
    reports = []
    whole = in_place.run(config, reports.append)
    assert not whole.stopped
    assert [(p.units_done, p.links, p.done) for p in reports] == [(2, 18, 18)]
    in_place.run(folders.Config(str(tars), str(tmp_path / "other"), in_place=True))
    assert streamed(config.out) == streamed(str(tmp_path / "other"))
    assert [row["row"] for row in rows(config.out)] == list(range(18))
    assert in_place.run(config).version == whole.version, "nothing left to do"


def test_what_is_kept_and_what_is_not_with_its_reason(tmp_path: Path) -> None:
    members = {
        "__meta__/info.json": b"{}",
        "one.jpg": picture(1),
        "one.other.jpg": b"a field that is not the sample",
        "two.image.jpeg": picture(2),
        "two.json": b'{"labels": ["a", 3]}',
        "three.left.png": picture(3, "PNG"),
        "three.right.png": picture(4, "PNG"),
        "four.txt": b"no picture",
        "five.jpg": b"<html>",
        "six.png": picture(6, "GIF"),
        "seven.JPG": picture(7),
        "seven.txt": b"a caption\nof two lines",
        "seven.json": b"not json",
        "eight.jpg": picture(8)[:-2],
        "dir/one.jpg": picture(9),
    }
    write_tar(tmp_path / "set" / "t.tar", members)
    write_tar(tmp_path / "set" / "u.tar", {"one.jpg": picture(10), "empty": b""})
    write_tar(tmp_path / "set" / "v.tar", {})
    out = str(tmp_path / "out")
    result = in_place.run(folders.Config(str(tmp_path / "set"), out, in_place=True))
    verdicts = {row["key"]: (row["reason"], row["labels"], row["detail"]) for row in rows(out)}
    assert verdicts == {
        "one": ("kept", [], ""),
        "two": ("kept", ["a", "3"], ""),
        "three": (
            "unsupported",
            [],
            "has 2 pictures and none of them is the sample: left.png, right.png",
        ),
        "four": ("not_an_image", ["no picture"], "no picture: txt"),
        "five": ("not_an_image", [], "html"),
        "six": ("unsupported", [], "gif is only kept as another file: import it without --in-place"),
        "seven": ("kept", [], ""),
        "eight": ("unsupported", [], "jpeg is only kept as another file: import it without --in-place"),
        "dir_one": ("kept", [], "in the tar its key is 'dir/one'"),
        "one_r9": ("kept", [], "in the tar its key is 'one'"),
    }
    assert (result.links, result.kept, result.units) == (10, 5, 3)
    assert check.run(check.Config(out, decode=True)).ok
    assert selection.subset(manifest.read_manifest(out), 2).samples <= 5


def test_damage_to_a_foreign_tar_is_named_and_sweep_leaves_it(tars: Path, tmp_path: Path) -> None:
    for tar in tars.glob("*.tar"):
        (tmp_path / tar.name).write_bytes(tar.read_bytes())
    out = str(tmp_path / "out")
    in_place.run(folders.Config(str(tmp_path / "*.tar"), out, in_place=True))
    (Path(out) / "shards" / "000000-0123456789ab.parquet").write_bytes(b"of an attempt that lost")
    result = sweep.run(sweep.Config(out, older_than="10m"))
    assert result.objects == ("shards/000000-0123456789ab.parquet",)
    assert len(list(tmp_path.glob("*.tar"))) == 2
    assert check.run(check.Config(out)).ok
    row = rows(out)[4]
    path = tmp_path / "train-0000.tar"
    body = bytearray(path.read_bytes())
    body[row["offset"] + 50] ^= 1
    path.write_bytes(bytes(body))
    assert [str(problem) for problem in check.run(check.Config(out)).problems] == [
        f"{path}: {row['key']}: its bytes do not have the sha256 of the index",
        f"{path}: the tar does not have the sha256 of the manifest",
    ]
    path.write_bytes((tmp_path / "train-0001.tar").read_bytes())
    with pytest.raises(store.StoreError, match=f"{path}: .* it is not what its index describes: run xtra check"):
        streamed(out)
    path.unlink()
    assert any("cannot be read" in str(problem) for problem in check.run(check.Config(out)).problems)


def test_tars_in_a_bucket_and_the_dataset_in_another(on_moto: None, tars: Path, tmp_path: Path) -> None:
    theirs, out = bucket() + "/sets", bucket() + "/data"
    for tar in tars.glob("*.tar"):
        store.put_file(f"{theirs}/{tar.name}", tar)
    in_place.run(folders.Config(f"{theirs}/train-*.tar", out, in_place=True))
    assert [shard.tar for shard in manifest.read_manifest(out).shards] == [
        f"{theirs}/train-{t:04d}.tar" for t in range(2)
    ]
    assert check.run(check.Config(out)).ok
    local = str(tmp_path / "local")
    in_place.run(folders.Config(str(tars), local, in_place=True))
    assert streamed(out) == streamed(local)
    assert store.names(out + "/shards") == [shard.index for shard in manifest.read_manifest(out).shards]
    assert in_place.find(theirs) == in_place.find(theirs + "/train-{0000,0001}.tar")


class _WithRanges(SimpleHTTPRequestHandler):
    """Files, also by ranges; SimpleHTTPRequestHandler knows none."""

    def log_message(self, *words: object) -> None:
        pass

    def send_head(self):
        self.range = self.headers.get("Range")
        return super().send_head()

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(206 if code == 200 and self.range else code, message)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length":
            super().send_header("Accept-Ranges", "bytes")
            if self.range:
                first, _, last = self.range.removeprefix("bytes=").partition("-")
                self.part = (int(first), min(int(last or value), int(value) - 1) + 1)
                super().send_header("Content-Range", f"bytes {first}-{self.part[1] - 1}/{value}")
                value = str(self.part[1] - self.part[0])
        super().send_header(keyword, value)

    def copyfile(self, source, outputfile) -> None:
        body = source.read()
        outputfile.write(body[slice(*self.part)] if self.range else body)


@pytest.fixture
def web(tars: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_WithRanges, directory=str(tars)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_tars_on_a_web_server(web: str, tars: Path, tmp_path: Path) -> None:
    out, local = str(tmp_path / "out"), str(tmp_path / "local")
    in_place.run(folders.Config(web + "/train-{0000..0001}.tar", out, in_place=True))
    in_place.run(folders.Config(str(tars), local, in_place=True))
    assert streamed(out) == streamed(local)
    assert check.run(check.Config(out)).ok


def test_what_cannot_be_indexed_is_said_in_one_line(tmp_path: Path, tars: Path) -> None:
    def said(what: str, source: str | Path, **more: object) -> None:
        with pytest.raises(ValueError, match=what) as error:
            in_place.run(folders.Config(str(source), str(tmp_path / "out"), in_place=True, **more))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    said("there is no such folder or tar", tmp_path / "nothing-{0..3}.tar")
    said("source is a URL with a user name, signature or key", "https://user:word@host/x.tar")
    said("source is a URL with a user name, signature or key", "s3://bucket/x.tar?X-Amz-Signature=1")
    whole = (tars / "train-0000.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[:3000])
    said("torn.tar: the tar ends .*: it must be an uncompressed, whole WebDataset tar", tmp_path / "torn.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as packed:
        packed.add(tars, "x")
    out = tmp_path / "out"
    said("was made with another list_sha256", tmp_path / "packed.tar")
    manifest_free = tmp_path / "other"
    out.rename(manifest_free)
    said("packed.tar: the tar has no valid header at byte 0", tmp_path / "packed.tar")
    (tmp_path / "out").rename(tmp_path / "third")
    write_tar(tmp_path / "twice.tar", {"a.jpg": b"1", "a.JPG": b"2"})
    said("twice.tar: a.JPG: duplicate file name", tmp_path / "twice.tar")


def test_the_command(tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["import", str(tars), "--out", out, "--in-place", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["links"], summary["kept"]) == (18, 18)
    assert cli.main(["check", out]) == 0
    assert cli.main(["peek", out, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") >= 9
    assert cli.main(["status", out]) == 0


def test_a_source_within_the_datasets_own_folders_is_refused(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mydata", tmp_path / "mydata" / "shards" / "000000-train.tar"
    write_tar(theirs, {"a.jpg": picture(1)})
    (tmp_path / "link").symlink_to(mine / "shards")
    for source in (mine / "shards", theirs, tmp_path / "link"):
        with pytest.raises(ValueError, match="is in the dataset's own folder: give another --out"):
            in_place.run(folders.Config(str(source), str(mine), in_place=True))
    assert [path.name for path in mine.iterdir()] == ["shards"], "nothing was written"


def test_sweep_leaves_a_foreign_tar_with_the_name_and_place_of_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tar(tmp_path / "set" / "000000-train.tar", {"a.jpg": picture(1)})
    in_place.run(folders.Config(str(tmp_path / "set"), str(out), in_place=True))
    moved = out / "shards" / "000000-train.tar"
    (tmp_path / "set" / "000000-train.tar").rename(moved)
    assert sweep.run(sweep.Config(str(out))).objects == ()
    assert moved.exists()


def test_odd_text_costs_a_label_or_a_row_and_never_the_import(tmp_path: Path) -> None:
    members = {
        "a\udcff.jpg": picture(1),
        "b\udcff.txt": b"no picture",
        "c.jpg": picture(2),
        "c.json": b'{"label": "\\ud800x"}',
        "d.jpg": picture(3),
        "d.json": b"[" * 200_000,
        "e.jpg": picture(4),
        "e.json": b'{"label": ' + b"9" * 5000 + b"}",
        "f.\udcff": b"of a field that is no picture",
        "g.jpg": picture(5),
        "g.cls": b"3",
    }
    write_tar(tmp_path / "set" / "t.tar", members)
    out = str(tmp_path / "out")
    in_place.run(folders.Config(str(tmp_path / "set"), out, in_place=True))
    assert [(row["reason"], row["labels"]) for row in rows(out)] == [
        ("unsupported", []),
        ("not_an_image", ["no picture"]),
        ("kept", ["?x"]),
        ("kept", []),
        ("kept", []),
        ("not_an_image", []),
        ("kept", ["3"]),
    ]
    assert rows(out)[0]["detail"] == "its name in the tar is not UTF-8: 'a\\udcff.jpg'"
    assert check.run(check.Config(out, decode=True)).ok


def test_a_name_that_stands_twice_in_a_tar_is_two_samples(tmp_path: Path) -> None:
    path = tmp_path / "set" / "t.tar"
    write_tar(path, {"a.jpg": picture(1), "b.jpg": picture(2)})
    with tarfile.open(path, "a") as out:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(picture(3))
        out.addfile(info, io.BytesIO(picture(3)))
    dataset = str(tmp_path / "out")
    in_place.run(folders.Config(str(tmp_path / "set"), dataset, in_place=True))
    assert len(streamed(dataset)) == 3
    assert check.run(check.Config(dataset)).problems == ()
    last = rows(dataset)[-1]
    body = bytearray(path.read_bytes())
    body[last["offset"] + 50] ^= 1
    path.write_bytes(bytes(body))
    problem = check.run(check.Config(dataset)).problems[0]
    assert (problem.key, problem.what) == (last["key"], "its bytes do not have the sha256 of the index")
