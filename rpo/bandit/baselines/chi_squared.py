"""Chi-squared preference optimization: DPO with the link u + log u in place of log u."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import wrightomega

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.baselines.plain import (
    check_fields,
    class_bound,
    likelihood_evidence,
    likelihood_sentence,
    maximum_likelihood,
)
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass
from rpo.core import checks
from rpo.core.checks import Array

MAX_STEPS = 200
RESIDUAL = 1e-10


@dataclass(frozen=True, eq=False)
class ChiSquaredPO(Baseline):
    r"""The policy of the maximum-likelihood reward under chi-squared plus KL regularization, in one loss.

    The loss is DPO's with $\beta\varphi(\pi/\pi_{ref})$, $\varphi(u) = u + \log u$, in place of
    $\beta\log(\pi/\pi_{ref})$, its margin clipped to $\pm 2R$. Over the policies whose implicit reward
    $\beta\varphi(\pi/\pi_{ref}) + Z(x)$ lies in the class it is a function of that reward alone; margins of
    Box(R) stay within R, so the clip is idle and the problem convex: maximum likelihood in the class, then
    $\pi = \pi_{ref}\,\varphi^{-1}((r - Z)/\beta)$ with Z(x) such that it sums to one. For a class whose
    margins pass 2R the loss with the clip is not convex: the solution without it is returned and called
    inaccurate where the clip would act.

    beta: temperature, > 0. reward_class: default Box(problem.reward_bound). clip: default 2 R. base: breaks
    ties among maximum-likelihood rewards (as DPO's at the same beta). Evidence: the largest |sum - 1|
    before the last division, the largest ratio pi / pi_ref, at most 1 + (max r - min r) / beta.
    Source: Huang et al. 2024, Algorithm 1.
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
        found = maximum_likelihood(problem, data, reward_class=self.reward_class, beta=self.beta, base=self.base)
        margin = float(np.abs(found.saddle.margins(found.reward)).max())
        # A prompt without data keeps pi_ref, whatever a shared theta says of it.
        reward = np.where(data.prompt_frequencies[:, None] > 0, found.reward, 0.0)
        policy, shift, residual = chi_squared_policy(reward, problem.reference, self.beta)
        ratio = float((policy[problem.reference > 0] / problem.reference[problem.reference > 0]).max())
        good = found.status == "certified" and residual <= RESIDUAL and margin <= clip
        message = f"Largest margin {margin:.3g} (clip {clip:.3g}), normalised within {residual:.1e}."
        message = f"{message} {likelihood_sentence(found)}"
        return PolicyResult(
            policy=policy,
            label=self.label,
            status="certified" if good else "inaccurate",
            message=message if margin <= clip else f"The clip would act, and was left out. {message}",
            reward=found.reward,
            evidence={
                **likelihood_evidence(found),
                "normalisation_residual": residual,
                "largest_margin": margin,
                "clip": clip,
                "largest_ratio": ratio,
                "shift": shift,
            },
        )


def chi_squared_policy(reward: Array, reference: Array, beta: float) -> tuple[Array, Array, float]:
    """Return (policy (X, A), Z (X,), residual): pi = pi_ref omega((r - Z) / beta), with omega + log omega = y.

    It maximises <pi, r> - beta (chi2(pi, pi_ref) / 2 + KL(pi || pi_ref)), with chi2 = E_ref[(pi/pi_ref - 1)^2].
    Newton's method in Z from the left: the sum falls in Z and is convex, so no step passes the root.
    """
    support = reference > 0
    lowest = np.where(support, reward, np.inf).min(axis=1)
    shift = lowest - beta  # there omega >= 1 on the support, so the sum is at least one
    for _ in range(MAX_STEPS):
        ratio = wrightomega((reward - shift[:, None]) / beta)
        total = (reference * ratio).sum(axis=1)
        slope = (reference * ratio / (1.0 + ratio)).sum(axis=1) / beta
        step = (total - 1.0) / slope
        moved = shift + step
        if (np.abs(moved - shift) <= 4 * np.finfo(float).eps * np.maximum(1.0, np.abs(shift))).all():
            break
        shift = moved
    policy = reference * wrightomega((reward - shift[:, None]) / beta)
    total = policy.sum(axis=1, keepdims=True)
    return np.asarray(policy / total), shift, float(np.abs(total - 1.0).max())
