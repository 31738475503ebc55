"""`solve_batch`: the same maximin over many instances at once, certified by the same gap.

Shapes: S seeds (instances), X prompts, A responses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.bandit.batched.cells import Cells, minimizers_exist
from rpo.bandit.batched.classes import solve_balls, solve_boxes
from rpo.bandit.maximin import WIDTHS
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, RewardClass, Unconstrained, check_reward_class
from rpo.bandit.solver.certificate import NEGATIVE_MASS, least_modulus, within_tolerance
from rpo.bandit.solver.reward_side import Smoothed
from rpo.bandit.solver.saddle import check_base
from rpo.bandit.solver.solvable import require_solvable
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective
from rpo.core.shapes import MarginShape

SMOOTHED = 0.01  # of pi_ref in the pi_base that a start answers with: a response without mass is not sent to -inf
KINK_GAP = 1e-8  # relative, at which a rounded corner is sharp enough: a tenth of what certifies


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchSolution:
    """S solved instances with their evidence.

    policy, reward: (S, X, A). value, gap, relative_gap, tv_bound: (S,), as in `Certificate`.
    certified: (S,) bool. exists: (S,) bool, whether a minimiser exists (always, but for the
    unconstrained class); where it does not, policy is NaN and the gap inf.
    """

    policy: Array
    reward: Array
    value: Array
    gap: Array
    tv_bound: Array
    certified: NDArray[np.bool_]
    exists: NDArray[np.bool_]
    iterations: int

    def where_better(self, other: BatchSolution) -> BatchSolution:
        """Return the answers of the other where their gap is no larger, else these."""
        better = other.gap <= self.gap
        merged: dict[str, Any] = {
            f.name: np.where(better.reshape(-1, *[1] * (one.ndim - 1)), getattr(other, f.name), one)
            for f in fields(self)
            if isinstance(one := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **merged)

    @property
    def relative_gap(self) -> Array:
        """(S,), gap / max(1, |value|)."""
        return np.asarray(self.gap / np.maximum(1.0, np.abs(self.value)))


def sample_wins(problem: ContextualBandit, n: int, draws: int, *, rng: Any) -> Array:
    """Draw `draws` data sets of n preferences each, as win counts (S, X, A, A); time independent of n."""
    checks.instance("problem", problem, ContextualBandit)
    size = checks.integer("draws", draws, minimum=1)
    generator = checks.generator("rng", rng)
    return np.stack([problem.sample_preferences(n, rng=child).wins() for child in generator.spawn(size)])


def solve_batch(
    wins: Any,
    objective: Objective,
    *,
    reference: Any,
    reward_class: RewardClass,
    base_policy: Any = None,
    d0: Any = None,
    start: Any = None,
) -> BatchSolution:
    """Solve S instances of one shape and class; `maximin.solve` for each, at once.

    wins: (S, X, A, A), n[s, x, w, l]. reference: (X, A), or (S, X, A), one of each instance. base_policy: likewise,
    with objective.base "custom". d0: (X,) or (S, X), population weights; None for data frequencies. start: (S, X, A),
    rewards to start from, such as a neighbouring beta's. Memory is S X A^2 numbers. Raises
    InvalidArgument. An instance without a minimiser is marked in `exists`.
    """
    require_batchable(objective)
    require_batched_class(reward_class)
    table = checks.finite("wins", wins, shape=(None, None, None, None))
    s, x, a, _ = table.shape
    checks.has_shape("wins", table, (s, x, a, a))
    if not table.size:
        raise InvalidArgument("wins", expected="some data", got=f"shape {table.shape}", remedy="Pass an instance.")
    pi_ref = _each("reference", reference, (s, x, a))
    total = table.sum(axis=(1, 2, 3))
    diagonal = np.einsum("sxaa->sxa", table)
    used = table.sum(axis=3) + table.sum(axis=2)
    if table.min() < 0 or (total <= 0).any() or diagonal.any() or (used[pi_ref == 0] > 0).any():
        raise InvalidArgument(
            "wins",
            expected="counts >= 0, zero diagonal, some data in each instance, none outside the reference",
            got=f"least {table.min()}, fewest {total.min()}, diagonal {np.abs(diagonal).max()}",
            remedy="Check how the counts were made.",
        )
    weights = table / total[:, None, None, None]
    d = weights.sum(axis=(2, 3)) if d0 is None else _each("d0", d0, (s, x))
    base = base_tables(table, objective, pi_ref, base_policy)
    with np.errstate(divide="ignore"):
        log_reference = np.log(pi_ref)
    link: Any = objective.link
    log_measure = log_reference if link.reference else np.where(pi_ref > 0, 0.0, -np.inf)
    first, second = np.triu_indices(a, k=1)
    cells = Cells(
        objective,
        link.beta,
        link.divergence,
        (weights[:, :, first, second] + weights[:, :, second, first]).reshape(s * x, -1),
        weights[:, :, second, first].reshape(s * x, -1),
        d.reshape(-1),
        log_measure.reshape(s * x, a),
        base.reshape(s * x, a),
    )
    r0 = _near(table, cells, pi_ref) if start is None else checks.finite("start", start, shape=(s, x, a))
    exists = np.ones(s, dtype=bool)
    if not reward_class.bounded:
        exists = minimizers_exist(table, d, base, pi_ref > 0, objective)
    if objective.shape.smooth:
        reward, rounds = _minimized(cells, reward_class, r0, exists)
        return _certified(cells, reward_class, reward, exists, rounds, pi_ref)
    # Where the loss has a kink: of the problems whose corner is rounded ever less, instance by instance the one whose
    # point, and whose slopes at it, certify the loss itself best.
    best, taken = None, 0
    for width in WIDTHS[::3]:
        rounded = replace(cells, objective=Smoothed(objective, width))
        r0, rounds = _minimized(rounded, reward_class, r0, exists)
        taken += rounds
        found = _certified(cells, reward_class, r0, exists, taken, pi_ref, rounded)
        best = found if best is None else best.where_better(found)
        if (best.relative_gap[exists] <= KINK_GAP).all():
            break
    return replace(found if best is None else best, iterations=taken)


def _near(table: Array, cells: Cells, reference: Array) -> Array:
    """Return rewards (S, X, A) to start from: the data's and the penalty's own, each weighed by its curvature.

    The data's is half the smoothed log-odds of winning, at whose whole a low temperature saturates the softmax; without
    a penalty a quarter. The penalty's is that to which the policy answers with pi_base, smoothed by pi_ref.
    """
    chosen, rejected = table.sum(axis=3), table.sum(axis=2)
    odds = np.log((chosen + 0.5) / (rejected + 0.5))
    if cells.pull == 0:
        near = 0.25 * odds
    else:
        base = (1.0 - SMOOTHED) * cells.base.reshape(table.shape[:3]) + SMOOTHED * reference
        inside = base > 0
        ratio = np.log(np.where(inside, base, 1.0)) - np.where(inside, cells.log_measure.reshape(base.shape), 0.0)
        heavy = cells.pull * cells.d.reshape(*base.shape[:2], 1) * base / cells.beta**2
        light = 0.25 * (chosen + rejected) / table.sum(axis=(1, 2, 3))[:, None, None]
        own = cells.beta * cells.divergence.link(ratio)
        near = (light * 0.5 * odds + heavy * own) / np.maximum(light + heavy, 1e-300)
    return np.asarray(near - near.min(axis=2, keepdims=True))


def _minimized(cells: Cells, reward_class: RewardClass, start: Array, exists: NDArray[np.bool_]) -> tuple[Array, int]:
    """Return the minimising rewards (S, X, A) and the rounds taken; start: (S, X, A)."""
    s, x, a = start.shape
    if reward_class.linear_in is not None:
        ball: Any = reward_class
        return solve_balls(cells, ball, start)
    boxes: Any = reward_class
    reward, rounds = solve_boxes(cells, boxes, start.reshape(s * x, a), np.repeat(exists, x))
    return reward.reshape(s, x, a), rounds


def _each(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return the distributions of S instances, `shape` (S, ...), from theirs or from one that they share."""
    found = checks.probabilities(name, value)
    checks.has_shape(name, found, shape if found.ndim == len(shape) else shape[1:])
    return np.broadcast_to(found, shape)


def is_batchable(objective: Objective) -> bool:
    """Return whether an objective that `solve` takes is of pairs without scores."""
    return isinstance(objective.shape, MarginShape) and "scores" not in objective.needs


def require_batchable(objective: object, name: str = "objective") -> Objective:
    """Return `objective`, or refuse one that `solve` does not certify, or only one instance at a time."""
    found = require_solvable(objective, name)
    if not is_batchable(found):
        raise InvalidArgument(
            name,
            expected="a loss of one margin without scores, to solve many instances at once",
            got=found.label,
            remedy="Use `solve`, one instance at a time.",
        )
    return found


def is_batched_class(reward_class: RewardClass) -> bool:
    """Return whether the steps of many instances are taken together in this class."""
    plain = isinstance(reward_class, LinearBall) and reward_class.is_plain
    return plain or isinstance(reward_class, Unconstrained | Box)


def require_batched_class(value: object) -> RewardClass:
    """Return `value`, or refuse a class that `solve` takes one instance at a time."""
    found = check_reward_class(value)
    if not is_batched_class(found):
        raise InvalidArgument(
            "reward_class",
            expected="Unconstrained(), Box(R) or LinearBall(features, B) without metric and centre, whose steps are "
            "taken for many instances at once",
            got=type(found).__name__,
            remedy="Use `solve`, one instance at a time.",
        )
    return found


def base_tables(wins: Array, objective: Objective, reference: Array, base_policy: Any) -> Array:
    s, x, a, _ = wins.shape
    check_base(objective, base_policy)
    if base_policy is not None:
        return _each("base_policy", base_policy, (s, x, a))
    role = objective.anchor.role
    if role == "reference":
        return np.broadcast_to(reference, (s, x, a))
    times = {"chosen": wins.sum(axis=3), "rejected": wins.sum(axis=2)}
    count = times["chosen"] + times["rejected"] if role == "responses" else times[role]
    total = count.sum(axis=2, keepdims=True)
    return np.where(total > 0, count / np.where(total > 0, total, 1.0), reference)


def _certified(
    cells: Cells,
    reward_class: RewardClass,
    reward: Array,
    exists: NDArray[np.bool_],
    rounds: int,
    reference: Array,
    rounded: Cells | None = None,
) -> BatchSolution:
    """Certify every instance as `certificate.certify` does with p = -shape'(z): see docs/theory.md, section 3.

    rounded: cells of a loss with its corner rounded, whose slopes are p in place of the loss's own.
    """
    s, x, a = reward.shape
    objective, divergence, pull = cells.objective, cells.divergence, cells.pull
    eta = 0.0 if objective is None else objective.reward_penalty
    every = np.arange(s * x)
    value, gradient, _ = cells.evaluate(reward.reshape(-1, a), every, curved=False)
    missed = np.zeros(s)
    if rounded is not None:
        gradient = rounded.evaluate(reward.reshape(-1, a), every, curved=False)[1]
        missed = cells.fenchel_young(reward.reshape(-1, a), rounded).reshape(s, x).sum(axis=1)
    reply = divergence.reply(reward.reshape(-1, a) / cells.beta, cells.log_measure)
    gibbs = reply.policy
    g = -gradient
    if not reward_class.bounded:
        penalised = eta * cells.d
        absorbed = penalised > 0
        balanced = gibbs.copy()
        balanced[absorbed] += g[absorbed] / penalised[absorbed, None]
        support = np.where(~absorbed & (np.abs(g).max(axis=1) > NEGATIVE_MASS), np.inf, 0.0)
        support = np.where(balanced.min(axis=1) < -NEGATIVE_MASS, np.inf, support)
        balanced = np.maximum(balanced, 0.0)
        balanced /= balanced.sum(axis=1, keepdims=True)
        kept = divergence.distance(balanced, reply, cells.log_measure)
        gap = (pull * cells.d * kept + support).reshape(s, x).sum(axis=1)
    else:
        gap = reward_class.support_gaps(g.reshape(s, x, a), reward)
    constant = cells.d * divergence.base_value(cells.base, cells.log_measure, cells.log_measure)
    total = value.reshape(s, x).sum(axis=1) + (pull * constant.reshape(s, x).sum(axis=1) if pull > 0 else 0.0)
    gap = np.where(exists, gap + missed, np.inf)
    bound = np.full(s, np.inf)
    if pull > 0:
        modulus = least_modulus(divergence, cells.log_measure.reshape(s, x, a), cells.d.reshape(s, x))
        bound = np.minimum(1.0, np.sqrt(np.abs(gap) / (2.0 * pull * modulus)))
    certified = exists & within_tolerance(gap / np.maximum(1.0, np.abs(total)), bound, eta)
    policy = np.where(cells.d.reshape(s, x, 1) > 0, gibbs.reshape(s, x, a), reference)
    return BatchSolution(
        policy=np.where(exists[:, None, None], policy, np.nan),
        reward=reward,
        value=total,
        gap=gap,
        tv_bound=bound,
        certified=certified,
        exists=exists,
        iterations=rounds,
    )
