"""Where r* lies in its class: inside, on a wall of the box, on the sphere of the ball."""

from __future__ import annotations

from typing import Any

from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, RewardSet, Unconstrained, require_reward_set
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


def check_class(problem: ContextualBandit, reward_class: RewardSet | None, boundary: bool | None) -> RewardSet:
    """Return the class, or refuse one of another kind or without r* (which the cone, and the theory, needs inside)."""
    if reward_class is None:
        reward_class = Unconstrained() if problem.reward_bound is None else Box(problem.reward_bound)
    require_reward_set(reward_class)
    reward_class.check_shape(problem.reference.shape)
    needed = boundary is not False and problem.reward is not None and reward_class.linear_in is None
    if needed and not reward_class.contains(problem.true_reward()):
        raise InvalidArgument(
            "reward_class",
            expected="a class that holds r*",
            got=f"{reward_class} and rewards up to {problem.true_reward().max():g}",
            remedy="Raise the bound, or use boundary=False for the interior value.",
        )
    return reward_class


def on_walls(problem: ContextualBandit, reward_class: RewardSet, boundary: bool | None) -> tuple[Any, Any]:
    """Return (X, A) bool twice: where r* is as low, and as high, as the class allows."""
    if boundary is False or problem.reward is None:
        return Unconstrained().walls(problem.reference)
    return reward_class.walls(problem.reward)


def outer_normal(problem: ContextualBandit, reward_class: RewardSet, boundary: bool | None) -> Array | None:
    """Return theta* (D,) where r* is on the boundary of a linear class, else None."""
    return None if boundary is False or problem.reward is None else reward_class.outer_normal(problem.reward)
