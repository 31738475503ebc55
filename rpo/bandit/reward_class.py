"""Reward classes R, closed convex sets of reward tables (X, A): what the adversary may choose; their support functions.

S_R(g) = max over R of <g, r>, inf where unbounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LEAST_SCALE

ROUNDING = 1e-12


@dataclass(frozen=True)
class Unconstrained:
    """Every reward table; the class in which the maximin equals DPO + eta * beta * SFT."""

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, reward>: 0 where g vanishes (up to rounding), else inf, the indicator of g = 0."""
        return 0.0 if np.abs(g).max() <= ROUNDING else float("inf")

    def contains(self, reward: Array) -> bool:
        """Return whether every entry is finite."""
        return bool(np.isfinite(reward).all())

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Unconstrained"}


@dataclass(frozen=True)
class Box:
    """Reward tables with entries in [0, bound]: the paper's class (Assumption 5.1), tabular case.

    bound: R > 0, reward units. Raises InvalidArgument.
    """

    bound: float

    def __post_init__(self) -> None:
        remedy = "Pass the largest reward R, for example Box(problem.reward_bound)."
        object.__setattr__(self, "bound", checks.positive("bound", self.bound, remedy=remedy))

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, reward> >= 0: the sum over entries of `support_terms`."""
        return float(self.support_terms(g, reward).sum())

    def support_terms(self, g: Array, reward: Array) -> Array:
        """Return g (R - r) where g > 0 and -g r where g < 0, entry by entry."""
        return np.where(g > 0, g * (self.bound - reward), -g * reward)

    def contains(self, reward: Array) -> bool:
        """Return whether every entry lies in [0, R], up to rounding."""
        slack = ROUNDING * self.bound
        return bool((reward >= -slack).all() and (reward <= self.bound + slack).all())

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Box", "bound": self.bound}


@dataclass(frozen=True, eq=False)
class LinearBall:
    """Rewards r(x, a) = <features(x, a), theta> with ||theta||_2 <= radius.

    features: (X, A, D). radius: B > 0. Raises InvalidArgument.
    """

    features: Array
    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", checks.finite("features", self.features, shape=(None, None, None)))
        largest = float(np.abs(self.features).max(initial=0.0))
        if largest > 0 and not LEAST_SCALE <= largest <= 1.0 / LEAST_SCALE:
            raise InvalidArgument(
                "features",
                expected=f"a largest entry between {LEAST_SCALE:g} and {1.0 / LEAST_SCALE:g}",
                got=largest,
                remedy="Rescale the features, and the radius the other way: the class is the same.",
            )
        object.__setattr__(self, "radius", checks.positive("radius", self.radius))

    def reward(self, theta: Array) -> Array:
        """Return (X, A) from theta (D,)."""
        return np.asarray(self.features @ theta)

    def parameters(self, reward: Array) -> Array:
        """Return the least-norm theta (D,) whose reward table is nearest to `reward` (X, A)."""
        x, a, d = self.features.shape
        return np.asarray(np.linalg.lstsq(self.features.reshape(x * a, d), reward.ravel(), rcond=None)[0])

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, r> = B ||Phi' g|| - <g, r>, and 0 where rounding would make it negative."""
        pulled = np.einsum("xad,xa->d", self.features, g)
        return max(0.0, self.radius * float(np.linalg.norm(pulled)) - float((g * reward).sum()))

    def contains(self, reward: Array) -> bool:
        """Return whether some theta in the ball gives this table, up to rounding."""
        theta = self.parameters(reward)
        close = np.allclose(self.reward(theta), reward, atol=1e-9 * (1 + np.abs(reward).max()))
        return bool(close and np.linalg.norm(theta) <= self.radius * (1 + 1e-9))

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "LinearBall", "radius": self.radius, "dimension": int(self.features.shape[2])}


RewardClass = Unconstrained | Box | LinearBall


def check_reward_class(value: object) -> RewardClass:
    """Return `value`, or refuse anything but one of the three classes themselves: no other has a solver here."""
    if type(value) in (Unconstrained, Box, LinearBall):
        return value  # type: ignore[return-value]
    raise InvalidArgument(
        "reward_class",
        expected="Unconstrained(), Box(R) or LinearBall(features, B)",
        got=repr(value),
        remedy="Pass Box(3.0) rather than 3.0, for example; other classes, and subclasses, have no solver.",
    )
