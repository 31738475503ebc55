"""The prompts of a Saddle one by one: the objective is a sum over them, but for a ball's shared parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rpo.bandit.data import Index
from rpo.bandit.solver.data_term import DataTerm
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array


@dataclass(frozen=True, eq=False)
class PromptBlock:
    """One prompt's part of a Saddle, restricted to the support of pi_ref (size S).

    term: of its groups, on rewards (S,). which: their numbers among all of each size.
    """

    prompt: int
    support: Index
    log_reference: Array
    log_measure: Array
    base: Array
    d: float
    term: DataTerm
    which: tuple[Index, ...]


def blocks(saddle: Saddle) -> Iterator[PromptBlock]:
    """Yield the prompts that have weight or data; the others do not enter the objective."""
    arms = saddle.base.shape[1]
    prompts = [groups.entries[0] // arms for groups in saddle.groups]
    orders = [np.argsort(prompt, kind="stable") for prompt in prompts]
    bounds = [
        np.searchsorted(prompt[order], np.arange(len(saddle.d) + 1))
        for prompt, order in zip(prompts, orders, strict=True)
    ]
    position = np.empty(saddle.base.size, dtype=np.int64)
    for x in range(len(saddle.d)):
        mine = tuple(order[bound[x] : bound[x + 1]] for order, bound in zip(orders, bounds, strict=True))
        if saddle.d[x] == 0 and not any(which.size for which in mine):
            continue
        support = np.flatnonzero(saddle.support[x])
        position[x * arms + support] = np.arange(support.size)
        yield PromptBlock(
            prompt=x,
            support=support,
            log_reference=saddle.log_reference[x, support],
            log_measure=saddle.log_measure[x, support],
            base=saddle.base[x, support],
            d=float(saddle.d[x]),
            term=saddle.term.some(mine, position),
            which=mine,
        )
