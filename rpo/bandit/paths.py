"""A policy trained step by step on pairs of the data, or on pairs it draws itself: what the path is worth at equal KL.

Shapes: X prompts, A responses, P parameters, T steps. Expectations are exact: nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import SoftmaxPolicy
from rpo.bandit.solver.solvable import require_solvable
from rpo.bandit.tree import wpo_factors
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import kl_divergence, log_softmax
from rpo.core.objectives import Objective, require_margin_shape
from rpo.core.synonyms import with_synonyms

WEIGHTS = ("data", "policy")  # of pairs
DECAY, SQUARE_DECAY, TINY = 0.9, 0.99, 1e-9  # Adam's


@dataclass(frozen=True, eq=False)
class TrainingPath:
    """What the policies of a path are worth, step by step.

    kl: (T,), E_{d0}[KL(pi || pi_ref)], nats. gold: (T,), E_{d0,pi}[r*] - E_{d0,ref}[r*]. accuracy: (T,), how often the
    response of a pair of the data that the implicit reward prefers wins under r*.
    """

    kl: Array
    gold: Array
    accuracy: Array

    def gold_at(self, kl: float) -> float:
        """Return the gold gain where the path is first this far from the reference, NaN where it never is."""
        wanted = checks.nonnegative("kl", kl)
        reached = np.maximum.accumulate(np.append(0.0, self.kl))
        gold = np.append(0.0, self.gold)
        after = int(np.searchsorted(reached, wanted))
        if after == len(reached):
            return math.nan
        before = max(after - 1, 0)
        return float(np.interp(wanted, reached[[before, after]], gold[[before, after]]))


@with_synonyms
def training_path(
    policy: SoftmaxPolicy,
    data: PreferenceCounts,
    objective: Objective,
    *,
    labels: Any = None,
    pair_weights: str = "data",
    steps: int = 400,
    rate: float = 0.015,
) -> TrainingPath:
    """Train by Adam on the data (offline), or on pairs the policy draws itself, labelled by `labels` (online).

    policy: where the path starts; its problem's r* must be known. objective: a loss of the margin of log-ratios to the
    reference, without an SFT term, such as IPO or DPO. labels: (X, A), the proxy reward whose Bradley-Terry
    probabilities label the drawn pairs; None for the data. pair_weights: "data", or "policy", each pair counting by the
    policy's own probability of it, as in WPO (`tree.wpo_factors`, at most one, held constant). rate: Adam's. Raises
    InvalidArgument. Source: Tang et al. 2024 (arXiv 2405.08448); Zhou et al. 2024 (arXiv 2406.11827).
    """
    checks.instance("policy", policy, SoftmaxPolicy)  # type: ignore[type-abstract]
    checks.instance("data", data, PreferenceCounts)
    problem, reference = policy.problem, policy.problem.reference
    truth, d0 = problem.true_reward(), problem.d0
    link: Any = require_solvable(objective).link
    shape = require_margin_shape(objective)
    x, a = reference.shape
    none = np.zeros(1)
    plain = isinstance(link.divergence, KL) and objective.needs == {"reference"} and not objective.anchor.weight
    if not plain or shape.offset(Columns(logps=(none, none), reference=(none, none))) is not None:
        raise InvalidArgument(
            "objective",
            expected="a loss of the difference of two log-ratios to the reference, of the KL, without an SFT term",
            got=objective.label,
            remedy="Use IPO or DPO, for example.",
        )
    if checks.one_of("pair_weights", pair_weights, WEIGHTS) != "data" and labels is not None:
        raise InvalidArgument(
            "pair_weights",
            expected='"data" with labels: pairs that the policy draws are its own',
            got=pair_weights,
            remedy="Leave out one of the two.",
        )
    seen = data.wins() / data.n
    checks.has_shape("data.wins()", seen, (x, a, a))
    proxy = None if labels is None else _wins(checks.finite("labels", labels, shape=(x, a)))
    right = _wins(truth)
    compared = seen + seen.transpose(0, 2, 1)
    size, step = checks.integer("steps", steps, minimum=1), checks.positive("rate", rate)
    design = policy.design
    theta = policy.parameters.astype(np.float64).ravel()
    first, second = np.zeros(theta.size), np.zeros(theta.size)
    offset, pi, rows = design @ theta, np.exp(policy.logps), []
    for t in range(1, size + 1):
        wins = seen if proxy is None else d0[:, None, None] * pi[:, :, None] * pi[:, None, :] * proxy
        if pair_weights == "policy":
            factor = wpo_factors(pi)
            wins = seen * np.minimum(factor[:, :, None] * factor[:, None, :], 1.0)
        margins = offset[:, :, None] - offset[:, None, :]
        slope = wins * shape.derivatives(margins.ravel(), link.beta)[0].reshape(margins.shape)
        gradient = np.einsum("xa,xap->p", slope.sum(axis=2) - slope.sum(axis=1), design)
        first = DECAY * first + (1 - DECAY) * gradient
        second = SQUARE_DECAY * second + (1 - SQUARE_DECAY) * gradient**2
        theta = theta - step * (first / (1 - DECAY**t)) / (np.sqrt(second / (1 - SQUARE_DECAY**t)) + TINY)
        offset = design @ theta
        pi = np.exp(log_softmax(problem.log_reference + offset))
        prefers = offset[:, :, None] > offset[:, None, :]
        accuracy = 0.5 * (compared * np.where(prefers, right, right.transpose(0, 2, 1))).sum()
        gold = d0 @ ((pi - reference) * truth).sum(axis=1)
        rows.append((d0 @ kl_divergence(pi, reference), gold, accuracy))
    return TrainingPath(*np.array(rows).T)


def _wins(reward: Array) -> Array:
    """Return sigmoid(r_a - r_b), (X, A, A)."""
    return np.asarray(1.0 / (1.0 + np.exp(reward[:, None, :] - reward[:, :, None])))
