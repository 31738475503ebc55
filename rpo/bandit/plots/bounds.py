"""Figures of the bounds: where the proof loses (waterfall), and the gap against N with its bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from rpo.bandit.bounds.intervals import Slope
from rpo.core import checks
from rpo.plotting import COLORS, CYCLE, NARROW, legend_below, letters, new_figure, style
from rpo.plotting.colors import method_of

if TYPE_CHECKING:
    import pandas

CHAIN_COLORS = {"paper": CYCLE[1], "sharper": CYCLE[4], "hellinger": CYCLE[0]}
DASHES = ((0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)))
SERIES_COLORS = (CYCLE[2], CYCLE[3], CYCLE[6], CYCLE[5], "#777777", CYCLE[0], CYCLE[1])  # a bound has the last two
LINEAR_BELOW = 1e-4  # a gap this far under the bound has no place on a logarithmic axis


def slack_waterfall(frame: pandas.DataFrame) -> Figure:
    """Draw how each step of the proof raises the bound from the gap, one panel a chain.

    frame: rows of `Ledger.to_frame()`, of one or several chains. Axis: reward units, logarithmic
    unless the gap is negligible beside the bound; labels give each step's share of bound - gap.
    """
    columns = ("chain", "number", "name", "slack_reward", "share", "upper_bound")
    checks.table("frame", frame, columns, remedy="Pass what Ledger.to_frame returns.")
    chains = list(dict.fromkeys(frame["chain"]))
    top = float(frame["upper_bound"].max())
    starts = {chain: _start(frame[frame["chain"] == chain]) for chain in chains}
    logarithmic = min(starts.values()) > LINEAR_BELOW * top
    low = 0.6 * min(starts.values()) if logarithmic else min(0.0, *starts.values())
    with style():
        rows = int(frame.groupby("chain").size().max()) + 2
        figure, axes = new_figure(1, len(chains), width=1.2 + 4.4 * len(chains), height=0.9 + 0.32 * rows, sharex=True)
        for chain, axis in zip(chains, axes[0], strict=True):
            steps = frame[frame["chain"] == chain].sort_values("number")
            color, gap = CHAIN_COLORS.get(chain, CYCLE[2]), starts[chain]
            axis.barh(0, gap - low, left=low, color="#999999")
            right = gap
            for position, step in enumerate(steps.itertuples(), start=1):
                left, right = right, float(step.upper_bound)
                axis.barh(position, right - left, left=left, color=color)
                axis.plot([left, left], [position - 1.4, position + 0.4], color="#555555", linewidth=0.7)
                begin, end = (_fraction(edge, low, top, logarithmic) for edge in (left, right))
                if end < 0.75 or begin < 0.25:
                    at, align, shift = right, "left", 4
                else:
                    at, align, shift = left, "right", -4
                if end > 0.85 and begin < 0.25:  # room on neither side
                    at, align, shift = right, "right", -4
                axis.annotate(
                    f"{100 * step.share:.2g} %", (at, position), xytext=(shift, 0), textcoords="offset points",
                    ha=align, va="center", fontsize=letters(8.5),
                )  # fmt: skip
            axis.barh(len(steps) + 1, right - low, left=low, color="#444444")
            labels = ["gap", *(f"{step.number}  {step.name}" for step in steps.itertuples()), "bound"]
            axis.set_yticks(range(len(labels)), labels)
            axis.grid(axis="y", visible=False)
            axis.invert_yaxis()
            axis.set_xscale("log" if logarithmic else "linear")
            axis.set_xlim(low, 1.5 * top if logarithmic else 1.05 * top)
            axis.set_xlabel("upper bound on the gap, reward units")
            axis.set_title(f"{chain}: gap {gap:.2g}, bound {right:.2g}", wrap=True)
    return figure


def gap_against_n(
    gaps: pandas.DataFrame,
    *,
    slopes: Mapping[str, Slope] | None = None,
    bounds: pandas.DataFrame | None = None,
    reward_bound: float | None = None,
) -> Figure:
    """Draw the mean gap against N with standard errors, fitted slopes, and bounds as lines.

    gaps: columns series, n, mean, standard_error (reward units); a point under 3 standard errors is
    hollow. slopes: by series. bounds: columns route, n, value. reward_bound: R, above which a bound
    is vacuous (shaded).
    """
    checks.table("gaps", gaps, ("series", "n", "mean", "standard_error"), remedy="Pass one row a series and n.")
    if bounds is not None:
        checks.table("bounds", bounds, ("route", "n", "value"), remedy="Pass one row a route and n.")
    with style():
        figure, axes = new_figure(1, 1, width=9.6, height=4.6)
        axis = axes[0, 0]
        for index, series in enumerate(dict.fromkeys(gaps["series"])):
            mine = gaps[(gaps["series"] == series) & (gaps["mean"] > 0)].sort_values("n")
            color = SERIES_COLORS[index % len(SERIES_COLORS)]
            if bounds is None:  # else the methods' own colours are those of the bounds
                color = COLORS.get(method_of(str(series)), color)
            label = str(series)
            slope = (slopes or {}).get(series)
            if slope is not None:
                label += f": slope {slope.slope:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
                solid = mine.loc[mine["mean"] > 3 * mine["standard_error"], "n"]
                axis.plot(solid, slope.predict(solid), color=color, linewidth=1.2)
            sure = mine["mean"] > 3 * mine["standard_error"]
            for part, fill in ((mine[sure], color), (mine[~sure], "none")):
                below = part["standard_error"].clip(upper=0.9 * part["mean"])  # a log axis has no zero
                axis.errorbar(
                    part["n"], part["mean"], yerr=[below, part["standard_error"]], fmt="o", markersize=4.5,
                    color=color, markerfacecolor=fill, elinewidth=1.0, capsize=2,
                    label=label if fill == color else None,
                )  # fmt: skip
        if (gaps["mean"] <= 3 * gaps["standard_error"]).any():
            hollow = {"color": "#777777", "markerfacecolor": "none", "markersize": 4.5}
            axis.plot([], [], "o", label="hollow: below 3 standard errors", **hollow)
        if bounds is not None:
            for index, route in enumerate(dict.fromkeys(bounds["route"])):
                line = bounds[bounds["route"] == route].sort_values("n")
                axis.plot(
                    line["n"],
                    line["value"],
                    color=CHAIN_COLORS.get(str(route), "#777777"),
                    linestyle=DASHES[index % len(DASHES)],
                    label=f"bound: {route}",
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        if reward_bound is not None:
            top = max(axis.get_ylim()[1], 3.0 * reward_bound)
            axis.axhspan(reward_bound, top, color="#000000", alpha=0.06)
            axis.set_ylim(axis.get_ylim()[0], top)
            axis.annotate(
                "vacuous: above R", (0.99, reward_bound), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", ha="right", fontsize=letters(8.5), color="#555555",
            )  # fmt: skip
        axis.set_xlabel("N, preferences")
        axis.set_ylabel("gap J(comparator) - J(policy), reward units", wrap=True)
        if figure.get_figwidth() < NARROW:
            legend_below(figure, *axis.get_legend_handles_labels(), columns=2)
        else:
            axis.legend(fontsize=letters(8.5), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _fraction(value: float, low: float, top: float, logarithmic: bool) -> float:
    """Return where `value` lies between the ends of the axis, from 0 to 1."""
    return math.log(value / low) / math.log(top / low) if logarithmic else (value - low) / (top - low)


def _start(steps: pandas.DataFrame) -> float:
    first = steps.sort_values("number").iloc[0]
    return float(first["upper_bound"] - first["slack_reward"])
