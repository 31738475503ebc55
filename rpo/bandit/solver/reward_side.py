"""The reward side, minimised by Newton's method: prompt by prompt (tables), or in theta (the ball).

Derivatives in r: the preference term's through its shape's own; the SFT term's gradient is
eta d (pi_r - pi_base) and its Hessian (eta d / beta) (diag(pi_r) - pi_r pi_r').
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from rpo.bandit.data import Index
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.existence import comparison_components, win_graph
from rpo.bandit.solver.newton import Derivatives, minimize_ball, minimize_box
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array
from rpo.core.errors import NoMinimizer
from rpo.core.links import LogRatio
from rpo.core.numerics import log_softmax
from rpo.core.objectives import Anchor, require_margin_shape
from rpo.core.progress import track
from rpo.core.shapes import Logistic

MANY_PROMPTS = 1000  # from which their progress is shown


def derivatives(objective: Any, block: PromptBlock, r: Array) -> Derivatives:
    """Return value, gradient (S,) and Hessian (S, S) of one prompt's part of the loss in r (S,)."""
    beta, size, pull = objective.link.beta, block.support.size, objective.anchor.weight
    margins = (r[block.chosen] - r[block.rejected]) / beta
    logps = log_softmax(block.log_reference + r / beta)
    base_logps = np.array([block.base @ logps])
    value, _ = objective.terms(margins, base_logps, block.weights, np.array([block.d]))

    slope, curvature = require_margin_shape(objective).derivatives(margins, beta)
    slope, curvature = block.weights * slope / beta, block.weights * curvature / beta**2
    ends = np.concatenate([block.chosen, block.rejected])
    others = np.concatenate([block.rejected, block.chosen])
    gradient = _sums(ends, np.concatenate([slope, -slope]), size)
    cells = np.concatenate([ends * (size + 1), ends * size + others])
    hessian = _sums(cells, np.concatenate([curvature, curvature, -curvature, -curvature]), size * size)
    hessian = hessian.reshape(size, size)
    if pull > 0:
        policy = np.exp(logps)
        weight = pull * block.d / beta
        gradient = gradient + weight * (policy - block.base)
        spread = np.outer(policy, -policy)  # in place: for thousands of responses each (S, S) array counts
        spread.flat[:: size + 1] += policy
        spread *= weight / beta
        hessian += spread
    return float(value), gradient, hessian


def _sums(index: Index, values: Array, size: int) -> Array:
    """Return the sum of the values at each index, (size,): of none, NumPy's bincount answers in integers."""
    return np.asarray(np.bincount(index, values, size), dtype=np.float64)


def minimize_reward_side(saddle: Saddle, start: Array | None = None) -> Array:
    """Return the minimising reward table, (X, A); at eta = 0 the most pessimistic of the minimisers.

    start: (X, A) in the class; zeros by default. A constant a prompt is free: unconstrained rewards are
    normalised to r = beta log(pi / pi_ref), a box's to start at 0. Entries outside the support and
    prompts without weight are 0.
    """
    reward_class = saddle.reward_class
    table = np.zeros(saddle.base.shape) if start is None else start
    if isinstance(reward_class, LinearBall):
        theta = _ball(saddle, reward_class, reward_class.parameters(table))
        if saddle.eta == 0:
            theta = _pessimistic_theta(saddle, reward_class, theta)
        return reward_class.reward(theta)
    reward = np.zeros(saddle.base.shape)
    bound = reward_class.bound if isinstance(reward_class, Box) else np.inf
    known: dict[bytes, Array] = {}
    prompts = len(saddle.d)
    for block in track(blocks(saddle), "Newton's method, prompts", show=None if prompts > MANY_PROMPTS else False):
        begin = table[block.prompt, block.support]
        # Prompts with the same data, such as one comparison of two texts each, have the same answer.
        same = _digest(block, begin) if prompts > 1 else b""
        if same not in known:
            known[same] = _minimize_block(saddle, block, begin, bound)
        reward[block.prompt, block.support] = known[same]
    return reward


def _minimize_block(saddle: Saddle, block: PromptBlock, start: Array, bound: float) -> Array:
    """Return one prompt's rewards, (S,), within [0, bound], or normalised to beta log(pi / pi_ref)."""
    lower = np.zeros(block.support.size) if np.isfinite(bound) else np.full(block.support.size, -np.inf)
    upper = np.full(block.support.size, bound)
    r = minimize_box(lambda r: derivatives(saddle.objective, block, r), start, lower, upper).x
    if saddle.eta == 0:
        r = _pessimistic_shift(saddle, block, r, lower, upper)
    if isinstance(saddle.reward_class, Unconstrained):
        return np.asarray(r - saddle.beta * logsumexp(block.log_reference + r / saddle.beta))
    return np.asarray(r - r.min())  # a constant a prompt is free; the box always has room for this one


def _digest(block: PromptBlock, start: Array) -> bytes:
    """Return a hash of all that one prompt's minimum depends on."""
    parts = (block.log_reference, block.base, np.array([block.d]), block.chosen, block.rejected, block.weights, start)
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8) + part.tobytes())
    return state.digest()


def _ball(saddle: Saddle, reward_class: LinearBall, start: Array) -> Array:
    parts = [(block, reward_class.features[block.prompt, block.support]) for block in blocks(saddle)]

    def total(theta: Array) -> Derivatives:
        value, gradient, hessian = 0.0, np.zeros(theta.size), np.zeros((theta.size, theta.size))
        for block, phi in parts:
            v, g, h = derivatives(saddle.objective, block, phi @ theta)
            value, gradient, hessian = value + v, gradient + phi.T @ g, hessian + phi.T @ h @ phi
        return value, gradient, hessian

    return minimize_ball(total, start, reward_class.radius).x


@dataclass(frozen=True)
class PenaltyAlone:
    """-E_base[log pi_r], times one: what breaks the tie among maximum-likelihood rewards at eta = 0."""

    beta: float
    eta: float = 1.0
    sft_weight: float = 1.0
    shape = Logistic()
    anchor = Anchor(weight=1.0)

    @property
    def link(self) -> LogRatio:
        """Rewards of this beta."""
        return LogRatio(beta=self.beta)

    def terms(self, margins: Array, base_logps: Array, weights: Array, base_weights: Array) -> tuple[Any, None]:
        return (base_weights * -base_logps).sum(-1), None


def _pessimistic_shift(saddle: Saddle, block: PromptBlock, r: Array, lower: Array, upper: Array) -> Array:
    """Shift each component of the comparison graph to minimise -E_base[r] + beta log sum pi_ref exp(r / beta)."""
    beta = saddle.beta
    component = comparison_components(win_graph(block))
    indicator = (component[:, None] == np.arange(component.max() + 1)[None, :]).astype(float)
    if indicator.shape[1] == 1 or block.d == 0:
        return r
    if not np.isfinite(upper).all():
        # Stationarity gives every component the mass it has under pi_base.
        mass = block.base @ indicator
        if (mass == 0).any():
            lost = int(block.support[np.argmin(mass[component])])
            raise NoMinimizer(
                f"prompt {block.prompt}: at eta = 0 the data leave the reward of response {lost}'s component free, and "
                "pi_base gives that component no mass, so the most pessimistic reward is minus infinity. "
                "Use Box(R), or a base of full support such as base='reference'."
            )
        log_mass = np.array([logsumexp((block.log_reference + r / beta)[component == c]) for c in range(mass.size)])
        return np.asarray(r + beta * (np.log(mass) - log_mass)[component])
    penalty = replace(block, weights=np.zeros(0), chosen=block.chosen[:0], rejected=block.rejected[:0], d=1.0)
    low = np.array([(lower - r)[component == c].max() for c in range(indicator.shape[1])])
    high = np.array([(upper - r)[component == c].min() for c in range(indicator.shape[1])])

    def in_shift(c: Array) -> Derivatives:
        value, g, h = derivatives(PenaltyAlone(beta), penalty, r + indicator @ c)
        return value, indicator.T @ g, indicator.T @ h @ indicator

    shift = minimize_box(in_shift, np.zeros(low.size), np.minimum(low, 0.0), np.maximum(high, 0.0)).x
    return np.asarray(np.clip(r + indicator @ shift, lower, upper))


def _pessimistic_theta(saddle: Saddle, reward_class: LinearBall, theta: Array) -> Array:
    """Move theta within the ball, along directions no comparison sees, to the most pessimistic reward."""
    phi = reward_class.features
    seen = phi[saddle.prompt, saddle.chosen] - phi[saddle.prompt, saddle.rejected]
    if len(seen) > seen.shape[1]:
        seen = np.asarray(np.linalg.qr(seen, mode="r"))  # the same row space, without a K x K factor
    _, singular, rows = np.linalg.svd(seen, full_matrices=True)
    rank = int((singular > 1e-10 * max(float(singular.max()), 1e-300)).sum())
    theta = rows[:rank].T @ (rows[:rank] @ theta)
    free = rows[rank:].T
    room = float(np.sqrt(max(0.0, reward_class.radius**2 - float(theta @ theta))))
    if free.shape[1] == 0 or room <= 1e-9 * reward_class.radius:
        return np.asarray(theta)
    parts = []
    for block in blocks(saddle):
        if block.d > 0:
            bare = replace(block, weights=np.zeros(0), chosen=block.chosen[:0], rejected=block.rejected[:0])
            parts.append((bare, phi[block.prompt, block.support]))
    penalty = PenaltyAlone(saddle.beta)

    def in_free(c: Array) -> Derivatives:
        value, gradient, hessian = 0.0, np.zeros(c.size), np.zeros((c.size, c.size))
        for block, features in parts:
            v, g, h = derivatives(penalty, block, features @ (theta + free @ c))
            pulled = features @ free
            value, gradient, hessian = value + v, gradient + pulled.T @ g, hessian + pulled.T @ h @ pulled
        return value, gradient, hessian

    return np.asarray(theta + free @ minimize_ball(in_free, np.zeros(free.shape[1]), room).x)
