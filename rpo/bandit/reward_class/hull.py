"""All mixtures of finitely many reward tables: the worst case over an ensemble, policy by policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import nnls

from rpo.bandit.reward_class.linear import Shared
from rpo.bandit.solver.newton import Derivatives, NewtonResult, minimize_simplex
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

MEMBER = 1e-9  # how near a table must be, relative to the largest reward


@dataclass(frozen=True, eq=False)
class Hull(Shared):
    r"""All mixtures $\sum_m w_m r_m$ of M reward tables; one mixture counts for all prompts.

    rewards: (M, X, A). The least of $\langle\pi, r\rangle$ over it is that of its worst member, so the maximin is
    robust to the ensemble policy by policy; the adversary's reward may mix several members. A constant a prompt that a
    member adds counts for nothing in `solve`, which holds every policy against pi_base. Raises InvalidArgument.
    Source: Chakraborty et al. 2024 (arXiv 2402.08925), max-min RLHF.
    """

    rewards: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", checks.finite("rewards", self.rewards, shape=(None, None, None)))
        if not len(self.rewards):
            raise InvalidArgument("rewards", expected="at least one reward", got="none", remedy="Pass a member.")

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse members of other prompts and responses."""
        checks.has_shape("reward_class.rewards", self.rewards, (None, *shape))

    @cached_property
    def design(self) -> Array:
        """The members, (X, A, M)."""
        return np.ascontiguousarray(np.moveaxis(self.rewards, 0, 2))

    @property
    def linear_in(self) -> Array:
        """The members less the first, (X, A, M - 1)."""
        return self.design[:, :, 1:] - self.design[:, :, :1]

    def variables(self, entries: tuple[Any, Any]) -> tuple[Any, list[Any], Callable[[tuple[int, int]], Array]]:
        """Return the members' rewards times weights that sum to one."""
        import cvxpy

        w = cvxpy.Variable(len(self.rewards), nonneg=True)

        def read(shape: tuple[int, int]) -> Array:
            kept = np.maximum(w.value, 0.0)
            return self.table(kept / kept.sum())

        return self.design[entries] @ w, [cvxpy.sum(w) == 1], read

    def support(self, g: Any, entries: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        """Return the largest product of g with a member."""
        import cvxpy

        return cvxpy.max(self.design[entries].T @ g), []

    def support_gap(self, g: Array, reward: Array) -> float:
        """Return S_R(g) - <g, r>, the largest product of g with a member less r."""
        return max(0.0, float((g * (self.rewards - reward)).sum(axis=(1, 2)).max()))

    def weights(self, reward: Array) -> Array:
        """Return w (M,), non-negative and of sum one, whose mixture is a member's own table, or near another table."""
        scale = max(float(np.abs(self.rewards).max(initial=0.0)), 1e-300)
        flat = self.rewards.reshape(len(self.rewards), -1).T / scale
        found, _ = nnls(np.vstack([flat, np.ones(len(self.rewards))]), np.append(reward.ravel() / scale, 1.0))
        return np.asarray(found / found.sum()) if found.sum() > 0 else np.full(found.size, 1.0 / found.size)

    coordinates = weights

    def contains(self, reward: Array) -> bool:
        """Return whether some mixture gives this table, up to rounding."""
        return bool(np.allclose(self.table(self.weights(reward)), reward, atol=MEMBER * (1 + np.abs(reward).max())))

    def contains_differences(self, reward: Array) -> bool:
        """Return whether some mixture gives the differences of `reward` within every prompt."""
        centred = Hull(self.rewards - self.rewards.mean(axis=2, keepdims=True))
        return centred.contains(reward - reward.mean(axis=1, keepdims=True))

    def outer_normal(self, reward: Array) -> None:
        """Return None at a member: coverage is that of the class's interior, never smaller than of its faces' cones.

        Raises InvalidArgument where no mixture has the differences of `reward`.
        """
        if not self.contains_differences(reward):
            raise InvalidArgument(
                "reward_class",
                expected="members of which some mixture has the differences of r* within every prompt",
                got=f"{len(self.rewards)} members without such a mixture",
                remedy="Add members, or pass boundary=False for the coverage of their differences alone.",
            )

    def project(self, reward: Array) -> Array:
        """Return the nearest mixture."""
        flat = self.rewards.reshape(len(self.rewards), -1).T

        def distance(w: Array) -> Derivatives:
            miss = flat @ w - reward.ravel()
            return 0.5 * float(miss @ miss), flat.T @ miss, flat.T @ flat

        return self.table(minimize_simplex(distance, self.weights(reward)).x)

    def largest_margin(self) -> float:
        """Return the largest of the members' margins, exact: a mixture's is none larger."""
        return float((self.rewards.max(axis=2) - self.rewards.min(axis=2)).max(initial=0.0))

    def log_covering(self, *, prompts: int, arms: int, radius: float) -> float:
        r"""Return the log of a sup-norm covering number at this radius: $(M-1) \log(1 + 4 L / \epsilon)$.

        Weights sum to one, so members may be moved by one common table: with the middle of the least and the largest
        member of each entry, $|r_w - r_{w'}| \le L\|w-w'\|_1$, $L$ half the largest distance of two members in an
        entry. Volumes are compared as for `LinearBall`, in the $\ell_1$ norm of the M - 1 dimensions of weights, in
        which every weight is within 2 of the first.
        """
        apart = 0.5 * float((self.rewards.max(axis=0) - self.rewards.min(axis=0)).max(initial=0.0))
        return (len(self.rewards) - 1) * math.log1p(4.0 * apart / checks.positive("radius", radius))

    def descend(self, function: Callable[[Array], Derivatives], start: Array, kept: Array) -> NewtonResult:
        """Minimise over the weights."""
        return minimize_simplex(function, start, kept)

    def describe(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {"name": "Hull", "members": len(self.rewards)}
