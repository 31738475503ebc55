"""Newton's method on many small convex problems at once, over boxes or over one ball.

Shapes: C problems, n variables each. Every problem is damped and stopped on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.newton import ARMIJO, MAX_DAMPING, MIN_DAMPING
from rpo.core.checks import Array

Evaluation = tuple[Array, Array, Array]
RIDGE = 1e-14
FIRST_DAMPING = 1e-2  # relative, of a problem whose undamped step is refused: what most saturated ones come to
FIRST_GROWTH = 4.0  # of the damping at a refusal, and twice as much at each that follows
LEAST_EASE = 1.0 / 30.0  # of the damping, after a step that kept all it promised
PIN = 1e20  # of the curvature of what is free: added to the others it leaves them no step, and changes no other's
TOGETHER = 2048  # prompts at a time: their matrices stay near a core
NOISE = 1e-22  # of an expected decrease: below, slopes are rounding too
TOLERANCE = 3e-14  # of the residual; the next step would only polish rounding


@dataclass(frozen=True, eq=False)
class BatchResult:
    """x: (C, n). value: (C,). gradient: (C, n). iterations: rounds over the batch."""

    x: Array
    value: Array
    gradient: Array
    iterations: int


def minimize_boxes(
    evaluate: Callable[[Array, Index], Evaluation],
    start: Array,
    lower: Array,
    upper: Array,
    *,
    max_iterations: int = 300,
) -> BatchResult:
    """Minimise C convex functions, each over lower <= x <= upper, all (C, n); equal bounds fix an entry.

    evaluate(x (c, n), which (c,)) returns values (c,), gradients (c, n) and Hessians (c, n, n) of the
    problems `which`. Method and safeguards as in `newton.minimize_box`.
    """
    fixed = lower == upper
    walls = bool(np.isfinite(lower).any() or np.isfinite(upper).any())
    span = np.where(np.isfinite(upper - lower), upper - lower, 1.0)

    def residual(x: Array, g: Array, which: Index) -> Array:
        room = np.where(g > 0, x - lower[which], upper[which] - x)
        return np.asarray(np.abs(g * np.minimum(room, span[which])).sum(axis=1))

    def candidate(x: Array, g: Array, h: Array, which: Index) -> Array:
        if not walls:
            # A constant is free: ground the last entry, solve for the others, and centre the step.
            step = np.zeros_like(x)
            step[:, :-1] = -np.linalg.solve(h[:, :-1, :-1], g[:, :-1, None])[:, :, 0]
            return np.asarray(x + step - step.mean(axis=1, keepdims=True))
        low, high = lower[which], upper[which]
        pinned = fixed[which] | ((x <= low) & (g > 0)) | ((x >= high) & (g < 0))
        step = _walk_to_walls(x, g, h, low, high, ~pinned, fixed[which])
        return np.asarray(np.clip(x + step, low, high))

    return _in_turns(evaluate, candidate, residual, np.clip(start, lower, upper), max_iterations, TOGETHER)


def minimize_balls(
    evaluate: Callable[[Array, Index], Evaluation],
    start: Array,
    radius: float,
    *,
    prompts: int = 1,
    max_iterations: int = 300,
) -> BatchResult:
    """Minimise C convex functions, each over ||x||_2 <= radius; arguments as for `minimize_boxes`.

    prompts: of how many parts each is the sum.
    """

    def residual(x: Array, g: Array, which: Index) -> Array:
        return np.maximum(0.0, radius * np.linalg.norm(g, axis=1) + (g * x).sum(axis=1))

    def candidate(x: Array, g: Array, h: Array, which: Index) -> Array:
        return _ball_quadratics(h, np.einsum("cij,cj->ci", h, x) - g, radius)

    norm = np.linalg.norm(start, axis=1, keepdims=True)
    inside = start * np.minimum(1.0, radius / (norm + 1e-300))
    return _in_turns(evaluate, candidate, residual, inside, max_iterations, max(1, TOGETHER // prompts))


def _in_turns(
    evaluate: Callable[[Array, Index], Evaluation],
    candidate: Callable[[Array, Array, Array, Index], Array],
    residual: Callable[[Array, Array, Index], Array],
    x: Array,
    max_iterations: int,
    together: int,
) -> BatchResult:
    """Return `_descend` of all problems, so many at a time."""
    every = np.arange(len(x))
    turns = [slice(at, at + together) for at in range(0, max(1, len(x)), together)]
    parts = [_descend(evaluate, candidate, residual, x[turn], every[turn], max_iterations) for turn in turns]
    if len(parts) == 1:
        return parts[0]
    x, value, gradient = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "value", "gradient")
    )
    return BatchResult(x, value, gradient, max(part.iterations for part in parts))


def _descend(
    evaluate: Callable[[Array, Index], Evaluation],
    candidate: Callable[[Array, Array, Array, Index], Array],
    residual: Callable[[Array, Array, Index], Array],
    x: Array,
    active: Index,
    max_iterations: int,
) -> BatchResult:
    """Take damped Newton steps; each problem's damping follows how much of what its model promised was kept.

    Source: Nielsen 1999, damping parameter in Marquardt's method.
    """
    # The unfinished problems are kept packed at the front of their own arrays, so that a round costs
    # what they cost and nothing is gathered twice.
    final_x, mine = x.copy(), np.arange(len(x))
    value, g, h = evaluate(x, active)
    final_value, final_g = value.copy(), g.copy()
    left, damping, rounds = residual(x, g, active), np.zeros(len(x)), 0
    inherited, growth = np.zeros(len(x), dtype=bool), np.full(len(x), FIRST_GROWTH)
    keep = left > TOLERANCE * (1.0 + np.abs(value))
    while rounds < max_iterations:
        if not keep.all():
            x, g, h, value = x[keep], g[keep], h[keep], value[keep]
            left, damping, growth, inherited = left[keep], damping[keep], growth[keep], inherited[keep]
            active, mine = active[keep], mine[keep]
        if not active.size:
            break
        rounds += 1
        scale = np.maximum(np.einsum("cii->ci", h).max(axis=1), np.abs(g).max(axis=1))
        np.einsum("cii->ci", h)[...] += (damping + RIDGE * scale)[:, None]
        y = candidate(x, g, h, active)
        np.einsum("cii->ci", h)[...] -= (damping + RIDGE * scale)[:, None]
        new_value, new_g, new_h = evaluate(y, active)
        new_left = residual(y, new_g, active)
        moved = y - x
        expected = -np.einsum("ci,ci->c", g, moved)
        # Where the decrease drowns in rounding, the residual is the better judge, or the slopes at the step's two ends,
        # whose mean is the decrease but for third order: a wall that is to be left next makes the residual grow.
        drowned = expected < 1e-11 * (1.0 + np.abs(value))
        over = expected <= NOISE * (1.0 + np.abs(value))
        falling = ~over & (np.einsum("ci,ci->c", new_g, moved) < 0.5 * expected)
        accept = np.where(drowned, (new_left < left) | falling, new_value <= value - ARMIJO * expected)
        promised = expected - 0.5 * np.einsum("ci,ci->c", moved, (h @ moved[:, :, None])[:, :, 0])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kept = np.where(drowned, 1.0, (value - new_value) / promised)
        spent = ~accept & (over | (damping > MAX_DAMPING * scale))
        stuck = spent & ~inherited
        eased = damping * np.clip(1.0 - (2.0 * kept - 1.0) ** 3, LEAST_EASE, 2.0)
        eased = np.where(eased > MIN_DAMPING * scale, eased, 0.0)
        least = FIRST_DAMPING * scale
        growth = np.where(accept | spent | (damping < least), FIRST_GROWTH, 2.0 * growth)
        damping = np.where(accept, eased, np.where(spent, 0.0, np.maximum(growth * damping, least)))
        # Damping inherited from the last step hides the longer steps: before giving up, start again from none.
        inherited = np.where(accept, damping > 0.0, inherited & ~spent)
        if accept.all():
            x, value, g, h, left = y, new_value, new_g, new_h, new_left
        else:
            x[accept], value[accept], g[accept] = y[accept], new_value[accept], new_g[accept]
            h[accept], left[accept] = new_h[accept], new_left[accept]
        final_x[mine], final_value[mine], final_g[mine] = x, value, g
        keep = ~stuck & (left > TOLERANCE * (1.0 + np.abs(value)))
    return BatchResult(final_x, final_value, final_g, rounds)


def _walk_to_walls(x: Array, g: Array, h: Array, low: Array, high: Array, free: Array, fixed: Array) -> Array:
    """Return each quadratic model's minimiser on the way from x, pinning an entry at each wall met, (c, n)."""
    step, here = np.zeros_like(x), np.flatnonzero(free.any(axis=1))
    absent = fixed & (g == 0)
    # Of those still on the way: the model's slope and the room to either wall, from where each is.
    pull, up, down = g, high - x, low - x
    if here.size < len(x):
        pull, up, down, h, free, absent = (part[here] for part in (pull, up, down, h, free, absent))
    while here.size:
        matrix, mask = h.copy(), free.astype(np.float64)
        # A constant is free where nothing is pinned: the rank-one term fixes it and changes no step,
        # because the slope sums to zero there. A fixed entry with a slope is a pin; without, it is absent.
        whole = (free | absent).all(axis=1)
        diagonal = np.einsum("cii->ci", matrix)
        top = (diagonal * mask).max(axis=1)
        if whole.any():
            matrix[whole] += top[whole, None, None]
        diagonal[...] += (1.0 - mask) * (PIN * top + 1e-280)[:, None]
        move = -np.linalg.solve(matrix, (pull * mask)[:, :, None])[:, :, 0] * mask
        reach = np.full(move.shape, np.inf)
        with np.errstate(over="ignore"):
            np.divide(np.where(move > 0, up, down), move, out=reach, where=move != 0)
        nearest = reach.argmin(axis=1)
        length = np.clip(reach[np.arange(here.size), nearest], 0.0, 1.0)
        move *= length[:, None]
        step[here] += move
        free[np.arange(here.size), nearest] &= length >= 1.0
        on = np.flatnonzero((length < 1.0) & free.any(axis=1))
        move, h, here = move[on], h[on], here[on]
        pull, up, down = pull[on] + (h @ move[:, :, None])[:, :, 0], up[on] - move, down[on] - move
        free, absent = free[on], absent[on]
    return step


def _ball_quadratics(h: Array, b: Array, radius: float) -> Array:
    """Return argmin over ||x|| <= radius of x'hx/2 - b'x for each of c positive definite h, (c, n)."""
    try:
        x = np.linalg.solve(h, b[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        return _on_spheres(h, b, radius)
    beyond = ~(np.linalg.norm(x, axis=1) <= radius)
    if beyond.any():
        x[beyond] = _on_spheres(h[beyond], b[beyond], radius)
    return np.asarray(x, dtype=np.float64)


def _on_spheres(h: Array, b: Array, radius: float) -> Array:
    """Return the same by the spectrum, where the minimum may be on the sphere."""
    values, vectors = np.linalg.eigh(h)
    values = np.maximum(values, 1e-300)
    c = np.einsum("cji,cj->ci", vectors, b)
    norm = np.linalg.norm(c, axis=1)
    # ||c / (values + shift)|| = radius: bracketed by 0 and |c| / radius; bisection on a log scale would
    # lose the small shifts, Newton on 1/norm converges monotonically from the left.
    shift = np.zeros(norm.size)
    with np.errstate(over="ignore"):
        outside = np.linalg.norm(np.clip(c / values, -1e150, 1e150), axis=1) > radius
    high = norm / radius
    low = np.where(outside, 1e-20 * high, 0.0)
    for _ in range(200):
        x = c / (values + low[:, None])
        length = np.linalg.norm(x, axis=1)
        slope = (x**2 / (values + low[:, None])).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            move = np.where(outside & (length > radius), (length / radius - 1.0) * length**2 / slope, 0.0)
        new = np.minimum(low + move, high)
        if not (new > low * (1.0 + 1e-15)).any():
            break
        low = new
    shift = np.where(outside, low, 0.0)
    x = c / (values + shift[:, None])
    length = np.linalg.norm(x, axis=1)
    x *= np.where(outside, radius / np.maximum(length, 1e-300), 1.0)[:, None]
    return np.asarray(np.einsum("cij,cj->ci", vectors, x))
