"""The minimising rewards of many instances, class by class, ties at eta = 0 broken pessimistically."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rpo.bandit.batched.cells import Cells, closure, incidence_matrix
from rpo.bandit.batched.newton import Evaluation, minimize_balls, minimize_boxes
from rpo.bandit.data import Index
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.core import checks
from rpo.core.checks import Array


def solve_boxes(
    cells: Cells, reward_class: Unconstrained | Box, start: Array, exists: NDArray[np.bool_]
) -> tuple[Array, int]:
    least, bound = reward_class.limits
    support = np.isfinite(cells.log_measure)
    enters = exists & ((cells.d > 0) | (cells.compared > 0).any(axis=1))
    lives = support & enters[:, None]
    lower = np.where(lives, least, 0.0)
    upper = np.where(lives, bound, 0.0)
    result = minimize_boxes(cells.evaluate, np.where(lives, start, 0.0), lower, upper)
    reward, rounds = result.x, result.iterations
    if cells.pull == 0:
        reward = pessimistic_shifts(cells, reward, lives, bound)
    if np.isfinite(bound):
        shift = np.where(lives, reward, np.inf).min(axis=1)
    else:
        shift = cells.beta * cells.divergence.shift(reward / cells.beta, cells.log_measure)
    return np.where(lives, reward - np.where(np.isfinite(shift), shift, 0.0)[:, None], 0.0), rounds


def pessimistic_shifts(cells: Cells, reward: Array, lives: NDArray[np.bool_], bound: float) -> Array:
    """Shift the components of each comparison graph to the most pessimistic maximum-likelihood reward."""
    a = reward.shape[1]
    first, second = np.triu_indices(a, k=1)
    joined = np.zeros((len(reward), a, a), dtype=bool)
    joined[:, first, second] = cells.compared > 0
    # A component is named by its first response; member maps responses to components.
    name = closure(joined | joined.transpose(0, 2, 1)).argmax(axis=2)
    member = ((name[:, :, None] == np.arange(a)) & lives[:, :, None]).astype(np.float64)
    several = np.flatnonzero((member.any(axis=1).sum(axis=1) > 1) & (cells.d > 0))
    if not several.size:
        return reward
    r, m, beta = reward[several], member[several], cells.beta
    exists = m.any(axis=1)
    if not np.isfinite(bound):
        base = np.einsum("ca,cak->ck", cells.base[several], m)
        # A component of the reference that answers with all its mass, times the base's: it answers with the base's.
        # Without base mass `minimizers_exist` has refused the instance.
        held = exists & (base > 0)
        row, component = np.nonzero(held)
        mine = m[row, :, component] > 0
        measure = np.where(mine, cells.log_measure[several][row] - np.log(base[row, component])[:, None], -np.inf)
        shift = np.zeros(held.shape)
        shift[row, component] = -beta * cells.divergence.shift(r[row] / beta, measure)
    else:
        low = np.where(m > 0, -r[:, :, None], -np.inf).max(axis=1)
        high = np.where(m > 0, bound - r[:, :, None], np.inf).min(axis=1)
        penalty = replace(cells.penalty(several), d=np.ones(several.size))

        def in_shift(c: Array, which: Index) -> Evaluation:
            value, g, h = penalty.evaluate(r[which] + np.einsum("cak,ck->ca", m[which], c), which)
            joined = np.einsum("cak,cab,cbl->ckl", m[which], h, m[which], optimize=True)
            return value, np.einsum("cak,ca->ck", m[which], g), joined

        low, high = np.where(exists, np.minimum(low, 0.0), 0.0), np.where(exists, np.maximum(high, 0.0), 0.0)
        shift = minimize_boxes(in_shift, np.zeros_like(low), low, high).x
    moved = reward.copy()
    moved[several] = r + np.einsum("cak,ck->ca", m, shift)
    return np.clip(moved, 0.0, bound) if np.isfinite(bound) else moved


@dataclass(frozen=True, eq=False)
class _Theta:
    """The loss of S instances as a function of theta = offset + directions c, c (S, k).

    directions: (S, D, k), offset: (S, D), or None where c is theta. phi: (X, A, D).
    """

    cells: Cells
    phi: Array
    directions: Array | None = None
    offset: Array | None = None

    @cached_property
    def squares(self) -> Array:
        """(X P, D D): each pair's difference of features, times itself."""
        a, dim = self.phi.shape[1:]
        apart = (incidence_matrix(a) @ self.phi).reshape(-1, dim)
        return np.asarray((apart[:, :, None] * apart[:, None, :]).reshape(-1, dim * dim))

    def evaluate(self, c: Array, which: Index) -> Evaluation:
        """Return values (s,), gradients (s, k) and Hessians (s, k, k) of the instances `which`."""
        x, a, dim = self.phi.shape
        flat, theta = self.phi.reshape(x * a, dim), c
        if self.directions is not None and self.offset is not None:
            theta = self.offset[which] + np.einsum("sdk,sk->sd", self.directions[which], c)
        mine = (which[:, None] * x + np.arange(x)).ravel()
        value, g, conductance = self.cells.conducted((theta @ flat.T).reshape(-1, a), mine)
        slope = g.reshape(-1, x * a) @ flat
        curve = (conductance.reshape(len(which), -1) @ self.squares).reshape(-1, dim, dim)
        if self.directions is not None:
            along = self.directions[which]
            slope = np.einsum("sdk,sd->sk", along, slope)
            curve = np.einsum("sdk,sde,sel->skl", along, curve, along, optimize=True)
        return value.reshape(-1, x).sum(axis=1), slope, curve


def solve_balls(cells: Cells, ball: LinearBall, start: Array) -> tuple[Array, int]:
    """Return (rewards (S, X, A), rounds) over the ball. start: (S, X, A)."""
    s, x, a = start.shape
    checks.has_shape("reward_class.features", ball.features, (x, a, None))
    flat = ball.features.reshape(x * a, -1)
    near = start.reshape(s, x * a) @ np.linalg.pinv(flat).T
    result = minimize_balls(_Theta(cells, ball.features).evaluate, near, ball.radius, prompts=x)
    theta = pessimistic_thetas(cells, ball, result.x) if cells.pull == 0 else result.x
    return (theta @ flat.T).reshape(s, x, a), result.iterations


def pessimistic_thetas(cells: Cells, ball: LinearBall, theta: Array) -> Array:
    """Move each theta (S, D) within the ball, along directions no comparison of its data sees."""
    x, a, _ = ball.features.shape
    first, second = np.triu_indices(a, k=1)
    difference = ball.features[:, first] - ball.features[:, second]
    seen = cells.compared.reshape(len(theta), x, first.size) > 0
    design = np.einsum("sxp,xpd,xpe->sde", seen.astype(np.float64), difference, difference, optimize=True)
    values, vectors = np.linalg.eigh(design)
    blind = (values <= 1e-10 * np.maximum(values[:, -1:], 1e-300)).sum(axis=1)
    moved = theta.copy()
    for rank in np.unique(blind[blind > 0]):
        group = np.flatnonzero(blind == rank)
        free = vectors[group][:, :, :rank]  # eigenvalues ascend: the blind directions come first
        kept = theta[group] - np.einsum("sdk,sek,se->sd", free, free, theta[group])
        room = np.sqrt(np.maximum(0.0, ball.radius**2 - (kept**2).sum(axis=1)))
        along = free * room[:, None, None]  # scaled, so that every instance moves in the unit ball
        part = _Theta(cells.pessimism(group, x), ball.features, along, kept)
        c = minimize_balls(part.evaluate, np.zeros((group.size, rank)), 1.0, prompts=x).x
        moved[group] = kept + np.einsum("sdk,sk->sd", along, c)
    return moved
