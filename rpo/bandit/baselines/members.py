"""Members of a reward ensemble: maximum likelihood on replicates of the data, or on the data from random priors.

A replicate knows nothing that the data do not: on a response that was never compared all bootstrap members agree. What
differs from seed to seed of a network is where it starts, which a random prior stands for: its members differ most
where there are no data.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rpo.bandit.baselines.plain import check_fields, maximum_likelihood
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass, Unconstrained
from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.certificate import RELATIVE_GAP
from rpo.bandit.solver.newton import Derivatives, minimize_box
from rpo.bandit.solver.reward_side import derivatives
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InaccurateSolution, InvalidArgument
from rpo.core.objectives import DPO

KINDS = ("bootstrap", "prior")


@dataclass(frozen=True, eq=False, kw_only=True)
class Members:
    """How an ensemble's members are made.

    kind: "bootstrap", maximum likelihood in reward_class (default Box(problem.reward_bound)) on replicates of the data,
    or "prior", the most likely reward on the data itself under a prior about a random centre: the negative
    log-likelihood plus ridge / 2 times the squared distance from a table of independent normals of deviation `scale`.
    """

    size: int
    kind: str
    ridge: float
    scale: float
    reward_class: RewardClass | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checks.integer("size", self.size, minimum=1))
        checks.one_of("members", self.kind, KINDS)
        object.__setattr__(self, "ridge", checks.positive("ridge", self.ridge))
        object.__setattr__(self, "scale", checks.nonnegative("scale", self.scale))
        if self.kind == "prior" and self.reward_class is not None:
            raise InvalidArgument(
                "reward_class",
                expected="None with members 'prior', whose ridge holds the rewards",
                got=type(self.reward_class).__name__,
                remedy="Leave it out, or use members='bootstrap'.",
            )

    def draw(
        self, problem: ContextualBandit, data: PreferenceCounts, generator: np.random.Generator, beta: float, base: str
    ) -> tuple[Array, list[float], list[float]]:
        """Return rewards (M, X, A), each with E_base[r] = 0 at every prompt, their gaps and their relative gaps."""
        saddle = build_saddle(problem, data, DPO(beta=beta, base=base), Unconstrained())
        rewards, gaps, relative = [], [], []
        for child in generator.spawn(self.size):
            if self.kind == "bootstrap":
                found = maximum_likelihood(
                    problem, bootstrap(data, child), reward_class=self.reward_class, beta=beta, base=base
                )
                reward, gap, value = found.reward, found.certificate.gap, found.certificate.reward_value
            else:
                prior = self.scale * child.normal(size=problem.reference.shape)
                reward, gap, value = _from_prior(saddle, prior, self.ridge / data.n)
            rewards.append(reward - (saddle.base * reward).sum(axis=1, keepdims=True))
            gaps.append(gap)
            relative.append(gap / max(1.0, abs(value)))
        return np.stack(rewards), gaps, relative


def ensemble_rewards(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    size: int = 5,
    members: str = "prior",
    ridge: float = 0.3,
    scale: float = 1.0,
    reward_class: RewardClass | None = None,
    base: str = "reference",
    rng: Any = None,
) -> Array:
    """Return an ensemble of rewards, (M, X, A), such as `Hull`, `Intervals` and `entropic` take.

    Bradley-Terry leaves each prompt's constant free, and a minimum over members that differ by one picks the lowest, so
    every member is measured against a policy, E_base[r] = 0. members: "prior" or "bootstrap"; ridge, scale: the prior's
    (see `RewardEnsemble`). reward_class: of bootstraps. base: "reference", "chosen", "rejected" or "responses". Raises
    InvalidArgument; warns InaccurateSolution.
    """
    checks.instance("problem", problem, ContextualBandit)
    checks.instance("data", data, PreferenceCounts)
    check_fields(1.0, base, reward_class)
    made = Members(size=size, kind=members, ridge=ridge, scale=scale, reward_class=reward_class)
    rewards, _, relative = made.draw(problem, data, checks.generator("rng", rng), 1.0, base)
    if max(relative) > RELATIVE_GAP:
        message = f"A member is over tolerance (relative gap {RELATIVE_GAP:g}): {max(relative):.1e}."
        warnings.warn(message, InaccurateSolution, stacklevel=2)
    return rewards


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


def _from_prior(saddle: Saddle, prior: Array, ridge: float) -> tuple[Array, float, float]:
    """Return the most likely reward (X, A) under the prior, how far above the minimum it may be, and the value.

    The loss a pair is ridge-strongly convex, so that its excess is at most the squared gradient over twice the ridge.
    """
    reward, gap, value = prior.copy(), 0.0, 0.0

    def penalised(block: PromptBlock, r: Array) -> Derivatives:
        fit, gradient, hessian = derivatives(block, r)
        away = r - prior[block.prompt, block.support]
        return fit + 0.5 * ridge * float(away @ away), gradient + ridge * away, hessian + ridge * np.eye(r.size)

    for block in blocks(saddle):
        free = np.full(block.support.size, np.inf)
        found = minimize_box(partial(penalised, block), reward[block.prompt, block.support], -free, free)
        reward[block.prompt, block.support] = found.x
        slope = penalised(block, found.x)[1]
        gap, value = gap + float(slope @ slope) / (2.0 * ridge), value + found.value
    return reward, gap, value
