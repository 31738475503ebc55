"""The atlas in three pictures: a row a method, a map an instance, gold against KL behind both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rpo.compare.atlas.run import Atlas
from rpo.compare.atlas.summary import curve
from rpo.methods.registry import EMPTIED, FLOODED, FREE, METHODS, SET
from rpo.plotting import COLORS, new_figure, style
from rpo.plotting.overoptimization import root_scale

if TYPE_CHECKING:
    import pandas

CONTROL, LISTS = "even", "lists"
MARKERS = {FREE: "o", EMPTIED: "v", SET: "s", FLOODED: "^"}
WORDS = {
    FREE: "free: nothing pulls at unseen responses",
    EMPTIED: "emptied: unseen mass goes to zero",
    SET: "set: unseen mass goes to a number of its own",
    FLOODED: "flooded: unseen mass takes the rest",
}
TINTS = {FREE: "#D55E00", EMPTIED: "#0072B2", SET: "#56B4E9", FLOODED: "#8C6D1F"}
PARTS = {"over/unseen": "#999999", "over/rare": "#CC79A7", "over/often": "#E6B8D0"}
PART_WORDS = {"over/unseen": "never compared", "over/rare": "rarely compared", "over/often": "often compared"}
NAMED = ("DPO", "RPO", "RPO, base = reference")
FEW = 6  # methods that are all named along their curves
FALLEN = 0.02  # of gold, from which a method is named on the map
COLUMNS, LEGEND = 4, 7.6  # panels in a row; inches that the legend takes
KL_TICKS = (0.0, 0.1, 0.5, 1.0, 2.0)
CERTAIN = 0.99  # share of certified policies from which a marker is filled


def rows_figure(frame: pandas.DataFrame) -> Figure:
    """Draw one row a method: what it believes to have gained at its path's end, and what it has.

    Means over the hard instances of pairs. The bar is the overestimate, by how often the responses were compared.
    """
    hard = hard_pairs(frame)
    values = ["peak", "end", "drop", "over", "certified", *PARTS]
    means = hard.groupby("method", sort=False)[values].mean().sort_values("over")
    pulls = frame.groupby("method", sort=False)["pull/found"].first()
    with style():
        figure, axes = new_figure(1, 1, width=9.0, height=0.34 * len(means) + 1.6)
        axis = axes[0, 0]
        for place, (_, row) in enumerate(means.iterrows()):
            left = row["end"]
            for part, tint in PARTS.items():
                low = row[part] * row["over"] < 0  # it takes some of the others' off: a thin bar on top of theirs
                height, above = (0.2, 2.5) if low else (0.56, 2)
                axis.barh(place, row[part], left=left, height=height, color=tint, alpha=0.85, zorder=above)
                left += row[part]
            axis.plot([row["end"], row["peak"]], [place] * 2, color=COLORS["gold"], linewidth=2.4, zorder=3)
            filled = COLORS["gold"] if row["certified"] >= CERTAIN else "white"
            axis.plot(row["end"], place, "o", color=COLORS["gold"], markerfacecolor=filled, markersize=7, zorder=4)
            axis.plot(row["peak"], place, "|", color=COLORS["gold"], markersize=11, markeredgewidth=2, zorder=4)
            axis.plot(left, place, "D", color=COLORS["proxy"], markersize=5, zorder=4)
        axis.set_yticks(range(len(means)), [str(name) for name in means.index])
        for label, name in zip(axis.get_yticklabels(), means.index, strict=True):
            label.set_color(TINTS[pulls[name]])
        axis.axvline(0.0, color="#444444", linewidth=0.8)
        axis.set_xlabel("reward over the reference's, log-odds")
        figure.suptitle("Losses of differences alone overestimate their own reward most")
        figure.legend(handles=_row_legend(), loc="outside lower left", ncols=2, fontsize=8.5)
    return figure


def hard_pairs(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows that means are taken over: neither the control nor lists, on which other methods run too."""
    kept = frame[~frame["instance"].isin((CONTROL, LISTS))]
    return frame if kept.empty else kept


def map_figure(frame: pandas.DataFrame) -> Figure:
    """Draw an instance a panel: what a method overestimates at its path's end, and how far gold has fallen."""
    names = list(dict.fromkeys(frame["instance"]))
    with style():
        figure, axes = _grid(len(names), width=2.9, height=2.7)
        for axis, name in zip(axes, names, strict=False):
            for _, row in frame[frame["instance"] == name].iterrows():
                tint = TINTS[row["pull/found"]]
                filled = tint if row["certified"] >= CERTAIN else "white"
                bars = np.abs(np.array([[row["drop"] - row["drop/low"]], [row["drop/high"] - row["drop"]]]))
                axis.errorbar(row["over"], row["drop"], yerr=bars, color=tint, linewidth=0.8, alpha=0.5)
                marker = MARKERS[row["pull/found"]]
                axis.plot(row["over"], row["drop"], marker, color=tint, markerfacecolor=filled, markersize=6)
                if row["drop/low"] > FALLEN:
                    axis.annotate(
                        row["method"], (row["over"], row["drop"]), (4, 3), textcoords="offset points", fontsize=7
                    )
            axis.set_title(name)
            axis.axhline(0.0, color="#444444", linewidth=0.8)
        _label(axes, "overestimate at the path's end", "fall of gold from its peak")
        figure.legend(handles=_pull_legend(hollow=True), loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def curves_figure(made: Atlas, pulls: dict[str, str]) -> Figure:
    """Draw an instance a panel: gold against KL along every method's path, defaults as dots."""
    with style():
        figure, axes = _grid(len(made.instances), width=3.1, height=2.7)
        for i, axis in zip(range(len(made.instances)), axes, strict=False):
            for e, entrant in enumerate(made.entrants):
                kl, gold = (curve(made, i, e, name) for name in ("kl", "gold"))
                named = (entrant.name not in METHODS and entrant.name not in NAMED) or len(made.entrants) <= FEW
                headline = named or entrant.name in NAMED
                options: dict[str, Any] = {"color": TINTS[pulls[entrant.name]], "zorder": 3 if headline else 2}
                axis.plot(kl, gold, linewidth=1.8 if headline else 0.8, alpha=1.0 if headline else 0.45, **options)
                if entrant.default is not None:
                    k = entrant.values.index(entrant.default)
                    axis.plot(kl[k], gold[k], ".", markersize=7 if headline else 4, **options)
                if named:
                    place = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right"}
                    axis.annotate(entrant.name, (kl[-1], gold[-1]), fontsize=7, zorder=5, **place)
            axis.axhline(0.0, color="#444444", linewidth=0.8)
            axis.set_title(made.instances[i].name)
            root_scale(axis)
            axis.set_xlim(left=0.0)
            axis.set_xticks(KL_TICKS, [f"{tick:g}" for tick in KL_TICKS])
        _label(axes, "KL from the reference, nats", "gold over the reference's")
        thick = [
            Line2D([], [], color=TINTS[pulls[name]], linewidth=2.6, label=f"{name} (thick)")
            for name in NAMED
            if name in pulls and len(made.entrants) > FEW
        ]
        handles = [*_pull_legend(hollow=False), *thick]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _grid(panels: int, *, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure, axes = new_figure(rows, columns, width=max(width * columns, LEGEND), height=height * rows + 0.7)
    flat = list(axes.ravel())
    for axis in flat[panels:]:
        axis.set_visible(False)
    return figure, flat


def _label(axes: Sequence[Any], x: str, y: str) -> None:
    """Name the axes at the lower and the left edge of a grid, where nothing else stands."""
    shown = [axis for axis in axes if axis.get_visible()]
    for number, axis in enumerate(shown):
        if number + COLUMNS >= len(shown):
            axis.set_xlabel(x, fontsize=9)
        if number % COLUMNS == 0:
            axis.set_ylabel(y, fontsize=9)


def _pull_legend(*, hollow: bool) -> list[Any]:
    found: list[Any] = [
        Line2D(
            [],
            [],
            color=TINTS[name],
            marker=MARKERS[name] if hollow else "",
            linestyle="" if hollow else "-",
            label=word,
        )
        for name, word in WORDS.items()
    ]
    if hollow:
        found.append(
            Line2D([], [], color="#444444", marker="o", markerfacecolor="white", linestyle="", label="not certified")
        )
    else:
        found.append(Line2D([], [], color="#444444", marker=".", linestyle="", label="the method's own default"))
    return found


def _row_legend() -> list[Any]:
    gold, proxy = COLORS["gold"], COLORS["proxy"]
    return [
        Line2D([], [], color=gold, marker="o", linestyle="", label="gold at the path's end (hollow: not certified)"),
        Line2D(
            [], [], color=gold, marker="|", markersize=11, markeredgewidth=2, linestyle="", label="gold at its peak"
        ),
        Line2D([], [], color=proxy, marker="D", markersize=5, linestyle="", label="proxy at the path's end"),
        *(Patch(color=PARTS[part], label=f"overestimate, responses {word}") for part, word in PART_WORDS.items()),
        *(Patch(color=TINTS[name], label=f"name of a method, {word}") for name, word in WORDS.items()),
    ]
