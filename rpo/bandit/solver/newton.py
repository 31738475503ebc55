"""Newton's method on a convex function over a box, a ball or a simplex: to rounding, from any start."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, null_space
from scipy.optimize import brentq

from rpo.core.checks import Array
from rpo.core.progress import track

Derivatives = tuple[float, Array, Array]
ROUNDING = 1e-15
ARMIJO = 1e-4
EIGENVALUE_FLOOR = 1e-14
FACTOR_RIDGE = 1e-13
TOGETHER = 1e-9
INDEPENDENT = 1e-10  # of the largest singular value
LARGE = 64  # variables from which a factor is tried before the spectrum, which takes thirty times as long
SLOW = 500  # variables from which steps take long enough to be shown
MIN_DAMPING, MAX_DAMPING = 1e-8, 1e10  # relative to the larger of curvature and slope


@dataclass(frozen=True)
class NewtonResult:
    """x: (n,), the last iterate. residual: what first-order optimality leaves, in units of the value."""

    x: Array
    value: float
    residual: float
    iterations: int


def minimize_box(
    function: Callable[[Array], Derivatives],
    start: Array,
    lower: Array,
    upper: Array,
    *,
    max_iterations: int = 300,
    on_iterate: Callable[[Array], None] | None = None,
) -> NewtonResult:
    """Minimise a convex function of n variables over lower <= x <= upper (infinite bounds allowed).

    function returns (value, gradient (n,), Hessian (n, n)). on_iterate sees each accepted x.
    Source: projected Newton, Bertsekas 1982.
    """
    span = np.where(np.isfinite(upper - lower), upper - lower, 1.0)

    def residual(x: Array, g: Array) -> float:
        room = np.where(g > 0, x - lower, upper - x)
        return float(np.abs(g * np.minimum(room, span)).sum())

    def direction(x: Array, g: Array, h: Array) -> Array:
        pinned = ((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0))
        step = np.zeros(x.size)
        free = ~pinned
        # Walk to the model's minimum, pinning each coordinate at the wall it meets: clipping the whole
        # step at once would tear coupled coordinates apart.
        while free.any():
            move_free = np.zeros(x.size)
            move_free[free] = -_solve(h[np.ix_(free, free)], (g + h @ step)[free])
            wall = np.where(move_free > 0, upper - x, lower - x) - step
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.where(move_free != 0, wall / move_free, np.inf)
            nearest = max(float(reach.min()), 0.0)
            if not nearest < 1.0:  # a NaN ends the walk too: the step is refused where its value is seen
                step = step + move_free
                break
            step = step + nearest * move_free
            met = reach <= nearest
            if x.size > LARGE:  # like responses meet their walls together, but for rounding
                met = reach <= nearest * (1.0 + TOGETHER)
                step[met] = np.where(move_free > 0, upper - x, lower - x)[met]
            free[met] = False
        return step

    def move(x: Array, step: Array) -> Array:
        return np.asarray(np.clip(x + step, lower, upper))

    return _descend(function, np.clip(start, lower, upper), direction, move, residual, max_iterations, on_iterate)


def minimize_ball(
    function: Callable[[Array], Derivatives], start: Array, radius: float, *, max_iterations: int = 300
) -> NewtonResult:
    """Minimise a convex function of n variables over ||x||_2 <= radius.

    Each step minimises the (damped) quadratic model over the whole ball exactly.
    """

    def residual(x: Array, g: Array) -> float:
        return max(0.0, radius * float(np.linalg.norm(g)) + float(g @ x))

    def direction(x: Array, g: Array, h: Array) -> Array:
        return _ball_quadratic(h, h @ x - g, radius) - x

    def move(x: Array, step: Array) -> Array:
        return np.asarray(x + step)

    norm = float(np.linalg.norm(start))
    inside = start if norm <= radius else start * (radius / norm)
    return _descend(function, inside, direction, move, residual, max_iterations)


def minimize_simplex(
    function: Callable[[Array], Derivatives],
    start: Array,
    kept: Array | None = None,
    *,
    max_iterations: int = 300,
) -> NewtonResult:
    """Minimise a convex function of n variables over x >= 0 with sum(x) and kept (m, n) @ x those of start.

    Each step minimises the (damped) quadratic model over the whole polytope, by an active set.
    """
    rows = np.ones((1, start.size))
    if kept is not None and kept.any():  # an orthonormal basis of the row space: repeated rows hold nothing more
        rows = np.vstack([rows, kept / np.abs(kept).max()])
        _, singular, vectors = np.linalg.svd(rows, full_matrices=False)
        rows = vectors[singular > INDEPENDENT * singular[0]]
    total = float(start.sum())

    def residual(x: Array, g: Array) -> float:
        # For any multipliers this bounds g'x - g'y over the polytope; those of the positive entries make it tight.
        left = g - rows.T @ np.linalg.lstsq(rows[:, x > 0].T, g[x > 0], rcond=None)[0]
        return float(np.maximum(left, 0.0) @ x) + total * max(0.0, -float(left.min()))

    def direction(x: Array, g: Array, h: Array) -> Array:
        return _simplex_quadratic(h, g, x, rows)

    def move(x: Array, step: Array) -> Array:
        return np.maximum(x + step, 0.0)

    return _descend(function, np.maximum(start, 0.0), direction, move, residual, max_iterations)


def _descend(
    function: Callable[[Array], Derivatives],
    x: Array,
    direction: Callable[[Array, Array, Array], Array],
    move: Callable[[Array, Array], Array],
    residual: Callable[[Array, Array], float],
    max_iterations: int,
    on_iterate: Callable[[Array], None] | None = None,
) -> NewtonResult:
    """Take Newton steps, damped by a multiple of the identity where the undamped one does not descend.

    Along a saturated softmax the Hessian is nearly flat and a Newton step is huge; shortening it would
    shorten every other coordinate too, while damping only holds back the flat ones (Levenberg 1944).
    """
    value, g, h = function(x)
    left = residual(x, g)
    taken, damping = 0, 0.0
    for _ in track(itertools.count(), "Newton's method", show=None if x.size > SLOW else False):
        # At a probability of one log-odds have no derivatives: there is no step from where they end.
        if taken >= max_iterations or left <= ROUNDING * (1.0 + abs(value)) or not np.isfinite(h).all():
            break
        scale = max(float(np.diag(h).max()), float(np.abs(g).max()))
        inherited = damping > 0.0
        while True:
            y = move(x, direction(x, g, _shifted(h, damping)))
            new = function(y)
            expected = float(g @ (x - y))
            # Where the decrease drowns in rounding, the residual is the better judge.
            if expected < 1e-11 * (1.0 + abs(value)):
                accept = residual(y, new[1]) < left
            else:
                accept = new[0] <= value - ARMIJO * expected
            if accept:
                break
            damping = max(10.0 * damping, MIN_DAMPING * scale)
            if not damping <= MAX_DAMPING * scale:  # or NaN, where a derivative is
                if not inherited:
                    break
                damping, inherited = 0.0, False  # damping inherited from the last step hid the longer steps
        if not accept:
            break
        damping = damping / 10.0 if damping > MIN_DAMPING * scale else 0.0
        x, (value, g, h) = y, new
        left = residual(x, g)
        taken += 1
        if on_iterate is not None:
            on_iterate(x)
    return NewtonResult(x, value, left, taken)


def _shifted(h: Array, diagonal: Any) -> Array:
    """Return h + diag(diagonal); h itself where there is nothing to add."""
    if not np.any(diagonal):
        return h
    shifted = h.copy()
    shifted.flat[:: len(h) + 1] += diagonal
    return shifted


def _solve(h: Array, g: Array) -> Array:
    """Solve h s = g for symmetric positive semidefinite h; flat directions are floored, not dropped."""
    if g.size > LARGE:
        # Each entry is lifted to the floor, and by what rounding may take from it: a constant that no
        # comparison sees leaves the last pivot at zero.
        diagonal = np.diag(h)
        floor = max(EIGENVALUE_FLOOR * float(diagonal.max()), 1e-280)
        floored = _shifted(h, FACTOR_RIDGE * diagonal + np.maximum(floor - diagonal, 0.0))
        try:
            factor = cho_factor(floored.T, overwrite_a=True, check_finite=False)  # .T: in place, not a copy
            solution = cho_solve(factor, g, check_finite=False)
        except LinAlgError:
            solution = np.full(g.size, np.nan)
        if np.isfinite(solution).all():
            return np.asarray(solution)
    values, vectors = np.linalg.eigh(h)
    floor = max(EIGENVALUE_FLOOR * float(values[-1]), 1e-280)
    projected = vectors.T @ g
    # A flat direction with no slope beyond rounding must not move.
    projected = np.where((values < floor) & (np.abs(projected) <= 1e-15 * np.abs(g).max()), 0.0, projected)
    return np.asarray(vectors @ (projected / np.maximum(values, floor)))


def _ball_quadratic(h: Array, b: Array, radius: float) -> Array:
    """Return argmin over ||x|| <= radius of x'hx/2 - b'x, of least norm where it is not unique."""
    values, vectors = np.linalg.eigh(h)
    values = np.maximum(values, 0.0)
    c = vectors.T @ b
    floor = EIGENVALUE_FLOOR * max(float(values[-1]), 1e-280)
    flat = values <= floor
    if not (np.abs(c[flat]) > 1e-14 * (1e-300 + np.abs(c).max())).any():
        x = np.where(flat, 0.0, c / np.where(flat, 1.0, values))
        if np.abs(x).max() <= radius and np.linalg.norm(x) <= radius:  # the norm of a huge x overflows
            return np.asarray(vectors @ x)

    def excess(shift: float) -> float:
        return float(np.linalg.norm(c / (values + shift))) - radius

    high = float(np.linalg.norm(c)) / radius
    low = 1e-20 * high
    if excess(low) <= 0:
        return np.asarray(vectors @ (c / (values + low)))
    shift = (
        brentq(excess, low, high * (1 + 1e-12), xtol=1e-300, rtol=8.9e-16, maxiter=500) if excess(high) < 0 else high
    )
    x = c / (values + shift)
    return np.asarray(vectors @ (x * min(1.0, radius / float(np.linalg.norm(x)))))


def _simplex_quadratic(h: Array, g: Array, x: Array, rows: Array) -> Array:
    """Return argmin of g'd + d'hd/2 over x + d >= 0 and rows d = 0; rows (m, n), of full rank."""
    step, held = np.zeros(x.size), x <= 0
    if np.linalg.matrix_rank(rows[:, ~held]) < len(rows):
        held[:] = False  # walls that the rows imply have no multipliers of their own; the walk meets those it needs
    for _ in range(10 * x.size):
        free = ~held
        basis, move = null_space(rows[:, free]), np.zeros(x.size)
        slope = g + h @ step
        if basis.shape[1]:
            move[free] = basis @ -_solve(basis.T @ h[np.ix_(free, free)] @ basis, basis.T @ slope[free])
        reach = np.full(x.size, np.inf)
        np.divide(-(x + step), move, out=reach, where=move < 0)
        wall = int(reach.argmin())
        if reach[wall] < 1.0:
            step += max(float(reach[wall]), 0.0) * move
            step[wall], held[wall] = -x[wall], True
            continue
        step = step + move
        slope = g + h @ step
        left = slope - rows.T @ np.linalg.lstsq(rows[:, free].T, slope[free], rcond=None)[0]
        wall = int(np.where(held, left, np.inf).argmin())
        if not held[wall] or left[wall] >= -ROUNDING * float(np.abs(slope).max()):
            break
        held[wall] = False
    return step
