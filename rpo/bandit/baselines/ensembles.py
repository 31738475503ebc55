"""Reward ensembles: several maximum-likelihood rewards from resampled data, combined into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.baselines.plain import check_fields, likelihood_evidence, maximum_likelihood
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass
from rpo.core import checks
from rpo.core.checks import Array

COMBINATIONS = ("mean", "worst", "variance")


@dataclass(frozen=True, eq=False)
class RewardEnsemble(Baseline):
    """The Gibbs policy of a combination of maximum-likelihood rewards, one a bootstrap replicate of the data.

    beta: KL temperature, > 0. size: replicates, >= 1. how: "mean", "worst" (the least reward of each
    response) or "variance" (mean - penalty * variance, over the replicates). Rewards matter up to a constant
    a prompt, so each replicate is first measured against pi_base, E_base[r] = 0. reward_class: default
    Box(problem.reward_bound). base: "chosen", "rejected", "responses" or "reference"; also breaks ties.
    A replicate has as many pairs as the data (rounded, where ties were split). Needs rng.
    Source: Coste et al. 2024, Section 3 (mean, worst-case and uncertainty-weighted optimization).
    """

    beta: float
    size: int = 5
    how: str = "mean"
    penalty: float = 1.0
    reward_class: RewardClass | None = None
    base: str = "chosen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))
        object.__setattr__(self, "size", checks.integer("size", self.size, minimum=1))
        checks.one_of("how", self.how, COMBINATIONS)
        object.__setattr__(self, "penalty", checks.nonnegative("penalty", self.penalty))

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        how = f"mean - {self.penalty:g} variance" if self.how == "variance" else self.how
        return f"ensemble of {self.size}, {how} (beta={self.beta:g})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy. rng: draws the replicates."""
        generator = checks.generator("rng", rng)
        whole = maximum_likelihood(problem, data, reward_class=self.reward_class, beta=self.beta, base=self.base)
        base = whole.saddle.base
        fits = [
            maximum_likelihood(
                problem, bootstrap(data, child), reward_class=self.reward_class, beta=self.beta, base=self.base
            )
            for child in generator.spawn(self.size)
        ]
        rewards = np.stack([fit.reward for fit in fits])
        rewards = rewards - (base * rewards).sum(axis=2, keepdims=True)
        reward = combine(rewards, self.how, self.penalty)
        policy = np.where(data.prompt_frequencies[:, None] > 0, whole.saddle.gibbs(reward), problem.reference)
        bad = sum(fit.status != "certified" for fit in fits)
        spread = float(np.sqrt((problem.reference * rewards.var(axis=0)).sum(axis=1) @ problem.d0))
        message = f"{self.size} bootstrap replicates, {bad} of them over tolerance"
        return PolicyResult(
            policy=policy,
            label=self.label,
            status="inaccurate" if bad else "certified",
            message=f"{message}; root mean variance of the reward under pi_ref {spread:.3g}.",
            reward=reward,
            evidence={
                **likelihood_evidence(whole),
                "likelihood_gap": max(fit.certificate.gap for fit in fits),
                "relative_gap": max(fit.certificate.relative_gap for fit in fits),
                "likelihood_status": "inaccurate" if bad else "certified",
                "replicates_inaccurate": bad,
                "spread": spread,
            },
        )


def bootstrap(data: PreferenceCounts, generator: np.random.Generator) -> PreferenceCounts:
    """Return as many pairs drawn from the data with replacement: a multinomial over its K triples."""
    count = generator.multinomial(max(1, round(data.n)), data.weights)
    kept = count > 0
    return PreferenceCounts.from_pairs(
        data.prompt[kept],
        data.chosen[kept],
        data.rejected[kept],
        count=count[kept],
        num_prompts=data.num_prompts,
        num_responses=data.num_responses,
        prompt_labels=data.prompt_labels,
        response_labels=data.response_labels,
    )


def combine(rewards: Array, how: str, penalty: float) -> Array:
    """Return (X, A) from one reward a replicate, (size, X, A). Source: Coste et al. 2024, Section 3."""
    if how == "worst":
        return np.asarray(rewards.min(axis=0))
    mean = rewards.mean(axis=0)
    return np.asarray(mean if how == "mean" else mean - penalty * rewards.var(axis=0))
