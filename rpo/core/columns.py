"""What an objective reads: K responses of each of N groups, column by column."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Columns:
    """K responses of N groups, best first; a preference is K = 2, a response alone K = 1. Fields of any backend.

    logps: K vectors (N,), summed log-probabilities under the policy, nats. reference: the same under pi_ref. lengths:
    K vectors, tokens. scores: K vectors, of another judge, none above the one before. labels: (N,), of K = 1, 1 where
    the response is desirable and 0 where it is not. shift: a number, in units of the link's value, that the batches
    before say (`Shift`). likeness: K vectors, how likely the policy is to say the response itself, a mean over tokens
    of log p - log sum_v p_v^2 in nats, without a gradient. What is missing is None: an objective's `needs` names what
    it reads.
    """

    logps: tuple[Any, ...]
    reference: tuple[Any, ...] | None = None
    lengths: tuple[Any, ...] | None = None
    scores: tuple[Any, ...] | None = None
    labels: Any = None
    shift: Any = None
    likeness: tuple[Any, ...] | None = None

    def with_logps(self, logps: tuple[Any, ...]) -> Columns:
        """Return the same groups under another policy."""
        return replace(self, logps=logps)

    def first(self, size: int) -> Columns:
        """Return the same groups with their first `size` responses alone."""
        kept = {
            field.name: value[:size] for field in fields(self) if isinstance(value := getattr(self, field.name), tuple)
        }
        return replace(self, **kept)

    def map(self, function: Callable[[Any], Any]) -> Columns:
        """Return `function` of every vector of every field; the shift stays as it is."""
        mapped = {
            field.name: tuple(map(function, value)) if isinstance(value, tuple) else function(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None and field.name != "shift"
        }
        return replace(self, **mapped)


def by_size(function: Callable[[Columns], Any], columns: Columns, sizes: Any) -> Any:
    """Return `function` of the groups, (N,), each asked with its own number of responses: no formula sees a gap.

    sizes: (N,), NumPy integers from 1 to K; of a group's K entries the first ones count.
    """
    found = np.unique(sizes)
    if found.size == 1:
        return function(columns.first(int(found[0])))
    rows = [np.flatnonzero(sizes == size) for size in found]
    parts = [
        function(columns.first(int(size)).map(lambda column, mine=mine: column[mine]))  # type: ignore[misc]
        for size, mine in zip(found, rows, strict=True)
    ]
    back = np.argsort(np.concatenate(rows))
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)[back]
    return sys.modules["torch"].cat(parts)[back]
