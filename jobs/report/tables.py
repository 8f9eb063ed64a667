"""HTML tables, and numbers as text: columns are functions of a row; an unknown value stays empty."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jobs.report.html import escaped

Row = TypeVar("Row")
Columns = Mapping[str, Callable[[Row], Any]]


def table(
    columns: Columns[Row],
    rows: Sequence[Row],
    caption: str,
    strong: Callable[[Row], bool] = lambda row: False,
    kind: str = "",
) -> str:
    """`strong` rows are highlighted; `kind` is a CSS class of the page's style."""
    if not rows:
        return ""
    values = [[value(row) for value in columns.values()] for row in rows]
    numeric = [all(_is_number(v) for v in column) for column in zip(*values)]
    top = "".join(f"<th{' class=n' if right else ''}>{escaped(name)}</th>" for name, right in zip(columns, numeric))
    body = "".join(
        f"<tr{' class=ours' if strong(row) else ''}>{''.join(map(_cell, cells, numeric))}</tr>"
        for row, cells in zip(rows, values)
    )
    opening = f"<table class={kind}>" if kind else "<table>"
    label = f"table: {caption.partition('. ')[0][:90]}"  # for screen readers that move from table to table
    return (
        f"<p>{escaped(caption)}</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(label)}">'
        f"{opening}<thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int) or re.fullmatch(r"[-+0-9.e]*( to [-+0-9.]+)?\*?", value) is not None


def _cell(value: Any, right: bool) -> str:
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return f"<td{' class=n' if right else ''}>{escaped(text)}</td>"


def points(value: float | None) -> str | None:
    """A share in %, without the % sign."""
    return None if value is None else f"{100 * value:.1f}"


def number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def human(value: float) -> str:
    """1234567 -> 1.23M; powers of ten beyond 1e13."""
    for limit, unit, mark in ((1e13, 0, ""), (1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if value >= limit:
            return f"{value / unit:.3g}{mark}" if unit else f"{value:.2g}".replace("e+", "e")
    return f"{value:.3g}"


def power(value: float) -> str:
    return f"{value:.2g}".replace("e+", "e")


def percent(value: float) -> str:
    """A share in %, in three digits, without the % sign."""
    return f"{100 * value:.3g}"
