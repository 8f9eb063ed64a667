"""Where tests find things: the checkout, their own helper modules, and the folder of references beside a checkout."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # reference numbers and real images; absent beside most checkouts
FOLDERS = [str(TESTS)]  # of helper modules: origin, made_datasets, ranks, ...
FOLDERS += [str(folder) for folder in sorted(TESTS.rglob("*")) if folder.is_dir() and folder.name[0] not in "_."]
