"""Demonstrations against pessimism: what keeps a policy near what is known, over the number of each kind of data.

Shapes: X instances, which are the prompts of one problem, 10 responses each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rpo.bandit import ContextualBandit, PreferenceCounts, solve_batch
from rpo.bandit.baselines import ensemble_rewards
from rpo.bandit.reward_class import Box
from rpo.core.checks import Array
from rpo.core.divergences import KL
from rpo.core.objectives import RPO
from rpo.plotting import NORMAL_95, new_figure, style

if TYPE_CHECKING:
    import pandas

__all__ = ["EXPERTS", "regrets", "regrets_figure"]

EXPERTS = {"good": 16.0, "poor": -4.0}  # log-odds by which an expert's choices follow the gold reward
ARMS, ODDS = 10, 4.0  # gold is uniform on [0, 1]; preferences follow four times it
RIDGE = 0.05


def regrets(
    demonstrations: Sequence[int],
    pairs: Sequence[int],
    *,
    betas: Sequence[float] = (0.04, 0.08, 0.2, 0.4, 1.0, 2.0),
    etas: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    draws: int = 100,
    rng: int = 0,
) -> pandas.DataFrame:
    """Return the regret of three uses of the same data, by expert and by the number of demonstrations and pairs.

    Demonstrations make a clone, one added to each count, from which pairs are drawn. "held": the fitted reward held to
    the clone by a KL of weight beta. "pessimism": RPO of an even reference, base "chosen", at the first of `betas`;
    "both": of the clone for its reference. Each dial is chosen on the other half of the instances. Columns: expert,
    demonstrations, pairs, clone (its own regret), held, beta, pessimism, eta, both, difference (pessimism less held,
    paired) and its 95 % half width.
    """
    import pandas

    rows = []
    for expert, skill in EXPERTS.items():
        for count in demonstrations:
            for n in pairs:
                gold, clone, wins = _data(skill, count, n, draws, rng)
                worst = gold.max(axis=1)
                held, beta = _chosen([worst - (p * gold).sum(axis=1) for p in _held(clone, wins, betas)], betas)
                even = np.full(clone.shape, 1.0 / ARMS)
                wary, eta = _chosen([worst - (p * gold).sum(axis=1) for p in _wary(even, wins, betas[0], etas)], etas)
                both, _ = _chosen([worst - (p * gold).sum(axis=1) for p in _wary(clone, wins, betas[0], etas)], etas)
                apart = wary - held
                rows.append(
                    {
                        "expert": expert, "demonstrations": count, "pairs": n,
                        "clone": float((worst - (clone * gold).sum(axis=1)).mean()),
                        "held": float(held.mean()), "beta": beta, "pessimism": float(wary.mean()), "eta": eta,
                        "both": float(both.mean()),
                        "difference": float(apart.mean()),
                        "difference/half": NORMAL_95 * float(apart.std(ddof=1)) / math.sqrt(draws),
                    }
                )  # fmt: skip
    return pandas.DataFrame(rows)


def regrets_figure(frame: pandas.DataFrame) -> Figure:
    """Draw where which use has the lower regret, a panel an expert; in a cell both regrets, and the better one's name.

    No name is given where the paired 95 % interval of the difference holds zero.
    """
    with style():
        experts = list(frame["expert"].unique())
        figure, axes = new_figure(1, len(experts), width=1.4 + 4.1 * len(experts), height=4.2, sharey=True)
        top = float(frame["difference"].abs().max())
        counts, sizes = sorted(frame["demonstrations"].unique()), sorted(frame["pairs"].unique())
        for axis, expert in zip(axes[0], experts, strict=True):
            mine = frame[frame["expert"] == expert]
            table = mine.pivot_table(index="pairs", columns="demonstrations", values="difference").to_numpy()
            edges = np.arange(len(counts) + 1), np.arange(len(sizes) + 1)
            mesh = axis.pcolormesh(*edges, table, cmap="PuOr", vmin=-top, vmax=top)
            for _, row in mine.iterrows():
                at = counts.index(row["demonstrations"]) + 0.5, sizes.index(row["pairs"]) + 0.5
                apart = abs(row["difference"])
                better = "\nheld" if row["difference"] > 0 else "\npessimism"
                better = better if apart > row["difference/half"] else ""
                color = "white" if apart > 0.7 * top else "black"
                text = f"{row['held']:.3f} held\n{row['pessimism']:.3f} pess."
                axis.text(*at, text, ha="center", va="bottom", fontsize=8, color=color)
                axis.text(*at, better, ha="center", va="top", fontsize=9, fontweight="bold", color=color)
            axis.set_xticks(edges[0][:-1] + 0.5, [f"{c:g}" for c in counts])
            axis.set_yticks(edges[1][:-1] + 0.5, [f"{n:g}" for n in sizes])
            axis.set_xlabel("demonstrations")
            axis.set_title(f"{expert.capitalize()} expert")
            axis.grid(False)
        axes[0, 0].set_ylabel("comparisons")
        bar = figure.colorbar(mesh, ax=list(axes[0]), shrink=0.85)
        bar.set_label("regret: pessimism less held to the clone")
    return figure


def _data(skill: float, count: int, n: int, draws: int, rng: int) -> tuple[Array, Array, Array]:
    """Return gold, clone, (X, A), and win counts, (X, A, A), of n pairs an instance."""
    gold, clone, wins = [], [], []
    for draw in range(draws):
        g = np.random.default_rng(rng + draw)
        worth = g.uniform(size=ARMS)
        shown = g.multinomial(count, KL().reply(skill * worth, np.zeros(ARMS)).policy)
        problem = ContextualBandit(d0=np.ones(1), reference=(shown[None] + 1.0) / (count + ARMS))
        gold.append(worth)
        clone.append(problem.reference[0])
        wins.append(problem.sample_preferences(n, labels=ODDS * worth[None], rng=g).wins()[0])
    return np.array(gold), np.array(clone), np.array(wins)


def _held(clone: Array, wins: Array, betas: Sequence[float]) -> list[Array]:
    problem = ContextualBandit(d0=np.full(len(clone), 1.0 / len(clone)), reference=clone)
    data = PreferenceCounts.from_wins(wins)
    fitted = ensemble_rewards(problem, data, size=1, scale=0.0, ridge=RIDGE, rng=0)[0]
    return [KL().reply(fitted / beta, problem.log_reference).policy for beta in betas]


def _wary(reference: Array, wins: Array, beta: float, etas: Sequence[float]) -> list[Array]:
    box = Box(ODDS)
    return [
        solve_batch(wins[None], RPO(beta=beta, eta=eta), reference=reference, reward_class=box).policy[0]
        for eta in etas
    ]


def _chosen(regret: Sequence[Array], dials: Sequence[float]) -> tuple[Array, float]:
    """Return each instance's regret at the dial that is best on the other half of them, and the first half's dial."""
    every = np.stack(regret)
    side = np.arange(every.shape[1]) % 2
    best = [int(every[:, side != half].mean(axis=1).argmin()) for half in (0, 1)]
    return np.where(side == 0, every[best[0]], every[best[1]]), float(dials[best[0]])
