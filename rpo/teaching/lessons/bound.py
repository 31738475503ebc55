"""Notebook 04: the finite-sample bound beside the measured gap, its ledger, and what partial coverage buys.

Shapes: S data sets, A responses; one prompt. Gaps and rewards in log-odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit import Box, ContextualBandit, PreferenceCounts, instances, sample_wins, solve, solve_batch
from rpo.bandit.bounds import Bound, bound_arguments, slack_ledger, suboptimality_bound
from rpo.bandit.bounds.covering import covering_radius
from rpo.bandit.bounds.theorem import ROUTES
from rpo.bandit.coverage import coverage_coefficient
from rpo.bandit.maximin import default_class
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.objectives import DPO, RPO

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

RARE = ("bad", "best")


def covered_problem(rng: Any = 7) -> ContextualBandit:
    """Return four responses, r* in [0, 1], moderately skewed data: the bounds' constants need a small R."""
    return instances.coverage_skew(arms=4, skew=0.5, reward_bound=1.0, rng=rng)


def bound_of(problem: ContextualBandit, n: float, route: str = "hellinger", *, delta: float = 0.05) -> Bound:
    """Return the bound at the eta and beta that its theorem prescribes, base = pi_ref, class = the problem's box."""
    found = bound_arguments(problem, n, base=problem.reference, reward_class=default_class(problem))
    return suboptimality_bound(route, delta=delta, **found)


def measured_gaps(
    problem: ContextualBandit,
    ns: Sequence[int],
    routes: Sequence[str] = ("paper", "hellinger"),
    *,
    draws: int,
    rng: Any,
) -> pandas.DataFrame:
    """Run RPO at each theorem's eta and beta on `draws` data sets of each N; the series of `plots.gap_against_n`.

    Columns: series, n, mean and standard_error of the gap, eta, beta, bound (its value), held (share of data sets with
    gap at most the bound).
    """
    import pandas

    best = problem.expected_reward(problem.greedy_policy())
    rows = []
    for n, child in zip(ns, checks.generator("rng", rng).spawn(len(ns)), strict=True):
        wins = sample_wins(problem, n, draws, rng=child)
        for route in routes:
            bound = bound_of(problem, n, route)
            solved = solve_batch(
                wins,
                RPO(beta=bound.beta, eta=bound.eta, base="reference"),
                reference=problem.reference,
                reward_class=default_class(problem),
                d0=problem.d0,
            )
            gold = np.einsum("x,sxa,xa->s", problem.d0, solved.policy, problem.true_reward())
            gap = best - gold
            rows.append(
                {
                    "series": f"RPO, eta of the {route} bound",
                    "n": n,
                    "mean": float(gap.mean()),
                    "standard_error": float(gap.std(ddof=1) / np.sqrt(draws)),
                    "eta": bound.eta,
                    "beta": bound.beta,
                    "bound": bound.value,
                    "held": float((gap <= bound.value).mean()),
                }
            )
    return pandas.DataFrame(rows)


def bounds_table(problem: ContextualBandit, ns: Sequence[int]) -> pandas.DataFrame:
    """Return columns route, n, value of all three bounds: the lines of `plots.gap_against_n`."""
    import pandas

    return pandas.DataFrame(
        [{"route": route, "n": n, "value": bound_of(problem, n, route).value} for route in ROUTES for n in ns]
    )


def ledger_frame(
    problem: ContextualBandit, pairs: PreferenceCounts, routes: Sequence[str] = ("paper", "hellinger")
) -> pandas.DataFrame:
    """Solve at each theorem's eta and beta and return the ledgers' rows: what `plots.slack_waterfall` draws."""
    import pandas

    frames = []
    for route in routes:
        bound = bound_of(problem, pairs.n, route)
        solution = solve(
            problem,
            pairs,
            RPO(beta=bound.beta, eta=bound.eta, base="reference"),
            reward_class=default_class(problem),
            prompt_weights="population",
            method="newton",
        )
        frames.append(slack_ledger(problem, pairs, solution, chain=route).to_frame())
    return pandas.concat(frames, ignore_index=True)


def bound_curves(reward_bound: float, coverage: float, arms: int, *, delta: float = 0.05) -> Figure:
    """Draw the three bounds against N for a table of one prompt, without the KL term; above R they say nothing."""
    from rpo.bandit.plots.bounds import CHAIN_COLORS, DASHES
    from rpo.plotting import new_figure, style

    ns = np.geomspace(1e2, 1e12, 41)
    with style():
        figure, axes = new_figure(1, 1, width=7.2, height=3.8)
        axis = axes[0, 0]
        for index, route in enumerate(ROUTES):
            values = [_statistical(route, reward_bound, coverage, arms, n, delta) for n in ns]
            useful = next((f"{n:.0e}" for n, value in zip(ns, values, strict=True) if value < reward_bound), "1e12+")
            label = f"{route}: below R from N = {useful}"
            axis.plot(ns, values, color=CHAIN_COLORS[route], linestyle=DASHES[index], label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.axhspan(reward_bound, axis.get_ylim()[1], color="#000000", alpha=0.06)
        axis.set_title(f"R = {reward_bound:g}, C = {coverage:g}, {arms} responses")
        axis.set_xlabel("N, preferences")
        axis.set_ylabel("bound on the gap, log-odds")
        axis.legend(fontsize=8.5)
    return figure


def rare_arm(*, n: int, rare: str = "bad") -> instances.FixedDesign:
    """Return three responses: the third compared once, with the second, and all else between the first two.

    rare: "bad" makes the rare one the worst, r* = (1.5, 1, 0); "best" makes it the best, r* = (0.5, 0, 1). R = 2, so
    that one lucky win can carry it above the others. pi_ref is uniform.
    """
    total = checks.integer("n", n, minimum=2)
    checks.one_of("rare", rare, RARE)
    design = np.zeros((1, 3, 3))
    design[0, 0, 1], design[0, 1, 2] = total - 1, 1
    return instances.FixedDesign(
        d0=np.ones(1),
        reference=np.full((1, 3), 1.0 / 3.0),
        reward=np.array([[1.5, 1.0, 0.0] if rare == "bad" else [0.5, 0.0, 1.0]]),
        reward_bound=2.0,
        design=design,
        response_labels=("first", "second", "rare"),
        name=f"rare_arm(n={total}, rare={rare})",
    )


def coverage_of_each(problem: ContextualBandit) -> dict[str, float]:
    """Return C of each deterministic policy of a one-prompt problem against the chosen responses, by label."""
    size = problem.num_responses
    labels = problem.response_labels or tuple(map(str, range(size)))
    return {
        label: coverage_coefficient(problem, np.eye(size)[a][None], boundary=False).value
        for a, label in enumerate(labels)
    }


def partial_coverage(ns: Sequence[int], rare: str, *, draws: int, rng: Any) -> pandas.DataFrame:
    """Return the mean gap on `rare_arm` of greedy, DPO and RPO with beta = eta = N^-1/2: for `plots.gap_against_n`.

    Columns: series, n, mean, standard_error. Greedy: the policy greedy on r_MLE.
    """
    import pandas

    rows = []
    for n, child in zip(ns, checks.generator("rng", rng).spawn(len(ns)), strict=True):
        problem = rare_arm(n=n, rare=rare)
        wins = sample_wins(problem, n, draws, rng=child)
        scale = n**-0.5
        for series, objective in (("DPO", DPO(beta=scale)), ("RPO", RPO(beta=scale, eta=scale))):
            solved = _solve(problem, wins, objective)
            rows.append(_row(series, n, problem, solved.policy))
            if series == "DPO":
                best = solved.reward == solved.reward.max(axis=2, keepdims=True)
                rows.append(_row("greedy", n, problem, best / best.sum(axis=2, keepdims=True)))
    return pandas.DataFrame(rows)


def pessimism_figure(frames: dict[str, pandas.DataFrame]) -> Figure:
    """Draw the gaps of `partial_coverage` against N, one panel a frame, on a linear scale."""
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    top = 1.1 * max(float((frame["mean"] + frame["standard_error"]).max()) for frame in frames.values())
    with style():
        figure, axes = new_figure(1, len(frames), width=1.0 + 4.0 * len(frames), height=3.6, sharey=True)
        for axis, (title, frame) in zip(axes[0], frames.items(), strict=True):
            for name, marker in (("greedy", "s"), ("DPO", "o"), ("RPO", "^")):
                rows = frame[frame["series"] == name]
                color = COLORS.get(name, CYCLE[6])
                axis.errorbar(
                    rows["n"], rows["mean"], rows["standard_error"], marker=marker, color=color, label=name, capsize=2
                )
            axis.set_xscale("log")
            axis.set_ylim(0.0, top)
            axis.set_xlabel("N, preferences")
            axis.set_title(title)
        axes[0, 0].set_ylabel("gap to the best policy, log-odds")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _statistical(route: str, reward_bound: float, coverage: float, arms: int, n: float, delta: float) -> float:
    logs = Box(reward_bound).log_covering(prompts=1, arms=arms, radius=covering_radius(n, reward_bound))
    found = suboptimality_bound(
        route, coverage=coverage, n=n, margin_bound=reward_bound, log_covering=logs, delta=delta, kl=0.0
    )
    return found.statistical


def _solve(problem: ContextualBandit, wins: Array, objective: Any) -> Any:
    return solve_batch(
        wins, objective, reference=problem.reference, reward_class=Box(float(problem.reward_bound or 1.0))
    )


def _row(series: str, n: int, problem: ContextualBandit, policy: Array) -> dict[str, Any]:
    best = problem.expected_reward(problem.greedy_policy())
    gap = best - policy[:, 0] @ problem.true_reward()[0]
    return {
        "series": series,
        "n": n,
        "mean": float(gap.mean()),
        "standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
    }
