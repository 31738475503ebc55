"""f-divergences that hold a policy to its reference: the link between probability ratios and implicit rewards.

u = pi / pi_ref is a ratio and h = log u, in nats. Every f is normalised to f(1) = f'(1) = 0, so that adding a
constant to f' or a multiple of u - 1 to f changes nothing. Source: Wang et al. 2024 (arXiv 2309.16240), Table 1.
What a solver asks of a divergence, `reply` and what follows, is proved in docs/theory.md, section 11.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.special import kl_div, logsumexp, rel_entr, wrightomega, xlogy

from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.jets import Jet
from rpo.core.replies import Reply, normaliser

# Nats beyond which a sampled log-ratio counts no more: exp of it, squared, has its place in float32 with room to spare.
MOST_LOG_RATIO = 20.0


class Divergence(ABC):
    """D_f(pi || pi_ref) = E_{pi_ref}[f(u)], f convex.

    interior: whether f'(0) = -inf, so that every optimum gives every response mass and `link` can be inverted; a
    loss on policies needs it. top: the least upper bound of f'. Where pi_ref is asked for below as log_reference
    (..., A), any positive measure will do, -inf where it has no mass; a reward r comes as scaled = r / beta.
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

    @abstractmethod
    def dual(self, h: Any) -> Any:
        """Return u f'(u) - f(u) at u = exp(h), which is f*(f'(u)). Any backend."""

    @abstractmethod
    def conjugate(self, s: Any) -> Any:
        """Return f*(s) = max over u >= 0 of s u - f(u), a convex cvxpy expression."""

    @abstractmethod
    def program(self, policy: Any, reference: Array) -> Any:
        """Return E_ref[f(policy / reference)] summed over all entries, a convex cvxpy expression; both (n,)."""

    @abstractmethod
    def modulus(self, least: Any, total: Any) -> Any:
        """Return m with D_f(. || ref) m-strongly convex in the l1 norm; of the measure's least mass, and its total."""

    def log_ratio(self, s: Array) -> Array:
        """Return h = log u at s = f'(u)."""
        with np.errstate(divide="ignore"):
            return np.log(self.ratio(s)[0])

    def bregman(self, v: Array, s: Array) -> Array:
        """Return f(v) + f*(s) - v s >= 0, entry by entry: zero iff v = (f')^{-1}(s); f' interior."""
        u, _ = self.ratio(s)
        return np.maximum(self.value(v) - self.value(u) - s * (v - u), 0.0)

    def shift(self, scaled: Array, log_reference: Array) -> Array:
        """Return Z (...,) with sum_a ref_a (f')^{-1}(scaled_a - Z) = 1."""
        return normaliser(self.link, self.ratio, scaled, log_reference)[1]

    def reply(self, scaled: Array, log_reference: Array) -> Reply:
        """Return the policy that maximises <pi, r> - beta D_f(pi || ref): ref_a (f')^{-1}(scaled_a - Z)."""
        s, _ = normaliser(self.link, self.ratio, scaled, log_reference)
        logps = log_reference + self.log_ratio(s)
        logps = logps - logsumexp(logps, axis=-1, keepdims=True)
        slope = np.exp(log_reference) * self.ratio(s)[1]
        return Reply(logps, np.exp(logps), s, slope, slope.sum(axis=-1, keepdims=True))

    def base_value(self, base: Array, logps: Array, log_reference: Array, s: Array | None = None) -> Array:
        """Return E_base[f'(u)] - E_ref[u f'(u) - f(u)], (...,): minus f's Bregman divergence of pi from the base.

        Up to a constant. pi: as logps. s: f'(u), as a reply has it; by default `link` of the ratio.
        """
        inside = np.isfinite(log_reference)
        h = np.where(inside, logps - np.where(inside, log_reference, 0.0), 0.0)
        slope = self.link(h) if s is None else s
        return np.asarray(numerics.mean_under(base, slope) - numerics.mean_under(np.exp(log_reference), self.dual(h)))

    def sampled_base_value(self, h: Any, base: Any, reference: Any) -> Any:
        """Return `base_value`, (N,), from m responses with weights: h (N, m) and both weights (m,); any backend.

        base, reference: of means under pi_base and pi_ref; where responses were drawn from pi_ref their weights are
        1 over their number. For a fixed policy that is without bias but for the clip: h counts up to MOST_LOG_RATIO. A
        policy trained on the same draws is held at them alone: what was not drawn is not penalised for its mass.
        """
        h = numerics.clip(h, -MOST_LOG_RATIO, MOST_LOG_RATIO)
        return (self.link(h) * base - self.dual(h) * reference).sum(-1)

    def base_derivatives(self, base: Array, logps: Array, log_reference: Array) -> tuple[float, Array, Array]:
        """Return `base_value` of one prompt, and its first and second derivative in each log pi_a; all (A,), finite."""
        (h,) = Jet.variables([logps - log_reference])
        value = base * self.link(h) - np.exp(log_reference) * self.dual(h)
        return float(value.value.sum()), value.gradient[0], np.broadcast_to(value.hessian, (1, 1, logps.size))[0, 0]

    def from_reference(self, policy: Array, log_reference: Array) -> Array:
        """Return D_f(policy || ref), (...,)."""
        reference = np.exp(log_reference)
        inside = reference > 0
        u = np.divide(policy, reference, out=np.ones(np.shape(policy)), where=inside)
        return np.asarray(numerics.mean_under(reference, self.value(u)))

    def distance(self, policy: Array, reply: Reply, log_reference: Array) -> Array:
        """Return the Fenchel-Young loss of `policy` at the reply's rewards, over beta, (...,): >= 0, 0 at the reply."""
        reference = np.exp(log_reference)
        inside = reference > 0
        v = np.divide(policy, reference, out=np.ones(np.shape(policy)), where=inside)
        return np.asarray(numerics.mean_under(reference, self.bregman(v, np.where(inside, reply.s, 0.0))))

    def reply_program(self, scaled: Any, log_reference: Array) -> tuple[Any, Any]:
        """Return what `base_value` adds to scaled, (A,), before the mean under the base, and what it takes off.

        The latter is max over pi of <pi, scaled> - D_f(pi || ref), a convex cvxpy expression of the affine `scaled`.
        """
        z = sys.modules["cvxpy"].Variable()
        return 0.0, z + np.exp(log_reference) @ self.conjugate(scaled - z)


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

    def dual(self, h: Any) -> Any:
        """Return u - 1, whose mean over the reference is 0."""
        return numerics.exp(h) - 1.0

    def conjugate(self, s: Any) -> Any:
        """Return exp(s) - 1."""
        return numerics.exp(s) - 1.0

    def program(self, policy: Any, reference: Array) -> Any:
        """Return the relative entropy; `policy` sums to one."""
        return sys.modules["cvxpy"].sum(sys.modules["cvxpy"].rel_entr(policy, reference))

    def modulus(self, least: Any, total: Any) -> Any:
        """Return 1 (Pinsker)."""
        return np.ones(np.shape(least))

    def shift(self, scaled: Array, log_reference: Array) -> Array:
        """Return log sum_a ref_a exp(scaled_a)."""
        return np.asarray(logsumexp(log_reference + scaled, axis=-1))

    def reply(self, scaled: Array, log_reference: Array) -> Reply:
        """Return the Gibbs policy, in closed form."""
        logps = np.asarray(numerics.log_softmax(log_reference + scaled))
        policy = np.exp(logps)
        return Reply(logps, policy, scaled, policy, 1.0)

    def base_value(self, base: Array, logps: Array, log_reference: Array, s: Array | None = None) -> Array:
        """Return E_base[log pi], the SFT term: as above up to E_base[log ref], which no policy moves."""
        return np.asarray(numerics.mean_under(base, logps))

    def base_derivatives(self, base: Array, logps: Array, log_reference: Array) -> tuple[float, Array, Array]:
        """Return E_base[log pi], the base and zeros."""
        return float(base @ logps), base, np.zeros(base.size)

    def from_reference(self, policy: Array, log_reference: Array) -> Array:
        """Return KL(policy || ref), (...,)."""
        return np.asarray(rel_entr(policy, np.exp(log_reference)).sum(axis=-1))

    def distance(self, policy: Array, reply: Reply, log_reference: Array) -> Array:
        """Return KL(policy || reply), (...,)."""
        return np.asarray(numerics.kl_divergence(policy, reply.policy))

    def reply_program(self, scaled: Any, log_reference: Array) -> tuple[Any, Any]:
        """Return log ref, as the SFT term has it, and a log-sum-exp."""
        return log_reference, sys.modules["cvxpy"].log_sum_exp(scaled + log_reference)


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

    def dual(self, h: Any) -> Any:
        """Return log u."""
        return h

    def conjugate(self, s: Any) -> Any:
        """Return -log(1 - s)."""
        return -sys.modules["cvxpy"].log(1.0 - s)

    def program(self, policy: Any, reference: Array) -> Any:
        """Return KL(reference || policy), plus the difference of their sums."""
        return sys.modules["cvxpy"].sum(sys.modules["cvxpy"].kl_div(reference, policy))

    def modulus(self, least: Any, total: Any) -> Any:
        """Return the least mass."""
        return np.asarray(least)

    def log_ratio(self, s: Array) -> Array:
        """Return -log(1 - s)."""
        return np.asarray(-np.log1p(-s))

    def bregman(self, v: Array, s: Array) -> Array:
        """Return x - 1 - log x at x = v / u = v (1 - s)."""
        return np.maximum(self.value(v * (1.0 - s)), 0.0)


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

    def dual(self, h: Any) -> Any:
        """Return log((1 + u) / 2)."""
        return numerics.softplus(h) - math.log(2.0)

    def conjugate(self, s: Any) -> Any:
        """Return -log(2 - exp(s))."""
        return -sys.modules["cvxpy"].log(2.0 - sys.modules["cvxpy"].exp(s))

    def program(self, policy: Any, reference: Array) -> Any:
        """Return the two relative entropies to the middle, u log(u / m) + log(1 / m) at m = (1 + u) / 2."""
        cvxpy, middle = sys.modules["cvxpy"], (policy + reference) / 2.0
        return cvxpy.sum(cvxpy.rel_entr(policy, middle) + cvxpy.rel_entr(reference, middle))

    def modulus(self, least: Any, total: Any) -> Any:
        """Return 1 / (1 + 1 / least mass)."""
        return np.asarray(1.0 / (1.0 + 1.0 / least))

    def log_ratio(self, s: Array) -> Array:
        """Return s - log(2 - exp(s))."""
        return np.asarray(s - np.log(2.0 - np.exp(s)))

    def bregman(self, v: Array, s: Array) -> Array:
        """Return v log(v / u) - (1 + v) log((1 + v) / (1 + u))."""
        u, _ = self.ratio(s)
        return np.maximum(kl_div(v, u) - kl_div(1.0 + v, 1.0 + u), 0.0)


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

    def dual(self, h: Any) -> Any:
        """Return (u^alpha - 1) / alpha."""
        return (numerics.exp(self.alpha * h) - 1.0) / self.alpha

    def conjugate(self, s: Any) -> Any:
        """Return ((1 + (alpha - 1) s)^(alpha / (alpha - 1)) - 1) / alpha."""
        power = self.alpha - 1.0
        return (sys.modules["cvxpy"].power(1.0 + power * s, self.alpha / power) - 1.0) / self.alpha

    def program(self, policy: Any, reference: Array) -> Any:
        """Return E_ref[f(u)], u^alpha being concave and its factor negative."""
        a, u = self.alpha, sys.modules["cvxpy"].multiply(1.0 / reference, policy)
        return reference @ ((sys.modules["cvxpy"].power(u, a) - a * u + (a - 1.0)) / (a * (a - 1.0)))

    def modulus(self, least: Any, total: Any) -> Any:
        """Return (least mass)^(1 - alpha)."""
        return np.asarray(least ** (1.0 - self.alpha))

    def log_ratio(self, s: Array) -> Array:
        """Return log(1 + (alpha - 1) s) / (alpha - 1)."""
        power = self.alpha - 1.0
        return np.asarray(np.log1p(power * s) / power)


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

    def dual(self, h: Any) -> Any:
        """Return u - 1 + (u^2 - 1) / 2."""
        return numerics.exp(h) - 1.0 + (numerics.exp(2.0 * h) - 1.0) / 2.0

    def conjugate(self, s: Any) -> Any:
        """Return the least over t of exp(s - t) - 1 + t + t^2 / 2: of a sum, the conjugates' infimal convolution."""
        t = sys.modules["cvxpy"].Variable(s.shape)
        return numerics.exp(s - t) - 1.0 + t + numerics.square(t) / 2.0

    def program(self, policy: Any, reference: Array) -> Any:
        """Return the relative entropy plus half the chi-squared divergence."""
        return KL().program(policy, reference) + ChiSquared().program(policy, reference)

    def modulus(self, least: Any, total: Any) -> Any:
        """Return 1 + 1 / total: 2 for a reference policy."""
        return np.asarray(1.0 + 1.0 / total)

    def log_ratio(self, s: Array) -> Array:
        """Return s + 1 - u, finite where u is too small for float64."""
        return np.asarray(s + 1.0 - self.ratio(s)[0])

    def bregman(self, v: Array, s: Array) -> Array:
        """Return v log(v / u) - v + u + (v - u)^2 / 2."""
        u, _ = self.ratio(s)
        return np.maximum(kl_div(v, u), 0.0) + (v - u) ** 2 / 2.0


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

    def dual(self, h: Any) -> Any:
        """Return (u^2 - 1) / 2."""
        return (numerics.exp(2.0 * h) - 1.0) / 2.0

    def conjugate(self, s: Any) -> Any:
        """Return (max(1 + s, 0)^2 - 1) / 2."""
        return (numerics.square(numerics.relu(1.0 + s)) - 1.0) / 2.0

    def program(self, policy: Any, reference: Array) -> Any:
        """Return half the sum of (policy - reference)^2 / reference."""
        return (1.0 / reference) @ numerics.square(policy - reference) / 2.0

    def modulus(self, least: Any, total: Any) -> Any:
        """Return 1 / total."""
        return np.asarray(1.0 / total)

    def bregman(self, v: Array, s: Array) -> Array:
        """Return (v - u)^2 / 2, and for s < -1, below the slope at u = 0, v times what is missing."""
        u, _ = self.ratio(s)
        return np.asarray((v - u) ** 2 / 2.0 + v * np.maximum(-1.0 - s, 0.0))


def require_divergence(divergence: Any) -> Divergence:
    """Return `divergence`, or refuse what is none."""
    if not isinstance(divergence, Divergence):
        raise InvalidArgument(
            "divergence",
            expected="a divergence of rpo.core.divergences, such as JensenShannon()",
            got=f"{divergence!r} of type {type(divergence).__name__}",
            remedy="Pass an instance, not its name.",
        )
    return divergence


def require_interior(divergence: Any) -> Divergence:
    """Return `divergence`, or refuse what is none, or one whose link cannot be inverted."""
    if not require_divergence(divergence).interior:
        raise InvalidArgument(
            "divergence",
            expected="a divergence with f'(0) = -inf",
            got=repr(divergence),
            remedy="Its optimal policies have zeros, where log-ratios say nothing of rewards; use ChiSquaredKL(), or "
            "rpo.bandit.solve with rpo.FRPO.",
        )
    return cast(Divergence, divergence)
