"""The metrics of a tabular policy, under the names the field logs."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.bandit.solver.saddle import Saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.numerics import kl_divergence

GROUP_METRICS = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)


def policy_metrics(
    logps: Array, saddle: Saddle, problem: ContextualBandit, proxy_reward: Array | None = None
) -> dict[str, float]:
    """Return loss and its terms, implicit rewards, log-probabilities, KL, and gold and proxy where known.

    Of a list "chosen" is the first response and "rejected" the mean of the others, and rewards/accuracies is the share
    of its pairs that stand in order.

    logps: (X, A), log pi in nats. kl/reference: E_{d0}[KL(pi || pi_ref)], exact, nats. reward/gold:
    E_{d0, pi}[r*]. reward/proxy: E_{d0, pi}[r] - E_{d0, pi_base}[r] with r = proxy_reward (X, A).
    Raises InvalidArgument.
    """
    checks.instance("saddle", saddle, Saddle)
    checks.instance("problem", problem, ContextualBandit)
    logps = checks.numbers("logps", logps)
    policy = checks.probabilities("exp(logps)", np.exp(logps), shape=problem.reference.shape)
    loss, terms = saddle.loss(logps)
    return {
        "loss": float(loss),
        "loss/preference": float(terms.preference),
        "loss/sft": float(terms.sft),
        **_group_metrics(logps, saddle),
        **policy_outcome(policy, problem, saddle.base, proxy_reward),
    }


def _group_metrics(logps: Array, saddle: Saddle) -> dict[str, float]:
    link, found = saddle.objective.link, dict.fromkeys(GROUP_METRICS, 0.0)
    for columns, groups in zip(saddle.columns(logps), saddle.groups, strict=True):
        weights, values, given = groups.weights, link(columns), columns.logps
        others = len(values) - 1
        none = np.full(weights.size, np.nan)  # where there is no other response
        chosen, rejected = values[0], sum(values[1:]) / others if others else none
        ahead = [first - second > 0 for first, second in combinations(values, 2)]
        parts = (
            weights @ given[0],
            weights @ (sum(given[1:]) / others if others else none),
            link.beta * (weights @ chosen),
            link.beta * (weights @ rejected),
            weights @ (link.beta * (chosen - rejected)),
            weights @ (sum(ahead) / len(ahead) if others else none),
        )
        for name, part in zip(GROUP_METRICS, parts, strict=True):
            found[name] += float(part)
    return found


def policy_outcome(
    policy: Array, problem: ContextualBandit, base: Array, proxy_reward: Array | None = None
) -> dict[str, float]:
    """Return what any policy (X, A) is worth: kl/reference, and reward/gold and reward/proxy where known.

    base: (X, A), pi_base. Units and definitions as in `policy_metrics`. Raises InvalidArgument.
    """
    shape = checks.instance("problem", problem, ContextualBandit).reference.shape
    policy = checks.probabilities("policy", policy, shape=shape)
    base = checks.probabilities("base", base, shape=shape)
    if proxy_reward is not None:
        proxy_reward = checks.finite("proxy_reward", proxy_reward, shape=shape)
    return outcome_unchecked(policy, problem, base, proxy_reward)


def outcome_unchecked(
    policy: Array, problem: ContextualBandit, base: Array, proxy_reward: Array | None
) -> dict[str, float]:
    """Return `policy_outcome` of tables that the caller made or has checked: sweeps take it of every row."""
    kl = problem.d0 @ kl_divergence(policy, problem.reference)
    outcome = {"kl/reference": float(kl)}
    if problem.reward is not None:
        outcome["reward/gold"] = problem._expected_reward(policy)
    if proxy_reward is not None:
        outcome["reward/proxy"] = float(problem.d0 @ ((policy - base) * proxy_reward).sum(axis=1))
    return outcome


def total_variation(first: Array, second: Array) -> Array:
    """Return half the L1 distance of two policies (X, A), one number per prompt: (X,)."""
    first = checks.finite("first", first, shape=(None, None))
    second = checks.finite("second", second, shape=first.shape)
    return np.asarray(0.5 * np.abs(first - second).sum(axis=1))
