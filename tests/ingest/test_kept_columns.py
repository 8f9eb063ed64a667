"""The other columns of a list: kept with every sample and in columns/, filtered, and counted in bytes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import FETCH, rows_of, tars_of
from origin import Origin

from ingest import dry_run
from ingest.config import Config
from ingest.lists import carry, plan_units
from ingest.run import run
from jobs import cli, forecast_text
from shards import check, store
from shards.dataset import read_columns, read_info, read_plan
from shards.tar import read_tar

ROWS = [
    {"caption": "a dog, brown", "similarity": 0.31, "width": 640, "license": "by"},
    {"caption": 'says "hi"', "similarity": 0.29, "width": 300, "license": None},
    {"caption": "größe 🐕", "similarity": None, "width": 100, "license": "cc0"},
    {"caption": None, "similarity": 0.9, "width": None, "license": "by-sa"},
    {"caption": "tab\tin it", "similarity": 0.5, "width": 256, "license": "by"},
]
KINDS = ("csv", "tsv", "jsonl", "json", "parquet")


def table(tmp_path: Path, kind: str, origin: Origin, rows: list[dict[str, Any]] = ROWS) -> str:
    full = [{"url": origin.url(f"/ok/{at}.jpg"), **row} for at, row in enumerate(rows)]
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(full), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in full))
    elif kind == "json":
        path.write_text(json.dumps(full))
    else:
        mark = "," if kind == "csv" else "\t"
        cells = [list(full[0]), *(["" if value is None else str(value) for value in row.values()] for row in full)]
        quoted = [['"' + c.replace('"', '""') + '"' if mark in c or '"' in c else c for c in row] for row in cells]
        path.write_text("".join(mark.join(row) + "\n" for row in quoted))
    return str(path)


def config(urls: str, tmp_path: Path, **more: Any) -> Config:
    return Config(urls=urls, out=str(tmp_path / "out"), fetch=FETCH, **more)


def jsons(dataset: str) -> list[dict[str, Any]]:
    return [
        json.loads(body) for tar in tars_of(dataset) for name, _, body in read_tar(io.BytesIO(tar)) if ".json" in name
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_is_in_the_samples_json_and_beside_the_plan(kind: str, tmp_path: Path, origin: Origin) -> None:
    made = config(table(tmp_path, kind, origin), tmp_path, unit=2)
    result = run(made)
    assert result.kept == len(ROWS)
    own = (lambda value: value) if kind == "parquet" else lambda value: None if value is None else str(value)
    expected = [{name: own(value) for name, value in row.items()} for row in ROWS]
    assert read_info(made.out).columns == tuple(ROWS[0])
    columns = [row for unit in range(3) for row in read_columns(made.out, unit).to_pylist()]
    planned = [row for unit in range(3) for row in read_plan(made.out, unit).to_pylist()]
    assert [(row.pop("key"), row.pop("row")) for row in columns] == [(row["key"], row["row"]) for row in planned]
    assert columns == expected
    said = [about["columns"] for about in jsons(made.out)]
    assert said == [{name: value for name, value in row.items() if value is not None} for row in expected]
    assert check.run(check.Config(made.out)).ok


def test_only_what_is_named_is_kept_and_none_is_none(tmp_path: Path, origin: Origin) -> None:
    urls = table(tmp_path, "csv", origin)
    some = config(urls, tmp_path / "some", keep_columns=("license", "caption"))
    run(some)
    assert read_info(some.out).columns == ("caption", "license")
    assert jsons(some.out)[0]["columns"] == {"caption": "a dog, brown", "license": "by"}
    nothing = config(urls, tmp_path / "none", keep_columns=("none",), where="width > 200")
    run(nothing)
    assert read_info(nothing.out).columns == ()
    assert not store.names(store.join(nothing.out, "columns"))
    assert ["columns" in about for about in jsons(nothing.out)] == [False] * 3


def test_a_list_of_urls_alone_makes_the_dataset_that_it_always_made(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url\n" + "".join(origin.url(f"/ok/{n}.jpg") + "\n" for n in range(3)))
    made = config(str(path), tmp_path)
    run(made)
    assert not store.names(store.join(made.out, "columns"))
    assert set(jsons(made.out)[0]) == {"url", "labels", "sha256", "width", "height"}
    assert made.digest == dataclasses.replace(made, keep_columns=("all",)).digest
    assert made.digest != dataclasses.replace(made, keep_columns=("none",)).digest


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_filtered_counts_by_the_rule_that_did_it(kind: str, tmp_path: Path, origin: Origin) -> None:
    made = config(table(tmp_path, kind, origin), tmp_path, where="similarity > 0.3 and width >= 256")
    result = run(made)
    assert (result.links, result.kept, result.not_chosen) == (2, 2, 3)
    assert result.not_chosen_by == {"similarity > 0.3": 2, "width >= 256": 1}
    assert [row["row"] for row in rows_of(made.out)] == [0, 4]
    assert read_info(made.out).not_chosen_by == result.not_chosen_by
    assert run(made).not_chosen_by == result.not_chosen_by  # a rerun finds the same plan


@pytest.mark.parametrize("kind", [*KINDS, "txt"])
@pytest.mark.parametrize("flag", ["where", "keep_columns", "hash_column"])
def test_an_unknown_column_is_one_line_and_leaves_nothing(
    kind: str, flag: str, tmp_path: Path, origin: Origin, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "txt":
        (tmp_path / "list.txt").write_text(origin.url("/ok/1.jpg") + "\n")
        urls = str(tmp_path / "list.txt")
    else:
        urls = table(tmp_path, kind, origin)
    words = ["--where", "simlarity > 0.3"] if flag == "where" else [f"--{flag.replace('_', '-')}", "simlarity"]
    out = tmp_path / "out"
    code = cli.main(["ingest", "--urls", urls, "--out", str(out), "--fetch.allow-private", "127.0.0.1", *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert (code, len(said)) == (2, 1)
    assert "has no column 'simlarity'" in said[0]
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_bad_lines_stay_and_what_no_line_meets_is_said(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        f"url,width\n{origin.url('/ok/1.jpg')},300\nftp://a/b.jpg,400\nftp://a/b.jpg,4\n,\n" + "x" * 70_000 + "\n"
    )
    result = run(config(str(path), tmp_path, where="width > 200"))
    assert (result.links, result.kept, result.reasons, result.not_chosen) == (3, 1, {"bad_url": 2}, 1)
    path.write_text("url,width\n" + f"{origin.url('/ok/1.jpg')},300\n" * 4)
    with pytest.raises(ValueError, match="none of its 4 lines meets --where"):
        run(config(str(path), tmp_path / "other", where="width > 500"))


def test_files_of_one_list_may_have_other_columns(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(origin.url(f"/ok/{n}.jpg") + "\n" for n in range(2)))
    (folder / "b.csv").write_text(f"url,size\n{origin.url('/ok/2.jpg')},7\n{origin.url('/ok/3.jpg')},8\n")
    (folder / "c.csv").write_text(f"caption,url\nhi,{origin.url('/ok/4.jpg')}\n")
    made = config(str(folder), tmp_path, unit=2)
    run(made)
    columns = [row for unit in range(3) for row in read_columns(made.out, unit).to_pylist()]
    assert [{name: row.get(name) for name in ("size", "caption")} for row in columns] == [
        *[{"size": None, "caption": None}] * 2,
        *({"size": size, "caption": None} for size in "78"),
        {"size": None, "caption": "hi"},
    ]
    assert check.run(check.Config(made.out)).ok


def test_types_of_two_files_that_do_not_agree_become_text(tmp_path: Path) -> None:
    for name, width in {"a": [1, 2], "b": ["3", "wide"], "c": [4.5, None]}.items():
        urls = [f"http://a/{name}{n}.jpg" for n in range(2)]
        pq.write_table(pa.table({"url": urls, "width": width}), tmp_path / f"{name}.parquet")
    (planned,) = plan_units(str(tmp_path), 10, columns=Config(urls="x").columns)
    assert carry.split(planned.links)[1]["width"].to_pylist() == ["1", "2", "3", "wide", "4.5", None]


def test_parquet_values_of_every_type_are_json(tmp_path: Path, origin: Origin) -> None:
    values = {
        "f": pa.array([0.5, float("nan")]),
        "b": pa.array([True, None]),
        "l": pa.array([[1.5, float("inf")], None]),
        "s": pa.array([{"x": b"ab", "y": b"\xff"}, None]),
        "d": pa.array(["a", "a"]).dictionary_encode(),
        "t": pa.array([0, None], pa.timestamp("s")),
        "i": pa.array([2**60, -1]),
        "key": pa.array(["k1", "k2"]),
    }
    urls = [origin.url(f"/ok/{n}.jpg") for n in range(2)]
    pq.write_table(pa.table({"url": urls, **values}), tmp_path / "l.parquet")
    made = config(str(tmp_path / "l.parquet"), tmp_path)
    run(made)
    one, two = (about["columns"] for about in jsons(made.out))
    assert one == {
        **{"f": 0.5, "b": True, "l": [1.5, None], "s": {"x": "ab", "y": "ff"}, "d": "a", "t": "1970-01-01 00:00:00"},
        **{"i": 2**60, "list_key": "k1"},
    }
    assert two == {"d": "a", "i": -1, "list_key": "k2"}


def test_columns_of_pictures_are_refused_unless_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    blobs = pa.array([bytes([n]) * 20_000 + n.to_bytes(2) for n in range(4)], pa.binary())
    pq.write_table(pa.table({"url": [f"http://a/{n}.jpg" for n in range(4)], "image": blobs, "w": [1, 2, 3, 4]}), path)
    with pytest.raises(ValueError, match=r"its column 'image' holds [\d,]+ bytes a row: name smaller ones"):
        list(plan_units(str(path), 10, columns=Config().columns))
    (planned,) = plan_units(str(path), 10, columns=Config(keep_columns=("w",)).columns)
    assert carry.names(planned.links) == ["w"]


def test_long_text_is_cut_where_it_can_be_seen(tmp_path: Path, origin: Origin) -> None:
    urls = table(tmp_path, "csv", origin, [{"caption": "é" * 9000}])
    made = config(urls, tmp_path)
    run(made)
    (about,) = jsons(made.out)
    assert about["columns"]["caption"] == "é" * 8191 + "…"


def test_a_retry_brings_the_columns_along(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "list.csv"
    paths = ["/ok/0.jpg", "/flaky/1/a", "/ok/1.jpg", "/flaky/1/b"]
    path.write_text("url,caption\n" + "".join(f"{origin.url(p)},caption {at}\n" for at, p in enumerate(paths)))
    fetch = dataclasses.replace(FETCH, retries=0)
    made = Config(urls=str(path), out=str(tmp_path / "out"), unit=2, fetch=fetch)
    first = run(made)
    assert (first.kept, first.reasons) == (2, {"http_5xx": 2})
    again = Config(out=made.out, retry=True, fetch=FETCH)
    assert run(again).kept == 4
    assert sorted(about["columns"]["caption"] for about in jsons(made.out)) == [f"caption {n}" for n in range(4)]
    assert read_columns(made.out, 2)["row"].to_pylist() == [1, 3]
    assert check.run(check.Config(made.out)).ok


def test_a_dataset_that_was_planned_without_columns_is_finished(tmp_path: Path, origin: Origin) -> None:
    """As older builds left it: no columns in dataset.json, no folder of them."""
    made = config(table(tmp_path, "csv", origin), tmp_path, unit=2)
    run(made)
    out = Path(made.out)
    value = {
        name: v for name, v in json.loads((out / "dataset.json").read_text()).items() if name[:3] not in ("col", "has")
    }
    value.pop("not_chosen_by")
    (out / "dataset.json").write_text(json.dumps(value))
    for folder in ("columns", "commits", "shards", "versions", "manifests"):
        for path in (out / folder).iterdir():
            path.unlink()
    (out / "latest.json").unlink()
    assert run(made).kept == len(ROWS)
    assert ["columns" in about for about in jsons(made.out)] == [False] * len(ROWS)
    assert not list((out / "columns").iterdir())


def test_a_lost_or_foreign_sidecar_is_found(tmp_path: Path, origin: Origin) -> None:
    made = config(table(tmp_path, "csv", origin), tmp_path, unit=3)
    run(made)
    one, two = sorted((Path(made.out) / "columns").iterdir())
    two.write_bytes(one.read_bytes())
    one.unlink()
    said = [problem.what for problem in check.run(check.Config(made.out)).problems]
    assert ["cannot be read" in what for what in said] == [True, False]
    assert "belong to other rows" in said[1]


def test_a_dry_run_counts_them_in_bytes(tmp_path: Path, origin: Origin) -> None:
    rows = [{"caption": f"{at:x}" * 400, "width": 300} for at in range(40)]
    urls = table(tmp_path, "csv", origin, rows)
    with_columns, bare = (
        dry_run.run(config(urls, tmp_path, keep_columns=keep, where="width > 10"), 20) for keep in (("all",), ("none",))
    )
    assert (with_columns.columns, bare.columns) == (("caption", "width"), ())
    assert with_columns.column_bytes > 0 == bare.column_bytes
    assert with_columns.stored_bytes.value >= bare.stored_bytes.value + 40 * 400
    assert any(
        line.startswith("kept columns ") and "caption, width" in line for line in forecast_text.lines(with_columns)
    )
    assert not any("kept columns" in line for line in forecast_text.lines(bare))
