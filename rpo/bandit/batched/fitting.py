"""`fit_batch`: any objective over all policies, on many instances at once.

Shapes: S seeds (instances), X prompts, A responses, C = S X cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.data_term import Groups
from rpo.bandit.solver.newton import ARMIJO, MAX_DAMPING, MIN_DAMPING
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array
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


def fit_batch(saddles: Sequence[Saddle], *, design: Array | None = None, tolerance: float = TOLERANCE) -> BatchFit:
    """Minimise an objective over the softmax policies of S instances by damped Newton steps from the reference.

    saddles: the objective on each, of one shape (`build_saddle`), of pairs or of lists. design: (X, A, P),
    of a linear softmax; None for a table. Each prompt of each instance, or with a design each instance, is damped and
    stopped on its own, at a largest slope below tolerance; a loss that is not convex ends at a stationary point, and
    one without a minimum where its slope has died down. What is proved of the end is `rpo.bandit.evidence`'s to say.
    The anchor must be the KL's.
    """
    cells, objective = _Cells(saddles), saddles[0].objective
    evaluate = cells.evaluate if design is None else partial(_through, cells, design)
    t = np.zeros(cells.shape if design is None else (len(saddles), design.shape[2]))
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
    slopes, seeds = np.abs(g).max(axis=1), len(saddles)
    if design is None:
        t = (t - t.mean(axis=1, keepdims=True)).reshape(seeds, *saddles[0].base.shape)
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

    def __init__(self, saddles: Sequence[Saddle]) -> None:
        x, a = saddles[0].base.shape
        self.objective, self.shape = saddles[0].objective, (len(saddles) * x, a)
        self.log_reference, self.base = (
            np.stack([getattr(saddle, name) for saddle in saddles]).reshape(self.shape)
            for name in ("log_reference", "base")
        )
        self.pull = self.objective.anchor.weight * np.concatenate([saddle.d for saddle in saddles])
        self.groups = _joined(saddles)
        ends = np.arange(self.shape[0] + 1)
        self.first = [np.searchsorted(groups.entries[0] // a, ends) for groups in self.groups]

    def evaluate(self, t: Array, which: Index) -> tuple[Array, Array, Array]:
        """Return values (c,), gradients (c, A) and Hessians (c, A, A) of the cells `which` at logits t (c, A)."""
        c, a = t.shape
        reference, base, pull = self.log_reference[which], self.base[which], self.pull[which][:, None]
        logps = log_softmax(reference + t)
        value = -(pull * base * np.where(np.isfinite(reference), logps, 0.0)).sum(axis=1)
        q, inner = -pull * base, np.zeros(c * a * a)
        for groups in self._of(which):
            loss, slope, curvature = self.objective.derivatives(groups.columns(logps.ravel(), reference.ravel()))
            weights = self.objective.preference_weight * groups.weights
            value += np.bincount(groups.entries[0] // a, weights * loss, c)
            for j, first in enumerate(groups.entries):
                q += np.bincount(first, weights * slope[j], c * a).reshape(c, a)
                for k, second in enumerate(groups.entries):
                    inner += np.bincount(first * a + second % a, weights * curvature[j, k], c * a * a)
        bent, pi = inner.reshape(c, a, a), np.exp(logps)
        total = q.sum(axis=1, keepdims=True)
        row, whole = bent.sum(axis=1), bent.sum(axis=(1, 2))
        crossed = pi[:, :, None] * row[:, None, :]
        spread = pi[:, :, None] * pi[:, None, :]
        hessian = bent - crossed - crossed.transpose(0, 2, 1) + (whole + total[:, 0])[:, None, None] * spread
        hessian[:, np.arange(a), np.arange(a)] -= total * pi
        return value, q - pi * total, hessian

    def _of(self, which: Index) -> Sequence[Groups]:
        """Return the groups of the cells `which`, by their places in these cells' own table."""
        cells, a = self.shape
        if which.size == cells:
            return self.groups
        place = np.empty((cells, a), dtype=np.int64)
        place[which] = np.arange(which.size * a).reshape(-1, a)
        found = []
        for groups, first in zip(self.groups, self.first, strict=True):
            sizes = first[which + 1] - first[which]
            back = np.repeat(first[which] - np.r_[0, np.cumsum(sizes)[:-1]], sizes)
            found.append(groups.some(np.arange(sizes.sum()) + back, place.ravel()))
        return found


def _joined(saddles: Sequence[Saddle]) -> list[Groups]:
    """Return the groups of all instances, of one size together, prompt by prompt, by places in one table."""
    size, together = saddles[0].base.size, defaultdict(list)
    for seed, saddle in enumerate(saddles):
        for groups in saddle.groups:
            together[len(groups.entries)].append(groups.some(slice(None), seed * size + np.arange(size)))
    found = []
    for parts in together.values():
        entries = tuple(np.concatenate(side) for side in zip(*(part.entries for part in parts), strict=True))
        scores = None
        if all(part.scores is not None for part in parts):
            scores = tuple(np.concatenate(side) for side in zip(*(part.scores or () for part in parts), strict=True))
        whole = Groups(entries, np.concatenate([part.weights for part in parts]), scores)
        order = np.argsort(entries[0] // saddles[0].base.shape[1], kind="stable")
        found.append(whole.some(order, np.arange(size * len(saddles))))
    return found
