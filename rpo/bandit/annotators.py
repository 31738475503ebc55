"""Annotators of unknown groups: a mixture of Bradley-Terry rewards, fitted by expectation and maximisation.

Shapes: U annotators, C groups, X prompts, A responses. Source: Chakraborty et al. 2024 (arXiv 2402.08925), as quoted
elsewhere; the expectation step here is the exact posterior, not its largest entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from rpo.bandit.batched import solve_batch
from rpo.bandit.batched.solution import require_batched_class
from rpo.bandit.data import Index, PreferenceCounts
from rpo.bandit.maximin import default_class
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, preference_loss

LEAST_SHARE = 1e-300  # of an annotator in a group: a group without data has no likelihood


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnotatorGroups:
    """Rewards of groups of annotators, and who belongs to which.

    rewards: (C, X, A), each with E_ref[r] = 0 at every prompt; `Hull(rewards)` is the class of the policy that is best
    for the group worst off. shares: (C,). responsibilities: (U, C), the posterior of each annotator's group.
    log_likelihood: of all preferences, nats; history: its value round by round, which never falls. restarts_agree: how
    many starts ended within 1e-6 nats a preference of the best. certified: whether every group's maximum is.
    """

    rewards: Array
    shares: Array
    responsibilities: Array
    log_likelihood: float
    history: tuple[float, ...]
    restarts_agree: int
    certified: bool

    @property
    def groups(self) -> Index:
        """The likeliest group of each annotator, (U,)."""
        return np.asarray(self.responsibilities.argmax(axis=1), dtype=np.int64)

    def posterior(self, data: PreferenceCounts) -> Array:
        """Return the posterior of the group of an annotator with this data, (C,): the shares where there is none."""
        losses = _losses(self.rewards, checks.instance("data", data, PreferenceCounts))
        return np.asarray(_posterior(np.log(np.maximum(self.shares, LEAST_SHARE)) - losses)[0])

    def matched(self, truth: Any) -> int:
        """Return how many annotators are in the group that `truth` (U,) names, under the best naming of the groups."""
        named = checks.finite("truth", truth, shape=(len(self.responsibilities),)).astype(np.int64)
        if named.min(initial=0) < 0:
            raise InvalidArgument("truth", expected="group numbers >= 0", got=named.min(), remedy="Count from zero.")
        table = np.zeros((len(self.shares), int(named.max(initial=0)) + 1), dtype=np.int64)
        np.add.at(table, (self.groups, named), 1)
        return int(table[linear_sum_assignment(-table)].sum())


def annotator_groups(
    problem: ContextualBandit,
    annotators: Sequence[PreferenceCounts],
    *,
    groups: int = 2,
    reward_class: RewardClass | None = None,
    restarts: int = 4,
    rounds: int = 200,
    tolerance: float = 1e-8,
    rng: Any = None,
) -> AnnotatorGroups:
    """Return the likeliest mixture of `groups` Bradley-Terry rewards of several starts.

    annotators: one data set each. reward_class: where every group's reward lies, default Box(problem.reward_bound); one
    that `solve_batch` takes. restarts: starts, from random responsibilities. rounds: at most; a start ends where the
    log-likelihood gains less than `tolerance` nats a preference. The likelihood has local maxima, which restarts may
    miss; which group comes first is arbitrary. Raises InvalidArgument.
    """
    checks.instance("problem", problem, ContextualBandit)
    people = checks.instances("annotators", annotators, PreferenceCounts)
    c, starts = checks.integer("groups", groups, minimum=1), checks.integer("restarts", restarts, minimum=1)
    most, least = checks.integer("rounds", rounds, minimum=1), checks.positive("tolerance", tolerance)
    x, a = problem.reference.shape
    checks.table_size("annotators", (len(people) + starts * c, x, a, a), remedy="Use fewer annotators or responses.")
    if not people:
        raise InvalidArgument("annotators", expected="at least one data set", got="none", remedy="Pass one for each.")
    for u, one in enumerate(people):
        if (one.num_prompts, one.num_responses) != (x, a):
            raise InvalidArgument(
                f"annotators[{u}]",
                expected=f"counts over {x} prompts and {a} responses",
                got=f"{one.num_prompts} and {one.num_responses}",
                remedy="Pass num_prompts and num_responses of the problem when counting.",
            )
    wins = np.stack([one.wins() for one in people])
    total = float(wins.sum())
    used = default_class(problem) if reward_class is None else reward_class
    if not require_batched_class(used).bounded:
        raise InvalidArgument(
            "reward_class",
            expected="a bounded class: a small group may have no likeliest reward among all tables",
            got=type(used).__name__,
            remedy="Pass Box(R).",
        )
    generator = checks.generator("rng", rng)
    mine = generator.dirichlet(np.ones(c), size=(starts, len(people)))
    rewards: Array | None = None
    history: list[Array] = []
    for _ in range(most):
        # Maximisation: the rewards of all groups of all starts in one batch, each annotator counted by its share.
        counts = np.tensordot(np.maximum(mine, LEAST_SHARE), wins, axes=([1], [0])).reshape(-1, x, a, a)
        found = solve_batch(
            counts, DPO(beta=1.0, base="reference"), reference=problem.reference, reward_class=used, start=rewards
        )
        rewards, certified = found.reward, found.certified.reshape(starts, c)
        # Expectation: the posterior of each annotator's group.
        tables = rewards.reshape(starts, c, x, a)
        apart = tables[..., :, None] - tables[..., None, :]
        losses = np.einsum("uxwl,scxwl->suc", wins, preference_loss(apart, 1.0))
        shares = mine.mean(axis=1)
        mine, evidence = _posterior(np.log(np.maximum(shares, LEAST_SHARE))[:, None, :] - losses)
        history.append(evidence.sum(axis=1))
        if len(history) > 1 and (history[-1] - history[-2] <= least * total).all():
            break
    best = int(history[-1].argmax())
    kept = tables[best]
    return AnnotatorGroups(
        rewards=kept - (problem.reference * kept).sum(axis=2, keepdims=True),
        shares=shares[best],
        responsibilities=mine[best],
        log_likelihood=float(history[-1][best]),
        history=tuple(float(value[best]) for value in history),
        restarts_agree=int((history[-1] >= history[-1][best] - 1e-6 * total).sum()),
        certified=bool(certified[best].all()),
    )


def _losses(rewards: Array, data: PreferenceCounts) -> Array:
    """Return minus the log-likelihood of one annotator's data under each reward, (C,)."""
    apart = rewards[:, data.prompt, data.chosen] - rewards[:, data.prompt, data.rejected]
    return np.asarray(preference_loss(apart, 1.0) @ data.count)


def _posterior(joint: Array) -> tuple[Array, Array]:
    """Return exp(joint) normalised over the last axis, and the logarithm of its sum."""
    evidence = logsumexp(joint, axis=-1)
    return np.exp(joint - evidence[..., None]), np.asarray(evidence)
