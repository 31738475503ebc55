"""Where r* lies in its class: inside, on a wall of the box, on the sphere of the ball."""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import ROUNDING, Box, LinearBall, RewardClass, Unconstrained, check_reward_class
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

ON_SPHERE = 1e-9
RESIDUAL = 1e-9


def check_class(problem: ContextualBandit, reward_class: RewardClass | None, boundary: bool | None) -> RewardClass:
    """Return the class, or refuse one of another kind or without r* (which the cone, and the theory, needs inside)."""
    if reward_class is None:
        reward_class = Unconstrained() if problem.reward_bound is None else Box(problem.reward_bound)
    check_reward_class(reward_class)
    if isinstance(reward_class, LinearBall):
        checks.has_shape("reward_class.features", reward_class.features, (*problem.reference.shape, None))
    elif boundary is not False and problem.reward is not None and not reward_class.contains(problem.reward):
        raise InvalidArgument(
            "reward_class",
            expected="a class that holds r*",
            got=f"{reward_class} and rewards up to {problem.reward.max():g}",
            remedy="Raise the bound, or use boundary=False for the interior value.",
        )
    return reward_class


def on_walls(problem: ContextualBandit, reward_class: RewardClass, boundary: bool | None) -> tuple[Any, Any]:
    """Return (X, A) bool twice: where r* is 0 and where it is R."""
    none = np.zeros(problem.reference.shape, dtype=bool)
    if boundary is False or problem.reward is None or not isinstance(reward_class, Box):
        return none, none
    slack = ROUNDING * reward_class.bound
    return problem.reward <= slack, problem.reward >= reward_class.bound - slack


def on_sphere(problem: ContextualBandit, ball: LinearBall, boundary: bool | None) -> Array | None:
    """Return theta* (D,) where it lies on the sphere, else None: the least-norm one with r*'s differences."""
    if boundary is False or problem.reward is None:
        return None
    rows = (ball.features - ball.features.mean(axis=1, keepdims=True)).reshape(-1, ball.features.shape[2])
    target = (problem.reward - problem.reward.mean(axis=1, keepdims=True)).ravel()
    theta = np.linalg.lstsq(rows, target, rcond=None)[0]
    miss = float(np.abs(rows @ theta - target).max())
    if miss > RESIDUAL * (1 + np.abs(target).max()):
        raise InvalidArgument(
            "reward_class",
            expected="features that reproduce the differences of r* within every prompt",
            got=f"a difference missed by {miss:.2g}",
            remedy="Use the features r* was made of, or boundary=False for the interior value.",
        )
    length = float(np.linalg.norm(theta))
    if length > ball.radius * (1 + ON_SPHERE):
        raise InvalidArgument(
            "reward_class",
            expected="a ball that holds r*",
            got=f"radius {ball.radius:g} and ||theta*|| = {length:g}",
            remedy="Raise the radius.",
        )
    return theta if length >= ball.radius * (1 - ON_SPHERE) else None
