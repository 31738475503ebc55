"""Classes whose members share parameters: offset + features @ c, and the ball or ellipsoid of such parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from rpo.bandit.reward_class.base import Pairs, Part, RewardSet
from rpo.bandit.solver.newton import Derivatives, NewtonResult, minimize_ball
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LEAST_SCALE

ON_SPHERE = 1e-9
RESIDUAL = 1e-9
BLIND = 1e-10  # of the largest singular value: directions that no pair sees


class Shared(RewardSet):
    """Rewards offset + design @ c of coordinates c (D,) in a compact convex set, which a subclass knows."""

    @property
    @abstractmethod
    def design(self) -> Array:
        """(X, A, D)."""

    @property
    def offset(self) -> Any:
        """(X, A), or 0."""
        return 0.0

    @abstractmethod
    def coordinates(self, reward: Array) -> Array:
        """Return c (D,) whose table is nearest to `reward` (X, A), or nearly."""

    @abstractmethod
    def descend(self, function: Callable[[Array], Derivatives], start: Array, kept: Array) -> NewtonResult:
        """Minimise a convex function of c from `start`, moving c only where kept (n, D) @ c stays as it is."""

    def table(self, c: Array) -> Array:
        """Return (X, A) from c (D,)."""
        return np.asarray(self.offset + self.design @ c)

    def minimize(
        self,
        parts: Sequence[Part],
        shape: tuple[int, int],
        *,
        start: Array | None = None,
        kept: Pairs | None = None,
    ) -> tuple[Array, float]:
        """Return the member (X, A) of the least sum, and its residual."""
        offset = np.broadcast_to(self.offset, shape)
        rows = [(self.design[x, support], offset[x, support], function) for x, support, function in parts]
        size = self.design.shape[2]

        def total(c: Array) -> Derivatives:
            value, gradient, hessian = 0.0, np.zeros(size), np.zeros((size, size))
            for seen, fixed, function in rows:
                v, g, h = function(fixed + seen @ c)
                value, gradient, hessian = value + v, gradient + seen.T @ g, hessian + seen.T @ h @ seen
            return value, gradient, hessian

        unmoved = np.zeros((0, size))
        if kept is not None:
            x, first, second = kept
            unmoved = self.design[x, first] - self.design[x, second]
        begin = np.zeros(shape) if start is None else start
        found = self.descend(total, self.coordinates(begin), unmoved)
        return self.table(found.x), found.residual


def blind_directions(rows: Array) -> Array:
    """Return an orthonormal basis (D, k) of the directions that rows (n, D) do not see."""
    if len(rows) > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"))  # the same row space, without an n x n factor
    _, singular, vectors = np.linalg.svd(rows, full_matrices=True)
    rank = int((singular > BLIND * max(float(singular.max(initial=0.0)), 1e-300)).sum())
    return np.asarray(vectors[rank:].T)


@dataclass(frozen=True, eq=False)
class LinearBall(Shared):
    r"""Rewards r(x, a) = <features(x, a), theta> with ||theta - centre||_metric <= radius.

    features: (X, A, D). radius: B > 0. metric: (D, D), symmetric positive definite, $\|v\|_M=\sqrt{v^\top M v}$; None
    for the Euclidean norm. centre: (D,); None for zero. With a covariance as the metric and a fitted theta as the
    centre it is an elliptic confidence set. Raises InvalidArgument.
    """

    features: Array
    radius: float
    metric: Array | None = None
    centre: Array | None = None

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
        d = self.features.shape[2]
        if self.metric is not None:
            object.__setattr__(self, "metric", _check_metric(checks.finite("metric", self.metric, shape=(d, d))))
        if self.centre is not None:
            object.__setattr__(self, "centre", checks.finite("centre", self.centre, shape=(d,)))

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse features of other prompts and responses."""
        checks.has_shape("reward_class.features", self.features, (*shape, None))

    @property
    def is_plain(self) -> bool:
        """Whether the ball is Euclidean and about zero."""
        return self.metric is None and self.centre is None

    @cached_property
    def design(self) -> Array:
        """Features in coordinates in which the metric is Euclidean, (X, A, D): c = L' (theta - centre), M = L L'."""
        if self.metric is None:
            return self.features
        flat = self.features.reshape(-1, self.features.shape[2])
        scaled = solve_triangular(np.linalg.cholesky(self.metric), flat.T, lower=True).T
        return np.asarray(scaled.reshape(self.features.shape))

    @property
    def offset(self) -> Any:
        """The rewards of the centre, (X, A), or 0."""
        return 0.0 if self.centre is None else self.features @ self.centre

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return the features' products with a theta in the ball."""
        import cvxpy

        c = cvxpy.Variable(self.features.shape[2])

        def read(shape: tuple[int, int]) -> Array:
            norm = float(np.linalg.norm(c.value))
            return self.table(c.value * min(1.0, self.radius / max(norm, 1e-300)))

        rewards = self.design[entries] @ c
        if self.centre is not None:
            rewards = rewards + self.offset[entries]
        return rewards, [cvxpy.norm(c, 2) <= self.radius], read

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return B times the dual norm of the features' sum by g, and its product with the centre."""
        import cvxpy

        farthest = self.radius * cvxpy.norm(self.design[entries].T @ g, 2)
        return farthest if self.centre is None else farthest + self.offset[entries] @ g, []

    def reward(self, theta: Array) -> Array:
        """Return (X, A) from theta (D,)."""
        return np.asarray(self.features @ theta)

    def longest(self) -> float:
        """Return a bound on the Euclidean norm of theta over the class, B for a plain ball."""
        reach = self.radius if self.metric is None else self.radius / math.sqrt(np.linalg.eigvalsh(self.metric)[0])
        return reach if self.centre is None else reach + float(np.linalg.norm(self.centre))

    def parameters(self, reward: Array) -> Array:
        """Return the theta (D,), nearest to the centre, whose reward table is nearest to `reward` (X, A)."""
        c = self.coordinates(reward)
        if self.metric is not None:
            c = solve_triangular(np.linalg.cholesky(self.metric), c, lower=True, trans="T")
        return np.asarray(c if self.centre is None else self.centre + c)

    def coordinates(self, reward: Array) -> Array:
        """Return the least-norm c (D,) whose reward table is nearest to `reward` (X, A)."""
        x, a, d = self.features.shape
        return np.asarray(np.linalg.lstsq(self.design.reshape(x * a, d), (reward - self.offset).ravel(), rcond=None)[0])

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, r>, as `support_gaps` does."""
        return float(self.support_gaps(g[None], reward[None])[0])

    def support_gaps(self, g: Array, reward: Array) -> Array:
        """Return S_R(g) - <g, r> = B ||Phi' g|| - <g, r - offset>, and 0 where rounding would make it negative."""
        pulled = g.reshape(len(g), -1) @ self.design.reshape(-1, self.design.shape[-1])
        along = (g * (reward - self.offset)).sum(axis=(1, 2))
        return np.maximum(0.0, self.radius * np.linalg.norm(pulled, axis=1) - along)

    def contains(self, reward: Array) -> bool:
        """Return whether some theta in the ball gives this table, up to rounding."""
        c = self.coordinates(reward)
        close = np.allclose(self.table(c), reward, atol=1e-9 * (1 + np.abs(reward).max()))
        return bool(close and np.linalg.norm(c) <= self.radius * (1 + 1e-9))

    @property
    def linear_in(self) -> Array:
        """The features, where the metric is Euclidean."""
        return self.design

    def contains_differences(self, reward: Array) -> bool:
        """Return whether some theta in the ball gives the differences of `reward` within every prompt."""
        centred, target = self._differences(reward)
        return LinearBall(centred, self.radius).contains(target)

    def outer_normal(self, reward: Array) -> Array | None:
        """Return the least-norm coordinates (D,) of the differences of `reward`, where they lie on the sphere."""
        centred, target = (part.reshape(-1, *part.shape[2:]) for part in self._differences(reward))
        c = np.linalg.lstsq(centred, target, rcond=None)[0]
        miss = float(np.abs(centred @ c - target).max())
        if miss > RESIDUAL * (1 + np.abs(target).max()):
            raise InvalidArgument(
                "reward_class",
                expected="features that reproduce the differences of r* within every prompt",
                got=f"a difference missed by {miss:.2g}",
                remedy="Use the features r* was made of, or boundary=False for the interior value.",
            )
        length = float(np.linalg.norm(c))
        if length > self.radius * (1 + ON_SPHERE):
            raise InvalidArgument(
                "reward_class",
                expected="a ball that holds r*",
                got=f"radius {self.radius:g} and ||theta*|| = {length:g}",
                remedy="Raise the radius.",
            )
        return np.asarray(c) if length >= self.radius * (1 - ON_SPHERE) else None

    def _differences(self, reward: Array) -> tuple[Array, Array]:
        """Return the design and the reward less the offset, each less its mean over a prompt's responses."""
        moved = reward - self.offset
        return (
            self.design - self.design.mean(axis=1, keepdims=True),
            moved - moved.mean(axis=1, keepdims=True),
        )

    def largest_margin(self) -> float:
        """Return the largest distance over two responses of one prompt: B times that of their features, exact."""
        fixed = np.broadcast_to(self.offset, self.features.shape[:2])
        apart = (
            self.radius * np.linalg.norm(phi[:, None] - phi[None], axis=2) + np.abs(row[:, None] - row[None])
            for phi, row in zip(self.design, fixed, strict=True)
        )
        return max(float(distance.max()) for distance in apart)

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
        centred = self.design - self.design.mean(axis=1, keepdims=True)
        largest = min(float(np.linalg.norm(phi, axis=2).max()) for phi in (self.design, centred))
        return self.features.shape[2] * math.log1p(2.0 * self.radius * largest / rho)

    def descend(self, function: Callable[[Array], Derivatives], start: Array, kept: Array) -> NewtonResult:
        """Minimise within the ball, where there are pairs to keep along the directions they do not see."""
        if not len(kept):
            return minimize_ball(function, start, self.radius)
        free = blind_directions(kept)
        seen = start - free @ (free.T @ start)
        room = math.sqrt(max(0.0, self.radius**2 - float(seen @ seen)))
        if free.shape[1] == 0 or room <= ON_SPHERE * self.radius:
            return NewtonResult(seen, function(seen)[0], 0.0, 0)

        def in_free(c: Array) -> Derivatives:
            value, gradient, hessian = function(seen + free @ c)
            return value, free.T @ gradient, free.T @ hessian @ free

        found = minimize_ball(in_free, np.zeros(free.shape[1]), room)
        return NewtonResult(seen + free @ found.x, found.value, found.residual, found.iterations)

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        given = {name: "given" for name in ("metric", "centre") if getattr(self, name) is not None}
        return {"name": "LinearBall", "radius": self.radius, "dimension": int(self.features.shape[2]), **given}


def _check_metric(metric: Array) -> Array:
    if not np.allclose(metric, metric.T, rtol=1e-12, atol=0.0):
        raise InvalidArgument("metric", expected="a symmetric matrix", got="another", remedy="Pass (M + M.T) / 2.")
    try:
        np.linalg.cholesky(metric)
    except np.linalg.LinAlgError as error:
        raise InvalidArgument(
            "metric",
            expected="a positive definite matrix",
            got=f"least eigenvalue {np.linalg.eigvalsh(metric)[0]:.2g}",
            remedy="Add a small multiple of the identity: along a direction of no length the class has no bound.",
        ) from error
    return metric
