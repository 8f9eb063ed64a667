"""Daft: the bodies behind a list of URLs -> Parquet files, in the fewest steps that it offers.

    python fetch.py --urls=LIST --out=FOLDER [--decode]

It runs in its own environment, so it imports none of our modules. A failed request ends the run. With --decode only
bodies count that Daft can decode to RGB. They are stored without compression, which would only cost it time.
"""

from __future__ import annotations

import argparse
import os
from typing import Any


def main() -> None:
    import daft  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser()
    parser.add_argument("--urls", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--decode", action="store_true")
    words = parser.parse_args()
    with open(words.urls) as file:
        frame: Any = daft.from_pydict({"url": file.read().split()})
    frame = frame.with_column("body", daft.col("url").download())
    if words.decode:
        frame = frame.where(daft.col("body").decode_image(on_error="null").not_null())
    frame.write_parquet(words.out, compression="uncompressed")
    os._exit(0)  # all is written; now and then its threads crash an interpreter that ends


if __name__ == "__main__":
    main()
