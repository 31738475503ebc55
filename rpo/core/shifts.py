"""Shifts: what a loss subtracts from the values of its link, estimated from the batches before, under stop-gradient.

A number of the batch it is used on would make the loss depend on how an update is cut into micro-batches and processes.
So an update uses what the global batch of the update before said; at the first one it is zero, as at pi = pi_ref.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpo.core import checks
from rpo.core.fields import hold


class Shift(ABC):
    """An estimate made of sums over a global batch. needs: columns read beside the values themselves."""

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def totals(self, values: tuple[Any, ...], labels: Any, mismatched: Any, weights: Any) -> tuple[Any, ...]:
        """Return sums over N groups that add up over the parts of a batch, scalars of the values' backend.

        values: K vectors (N,) of the link. labels: (N,), 1 or 0, where K = 1. mismatched: (N,), the link's value of a
        response to another prompt, where `needs` names it. weights: (N,).
        """

    @abstractmethod
    def updated(self, shift: float, totals: Sequence[float]) -> float:
        """Return the shift of the next update from this update's and the sums over its global batch."""


@dataclass(frozen=True)
class MismatchedKL(Shift):
    """max(0, E[h(x, y')]), y' the response of a row with another prompt: KTO's estimate of KL(pi || pi_ref)."""

    needs = frozenset({"mismatched"})

    def totals(self, values: tuple[Any, ...], labels: Any, mismatched: Any, weights: Any) -> tuple[Any, ...]:
        """Return sum w h(x, y') and sum w."""
        return (weights * mismatched).sum(), weights.sum()

    def updated(self, shift: float, totals: Sequence[float]) -> float:
        """Return the mean, or zero where it is below; the shift of before without data."""
        return max(0.0, totals[0] / totals[1]) if totals[1] > 0 else shift


@dataclass(frozen=True, kw_only=True)
class MovingMean(Shift):
    """A moving mean of (E[value | desirable] + E[value | undesirable]) / 2. decay: in (0, 1), weight of the past."""

    decay: float

    def __post_init__(self) -> None:
        hold(self, checks.fraction, "decay")

    def totals(self, values: tuple[Any, ...], labels: Any, mismatched: Any, weights: Any) -> tuple[Any, ...]:
        """Return sum w value and sum w of the desirable, then of the undesirable."""
        if len(values) == 2:
            sides = [(values[0], weights), (values[1], weights)]
        else:
            sides = [(values[0], weights * labels), (values[0], weights * (1.0 - labels))]
        return tuple(total for value, weight in sides for total in ((weight * value).sum(), weight.sum()))

    def updated(self, shift: float, totals: Sequence[float]) -> float:
        """Return the moving mean; the shift of before where a batch lacks one of the two."""
        if min(totals[1], totals[3]) <= 0:
            return shift
        return self.decay * shift + (1.0 - self.decay) * (totals[0] / totals[1] + totals[2] / totals[3]) / 2
