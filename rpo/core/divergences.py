"""f-divergences that hold a policy to its reference: the link between probability ratios and implicit rewards.

u = pi / pi_ref is a ratio and h = log u, in nats. Every f is normalised to f(1) = f'(1) = 0, so that adding a
constant to f' or a multiple of u - 1 to f changes nothing. Source: Wang et al. 2024 (arXiv 2309.16240), Table 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import wrightomega, xlogy

from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


class Divergence(ABC):
    """D_f(pi || pi_ref) = E_{pi_ref}[f(u)], f convex.

    interior: whether f'(0) = -inf, so that every optimum gives every response mass and `link` can be inverted; a
    loss on policies needs it. top: the least upper bound of f'.
    """

    interior: bool = True

    @property
    def top(self) -> float:
        """sup f', the largest value a link can reach."""
        return math.inf

    @abstractmethod
    def link(self, h: Any) -> Any:
        """Return f'(exp(h)): the implicit reward over beta, up to a constant a prompt. Any backend."""

    @abstractmethod
    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return u = (f')^{-1}(s) and du/ds, NumPy, for s < top."""

    @abstractmethod
    def value(self, u: Array) -> Array:
        """Return f(u), NumPy, u >= 0."""


@dataclass(frozen=True)
class KL(Divergence):
    """KL(pi || pi_ref), the reverse KL of DPO: f(u) = u log u - u + 1, link h."""

    def link(self, h: Any) -> Any:
        """Return h."""
        return h

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return exp(s), twice."""
        u = np.exp(s)
        return u, u

    def value(self, u: Array) -> Array:
        """Return u log u - u + 1."""
        return np.asarray(xlogy(u, u) - u + 1.0)


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(pi_ref || pi): f(u) = u - 1 - log u, link 1 - exp(-h)."""

    @property
    def top(self) -> float:
        """1, reached by no ratio."""
        return 1.0

    def link(self, h: Any) -> Any:
        """Return 1 - exp(-h)."""
        return 1.0 - numerics.exp(-h)

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return 1 / (1 - s) and its square."""
        u = 1.0 / (1.0 - s)
        return u, u * u

    def value(self, u: Array) -> Array:
        """Return u - 1 - log u; infinite at 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(u - 1.0 - np.log(u))


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Twice the Jensen-Shannon divergence: f(u) = u log u - (1 + u) log((1 + u) / 2), link log(2u / (1 + u))."""

    @property
    def top(self) -> float:
        """log 2, reached by no ratio."""
        return math.log(2.0)

    def link(self, h: Any) -> Any:
        """Return log 2 - softplus(-h)."""
        return math.log(2.0) - numerics.softplus(-h)

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return 1 / (2 exp(-s) - 1) and u (1 + u)."""
        u = 1.0 / (2.0 * np.exp(-s) - 1.0)
        return u, u * (1.0 + u)

    def value(self, u: Array) -> Array:
        """Return u log u - (1 + u) log((1 + u) / 2)."""
        return np.asarray(xlogy(u, u) - (1.0 + u) * np.log((1.0 + u) / 2.0))


@dataclass(frozen=True)
class Alpha(Divergence):
    """Alpha-divergence: f'(u) = (u^(alpha - 1) - 1) / (alpha - 1), 0 < alpha < 1.

    alpha as TRL's f_alpha_divergence_coef, one minus that of Wang et al. 2024: KL as alpha -> 1, the forward KL as
    alpha -> 0. Raises InvalidArgument.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.fraction("alpha", self.alpha))

    @property
    def top(self) -> float:
        """1 / (1 - alpha), reached by no ratio."""
        return 1.0 / (1.0 - self.alpha)

    def link(self, h: Any) -> Any:
        """Return (exp((alpha - 1) h) - 1) / (alpha - 1)."""
        power = self.alpha - 1.0
        return (numerics.exp(power * h) - 1.0) / power

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return (1 + (alpha - 1) s)^(1 / (alpha - 1)) and u^(2 - alpha)."""
        power = self.alpha - 1.0
        u = (1.0 + power * s) ** (1.0 / power)
        return u, u ** (2.0 - self.alpha)

    def value(self, u: Array) -> Array:
        """Return (u^alpha - alpha u + alpha - 1) / (alpha (alpha - 1))."""
        a = self.alpha
        return np.asarray((u**a - a * u + a - 1.0) / (a * (a - 1.0)))


@dataclass(frozen=True)
class ChiSquaredKL(Divergence):
    """KL plus half the chi-squared divergence, chi-PO's: link exp(h) - 1 + h.

    Source: Huang et al. 2024 (arXiv 2407.13399), Eq. (4), up to the constant 1.
    """

    def link(self, h: Any) -> Any:
        """Return exp(h) - 1 + h."""
        return numerics.exp(h) - 1.0 + h

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return Lambert's W(exp(s + 1)) and u / (1 + u)."""
        u = np.asarray(wrightomega(s + 1.0), dtype=np.float64)
        return u, u / (1.0 + u)

    def value(self, u: Array) -> Array:
        """Return u log u - u + 1 + (u - 1)^2 / 2."""
        return np.asarray(xlogy(u, u) - u + 1.0 + (u - 1.0) ** 2 / 2.0)


@dataclass(frozen=True)
class ChiSquared(Divergence):
    """Half the chi-squared divergence: f(u) = (u - 1)^2 / 2, link u - 1; its optima give some responses no mass."""

    interior = False

    def link(self, h: Any) -> Any:
        """Return exp(h) - 1."""
        return numerics.exp(h) - 1.0

    def ratio(self, s: Array) -> tuple[Array, Array]:
        """Return max(1 + s, 0) and whether it is positive."""
        return np.maximum(1.0 + s, 0.0), (s > -1.0).astype(np.float64)

    def value(self, u: Array) -> Array:
        """Return (u - 1)^2 / 2."""
        return np.asarray((u - 1.0) ** 2 / 2.0)


def require_interior(divergence: Any) -> Divergence:
    """Return `divergence`, or refuse what is none, or one whose link cannot be inverted."""
    if not isinstance(divergence, Divergence):
        raise InvalidArgument(
            "divergence",
            expected="a divergence of rpo.core.divergences, such as JensenShannon()",
            got=f"{divergence!r} of type {type(divergence).__name__}",
            remedy="Pass an instance, not its name.",
        )
    if not divergence.interior:
        raise InvalidArgument(
            "divergence",
            expected="a divergence with f'(0) = -inf",
            got=repr(divergence),
            remedy="Its optimal policies have zeros, where log-ratios say nothing of rewards; use ChiSquaredKL().",
        )
    return divergence
