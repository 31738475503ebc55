"""Baselines made from the maximum-likelihood reward or from no reward.

Shapes: X prompts, A responses. Each is run by `solve(problem, data, PlugIn(beta=0.1))`. A prompt without data
keeps pi_ref.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution, default_class, solve
from rpo.bandit.metrics import policy_outcome
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, RewardClass, check_reward_class
from rpo.bandit.solver.saddle import build_saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.divergences import ChiSquaredKL
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import BASES, DPO
from rpo.methods.divergence import FRPO

TIE = 1e-9  # rewards closer than this, times max(1, largest reward), are equal
NAMED_BASES = tuple(base for base in BASES if base != "custom")


def maximum_likelihood(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    reward_class: RewardClass | None = None,
    beta: float = 1.0,
    base: str = "chosen",
) -> Solution:
    """Return the certified maximum-likelihood reward in the class (default Box(problem.reward_bound)).

    Where the data leave several, the most pessimistic of them at temperature beta against base
    (docs/theory.md, section 2). Raises NoMinimizer (unconstrained class only).
    """
    return solve(problem, data, DPO(beta=beta, base=base), reward_class=reward_class, method="newton")


def check_fields(beta: float, base: str, reward_class: object) -> float:
    """Return beta, above zero; refuse a base without a name, and what is no reward class nor makes one.

    A function of the problem is completed by `simulate`, problem by problem.
    """
    checks.one_of("base", base, NAMED_BASES)
    if reward_class is not None and (isinstance(reward_class, type) or not callable(reward_class)):
        check_reward_class(reward_class)
    return checks.positive("beta", beta)


def likelihood_evidence(solution: Solution) -> dict[str, Any]:
    """Return what a baseline keeps of the maximum-likelihood solution it stands on."""
    return {
        "reward_class": solution.reward_class.describe(),
        "likelihood_gap": solution.certificate.gap,
        "relative_gap": solution.certificate.relative_gap,
        "likelihood_status": solution.status,
        "prompts_without_data": solution.prompts_without_data,
    }


def likelihood_sentence(solution: Solution) -> str:
    """Return one sentence on how far the likelihood is from its maximum."""
    if solution.status != "certified":
        return f"The likelihood is over tolerance: {solution.message}"
    empty = solution.prompts_without_data
    tail = f"; {empty} prompt(s) without data" if empty else ""
    return f"Likelihood certified within {solution.certificate.relative_gap:.1e}{tail}."


def keep_reference(policy: Array, problem: ContextualBandit, data: PreferenceCounts) -> Array:
    """Return policy (X, A) with pi_ref at the prompts without data."""
    return np.where(data.prompt_frequencies[:, None] > 0, policy, problem.reference)


@dataclass(frozen=True, eq=False)
class PlugIn(Baseline):
    """Vanilla RLHF: the Gibbs policy of the maximum-likelihood reward, the limit eta -> 0 of RPO in the same class.

    beta: KL temperature, > 0. reward_class: default Box(problem.reward_bound). base: whose pessimism
    breaks ties among maximum-likelihood rewards. Source: Ouyang et al. 2022; docs/theory.md, section 2.
    """

    beta: float
    reward_class: RewardClass | None = None
    base: str = "chosen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return f"plug-in (beta={self.beta:g})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy; nothing is drawn."""
        found = maximum_likelihood(problem, data, reward_class=self.reward_class, beta=self.beta, base=self.base)
        return PolicyResult(
            policy=found.policy,
            label=self.label,
            status=found.status,
            message=f"Gibbs policy of r_MLE. {likelihood_sentence(found)}",
            reward=found.reward,
            evidence=likelihood_evidence(found),
        )


@dataclass(frozen=True, eq=False)
class Greedy(Baseline):
    """The best response by the maximum-likelihood reward, ties shared equally, within the reference's support.

    reward_class: default Box(problem.reward_bound). base, beta: break ties among maximum-likelihood
    rewards, nothing else. Source: the greedy policy of Zhu, Jordan, Jiao 2023, Theorem 3.9.
    """

    reward_class: RewardClass | None = None
    base: str = "chosen"
    beta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return "greedy"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy; nothing is drawn."""
        found = maximum_likelihood(problem, data, reward_class=self.reward_class, beta=self.beta, base=self.base)
        rank = reward_ranks(found.reward, problem.reference > 0)
        best = rank == rank.max(axis=1, keepdims=True)
        policy = keep_reference(best / best.sum(axis=1, keepdims=True), problem, data)
        tied = int((best.sum(axis=1)[data.prompt_frequencies > 0] > 1).sum())
        return PolicyResult(
            policy=policy,
            label=self.label,
            status=found.status,
            message=f"Greedy on r_MLE; {tied} prompt(s) with a tie. {likelihood_sentence(found)}",
            reward=found.reward,
            evidence={**likelihood_evidence(found), "prompts_tied": tied},
        )


@dataclass(frozen=True, eq=False)
class BestOfN(Baseline):
    r"""The best by maximum-likelihood reward of n responses drawn from pi_ref, exactly.

    $P(y) = F(y)^n - F(y^-)^n$ with F the reference's distribution function in the order of the reward;
    tied responses share theirs in proportion to pi_ref. n: >= 1. reward_class, base, beta: as in `Greedy`.
    Evidence: kl/reference, exact, and its bound log n - (n - 1) / n, reached without ties as responses
    become many. Source: Beirami et al. 2024.
    """

    n: int
    reward_class: RewardClass | None = None
    base: str = "chosen"
    beta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checks.integer("n", self.n, minimum=1))
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return f"best of {self.n}"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy; nothing is drawn."""
        found = maximum_likelihood(problem, data, reward_class=self.reward_class, beta=self.beta, base=self.base)
        policy = best_of_n_policy(found.reward, problem.reference, self.n)
        policy = keep_reference(policy, problem, data)
        kl = policy_outcome(policy, problem, problem.reference)["kl/reference"]
        bound = math.log(self.n) - (self.n - 1) / self.n
        return PolicyResult(
            policy=policy,
            label=self.label,
            status=found.status,
            message=f"Exact best of {self.n} by r_MLE, KL {kl:.3g} nats. {likelihood_sentence(found)}",
            reward=found.reward,
            evidence={**likelihood_evidence(found), "kl/reference": kl, "kl_bound": bound},
        )


def best_of_n_policy(reward: Array, reference: Array, n: int) -> Array:
    """Return the law of the best by reward (X, A) of n draws from reference (X, A); ties drawn in proportion."""
    rank = reward_ranks(reward, reference > 0)
    policy = np.zeros(reference.shape)
    for x, ranks in enumerate(rank):
        mass = np.bincount(ranks, weights=reference[x])
        below = np.concatenate([[0.0], np.minimum(np.cumsum(mass), 1.0)])
        below[-1] = 1.0
        # b^n - a^n = (b - a) sum_k b^(n-1-k) a^k, which keeps a small group's digits: here through expm1
        low, high = below[:-1], below[1:]
        with np.errstate(divide="ignore"):
            drop = -np.expm1(n * np.log(low / np.where(high > 0, high, 1.0)))
        group = np.where(high > 0, high**n * drop, 0.0)
        share = np.divide(reference[x], mass[ranks], out=np.zeros(len(ranks)), where=mass[ranks] > 0)
        policy[x] = group[ranks] * share
    return np.asarray(policy / policy.sum(axis=1, keepdims=True))


def reward_ranks(reward: Array, support: Any) -> Any:
    """Return (X, A) integers: 1 for the lowest reward of a prompt's support, equal for ties; 0 outside it."""
    near = TIE * max(1.0, float(np.abs(reward[support]).max(initial=0.0)))
    ranks = np.zeros(reward.shape, dtype=np.int64)
    for x in range(len(reward)):
        order = np.flatnonzero(support[x])
        order = order[np.argsort(reward[x, order], kind="stable")]
        steps = np.diff(reward[x, order]) > near
        ranks[x, order] = 1 + np.concatenate([[0], np.cumsum(steps)])
    return ranks


@dataclass(frozen=True, eq=False)
class ReferencePolicy(Baseline):
    """pi_ref itself: no data used."""

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return "pi_ref"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return pi_ref."""
        return PolicyResult(
            policy=problem.reference, label=self.label, status="exact", message="The reference policy itself."
        )


@dataclass(frozen=True, eq=False)
class BasePolicy(Baseline):
    """pi_base itself: imitation of the chosen (or rejected, or all) responses, as RPO's penalty sees it.

    base: "chosen", "rejected", "responses" or "reference".
    """

    base: str = "chosen"

    def __post_init__(self) -> None:
        checks.one_of("base", self.base, NAMED_BASES)

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return f"pi_base ({self.base})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return pi_base, pi_ref at prompts without data."""
        reward_class = Box(1.0)  # pi_base does not depend on it
        saddle = build_saddle(problem, data, DPO(beta=1.0, base=self.base), reward_class)
        empty = int((data.prompt_frequencies == 0).sum())
        return PolicyResult(
            policy=saddle.base,
            label=self.label,
            status="exact",
            message=f"The empirical distribution of the {self.base} responses; {empty} prompt(s) without data."
            if self.base != "reference"
            else "The reference policy itself.",
            evidence={"prompts_without_data": empty},
        )


@dataclass(frozen=True, eq=False)
class ChiSquaredPO(Baseline):
    r"""The policy of the maximum-likelihood reward under chi-squared plus KL regularization, in one loss.

    `solve` of `rpo.ChiPO`, with what Huang et al. 2024, Algorithm 1, add: the margin of
    $\beta(u + \log u)$, $u = \pi/\pi_{ref}$, is clipped to $\pm 2R$. Margins of Box(R) stay within R, so there the
    clip is idle. For a class whose margins pass 2R the clipped loss is not convex: the solution without it is returned
    and called inaccurate where the clip would act.

    beta: temperature, > 0. reward_class: default Box(problem.reward_bound). clip: default 2 R. base: breaks ties among
    maximum-likelihood rewards. Evidence: the largest ratio pi / pi_ref, at most 1 + (max r - min r) / beta.
    """

    beta: float
    reward_class: RewardClass | None = None
    clip: float | None = None
    base: str = "chosen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))
        if self.clip is not None:
            object.__setattr__(self, "clip", checks.positive("clip", self.clip))

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return f"chi-squared PO (beta={self.beta:g})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy; nothing is drawn."""
        clip = 2.0 * class_bound(problem, self.reward_class) if self.clip is None else self.clip
        objective = FRPO(beta=self.beta, eta=0.0, divergence=ChiSquaredKL(), base=self.base)
        found = solve(problem, data, objective, reward_class=self.reward_class, method="newton")
        margin = float(np.abs(found.saddle.margins(found.reward)).max())
        held = problem.reference > 0
        message = f"Largest margin {margin:.3g} (clip {clip:.3g}). {likelihood_sentence(found)}"
        return PolicyResult(
            policy=found.policy,
            label=self.label,
            status="certified" if found.status == "certified" and margin <= clip else "inaccurate",
            message=message if margin <= clip else f"The clip would act, and was left out. {message}",
            reward=found.reward,
            evidence={
                **likelihood_evidence(found),
                "largest_margin": margin,
                "clip": clip,
                "largest_ratio": float((found.policy[held] / problem.reference[held]).max()),
            },
        )


def class_bound(problem: ContextualBandit, reward_class: RewardClass | None) -> float:
    """Return R: the box's bound, else problem.reward_bound, or refuse where neither is known."""
    chosen: RewardClass = default_class(problem) if reward_class is None else check_reward_class(reward_class)
    bound = problem.reward_bound if chosen.largest_reward is None else chosen.largest_reward
    if bound is None:
        raise InvalidArgument(
            "problem.reward_bound", expected="a known largest reward R", got=None, remedy="Set it, or pass Box(R)."
        )
    return float(bound)
