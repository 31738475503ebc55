"""What `solve` takes beside an objective: a baseline, which makes its policy in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array

STATUSES = ("certified", "exact", "stationary", "infimum approached", "inaccurate")


@dataclass(frozen=True, eq=False, kw_only=True)
class PolicyResult:
    """A baseline's policy with its evidence.

    policy: (X, A). label: for legends. status: "certified", "exact" (closed form), "stationary", "infimum approached"
    (as `rpo.bandit.fit` says it) or "inaccurate"; message: one sentence. reward: (X, A), the reward the policy was
    made from, if any. evidence: gaps, residuals, sizes. Raises InvalidArgument for another status.
    """

    policy: Array
    label: str
    status: str
    message: str
    reward: Array | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.one_of("status", self.status, STATUSES)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores, arrays left out."""
        return {"label": self.label, "status": self.status, "message": self.message, "evidence": self.evidence}


class Baseline(ABC):
    """A method that `solve(problem, data, baseline)` runs; subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name for legends and tables, parameters included."""

    @abstractmethod
    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy on this data. rng: needed by methods that draw at random."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))  # type: ignore[arg-type]
        return {
            "name": type(self).__name__,
            **{name: value.describe() if hasattr(value, "describe") else value for name, value in values},
        }
