"""The metrics of a tabular policy, under the names the field logs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

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

    Of a list "chosen" is the best response and "rejected" the worst, rewards/margins the mean between neighbours, and
    rewards/accuracies the share of its pairs that the rewards order alike, those of equal scores left out.

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
    link, found, unordered = saddle.objective.link, dict.fromkeys(GROUP_METRICS, 0.0), 0.0
    for columns, groups in zip(saddle.columns(logps), saddle.groups, strict=True):
        weights, values, given = groups.weights, link(columns), columns.logps
        nothing = np.full(weights.size, np.nan)  # a response alone is above no other
        last, lost = (values[-1], given[-1]) if len(values) > 1 else (nothing, nothing)
        right, ordered = ordered_alike(values, groups.scores)
        parts = (
            weights @ given[0],
            weights @ lost,
            link.beta * (weights @ values[0]),
            link.beta * (weights @ last),
            weights @ (link.beta * (values[0] - last) / max(1, len(values) - 1)),
            weights @ (right / np.maximum(ordered, 1)),
        )
        for name, part in zip(GROUP_METRICS, parts, strict=True):
            found[name] += float(part)
        unordered += float(weights @ (ordered == 0))
    if unordered:
        found["rewards/accuracies"] = found["rewards/accuracies"] / (1.0 - unordered) if unordered < 1.0 else np.nan
    return found


def ordered_alike(values: tuple[Array, ...], scores: tuple[Array, ...] | None) -> tuple[Any, Any]:
    """Return how many pairs of a list the values order as its ranks do, (G,), and of how many; none of equal scores."""
    right, ordered = np.zeros(values[0].size), np.zeros(values[0].size)
    for i, j in combinations(range(len(values)), 2):
        apart = np.ones(right.size, dtype=bool) if scores is None else scores[i] > scores[j]
        right, ordered = right + (apart & (values[i] - values[j] > 0)), ordered + apart
    return right, ordered


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
    found = outcomes(policy, problem.d0, problem.reference, problem.reward, base, proxy_reward)
    return {name: float(value) for name, value in found.items()}


def outcomes(
    policy: Array, d0: Array, reference: Array, reward: Array | None, base: Array, proxy_reward: Array | None
) -> dict[str, Array]:
    """Return `policy_outcome` of tables that the caller made or has checked, each (..., X, A), d0 (..., X)."""

    def mean(table: Array) -> Array:
        return np.asarray((d0 * table).sum(axis=-1))

    outcome = {"kl/reference": mean(kl_divergence(policy, reference))}
    if reward is not None:
        outcome["reward/gold"] = mean((policy * reward).sum(axis=-1))
    if proxy_reward is not None:
        outcome["reward/proxy"] = mean(((policy - base) * proxy_reward).sum(axis=-1))
    return outcome


def total_variation(first: Array, second: Array) -> Array:
    """Return half the L1 distance of two policies (X, A), one number per prompt: (X,)."""
    first = checks.finite("first", first, shape=(None, None))
    second = checks.finite("second", second, shape=first.shape)
    return np.asarray(0.5 * np.abs(first - second).sum(axis=1))
