"""When the unconstrained objective has a minimiser (docs/theory.md, section 1: statement and proof)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rpo.bandit.solver.saddle import Saddle
from rpo.core import checks

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Existence:
    """Whether a minimiser exists over all reward tables; if not, a sentence, and the prompt and responses."""

    exists: bool
    reason: str
    prompt: int | None = None
    responses: tuple[int, ...] = ()


def minimizer_exists(saddle: Saddle) -> Existence:
    """Test whether the unconstrained reward side attains its minimum.

    With a penalty (eta > 0 and d_x > 0): every response is in supp(pi_base), or beats, through a
    chain of wins, one that is. Without: every component of the prompt's comparison graph is strongly
    connected (Ford 1957).
    """
    checks.instance("saddle", saddle, Saddle)
    wins = np.zeros((*saddle.base.shape, saddle.base.shape[1]), dtype=bool)
    wins[saddle.prompt, saddle.chosen, saddle.rejected] = True
    has_data = np.bincount(saddle.prompt, minlength=len(saddle.d)) > 0
    for x in np.flatnonzero((saddle.d > 0) | has_data):
        if saddle.objective.eta == 0 or saddle.d[x] == 0:
            stranded = _not_strongly_connected(wins[x])
            if stranded is not None:
                return Existence(
                    False,
                    f"prompt {x}: responses {stranded[0]} and {stranded[1]} were compared, but no chain of wins "
                    "leads back, so the likelihood grows for ever as their rewards part.",
                    int(x),
                    stranded,
                )
            continue
        anchored = saddle.base[x] > 0
        while True:  # responses with a win over an anchored one are anchored too
            grown = anchored | (wins[x] & anchored[None, :]).any(axis=1)
            if (grown == anchored).all():
                break
            anchored = grown
        loose = np.flatnonzero(saddle.support[x] & ~anchored)
        if loose.size:
            return Existence(
                False,
                f"prompt {x}: response {int(loose[0])} has no mass under pi_base and no chain of wins that ends at a "
                "response that has, so the loss keeps falling as its probability goes to zero.",
                int(x),
                (int(loose[0]),),
            )
    return Existence(True, "a minimiser exists")


def comparison_components(wins: BoolArray) -> NDArray[np.int64]:
    """Return the component of each response in the comparison graph of one prompt: (A,), wins: (A, A) bool."""
    return connected_components(csr_array(wins | wins.T), directed=False)[1].astype(np.int64)


def _not_strongly_connected(wins: BoolArray) -> tuple[int, int] | None:
    weak = comparison_components(wins)
    strong = connected_components(csr_array(wins), directed=True, connection="strong")[1]
    first, second = np.nonzero((weak[:, None] == weak[None, :]) & (strong[:, None] != strong[None, :]))
    return (int(first[0]), int(second[0])) if first.size else None
