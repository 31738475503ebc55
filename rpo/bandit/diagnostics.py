"""What a pair's gradients do to its responses, which a policy ranks first, where gold peaks, and policies averaged.

Shapes: X prompts, A responses, K distinct comparisons of the data, M policies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import SoftmaxPolicy
from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.pair_diagnostics import CASES, Entanglement, idealised_log_ratio, ranking_threshold

__all__ = [
    "CASES",
    "Entanglement",
    "bhattacharyya",
    "geometric_mean",
    "gold_slope",
    "gradient_entanglement",
    "idealised_ranking_accuracy",
    "ranking_accuracy",
    "ranking_loss",
]


def gradient_entanglement(policy: SoftmaxPolicy, data: PreferenceCounts) -> Entanglement:
    """Return the inner products of the two gradients of each comparison at a softmax policy, exactly.

    On a table log pi_w always rises: inner - chosen = -(1 - pi_w + pi_l). With shared parameters it may fall. Raises
    InvalidArgument.
    """
    checks.instance("policy", policy, SoftmaxPolicy)  # type: ignore[type-abstract]
    checks.instance("data", data, PreferenceCounts)
    pi, design = np.exp(policy.logps), policy.design
    score = design - np.einsum("xa,xap->xp", pi, design)[:, None, :]
    first, second = score[data.prompt, data.chosen], score[data.prompt, data.rejected]
    return Entanglement((first**2).sum(axis=1), (second**2).sum(axis=1), (first * second).sum(axis=1))


def ranking_accuracy(logps: Any, data: PreferenceCounts) -> float:
    """Return the share of preferences whose chosen response is at least as likely as the rejected one.

    logps: (X, A), log pi, -inf allowed. Source: Chen et al. 2024 (arXiv 2405.19534), Definition 2.2.
    """
    table = _log_policy("logps", logps, checks.instance("data", data, PreferenceCounts))
    return float(data.weights @ (table[data.prompt, data.chosen] >= table[data.prompt, data.rejected]))


def idealised_ranking_accuracy(log_reference: Any, data: PreferenceCounts, beta: float, chosen_rate: Any) -> float:
    r"""Return the ranking accuracy of DPO's optimum on each pair on its own, what perfect training would reach.

    $\pi^\ast_w/\pi^\ast_l=(\rho_w/\rho_l)(a/(1-a))^{1/\beta}$. log_reference: (X, A). chosen_rate: a in (0, 1), (K,),
    how often w beats l. Source: Chen et al. 2024 (arXiv 2405.19534), Theorem 3.1 and Corollary 3.3.
    """
    table = _log_policy("log_reference", log_reference, checks.instance("data", data, PreferenceCounts))
    apart = table[data.prompt, data.chosen] - table[data.prompt, data.rejected]
    return float(data.weights @ (idealised_log_ratio(apart, beta, chosen_rate) > 0))


def ranking_loss(log_reference: Any, data: PreferenceCounts, beta: float) -> Array:
    r"""Return DPO's loss of each comparison, (K,), at or below which, and only there, it is ranked right.

    $s(-\beta\log(\rho_l/\rho_w))$ with s the softplus: a pair that the reference ranks wrong needs a loss well below
    log 2. log_reference: (X, A). Source: Chen et al. 2024 (arXiv 2405.19534), Theorem 4.1.
    """
    table = _log_policy("log_reference", log_reference, checks.instance("data", data, PreferenceCounts))
    return ranking_threshold(table[data.prompt, data.chosen] - table[data.prompt, data.rejected], beta)


def gold_slope(policy: Any, gold: Any, proxy: Any) -> Array:
    r"""Return $\mathrm{Cov}_\pi(u, r)$ of each prompt, (X,): how gold changes as the proxy is optimised further.

    Along the Gibbs policies of a proxy r, $\frac{d}{d(1/\beta)}E_\pi[u]=\mathrm{Cov}_\pi(u,r)$ exactly, and its own
    value rises by its variance. So gold peaks where the two rewards are uncorrelated under the policy, and labels made
    before the outcome is known fail exactly where they are anticorrelated with it. policy, gold u, proxy r: (X, A).
    Source: Liang et al. 2025 (arXiv 2501.08617), whose hindsight labels this is the law of.
    """
    pi = checks.probabilities("policy", policy, shape=(None, None))
    u, r = (checks.finite(name, value, shape=pi.shape) for name, value in (("gold", gold), ("proxy", proxy)))
    away = r - (pi * r).sum(axis=1, keepdims=True)
    return np.asarray((pi * (u - (pi * u).sum(axis=1, keepdims=True)) * away).sum(axis=1))


def geometric_mean(policies: Any, weights: Any = None) -> Array:
    r"""Return the policy proportional to $\prod_m\pi_m^{w_m}$, (X, A): logits averaged.

    policies: (M, X, A). weights: (M,), of sum one, also beyond [0, 1]; default equal. Two facts: between a reference
    and its Gibbs policy at beta, weights 1 - a and a give the Gibbs policy at beta / a (averaging undoes training); and
    $\sum_mw_m\mathrm{KL}(p\|\pi_m)=\mathrm{KL}(p\|\mathrm{mean})-\log\sum_a\prod_m\pi_m^{w_m}$, so that two references
    averaged are nearer to any p than they are on average, by their Bhattacharyya distance. Raises InvalidArgument.
    Source: Lin et al. 2023 (arXiv 2309.06256); Chegini et al. 2024 (arXiv 2411.01798).
    """
    tables = checks.finite("policies", policies, shape=(None, None, None))
    if not len(tables):
        raise InvalidArgument("policies", expected="at least one", got="none", remedy="Pass a policy.")
    for m, table in enumerate(tables):
        checks.probabilities(f"policies[{m}]", table)
    w = np.full(len(tables), 1.0 / len(tables)) if weights is None else checks.finite("weights", weights)
    checks.has_shape("weights", w, (len(tables),))
    if abs(w.sum() - 1.0) > 1e-9:
        raise InvalidArgument("weights", expected="a sum of one", got=w.sum(), remedy="Divide by the sum.")
    inside = np.asarray(tables > 0).all(axis=0)
    if (inside.sum(axis=1) == 0).any():
        raise InvalidArgument(
            "policies",
            expected="a response that all give mass, at every prompt",
            got="none",
            remedy="Mix each with a little of the reference.",
        )
    logits = np.tensordot(w, np.log(np.where(inside, tables, 1.0)), axes=1)
    return np.exp(numerics.log_softmax(np.where(inside, logits, -np.inf)))


def bhattacharyya(first: Any, second: Any) -> Array:
    r"""Return $-\log\sum_a\sqrt{p_aq_a}$ of each prompt, (X,), nats; inf where no response has mass under both."""
    p, q = checks.probabilities("first", first), checks.probabilities("second", second)
    checks.has_shape("second", q, p.shape)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(np.sqrt(p * q).sum(axis=-1)))


def _log_policy(name: str, values: Any, data: PreferenceCounts) -> Array:
    table = checks.numbers(name, values)
    checks.has_shape(name, table, (data.num_prompts, data.num_responses))
    checks.probabilities(f"exp({name})", np.exp(table))
    return np.asarray(table, dtype=np.float64)
