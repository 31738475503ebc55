"""The prompts of a Saddle one by one: the objective is a sum over them, but for a ball's shared parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array


@dataclass(frozen=True, eq=False)
class PromptBlock:
    """One prompt's part of a Saddle, restricted to the support of pi_ref (size S); offset as `Saddle.offset`."""

    prompt: int
    support: Index
    log_reference: Array
    log_measure: Array
    base: Array
    d: float
    chosen: Index
    rejected: Index
    weights: Array
    offset: Any


def blocks(saddle: Saddle) -> Iterator[PromptBlock]:
    """Yield the prompts that have weight or data; the others do not enter the objective."""
    order = np.argsort(saddle.prompt, kind="stable")
    bounds = np.searchsorted(saddle.prompt[order], np.arange(len(saddle.d) + 1))
    position = np.empty(saddle.base.shape[1], dtype=np.int64)
    for x in range(len(saddle.d)):
        mine = order[bounds[x] : bounds[x + 1]]
        if saddle.d[x] == 0 and not mine.size:
            continue
        support = np.flatnonzero(saddle.support[x])
        position[support] = np.arange(support.size)
        yield PromptBlock(
            prompt=x,
            support=support,
            log_reference=saddle.log_reference[x, support],
            log_measure=saddle.log_measure[x, support],
            base=saddle.base[x, support],
            d=float(saddle.d[x]),
            chosen=position[saddle.chosen[mine]],
            rejected=position[saddle.rejected[mine]],
            weights=saddle.weights[mine],
            offset=saddle.offset[mine] if isinstance(saddle.offset, np.ndarray) else saddle.offset,
        )
