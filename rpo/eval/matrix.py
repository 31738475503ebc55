"""Win rates of models against models as a table: row against column, as in the paper's Tables 4 to 9."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from rpo.eval.ranking import Ranking
from rpo.eval.win_rates import Comparison

Cell = Callable[[float, tuple[float, float]], str]


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the matrix in percent, with Wilson intervals in brackets."""
    header, *rows = _cells(
        comparisons, lambda rate, ends: f"{_percent(rate)} [{_percent(ends[0])}, {_percent(ends[1])}]"
    )
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def to_text(comparisons: Sequence[Comparison]) -> str:
    """Return the matrix in percent, in aligned columns."""
    rows = _cells(comparisons, lambda rate, ends: _percent(rate))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return the matrix as shares; empty where two models did not meet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_cells(comparisons, lambda rate, ends: f"{rate:.10g}", absent=""))
    return text.getvalue()


def sentence(comparison: Comparison) -> str:
    """Return a comparison in words."""
    win, controlled = comparison.win, comparison.length_controlled
    level = f"{100 * win.level:g} %"
    equal = (
        f"at equal length {_percent(controlled.rate)} % ({_range(controlled.interval)})"
        if not controlled.message
        else f"no rate at equal length: {controlled.message}"
    )
    left = f"; {comparison.undecided} pairs without a result are left out" if comparison.undecided else ""
    return (
        f"{comparison.model_a} against {comparison.model_b}: {_percent(win.rate)} % (Wilson {level} "
        f"{_range(win.wilson)}, bootstrap {_range(win.bootstrap)}), {win.prompts} prompts: {win.wins} wins, "
        f"{win.ties} ties, {win.losses} losses; {equal}{left}"
    )


def ranking_text(ranking: Ranking) -> str:
    """Return the ranking, a line a model; or why there is none."""
    if ranking.message:
        return f"No Bradley-Terry strengths: {ranking.message}"
    width = max(map(len, ranking.models))
    lines = [
        f"{name.ljust(width)}  {strength:+.3f}  ({low:+.3f} to {high:+.3f})"
        for name, strength, (low, high) in zip(ranking.models, ranking.strengths, ranking.intervals, strict=True)
    ]
    return "\n".join([f"Bradley-Terry strengths, log-odds ({100 * ranking.level:g} % interval):", *lines])


def _cells(comparisons: Sequence[Comparison], cell: Cell, *, absent: str = "-") -> list[list[str]]:
    """Return header and rows; the diagonal is left open."""
    models = list(dict.fromkeys(name for one in comparisons for name in (one.model_a, one.model_b)))
    found: dict[tuple[str, str], str] = {}
    for one in comparisons:
        (low, high), rate = one.win.wilson, one.win.rate
        found[one.model_a, one.model_b] = cell(rate, (low, high))
        found[one.model_b, one.model_a] = cell(1.0 - rate, (1.0 - high, 1.0 - low))
    rows = [[row, *(found.get((row, column), absent) for column in models)] for row in models]
    return [["win rate of row against column", *models], *rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(interval: tuple[float, float]) -> str:
    return f"{_percent(interval[0])} to {_percent(interval[1])} %"
