"""The mean gap over beta and eta, its optimum, and how the best eta moves with N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.plotting import COLORS, CYCLE, letters, new_figure, style

if TYPE_CHECKING:
    import pandas

COLUMNS = ("n", "beta", "eta", "seed", "gap")
MINIMUM_N, MINIMUM_ETA = 8, 15
WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class EtaExponent:
    """eta*(N) proportional to N^exponent, with intervals at `level` from a bootstrap over seeds.

    n, best_eta, low, high: (number of N,). censored: N whose best eta lies at the end of the grid, left
    out of the fit. seeds, resamples: how the interval was made. message: one sentence.
    """

    exponent: float
    interval: tuple[float, float]
    intercept: float
    n: Array
    best_eta: Array
    low: Array
    high: Array
    censored: tuple[float, ...]
    level: float
    seeds: int
    resamples: int

    @property
    def message(self) -> str:
        """One sentence for a reader."""
        text = (
            f"eta* goes as N^{self.exponent:.2f} ({100 * self.level:g} % interval {self.interval[0]:.2f} to "
            f"{self.interval[1]:.2f}, {self.seeds} seeds, {self.resamples} resamples, {self.n.size} values of N)"
        )
        return text + (
            f"; left out, optimum at the end of the grid: N = {list(self.censored)}" if self.censored else ""
        )

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a value of N: n, best_eta, low, high."""
        import pandas

        return pandas.DataFrame({"n": self.n, "best_eta": self.best_eta, "low": self.low, "high": self.high})


def best_eta_exponent(frame: pandas.DataFrame, *, level: float = 0.95, resamples: int = 500, rng: Any) -> EtaExponent:
    """Estimate the exponent of the best eta in N, with a bootstrap over seeds.

    frame: columns n, beta, eta, seed, gap; every seed in every cell. The gap is averaged over seeds, and
    over beta its least value is taken for each eta. The minimum over eta > 0 is that of a
    parabola in log eta through the five grid points nearest to the least; at least 8 values of N and 15
    of eta are asked for. Seeds are drawn with replacement, the same for every cell, so whatever cells
    share stays shared. N whose least point is one of the two at either end of the grid is left out and
    named. Raises InvalidArgument.
    """
    if not 0 < checks.positive("level", level) < 1:
        raise InvalidArgument("level", expected="a number in (0, 1)", got=level, remedy="Pass 0.95.")
    count = checks.integer("resamples", resamples, minimum=20)
    generator = checks.generator("rng", rng)
    checks.table("frame", frame, COLUMNS, remedy="Pass one row per cell and seed, as `simulate` returns.")
    positive = frame[frame["eta"] > 0]
    axes = [np.sort(positive[name].unique()) for name in ("n", "beta", "eta", "seed")]
    ns, betas, etas, seeds = axes
    if ns.size < MINIMUM_N or etas.size < MINIMUM_ETA:
        raise InvalidArgument(
            "frame",
            expected=f"at least {MINIMUM_N} values of n and {MINIMUM_ETA} of eta > 0",
            got=f"{ns.size} and {etas.size}",
            remedy="An exponent from fewer would be a guess: extend the grid.",
        )
    ordered = positive.sort_values(["n", "beta", "eta", "seed"])
    if len(ordered) != np.prod([axis.size for axis in axes]):
        raise InvalidArgument(
            "frame",
            expected="one row for every n, beta, eta, seed",
            got=f"{len(ordered)} rows",
            remedy="Fill the grid.",
        )
    gap = ordered["gap"].to_numpy(dtype=np.float64).reshape(ns.size, betas.size, etas.size, seeds.size)
    logs = np.log(etas)
    best, inside = _minima(gap.mean(axis=3), logs)
    if inside.sum() < 3:
        raise InvalidArgument(
            "frame", expected="an interior best eta at 3 or more n", got=int(inside.sum()), remedy="Widen the eta grid."
        )
    log_n = np.log(ns[inside].astype(np.float64))
    slope, intercept = np.polyfit(log_n, best[inside], 1)
    drawn = np.empty((count, ns.size))
    for index in range(count):
        weights = np.bincount(generator.integers(seeds.size, size=seeds.size), minlength=seeds.size) / seeds.size
        drawn[index] = _minima(gap @ weights, logs)[0]
    slopes = np.polyfit(log_n, drawn[:, inside].T, 1)[0]
    tail = [0.5 - level / 2, 0.5 + level / 2]
    low, high = np.quantile(slopes, tail)
    ends = np.exp(np.quantile(drawn[:, inside], tail, axis=0))
    return EtaExponent(
        exponent=float(slope),
        interval=(float(low), float(high)),
        intercept=float(intercept),
        n=ns[inside].astype(np.float64),
        best_eta=np.exp(best[inside]),
        low=ends[0],
        high=ends[1],
        censored=tuple(float(n) for n in ns[~inside]),
        level=level,
        seeds=int(seeds.size),
        resamples=count,
    )


def optima(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return, for each n, the cell (beta, eta) of the least mean gap, its mean and standard error."""
    checks.table("frame", frame, COLUMNS, remedy="Pass one row per cell and seed, as `simulate` returns.")
    grouped = frame.groupby(["n", "beta", "eta"])["gap"]
    table = grouped.mean().to_frame("gap").join(grouped.sem().rename("gap/se")).reset_index()
    return table.loc[table.groupby("n")["gap"].idxmin()].reset_index(drop=True)


def heatmap(frame: pandas.DataFrame, *, title: str = "") -> Figure:
    """Draw the mean gap over (eta, beta), one panel a value of n, the optimum a cross.

    frame: columns n, beta, eta, seed, gap. A dot marks every cell whose gap is within two paired
    standard errors of the best: the optimum may lie in any of them. Color scales differ by panel,
    since gaps shrink with n. eta = 0 is the leftmost column. Raises InvalidArgument.
    """
    checks.table("frame", frame, COLUMNS, remedy="Pass one row per cell and seed, as `simulate` returns.")
    best = optima(frame)
    with style():
        figure, axes = new_figure(1, len(best), width=0.8 + 3.5 * len(best), height=3.9, sharey=True)
        for axis, (_, row) in zip(axes[0], best.iterrows(), strict=True):
            rows = frame[frame["n"] == row["n"]]
            table = rows.pivot_table(index="beta", columns="eta", values="gap")
            mesh = axis.pcolormesh(
                np.arange(table.shape[1] + 1), np.arange(table.shape[0] + 1), table.to_numpy(), cmap="cividis"
            )
            bar = figure.colorbar(mesh, ax=axis, shrink=0.85)
            if axis is axes[0, -1]:
                bar.set_label("mean gap, log-odds")
            close_beta, close_eta = _close(rows, row)
            spots = (
                [table.columns.get_loc(e) + 0.5 for e in close_eta],
                [table.index.get_loc(b) + 0.5 for b in close_beta],
            )
            axis.plot(*spots, ".", color="white", markersize=4, markeredgecolor="black", markeredgewidth=0.5)
            here = (table.columns.get_loc(row["eta"]) + 0.5, table.index.get_loc(row["beta"]) + 0.5)
            axis.plot(*here, "X", color=CYCLE[1], markersize=11, markeredgecolor="white")
            least = f"N = {row['n']:g}: {row['gap']:.3f} +- {row['gap/se']:.3f}"
            axis.set_title(f"{least}\nat beta = {row['beta']:.2g}, eta = {row['eta']:.2g}", wrap=True)
            _label(axis.set_xticks, table.columns.to_numpy(), 5)
            _label(axis.set_yticks, table.index.to_numpy(), 8)
            axis.set_xlabel("eta")
            axis.grid(False)
        axes[0, 0].set_ylabel("beta")
        note = "cross: least mean gap; dots: within two paired standard errors of it"
        heading = ", ".join(part for part in (title, note) if part)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=letters(10), wrap=True)
    return figure


def movement(result: EtaExponent) -> Figure:
    """Draw the best eta against N, log-log, with the fitted power law and N^(-1/2) for comparison."""
    checks.instance("result", result, EtaExponent, remedy="Pass what best_eta_exponent returns.")
    with style():
        figure, axes = new_figure(1, 1, width=5.6, height=4.0)
        axis = axes[0, 0]
        whiskers = np.stack([result.best_eta - result.low, result.high - result.best_eta])
        axis.errorbar(
            result.n, result.best_eta, yerr=np.maximum(whiskers, 0.0), fmt="o", color=COLORS["RPO"], capsize=3,
            label=f"best eta, {100 * result.level:g} % interval over seeds",
        )  # fmt: skip
        line = np.geomspace(result.n.min(), result.n.max(), 50)
        low, high = result.interval
        label = f"N^{result.exponent:.2f}   [{low:.2f}, {high:.2f}]"
        axis.plot(line, np.exp(result.intercept) * line**result.exponent, color=COLORS["theory"], label=label)
        middle = np.exp(np.log(result.n).mean())
        anchor = np.exp(result.intercept) * middle**result.exponent
        axis.plot(line, anchor * (line / middle) ** -0.5, "--", color="#777777", label="slope of the theorem, N^-0.5")
        axis.set_xscale("log")
        axis.set_yscale("log")
        shown = result.n[:: -(-len(result.n) // max(2, int(1.6 * figure.get_figwidth())))]
        axis.set_xticks(shown, [f"{n:.0f}" for n in shown])
        axis.minorticks_off()
        axis.set_xlabel("number of preferences N")
        axis.set_ylabel("eta with the least mean gap")
        axis.set_title("The best eta falls with N" if high < 0 else "The best eta against N", wrap=True)
        axis.legend(loc="best", fontsize=letters(9))
    return figure


def _minima(mean: Array, logs: Array) -> tuple[Array, Any]:
    """Return log eta* for each n and whether it is interior. mean: (n, beta, eta), the mean gap."""
    curve = mean.min(axis=1)
    least = curve.argmin(axis=1)
    found = np.empty(len(curve))
    half = WINDOW // 2
    for row, centre in enumerate(least):
        first = int(np.clip(centre - half, 0, logs.size - WINDOW))
        near = slice(first, first + WINDOW)
        bend, tilt, _ = np.polyfit(logs[near] - logs[centre], curve[row, near], 2)
        turn = -tilt / (2.0 * bend) if bend > 0 else 0.0
        found[row] = logs[centre] + np.clip(turn, logs[first] - logs[centre], logs[first + WINDOW - 1] - logs[centre])
    return found, (least >= half) & (least < logs.size - half)


def _close(rows: pandas.DataFrame, best: Any) -> tuple[Any, Any]:
    """Return the (beta, eta) whose paired excess over the best cell is below two standard errors."""
    wide = rows.pivot_table(index="seed", columns=["beta", "eta"], values="gap")
    excess = wide.sub(wide[(best["beta"], best["eta"])], axis=0)
    near = excess.mean() <= 2.0 * excess.sem()
    cells = near[near].index
    return cells.get_level_values("beta"), cells.get_level_values("eta")


def _label(set_ticks: Any, values: Array, count: int) -> None:
    shown = np.arange(0, len(values), -(-len(values) // count))
    set_ticks(shown + 0.5, [f"{values[index]:.2g}" for index in shown])
