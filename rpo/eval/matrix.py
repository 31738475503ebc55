"""Win rates of models against models as a table: row against column, as in the paper's Tables 4 to 9."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from rpo.core import checks, shown
from rpo.eval.ranking import Ranking
from rpo.eval.win_rates import Comparison

Cell = Callable[[float, tuple[float, float]], str]


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the matrix in percent, with Wilson intervals in brackets."""

    def cell(rate: float, ends: tuple[float, float]) -> str:
        return f"{_percent(rate)}" + (f" [{_percent(ends[0])}, {_percent(ends[1])}]" if ends[0] == ends[0] else "")

    (corner, *names), *rows = _cells(comparisons, cell)
    header = [corner, *map(shown.markdown, names)]
    lines = [header, ["---"] * len(header), *([shown.markdown(name), *cells] for name, *cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_text(comparisons: Sequence[Comparison]) -> str:
    """Return the matrix in percent, in aligned columns."""
    rows = [list(map(shown.line, row)) for row in _cells(comparisons, lambda rate, ends: _percent(rate))]
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
    rows = _cells(comparisons, lambda rate, ends: f"{rate:.10g}", absent="")
    csv.writer(text, lineterminator="\n").writerows([*map(shown.cell, row)] for row in rows)
    return text.getvalue()


def sentence(comparison: Comparison) -> str:
    """Return a comparison in words."""
    win, controlled = checks.instance("comparison", comparison, Comparison).win, comparison.length_controlled
    intervals = {f"Wilson {100 * win.level:g} %": win.wilson, "bootstrap": win.bootstrap}
    known = [f"{name} {_range(ends)}" for name, ends in intervals.items() if ends[0] == ends[0]]
    known += [f"no {'bootstrap' if known else 'interval'}: {win.message}"] if win.message else []
    equal = f"no rate at equal length: {controlled.message}"
    if controlled.rate == controlled.rate:
        range_ = f"no interval: {controlled.message}" if controlled.message else _range(controlled.interval)
        equal = f"at equal length {_percent(controlled.rate)} % ({range_})"
    left = f"; {comparison.undecided} pairs without a result are left out" if comparison.undecided else ""
    return (
        f"{shown.line(comparison.model_a)} against {shown.line(comparison.model_b)}: {_percent(win.rate)} % "
        f"({', '.join(known)}), {win.prompts} prompts: {win.wins} wins, {win.ties} ties, {win.losses} losses; "
        f"{equal}{left}"
    )


def ranking_text(ranking: Ranking) -> str:
    """Return the ranking, a line a model; or why there is none, or no interval."""
    checks.instance("ranking", ranking, Ranking)
    if ranking.message and any(strength != strength for strength in ranking.strengths):
        return f"No Bradley-Terry strengths: {shown.line(ranking.message)}"
    names = list(map(shown.line, ranking.models))
    width = max(map(len, names))
    lines = [
        f"{name.ljust(width)}  {strength:+.3f}  "
        + (f"({low:+.3f} to {high:+.3f})" if low == low else f"(no interval: {ranking.message})")
        for name, strength, (low, high) in zip(names, ranking.strengths, ranking.intervals, strict=True)
    ]
    return "\n".join([f"Bradley-Terry strengths, log-odds ({100 * ranking.level:g} % interval):", *lines])


def _cells(comparisons: Sequence[Comparison], cell: Cell, *, absent: str = "-") -> list[list[str]]:
    """Return header and rows; the diagonal is left open."""
    comparisons = checks.instances("comparisons", comparisons, Comparison)
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
