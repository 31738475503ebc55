"""Several rewards of the same responses made into one: the aggregators of a reward ensemble.

Shapes: M members; the rest of a shape is whatever the members score, (X, A) responses of a table or (N,) texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

AGGREGATORS = ("mean", "worst", "variance", "entropic")


def combine(rewards: Any, how: str, penalty: float) -> Array:
    """Return one reward of M, (M, ...) -> (...).

    how: "mean", "worst" (the least reward of each response), "variance" (mean - penalty * variance over the members) or
    "entropic" (see there). Members that leave a constant of each prompt free, as Bradley-Terry does, must be centred
    before: a minimum would pick the lowest constant. Raises InvalidArgument. Source: Coste et al. 2024
    (arXiv 2310.02743), Section 3.
    """
    checks.one_of("how", how, AGGREGATORS)
    if how == "entropic":
        return entropic(rewards, penalty)
    tables, p = _members(rewards), checks.nonnegative("penalty", penalty)
    if how == "worst":
        return np.asarray(tables.min(axis=0))
    mean = tables.mean(axis=0)
    return np.asarray(mean if how == "mean" else mean - p * tables.var(axis=0))


def entropic(rewards: Any, penalty: float) -> Array:
    r"""Return $-\frac1{2p}\log\frac1M\sum_m e^{-2pr_m}$, (M, ...) -> (...), one family with the others as its limits.

    penalty: p >= 0, per reward unit. The mean as p -> 0; to first order in p the mean less p times the variance (UWO);
    the least member as p -> infinity. It is the worst case over mixtures of members whose weights are held to the
    uniform by a KL of price 1/(2p). Raises InvalidArgument. Source: docs/theory.md, section 12.
    """
    tables, p = _members(rewards), checks.nonnegative("penalty", penalty)
    mean = tables.mean(axis=0)
    if p == 0:
        return np.asarray(mean)
    x = -2.0 * p * (tables - mean)
    most = x.max(axis=0)
    # Near the mean the exponentials less one keep the digits that one would swallow.
    near = np.log1p(np.expm1(np.minimum(x, 1.0)).mean(axis=0))
    far = most + np.log(np.exp(x - most).mean(axis=0))
    return np.asarray(mean - np.where(most < 1.0, near, far) / (2.0 * p))


def _members(rewards: Any) -> Array:
    tables = checks.finite("rewards", rewards)
    if tables.ndim < 2 or not len(tables):
        raise InvalidArgument(
            "rewards",
            expected="one row of rewards per member, at least one",
            got=f"shape {tables.shape}",
            remedy="Stack the members' rewards.",
        )
    return tables
