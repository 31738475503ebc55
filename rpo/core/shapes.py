"""Shapes: from the implicit rewards of a group's responses to its loss.

Each is written once, in `numerics`, and runs on NumPy, torch, jets and, where it is convex, cvxpy. Convexity and
invariance are declared and held by tests: solvers and the documentation rely on them.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.core import numerics
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.jets import Jet
from rpo.core.shifts import Shift


class Shape(ABC):
    """Values of a link -> one loss per group, (N,).

    convex: in the implicit rewards. invariant: the same when a constant is added to all rewards of a group, so that
    responses in no group feel no pull. falls: whether it never rises when a constant is added to all rewards of a
    group. compares: whether rewards are read at all. pairs, unpaired, lists: whether it takes K = 2; a response alone,
    K = 1, by its label or its score; any K >= 2. unit_scores: whether scores must lie in [0, 1]. piecewise_linear: a
    sum of such losses takes its least value, if it has one. smooth: whether it has no corner. concordant: whether its
    third derivative along any direction is at most the second times the direction's range (docs/theory.md, section 13).
    shift: what is subtracted from the values, as the batches before say; None for nothing.
    """

    convex: bool = False
    invariant: bool = False
    compares: bool = True
    pairs: bool = True
    unpaired: bool = False
    lists: bool = False
    unit_scores: bool = False
    piecewise_linear: bool = False
    concordant: bool = False
    shift: Shift | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Names of the columns read beside the link's."""
        return frozenset()

    @property
    def falls(self) -> bool:
        """Whether it never rises when all rewards of a group rise together."""
        return self.invariant

    @property
    def smooth(self) -> bool:
        """Whether it has no corner."""
        return True

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """Return the pairs of ranks (i, j) that decide whether a minimiser exists, each with the groups it is of.

        Far out along a direction v of rewards the loss of a group never falls, and grows unless v_i >= v_j for every
        arrow of it; it is strictly convex in the differences along arrows. The groups, (N,) bool, or True for all; None
        where that was not worked out. docs/theory.md, section 13.
        """
        return None

    @abstractmethod
    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,); values: K vectors (N,), rewards over beta."""


class MarginShape(Shape):
    """A loss of one margin, z = r(chosen) - rival * r(rejected) - offset, in reward units.

    slopes: its derivative towards z = -inf and +inf, which decide whether a minimiser exists; None where they were not
    worked out: then no solver takes it. reversal: c where the loss at -z is the loss at z plus c z, else None.
    """

    rival: float = 1.0

    @property
    def reversal(self) -> float | None:
        """The c above, by which a comparison counted both ways costs one evaluation."""
        return None

    @property
    def slopes(self) -> tuple[float, float] | None:
        """Derivatives towards -inf and +inf; None where not declared."""
        return None

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """From the chosen response to the rejected one, and back where the loss moves on both sides of a margin."""
        if self.slopes is None:
            return None
        return {(0, 1): True} if self.slopes[1] == 0 else {(0, 1): True, (1, 0): True}

    @property
    def smooth(self) -> bool:
        """Whether nothing smooth is needed to approach it."""
        return self.smoothed(1.0) is None

    @property
    def invariant(self) -> bool:  # type: ignore[override]
        """Whether the two rewards enter by their difference alone."""
        return self.rival == 1.0

    @property
    def falls(self) -> bool:
        """Whether the rejected reward weighs no more than the chosen one, in a loss that falls in the margin."""
        return self.invariant or (self.rival < 1.0 and self.slopes is not None and self.slopes[1] <= 0)

    def offset(self, columns: Columns) -> Any:
        """Return what the chosen response must win by, (N,) or (); None for nothing."""
        return None

    @abstractmethod
    def of_margin(self, z: Any) -> Any:
        """Return the loss at margins z, elementwise, in any backend."""

    def smoothed(self, width: float) -> MarginShape | None:
        """Return a smooth shape above this one that tends to it with `width`; None where it has no kink itself."""
        return None

    def dual(self, p: Any) -> Any:
        """Return c(p) with loss(z) = max over p of c(p) - p z, a concave cvxpy expression; None where not worked out.

        p: within minus the slopes.
        """
        return None

    def fenchel_young(self, p: Array, z: Array) -> Array:
        """Return loss(z) + p z - c(p) >= 0, zero iff -p is a slope of the loss at z; for shapes with a `dual`."""
        raise NotImplementedError(f"{type(self).__name__} has no dual")

    def derivatives(self, margins: Any, beta: float) -> tuple[Any, Any]:
        """Return the first and second derivative of the loss at z = beta * margins in the margins, of their shape."""
        shape = np.shape(margins)
        (variable,) = Jet.variables([np.ravel(margins)])
        jet = self.of_margin(beta * variable)
        curvature = np.broadcast_to(jet.hessian, (1, 1, variable.value.size))
        return jet.gradient[0].reshape(shape), curvature.reshape(shape)

    def signed_margin(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return z of pairs, (N,)."""
        chosen, rejected = values
        # The difference first: at beta = 1 and for equal responses it is exact.
        z = beta * (chosen - (rejected if self.rival == 1.0 else self.rival * rejected))
        offset = self.offset(columns)
        return z if offset is None else z - offset

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,) of pairs."""
        return self.of_margin(self.signed_margin(values, beta, columns))


@dataclass(frozen=True, kw_only=True)
class Logistic(MarginShape):
    """softplus(-z) + tilt * z: Bradley-Terry's negative log-likelihood, and its versions under label noise.

    tilt: eps for conservative labels, -eps / (1 - 2 eps) for the unbiased correction. margin: subtracted from z.
    length_weight: added to z per token by which the chosen response is longer. score_weight: weight of the log of the
    difference between the two scores, subtracted from z.
    """

    tilt: float = 0.0
    margin: float = 0.0
    length_weight: float = 0.0
    score_weight: float = 0.0
    rival: float = 1.0
    convex = True
    concordant = True

    @property
    def needs(self) -> frozenset[str]:
        """Lengths and scores, where they are weighed."""
        asked = (("lengths", self.length_weight), ("scores", self.score_weight))
        return frozenset(name for name, weight in asked if weight)

    def offset(self, columns: Columns) -> Any:
        """Return margin - length_weight * (difference of lengths) + score_weight * log(difference of scores)."""
        offset: Any = self.margin
        if self.length_weight:
            chosen, rejected = columns.lengths or ()
            offset = offset - self.length_weight * (chosen - rejected)
        if self.score_weight:
            chosen, rejected = columns.scores or ()
            offset = offset + self.score_weight * numerics.log(chosen - rejected)
        return None if isinstance(offset, float) and offset == 0 else offset

    def of_margin(self, z: Any) -> Any:
        """Return softplus(-z) + tilt * z."""
        loss = numerics.softplus(-z)
        return loss + self.tilt * z if self.tilt else loss

    @property
    def slopes(self) -> tuple[float, float]:
        """tilt - 1 and tilt."""
        return self.tilt - 1.0, self.tilt

    def derivatives(self, margins: Any, beta: float) -> tuple[Any, Any]:
        """Return the derivatives in closed form: solvers spend their time here."""
        losing = numerics.sigmoid(-beta * margins)
        slope, curvature = -beta * losing, losing * (1.0 - losing)
        curvature *= beta**2
        return (slope + beta * self.tilt if self.tilt else slope), curvature

    @property
    def reversal(self) -> float:
        """1 - 2 tilt, as softplus(z) = softplus(-z) + z."""
        return 1.0 - 2.0 * self.tilt

    def dual(self, p: Any) -> Any:
        """Return the entropy of (p + tilt, 1 - p - tilt)."""
        entr, q = sys.modules["cvxpy"].entr, p + self.tilt if self.tilt else p
        return entr(q) + entr(1 - q)

    def fenchel_young(self, p: Array, z: Array) -> Array:
        """Return the KL of p + tilt from sigma(-z), as coins."""
        q = np.clip(p + self.tilt, 0.0, 1.0)
        return np.asarray(
            numerics.kl_divergence(
                np.stack([q, 1.0 - q], axis=-1), np.stack([numerics.sigmoid(-z), numerics.sigmoid(z)], axis=-1)
            )
        )

    @property
    def is_likelihood(self) -> bool:
        """Whether this is Bradley-Terry's negative log-likelihood itself."""
        return not (self.tilt or self.margin or self.length_weight or self.score_weight) and self.rival == 1.0


@dataclass(frozen=True, kw_only=True)
class Hinge(MarginShape):
    """max(0, target - z)."""

    target: float = 1.0
    convex = True
    piecewise_linear = True

    def of_margin(self, z: Any) -> Any:
        """Return max(0, target - z)."""
        return numerics.relu(self.target - z)

    @property
    def slopes(self) -> tuple[float, float]:
        """-1 and 0."""
        return -1.0, 0.0

    def smoothed(self, width: float) -> MarginShape:
        """Return w * softplus((target - z) / w), at most w log 2 above; w = width * target."""
        return SmoothHinge(target=self.target, width=width * self.target)

    def dual(self, p: Any) -> Any:
        """Return p * target, on [0, 1]."""
        return p * self.target

    def fenchel_young(self, p: Array, z: Array) -> Array:
        """Return max(0, t) - p t at t = target - z."""
        t = self.target - z
        return np.maximum(np.maximum(t, 0.0) - p * t, 0.0)


@dataclass(frozen=True, kw_only=True)
class SmoothHinge(MarginShape):
    """width * softplus((target - z) / width): a hinge with a rounded corner, by which solvers approach it."""

    target: float
    width: float
    convex = True

    def of_margin(self, z: Any) -> Any:
        """Return width * softplus((target - z) / width)."""
        return self.width * numerics.softplus((self.target - z) / self.width)

    @property
    def slopes(self) -> tuple[float, float]:
        """-1 and 0."""
        return -1.0, 0.0


@dataclass(frozen=True, kw_only=True)
class Square(MarginShape):
    """(z - target)^2."""

    target: float
    convex = True
    concordant = True

    def of_margin(self, z: Any) -> Any:
        """Return (z - target)^2."""
        return numerics.square(z - self.target)

    @property
    def slopes(self) -> tuple[float, float]:
        """Infinite on both sides."""
        return -math.inf, math.inf

    @property
    def reversal(self) -> float:
        """4 target."""
        return 4.0 * self.target

    def dual(self, p: Any) -> Any:
        """Return p target - p^2 / 4."""
        return p * self.target - numerics.square(p) / 4.0

    def fenchel_young(self, p: Array, z: Array) -> Array:
        """Return (z - target + p / 2)^2."""
        return np.asarray((z - self.target + p / 2.0) ** 2)


@dataclass(frozen=True, kw_only=True)
class ReverseLabels(MarginShape):
    """KL of (sigma(z), sigma(-z)) from the labels (1 - epsilon, epsilon): EXO on pairs; bounded, not convex."""

    epsilon: float

    def of_margin(self, z: Any) -> Any:
        """Return sigma(z) (log sigma(z) - log(1 - eps)) + sigma(-z) (log sigma(-z) - log eps)."""
        win, lose = numerics.sigmoid(z), numerics.sigmoid(-z)
        return win * (-numerics.softplus(-z) - math.log1p(-self.epsilon)) + lose * (
            -numerics.softplus(z) - math.log(self.epsilon)
        )


@dataclass(frozen=True, kw_only=True)
class LogisticExponential(MarginShape):
    """softplus(-z) and exp(-z), blended by sigma(z / tau): DiscoPOP's; not convex."""

    tau: float

    def of_margin(self, z: Any) -> Any:
        """Return (1 - sigma(z / tau)) softplus(-z) + sigma(z / tau) exp(-z)."""
        blend = numerics.sigmoid(z / self.tau)
        return numerics.softplus(-z) * (1.0 - blend) + numerics.exp(-z) * blend


@dataclass(frozen=True)
class Pointwise(Shape):
    """chosen(r) + rejected(r): each response against zero, not against the other; of one alone, what its label says.

    chosen, rejected: functions of a reward, written in `rpo.core.numerics`. both_convex: whether both are.
    """

    unpaired = True

    chosen: Callable[[Any], Any]
    rejected: Callable[[Any], Any]
    both_convex: bool = False

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether both functions are."""
        return self.both_convex

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return chosen(beta * value) + rejected(beta * value)."""
        if len(values) == 1:
            reward, desirable = beta * values[0], columns.labels
            return self.chosen(reward) * desirable + self.rejected(reward) * (1.0 - desirable)
        return self.chosen(beta * values[0]) + self.rejected(beta * values[1])


class AbsoluteOdds(Pointwise):
    """softplus(-r_w) + softplus(r_l): of log-odds it is -log p_w - log(1 - p_l), ASFT's, convex in both."""

    def __init__(self) -> None:
        super().__init__(lambda r: numerics.softplus(-r), numerics.softplus, both_convex=True)


@dataclass(frozen=True, kw_only=True)
class Shifted(Pointwise):
    """chosen(r) and rejected(r) of rewards above a shift; the mean over a group, so a pair is its two responses."""

    shift: Shift

    @property
    def needs(self) -> frozenset[str]:
        """The shift, and what it is estimated from."""
        return frozenset({"shift"}) | self.shift.needs

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,) of responses or pairs."""
        above = tuple(value - columns.shift for value in values)
        return super().__call__(above, beta, columns) / len(values)


@dataclass(frozen=True, kw_only=True)
class OnPolicy(Shape):
    """Another shape's loss times how likely the policy is to say both responses itself, a constant to the gradient.

    of: the shape. The weight is exp of the sum of the two likenesses (`Columns`); capped: no more than 1. Likenesses
    follow the policy, so that what training approaches is a fixed point, not a minimum. Source: Zhou et al. 2024
    (arXiv 2406.11827), Eq. 2, and its code, which caps.
    """

    of: Shape
    capped: bool = True

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """As the shape, at given likenesses."""
        return self.of.convex

    @property
    def invariant(self) -> bool:  # type: ignore[override]
        """As the shape."""
        return self.of.invariant

    @property
    def needs(self) -> frozenset[str]:
        """The likenesses, beside what the shape reads."""
        return self.of.needs | {"likeness"}

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the weighted losses (N,) of pairs."""
        if columns.likeness is None:
            raise InvalidArgument(
                "chosen_likeness",
                expected="the likeness of each response under the policy",
                got=None,
                remedy="Pass both likenesses, or train by PreferenceTrainer.",
            )
        chosen, rejected = columns.likeness
        total = chosen + rejected
        weight = numerics.exp(-numerics.relu(-total) if self.capped else total)
        return weight * self.of(values, beta, columns)


class ChosenDown(Shape):
    """sigma(r_w) + sigma(r_l - r_w): both fall, the rejected response further; APO-down's."""

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,) of pairs."""
        chosen, rejected = values
        return numerics.sigmoid(beta * chosen) + numerics.sigmoid(beta * (rejected - chosen))


@dataclass(frozen=True, kw_only=True)
class CenteredLogistic(Shape):
    """softplus(-(r_w - r_l)) + coefficient * (r_w + r_l)^2: a reward model's, whose rewards are kept around zero."""

    coefficient: float = 0.0
    convex = True

    @property
    def invariant(self) -> bool:  # type: ignore[override]
        """Whether nothing is centered."""
        return not self.coefficient

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,) of pairs."""
        chosen, rejected = (beta * value for value in values)
        loss = numerics.softplus(-(chosen - rejected))
        # At 0 centering is left out: 0 * inf would be NaN.
        return loss + self.coefficient * self.centering(chosen, rejected) if self.coefficient else loss

    @staticmethod
    def centering(chosen: Any, rejected: Any) -> Any:
        """Return (r_w + r_l)^2."""
        return numerics.square(chosen + rejected)


class NoComparison(Shape):
    """Zero: an objective that is its anchor alone."""

    convex = True
    invariant = True
    compares = False

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return zeros (N,)."""
        return 0.0 * values[0]
