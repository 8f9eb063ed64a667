"""error(n) = E + A (n + n0)^-a by variable projection: for given a and n0, the best E and A have a closed form.

So a grid over (a, n0) covers all starting points at once, and zooming into the best cell refines it: no local optimum
is missed and nothing depends on a start. The loss is Huber's. Its minimum is the least-squares fit to pseudo-values,
whose residuals are cut at a threshold (Huber 1981, section 7.8), so everything else here is least squares.

Shapes: P points, K trunks, V candidates or resamples, G grid cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST = 3  # counts that a law needs
STEEPEST, FLATTEST = 4.0, 0.01  # range of the exponents tried
OFFSET_FROM = 7  # n0 is fitted from this many counts on
CUT = 5.0  # robust standard deviations at which Huber's loss turns linear: cuts gross errors, not the tails of noise
CUT_FROM = 8  # residual degrees of freedom needed to recognise outliers
_GRID, _ZOOM = 96, 9  # first exponents, and those around the best
_COARSE = 32  # first exponents where n0 has a grid too
_OFFSETS = np.concatenate([[0.0], np.geomspace(0.03, 30, 13)])  # n0 over the smallest count


@dataclass(frozen=True)
class Curve:
    """The measurements of one arm, one entry per point."""

    name: str
    x: Array  # [P] the axis, above 0
    error: Array  # [P] 1 - accuracy
    count: NDArray[np.int64]  # [P] samples seen
    trunk: NDArray[np.int64]  # [P] which trunk, 0..K-1
    seeds: tuple[str, ...]  # [K] names of the trunks; () where the table has no seeds
    params: float | None = None

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.unique(self.count)

    @property
    def places(self) -> int:
        """The number of distinct x values of the counts; values within 1 % count as one."""
        means = np.array([np.log(self.x[self.count == n]).mean() for n in self.counts])
        return 1 + int((np.diff(np.sort(means)) > 0.01).sum())

    @property
    def by_trunk(self) -> bool:
        """Whether the trunk can be the unit; otherwise intervals come from residuals."""
        return len(self.seeds) > 1

    def where(self, keep: NDArray[np.bool_]) -> Curve:
        """The points in a mask; trunks keep their numbers if each still has a point."""
        present = np.unique(self.trunk[keep])
        seeds = tuple(self.seeds[k] for k in present) if self.seeds else ()
        trunk = np.searchsorted(present, self.trunk[keep])
        arrays = {name: getattr(self, name)[keep] for name in ("x", "error", "count")}
        return replace(self, trunk=trunk, seeds=seeds, **arrays)


@dataclass(frozen=True)
class Law:
    """One fitted law. `A` is the coefficient of unscaled n."""

    E: float
    A: float
    a: float
    n0: float = 0.0

    def error(self, n: Array | float) -> Array:
        return self.E + np.exp(math.log(self.A) - self.a * np.log(np.asarray(n) + self.n0)) if self.A else self._flat(n)

    def _flat(self, n: Array | float) -> Array:
        return np.full(np.shape(n), self.E)

    def count_at(self, error: float) -> float:
        """n at which the curve reaches an error; infinite where it never does."""
        if error <= self.E or not self.A:
            return math.inf
        return math.exp((math.log(self.A) - math.log(error - self.E)) / self.a) - self.n0


def number_of_parameters(curve: Curve) -> int:
    return 4 if curve.places >= OFFSET_FROM else 3


def too_few(curve: Curve) -> str:
    """Why a curve has no law; empty if it has one."""
    if len(curve.counts) < LEAST:
        only = ", ".join(f"{n:,}" for n in curve.counts)
        what = f"{len(curve.counts)} sample count{'s' * (len(curve.counts) > 1)} ({only})"
        return f"arm {curve.name} has {what}: a law with a floor needs at least {LEAST} counts, better 6"
    if curve.places < LEAST:
        span = f"{curve.x.min():,.0f} to {curve.x.max():,.0f}"
        what = f"{curve.places} value{'s' * (curve.places > 1)} of this axis ({span})"
        return f"arm {curve.name} has {what}: a law needs at least {LEAST}: choose another --x"
    return ""


def fit(curve: Curve) -> tuple[Law, Curve]:
    """The law, and the curve with outliers moved to Huber's threshold, from which intervals are computed.

    Raises ValueError for fewer than three counts, or values of x.
    """
    if why := too_few(curve):
        raise ValueError(why)
    offset = number_of_parameters(curve) == 4
    cut = curve
    for _ in range(4):
        law = least_squares(cut.x, cut.error, offset)
        drawn = _drawn_in(curve, law)
        if np.allclose(drawn.error, cut.error, rtol=0, atol=1e-7):
            break
        cut = drawn
    return law, cut


def _drawn_in(curve: Curve, law: Law) -> Curve:
    """Pseudo-values: residuals, apart from their trunk's own offset, are cut at CUT robust standard deviations."""
    left = len(curve.x) - number_of_parameters(curve) - max(len(curve.seeds), 1) + 1
    if left < CUT_FROM:
        return curve
    residual = curve.error - law.error(curve.x)
    own = np.array([np.median(residual[curve.trunk == k]) for k in range(curve.trunk.max() + 1)])[curve.trunk]
    scale = 1.4826 * np.median(np.abs(residual - own)) * math.sqrt(len(curve.x) / left)
    limit = max(CUT * scale, 1e-12)
    return replace(curve, error=law.error(curve.x) + own + np.clip(residual - own, -limit, limit))


def least_squares(x: Array, error: Array, offset: bool) -> Law:
    E, A, a, n0 = (value[0] for value in project(x, error[None], offset, rounds=12))
    scale = float(np.exp(np.log(x).mean()))
    return Law(float(E), float(A * np.exp(a * np.log(scale))), float(a), float(n0))


def project(
    x: Array,
    error: Array,
    offset: bool,
    *,
    weights: Array | None = None,
    E: Array | None = None,
    A: Array | None = None,
    a: Array | None = None,
    n0: Array | None = None,
    free_E: bool = False,
    rounds: int = 4,
) -> tuple[Array, Array, Array, Array]:
    """V least-squares fits at once; each of E, A, a, n0 may be fixed at V given values.

    x [P]; error [V or 1, P]; weights [V or 1, P]. A is the coefficient of x divided by its geometric mean. E stays
    within 0..1 (unless `free_E`) and A above 0. Returns E, A, a, n0, each [V].
    """
    many = max([len(error), *(len(v) for v in (weights, E, A, a, n0) if v is not None)])
    move_n0 = offset and n0 is None
    grid_a = np.geomspace(FLATTEST, STEEPEST, _COARSE if move_n0 else _GRID)[None] if a is None else a[:, None]
    grid_n0 = (_OFFSETS * x.min() if offset else np.zeros(1))[None] if n0 is None else n0[:, None]
    cells = np.repeat(grid_a, grid_n0.shape[1], axis=1), np.tile(grid_n0, (1, grid_a.shape[1]))

    def best_of(cells: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        best_E, best_A, loss = _linear(x, error, weights, *cells, E, A, free_E)
        rows, cell = np.arange(many), loss.argmin(1)
        E_V, A_V, a_V, n0_V = (_picked(values, rows, cell) for values in (best_E, best_A, *cells))
        return E_V, A_V, a_V, n0_V

    best = best_of(cells)
    if move_n0:  # its valley is narrow and diagonal
        for _ in range(rounds + 4):
            best = best_of(_along_the_valley(x, error, weights, best, a is None, E is None))
    elif a is None:
        for round_ in range(rounds - 1):
            best = best_of((_around(best[2], round_), best[3][:, None]))
    return best


def _picked(values: Array, rows: NDArray[np.int64], cell: NDArray[np.int64]) -> Array:
    """One cell of each row of [V or 1, G or 1]."""
    return values[rows if len(values) > 1 else 0, cell if values.shape[1] > 1 else 0] + np.zeros(len(rows))


def _around(a: Array, round_: int) -> Array:
    """Cells around the best one, in the first round out to its neighbours."""
    reach = math.log(STEEPEST / FLATTEST) / (_GRID - 1) * (2 / (_ZOOM - 1)) ** round_
    return np.clip(a[:, None] * np.exp(np.linspace(-reach, reach, _ZOOM)), FLATTEST, STEEPEST)


def _along_the_valley(
    x: Array, error: Array, weights: Array | None, best: tuple[Array, ...], move_a: bool, move_E: bool
) -> tuple[Array, Array]:
    """Cells (a, n0) along two Gauss-Newton steps from the best ones: one in all parameters, one with n0 fixed for where
    it is at its bound. The first cell is the best one itself."""
    E, A, a, n0 = best
    phi = basis(x, a, n0)
    shifted = x + n0[:, None]
    columns = [
        phi,
        *[np.ones_like(phi)] * move_E,
        *[-A[:, None] * phi * (np.log(shifted) - np.log(x).mean())] * move_a,
        -A[:, None] * a[:, None] * phi * x.min() / shifted,
    ]
    root = 1.0 if weights is None else np.sqrt(weights)[:, :, None]
    J = np.stack(columns, 2) * root
    size = np.sqrt((J**2).sum(1, keepdims=True)) + 1e-30
    J = J / size
    gram = J.transpose(0, 2, 1) @ J + 1e-11 * np.eye(len(columns))
    right = J.transpose(0, 2, 1) @ ((error - E[:, None] - A[:, None] * phi)[..., None] * root)
    full = np.linalg.solve(gram, right)[..., 0] / size[:, 0]
    held = np.linalg.solve(gram[:, :-1, :-1], right[:, :-1])[..., 0] / size[:, 0, :-1]
    lengths = np.array([0, 1, 0.5, 0.25, 0.1, 0.02, 2])
    steps_a = np.concatenate([lengths * full[:, -2:-1], lengths[1:] * held[:, -1:]], axis=1) if move_a else 0.0
    steps_n0 = np.concatenate([lengths * full[:, -1:], 0 * lengths[1:] * full[:, -1:]], axis=1)
    new_n0 = np.clip(n0[:, None] + steps_n0 * x.min(), 0, 100 * x.min())
    return np.clip(a[:, None] + steps_a + 0 * new_n0, FLATTEST, STEEPEST), new_n0


def _linear(
    x: Array,
    error: Array,
    weights: Array | None,
    a: Array,
    n0: Array,
    E: Array | None,
    A: Array | None,
    free_E: bool,
) -> tuple[Array, Array, Array]:
    """The best E and A of every cell and their loss, each [V, G]."""
    phi = basis(x, a, n0)  # [V or 1, G, P]
    w = np.ones((1, len(x))) if weights is None else weights

    def over(values: Array) -> Array:  # weighted sums over points: [V, G]
        return (phi_matrix @ values.T).T if len(phi) == 1 else np.einsum("vgp,vp->vg", phi, _rows(values, len(phi)))

    phi_matrix = phi[0]
    s = w.sum(1)[:, None]
    s_y = (w * error).sum(1)[:, None]
    s_yy = (w * error**2).sum(1)[:, None]
    s_p, s_py = over(w), over(w * error)
    squares = phi**2
    s_pp = (squares[0] @ w.T).T if len(phi) == 1 else np.einsum("vgp,vp->vg", squares, _rows(w, len(phi)))
    if E is not None:
        floor = E[:, None]
        scale = np.maximum((s_py - floor * s_p) / s_pp, 0)
    elif A is not None:
        # A is the coefficient of unscaled n; the scaled value depends on a.
        scale = A[:, None] * np.exp(-a * np.log(np.exp(np.log(x).mean())))
        floor = (s_y - scale * s_p) / s
        floor = floor if free_E else np.clip(floor, 0, 1)
    else:
        determinant = np.maximum(s * s_pp - s_p**2, 1e-30)
        scale = (s * s_py - s_p * s_y) / determinant
        floor = (s_y - scale * s_p) / s
        if not free_E:
            below, above = floor < 0, floor > 1
            scale = np.where(below, s_py / s_pp, np.where(above, (s_py - s_p) / s_pp, scale))
            floor = np.clip(floor, 0, 1)
        flat = scale < 0
        floor = np.where(flat, s_y / s, floor)
        scale = np.where(flat, 0, scale)
    loss = s_yy - 2 * floor * s_y - 2 * scale * s_py + s * floor**2 + 2 * floor * scale * s_p + scale**2 * s_pp
    return floor, scale, loss


def _rows(values: Array, many: int) -> Array:
    return np.broadcast_to(values, (many, values.shape[1]))


def basis(x: Array, a: Array, n0: Array) -> Array:
    """((x + n0) / scale)^-a, [..., P]; scale is the geometric mean of x."""
    return np.exp(-a[..., None] * (np.log(x + n0[..., None]) - np.log(x).mean()))
