"""One figure style for bandit, llm and compare: colour-blind safe, readable in print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from rpo.core.records import check_file

if TYPE_CHECKING:
    import pandas

# Okabe and Ito's palette (2008); each thing keeps its colour in every figure.
COLORS = {
    "theory": "#000000",
    "table": "#E69F00",
    "transformer": "#0072B2",
    "RPO": "#0072B2",
    "DPO": "#D55E00",
    "IPO": "#009E73",
    "SimPO": "#E69F00",
    "ChiPO": "#CC79A7",
    "KTO": "#56B4E9",
    "gold": "#009E73",
    "proxy": "#CC79A7",
}
NORMAL_95 = 1.96  # standard errors either side of a mean
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

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
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style within the block."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return (Figure, axes (rows, columns)), sizes in inches; call within `style()`."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path, data: pandas.DataFrame) -> None:
    """Write the figure as PNG, the same bytes for the same one, and its data as CSV beside it. Raises OutputError."""
    check_file("output", path)
    data.to_csv(check_file("output", path.with_suffix(".csv")), index=False)
    with style():
        figure.savefig(path, format="png", metadata={"Software": None})
