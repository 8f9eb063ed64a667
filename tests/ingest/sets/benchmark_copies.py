"""Small copies of the 15 evaluation sets, each written exactly as its publishers lay it out.

Every copy has the same pictures: numbers 0 to 4 train, 10 and 11 evaluate, 20 is of a split that nobody asked for. The
class of a number is given by CLASS_OF; `pixels(number)` are its pixels, kept losslessly under whatever file name.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TRAIN, EVAL, OTHER = (0, 1, 2, 3, 4), (10, 11), (20,)
CLASS_OF = {0: 0, 1: 1, 2: 0, 3: 1, 4: 1, 10: 1, 11: 0, 20: 0}
SPLITS = {"train": TRAIN, "eval": EVAL, "other": OTHER}


def pixels(number: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng([number, side]).integers(0, 256, (side, side, 3)).astype(np.uint8)


def body(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(number)).save(out, "PNG")
    return out.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def put_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


# --- folders with lists next to them -------------------------------------------------------------------------------


def folders(root: Path, train: str, evaluation: str, classes: Sequence[str]) -> None:
    for split, numbers in ((train, TRAIN), (evaluation, EVAL)):
        for n in numbers:
            put(root / split / classes[CLASS_OF[n]] / f"{n}.jpg", body(n))


WNIDS = ("n01440764", "n01443537")


def imagenet_folders(root: Path) -> Sequence[str]:
    for n in TRAIN:
        put(root / "train" / WNIDS[CLASS_OF[n]] / f"{WNIDS[CLASS_OF[n]]}_{n}.JPEG", body(n))
    for at, n in enumerate(EVAL, 1):
        put(root / "val" / WNIDS[CLASS_OF[n]] / f"ILSVRC2012_val_{at:08d}.JPEG", body(n))
    return WNIDS


def _flat_val(root: Path) -> list[str]:
    for n in TRAIN:
        put(root / "train" / WNIDS[CLASS_OF[n]] / f"{WNIDS[CLASS_OF[n]]}_{n}.JPEG", body(n))
    names = [f"ILSVRC2012_val_{at:08d}" for at in range(1, len(EVAL) + 1)]
    for name, n in zip(names, EVAL):
        put(root / "val" / f"{name}.JPEG", body(n))
    return names


def imagenet_kaggle(root: Path) -> Sequence[str]:
    names = _flat_val(root / "ILSVRC/Data/CLS-LOC")
    rows = [
        {"ImageId": name, "PredictionString": f"{WNIDS[CLASS_OF[n]]} 1 2 30 40 {WNIDS[0]} 5 6 7 8 "}
        for name, n in reversed(list(zip(names, EVAL)))
    ]
    put_table(root / "LOC_val_solution.csv", rows)
    return WNIDS


def imagenet_synsets(root: Path) -> Sequence[str]:
    _flat_val(root)
    put(root / "imagenet_2012_validation_synset_labels.txt", "".join(f"{WNIDS[CLASS_OF[n]]}\n" for n in EVAL))
    return WNIDS


def imagenet_devkit(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    _flat_val(root)
    kit = root / "ILSVRC2012_devkit_t12/data"
    put(kit / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{(7, 3)[CLASS_OF[n]]}\n" for n in EVAL))
    synsets = np.zeros(2, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    synsets[0] = (7, WNIDS[0], "tench, Tinca tinca", 0)
    synsets[1] = (3, WNIDS[1], "goldfish, Carassius auratus", 0)
    savemat(kit / "meta.mat", {"synsets": synsets})
    return WNIDS


INAT = ("2", "10")  # in the order of numbers, not of letters
INAT_PATHS = ("Aves/2", "Plantae/10")


def inat_json(root: Path) -> Sequence[str]:
    for split, numbers in (("train", TRAIN), ("val", EVAL)):
        names = {n: f"train_val2018/{INAT_PATHS[CLASS_OF[n]]}/{n:032x}.jpg" for n in numbers}
        table = {
            "images": [{"id": 100 + n, "file_name": name, "width": 32, "height": 32} for n, name in names.items()],
            "annotations": [
                {"id": n, "image_id": 100 + n, "category_id": int(INAT[CLASS_OF[n]])} for n in reversed(numbers)
            ],
            "categories": [{"id": int(c), "name": "x", "supercategory": "y"} for c in INAT],
        }
        put(root / f"{split}2018.json", json.dumps(table))
        for n, name in names.items():
            put(root / name, body(n))
    return INAT


def inat_folders(root: Path) -> Sequence[str]:
    folders(root, "train", "val", INAT_PATHS)
    return INAT


def inat_split(root: Path) -> Sequence[str]:
    """Sorted into folders by the lists, which stay next to them."""
    inat_json(root)
    (root / "train_val2018").rename(root / "unsorted")
    return inat_folders(root)


def food101(root: Path) -> Sequence[str]:
    root, classes = root / "food-101", ("apple_pie", "waffles")
    for split, numbers in (("train", TRAIN), ("test", EVAL)):
        put(root / f"meta/{split}.txt", "".join(f"{classes[CLASS_OF[n]]}/{1000 + n}\n" for n in numbers))
        for n in numbers:
            put(root / f"images/{classes[CLASS_OF[n]]}/{1000 + n}.jpg", body(n))
    put(root / "meta/classes.txt", "\n".join(classes))
    return classes


def dtd(root: Path) -> Sequence[str]:
    classes = ("banded", "zigzagged")
    for split, numbers in (("train1", TRAIN[:3]), ("val1", TRAIN[3:]), ("test1", EVAL), ("train2", OTHER)):
        names = [f"{classes[CLASS_OF[n]]}/{classes[CLASS_OF[n]]}_{n:04d}.jpg" for n in numbers]
        put(root / f"labels/{split}.txt", "".join(f"{name}\n" for name in names))
        for name, n in zip(names, numbers):
            put(root / "images" / name, body(n))
    return classes


def pets(root: Path) -> Sequence[str]:
    classes = ("Sphynx", "great_pyrenees")  # upper case is cats, lower case dogs; numbers do not follow letters
    for split, numbers in (("trainval", TRAIN), ("test", EVAL)):
        names = {n: f"{classes[CLASS_OF[n]]}_{n}" for n in numbers}
        rows = (f"{name} {CLASS_OF[n] + 1} {CLASS_OF[n] + 1} 1\n" for n, name in names.items())
        put(root / f"annotations/{split}.txt", "".join(rows))
        for n, name in names.items():
            put(root / f"images/{name}.jpg", body(n))
    put(root / "images/Sphynx_99.jpg", body(99))  # on the disk, and on no list
    return classes


def infograph(root: Path) -> Sequence[str]:
    classes = ("zebra", "The_Mona_Lisa")
    for split, numbers in (("train", TRAIN), ("test", EVAL)):
        names = {n: f"infograph/{classes[CLASS_OF[n]]}/infograph_{CLASS_OF[n]}_{n:06d}.jpg" for n in numbers}
        put(root / f"infograph_{split}.txt", "".join(f"{name} {CLASS_OF[n]}\n" for n, name in names.items()))
        for n, name in names.items():
            put(root / name, body(n))
    return classes


# --- WILDS ---------------------------------------------------------------------------------------------------------


def iwildcam(root: Path) -> Sequence[str]:
    names, rows = {"train": "train", "eval": "val", "other": "id_val"}, []
    for split, numbers in SPLITS.items():
        for n in numbers:
            row = {"split": names[split], "location_remapped": 3, "y": (9, 10)[CLASS_OF[n]], "filename": f"{n:08x}.jpg"}
            rows.append(row)
            put(root / "train" / f"{n:08x}.jpg", body(n))
    put_table(root / "metadata.csv", rows)
    put_table(
        root / "categories.csv", [{"y": 9, "name": "lion"}, {"y": 10, "name": "empty"}, {"y": 99999, "name": "?"}]
    )
    return "lion", "empty"


def rxrx1(root: Path) -> Sequence[str]:
    names, rows = {"train": "train", "eval": "val", "other": "test"}, []
    for split, numbers in SPLITS.items():
        for n in numbers:
            row = {"site_id": n, "cell_type": "HEPG2", "dataset": names[split], "experiment": "HEPG2-08", "plate": n}
            rows.append(row | {"well": "B02", "site": 1, "sirna": "", "sirna_id": (77, 1138)[CLASS_OF[n]]})
            put(root / f"images/HEPG2-08/Plate{n}/B02_s1.png", body(n))
    rows.append(rows[0] | {"site": 2})  # of the test inside the training experiments
    put(root / "images/HEPG2-08/Plate0/B02_s2.png", body(20))
    put_table(root / "metadata.csv", rows)
    return "77", "1138"


def camelyon17(root: Path) -> Sequence[str]:
    rows = []
    for n, center, split in [*((n, n, 0) for n in (0, 3, 4)), (1, 0, 0), (2, 3, 0), (10, 1, 0), (11, 1, 1), (20, 2, 0)]:
        row = {"": n, "patient": "004", "node": 4, "x_coord": 3328 + n, "y_coord": 21792, "tumor": CLASS_OF[n]}
        rows.append(row | {"slide": 0, "center": center, "split": split})
        patch = f"patient_004_node_4/patch_patient_004_node_4_x_{3328 + n}_y_21792.png"
        put(root / "patches" / patch, body(n))
    rows.append(rows[0] | {"x_coord": 1, "split": 1})  # of the validation inside the training hospitals
    put_table(root / "metadata.csv", rows)
    return "0", "1"


def fmow(root: Path) -> Sequence[str]:
    classes, rows = ("airport", "airport_hangar"), []
    years = {"train": ("train", 2012), "eval": ("val", 2013), "other": ("val", 2012)}
    numbers = [(n, *years[split]) for split, members in SPLITS.items() for n in members]
    for at, (n, split, year) in enumerate([*numbers, (20, "train", 2013), (20, "val", 2016), (20, "seq", 2010)]):
        rows.append({"split": split, "category": classes[CLASS_OF[n]], "timestamp": f"{year}-12-31T01:02:03Z"})
        put(root / f"images/rgb_img_{at}.png", body(n))
    put_table(root / "rgb_metadata.csv", rows)
    return classes


# --- arrays, MATLAB files, Parquet ---------------------------------------------------------------------------------


def python2(value: object) -> bytes:
    """A value as Python 2 pickled it (protocol 2), which is how CIFAR's archives hold theirs."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(key) + python2(each) for key, each in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
        shape = b"".join(map(python2, value.shape)) + b"\x86"
        return made + b"(K\x01" + shape + kind + b"\x89" + python2(value.tobytes()) + b"tb"
    text = value if isinstance(value, bytes) else str(value).encode()
    return b"T" + struct.pack("<i", len(text)) + text


def old(value: object) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def _batch(numbers: Sequence[int], labels: str, dumps: Callable[[object], bytes] = old) -> bytes:
    data = np.stack([pixels(n).transpose(2, 0, 1).reshape(-1) for n in numbers])
    batch = {"data": data, labels: [CLASS_OF[n] for n in numbers], "filenames": [f"cat_s_{n:06d}.png" for n in numbers]}
    return dumps(batch)


def cifar10(root: Path) -> Sequence[str]:
    root, classes = root / "cifar-10-batches-py", ("airplane", "automobile")
    for at, n in enumerate(TRAIN, 1):
        put(root / f"data_batch_{at}", _batch([n], "labels"))
    put(root / "test_batch", _batch(EVAL, "labels"))
    put(root / "batches.meta", old({"label_names": list(classes), "num_vis": 3072}))
    return classes


def cifar10_packed(root: Path) -> Sequence[str]:
    classes = cifar10(root / "unpacked")
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(root / "unpacked/cifar-10-batches-py", "cifar-10-batches-py")
    for path in (root / "unpacked/cifar-10-batches-py").iterdir():
        path.unlink()
    return classes


def cifar100(root: Path) -> Sequence[str]:
    classes = ("apple", "aquarium_fish")
    for split, numbers in (("train", TRAIN), ("test", EVAL)):
        put(
            root / "cifar-100-python" / split, _batch(numbers, "fine_labels", pickle.dumps)
        )  # as a Python 3 rewrites it
    meta = {"fine_label_names": list(classes), "coarse_label_names": ["fruit"]}
    put(root / "cifar-100-python/meta", pickle.dumps(meta, protocol=2))
    return classes


def pcam(root: Path, packed: bool = False) -> Sequence[str]:
    import h5py

    for split, numbers in (("train", TRAIN), ("valid", EVAL), ("test", OTHER)):
        arrays = {"x": np.stack([pixels(n) for n in numbers])}
        arrays["y"] = np.array([CLASS_OF[n] for n in numbers], np.uint8).reshape(-1, 1, 1, 1)
        for what, array in arrays.items():
            path = root / f"camelyonpatch_level_2_split_{split}_{what}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file[what] = array
            if packed:
                put(path.with_name(path.name + ".gz"), gzip.compress(path.read_bytes()))
                path.unlink()
    return "normal", "tumor"


def pcam_packed(root: Path) -> Sequence[str]:
    return pcam(root, packed=True)


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def _annotations(rows: Sequence[dict[str, object]]) -> dict[str, np.ndarray]:
    table = np.zeros(len(rows), [(name, "O") for name in rows[0]])
    for at, row in enumerate(rows):
        table[at] = tuple(row.values())
    return {"annotations": table}


def cars_devkit(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    root = root / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(CARS, object)})
    for split, numbers, where in (
        ("train", TRAIN, "devkit/cars_train_annos"),
        ("test", EVAL, "cars_test_annos_withlabels"),
    ):
        names = {n: f"{n:05d}.jpg" for n in numbers}
        rows = [{"bbox_x1": 1, "class": CLASS_OF[n] + 1, "fname": name} for n, name in names.items()]
        savemat(root / f"{where}.mat", _annotations(rows))
        for n, name in names.items():
            put(root / f"cars_{split}" / name, body(n))
    return CARS


def cars_one_file(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    rows = []
    for split in ("train", "eval"):
        for n in SPLITS[split]:
            name = f"car_ims/{n:06d}.jpg"
            rows.append(
                {"relative_im_path": name, "bbox_x1": 1, "class": CLASS_OF[n] + 1, "test": int(split == "eval")}
            )
            put(root / name, body(n))
    savemat(root / "cars_annos.mat", _annotations(rows) | {"class_names": np.array(CARS, object)})
    return CARS


def parquet(
    root: Path,
    train: str,
    evaluation: str,
    other: str,
    names: Sequence[str],
    image: str = "image",
    label: str = "label",
) -> Sequence[str]:
    """As `datasets.push_to_hub` writes them: several files a split, several row groups a file."""
    features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    features["coarse"] = {"names": ["a", "b"], "_type": "ClassLabel"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(image, kind), (label, pa.int64()), ("coarse", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, numbers in ((train, TRAIN), (evaluation, EVAL), (other, OTHER)):
        for at, members in enumerate((numbers[:-2], numbers[-2:])):
            rows = [{image: {"bytes": body(n), "path": None}, label: CLASS_OF[n], "coarse": 0} for n in members]
            table = pa.Table.from_pylist(rows, schema)
            pq.write_table(table, root / f"data/{split}-{at:05d}-of-00002-da7f777dde05cdc6.parquet", row_group_size=2)
    return names


def converted(root: Path, evaluation: str = "test") -> Sequence[str]:
    """The Hub's own conversion: a folder a split, files numbered."""
    names = parquet(root / "made", "train", evaluation, "extra", ("Annual", "Forest"))
    for path in (root / "made/data").iterdir():
        split, number = path.name.split("-")[:2]
        (root / "default" / split).mkdir(parents=True, exist_ok=True)
        path.rename(root / "default" / split / f"{number[1:]}.parquet")
    return names


def hugging(train: str, evaluation: str, other: str, image: str = "image", label: str = "label") -> Writer:
    return lambda root: parquet(root, train, evaluation, other, ("second to none", "a class"), image, label)


Writer = Callable[[Path], Sequence[str]]  # writes a copy below a folder; returns its classes in order


def of_folders(train: str, evaluation: str) -> Writer:
    def write(root: Path) -> Sequence[str]:
        folders(root, train, evaluation, ("AnnualCrop", "Forest"))
        return "AnnualCrop", "Forest"

    return write


COPIES: dict[str, dict[str, Writer]] = {
    "imagenet1k": {
        "folders": imagenet_folders,
        "kaggle": imagenet_kaggle,
        "synsets": imagenet_synsets,
        "devkit": imagenet_devkit,
        "parquet": hugging("train", "validation", "test"),
    },
    "inat18": {
        "json": inat_json,
        "folders": inat_folders,
        "folders next to lists": inat_split,
        "converted": lambda root: converted(root, "validation"),
    },
    "cifar10": {"pickles": cifar10, "packed": cifar10_packed, "parquet": hugging("train", "test", "extra", "img")},
    "cifar100": {"pickles": cifar100, "parquet": hugging("train", "test", "extra", "img", "fine_label")},
    "food101": {"lists": food101, "parquet": hugging("train", "validation", "extra")},
    "dtd": {"lists": dtd, "parquet": hugging("train", "test", "contrast"), "folders": of_folders("val", "test")},
    "pets": {"lists": pets, "parquet": hugging("train", "test", "extra")},
    "cars": {
        "devkit": cars_devkit,
        "one file": cars_one_file,
        "parquet": hugging("train", "test", "contrast"),
    },
    "iwildcam": {"wilds": iwildcam},
    "camelyon17": {"wilds": camelyon17, "parquet": hugging("id_train", "ood_val", "id_val")},
    "pcam": {"hdf5": pcam, "packed": pcam_packed, "parquet": hugging("train", "valid", "test")},
    "rxrx1": {"wilds": rxrx1},
    "eurosat": {
        "folders": of_folders("train", "test"),
        "parquet": hugging("train", "test", "contrast"),
        "converted": converted,
    },
    "fmow": {"wilds": fmow, "parquet": hugging("train", "val", "test")},
    "infograph": {"lists": infograph},
}
