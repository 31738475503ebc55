"""How good is a rule for choosing beta and eta? Rules, each run on the same draws, against the best in hindsight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["RULES", "rules", "rules_figure", "rules_table"]

# In the order of how much they are told: nothing, the data, the sizes, the average of other draws' gaps.
RULES = ("eta = 0", "held-out likelihood", "theorem's eta", "best eta in hindsight", "best beta and eta in hindsight")


def rules(
    sweep: pandas.DataFrame,
    instance: str,
    grid: Mapping[str, Sequence[Any]],
    *,
    ns: Sequence[int],
    etas: Sequence[float],
    rng: int,
) -> pandas.DataFrame:
    r"""Return one row an N, rule and seed: the beta and eta the rule takes, and the gap (log-odds) they leave.

    The first three rules use the theorem's $\beta = N^{-1/2}$: without penalty, with the eta of `advise`'s held-out
    likelihood, and with the theorem's eta. "In hindsight" means the least mean gap over the *other half* of the seeds
    (even and odd), so no rule is scored on the draws that chose it: over `etas` at the theorem's beta, and over the
    whole sweep.

    Args:
        sweep: rows of `simulate` with RPO: n, beta, eta, seed, gap. Its seeds are used.
        instance: name of the instance of the sweep.
        grid: the instance's parameters as in the sweep's grid, one value each.
        ns: numbers of preferences, all in the sweep.
        etas: weights that the held-out likelihood and hindsight choose among; 0 joins them.
        rng: the integer the sweep was run with, so that the draws are the same.

    Raises:
        InvalidArgument: an N that is not in the sweep.
    """
    import pandas

    from rpo.bandit import advise, simulate
    from rpo.bandit.simulation.cell import Cell
    from rpo.bandit.simulation.grid import source
    from rpo.core.objectives import RPO

    seeds = sorted(int(seed) for seed in sweep["seed"].unique())
    options = sorted({0.0, *(checks.nonnegative("etas", eta) for eta in etas)})
    rows = []
    for n in ns:
        swept = sweep[sweep["n"] == n]
        if swept.empty:
            raise InvalidArgument("ns", expected="values of n in the sweep", got=n, remedy="Add it to the sweep.")
        unit = {"n": int(n), **{name: values[0] for name, values in grid.items()}}
        cell = Cell(source(instance), unit, seeds, rng)
        advised = []
        for seed, draw in zip(seeds, cell.draws, strict=True):
            if isinstance(draw, BaseException):
                raise draw
            advised.append(advise(draw.data, draw.problem, etas=options, rng=seed))
        beta, theory = advised[0].theory_beta, advised[0].theory_eta
        tried: dict[str, Sequence[Any]] = {"n": [int(n)], "beta": [beta], "eta": sorted({*options, theory})}
        found = simulate(instance, RPO, {**grid, **tried}, seeds, rng=rng, proxy=False, progress=False)
        # settings in rows, seeds in columns
        fixed = found.pivot(index="eta", columns="seed", values="gap")
        free = swept.pivot(index=["beta", "eta"], columns="seed", values="gap")
        for seed, advice in zip(seeds, advised, strict=True):
            others = [other for other in seeds if other % 2 != seed % 2]
            best_eta = _least(fixed.loc[options, others])
            best = _least(free[others])
            held_out = float(advice.held_out_eta or 0.0)
            by_eta, by_both = fixed[seed], free[seed]
            chosen = (
                (RULES[0], beta, 0.0, by_eta[0.0]),
                (RULES[1], beta, held_out, by_eta[held_out]),
                (RULES[2], beta, theory, by_eta[theory]),
                (RULES[3], beta, best_eta, by_eta[best_eta]),
                (RULES[4], *best, by_both[best]),
            )
            rows += [
                {"n": n, "rule": rule, "seed": seed, "beta": float(b), "eta": float(eta), "gap": float(gap)}
                for rule, b, eta, gap in chosen
            ]
    return pandas.DataFrame(rows)


def rules_table(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row an N and rule: median beta and eta, mean gap, its standard error, and the excess.

    excess: the mean of gap minus the gap of "best beta and eta in hindsight" on the same draw; with its standard error.
    """
    import pandas

    rows = []
    for (n, rule), part in frame.groupby(["n", "rule"], sort=False):
        best = frame[(frame["n"] == n) & (frame["rule"] == RULES[-1])].set_index("seed")["gap"]
        excess = part.set_index("seed")["gap"] - best
        rows.append(
            {
                "n": n,
                "rule": rule,
                "beta": part["beta"].median(),
                "eta": part["eta"].median(),
                "gap": part["gap"].mean(),
                "gap/se": part["gap"].sem(),
                "excess": excess.mean(),
                "excess/se": excess.sem(),
            }
        )
    return pandas.DataFrame(rows)


def rules_figure(frame: pandas.DataFrame) -> Figure:
    """Draw, from `rules`, the mean gap of each rule against N, and its excess over hindsight on the same draws.

    Bars are 95 % intervals over seeds; on the right they are paired, which is why they are shorter.
    """
    from rpo.plotting import CYCLE, NORMAL_95, new_figure, style

    table = rules_table(frame)
    ns = sorted(table["n"].unique())
    with style():
        figure, axes = new_figure(1, 2, width=9.2, height=4.3)
        for index, rule in enumerate(RULES):
            rows = table[table["rule"] == rule].sort_values("n")
            place = np.arange(len(ns)) + 0.13 * (index - (len(RULES) - 1) / 2)
            shape = {"fmt": "osD^v"[index], "capsize": 3, "markersize": 6, "color": CYCLE[(1, 4, 0, 2, 6)[index]]}
            for axis, column in zip(axes[0], ("gap", "excess"), strict=True):
                if rule == RULES[-1] and column == "excess":
                    continue
                axis.errorbar(place, rows[column], yerr=NORMAL_95 * rows[f"{column}/se"], label=rule, **shape)
        axes[0, 0].set_ylabel("mean gap, log-odds")
        axes[0, 0].set_ylim(bottom=0.0)
        axes[0, 0].set_title("What each rule leaves")
        axes[0, 1].axhline(0.0, color="#000000", linewidth=1)
        axes[0, 1].set_ylabel("gap over hindsight's, same draws, log-odds")
        axes[0, 1].set_title("Excess over the best beta and eta")
        for axis in axes[0]:
            axis.set_xticks(range(len(ns)), [f"{n:g}" for n in ns])
            axis.set_xlabel("number of preferences N")
            axis.grid(axis="x", visible=False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _least(gaps: pandas.DataFrame) -> Any:
    """Return the setting (row) with the least mean over seeds (columns)."""
    return gaps.index[int(gaps.to_numpy().mean(axis=1).argmin())]
