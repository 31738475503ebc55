"""Gold and proxy reward against KL, with the law of Gao, Schulman and Hilton and its peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.gao import FORMS, GaoFit, bootstrap_gao, fit_gao
from rpo.plotting import COLORS, NORMAL_95, band, band_key, legend_below, letters, new_figure, style

if TYPE_CHECKING:
    import pandas

KL, REWARDS = "kl/reference", ("reward/gold", "reward/proxy")
PATHS = ("beta", "n", "step")
REFERENCE = "reference"
LAWS = {"policy": "d(alpha - gamma log d)", "best_of_n": "d(alpha - gamma d)"}


def curves(frame: pandas.DataFrame, *, path: str = "beta") -> pandas.DataFrame:
    """Return means and standard errors over seeds, rewards counted from the reference policy's.

    frame: columns method, `path`, seed, kl/reference (nats), reward/gold, reward/proxy; the rows of
    method "reference", one a seed, say what each reward is at pi_ref. Returned: one row a (method,
    path) with <column> and <column>/se, seeds. Raises InvalidArgument.
    """
    _check(frame, path)
    moved = over_reference(frame)
    grouped = moved.groupby(["method", path], sort=False)[[KL, *REWARDS]]
    table = grouped.mean().join(grouped.sem(ddof=1).add_suffix("/se"))
    table["seeds"] = grouped.size()
    return table.reset_index()


def fits(
    frame: pandas.DataFrame, *, path: str = "beta", form: str = "policy", resamples: int = 500, rng: Any
) -> dict[str, GaoFit]:
    """Return the law fitted to each method's mean gold curve, intervals by bootstrap over seeds.

    frame: as for `curves`, every seed at every value of `path`. form: as for `fit_gao`, or "closest": for
    each method the law with the smaller residual, a choice the intervals do not account for. Raises
    InvalidArgument.
    """
    checks.one_of("form", form, (*FORMS, "closest"))
    _check(frame, path)
    moved = over_reference(frame)
    methods = list(dict.fromkeys(moved["method"]))
    children = checks.generator("rng", rng).spawn(len(methods))
    found = {}
    for method, child in zip(methods, children, strict=True):
        rows = moved[moved["method"] == method]
        tables = [rows.pivot(index="seed", columns=path, values=column) for column in (KL, REWARDS[0])]
        if tables[0].isna().to_numpy().any():
            raise InvalidArgument(
                "frame",
                expected="every seed at every value of the path",
                got=f"gaps in {method!r}",
                remedy="Fill them.",
            )
        kl, gold = (table.to_numpy() for table in tables)
        law = form
        if form == "closest":
            mean_kl, mean_gold = kl.mean(axis=0), gold.mean(axis=0)
            residuals = [fit_gao(mean_kl, mean_gold, form=name).residual for name in FORMS]
            law = FORMS[int(np.argmin(residuals))]
        found[method] = bootstrap_gao(kl, gold, form=law, resamples=resamples, rng=child)
    return found


def overoptimization(
    frame: pandas.DataFrame,
    fitted: dict[str, GaoFit] | None = None,
    *,
    path: str = "beta",
    title: str = "",
    unit: str = "log-odds",
) -> Figure:
    """Draw gold and proxy against KL, one panel a method, with 95 % bands over seeds.

    fitted: from `fits`; its curve is drawn over the KL observed, its peak marked with the interval.
    path: what a curve runs along, "beta", "n" or "step"; said under the axis. unit: of both rewards.
    """
    table = curves(frame, path=path)
    methods = list(dict.fromkeys(table["method"]))
    with style():
        figure, axes = new_figure(1, len(methods), width=0.9 + 3.9 * len(methods), height=4.3, sharex=True, sharey=True)
        for axis, method in zip(axes[0], methods, strict=True):
            rows = table[table["method"] == method].sort_values(KL)
            for column, line, marker in zip(REWARDS, ("-", "--"), ("o", "s"), strict=True):
                name = column.split("/")[1]
                kl, mean, error = (rows[c].to_numpy() for c in (KL, column, f"{column}/se"))
                band(axis, column, kl, mean, NORMAL_95 * error, color=COLORS[name])
                axis.plot(kl, mean, line, marker=marker, markersize=3.5, color=COLORS[name], label=name)
            if fitted is not None and method in fitted:
                _draw_fit(axis, fitted[method], rows)
            axis.axhline(0.0, color="#777777", linewidth=0.8)
            root_scale(axis)
            along = rows if path == "n" else rows.sort_values(path, ascending=path == "step")
            seen = message(*(along[column].to_numpy() for column in REWARDS))
            axis.set_title(f"{method}: {seen}", fontsize=letters(9.5), wrap=True)
            axis.set_xlabel("KL(pi || pi_ref), nats (square-root scale)")
        ticks = root_ticks(float(table[KL].max()))
        axes[0, 0].set_xticks(ticks)
        axes[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0, 0].set_xlim(0.0, 1.03 * float(table[KL].max()))
        # Room above the curves for what the fit says.
        low, high = (float(end) for end in axes[0, 0].get_ylim())
        axes[0, 0].set_ylim(low, high + 0.2 * (high - low))
        axes[0, 0].set_ylabel(f"mean reward over pi_ref's, {unit}", wrap=True)
        # The legend below the panels: inside them it would lie on a curve of one method or another.
        shown: dict[str, Any] = {}
        for axis in axes[0]:  # a peak is marked only where one was found
            shown |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        handles = [*shown.values(), band_key()]
        legend_below(figure, handles, columns=3 * len(methods))
        along = {"beta": "path: beta falling, exact optima", "n": "path: n of best-of-n", "step": "path: training step"}
        seeds = f"{int(table['seeds'].min())} seeds"
        heading = ", ".join(part for part in (title, along[path], seeds) if part)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=letters(10), wrap=True)
    return figure


def message(gold: Array, proxy: Array | None = None) -> str:
    """Return what a curve shows, its points from the least to the most that it moved: whether gold falls from its peak.

    A fall under a twentieth of the highest gold is none.
    """
    peak, fall = int(np.argmax(gold)), float(np.max(gold) - gold[-1])
    if fall <= 0.05 * max(1e-12, float(np.ptp([0.0, *gold]))):
        return "gold does not fall"
    words = f"gold falls by {fall:.2f}"
    return words if proxy is None else f"{words}, the proxy {'rises' if proxy[-1] > proxy[peak] else 'falls too'}"


def _draw_fit(axis: Any, fit: GaoFit, rows: pandas.DataFrame) -> None:
    kl = np.linspace(np.sqrt(rows[KL].min()), np.sqrt(rows[KL].max()), 200) ** 2
    axis.plot(
        kl, fit.predict(kl), color=COLORS["theory"], linewidth=1.2, linestyle=":", label="fitted law of d = sqrt(KL)"
    )
    if fit.status not in ("peak", "peak_outside_range"):
        note = "no peak: gamma <= 0" if fit.status == "no_peak" else "no peak shown: gamma may be 0"
    elif fit.status == "peak":
        low, high = (float(np.clip(end**2, kl[0], kl[-1])) for end in fit.peak_interval)
        axis.axvspan(low, high, color="#E6D8A8", alpha=0.5, linewidth=0, zorder=0, label="95 % interval of the peak")
        peak = {"color": COLORS["theory"], "markersize": 6, "zorder": 5}
        axis.plot(fit.peak_kl, fit.peak_gold, "D", linestyle="none", label="fitted peak", **peak)
        note = f"peak at {fit.peak_kl:.2f} nats [{fit.peak_interval[0] ** 2:.2f}, {fit.peak_interval[1] ** 2:.2f}]"
    else:
        note = "no peak within this range\n(extrapolated: KL " + (
            f"{fit.peak_kl:.2g})" if fit.peak_kl < 1e4 else "> 1e4)"
        )
    note = f"{LAWS[fit.form]}, residual {fit.residual:.3f}\n{note}"
    axis.annotate(note, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=letters(8.5))


def root_scale(axis: Any) -> None:
    """Make the horizontal axis one of sqrt(KL), on which Gao's laws are written."""
    axis.set_xscale("function", functions=(_root, np.square))


def _root(value: Any) -> Array:
    return np.sqrt(np.maximum(value, 0.0))


def root_ticks(top: float) -> Sequence[float]:
    """Return values of KL up to `top` whose labels are apart on an axis of its square root."""
    options = np.array([0, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64])
    inside = options[options <= top]
    roots = np.sqrt(inside / max(top, 1e-12))
    kept = [0]
    for index in range(1, len(inside)):  # no two labels closer than a tenth of the axis
        if roots[index] - roots[kept[-1]] >= 0.12:
            kept.append(index)
    return [float(inside[index]) for index in kept]


def over_reference(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows of other methods, rewards counted from the reference's of the same seed."""
    anchor = frame[frame["method"] == REFERENCE].set_index("seed")
    moved = frame[frame["method"] != REFERENCE].copy()
    for column in REWARDS:
        moved[column] = moved[column].to_numpy() - anchor[column].reindex(moved["seed"]).to_numpy()
    return moved


def _check(frame: pandas.DataFrame, path: str) -> None:
    checks.one_of("path", path, PATHS)
    missing = [name for name in ("method", path, "seed", KL, *REWARDS) if name not in frame]
    if missing:
        raise InvalidArgument("frame", expected=f"a column {missing[0]!r}", got=list(frame), remedy="Add the column.")
    anchor = frame.loc[frame["method"] == REFERENCE, "seed"]
    others = frame.loc[frame["method"] != REFERENCE, "seed"]
    if others.empty or not anchor.is_unique or not set(others) <= set(anchor):
        raise InvalidArgument(
            "frame",
            expected="other methods, and one row of method 'reference' for each of their seeds",
            got=f"{len(anchor)} reference rows for {others.nunique()} seeds",
            remedy="Add policy_outcome(problem.reference, ...) of every seed as method 'reference'.",
        )
