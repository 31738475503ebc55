"""Links: from a policy's log-probabilities to the implicit rewards of responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from rpo.core import checks, numerics
from rpo.core.columns import Columns
from rpo.core.divergences import KL, Divergence, require_divergence, require_interior
from rpo.core.fields import hold


class Link(ABC):
    """Columns -> one value per response; times `beta` it is the implicit reward, which metrics call rewards/*.

    needs: the fields of `Columns` it reads beside logps. beta: reward units per unit of the value.
    """

    beta: float

    @property
    def needs(self) -> frozenset[str]:
        """Names of the columns read beside logps."""
        return frozenset()

    @property
    def affine(self) -> bool:
        """Whether the values are affine in the log-probabilities, each in its own."""
        return False

    @abstractmethod
    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        """Return K values (N,), in any backend."""


@dataclass(frozen=True, kw_only=True)
class LogRatio(Link):
    """f'(pi / pi_ref), which for KL is h = log(pi / pi_ref), in nats.

    beta: > 0. reference: whether pi_ref is subtracted; without it h is log pi. per_token: divide h by the response's
    length. A divergence that is not interior may be named, for a solver of rewards: its link of a policy is refused.
    Raises InvalidArgument. Source: Rafailov et al. 2023, Eq. 5; Wang et al. 2024, Eq. 12.
    """

    beta: float
    divergence: Divergence = field(default_factory=KL)
    reference: bool = True
    per_token: bool = False

    def __post_init__(self) -> None:
        hold(self, checks.positive, "beta")
        require_divergence(self.divergence)

    @property
    def needs(self) -> frozenset[str]:
        """Reference log-probabilities, lengths, both or neither."""
        return frozenset(name for name, asked in (("reference", self.reference), ("lengths", self.per_token)) if asked)

    @property
    def affine(self) -> bool:
        """Under the KL, whose link is h."""
        return isinstance(self.divergence, KL)

    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        """Return f'(exp(h)) of each response."""
        require_interior(self.divergence)
        h = columns.logps
        if self.reference:
            h = tuple(logp - ref for logp, ref in zip(h, columns.reference or (), strict=True))
        if self.per_token:
            h = tuple(value / length for value, length in zip(h, columns.lengths or (), strict=True))
        return tuple(self.divergence.link(value) for value in h)


@dataclass(frozen=True, kw_only=True)
class WeighedReference(Link):
    """log pi - weight * log pi_ref, in nats: the reference counted in part, or more than once.

    beta: > 0. weight: >= 0; at 1 this is `LogRatio` under the KL, at 0 nothing of the reference is read. Raises
    InvalidArgument. Source: Chen et al. 2024 (arXiv 2405.19534), Eq. 4.
    """

    beta: float
    weight: float

    def __post_init__(self) -> None:
        hold(self, checks.positive, "beta")
        hold(self, checks.nonnegative, "weight")

    @property
    def needs(self) -> frozenset[str]:
        """Reference log-probabilities, unless they weigh nothing."""
        return frozenset({"reference"} if self.weight else ())

    @property
    def affine(self) -> bool:
        """Yes."""
        return True

    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        """Return the weighed log-ratio of each response."""
        if not self.weight:
            return columns.logps
        return tuple(logp - self.weight * ref for logp, ref in zip(columns.logps, columns.reference or (), strict=True))


@dataclass(frozen=True, kw_only=True)
class HeadScores(Link):
    """The scores of a reward model's head, which stand in the columns in place of log-probabilities."""

    beta: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """A head in place of a language model's."""
        return frozenset({"head"})

    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        """Return the scores as they are."""
        return columns.logps


@dataclass(frozen=True, kw_only=True)
class LogOdds(Link):
    """log(p / (1 - p)), p the geometric mean of the response's token probabilities.

    Source: Hong et al. 2024 (arXiv 2403.07691), Eq. 4.
    """

    beta: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """Lengths."""
        return frozenset({"lengths"})

    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        """Return the log-odds of each response."""
        means = (logp / length for logp, length in zip(columns.logps, columns.lengths or (), strict=True))
        return tuple(mean - numerics.log1mexp(mean) for mean in means)
