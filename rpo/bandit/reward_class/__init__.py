"""Reward classes R, closed convex sets of reward tables (X, A): what the adversary may choose.

S_R(g) = max over R of <g, r>, inf where unbounded. Rewards in log-odds; logarithms are natural.
"""

from rpo.bandit.reward_class.base import RewardSet, require_reward_set
from rpo.bandit.reward_class.hull import Hull
from rpo.bandit.reward_class.linear import LinearBall
from rpo.bandit.reward_class.tables import Box, Intervals, Unconstrained
from rpo.core.errors import InvalidArgument

RewardClass = Unconstrained | Box | Intervals | LinearBall | Hull


def check_reward_class(value: object) -> RewardClass:
    """Return `value`, or refuse anything but one of the five classes themselves: no other has a solver here."""
    if type(value) in (Unconstrained, Box, Intervals, LinearBall, Hull):
        return value  # type: ignore[return-value]
    raise InvalidArgument(
        "reward_class",
        expected="Unconstrained(), Box(R), Intervals(lower, upper), LinearBall(features, B) or Hull(rewards)",
        got=repr(value),
        remedy="Pass Box(3.0) rather than 3.0, for example; other classes, and subclasses, have no solver.",
    )


__all__ = [
    "Box",
    "Hull",
    "Intervals",
    "LinearBall",
    "RewardClass",
    "RewardSet",
    "Unconstrained",
    "check_reward_class",
    "require_reward_set",
]
