"""The reward side, minimised by Newton's method: prompt by prompt (tables), or in shared parameters.

Derivatives in r: the preference term's are its data term's; the penalty's gradient is eta d (pi_r - pi_base) and
its Hessian (eta d / beta) (diag(v) - v v' / sum v), v the slopes of pi_r, which for the KL are pi_r itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.existence import comparison_components
from rpo.bandit.solver.newton import Derivatives, minimize_box
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
    reward_class, shape = saddle.reward_class, saddle.base.shape
    table = np.zeros(shape) if start is None else start
    if reward_class.linear_in is not None:
        return _shared(saddle, table)
    reward = reward_class.project(np.zeros(shape))
    lowest, highest = (np.broadcast_to(limit, shape) for limit in reward_class.limits)
    known: dict[bytes, Array] = {}
    prompts = len(saddle.d)
    for block in track(blocks(saddle), "Newton's method, prompts", show=None if prompts > MANY_PROMPTS else False):
        begin, lower, upper = (rows[block.prompt, block.support] for rows in (table, lowest, highest))
        # Prompts with the same data, such as one comparison of two texts each, have the same answer.
        same = _digest(block, begin, lower, upper) if prompts > 1 else b""
        if same not in known:
            known[same] = _minimize_block(saddle, block, begin, lower, upper)
        reward[block.prompt, block.support] = known[same]
    return reward


def _minimize_block(saddle: Saddle, block: PromptBlock, start: Array, lower: Array, upper: Array) -> Array:
    """Return one prompt's rewards, (S,), within its limits (S,), or normalised to beta f'(pi / pi_ref)."""
    r = minimize_box(lambda r: derivatives(block, r), start, lower, upper).x
    if saddle.eta == 0:
        r = _pessimistic_shift(saddle, block, r, lower, upper)
    if not saddle.reward_class.bounded:
        return np.asarray(r - saddle.beta * saddle.divergence.shift(r / saddle.beta, block.log_measure))
    # A constant a prompt is free: down to where the first entry meets its lower limit.
    return np.clip(r - (r - lower).min(), lower, upper)


def _digest(block: PromptBlock, *tables: Array) -> bytes:
    """Return a hash of all that one prompt's minimum depends on; tables: its start and limits, (S,)."""
    parts = [block.log_reference, block.base, np.array([block.d]), *tables]
    for groups in block.term.groups:
        parts += [*groups.entries, groups.weights, *(groups.scores or ())]
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8) + part.tobytes())
    return state.digest()


def _shared(saddle: Saddle, start: Array) -> Array:
    """Return the rewards (X, A) of a class whose parameters all prompts share.

    At eta = 0 they are moved, where no comparison sees it, to the most pessimistic of the class.
    """
    reward_class, shape = saddle.reward_class, saddle.base.shape
    mine = [(b.prompt, b.support, partial(derivatives, b)) for b in blocks(saddle)]
    reward, _ = reward_class.minimize(mine, shape, start=start)
    if saddle.eta > 0:
        return reward
    penalty = partial(pessimism, saddle.divergence, saddle.beta)
    bare = [(b.prompt, b.support, partial(penalty, b)) for b in blocks(saddle) if b.d > 0]
    first, second = saddle.term.arrows(saddle.base.size).nonzero()
    compared = first // shape[1], first % shape[1], second % shape[1]
    return reward_class.minimize(bare, shape, start=reward, kept=compared)[0]


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
