"""Covering numbers of the reward classes in sup norm, and the largest margin each class allows.

Shapes: X prompts, A responses, N pairs. Logarithms are natural.
"""

from __future__ import annotations

import math

from rpo.bandit.reward_class import RewardSet, require_reward_set
from rpo.core import checks
from rpo.core.errors import InvalidArgument


def covering_radius(n: float, margin_bound: float) -> float:
    """Return eps = 1 / (6 (1 + e^R) N), the radius at which the concentration lemma covers the class.

    n: N, > 0. margin_bound: R, log-odds. Source: paper, Theorem 5.3 and Lemma A.1.
    """
    pairs = checks.positive("n", n)
    bound = _margin(margin_bound)
    return 1.0 / (6.0 * (1.0 + math.exp(bound)) * pairs)


def log_covering(reward_class: RewardSet, *, prompts: int, arms: int, radius: float) -> float:
    """Return the log of a sup-norm covering number of a reward class at this radius; refuse one that has none."""
    return require_reward_set(reward_class).log_covering(prompts=prompts, arms=arms, radius=radius)


def largest_margin(reward_class: RewardSet) -> float:
    """Return R, a bound on |r(x, a) - r(x, b)| over the class, log-odds; exact for `Box` and `LinearBall`.

    The proof uses rewards only through such margins, so this R serves a ball, whose rewards may be
    negative, as well as a box.
    """
    return require_reward_set(reward_class).largest_margin()


def _margin(value: float) -> float:
    bound = checks.positive("margin_bound", value)
    if bound > 300.0:
        raise InvalidArgument(
            "margin_bound",
            expected="at most 300 log-odds",
            got=value,
            remedy="The constants of the theorem grow like exp(2 R): no bound is left at this R.",
        )
    return bound
