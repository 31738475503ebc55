"""Searching for a response token by token: what wider beams find, of an exact reward and of an estimated one.

Shapes: X trees, which are the prompts of one problem, 3^4 responses each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rpo.bandit import ContextualBandit, solve_batch, tree
from rpo.bandit.reward_class import Box
from rpo.core.divergences import KL
from rpo.core.objectives import DPO
from rpo.plotting import COLORS, CYCLE, NORMAL_95, new_figure, style

if TYPE_CHECKING:
    import pandas

__all__ = ["SEARCHES", "found", "found_figure"]

SEARCHES = {
    "exact": "Q* - V* of the true reward",
    "likelihood": "log pi of DPO",
    "implied": "Q* - V* of the reward that DPO implies",
}
SEQUENCES = np.array(list(itertools.product(range(3), repeat=4)))
BETA, ODDS = 0.1, 4.0  # gold is uniform on [0, 1]; preferences follow four times it


def found(widths: Sequence[int], *, pairs: int = 600, trees: int = 200, rng: int = 0) -> pandas.DataFrame:
    """Return the gold reward of what a beam finds, by what it searches for and by its width.

    DPO has `pairs` preferences a tree. Columns: search, one of `SEARCHES`, width, gold and its 95 % half width.
    """
    import pandas

    drawn = [np.random.default_rng(rng + k) for k in range(trees)]
    reference = np.array([g.dirichlet(np.full(len(SEQUENCES), 0.7)) for g in drawn])
    gold = np.array([g.uniform(size=len(SEQUENCES)) for g in drawn])
    problem = ContextualBandit(d0=np.full(trees, 1.0 / trees), reference=reference, reward=ODDS * gold)
    wins = problem.sample_preferences(pairs * trees, rng=rng).wins()
    fitted = solve_batch(wins[None], DPO(beta=ODDS * BETA), reference=reference, reward_class=Box(ODDS)).policy[0]
    best = KL().reply(gold / BETA, problem.log_reference).policy
    scores = {
        "exact": tree.token_advantages(best, reference, SEQUENCES, beta=BETA),
        "likelihood": tree.token_logps(fitted, SEQUENCES),
        "implied": tree.token_advantages(fitted, reference, SEQUENCES, beta=ODDS * BETA),
    }
    rows = []
    for search, table in scores.items():
        for width in widths:
            worth = gold[np.arange(trees), tree.beam_search(table, SEQUENCES, width=width)]
            half = NORMAL_95 * float(worth.std(ddof=1)) / math.sqrt(trees)
            rows.append({"search": search, "width": width, "gold": float(worth.mean()), "gold/half": half})
    return pandas.DataFrame(rows)


def found_figure(frame: pandas.DataFrame) -> Figure:
    """Draw the gold reward of what is found against the beam's width, a line a search, with 95 % intervals."""
    colours = {"exact": COLORS["gold"], "likelihood": COLORS["DPO"], "implied": CYCLE[3]}
    with style():
        figure, axes = new_figure(1, 1, width=6.4, height=3.9)
        axis = axes[0, 0]
        for search, words in SEARCHES.items():
            rows = frame[frame["search"] == search]
            axis.errorbar(
                rows["width"], rows["gold"], yerr=rows["gold/half"], color=colours[search], marker="o", capsize=3,
                label=words,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(frame["width"].unique(), [f"{width:g}" for width in frame["width"].unique()])
        axis.minorticks_off()
        axis.set_xlabel("width of the beam (81: every response)")
        axis.set_ylabel("gold reward of what is found")
        axis.set_title("Searching harder helps only a reward that is right")
        axis.legend(fontsize=9)
    return figure
