"""The duality gap in closed form: three non-negative terms, no cancellation (docs/theory.md, section 3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rpo.bandit.reward_class import check_reward_class
from rpo.bandit.solver.data_term import has_dual
from rpo.bandit.solver.saddle import Saddle
from rpo.bandit.solver.solvable import proven_convex, require_solvable
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.divergences import Divergence
from rpo.core.errors import InvalidArgument
from rpo.core.shapes import MarginShape
from rpo.core.summary import Summarised

NEGATIVE_MASS = 1e-9
RELATIVE_GAP = 1e-7
TV_BOUND = 1e-3
GAP_ROUNDING = 1e-12


@dataclass(frozen=True, repr=False)
class Certificate(Summarised):
    """An upper bound on how far reward r and policy pi are from the saddle point.

    gap = kl_term + likelihood_term + support_term, in units of the loss; zero iff optimal. Each is a Fenchel-Young
    loss: of the divergence (the KL's is a KL), of the loss of a group (Bradley-Terry's a KL of coins), of the class.
    reward_value: phi's upper value, at r. policy_value = reward_value - gap: its lower value.
    infeasibility: the largest entry of g that an unconstrained class had to be forgiven (rounding).
    modulus: the divergence's in the l1 norm. tv_bound: bound on the prompt-weighted total variation
    between pi_r and the optimal policy; inf at eta = 0, where the gap certifies the likelihood only.
    """

    reward_value: float
    kl_term: float
    likelihood_term: float
    support_term: float
    eta_beta: float
    infeasibility: float = 0.0
    modulus: float = 1.0

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """The gap with what it bounds, and the terms that it is the sum of."""
        policy = "tv_bound infinite (eta = 0)" if self.eta_beta == 0 else f"tv_bound {self.tv_bound:.2g}"
        terms = ("kl_term", "likelihood_term", "support_term", "infeasibility")
        headline = f"Certificate: gap {self.gap:.2g}, relative_gap {self.relative_gap:.2g}, {policy}"
        return headline, {"reward_value": f"{self.reward_value:.6g}"} | {t: f"{getattr(self, t):.2g}" for t in terms}

    @property
    def gap(self) -> float:
        """Upper bound on the saddle gap."""
        return self.kl_term + self.likelihood_term + self.support_term

    @property
    def policy_value(self) -> float:
        """Value certified from below."""
        return self.reward_value - self.gap

    @property
    def relative_gap(self) -> float:
        """gap / max(1, |reward_value|)."""
        return self.gap / max(1.0, abs(self.reward_value))

    @property
    def tv_bound(self) -> float:
        """sqrt(gap / (2 eta beta modulus)), at most 1 where eta > 0 (Pinsker, for another divergence its modulus)."""
        if self.eta_beta == 0:
            return float("inf")
        # Below zero, which `within_tolerance` never takes for certified, the size still says how far off it is.
        return min(1.0, float(np.sqrt(abs(self.gap) / (2.0 * self.eta_beta * self.modulus))))

    def to_dict(self) -> dict[str, Any]:
        """Return every number a record stores."""
        derived = ("gap", "policy_value", "relative_gap", "tv_bound")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def within_tolerance(relative_gap: Any, tv_bound: Any, eta: float) -> Any:
    """Return whether such a gap certifies, elementwise; one below zero by more than rounding is an error, not a proof.

    tv_bound counts where eta > 0.
    """
    good = (relative_gap >= -GAP_ROUNDING) & (relative_gap <= RELATIVE_GAP)
    return good & (tv_bound <= TV_BOUND) if eta > 0 else good


def certify(saddle: Saddle, reward: Array, *, policy: Array | None = None, p: Array | None = None) -> Certificate:
    """Certify r (X, A) against a dual point (pi, p): gap = reward side at r - policy side at (pi, p).

    p: (G,) between minus the shape's slopes; default minus those at r, for lists the only one. policy: (X, A), default
    pi_r; for the unconstrained class it is always the policy that balances p (`Saddle.balanced_policy`).
    Raises InvalidArgument, also where a sign on which the proof rests does not hold.
    """
    checks.instance("saddle", saddle, Saddle)
    reward = checks.finite("reward", reward, shape=saddle.base.shape)
    _check_signs(saddle)
    if policy is not None:
        policy = checks.probabilities("policy", policy, shape=saddle.base.shape)
    if p is not None:
        shape = saddle.objective.shape
        if not (isinstance(shape, MarginShape) and has_dual(shape)):
            remedy = "Its dual point is that of the reward itself."
            raise InvalidArgument("p", expected=f"None with {saddle.objective.label}", got="an array", remedy=remedy)
        p = checks.finite("p", p, shape=saddle.weights.shape)
        left, right = shape.slopes or (-np.inf, np.inf)
        _check_least("p" if right == 0 else "p + the loss's slope at infinity", p + right)
        _check_least("1 - p" if left == -1 else "minus the loss's slope at -infinity, less p", -left - p)
    if not saddle.reward_class.contains(reward):
        raise InvalidArgument(
            "reward",
            expected=f"a member of {saddle.reward_class}",
            got=f"entries in [{np.min(reward):g}, {np.max(reward):g}] outside it",
            remedy="Project it onto the class first: outside it the gap bounds nothing.",
        )
    dual = saddle.losing_probabilities(reward) if p is None else p
    reply = saddle.reply(reward)
    gibbs = reply.policy
    modulus = float(least_modulus(saddle.divergence, saddle.log_measure, saddle.d))
    infeasibility = 0.0
    if not saddle.reward_class.bounded:
        candidate = gibbs if saddle.eta == 0 else saddle.balanced_policy(dual)
        if candidate.min() < -NEGATIVE_MASS:
            return Certificate(saddle.reward_side(reward), float("inf"), 0.0, 0.0, saddle.sft_weight, modulus=modulus)
        candidate = np.maximum(candidate, 0.0)
        candidate = candidate / candidate.sum(axis=1, keepdims=True)
        infeasibility = float(np.abs(saddle.multiplier(candidate, dual)).max())
        # Where a prompt has no penalty, nothing absorbs a residual of the likelihood equations.
        support_term = 0.0 if infeasibility <= NEGATIVE_MASS else float("inf")
    else:
        candidate = gibbs if policy is None else policy
        support_term = saddle.reward_class.support_gap(saddle.multiplier(candidate, dual), reward)
    kept = saddle.divergence.distance(candidate, reply, saddle.log_measure)
    active = saddle.d > 0
    return Certificate(
        reward_value=saddle.reward_side(reward),
        kl_term=float(saddle.sft_weight * (saddle.d[active] @ kept[active])) if saddle.eta else 0.0,
        likelihood_term=saddle.term.fenchel_young(dual, reward.ravel()),
        support_term=support_term,
        eta_beta=saddle.sft_weight,
        infeasibility=infeasibility,
        modulus=modulus,
    )


def least_modulus(divergence: Divergence, log_measure: Array, d: Array) -> Array:
    """Return the least modulus of the prompts with weight, (...,); log_measure: (..., X, A), d: (..., X)."""
    mass = np.exp(log_measure)
    moduli = divergence.modulus(np.where(mass > 0, mass, np.inf).min(axis=-1), mass.sum(axis=-1))
    return np.asarray(np.where(d > 0, moduli, np.inf).min(axis=-1))


def _check_signs(saddle: Saddle) -> None:
    """Refuse a saddle for which a term of the gap could be negative: a sum would hide one behind the others."""
    checks.positive("saddle.objective.beta", getattr(saddle.objective, "beta", 1.0))  # before the link asks
    require_solvable(saddle.objective, "saddle.objective")
    shape = saddle.objective.shape
    if not isinstance(shape, MarginShape) and "scores" in shape.needs:
        for columns in saddle.columns(np.zeros(saddle.base.shape)):
            if not proven_convex(shape, columns):
                raise InvalidArgument(
                    "saddle.objective",
                    expected="a loss that is convex whatever scores the data have",
                    got=f"{saddle.objective.label}, which cvxpy's rules do not find convex at these",
                    remedy="Write it so that the signs of its weights do not depend on the scores.",
                )
    check_reward_class(saddle.reward_class)
    _check_least("saddle.objective.eta", checks.finite("saddle.objective.eta", saddle.eta))
    checks.probabilities("saddle.base", saddle.base)
    checks.probabilities("saddle.weights", saddle.weights)
    _check_least("saddle.d", checks.finite("saddle.d", saddle.d))


def _check_least(name: str, values: Array) -> None:
    if values.size and values.min() < 0:
        raise InvalidArgument(
            name, expected="entries >= 0", got=values.min(), remedy="With another sign the gap bounds nothing."
        )
