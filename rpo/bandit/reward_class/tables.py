"""Classes in which each entry is on its own: every table, a box, an interval for each entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.reward_class.base import ROUNDING, Pairs, Part, RewardSet
from rpo.bandit.solver.newton import minimize_box
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


@dataclass(frozen=True)
class Unconstrained(RewardSet):
    """Every reward table; the class in which the maximin equals DPO + eta * beta * SFT."""

    bounded = False
    limits = (-math.inf, math.inf)

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return free rewards but for one entry a prompt: they are free up to a constant, so one is held at 0."""
        import cvxpy

        r = cvxpy.Variable(len(entries[0]))
        pins = [r[np.flatnonzero(entries[0] == x)[0]] == 0 for x in np.unique(entries[0])]
        return r, pins, lambda shape: _with_entries(np.zeros(shape), entries, r.value)

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return 0, where g vanishes."""
        return 0.0, [g == 0]

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, reward>: 0 where g vanishes (up to rounding), else inf, the indicator of g = 0."""
        return 0.0 if np.abs(g).max() <= ROUNDING else float("inf")

    def contains(self, reward: Array) -> bool:
        """Return whether every entry is finite."""
        return bool(np.isfinite(reward).all())

    contains_differences = contains

    def project(self, reward: Array) -> Array:
        """Return `reward`."""
        return reward

    def walls(self, reward: Array) -> tuple[Any, Any]:
        """Return none."""
        return np.zeros(reward.shape, dtype=bool), np.zeros(reward.shape, dtype=bool)

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Unconstrained"}


class Walled(RewardSet):
    """Tables between two walls, `limits`: what a box and intervals have in common."""

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return rewards between the walls."""
        import cvxpy

        r = cvxpy.Variable(len(entries[0]))
        lower, upper = self._at(entries)

        def read(shape: tuple[int, int]) -> Array:
            return _with_entries(self.project(np.zeros(shape)), entries, np.clip(r.value, lower, upper))

        return r, [r >= lower, r <= upper], read

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return the sum of upper g where g > 0 and lower g where g < 0."""
        import cvxpy

        lower, upper = self._at(entries)
        return cvxpy.sum(cvxpy.multiply(upper - lower, cvxpy.pos(g)) + cvxpy.multiply(lower, g)), []

    def support_gaps(self, g: Array, reward: Array) -> Array:
        """Return the sums of `support_terms`."""
        return np.asarray(self.support_terms(g, reward).reshape(len(g), -1).sum(axis=1))

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, reward> >= 0: the sum over entries of `support_terms`."""
        return float(self.support_terms(g, reward).sum())

    def support_terms(self, g: Array, reward: Array) -> Array:
        """Return g (upper - r) where g > 0 and -g (r - lower) where g < 0, entry by entry."""
        lower, upper = self.limits
        return np.where(g > 0, g * (upper - reward), -g * (reward - lower))

    def contains(self, reward: Array) -> bool:
        """Return whether every entry lies between the walls, up to rounding."""
        lower, upper = self.limits
        return bool((reward >= lower - self._slack).all() and (reward <= upper + self._slack).all())

    def contains_differences(self, reward: Array) -> bool:
        """Return whether each prompt's rewards fit between the walls, moved up from below as far as they must."""
        return self.contains(reward + (self.limits[0] - reward).max(axis=1, keepdims=True))

    def project(self, reward: Array) -> Array:
        """Return `reward` clipped to the walls."""
        return np.clip(reward, *self.limits)

    def walls(self, reward: Array) -> tuple[Any, Any]:
        """Return where `reward` is at the lower wall, and where at the upper, up to rounding."""
        lower, upper = self.limits
        return reward <= lower + self._slack, reward >= upper - self._slack

    def minimize(
        self,
        parts: Sequence[Part],
        shape: tuple[int, int],
        *,
        start: Array | None = None,
        kept: Pairs | None = None,
    ) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum, prompt by prompt, nearest zero elsewhere, and its residual."""
        if kept is not None:
            raise self.lacks("parameters that prompts share", "minimize", bounded=True)
        reward, residual = self.project(np.zeros(shape) if start is None else start), 0.0
        lower, upper = (np.broadcast_to(limit, shape) for limit in self.limits)
        for prompt, support, function in parts:
            found = minimize_box(function, reward[prompt, support], lower[prompt, support], upper[prompt, support])
            reward[prompt, support] = found.x
            residual += found.residual
        return reward, residual

    def _at(self, entries: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return the walls of entries (x, a), (n,) or numbers."""
        lower, upper = (limit[entries] if isinstance(limit, np.ndarray) else limit for limit in self.limits)
        return lower, upper

    @property
    def _slack(self) -> float:
        return ROUNDING * max(float(np.abs(limit).max(initial=0.0)) for limit in self.limits)


@dataclass(frozen=True)
class Box(Walled):
    """Reward tables with entries in [0, bound]: the paper's class (Assumption 5.1), tabular case.

    bound: R > 0, reward units. Raises InvalidArgument.
    """

    bound: float

    def __post_init__(self) -> None:
        remedy = "Pass the largest reward R, for example Box(problem.reward_bound)."
        object.__setattr__(self, "bound", checks.positive("bound", self.bound, remedy=remedy))

    @property
    def limits(self) -> tuple[float, float]:
        """0 and R."""
        return 0.0, self.bound

    @property
    def largest_reward(self) -> float:
        """R."""
        return self.bound

    def largest_margin(self) -> float:
        """Return R, exact."""
        return self.bound

    def log_covering(self, *, prompts: int, arms: int, radius: float, modulo_constants: bool = True) -> float:
        r"""Return the log of a sup-norm covering number of [0, R]^{X x A} at this radius.

        With modulo_constants=False the count is exact: $\lceil R/(2\epsilon)\rceil^{XA}$ cubes of side
        $2\epsilon$ suffice, and as many points at spacing above $2\epsilon$ need one each.

        Preferences and policies see rewards only up to a constant a prompt, so it is enough to cover the
        tables whose least entry is 0 at every prompt: the union of A faces of the cube, hence at most
        $(A \lceil R/(2\epsilon)\rceil^{A-1})^X$ balls. By default the smaller of the two is returned.
        Raises InvalidArgument.
        """
        x = checks.integer("prompts", prompts, minimum=1)
        a = checks.integer("arms", arms, minimum=2)
        cells = float(_log_cells(np.array(self.bound), checks.positive("radius", radius)))
        whole = a * cells
        faces = math.log(a) + (a - 1) * cells
        return x * (min(whole, faces) if modulo_constants else whole)

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Box", "bound": self.bound}


@dataclass(frozen=True, eq=False)
class Intervals(Walled):
    """Reward tables with each entry between walls of its own: the pointwise worst case.

    lower, upper: (X, A), finite, lower <= upper. Between the least and the largest reward of an ensemble the adversary
    lowers each response on its own, where a `Hull` of the members must choose one mixture for all. Raises
    InvalidArgument. Source: Coste et al. 2024 (arXiv 2310.02743), worst-case optimization.
    """

    lower: Array
    upper: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", checks.finite("lower", self.lower, shape=(None, None)))
        object.__setattr__(self, "upper", checks.finite("upper", self.upper, shape=self.lower.shape))
        if (self.lower > self.upper).any():
            x, a = (int(i) for i in np.argwhere(self.lower > self.upper)[0])
            raise InvalidArgument(
                "upper",
                expected="entries >= those of lower",
                got=f"{self.upper[x, a]:g} < {self.lower[x, a]:g} at prompt {x}, response {a}",
                remedy="Swap the two where they cross.",
            )

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse another (X, A) than that of the walls."""
        checks.has_shape("reward_class.lower", self.lower, shape)

    @property
    def limits(self) -> tuple[Array, Array]:
        """The two walls, (X, A) each."""
        return self.lower, self.upper

    def largest_margin(self) -> float:
        """Return the largest difference between one response at its upper wall and another at its lower, exact."""
        apart = self.upper[:, :, None] - self.lower[:, None, :]
        own = np.eye(self.lower.shape[1], dtype=bool)
        return float(np.where(own, 0.0, apart).max(initial=0.0))

    def log_covering(self, *, prompts: int, arms: int, radius: float) -> float:
        r"""Return the log of the sup-norm covering number, exact: $\sum\log\lceil(u-l)/(2\epsilon)\rceil$."""
        self.check_shape((prompts, arms))
        return float(_log_cells(self.upper - self.lower, checks.positive("radius", radius)).sum())

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        least, widest = float(self.lower.min(initial=0.0)), float((self.upper - self.lower).max(initial=0.0))
        return {"name": "Intervals", "least": least, "widest": widest}


def _log_cells(width: Array, radius: float) -> Array:
    """Return log of how many cells of side 2 radius cover these widths, 0 of a width of 0; the count may be huge."""
    side = 2.0 * radius
    # Rounding up is below the precision of a logarithm of more than 2^53, and their number may exceed every float.
    few = width < side * 2.0**53
    counted = np.log(np.maximum(np.ceil(np.where(few, width, side) / side), 1.0))
    with np.errstate(divide="ignore"):
        return np.where(few, counted, np.log(width) - math.log(side))


def _with_entries(table: Array, entries: tuple[Any, Any], values: Array) -> Array:
    table[entries] = values
    return table
