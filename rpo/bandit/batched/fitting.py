"""`fit_batch`: any objective over all policies, on many instances at once.

Shapes: S seeds (instances), X prompts, A responses, C = S X cells, N distinct comparisons over all instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.newton import ARMIJO, MAX_DAMPING, MIN_DAMPING
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.numerics import log_softmax
from rpo.core.objectives import Objective

ROUNDS = 200
TOLERANCE = 1e-10  # of the largest slope, as of `fit`
LONGEST = 3.0  # of one step, in reward units: a bounded loss is flat far away, where a Newton step may jump to
NEAR_ROUNDING = 1e-11  # of the expected decrease, relative: below it the slope is the better judge


@dataclass(frozen=True, eq=False)
class BatchFit:
    """Where S fits ended. parameters: (S, X, A), or (S, P) of a design. loss: (S,). gradient: (S,), largest entry."""

    parameters: Array
    loss: Array
    gradient: Array
    rounds: int


def fit_batch(
    wins: Array,
    objective: Objective,
    *,
    reference: Array,
    base: Array,
    d: Array,
    design: Array | None = None,
    tolerance: float = TOLERANCE,
) -> BatchFit:
    """Minimise an objective over the softmax policies of S instances by damped Newton steps from the reference.

    wins: (S, X, A, A), n[s, x, w, l]. reference: (X, A). base: (S, X, A), pi_base. d: (S, X), prompt weights of the SFT
    term. design: (X, A, P), of a linear softmax; None for a table. Each prompt of each instance, or with a design each
    instance, is damped and stopped on its own, at a largest slope below tolerance; a loss that is not convex ends at a
    stationary point, and one without a minimum where its slope has died down. What is proved of the end is
    `rpo.bandit.evidence`'s to say. The anchor must be the KL's.
    """
    cells = _Cells(wins, objective, reference, base, d)
    evaluate = cells.evaluate if design is None else partial(_through, cells, design)
    t = np.zeros(cells.shape if design is None else (len(wins), design.shape[2]))
    value, g, h = evaluate(t, np.arange(len(t)))
    damping, open_ = np.zeros(len(t)), np.abs(g).max(axis=1) > tolerance
    longest, rounds = LONGEST / objective.link.beta / (1.0 if design is None else max(1.0, np.abs(design).max())), 0
    while open_.any() and rounds < ROUNDS:
        rounds += 1
        which = np.flatnonzero(open_)
        scale = np.maximum(np.abs(h[which]).max(axis=(1, 2)), np.abs(g[which]).max(axis=1))
        step = _step(g[which], h[which], damping[which])
        step *= np.minimum(1.0, longest / np.maximum(np.abs(step).max(axis=1), 1e-300))[:, None]
        new, new_g, new_h = evaluate(t[which] + step, which)
        expected = -(g[which] * step).sum(axis=1)
        slopes, before = np.abs(new_g).max(axis=1), np.abs(g[which]).max(axis=1)
        close = expected < NEAR_ROUNDING * (1.0 + np.abs(value[which]))
        good = np.where(close, slopes < before, new <= value[which] - ARMIJO * expected)
        taken = which[good]
        t[taken] += step[good]
        value[taken], g[taken], h[taken] = new[good], new_g[good], new_h[good]
        least = MIN_DAMPING * scale
        eased = np.where(damping[which] > least, damping[which] / 10.0, 0.0)
        damping[which] = np.where(good, eased, np.maximum(10.0 * damping[which], least))
        open_[which] = np.where(good, slopes > tolerance, damping[which] <= MAX_DAMPING * scale)
    slopes, seeds = np.abs(g).max(axis=1), len(wins)
    if design is None:
        t = (t - t.mean(axis=1, keepdims=True)).reshape(wins.shape[:3])
    return BatchFit(t, value.reshape(seeds, -1).sum(axis=1), slopes.reshape(seeds, -1).max(axis=1), rounds)


def _through(cells: _Cells, design: Array, theta: Array, which: Index) -> tuple[Array, Array, Array]:
    """Return values (c,), gradients (c, P) and Hessians (c, P, P) of the instances `which` at theta (c, P)."""
    x, a = design.shape[:2]
    mine = (which[:, None] * x + np.arange(x)).ravel()
    value, g, h = cells.evaluate(np.einsum("xap,cp->cxa", design, theta).reshape(-1, a), mine)
    pulled = np.einsum("xap,cxab,xbq->cpq", design, h.reshape(-1, x, a, a), design, optimize=True)
    return value.reshape(-1, x).sum(axis=1), np.einsum("xap,cxa->cp", design, g.reshape(-1, x, a)), pulled


def is_fit_batchable(objective: Objective) -> bool:
    """Whether `fit_batch` takes an objective of a table: its anchor must be the KL's."""
    return isinstance(objective.anchor.divergence, KL) or not objective.anchor.weight


def _step(g: Array, h: Array, damping: Array) -> Array:
    """Return -(|H| + damping)^{-1} g, with |H| by its spectrum: downhill where H is not positive too."""
    values, vectors = np.linalg.eigh(h)
    size = np.abs(values) + damping[:, None]
    floor = np.maximum(1e-14 * size.max(axis=1, keepdims=True), 1e-280)
    projected = np.einsum("cij,ci->cj", vectors, g)
    # A flat direction with no slope beyond rounding must not move: a constant of a prompt is one.
    still = (size < floor * 10.0) & (np.abs(projected) <= 1e-14 * np.abs(g).max(axis=1, keepdims=True))
    return np.asarray(-np.einsum("cij,cj->ci", vectors, np.where(still, 0.0, projected / np.maximum(size, floor))))


class _Cells:
    """C prompts in a row: value, gradient and Hessian of each in its logits."""

    def __init__(self, wins: Array, objective: Objective, reference: Array, base: Array, d: Array) -> None:
        s, x, a = wins.shape[:3]
        self.objective, self.shape = objective, (s * x, a)
        with np.errstate(divide="ignore"):
            self.log_reference = np.broadcast_to(np.log(reference), (s, x, a)).reshape(self.shape)
        self.inside = np.isfinite(self.log_reference)
        weights = objective.preference_weight * wins / wins.sum(axis=(1, 2, 3), keepdims=True)
        self.cell, self.w, self.lost = np.nonzero(weights.reshape(s * x, a, a))
        self.weights = weights.reshape(s * x, a, a)[self.cell, self.w, self.lost]
        self.pull = (objective.anchor.weight * d).reshape(-1)
        self.base = base.reshape(self.shape)
        self.first = np.searchsorted(self.cell, np.arange(s * x + 1))

    def evaluate(self, t: Array, which: Index) -> tuple[Array, Array, Array]:
        """Return values (c,), gradients (c, A) and Hessians (c, A, A) of the cells `which` at logits t (c, A)."""
        rows, cell = self._rows(which)
        w, lost, weights = self.w[rows], self.lost[rows], self.weights[rows]
        inside = self.inside[which]
        logps = log_softmax(self.log_reference[which] + t)
        one = np.ones(rows.size)
        value, slope, curvature = self.objective.derivatives(
            Columns(
                logps=(logps[cell, w], logps[cell, lost]),
                reference=(self.log_reference[which][cell, w], self.log_reference[which][cell, lost]),
                lengths=(one, one),
            )
        )
        c, a = t.shape
        pull, base = self.pull[which][:, None], self.base[which]
        q = -pull * base
        for k, index in enumerate((w, lost)):
            q = q + np.bincount(cell * a + index, weights * slope[k], c * a).reshape(c, a)
        inner = np.zeros(c * a * a)
        for j, first in enumerate((w, lost)):
            for k, second in enumerate((w, lost)):
                inner += np.bincount((cell * a + first) * a + second, weights * curvature[j, k], c * a * a)
        bent, pi = inner.reshape(c, a, a), np.exp(logps)
        total = q.sum(axis=1, keepdims=True)
        row, whole = bent.sum(axis=1), bent.sum(axis=(1, 2))
        crossed = pi[:, :, None] * row[:, None, :]
        spread = pi[:, :, None] * pi[:, None, :]
        hessian = bent - crossed - crossed.transpose(0, 2, 1) + (whole + total[:, 0])[:, None, None] * spread
        hessian[:, np.arange(a), np.arange(a)] -= total * pi
        held = np.where(inside, logps, 0.0)
        return (
            np.bincount(cell, weights * value, c) - (pull * base * held).sum(axis=1),
            q - pi * total,
            hessian,
        )

    def _rows(self, which: Index) -> tuple[Index, Index]:
        """Return the comparisons of the cells `which`, and the position of each one's cell among them."""
        if which.size == self.shape[0]:
            return np.arange(self.cell.size), self.cell
        sizes = self.first[which + 1] - self.first[which]
        cell = np.repeat(np.arange(which.size), sizes)
        return np.arange(sizes.sum()) + np.repeat(self.first[which] - np.r_[0, np.cumsum(sizes)[:-1]], sizes), cell
