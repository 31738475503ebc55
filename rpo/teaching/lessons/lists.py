"""Lists against pairs at equal annotation cost: what a ranking of K responses is worth, by what it is said to cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rpo.bandit import ContextualBandit, instances
from rpo.bandit.maximin import solve
from rpo.bandit.reward_class import Box
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.objectives import DPO
from rpo.methods.lists import PlackettLuceDPO
from rpo.plotting import CYCLE, NORMAL_95, new_figure, style

if TYPE_CHECKING:
    import pandas

COSTS = {
    "reading": "K responses are read once",
    "sorting": "a sort asks log2(K!) comparisons",
    "all pairs": "every pair is asked",
}
USES = ("ranking", "all_pairs", "adjacent", "best_random", "best_worst")

__all__ = ["COSTS", "at_equal_cost", "cost", "cost_figure", "uses"]


def cost(size: int, kind: str) -> float:
    """Return what a ranking of `size` responses costs, kind one of `COSTS`: a pair 2, 1, 1. Raises InvalidArgument."""
    checks.one_of("kind", kind, tuple(COSTS))
    k = checks.integer("size", size, minimum=2)
    if kind == "reading":
        return float(k)
    return math.log2(math.factorial(k)) if kind == "sorting" else k * (k - 1) / 2.0


def at_equal_cost(
    sizes: Sequence[int], *, pairs: int = 300, arms: int = 8, draws: int = 60, rng: int = 0
) -> pandas.DataFrame:
    """Return a row per cost, size and draw: error, the mean squared error of rewards (centred) that were fitted.

    The budget is that of `pairs` pairs; responses are drawn evenly, r* uniform on [0, 3].
    """
    import pandas

    rows = []
    for kind in COSTS:
        for size in sizes:
            n = round(pairs * cost(2, kind) / cost(size, kind))
            for draw in range(draws):
                problem = instances.coverage_skew(arms=arms, skew=0.0, rng=rng + draw)
                problem = ContextualBandit(
                    d0=problem.d0, reference=problem.reference, reward=problem.reward, reward_bound=3.0
                )
                ranked = problem.sample_rankings(n, size=size, rng=rng + 10_000 + draw)
                fitted = solve(problem, ranked, PlackettLuceDPO(beta=1.0), reward_class=Box(6.0), method="newton")
                rows.append(
                    {"cost": kind, "K": size, "lists": n, "error": _error(fitted.reward, problem.true_reward())}
                )
    return pandas.DataFrame(rows)


def uses(*, size: int = 4, lists: int = 60, arms: int = 10, beta: float = 0.1, draws: int = 100) -> pandas.DataFrame:
    """Return the mean gap (standard error) of policies from the same lists, taken as rankings or as pairs by a rule."""
    import pandas

    rows = []
    for draw in range(draws):
        problem = instances.coverage_skew(arms=arms, skew=1.0, rng=draw)
        ranked = problem.sample_rankings(lists, size=size, rng=10_000 + draw)
        for use in USES:
            if use == "ranking":
                found = solve(problem, ranked, PlackettLuceDPO(beta=beta), method="newton")
            else:
                found = solve(problem, ranked.to_pairs(use, rng=20_000 + draw), DPO(beta=beta), method="newton")
            rows.append({"use": use, "gap": problem.suboptimality(found.policy)})
    frame = pandas.DataFrame(rows).groupby("use", sort=False)["gap"].agg(["mean", "sem"]).reset_index()
    return frame.rename(columns={"mean": "gap", "sem": "standard error"})


def cost_figure(frame: pandas.DataFrame) -> Figure:
    """Draw the error against the length of lists, a line per cost, with 95 % intervals over draws."""
    with style():
        figure, axes = new_figure(1, 1, width=6.4, height=3.8)
        axis = axes[0, 0]
        for colour, (kind, words) in zip(CYCLE, COSTS.items(), strict=False):
            mine = frame[frame["cost"] == kind].groupby("K")["error"].agg(["mean", "sem"])
            bars = NORMAL_95 * mine["sem"]
            axis.errorbar(mine.index, mine["mean"], yerr=bars, color=colour, marker="o", capsize=3, label=words)
        axis.set_xlabel("responses in a list, K")
        axis.set_ylabel("mean squared error of the reward")
        axis.set_ylim(bottom=0.0)
        axis.set_title("Whether lists pay depends on what a list costs")
        axis.legend()
    return figure


def _error(fitted: Array, truth: Array) -> float:
    difference = fitted - truth
    return float(np.mean((difference - difference.mean(axis=1, keepdims=True)) ** 2))
