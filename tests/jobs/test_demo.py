"""The demo's web: real pictures among junk, on the port that its list names, and what ingest makes of it."""

import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_datasets import jpeg
from run_folders import write_study

from ingest import run as ingest
from ingest.config import Config
from ingest.filter import FilterConfig
from ingest.http.fetcher import FetchConfig
from jobs import demo
from jobs.report import ledger
from shards.pixels import image


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for number in range(250):
        path = tmp_path / "mine" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (tmp_path / "files").mkdir()
    assert demo._copy(tmp_path / "mine", tmp_path / "files" / "pictures") == 250
    return tmp_path / "files"


def test_every_kind_of_junk_gets_its_verdict_and_the_rest_is_kept(local, tmp_path):
    with demo._origin(local) as port:
        links = demo._write_list(local, port)
        settings = Config(
            str(links),
            str(tmp_path / "data"),
            id_column="id",
            label_column="label",
            fetch=FetchConfig(allow_private=("127.0.0.1",), retries=0),
            filter=FilterConfig(min_side=16),
        )
        got = ingest.run(settings)
    kinds = Counter(line.split("/")[3] for line in links.read_text().splitlines()[1:-3])
    verdicts = {
        "gone": "http_404",
        "forbidden": "http_4xx",
        "broken": "http_5xx",
        "page": "not_an_image",
        "cut": "undecodable",
        "icon": "too_small",
    }
    expected = {verdicts[kind]: n for kind, n in kinds.items() if kind in verdicts}
    assert got.reasons == expected | {"dns": 1, "bad_url": 1, "blocked_address": 1}
    assert got.kept == kinds["ok"] + kinds["moved"]


def test_a_rerun_serves_the_same_links(local):
    with demo._origin(local) as port:
        first = demo._write_list(local, port).read_text()
    with demo._origin(local) as again:
        assert again == port
        assert demo._write_list(local, again).read_text() == first


def test_the_packaged_pictures_are_whole_and_split(tmp_path):
    assert demo._mnist(tmp_path) == 5000
    train, test = (list((tmp_path / split).glob("digit-*/*.jpg")) for split in ("train", "test"))
    assert len(train) + len(test) == 5000
    assert 900 < len(test) < 1100
    assert len({path.parent.name for path in test}) == 10
    heads = [image.header(path.read_bytes()) for path in test]
    assert all(head.width == head.height for head in heads)
    assert {head.width for head in heads} == set(range(40, 65))


def test_a_digit_is_drawn_from_its_number_alone_light_on_dark_at_any_place():
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 12:16] = 255
    drawn = [demo._drawn(digit, number) for number in range(40)]
    again = [demo._drawn(digit, number) for number in range(40)]
    assert [one.tobytes() for one in drawn] == [one.tobytes() for one in again]
    assert len({one.tobytes() for one in drawn}) == 40
    places = []
    for picture in drawn:
        ink = np.asarray(picture).min(2) > 100
        assert 0.03 < ink.mean() < 0.14, "the stroke, a fifth of the square around the digit, and nothing of the ground"
        places.append(np.argwhere(ink).mean(0) / picture.size[0])
    spread = np.ptp(places, axis=0)
    assert (spread > 0.25).all(), spread


def test_pictures_of_another_folder_are_not_mixed_in(local, tmp_path, capsys):
    mine = demo.Config(data=str(tmp_path / "mine"))
    made = demo._pictures(mine, tmp_path / "served")
    assert demo._pictures(mine, tmp_path / "served") == made
    assert "250 pictures of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not of MNIST-5k at any place, size and colour: remove it"):
        demo._pictures(demo.Config(), tmp_path / "served")


def test_a_folder_of_the_users_is_never_touched(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").write_bytes(jpeg(1))
    with pytest.raises(ValueError, match="is inside"):
        demo._pictures(demo.Config(data=str(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match="was not made by the demo"):
        demo._pictures(demo.Config(), tmp_path)
    assert (tmp_path / "cats" / "a.jpg").read_bytes() == jpeg(1)


def test_any_file_name_is_served_and_no_other_file(tmp_path):
    name = "my cat #1 50% ü.jpg"
    (tmp_path / "mine" / "big cats").mkdir(parents=True)
    (tmp_path / "mine" / "big cats" / name).write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    local = tmp_path / "files"
    for split in ("train", "test"):
        (local / "pictures" / split / "big cats").mkdir(parents=True)
        (local / "pictures" / split / "big cats" / name).write_bytes(jpeg(1))
    with demo._origin(local) as port:
        line = demo._write_list(local, port).read_text().splitlines()[1]
        with urllib.request.urlopen(line.split(",")[1].replace("/moved/", "/ok/"), timeout=5) as reply:
            assert reply.read() == jpeg(1)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ok/../../secret.jpg", timeout=5)


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"contains no CLASS/\*\.jpg pictures"):
        demo._copy(tmp_path, tmp_path / "out")


def test_the_closing_table_goes_from_raw_pixels_to_trained_encoders_in_each_head(tmp_path, capsys):
    rows = ledger.read_runs(str(write_study(tmp_path))).rows
    demo._closing({"links": 3, "kept": 2, "reasons": {"dns": 1}}, rows, "report.html", 1.0)
    table = [line for line in capsys.readouterr().out.splitlines() if " to " in line]
    heads = [line[35:45].strip() for line in table]
    assert heads == sorted(heads)
    assert set(heads) == {"attentive", "linear"}
    linear = [line[:34].strip() for line in table if line[35:45].strip() == "linear"]
    order = ["raw pixels", "random weights", "samples seen"]
    kinds = [next(place for place, kind in enumerate(order) if kind in name) for name in linear]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}
