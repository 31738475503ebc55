"""One tidy table for what every benchmark reports: a row for each model, benchmark and metric."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo.core import checks, shown
from rpo.core.records import environment, jsonable, staged_output, write_json

if TYPE_CHECKING:
    import pandas

NORMAL_975 = 1.959963984540054
COLUMNS = (
    "model", "benchmark", "metric", "value", "standard_error", "low", "high", "n", "missing", "source", "settings",
)  # fmt: skip
SHOWN = COLUMNS[:-2]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One number with its evidence.

    value: in the tool's own unit: per cent (AlpacaEval), points of ten (MT-Bench), usually a fraction (lm-eval); None
    where the file has something else than a number. standard_error: in the same unit; None where the tool gives none.
    n: what the value is a mean over. missing: answers that brought no score; they are not in the value. bounds: an
    interval of its own, where a normal one would not do. source: the file it was read from. settings: what else the
    file says of how it came about, and under "unreadable" what stands where a number should.
    """

    model: str
    benchmark: str
    metric: str
    value: float | None
    standard_error: float | None
    n: int | None
    missing: int = 0
    source: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """`bounds`, or the 95 % normal interval, value -/+ 1.96 standard errors; None without either."""
        if self.bounds is not None:
            return self.bounds
        if self.value is None or self.standard_error is None:
            return None
        half = NORMAL_975 * self.standard_error
        return (self.value - half, self.value + half)

    def to_row(self) -> dict[str, Any]:
        """Return the columns of the table, in order."""
        low, high = self.interval or (None, None)
        row = {**asdict(self), "low": low, "high": high}
        return {name: row[name] for name in COLUMNS}


def to_frame(results: Iterable[BenchmarkResult]) -> pandas.DataFrame:
    """Return a tidy DataFrame with the columns `COLUMNS`, one row a result."""
    import pandas

    found = checks.instances("results", results, BenchmarkResult)
    return pandas.DataFrame([result.to_row() for result in found], columns=list(COLUMNS))


def to_markdown(results: Sequence[BenchmarkResult]) -> str:
    """Return the table in Markdown, without source and settings; an empty cell is unknown."""
    results = checks.instances("results", results, BenchmarkResult)
    cells = [list(SHOWN), *([_cell(result.to_row()[name]) for name in SHOWN] for result in results)]
    width = [max(len(row[k]) for row in cells) for k in range(len(SHOWN))]
    lines = ["| " + " | ".join(text.ljust(width[k]) for k, text in enumerate(row)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (size + 2) for size in width) + "|")
    return "\n".join(lines)


def save(
    results: Sequence[BenchmarkResult], directory: str | Path, *, overwrite: bool = False, resolved: str = ""
) -> Path:
    """Write results.csv, results.md, config.yaml and results.json (with the environment), all or none.

    Raises OutputError, and InvalidArgument where a table is there and overwrite is false.
    """
    results = checks.instances("results", results, BenchmarkResult)
    checks.instance("resolved", resolved, str)
    with staged_output(checks.path("directory", directory), overwrite=overwrite, marker="results.json") as stage:
        with (stage / "results.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for result in results:
                row = result.to_row()
                row["settings"] = json.dumps(jsonable(row["settings"]), sort_keys=True)
                writer.writerow(
                    {name: shown.cell(item) if isinstance(item, str) else item for name, item in row.items()}
                )
        (stage / "results.md").write_text(to_markdown(results) + "\n", encoding="utf-8")
        (stage / "config.yaml").write_text(resolved, encoding="utf-8")
        rows = [result.to_row() for result in results]
        write_json(stage / "results.json", {"results": rows, "environment": environment()})
    return Path(directory)


def number(value: Any) -> float | None:
    """Return what a cell says; None for an empty one ("", None). Raises ValueError for what is no finite number."""
    if value is None or value == "":
        return None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, ValueError):
            found = float(value)
            if math.isfinite(found):
                return found
    raise ValueError(repr(value)[:40])


def numbers(cells: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Return the numbers of named cells, None for bad ones, and these as the settings "unreadable" ({} if none)."""
    found: dict[str, float | None] = {}
    bad = []
    for name, value in cells.items():
        try:
            found[name] = number(value)
        except ValueError as error:
            found[name] = None
            bad.append(f"{name}: {error}")
    return found, {"unreadable": bad} if bad else {}


def unreadable(results: Iterable[BenchmarkResult]) -> list[str]:
    """Return a line for each result beside which something else than a number stands."""
    lines = []
    for result in results:
        cells = result.settings.get("unreadable", [])
        if cells:
            first = "; ".join(cells[:3]) + ("; ..." if len(cells) > 3 else "")
            where = f"{result.metric} of {result.model}, {result.benchmark}, {result.source}"
            lines.append(shown.line(f"{len(cells)} cells left out, for they are no numbers ({where}): {first}"))
    return lines


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of independent values and its standard error (None for a single one)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else shown.markdown(value)
