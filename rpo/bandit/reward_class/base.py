"""What a reward class answers, and the refusals of what it does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.newton import Derivatives
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

ROUNDING = 1e-12
Part = tuple[int, Any, Callable[[Array], Derivatives]]  # a prompt, its support (S,), and a function of its rewards (S,)
Pairs = tuple[Index, Index, Index]  # prompt, response and response, each (K,)


class RewardSet(ABC):
    """What a reward class answers. Support function, membership and record are a must; the rest is refused by name.

    `solve` has programs for the package's classes only (`check_reward_class`); bounds, coverage and baselines take any
    class that answers what they ask.
    """

    bounded: bool = True

    def check_shape(self, shape: tuple[int, int]) -> None:  # noqa: B027
        """Refuse prompts and responses (X, A) of another number than the class is made for. Raises InvalidArgument."""

    @property
    def largest_reward(self) -> float | None:
        """R where entries lie in [0, R], else None."""
        return None

    @property
    def linear_in(self) -> Array | None:
        """The features (X, A, D) in which members' differences are linear; None where each entry is on its own."""
        return None

    @property
    def limits(self) -> tuple[Any, Any]:
        """The least and the largest reward of each entry, numbers or (X, A), where each entry is on its own."""
        raise self.lacks("limits of each entry", "limits")

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return the rewards of entries (x, a), (n,), as a cvxpy expression, its constraints, and a reader.

        The reader makes the solved table, (X, A), a member.
        """
        raise self.lacks("a convex program", "variables")

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return S_R(g), g (n,) on entries (x, a), as a convex cvxpy expression, and the constraints it holds under."""
        raise self.lacks("a convex program", "support")

    def support_gaps(self, g: Array, reward: Array) -> Array:
        """Return S_R(g) - <g, reward> of S instances, (S,); g, reward: (S, X, A)."""
        return np.array([self.support_gap(*pair) for pair in zip(g, reward, strict=True)], dtype=np.float64)

    @abstractmethod
    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, reward> >= 0 of a member."""

    @abstractmethod
    def contains(self, reward: Array) -> bool:
        """Return whether a table is a member, up to rounding."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""

    def contains_differences(self, reward: Array) -> bool:
        """Return whether `reward`, moved by some constant a prompt, is a member."""
        raise self.lacks("a test of membership up to a constant a prompt", "contains_differences")

    def project(self, reward: Array) -> Array:
        """Return the nearest member."""
        raise self.lacks("a projection", "project")

    def walls(self, reward: Array) -> tuple[Any, Any]:
        """Return (X, A) bool twice: the entries of `reward` that no member undercuts, and that none exceeds."""
        raise self.lacks("walls", "walls")

    def outer_normal(self, reward: Array) -> Array | None:
        """Return the parameters (D,) normal to a linear class at a member on its boundary; None inside."""
        raise self.lacks("a normal", "outer_normal")

    def largest_margin(self) -> float:
        """Return a bound on |r(x, a) - r(x, b)| over the class."""
        raise self.lacks("a largest margin", "largest_margin", bounded=True)

    def log_covering(self, *, prompts: int, arms: int, radius: float) -> float:
        """Return the log of a sup-norm covering number at this radius."""
        raise self.lacks("a covering number", "log_covering", bounded=True)

    def minimize(
        self,
        parts: Sequence[Part],
        shape: tuple[int, int],
        *,
        start: Array | None = None,
        kept: Pairs | None = None,
    ) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum of convex functions of its rows, and how far from it it may be.

        start: (X, A), a member to begin at. kept: pairs whose reward differences stay those of `start`; for classes
        of parameters that prompts share.
        """
        raise self.lacks("a minimiser of convex functions of its rows", "minimize", bounded=True)

    def lacks(self, what: str, method: str, *, bounded: bool = False) -> InvalidArgument:
        """Return the refusal of a question that this class has no answer to."""
        return InvalidArgument(
            "reward_class",
            expected=f"a {'bounded ' * bounded}class with {what}",
            got=type(self).__name__,
            remedy=f"Pass Box(R) or LinearBall(features, radius), or write its `{method}`.",
        )


def require_reward_set(value: object) -> RewardSet:
    """Return `value`, or refuse what is no reward class."""
    return checks.instance("reward_class", value, RewardSet)  # type: ignore[type-abstract]
