"""Reports that others have made in public, tried here by kind: docs/public-reports.md lists them."""

from __future__ import annotations

import tarfile
import unicodedata
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_class_folders import picture
from test_wild_tars import both, pack

from ingest.lists import links_of, plan_batches
from ingest.lists.columns import Columns
from ingest.sets import folders
from jobs import cli
from shards import manifest, store
from shards.dataset import read_table
from xtra import official

URLS = [f"http://a.org/{n}.jpg" for n in range(5)]


def keys_of(dataset: Path) -> list[str]:
    found = []
    for shard in manifest.read_manifest(str(dataset)).shards:
        found += read_table(store.join(str(dataset), "shards", shard.index), ["key"])["key"].to_pylist()
    return sorted(found)


def keys_in(path: Path) -> list[str]:
    planned = plan_batches(str(path), columns=Columns(id="id"))
    return [link.key for part in planned for link in links_of(part.links)]


# --- names of members: webdataset 237 and 288, meta-pytorch/data 1144, datasets 7144 and 7150 ------------------------


@pytest.mark.parametrize("root", ["./", "/", "././", ".//", ""])
def test_where_a_tar_begins_is_no_part_of_a_key(tmp_path: Path, root: str) -> None:
    names = ["235342 Track 2.0 (Clean Version)", "n01/22.05", "n02/some/22.0/1.1"]
    members = [
        (f"{root}{name}.{end}", body) for name in names for end, body in (("jpg", picture(len(name))), ("cls", b"7"))
    ]
    assert [labels for _, labels, _ in both(tmp_path, pack(tmp_path / "x.tar", members))] == [["7"]] * 3
    keys = ["235342_Track_2_0__Clean_Version_", "n01_22_05", "n02_some_22_0_1_1"]
    assert keys_of(tmp_path / "copied") == keys_of(tmp_path / "in-place") == keys


def test_the_same_member_with_and_without_its_root_is_two_of_one_name(tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", [("./a.jpg", picture(1)), ("a.jpg", picture(2))])
    with pytest.raises(ValueError, match="duplicate file name"):
        folders.run(folders.Config(str(tar), str(tmp_path / "out")))


# --- long keys: webdataset 428, NeMo 4455 ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_that_differ_only_after_the_longest_stay_apart_with_their_own_labels(tmp_path: Path, form: int) -> None:
    long = "deep/" * 30 + "x" * 120
    members = [(f"{long}{n}.{end}", body) for n in range(3) for end, body in (("jpg", picture(n)), ("cls", b"%d" % n))]
    found = both(tmp_path, pack(tmp_path / "x.tar", members, format=form))
    assert [labels for _, labels, _ in found] == [["0"], ["1"], ["2"]]
    assert all(f"{long}{n}.jpg" in url for n, (url, _, _) in enumerate(found)), "where it came from is kept whole"
    for place in ("copied", "in-place"):
        keys = keys_of(tmp_path / place)
        assert len(set(keys)) == 3
        assert max(map(len, keys)) <= 90


# --- pax: WireCell 138 -----------------------------------------------------------------------------------------------


def test_pax_headers_of_a_file_and_of_the_whole_archive_are_no_members(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "é") * 60
    members = [(f"{name}.jpg", picture(1)), (f"{name}.cls", b"3")]
    tar = pack(tmp_path / "x.tar", members, format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"})
    assert [labels for _, labels, _ in both(tmp_path, tar)] == [["3"]]


# --- ids: xlsx2csv 85, twarc-csv 51, plio 70 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "keys"),
    [
        (pa.array([1571717171717171713, 3], pa.int64()), ["1571717171717171713", "3"]),
        (pa.array([1571717171717171712.0, 3.0, None], pa.float64()), ["1571717171717171712", "3"]),
        (pa.array([0.5, 12.0], pa.float32()), ["0_5", "12"]),
        (pa.array([Decimal("123456789012345678901")], pa.decimal128(30, 0)), ["123456789012345678901"]),
        (pa.array(["0001E0", "0001E1", "1E5", "007"]), ["0001E0", "0001E1", "1E5", "007"]),
    ],
)
def test_ids_of_a_table_are_the_digits_that_they_were(tmp_path: Path, ids: pa.Array, keys: list[str]) -> None:
    pq.write_table(pa.table({"id": ids, "url": URLS[: len(ids)]}), tmp_path / "list.parquet")
    assert keys_in(tmp_path / "list.parquet")[: len(keys)] == keys


def test_ids_in_text_and_json_are_the_digits_that_they_were(tmp_path: Path) -> None:
    ids = ["0001DC", "0001E0", "0001E1", "00042", "42"]
    (tmp_path / "list.csv").write_text("id,url\n" + "".join(f"{i},{u}\n" for i, u in zip(ids, URLS)))
    assert keys_in(tmp_path / "list.csv") == ids
    written = ["1571717171717171713", "1.5e18", "2.0", "0.5", '"007"']
    lines = "".join(f'{{"id": {i}, "url": "{u}"}}\n' for i, u in zip(written, URLS))
    (tmp_path / "list.jsonl").write_text(lines)
    assert keys_in(tmp_path / "list.jsonl") == ["1571717171717171713", "1500000000000000000", "2", "0_5", "007"]


# --- folders: WILDS 170, mmpretrain 507, vision 79, quilt1m 23 -------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            ",patient,node,x_coord,y_coord,tumor,slide,center,split",
            "is that of WILDS' camelyon17: give --set camelyon17",
        ),
        ("split,location_remapped,image_id,y,datetime,filename", "is that of WILDS' iwildcam: give --set iwildcam"),
        ("site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id", "give --set rxrx1"),
        ("image,caption", r"has no column file_name, .* \(it has image, caption\): rename that column"),
    ],
)
def test_a_metadata_table_that_is_not_the_hubs_is_named_with_the_next_step(
    tmp_path: Path, header: str, said: str
) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "1.png").write_bytes(picture(1))
    (tmp_path / "in" / "metadata.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(ValueError, match=said):
        folders.run(folders.Config(str(tmp_path / "in"), str(tmp_path / "out")))


def test_what_programs_leave_in_folders_is_no_class_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a/1.jpg", "b/2.jpg", ".ipynb_checkpoints/1-checkpoint.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(picture(len(name)))
    (tmp_path / "in" / ".DS_Store").write_bytes(b"x")
    assert cli.main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "2 classes: a, b; files that are no pictures of the set: 2 in .ipynb_checkpoints" in out


def test_pictures_that_a_table_does_not_name_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    for n in (1, 2):
        (tmp_path / "in" / f"{n}.jpg").write_bytes(picture(n))
    (tmp_path / "in" / "metadata.csv").write_text("file_name,label\n1.jpg,x\n")
    assert cli.main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "1 pictures that metadata.csv does not name" in capsys.readouterr().out


# --- checkpoints: dinov2 235, dino 217, OpenTAD 44, MeanFlow 12 ------------------------------------------------------


def vit(prefix: str = "", value: float = 0.0, chunk: str = "") -> dict[str, torch.Tensor]:
    names = ["cls_token", "patch_embed.proj.weight", *(f"blocks.{chunk}{n}.norm1.weight" for n in range(2))]
    return {prefix + name: torch.full((2,), value) for name in names}


FILES = {
    "dinov2.pth": {
        "model": vit("student.backbone.", 1, "0.")
        | vit("teacher.backbone.", 2, "0.")
        | {"teacher.dino_head.x": torch.ones(1)},
        "iteration": 5,
    },
    "dino.pth": {"student": vit("module.backbone.", 1), "teacher": vit("backbone.", 2), "epoch": 3},
    "timm.pth.tar": {"arch": "vit_tiny", "state_dict": vit("", 1), "state_dict_ema": vit("module.", 2)},
    "mae.pth": {"model": vit("", 2) | {"mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(1)}},
    "bare.pth": vit("module._orig_mod.", 2),
}


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("dinov2.pth", ["model.student.backbone", "model.teacher.backbone"]),
        ("dino.pth", ["student.backbone", "teacher.backbone"]),
        ("timm.pth.tar", ["state_dict", "state_dict_ema"]),
        ("mae.pth", ["model"]),
        ("bare.pth", [""]),
    ],
)
def test_the_transformer_in_a_checkpoint_of_others_is_found_and_of_several_one_is_named(
    tmp_path: Path, name: str, holds: list[str]
) -> None:
    path = str(tmp_path / name)
    torch.save(FILES[name], path)
    if len(holds) > 1:
        with pytest.raises(ValueError, match=f"has 2 vision transformers, {', '.join(holds)}: name one"):
            official.read_transformer(path)
    spec = f"{path}:{holds[-1]}" if len(holds) > 1 else path
    found = official.read_transformer(spec)
    assert sorted(found) == sorted(vit()), "by timm's names, and nothing of training"
    assert {float(tensor[0]) for tensor in found.values()} == {2.0}
    with pytest.raises(ValueError, match=f"{path}: has no vision transformer under nothing"):
        official.read_transformer(f"{path}:nothing")
    with pytest.raises(ValueError, match=rf"{path}: contains .* by timm's names: xtra probe --encoder timm:NAME:"):
        official.open_official(path)


def test_a_file_without_a_transformer_is_called_so(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.pt")
    torch.save({"visual.conv1.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="has no vision transformer by timm's names"):
        official.read_transformer(path)
    with pytest.raises(ValueError, match=r"has no tensor of the official model by itself; its first is visual\.conv1"):
        official.open_official(path)
    with pytest.raises(ValueError, match=r"gone\.pth: no such file"):
        official.read_transformer(f"{tmp_path}/gone.pth:teacher")
