"""What an objective reads: K responses of each of N groups, column by column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Columns:
    """K responses of N groups; a preference is K = 2, chosen first, a response alone K = 1. Fields of any backend.

    logps: K vectors (N,), summed log-probabilities under the policy, nats. reference: the same under pi_ref. lengths:
    K vectors, tokens. scores: K vectors, of another judge. labels: (N,), of K = 1, 1 where the response is desirable
    and 0 where it is not. shift: a number, in units of the link's value, that the batches before say (`Shift`). What
    is missing is None: an objective's `needs` names what it reads.
    """

    logps: tuple[Any, ...]
    reference: tuple[Any, ...] | None = None
    lengths: tuple[Any, ...] | None = None
    scores: tuple[Any, ...] | None = None
    labels: Any = None
    shift: Any = None

    def with_logps(self, logps: tuple[Any, ...]) -> Columns:
        """Return the same groups under another policy."""
        return replace(self, logps=logps)

    def map(self, function: Callable[[Any], Any]) -> Columns:
        """Return `function` of every vector of every field; the shift stays as it is."""
        mapped = {
            field.name: tuple(map(function, value)) if isinstance(value, tuple) else function(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None and field.name != "shift"
        }
        return replace(self, **mapped)
