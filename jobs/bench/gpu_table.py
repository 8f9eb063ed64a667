"""The tables in docs/perf.md, from the results of `make bench-gpu`.

    python -m jobs.bench.gpu_table 1.json 2.json 3.json                        # to the terminal
    python -m jobs.bench.gpu_table 1.json 2.json 3.json --into docs/perf.md    # between its two marks

Of rows with the same name, the last file's is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.bench.rounds import parsed

Row = Mapping[str, Any]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# Milliseconds per step predicted before any measurement: B/16 with 256 images and H/14 with 128, on an H100 and then on
# an H200.
PREDICTED: dict[str, tuple[int, int, int, int]] = {
    "official shape, fp32 decoder": (700, 560, 659, 502),
    "official shape, TF32 decoder": (290, 420, 241, 357),
    "official shape, bf16 decoder": (225, 400, 187, 341),
    "best known": (153, 287, 134, 258),
    "attention dense-cudnn": (149, 282, 131, 253),
    "attention halves": (157, 292, 138, 262),
    "attention quarters": (160, 297, 140, 267),
    "attention blocks": (175, 320, 153, 287),
    "attention flex128": (155, 290, 136, 260),
    "attention flex64": (153, 287, 134, 258),
    "dropped branches skipped": (146, 264, 128, 237),
    "a fixed number of branches skipped": (146, 264, 128, 237),
    "max-autotune": (150, 283, 132, 254),
    "not compiled": (205, 360, 171, 310),
    "all blocks computed": (163, 305, 143, 274),
    "optimiser not fused": (159, 304, 138, 269),
    "TF32 decoder": (198, 302, 174, 271),
    "fp32 decoder": (600, 450, 580, 420),
}
PREDICTED_FOR = {"b16": (0, 256), "h14": (1, 128)}  # which of the two, and for how many images


def read(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The results. Raises ValueError naming a file that is not one."""
    found = []
    for path in paths:
        try:
            one = json.loads(Path(path).read_text())
            assert {"rows", "hardware", "date"} <= one.keys()
        except (OSError, ValueError, AssertionError, AttributeError) as why:
            raise ValueError(f"{path} is not a result of make bench-gpu ({why or 'it has no rows'})") from None
        found.append(one)
    return found


def lines_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines: where and when it was measured, then a table for every section that has rows."""
    lines = [
        f"- {one['hardware']}; {one['date'][:10]}; commit {one['commit']}; torch {one.get('torch', '?')}, "
        f"cuDNN {one.get('cudnn') or 'none'}; {one['seconds']:.0f} s"
        for one in results
    ]
    last = {(row["section"], row.get("size", ""), row["name"]): row for one in results for row in one["rows"]}
    rows: list[Row] = list(last.values())
    lines += _machine(rows) + _checks(rows) + _kernels(rows)
    for size in dict.fromkeys(row["size"] for row in rows if row["section"] == "train" and row.get("size")):
        lines += _arms(
            size,
            "H200" in results[-1]["hardware"],
            [row for row in rows if row["section"] == "train" and row.get("size") == size],
        )
    of_loop = ("steps", "first_loss", "last_loss", "most_apart", "samples_per_s", "data_wait", "seconds")
    of_data = ("library", "decoder", "images_per_s", "cpu_us_per_image", "refused", "psnr_db", "wait_share")
    return [
        *lines,
        *_profile(rows),
        *_named("The training loop", rows, "loop", of_loop),
        *_named("Decoding, and shards to steps", rows, "data", of_data),
    ]


def _table(title: str, names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    if not cells:
        return []
    head, *body = ("| " + " | ".join(row) + " |" for row in (names, *cells))
    return ["", f"**{title}**", "", head, "|" + "---|" * len(names), *body]


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)


def _outcome(row: Row) -> str:
    """Why a row has no numbers."""
    return str(row.get("failed") or row.get("left_out") or "")


def _machine(rows: Sequence[Row]) -> list[str]:
    cells = [
        [f"{row[name] / 1e12:.0f}" for name in ("bf16", "tf32", "fp32")]
        + [f"{row['bandwidth'] / 1e12:.2f}", f"{row['host'] / 1e9:.0f}"]
        for row in rows
        if row["section"] == "machine" and "bf16" in row
    ]
    return _table(
        "What large products and copies reach",
        ("bf16, TFLOP/s", "TF32", "float32", "memory, TB/s", "from the host, GB/s"),
        cells,
    )


def _checks(rows: Sequence[Row]) -> list[str]:
    checks = [row for row in rows if row["section"] == "checks"]
    if not checks:
        return []
    good = sum(bool(row.get("ok")) for row in checks)
    wrong = [
        [row["name"], _number(row.get("value")), _number(row.get("bar")), _outcome(row)]
        for row in checks
        if not row.get("ok")
    ]
    table = _table("Checks that do not hold", ("check", "value", "at most", "why"), wrong)
    return ["", f"Checks: {good} of {len(checks)} hold.", *table]


def _kernels(rows: Sequence[Row]) -> list[str]:
    cells = [
        [
            row["name"],
            *(_number(row.get(key)) for key in ("ms", "floor_ms", "first_s", "new_batch_s")),
            _outcome(row) or ", ".join(f"{key}: {row[key]}" for key in ("masked", "causal") if key in row),
        ]
        for row in rows
        if row["section"] == "kernels"
    ]
    return _table(
        "Attention, forward and backward",
        ("images x heads x tokens x width, kernel", "ms", "floor", "first call, s", "new batch size, s", ""),
        cells,
    )


def _arms(size: str, h200: bool, rows: Sequence[Row]) -> list[str]:
    which, images = PREDICTED_FOR.get(size, (0, 0))
    which += 2 * h200
    cells = []
    for row in rows:
        predicted = ""
        if images and row["name"] in PREDICTED:
            predicted = f"{PREDICTED[row['name']][which] * row.get('images', images) / images:.0f}"
        if "step_ms" not in row:
            cells.append([row["name"], predicted, "", "", "", "", "", "", "", _outcome(row)])
            continue
        kernels = row.get("kernels") or {}
        cells.append(
            [
                row["name"],
                predicted,
                str(row["images"]),
                f"{row['step_ms']:.1f}",
                _number(row["floor_ms"]),
                f"{row['samples_per_s']:,.0f}",
                f"{100 * row['mfu_paper']:.1f} %" if row["mfu_paper"] is not None else "",
                f"{row['memory_gb']:.0f}",
                f"{row['host_ms']:.1f}",
                " / ".join(dict.fromkeys(kernels.values())),
            ]
        )
    return _table(
        f"{size}: one training step",
        ("arm", "predicted ms", "images", "ms", "floor", "images/s", "MFU, paper", "GB", "host ms", "attention by"),
        cells,
    )


def _profile(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for row in (row for row in rows if row["section"] == "profile"):
        title = f"{row['size']}, {row['name']}"
        if "by_kernel" not in row:
            lines += ["", f"**{title}**: {_outcome(row)}"]
            continue
        kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in sorted(row["kinds_ms"].items(), key=lambda one: -one[1]))
        parts = ", ".join(f"{part} {ms:.2f}" for part, ms in row["floor_parts_ms"].items())
        head = (
            f"{title}: {row['step_ms']:.1f} ms a step, {row['device_ms']:.1f} in kernels, {row['launches']:.0f} of them"
        )
        lines += _table(
            f"{head}; ms by kind: {kinds}; floor: {parts}",
            ("kernel", "ms", "calls"),
            [[f"`{name}`".replace("|", "/"), f"{ms:.2f}", f"{calls:.0f}"] for name, ms, calls in row["by_kernel"][:15]],
        )
    return lines


def _named(title: str, rows: Sequence[Row], section: str, columns: Sequence[str]) -> list[str]:
    own = [row for row in rows if row["section"] == section]
    shown = [name for name in columns if any(name in row for row in own)]
    cells = [[row["name"], *(_number(row.get(name)) for name in shown), _outcome(row)] for row in own]
    return _table(title, ("", *(name.replace("_", " ") for name in shown), ""), cells)


def put(lines: Sequence[str], page: Path) -> None:
    """Replace the text between the page's two marks. Raises ValueError if it has none."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}: add them where the tables should go")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


def main(words: list[str]) -> int:
    flags = {
        "results": {"nargs": "+", "help": "JSON files of make bench-gpu"},
        "--into": {"default": "", "help": "the page to write the tables into"},
    }
    values = parsed(words, flags, prog="python -m jobs.bench.gpu_table", description=(__doc__ or "").split("\n")[0])
    try:
        lines = lines_of(read(values.results))
        if values.into:
            put(lines, Path(values.into))
        else:
            print("\n".join(lines))
    except (OSError, ValueError) as error:
        print(f"gpu-table: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
