"""One figure style for bandit, llm and compare: colour-blind safe, readable in print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
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
    "COLORS", "CYCLE", "FORMATS", "NORMAL_95", "STYLE", "band", "band_key", "color_of", "colors_of", "figure_size",
    "mean_table", "new_figure", "paper", "possible", "save", "style",
]  # fmt: skip

NORMAL_95 = 1.96  # standard errors either side of a mean
FORMATS = ("png", "pdf", "svg")
# Without dates and names of programs, so that the same figure is the same bytes.
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
WIDTHS = {"column": 3.25, "page": 6.75}  # inches, of the usual two-column proceedings
SMALLEST = 1.9  # inches of height: below it titles and ticks collide
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
_printed_width: ContextVar[float | None] = ContextVar("printed_width", default=None)


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style within the block."""
    with matplotlib.rc_context(STYLE if _printed_width.get() is None else STYLE | PRINTED):
        yield


@contextmanager
def paper(width: str | float = "column") -> Iterator[None]:
    """Draw the figures of the block for print: as wide as a "column", a "page" or so many inches, in 8 points.

    A figure keeps its proportions where there is room for them. Raises InvalidArgument.
    """
    if isinstance(width, str):
        checks.one_of("width", width, tuple(WIDTHS))
    token = _printed_width.set(WIDTHS[width] if isinstance(width, str) else checks.positive("width", width))
    try:
        yield
    finally:
        _printed_width.reset(token)


def figure_size(width: float, height: float) -> tuple[float, float]:
    """Return the size of a figure of width x height inches: itself, or within `paper` the printed one."""
    printed = _printed_width.get()
    return (width, height) if printed is None else (printed, max(SMALLEST, height * printed / width))


def new_figure(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return (Figure, axes (rows, columns)), sizes in inches; call within `style()`."""
    figure = Figure(figsize=figure_size(width, height))
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


def save(figure: Figure, path: Path, data: pandas.DataFrame) -> None:
    """Write the figure as its name ends (.png, .pdf, .svg), and its data as CSV beside it. Raises OutputError.

    The same figure is the same bytes. Fonts are embedded as TrueType.
    """
    kind = checks.one_of("output", path.suffix.lower().removeprefix("."), FORMATS)
    check_file("output", path)
    data.to_csv(check_file("output", path.with_suffix(".csv")), index=False)
    with style():
        figure.savefig(path, format=kind, metadata=METADATA[kind])
