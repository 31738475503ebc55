"""Reward ensembles: several rewards fitted to one data set, combined into one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.baselines.members import Members
from rpo.bandit.baselines.plain import check_fields, keep_reference
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import default_class
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Hull, RewardClass, Unconstrained
from rpo.bandit.robust import robust_policy
from rpo.bandit.solver.certificate import RELATIVE_GAP
from rpo.bandit.solver.saddle import build_saddle
from rpo.core import checks
from rpo.core.aggregators import AGGREGATORS, combine
from rpo.core.objectives import DPO

COMBINATIONS = (*AGGREGATORS, "hull")


@dataclass(frozen=True, eq=False)
class RewardEnsemble(Baseline):
    """The Gibbs policy of a combination of rewards that were fitted to one data set.

    beta: KL temperature, > 0. size: members, >= 1. members: "bootstrap", maximum likelihood on replicates of the data,
    or "prior", the data's most likely reward from random priors, as seeds of a network are: ridge / 2 times the squared
    distance from normals of deviation `scale`. how: "mean", "worst" (the least reward of each response), "variance"
    (mean - penalty * variance, over the members), "entropic" (see there) or "hull" (the best policy against its
    worst mixture of members). Rewards matter up to a constant a prompt, so each member is first measured against
    pi_base, E_base[r] = 0. reward_class: of bootstraps, default Box(problem.reward_bound). base: "chosen", "rejected",
    "responses" or "reference"; also breaks ties. A replicate has as many pairs as the data (rounded, where ties were
    split) and is blind where the data are: on a response in no pair bootstrap members agree, and a worst case over them
    is none. Needs rng. Source: Coste et al. 2024, Section 3 (mean, worst-case and uncertainty-weighted optimization).
    """

    beta: float
    size: int = 5
    how: str = "mean"
    penalty: float = 1.0
    reward_class: RewardClass | None = None
    base: str = "chosen"
    members: str = "bootstrap"
    ridge: float = 0.3
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_fields(self.beta, self.base, self.reward_class))
        checks.one_of("how", self.how, COMBINATIONS)
        object.__setattr__(self, "penalty", checks.nonnegative("penalty", self.penalty))
        made = self._members
        for name in ("size", "ridge", "scale"):
            object.__setattr__(self, name, getattr(made, name))

    @property
    def _members(self) -> Members:
        return Members(
            size=self.size, kind=self.members, ridge=self.ridge, scale=self.scale, reward_class=self.reward_class
        )

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        how = {"variance": f"mean - {self.penalty:g} variance", "entropic": f"entropic {self.penalty:g}"}
        drawn = "" if self.members == "bootstrap" else " from priors"
        return f"ensemble of {self.size}{drawn}, {how.get(self.how, self.how)} (beta={self.beta:g})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy. rng: draws the members."""
        generator = checks.generator("rng", rng)
        saddle = build_saddle(problem, data, DPO(beta=self.beta, base=self.base), Unconstrained())
        rewards, gaps, relative = self._members.draw(problem, data, generator, self.beta, self.base)
        evidence: dict[str, Any] = {}
        if self.how == "hull":
            seen = replace(problem, d0=data.prompt_frequencies)
            found = robust_policy(seen, Hull(rewards), beta=self.beta, base=saddle.base)
            policy, reward, evidence = found.policy, found.reward, {"robust": found.evidence}
            bad = sum(gap > RELATIVE_GAP for gap in relative) + (found.status != "certified")
        else:
            reward = combine(rewards, self.how, self.penalty)
            policy = keep_reference(saddle.gibbs(reward), problem, data)
            bad = sum(gap > RELATIVE_GAP for gap in relative)
        used = None
        if self.members == "bootstrap":
            used = (default_class(problem) if self.reward_class is None else self.reward_class).describe()
        spread = float(np.sqrt((problem.reference * rewards.var(axis=0)).sum(axis=1) @ problem.d0))
        kinds = "bootstrap replicates" if self.members == "bootstrap" else "members from random priors"
        return PolicyResult(
            policy=policy,
            label=self.label,
            status="inaccurate" if bad else "certified",
            message=f"{self.size} {kinds}, {bad} of them over tolerance; root mean variance of the reward under pi_ref "
            f"{spread:.3g}.",
            reward=reward,
            evidence={
                "reward_class": used,
                "likelihood_gap": max(gaps),
                "relative_gap": max(relative),
                "likelihood_status": "inaccurate" if bad else "certified",
                "prompts_without_data": int((data.prompt_frequencies == 0).sum()),
                "replicates_inaccurate": bad,
                "spread": spread,
                **evidence,
            },
        )
