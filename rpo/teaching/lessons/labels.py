"""What annotators judge by: claims or what follows of them, and one principle or several.

Shapes: X instances, which are the prompts of one problem, 8 responses each, pi_ref uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rpo.bandit import ContextualBandit, solve_batch
from rpo.bandit.baselines import ensemble_rewards
from rpo.bandit.reward_class import Box
from rpo.core.checks import Array
from rpo.core.divergences import KL
from rpo.core.objectives import DPO
from rpo.plotting import COLORS, CYCLE, NORMAL_95, new_figure, style

if TYPE_CHECKING:
    import pandas

__all__ = ["hindsight", "hindsight_figure", "noisy_hindsight", "principles"]

ARMS = 8
CLAIMED = -0.6  # of the utility, in what is claimed of a response


def hindsight(
    shares: Sequence[float], forces: Sequence[float], *, pairs: int = 100, draws: int = 300, rng: int = 0
) -> pandas.DataFrame:
    """Return, by hindsight's share in the labels and the force 1 / beta, what policies gain and are said to gain.

    Labels are the utility, of standard deviation one, in hindsight, and -.6 of it plus noise of .8 in foresight.
    Columns: share, force; utility and label, of the exact policies; learnt, the utility of DPO's on `pairs` drawn
    preferences an instance; each a mean gain over the reference with its 95 % half width.
    """
    import pandas

    problem, utility, noise = _drawn(draws, rng)
    rows = []
    for share in shares:
        label = share * utility + (1.0 - share) * (CLAIMED * utility + 0.8 * noise)
        wins = problem.sample_preferences(pairs * draws, labels=label, rng=rng + 1).wins()
        for force in forces:
            policy = KL().reply(label * force, problem.log_reference).policy
            learnt = solve_batch(
                wins[None], DPO(beta=1.0 / force), reference=problem.reference, reward_class=Box(8.0)
            ).policy[0]
            row = {"share": share, "force": force}
            for name, taken, by in (
                ("utility", policy, utility), ("label", policy, label), ("learnt", learnt, utility)
            ):  # fmt: skip
                row[name], row[f"{name}/half"] = _mean(_gains(problem, taken, by))
            rows.append(row)
    return pandas.DataFrame(rows)


def noisy_hindsight(
    deviations: Sequence[float], *, beta: float = 0.5, draws: int = 400, rng: int = 0
) -> pandas.DataFrame:
    """Return, by the noise of simulated outcomes, the utility gained with its half width, and the share made worse."""
    import pandas

    problem, utility, noise = _drawn(draws, rng)
    rows = []
    for deviation in deviations:
        policy = KL().reply((utility + deviation * noise) / beta, problem.log_reference).policy
        gains = _gains(problem, policy, utility)
        mean, half = _mean(gains)
        rows.append({"noise": deviation, "gain": mean, "gain/half": half, "made worse": float((gains < 0).mean())})
    return pandas.DataFrame(rows)


def principles(
    weights: Sequence[float],
    *,
    hacked: float = 1.5,
    pairs: int = 100,
    beta: float = 0.3,
    draws: int = 300,
    rng: int = 0,
) -> pandas.DataFrame:
    """Return what policies gain in quality and in length as the principle "be brief" gets more weight.

    A judge's reward is quality + `hacked` * length, brevity's is -length, both components standard normal; each is
    fitted once to `pairs` preferences an instance by annotators who judge by it, and only their sum changes with the
    weight.
    Columns: weight; quality and length, of the true rewards' policies, with 95 % half widths; learnt/quality and
    learnt/length, of the fitted ones'.
    """
    import pandas

    problem, quality, length = _drawn(draws, rng)
    columns = {"judge": quality + hacked * length, "brevity": -length}
    fitted = {
        name: ensemble_rewards(
            problem,
            problem.sample_preferences(pairs * draws, labels=reward, rng=rng + 1 + k),
            size=1, scale=0.0, ridge=0.3, rng=0,
        )[0]
        for k, (name, reward) in enumerate(columns.items())
    }  # fmt: skip
    rows = []
    for weight in weights:
        row = {"weight": weight}
        for prefix, rewards in (("", columns), ("learnt/", fitted)):
            mixed = rewards["judge"] + weight * rewards["brevity"]
            policy = KL().reply(mixed / beta, problem.log_reference).policy
            for name, by in (("quality", quality), ("length", length)):
                mean, half = _mean(_gains(problem, policy, by))
                row[prefix + name] = mean
                if not prefix:
                    row[f"{name}/half"] = half
        rows.append(row)
    return pandas.DataFrame(rows)


def hindsight_figure(frame: pandas.DataFrame) -> Figure:
    """Draw what people get, and what their labels say of the same policies, against 1 / beta; a colour a labeller."""
    with style():
        figure, axes = new_figure(1, 2, width=9.4, height=4.3)
        left, right = axes[0]
        for colour, share in zip(CYCLE, sorted(frame["share"].unique()), strict=False):
            rows = frame[frame["share"] == share]
            name = {0.0: "foresight", 1.0: "hindsight"}.get(share, f"{100 * share:g} % hindsight")
            for axis, column in ((left, "utility"), (right, "label")):
                mean, half = rows[column], rows[f"{column}/half"]
                axis.plot(rows["force"], mean, color=colour, label=name)
                axis.fill_between(rows["force"], mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
            left.plot(rows["force"], rows["learnt"], "o", color=colour, markersize=4)
        for axis, title in ((left, "What people get"), (right, "What the labels say they get")):
            axis.axhline(0.0, color=COLORS["reference"], linewidth=1)
            axis.set_xscale("log", base=2)
            axis.set_xticks(frame["force"].unique(), [f"{force:g}" for force in frame["force"].unique()])
            axis.set_xlabel("1 / beta: how hard the labels are optimised")
            axis.set_title(title)
        left.set_ylabel("gain over the reference")
        left.plot([], [], "o", color=COLORS["reference"], markersize=4, label="DPO on drawn labels")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8.5)
    return figure


def _drawn(draws: int, rng: int) -> tuple[ContextualBandit, Array, Array]:
    """Return a problem of so many instances and two standard normal tables over it."""
    first, second = np.random.default_rng(rng).normal(size=(2, draws, ARMS))
    problem = ContextualBandit(d0=np.full(draws, 1.0 / draws), reference=np.full((draws, ARMS), 1.0 / ARMS))
    return problem, first, second


def _gains(problem: ContextualBandit, policy: Array, reward: Array) -> Array:
    return np.asarray(((policy - problem.reference) * reward).sum(axis=1))


def _mean(values: Array) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval."""
    return float(values.mean()), NORMAL_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
