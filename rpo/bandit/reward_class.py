"""Reward classes R, closed convex sets of reward tables (X, A): what the adversary may choose.

S_R(g) = max over R of <g, r>, inf where unbounded. Rewards in log-odds; logarithms are natural.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.solver.newton import Derivatives, minimize_ball, minimize_box
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LEAST_SCALE

ROUNDING = 1e-12
ON_SPHERE = 1e-9
RESIDUAL = 1e-9
Part = tuple[int, Any, Callable[[Array], Derivatives]]  # a prompt, its support (S,), and a function of its rewards (S,)


class RewardSet(ABC):
    """What a reward class answers. Support function, membership and record are a must; the rest is refused by name.

    `solve` has programs for the classes of this module only (`check_reward_class`); bounds, coverage and baselines
    take any class that answers what they ask.
    """

    bounded: bool = True

    @property
    def largest_reward(self) -> float | None:
        """R where entries lie in [0, R], else None."""
        return None

    @property
    def linear_in(self) -> Array | None:
        """The features (X, A, D) in which rewards are linear; None where each entry is on its own."""
        return None

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest reward of an entry, where each entry is on its own."""
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

    def minimize(self, parts: Sequence[Part], shape: tuple[int, int]) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum of convex functions of its rows, and how far from it it may be."""
        raise self.lacks("a minimiser of convex functions of its rows", "minimize", bounded=True)

    def lacks(self, what: str, method: str, *, bounded: bool = False) -> InvalidArgument:
        """Return the refusal of a question that this class has no answer to."""
        return InvalidArgument(
            "reward_class",
            expected=f"a {'bounded ' * bounded}class with {what}",
            got=type(self).__name__,
            remedy=f"Pass Box(R) or LinearBall(features, radius), or write its `{method}`.",
        )


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
        return r, pins, lambda shape: _table(shape, entries, r.value)

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


@dataclass(frozen=True)
class Box(RewardSet):
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

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return rewards between 0 and R."""
        import cvxpy

        r = cvxpy.Variable(len(entries[0]))
        limits = [r >= 0, r <= self.bound]
        return r, limits, lambda shape: _table(shape, entries, np.clip(r.value, 0.0, self.bound))

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return R times the sum of g's positive parts."""
        import cvxpy

        return self.bound * cvxpy.sum(cvxpy.pos(g)), []

    def support_gaps(self, g: Array, reward: Array) -> Array:
        """Return the sums of `support_terms`."""
        return np.asarray(self.support_terms(g, reward).reshape(len(g), -1).sum(axis=1))

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

    @property
    def largest_reward(self) -> float:
        """R."""
        return self.bound

    def contains_differences(self, reward: Array) -> bool:
        """Return whether no prompt's rewards differ by more than R."""
        return self.contains(reward - reward.min(axis=1, keepdims=True))

    def project(self, reward: Array) -> Array:
        """Return `reward` clipped to [0, R]."""
        return np.clip(reward, 0.0, self.bound)

    def walls(self, reward: Array) -> tuple[Any, Any]:
        """Return where `reward` is 0, and where it is R, up to rounding."""
        slack = ROUNDING * self.bound
        return reward <= slack, reward >= self.bound - slack

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
        top, side = self.bound, 2.0 * checks.positive("radius", radius)
        # Rounding up is below the precision of a logarithm of more than 2^53, and their number may exceed every float.
        cells = math.log(math.ceil(top / side)) if top < side * 2.0**53 else math.log(top) - math.log(side)
        whole = a * cells
        faces = math.log(a) + (a - 1) * cells
        return x * (min(whole, faces) if modulo_constants else whole)

    def minimize(self, parts: Sequence[Part], shape: tuple[int, int]) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum, prompt by prompt, 0 elsewhere, and its residual."""
        reward, residual = np.zeros(shape), 0.0
        for prompt, support, function in parts:
            none = np.zeros(len(support))
            found = minimize_box(function, none, none, np.full(len(support), self.bound))
            reward[prompt, support] = found.x
            residual += found.residual
        return reward, residual

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Box", "bound": self.bound}


@dataclass(frozen=True, eq=False)
class LinearBall(RewardSet):
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

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return the features' products with a theta in the ball."""
        import cvxpy

        theta = cvxpy.Variable(self.features.shape[2])

        def read(shape: tuple[int, int]) -> Array:
            norm = float(np.linalg.norm(theta.value))
            return self.reward(theta.value * min(1.0, self.radius / max(norm, 1e-300)))

        return self.features[entries] @ theta, [cvxpy.norm(theta, 2) <= self.radius], read

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return B times the norm of the features' sum by g."""
        import cvxpy

        return self.radius * cvxpy.norm(self.features[entries].T @ g, 2), []

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

    @property
    def linear_in(self) -> Array:
        """The features."""
        return self.features

    def contains_differences(self, reward: Array) -> bool:
        """Return whether some theta in the ball gives the differences of `reward` within every prompt."""
        centred = self.features - self.features.mean(axis=1, keepdims=True)
        return LinearBall(centred, self.radius).contains(reward - reward.mean(axis=1, keepdims=True))

    def outer_normal(self, reward: Array) -> Array | None:
        """Return the least-norm theta (D,) of the differences of `reward`, where it lies on the sphere."""
        rows = (self.features - self.features.mean(axis=1, keepdims=True)).reshape(-1, self.features.shape[2])
        target = (reward - reward.mean(axis=1, keepdims=True)).ravel()
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
        if length > self.radius * (1 + ON_SPHERE):
            raise InvalidArgument(
                "reward_class",
                expected="a ball that holds r*",
                got=f"radius {self.radius:g} and ||theta*|| = {length:g}",
                remedy="Raise the radius.",
            )
        return np.asarray(theta) if length >= self.radius * (1 - ON_SPHERE) else None

    def largest_margin(self) -> float:
        """Return B times the largest distance between two features of one prompt, exact."""
        apart = (phi[:, None, :] - phi[None, :, :] for phi in self.features)
        return self.radius * max(float(np.linalg.norm(difference, axis=2).max()) for difference in apart)

    def log_covering(self, *, prompts: int, arms: int, radius: float) -> float:
        r"""Return the log of a sup-norm covering number at this radius: $D \log(1 + 2 B \Phi_{max} / \epsilon)$.

        $|\langle\Phi(x,a), \theta-\theta'\rangle| \le \Phi_{max}\|\theta-\theta'\|$, so covering the
        parameters at $\rho = \epsilon/\Phi_{max}$ covers the rewards at $\epsilon$. A maximal set of
        parameters more than $\rho$ apart covers; balls of radius $\rho/2$ around them are disjoint and
        lie in the ball of radius $B+\rho/2$, so comparing volumes there are at most
        $((B+\rho/2)/(\rho/2))^D = (1+2B/\rho)^D$ of them.
        $\Phi_{max}$ is the largest norm of a feature, before or after the mean over each prompt's
        responses is subtracted (this moves rewards by a constant a prompt), whichever is smaller.
        """
        rho = checks.positive("radius", radius)
        centred = self.features - self.features.mean(axis=1, keepdims=True)
        largest = min(float(np.linalg.norm(phi, axis=2).max()) for phi in (self.features, centred))
        return self.features.shape[2] * math.log1p(2.0 * self.radius * largest / rho)

    def minimize(self, parts: Sequence[Part], shape: tuple[int, int]) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum, and its residual."""

        def total(theta: Array) -> Derivatives:
            value, gradient, hessian = 0.0, np.zeros(theta.size), np.zeros((theta.size, theta.size))
            for prompt, support, function in parts:
                seen = self.features[prompt, support]
                v, g, h = function(seen @ theta)
                value, gradient, hessian = value + v, gradient + seen.T @ g, hessian + seen.T @ h @ seen
            return value, gradient, hessian

        found = minimize_ball(total, np.zeros(self.features.shape[2]), self.radius)
        return self.reward(found.x), found.residual

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "LinearBall", "radius": self.radius, "dimension": int(self.features.shape[2])}


def _table(shape: tuple[int, int], entries: tuple[Any, Any], values: Array) -> Array:
    table = np.zeros(shape)
    table[entries] = values
    return table


RewardClass = Unconstrained | Box | LinearBall


def require_reward_set(value: object) -> RewardSet:
    """Return `value`, or refuse what is no reward class."""
    return checks.instance("reward_class", value, RewardSet)  # type: ignore[type-abstract]


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
