"""What an objective reads: K responses of each of N groups, column by column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Columns:
    """K responses of N groups; a preference is K = 2, chosen first. Each field is K vectors (N,), of any backend.

    logps: summed log-probabilities under the policy, nats. reference: the same under pi_ref. lengths: tokens. The
    last two may be missing: an objective's `needs` names what it reads.
    """

    logps: tuple[Any, ...]
    reference: tuple[Any, ...] | None = None
    lengths: tuple[Any, ...] | None = None

    def with_logps(self, logps: tuple[Any, ...]) -> Columns:
        """Return the same groups under another policy."""
        return replace(self, logps=logps)
