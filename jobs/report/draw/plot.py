"""Lines and points over two axes -> an <svg> element: no scripts, fonts or links; the same input gives the same bytes.

Colours are CSS variables of the page, so that one chart serves light and dark. A point can be hovered, tapped and
reached by Tab: its text appears in a line above the plot, by CSS alone, and is its <title> for screen readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jobs.report.html import escaped

WIDTH = 360  # of most charts; one unit is a pixel on a phone
LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 46, 12, 46, 190, 40  # the plotting area and its margins
STYLES = 8  # colours and markers in the page's style
LETTER = 6.3  # mean width of a character of 12 px

Form = Callable[[float], str]


@dataclass(frozen=True)
class Mark:
    """A measured point; `text` appears when it is pointed at."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One entry of the legend; `style` chooses colour and marker."""

    label: str
    style: int
    marks: Sequence[Mark] = ()
    dots: Sequence[tuple[float, float]] = ()  # small ones, such as single seeds
    paths: Sequence[Sequence[tuple[float, float]]] = ()
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    dashed: bool = False


@dataclass(frozen=True)
class Rule:
    """A horizontal line, such as the accuracy without pretraining; a band where it spans several values."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    form: Form
    log: bool = False
    ticks: Sequence[float] = field(default=())  # chosen here if empty

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self) -> list[float]:
        if self.ticks:
            return [tick for tick in self.ticks if self.low <= tick <= self.high]
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def log_axis(label: str, values: Sequence[float], form: Form, exact: bool = True) -> Axis:
    """A logarithmic axis around values above 0; its label says so. `exact`: few values get a tick each."""
    low, high = min(values), max(values)
    apart = sorted(set(values))
    few = exact and len(apart) <= 6 and all(b / a > (high / low) ** 0.13 for a, b in pairwise(apart))
    return Axis(f"{label}, log scale", low / 1.35, high * 1.35, form, log=True, ticks=apart if few else ())


def axis(label: str, values: Sequence[float], form: Form, floor: float | None = None) -> Axis:
    """A linear axis around values, with a margin; not below `floor`."""
    low, high = min(values), max(values)
    apart = high - low > 1e-6 * max(abs(low), abs(high))  # otherwise they differ by rounding alone
    air = 0.07 * (high - low) if apart else abs(high) * 0.1 or 1.0
    return Axis(label, low - air if floor is None else max(floor, low - air), high + air, form)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between the ends."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with round numbers between them where there are fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**k for k in decades for m in parts if low <= m * 10.0**k <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 7)]
    return ticks(low, high)


@dataclass(frozen=True)
class Chart:
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    width: int = WIDTH
    height: int = HEIGHT  # of the plotting area

    def svg(self) -> str:
        rows = self._legend_rows()
        height = TOP + self.height + BOTTOM + 17 * len(rows)
        hint = "point at a mark" if any(s.marks for s in self.series) else ""
        return "".join(
            [
                f'<svg class="chart" viewBox="0 0 {self.width} {height}" role="group" '
                f'aria-label="{escaped(self.title)}"><desc>{escaped(self.described())}</desc>',
                f'<text class="t" x="2" y="14">{escaped(self.title)}</text>',
                f'<text class="hint" x="{LEFT}" y="34">{hint}</text>' if hint else "",
                self._frame(),
                "".join(map(self._rule, self.rules)),
                "".join(self._under(s) for s in self.series),
                "".join(self._name(rule, y) for rule, y in self._spread(self.rules)),
                "".join(self._points(s) for s in self.series),
                "".join(
                    self._entry(entry, x, TOP + self.height + BOTTOM + 17 * row + 10)
                    for row, entries in enumerate(rows)
                    for entry, x in entries
                ),
                "</svg>",
            ]
        )

    def described(self) -> str:
        """The chart in words: its axes, and where each line begins and ends."""
        words = [f"{self.y.label} against {self.x.label}."]
        for s in self.series:
            ends = [(m.x, m.y) for m in s.marks] or [point for path in s.paths for point in path]
            if ends:
                first, last = min(ends), max(ends)
                words.append(
                    f"{s.label}: {self.y.form(first[1])} at {self.x.form(first[0])}"
                    + (f", {self.y.form(last[1])} at {self.x.form(last[0])}." if last != first else ".")
                )
        words += [f"{rule.label}: {self.y.form((rule.low + rule.high) / 2)}." for rule in self.rules]
        return " ".join(words)

    # ---- places ----

    def _x(self, value: float) -> float:
        return LEFT + (self.width - LEFT - RIGHT) * min(1.02, max(-0.02, self.x.place(value)))

    def _y(self, value: float) -> float:
        return TOP + self.height * (1 - min(1.02, max(-0.02, self.y.place(value))))

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in points)

    # ---- parts ----

    def _frame(self) -> str:
        right, bottom = self.width - RIGHT, TOP + self.height
        parts = []
        for tick in self.y.at():
            y = self._y(tick)
            parts += [
                f'<path class="g" d="M{LEFT} {y:.1f}H{right}"/>',
                f'<text class="e" x="{LEFT - 6}" y="{y + 4:.1f}">{escaped(self.y.form(tick))}</text>',
            ]
        parts.append(f'<path class="a" d="M{LEFT} {bottom}H{right}"/>')
        taken = -math.inf
        for tick in self.x.at():
            x, text = self._x(tick), self.x.form(tick)
            parts.append(f'<path class="a" d="M{x:.1f} {bottom}v4"/>')
            if x - LETTER * len(text) / 2 > taken:  # a label that would run into its neighbour is left out
                parts.append(f'<text class="m" x="{x:.1f}" y="{bottom + 17}">{escaped(text)}</text>')
                taken = x + LETTER * len(text) / 2 + 4
        parts.append(f'<text class="m l" x="{(LEFT + right) / 2:.1f}" y="{bottom + 33}">{escaped(self.x.label)}</text>')
        return "".join(parts)

    def _under(self, s: Series) -> str:
        """What marks are drawn over: band, lines, single seeds, intervals."""
        parts = []
        if s.band:
            upper, lower = [(x, high) for x, _, high in s.band], [(x, low) for x, low, _ in reversed(s.band)]
            parts.append(f'<path class="b" d="{self._path([*upper, *lower])}Z"/>')
        kind = "d" if s.dashed else "i"
        parts += [f'<path class="{kind}" d="{self._path(path)}"/>' for path in s.paths if len(path) > 1]
        bars = "".join(
            f"M{self._x(m.x):.1f} {self._y(m.low):.1f}V{self._y(m.high):.1f}"
            for m in s.marks
            if m.low is not None and m.high is not None
        )
        parts += [f'<path class="v" d="{bars}"/>'] * bool(bars)
        dots = "".join(f'<circle cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="1.8"/>' for x, y in s.dots)
        parts += [f'<g class="o">{dots}</g>'] * bool(dots)
        return f'<g class="s{s.style % STYLES}">{"".join(parts)}</g>' if parts else ""

    def _points(self, s: Series) -> str:
        found = "".join(
            f'<g class="p" tabindex="0"><title>{escaped(m.text)}</title>'
            f'<path d="{_marker(s.style, self._x(m.x), self._y(m.y))}"/>'
            f'<text class="r" y="29">{_lines(m.text, int(self.width / 5.9))}</text></g>'
            for m in sorted(s.marks, key=lambda m: (m.x, m.y))
        )
        return f'<g class="s{s.style % STYLES}">{found}</g>' if found else ""

    def _spread(self, rules: Sequence[Rule]) -> list[tuple[Rule, float]]:
        """Rules from the bottom, with the height of their name: names that would overlap are moved up."""
        placed: list[tuple[Rule, float]] = []
        y = math.inf
        for rule in sorted(rules, key=lambda rule: rule.low + rule.high):
            y = min(self._y(max((rule.low + rule.high) / 2, self.y.low)) - 3, y - 13)
            placed.append((rule, y))
        return placed

    def _rule(self, rule: Rule) -> str:
        if rule.low + rule.high < 2 * self.y.low:  # drawing it would squeeze the curves
            return ""
        y, high, low = (self._y(value) for value in ((rule.low + rule.high) / 2, rule.high, rule.low))
        right = self.width - RIGHT
        band = f'<path class="u" d="M{LEFT} {high:.1f}H{right}V{low:.1f}H{LEFT}Z"/>' if low - high > 1 else ""
        return f'{band}<path class="n" d="M{LEFT} {y:.1f}H{right}"/>'

    def _name(self, rule: Rule, y: float) -> str:
        """A rule's name, drawn over the curves; with an arrow where the line itself is below the chart."""
        middle = (rule.low + rule.high) / 2
        arrow = " \u2193" if middle < self.y.low else ""
        name = f"{rule.label} {self.y.form(middle)}{arrow}"
        return f'<text class="e q" x="{self.width - RIGHT}" y="{y:.1f}">{escaped(name)}</text>'

    def _legend_rows(self) -> list[list[tuple[Series, float]]]:
        """Entries with their x, as many to a row as fit."""
        rows: list[list[tuple[Series, float]]] = []
        x = math.inf
        for s in self.series:
            needed = 22 + LETTER * len(s.label) + 14
            if x + needed > self.width + 14:
                rows.append([])
                x = 2.0
            rows[-1].append((s, x))
            x += needed
        return rows

    def _entry(self, s: Series, x: float, y: float) -> str:
        kind = "d" if s.dashed else "i"
        mark = f'<g class="p"><path d="{_marker(s.style, x + 8, y - 4)}"/></g>' if s.marks else ""
        return (
            f'<g class="s{s.style % STYLES}"><path class="{kind}" d="M{x:.1f} {y - 4:.1f}h16"/>{mark}</g>'
            f'<text x="{x + 22:.1f}" y="{y:.1f}">{escaped(s.label)}</text>'
        )


def _lines(text: str, most: int) -> str:
    """Text in at most two lines, one below the other."""
    first, *rest = textwrap.wrap(text, most) or [""]
    second = f'<tspan x="2" dy="13">{escaped(" ".join(rest)[:most])}</tspan>' if rest else ""
    return f'<tspan x="2">{escaped(first)}</tspan>{second}'


def _marker(style: int, x: float, y: float) -> str:
    """Eight shapes, so that colour is never the only difference."""
    r = 4.2
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",  # circle
        f"M{x - 3.8:.1f} {y - 3.8:.1f}h7.6v7.6h-7.6Z",  # square
        f"M{x:.1f} {y - 5:.1f}l4.6 8.4h-9.2Z",  # triangle
        f"M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2Z",  # diamond
        f"M{x:.1f} {y + 5:.1f}l4.6 -8.4h-9.2Z",  # triangle down
        f"M{x - 1.7:.1f} {y - 5:.1f}h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3Z",  # plus
        f"M{x - 4.6:.1f} {y - 2.7:.1f}L{x:.1f} {y - 5.3:.1f}l4.6 2.6v5.4l-4.6 2.6l-4.6 -2.6Z",  # hexagon
        f"M{x - 5:.1f} {y - 2:.1f}h10v4h-10Z",  # bar
    )
    return shapes[style % len(shapes)]


# The charts' CSS: passed to html.document as `style`, and included in stand-alone files.
STYLE = """
.chart { --c0: #0072b2; --c1: #c2500a; --c2: #00805d; --c3: #a8467f; --c4: #8a6500; --c5: #3b8fc4; --c6: #5b5fc7;
  --c7: #6b7280; --bg: var(--back); }
.chart .s0 { --c: var(--c0); } .chart .s1 { --c: var(--c1); } .chart .s2 { --c: var(--c2); }
.chart .s3 { --c: var(--c3); } .chart .s4 { --c: var(--c4); } .chart .s5 { --c: var(--c5); }
.chart .s6 { --c: var(--c6); } .chart .s7 { --c: var(--c7); }
.chart text { font-size: 12px; fill: var(--soft); text-anchor: start; }
.chart .t { font-size: 13px; font-weight: 600; fill: var(--ink); }
.chart .e { text-anchor: end; } .chart .m { text-anchor: middle; }
.chart .q { font-size: 11px; paint-order: stroke; stroke: var(--bg);
  stroke-width: 4px; }
.chart .hint { opacity: .55; font-size: 11px; }
.chart path { fill: none; stroke: var(--line); }
.chart .a { stroke: var(--soft); }
.chart .i, .chart .d { stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; }
.chart .d { stroke-dasharray: 5 3; }
.chart .v { stroke: var(--c); stroke-width: 1.4; opacity: .75; }
.chart .b { fill: var(--c); stroke: none; opacity: .16; }
.chart .o circle { fill: var(--c); opacity: .45; }
.chart .n { stroke: var(--soft); stroke-dasharray: 4 3; opacity: .8; }
.chart .u { fill: var(--soft); stroke: none; opacity: .13; }
.chart .p path { fill: var(--c); stroke: var(--bg); stroke-width: .8; }
.chart .p { outline: none; cursor: default; }
.chart .p:focus path, .chart .p:hover path { stroke: var(--ink); stroke-width: 2.2; }
.chart .r { visibility: hidden; fill: var(--ink); font-size: 11px; paint-order: stroke; stroke: var(--bg);
  stroke-width: 6px; }
.chart .p:focus .r, .chart .p:hover .r { visibility: visible; }
@media (prefers-color-scheme: dark) { .chart { --c0: #5db3e8; --c1: #ef8b4f; --c2: #3fc79a; --c3: #dd8fbd;
  --c4: #d9ae3c; --c5: #8fc7ee; --c6: #a3a6f5; --c7: #a7b0ba; } }
"""

_ALONE = """
svg { --back: #fff; --ink: #1f2328; --soft: #59616b; --line: #e3e6ea; background: var(--back);
  font-family: system-ui, "Segoe UI", Roboto, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --back: #14171a; --ink: #e4e7ea; --soft: #9aa4ae; --line: #2b3137; } }
"""


def stand_alone(svg: str) -> str:
    """A chart as a complete SVG file, for slides and READMEs."""
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{_ALONE}{STYLE}</style>{rest}'
