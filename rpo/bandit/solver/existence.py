"""When the unconstrained objective has a minimiser (docs/theory.md, section 1: statement and proof)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import bmat, csr_array, diags_array, eye_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from rpo.bandit.solver.blocks import blocks
from rpo.bandit.solver.saddle import Saddle
from rpo.core import checks
from rpo.core.checks import Array

BoolArray = NDArray[np.bool_]
FLAT = 1e-9  # of a slope, relative to the comparisons' weight: rounding of the linear program


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
    connected (Ford 1957). Who beat whom is what the shape's `arrows` say: of Plackett-Luce's list each response beat
    every later one, and a loss that grows on both sides makes a comparison count both ways. Where a loss of a margin
    falls on the right, a linear program finds whether any direction falls for ever. A piecewise linear loss alone
    that does not fall for ever has a minimiser.
    """
    checks.instance("saddle", saddle, Saddle)
    shape = saddle.objective.shape
    slopes = getattr(shape, "slopes", None) or (-1.0, 0.0)  # of a margin; a list's loss that is taken never falls
    for block in blocks(saddle):
        x, size, falling = block.prompt, block.support.size, None
        wins = block.term.arrows(size)
        if slopes[1] < 0:
            (pairs,) = block.term.groups
            won = csr_array((pairs.weights, pairs.entries), shape=(size, size))
            falling = falling_pair(won, block.base, slopes, saddle.eta * block.d)
        if falling is not None:
            winner, loser = (int(block.support[a]) for a in falling)
            return Existence(
                False,
                f"prompt {x}: response {loser} beat {winner} too seldom, so the loss falls for ever as their rewards "
                "part.",
                x,
                (winner, loser),
            )
        if (saddle.eta == 0 or block.d == 0) and shape.piecewise_linear:
            continue
        if saddle.eta == 0 or block.d == 0:
            stranded = _not_strongly_connected(wins)
            if stranded is not None:
                first, second = (int(block.support[a]) for a in stranded)
                return Existence(
                    False,
                    f"prompt {x}: responses {first} and {second} were compared, but no chain of wins "
                    "leads back, so the likelihood grows for ever as their rewards part.",
                    x,
                    (first, second),
                )
            continue
        loose = np.flatnonzero(~_anchored(wins, block.base > 0))
        if loose.size:
            lost = int(block.support[loose[0]])
            return Existence(
                False,
                f"prompt {x}: response {lost} has no mass under pi_base and no chain of wins that ends at a "
                "response that has, so the loss keeps falling as its probability goes to zero.",
                x,
                (lost,),
            )
    return Existence(True, "a minimiser exists")


def falling_pair(won: Any, base: Array, slopes: tuple[float, float], pull: float) -> tuple[int, int] | None:
    """Return a pair (winner, loser) along whose margin a loss that falls on the right does so for ever; None for none.

    A linear program: the least slope at infinity over directions d in [-1, 1]^S, where a margin of direction t adds
    max(left t, right t) and the penalty pull * (max(d) - <base, d>). won: sparse (S, S), shares of wins. base: (S,).
    """
    size, (left, right) = base.size, slopes
    first, second = np.nonzero(np.triu((won + won.T).toarray() > 0))
    forth, back = won[first, second], won[second, first]
    edges = first.size
    rows, ones = np.arange(edges), np.ones(edges)
    difference = csr_array((np.r_[ones, -ones], (np.r_[rows, rows], np.r_[first, second])), shape=(edges, size))
    up, down = right * forth - left * back, left * forth - right * back  # along first - second, and against it
    below = bmat(
        [
            [diags_array(up) @ difference, -eye_array(edges), None],
            [diags_array(down) @ difference, -eye_array(edges), None],
            [eye_array(size), None, csr_array(-np.ones((size, 1)))],
        ],
        format="csr",
    )
    bounds = [(-1.0, 1.0)] * size + [(None, None)] * (edges + 1)
    found = linprog(np.r_[-pull * base, ones, pull], A_ub=below, b_ub=np.zeros(below.shape[0]), bounds=bounds)
    if found.fun >= -FLAT * float(won.sum()):
        return None
    steepest = int(np.argmin(found.x[size : size + edges]))
    pair = int(first[steepest]), int(second[steepest])
    return pair if found.x[pair[0]] > found.x[pair[1]] else pair[::-1]


def comparison_components(wins: Any) -> NDArray[np.int64]:
    """Return the component of each response in the comparison graph of one prompt: (S,). wins: (S, S)."""
    return connected_components(csr_array(wins), directed=False)[1].astype(np.int64)


def _anchored(wins: Any, base: BoolArray) -> BoolArray:
    """Return which responses are in `base` (S,) or beat, through a chain of wins, one that is."""
    if base.all():
        return base
    start = csr_array(base[None, :])  # one more node, from which the walk against the wins begins
    graph = bmat([[wins.T, None], [start, csr_array((1, 1), dtype=bool)]], format="csr")
    reached = np.zeros(base.size + 1, dtype=bool)
    reached[breadth_first_order(graph, base.size, return_predecessors=False)] = True
    return reached[:-1]


def _not_strongly_connected(wins: Any) -> tuple[int, int] | None:
    """Return the first two responses that are linked by comparisons but not by wins both ways."""
    weak = comparison_components(wins)
    strong = connected_components(wins, directed=True, connection="strong")[1]
    _, leader = np.unique(weak, return_index=True)  # the first response of each component
    apart = strong != strong[leader][weak]
    if not apart.any():
        return None
    first = int(leader[weak[apart]].min())
    return first, int(np.flatnonzero(apart & (weak == weak[first]))[0])
