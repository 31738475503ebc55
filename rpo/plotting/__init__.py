"""One figure style for bandit, llm and compare: colour-blind safe, readable in print."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rpo.core import checks
from rpo.core.records import check_file
from rpo.plotting.colors import COLORS, CYCLE, color_of, colors_of
from rpo.plotting.tables import mean_table

if TYPE_CHECKING:
    import pandas

__all__ = [
    "COLORS", "CYCLE", "FORMATS", "NARROW", "NORMAL_95", "STYLE", "band", "band_key", "color_of", "colors_of",
    "figure_size", "legend_below", "letters", "mean_table", "new_figure", "paper", "possible", "save", "style",
]  # fmt: skip

NORMAL_95 = 1.96  # standard errors either side of a mean
FORMATS = ("png", "pdf", "svg")
# Without dates and names of programs, so that the same figure is the same bytes.
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
SMALLEST = 1.9  # inches of height: below it titles and ticks collide
MORE = 1.1  # inches for each further row of panels
NARROW = 4.5  # inches of width, below which labels stand in more lines
STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",  # also in a dark notebook
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": cycler(color=CYCLE),
    "pdf.fonttype": 42,  # TrueType, which journals take and editors can change; Type 3 they refuse
    "ps.fonttype": 42,
    "svg.fonttype": "none",  # text stays text, which can be searched and edited
    "svg.hashsalt": "rpo",
}
PRINTED: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
}
SHOWN: dict[str, Any] = {
    "font.size": 17,
    "axes.titlesize": 18,
    "legend.fontsize": 16,
    "xtick.labelsize": 16,
    "ytick.labelsize": 16,
    "lines.linewidth": 3.0,
    "lines.markersize": 9,
    "axes.linewidth": 1.2,
}


@dataclass(frozen=True)
class Sheet:
    """What figures are drawn for: inches of width, and of height where it is fixed; how letters and lines are."""

    width: float
    height: float | None
    style: dict[str, Any]


# Columns and pages are those of the usual two-column proceedings; a slide is 16:9.
SHEETS = {
    "column": Sheet(3.25, None, PRINTED),
    "page": Sheet(6.75, None, PRINTED),
    "slide": Sheet(13.333, 7.5, SHOWN),
}
_sheet: ContextVar[Sheet | None] = ContextVar("sheet", default=None)


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style within the block."""
    sheet = _sheet.get()
    with matplotlib.rc_context(STYLE if sheet is None else STYLE | sheet.style):
        yield


@contextmanager
def paper(width: str | float = "column") -> Iterator[None]:
    """Draw the figures of the block for print, as wide as a "column", a "page" or so many inches, or for a "slide".

    In print letters have 8 points, and a figure keeps its proportions where there is room for them. A slide is 16:9,
    13.3 inches wide, with letters of 16 to 18 points. Raises InvalidArgument.
    """
    if isinstance(width, str):
        sheet = SHEETS[checks.one_of("width", width, tuple(SHEETS))]
    else:
        sheet = Sheet(checks.positive("width", width), None, PRINTED)
    token = _sheet.set(sheet)
    try:
        yield
    finally:
        _sheet.reset(token)


def figure_size(width: float, height: float) -> tuple[float, float]:
    """Return the size of a figure of width x height inches: itself, or within `paper` that of the sheet."""
    sheet = _sheet.get()
    if sheet is None:
        return width, height
    return sheet.width, sheet.height or max(SMALLEST, height * sheet.width / width)


def letters(size: float) -> float:
    """Return a size of letters, in points of a figure on the screen, as it is in the style applied."""
    return float(size * matplotlib.rcParams["font.size"] / STYLE["font.size"])


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str] | None = None, *, columns: int) -> None:
    """Put a legend below the axes, in as many columns, up to `columns`, as the figure has room for.

    In print the figure grows by the rows that this adds: the axes keep their height.
    """
    named = [handle.get_label() for handle in handles] if labels is None else labels
    room = figure.get_figwidth() * figure.dpi
    for many in range(max(1, min(columns, len(handles))), 0, -1):
        legend = figure.legend(handles, named, loc="outside lower center", ncols=many)
        extent = legend.get_window_extent()
        if many == 1 or extent.width <= room:
            break
        legend.remove()
    sheet = _sheet.get()
    if sheet is not None and sheet.height is None:
        rows, planned = -(-len(handles) // many), -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + (rows - planned) / rows * extent.height / figure.dpi)


def new_figure(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return (Figure, axes (rows, columns)), sizes in inches; call within `style()`."""
    size = figure_size(width, height)
    sheet = _sheet.get()
    if sheet is not None and sheet.height is None:
        size = size[0], max(size[1], SMALLEST + MORE * (rows - 1))
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def band(axis: Any, name: str, x: Any, mean: Any, half: Any, **options: Any) -> None:
    """Shade mean +- half of the metric `name`, as far as it can be: no win rate below 0, no log-probability above 0."""
    low, high = possible(name)
    middle, width = np.asarray(mean, dtype=np.float64), np.asarray(half, dtype=np.float64)
    ends = (np.clip(end, low, high) for end in (middle - width, middle + width))
    axis.fill_between(x, *ends, **{"alpha": 0.18, "linewidth": 0, **options})


def possible(name: str) -> tuple[float, float]:
    """Return the least and largest value that a metric of this name can have."""
    if any(word in name for word in ("win_rate", "share", "accuracies", "repetition")):
        return 0.0, 1.0
    if "logps" in name and "change" not in name:
        return -np.inf, 0.0
    return (0.0, np.inf) if name.startswith(("kl/", "loss/preference")) else (-np.inf, np.inf)


def band_key(label: str = "95 % band") -> Patch:
    """Return what stands in a legend for bands, which have the colours of their lines."""
    return Patch(facecolor="#777777", alpha=0.3, linewidth=0, label=label)


def save(figure: Figure, path: str | os.PathLike[str], data: pandas.DataFrame | None = None) -> None:
    """Write the figure as its name ends (.png, .pdf, .svg), and its data, if given, as CSV beside it.

    The same figure is the same bytes. PDF has its fonts as TrueType; in SVG text stays text. Raises OutputError.
    """
    target = check_file("output", path)
    kind = checks.one_of("output", target.suffix.lower().removeprefix("."), FORMATS)
    if data is not None:
        data.to_csv(check_file("output", target.with_suffix(".csv")), index=False)
    with style():
        figure.savefig(target, format=kind, metadata=METADATA[kind])
