"""Notebook 01: a reward fitted to few comparisons, and what maximising it finds.

Shapes: S data sets, A responses, P values of beta; one prompt. Rewards in log-odds, KL in nats.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit import ContextualBandit, instances, sample_wins, solve_batch
from rpo.bandit.maximin import default_class
from rpo.bandit.plots.gold_proxy import curves
from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import kl_divergence
from rpo.core.objectives import DPO

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

BETAS = tuple(float(f"{beta:.3g}") for beta in np.geomspace(10.0, 0.02, 16))
KL_LABEL = "KL(pi || pi_ref), nats"


def skewed_problem(*, arms: int = 10, skew: float = 2.0, rng: Any) -> ContextualBandit:
    """Return `instances.coverage_skew` with pi_ref = the policy whose responses were compared, as in practice."""
    problem = instances.coverage_skew(arms=arms, skew=skew, rng=rng)
    return replace(problem, reference=np.asarray(problem.behavior), name=f"skewed_problem(arms={arms}, skew={skew:g})")


def estimates(problem: ContextualBandit, n: int, draws: int, *, rng: Any) -> pandas.DataFrame:
    """Fit the reward to `draws` data sets of n pairs; return one row a data set and response.

    Columns: draw, response, compared (share of its data set's pairs), reward (r*) and estimate (r_MLE in the default
    box), both counted from their mean under pi_ref, error (estimate - reward), best (whether the estimate is the
    data set's largest; the first of equals).
    """
    import pandas

    _one_prompt(problem)
    wins = sample_wins(problem, n, draws, rng=rng)
    fitted = solve_batch(wins, DPO(beta=1.0), reference=problem.reference, reward_class=default_class(problem))
    reference, estimate = problem.reference[0], fitted.reward[:, 0]
    estimate = estimate - (estimate @ reference)[:, None]
    reward = problem.true_reward()[0] - problem.true_reward()[0] @ reference
    size = len(reference)
    compared = (wins.sum(axis=3) + wins.sum(axis=2))[:, 0] / n
    best = estimate.argmax(axis=1)[:, None] == np.arange(size)
    return pandas.DataFrame(
        {
            "draw": np.repeat(np.arange(draws), size),
            "response": np.tile(np.arange(size), draws),
            "compared": compared.ravel(),
            "reward": np.tile(reward, draws),
            "estimate": estimate.ravel(),
            "error": (estimate - reward).ravel(),
            "best": best.ravel(),
        }
    )


def winners_curse(frame: pandas.DataFrame) -> Figure:
    """Draw estimates against true rewards, the best-looking of each data set marked; errors of both beside them.

    frame: of `estimates`.
    """
    from rpo.plotting import COLORS, new_figure, style

    best, rest = frame[frame["best"]], frame[~frame["best"]]
    spread = np.random.default_rng(0).uniform(-0.035, 0.035, len(frame))  # dots of one response stand apart
    with style():
        figure, axes = new_figure(1, 2, width=9.6, height=3.9, width_ratios=[1.25, 1])
        left, right = axes[0]
        for part, color, size, label in (
            (rest, "#bbbbbb", 7, "any other response"),
            (best, COLORS["proxy"], 16, "the one that looks best"),
        ):
            place = part["reward"] + spread[part.index.to_numpy()]
            left.scatter(place, part["estimate"], s=size, color=color, linewidths=0, label=label)
        ends = [float(frame["reward"].min()), float(frame["reward"].max())]
        left.plot(ends, ends, color=COLORS["gold"], linewidth=1.5, label="estimate = truth")
        left.set_xlabel("true reward r*, over pi_ref's mean, log-odds")
        left.set_ylabel("fitted reward, over pi_ref's mean")
        left.set_title("One dot a response and data set")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        bins = np.linspace(float(frame["error"].min()), float(frame["error"].max()), 30)
        for part, color in ((frame, "#bbbbbb"), (best, COLORS["proxy"])):
            right.hist(part["error"], bins, density=True, color=color, alpha=0.7)
            right.axvline(float(part["error"].mean()), color=color, linewidth=2.5)
        right.axvline(0.0, color=COLORS["gold"], linewidth=1.5)
        right.set_xlabel("fitted minus true reward, log-odds")
        right.set_ylabel("density")
        right.set_title(f"Mean error: all {frame['error'].mean():+.2f}, best-looking {best['error'].mean():+.2f}")
    return figure


def mean_curves(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return means and standard errors along beta, rewards counted from pi_ref's, one row a method and beta.

    table: of `rpo.bandit.simulate`, with ReferencePolicy among the methods under the name "reference".
    """
    import pandas

    return curves(pandas.concat(_parts(table)))


def mean_gaps(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return columns series (the method), n, mean, standard_error of the gap over seeds: for `plots.gap_against_n`.

    table: of `rpo.bandit.simulate`, with n in its grid.
    """
    grouped = table.groupby(["method", "n"], sort=False)["gap"].agg(["mean", "sem"]).reset_index()
    return grouped.rename(columns={"method": "series", "sem": "standard_error"})


def draws_and_mean(table: pandas.DataFrame, *, shown: int = 3) -> Figure:
    """Draw gold and proxy against KL on the first `shown` draws, a panel each, and their means over all draws.

    table: `rpo.bandit.simulate`'s, of one method along beta and of ReferencePolicy under the name "reference".
    """
    from rpo.plotting import COLORS, new_figure, style

    moved, reference = _parts(table)
    if moved["method"].nunique() != 1:
        raise InvalidArgument(
            "table",
            expected="rows of one method and of the reference",
            got=", ".join(map(str, table["method"].unique())),
            remedy="Select them.",
        )
    import pandas

    rows = pandas.concat([moved, reference])
    seeds = list(moved["seed"].unique()[:shown])
    parts = [(f"draw {seed}", [seed]) for seed in seeds]
    parts.append((f"mean of {moved['seed'].nunique()} draws", list(moved["seed"].unique())))
    with style():
        figure, axes = new_figure(1, len(parts), width=2.5 * len(parts) + 0.6, height=3.5, sharex=True, sharey=True)
        for axis, (title, chosen) in zip(axes[0], parts, strict=True):
            mean = curves(rows[rows["seed"].isin(chosen)]).sort_values("kl/reference")
            for name, line in (("gold", "-"), ("proxy", "--")):
                kl, value = mean["kl/reference"], mean[f"reward/{name}"]
                axis.plot(kl, value, line, marker="o", markersize=3, color=COLORS[name], label=name)
            axis.axhline(0.0, color="#777777", linewidth=0.8)
            axis.set_title(title)
            axis.set_xlabel(KL_LABEL)
        axes[0, 0].set_ylabel("mean reward over pi_ref's,\nlog-odds")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def at_a_glance(beta: float, n: int, skew: float, *, draws: int = 100, seed: int = 1) -> Figure:
    """Draw DPO's mean gold and proxy against KL on one skewed problem with `beta` marked, and its mean policy there."""
    from rpo.plotting import COLORS, new_figure, style

    beta = checks.positive("beta", beta)
    problem = skewed_problem(skew=skew, rng=seed)
    wins = sample_wins(problem, n, draws, rng=seed)
    reference, reward = problem.reference[0], problem.true_reward()[0]
    betas = sorted({*BETAS, beta}, reverse=True)
    gold, proxy, kl, start = [], [], [], None
    marked = reference
    for value in betas:
        solved = solve_batch(
            wins, DPO(beta=value), reference=problem.reference, reward_class=default_class(problem), start=start
        )
        start = solved.reward
        policy = solved.policy[:, 0]
        gold.append(float(((policy - reference) @ reward).mean()))
        proxy.append(float(((policy - reference) * solved.reward[:, 0]).sum(axis=1).mean()))
        kl.append(float(kl_divergence(policy, reference).mean()))
        if value == beta:
            marked = policy.mean(axis=0)
    at = betas.index(beta)
    order = np.argsort(-reference)
    with style():
        figure, axes = new_figure(1, 2, width=9.6, height=3.7)
        left, right = axes[0]
        for name, line, values in (("gold", "-", gold), ("proxy", "--", proxy)):
            left.plot(kl, values, line, color=COLORS[name], label=f"{name}: {values[at]:+.2f} at this beta")
            left.plot(kl[at], values[at], "o", color=COLORS[name], markersize=8)
        left.axhline(0.0, color="#777777", linewidth=0.8)
        left.set_xlabel(KL_LABEL)
        left.set_ylabel("mean reward over pi_ref's, log-odds")
        left.set_title(f"beta = {beta:g}, N = {n}, skew = {skew:g}: {draws} data sets")
        left.legend(loc="upper left")
        left.set_ylim(top=1.35 * max(*proxy, *gold, 0.1))
        place = np.arange(len(reference))
        right.bar(place - 0.2, reference[order], 0.4, color="#999999", label="pi_ref")
        right.bar(place + 0.2, marked[order], 0.4, color=COLORS["DPO"], label="policy, mean")
        right.set_xticks(place, [f"{reward[a]:.1f}" for a in order])
        right.set_xlabel("r* of the response, most compared first")
        right.set_ylabel("probability")
        right.set_title("Where the mass goes")
        right.legend()
    return figure


def _parts(table: pandas.DataFrame) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return the rows of the methods, and one row a seed of the reference, which is the same at every beta."""
    reference = table[table["method"] == "reference"].drop_duplicates("seed")
    return table[table["method"] != "reference"], reference


def _one_prompt(problem: ContextualBandit) -> None:
    if problem.num_prompts != 1:
        raise InvalidArgument("problem", expected="one prompt", got=problem.num_prompts, remedy="Take one of them.")
