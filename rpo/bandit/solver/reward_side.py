"""The reward side, minimised by Newton's method: prompt by prompt (tables), or in theta (the ball).

Derivatives in r: the preference term's are its data term's; the penalty's gradient is eta d (pi_r - pi_base) and
its Hessian (eta d / beta) (diag(v) - v v' / sum v), v the slopes of pi_r, which for the KL are pi_r itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo.bandit.reward_class import LinearBall
from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.existence import comparison_components
from rpo.bandit.solver.newton import Derivatives, minimize_ball, minimize_box
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array
from rpo.core.divergences import Divergence
from rpo.core.errors import NoMinimizer
from rpo.core.links import Link
from rpo.core.objectives import Anchor, Objective, require_margin_shape
from rpo.core.progress import track
from rpo.core.shapes import Shape

MANY_PROMPTS = 1000  # from which their progress is shown


def derivatives(block: PromptBlock, r: Array) -> Derivatives:
    """Return value, gradient (S,) and Hessian (S, S) of one prompt's part of the loss in r (S,)."""
    objective = block.term.objective
    anchor = objective.anchor
    preference, gradient, hessian = block.term.derivatives(r)
    base_value = np.zeros(1)
    if anchor.weight > 0:
        base_value, pulled, spread = _penalty(anchor.divergence, objective.link.beta, anchor.weight, block, r)
        gradient = gradient + pulled
        hessian += spread
    value, _ = objective.total(preference, base_value, None, np.array([block.d]))
    return float(value), gradient, hessian


def _penalty(
    divergence: Divergence, beta: float, weight: float, block: PromptBlock, r: Array
) -> tuple[Array, Array, Array]:
    """Return the base value v of pi_r, (1,), and gradient (S,) and Hessian (S, S) of -weight * d * v in r (S,)."""
    reply = divergence.reply(r / beta, block.log_measure)
    value = divergence.base_value(block.base, reply.logps, block.log_measure, reply.s)
    scale = weight * block.d / beta
    spread = np.outer(reply.slope, -reply.slope)  # in place: for thousands of responses each (S, S) array counts
    if not isinstance(reply.total, float):
        spread /= reply.total
    spread.flat[:: r.size + 1] += reply.slope
    spread *= scale / beta
    return value[None], scale * (reply.policy - block.base), spread


def pessimism(divergence: Divergence, beta: float, block: PromptBlock, r: Array) -> Derivatives:
    """Return value, gradient and Hessian of the penalty alone, at weight one: what breaks the ties at eta = 0."""
    base_value, gradient, hessian = _penalty(divergence, beta, 1.0, block, r)
    return float(-block.d * base_value[0]), gradient, hessian


@dataclass(frozen=True)
class Smoothed(Objective):
    """An objective whose loss has a kink, with its corner rounded."""

    of: Objective
    width: float

    @property
    def link(self) -> Link:
        """That of the objective."""
        return self.of.link

    @property
    def shape(self) -> Shape:
        """A smooth one, `width` from the objective's."""
        shape = require_margin_shape(self.of)
        return shape.smoothed(self.width) or shape

    @property
    def anchor(self) -> Anchor:
        """That of the objective."""
        return self.of.anchor


def minimize_reward_side(saddle: Saddle, start: Array | None = None) -> Array:
    """Return the minimising reward table, (X, A); at eta = 0 the most pessimistic of the minimisers.

    start: (X, A) in the class; zeros by default. A constant a prompt is free: unconstrained rewards are
    normalised to r = beta f'(pi / pi_ref), a box's to start at 0. Entries outside the support and
    prompts without weight are 0.
    """
    reward_class = saddle.reward_class
    table = np.zeros(saddle.base.shape) if start is None else start
    if reward_class.linear_in is not None:
        ball: Any = reward_class
        theta = _ball(saddle, ball, ball.parameters(table))
        return ball.reward(_pessimistic_theta(saddle, ball, theta) if saddle.eta == 0 else theta)
    reward = np.zeros(saddle.base.shape)
    known: dict[bytes, Array] = {}
    prompts = len(saddle.d)
    for block in track(blocks(saddle), "Newton's method, prompts", show=None if prompts > MANY_PROMPTS else False):
        begin = table[block.prompt, block.support]
        # Prompts with the same data, such as one comparison of two texts each, have the same answer.
        same = _digest(block, begin) if prompts > 1 else b""
        if same not in known:
            known[same] = _minimize_block(saddle, block, begin)
        reward[block.prompt, block.support] = known[same]
    return reward


def _minimize_block(saddle: Saddle, block: PromptBlock, start: Array) -> Array:
    """Return one prompt's rewards, (S,), within the class's limits, or normalised to beta f'(pi / pi_ref)."""
    lower, upper = (np.full(block.support.size, limit) for limit in saddle.reward_class.limits)
    r = minimize_box(lambda r: derivatives(block, r), start, lower, upper).x
    if saddle.eta == 0:
        r = _pessimistic_shift(saddle, block, r, lower, upper)
    if not saddle.reward_class.bounded:
        return np.asarray(r - saddle.beta * saddle.divergence.shift(r / saddle.beta, block.log_measure))
    return np.asarray(r - r.min())  # a constant a prompt is free; the box always has room for this one


def _digest(block: PromptBlock, start: Array) -> bytes:
    """Return a hash of all that one prompt's minimum depends on."""
    parts = [block.log_reference, block.base, np.array([block.d]), start]
    for groups in block.term.groups:
        parts += [*groups.entries, groups.weights, *(groups.scores or ())]
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8) + part.tobytes())
    return state.digest()


def _ball(saddle: Saddle, reward_class: LinearBall, start: Array) -> Array:
    parts = [(block, reward_class.features[block.prompt, block.support]) for block in blocks(saddle)]

    def total(theta: Array) -> Derivatives:
        value, gradient, hessian = 0.0, np.zeros(theta.size), np.zeros((theta.size, theta.size))
        for block, phi in parts:
            v, g, h = derivatives(block, phi @ theta)
            value, gradient, hessian = value + v, gradient + phi.T @ g, hessian + phi.T @ h @ phi
        return value, gradient, hessian

    return minimize_ball(total, start, reward_class.radius).x


def _pessimistic_shift(saddle: Saddle, block: PromptBlock, r: Array, lower: Array, upper: Array) -> Array:
    """Shift each component of the comparison graph to minimise the penalty, Omega*(r) - E_base[r]."""
    beta, divergence = saddle.beta, saddle.divergence
    component = comparison_components(block.term.arrows(block.support.size))
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
        # A component of the reference that answers with all its mass, times the base's: it answers with the base's.
        for c, share in enumerate(mass):
            mine = component == c
            r[mine] -= beta * divergence.shift(r[mine] / beta, block.log_measure[mine] - np.log(share))
        return r
    penalty = replace(block, d=1.0)
    low = np.array([(lower - r)[component == c].max() for c in range(indicator.shape[1])])
    high = np.array([(upper - r)[component == c].min() for c in range(indicator.shape[1])])

    def in_shift(c: Array) -> Derivatives:
        value, g, h = pessimism(divergence, beta, penalty, r + indicator @ c)
        return value, indicator.T @ g, indicator.T @ h @ indicator

    shift = minimize_box(in_shift, np.zeros(low.size), np.minimum(low, 0.0), np.maximum(high, 0.0)).x
    return np.asarray(np.clip(r + indicator @ shift, lower, upper))


def _pessimistic_theta(saddle: Saddle, reward_class: LinearBall, theta: Array) -> Array:
    """Move theta within the ball, along directions no comparison sees, to the most pessimistic reward."""
    phi = reward_class.features
    rows = phi.reshape(-1, phi.shape[2])
    first, second = saddle.term.arrows(len(rows)).nonzero()
    seen = rows[first] - rows[second]
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
            parts.append((block, phi[block.prompt, block.support]))

    def in_free(c: Array) -> Derivatives:
        value, gradient, hessian = 0.0, np.zeros(c.size), np.zeros((c.size, c.size))
        for block, features in parts:
            v, g, h = pessimism(saddle.divergence, saddle.beta, block, features @ (theta + free @ c))
            pulled = features @ free
            value, gradient, hessian = value + v, gradient + pulled.T @ g, hessian + pulled.T @ h @ pulled
        return value, gradient, hessian

    return np.asarray(theta + free @ minimize_ball(in_free, np.zeros(free.shape[1]), room).x)
