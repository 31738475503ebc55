"""Suboptimality against the coverage coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.plotting import COLORS, CYCLE, new_figure, style
from rpo.plotting.colors import method_of

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMNS = ("coverage", "gap", "method")


def gap_against_coverage(frame: Any, *, bins: int = 8, points: bool = True) -> Figure:
    """Draw the suboptimality gap against C on a log axis: instances as dots, means of equal-count bins above them.

    frame: one row an instance and method, with columns coverage (> 0, inf where uncovered), gap (reward
    units) and method. Bars are one standard error of the mean; the bins are the same for every method.
    Uncovered instances stand at the right margin, behind a dashed line; coverage 0 at the left margin.
    Raises InvalidArgument.
    """
    count = checks.integer("bins", bins, minimum=1)
    checks.table("frame", frame, COLUMNS, remedy="Pass one row an instance and method.")
    coverage = checks.numbers("frame['coverage']", frame["coverage"])
    gap = checks.finite("frame['gap']", frame["gap"], shape=coverage.shape)
    if not (coverage >= 0).all():
        raise InvalidArgument(
            "frame['coverage']", expected="numbers >= 0 or inf", got=coverage[~(coverage >= 0)][0], remedy="Drop them."
        )
    method = np.asarray(frame["method"]).astype(str)
    inside = np.isfinite(coverage) & (coverage > 0)
    place, margins = _places(coverage, inside)
    edges = np.quantile(coverage[inside], np.linspace(0, 1, count + 1)) if inside.any() else np.array([])
    which = np.where(inside, np.clip(np.searchsorted(edges, coverage, side="right") - 1, 0, count - 1), -1)
    which = np.where(np.isinf(coverage), count, which)
    with style():
        figure, axes = new_figure(1, 1, width=7.2, height=4.4)
        axis = axes[0, 0]
        axis.set_xscale("log")
        methods = list(dict.fromkeys(method))
        for index, name in enumerate(methods):
            color = COLORS.get(method_of(name), CYCLE[index % len(CYCLE)])
            mine = method == name
            nudge = 1.0 + 0.035 * (index - (len(methods) - 1) / 2)  # keeps bars of several methods apart
            if points:
                axis.plot(place[mine] * nudge, gap[mine], ".", ms=5, color=color, alpha=0.3, mew=0, zorder=1)
            means = [_mean(place, gap, mine & (which == b)) for b in range(-1, count + 1)]
            marker = MARKERS[index % len(MARKERS)]
            bar = {"color": color, "marker": marker, "ms": 5.5, "capsize": 2.5, "lw": 1.6, "zorder": 3}
            curve = np.array([m for m in means[1:-1] if m is not None]).reshape(-1, 3)
            axis.errorbar(curve[:, 0] * nudge, curve[:, 1], curve[:, 2], label=name, **bar)
            for mean in (means[0], means[-1]):
                if mean is not None:
                    axis.errorbar(mean[0] * nudge, mean[1], mean[2], **{**bar, "lw": 0, "elinewidth": 1.6})
        for _, _, wall in margins:
            axis.axvline(wall, color="#808080", ls="--", lw=0.9)
        axis.set_ylim(bottom=min(0.0, float(gap.min())))
        _label_axis(axis, coverage[inside], margins)
        axis.set_xlabel("coverage coefficient C (larger: worse covered)")
        axis.set_ylabel("suboptimality gap, reward units", wrap=True)
        axis.legend(loc="upper left")
    return figure


def _places(coverage: Any, inside: Any) -> tuple[Any, list[tuple[float, str, float]]]:
    """Return where each row stands on the axis, and (position, label, wall) of the margins in use."""
    low, high = (coverage[inside].min(), coverage[inside].max()) if inside.any() else (0.5, 2.0)
    step = max((high / low) ** 0.09, 1.25)
    place = np.where(np.isinf(coverage), high * step**2, np.where(coverage == 0, low / step**2, coverage))
    ticks = []
    if np.isinf(coverage).any():
        ticks.append((float(high * step**2), "infinite", float(high * step)))
    if (coverage == 0).any():
        ticks.append((float(low / step**2), "0", float(low / step)))
    return place, ticks


def _label_axis(axis: Any, coverage: Any, margins: list[tuple[float, str, float]]) -> None:
    """Plain numbers 1, 2, 5 times powers of ten (fewer on a long axis) within the data, and the margins' names."""
    low, high = (coverage.min(), coverage.max()) if coverage.size else (1.0, 1.0)
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    leading = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [m * 10.0**d for d in decades for m in leading if low / 1.1 <= m * 10.0**d <= high * 1.05]
    axis.set_xticks([*ticks, *(at for at, _, _ in margins)], [*(f"{t:g}" for t in ticks), *(t for _, t, _ in margins)])
    axis.minorticks_off()


def _mean(place: Any, gap: Any, rows: Any) -> tuple[float, float, float] | None:
    """Return (geometric mean place, mean gap, standard error) of the rows, or None without any."""
    size = int(rows.sum())
    if not size:
        return None
    error = float(gap[rows].std(ddof=1) / np.sqrt(size)) if size > 1 else 0.0
    return float(np.exp(np.log(place[rows]).mean())), float(gap[rows].mean()), error
