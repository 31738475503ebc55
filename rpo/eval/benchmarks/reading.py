"""From files and folders of results, whichever tool wrote them, to one list."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.benchmarks import alpaca_eval, lm_eval, mt_bench
from rpo.eval.benchmarks.files import read_json
from rpo.eval.benchmarks.results import BenchmarkResult, unreadable

# What is looked for in a folder.
PATTERNS = ("leaderboard.csv", "annotations.json", "*_single.jsonl", "results_*.json")


def read_results(sources: Sequence[str | Path], models: Collection[str] | None = None) -> list[BenchmarkResult]:
    """Return the results in `sources`: files of AlpacaEval, MT-Bench or lm-eval, or folders with such files in them.

    models: which to return, by the names the files use; None for all that were evaluated. A file named twice is read
    once. Raises InvalidArgument.
    """
    files: dict[Path, Path] = {}
    models = None if models is None else checks.instances("models", models, str)
    for source in checks.listed("sources", sources):
        path = checks.path("sources", source)
        inside = _inside(path) if path.is_dir() else [path]
        if not inside:
            raise InvalidArgument(
                "sources",
                expected="results: " + ", ".join(PATTERNS),
                got=f"none under {path}",
                remedy="Check the path.",
            )
        for one in inside:
            files.setdefault(one.resolve(), one)
    results = [result for path in files.values() for result in _read(path, models)]
    absent = sorted(set(models or ()) - {result.model for result in results})
    if absent or not results:
        raise InvalidArgument(
            "models",
            expected="names that occur in the sources",
            got=", ".join(absent) or "no results",
            remedy="Leave models out to see what there is.",
        )
    if all(result.value is None for result in results):
        raise InvalidArgument(
            "sources", expected="at least one number", got=unreadable(results)[0], remedy="Look at the file."
        )
    return results


def _inside(folder: Path) -> list[Path]:
    found = sorted({path for pattern in PATTERNS for path in folder.rglob(pattern)})
    # A leaderboard takes what it needs from the annotations beside it.
    return [path for path in found if path.name != "annotations.json" or path.with_name("leaderboard.csv") not in found]


def _read(path: Path, models: Collection[str] | None) -> list[BenchmarkResult]:
    if path.suffix == ".csv":
        return alpaca_eval.read_leaderboard(path, models)
    if path.suffix == ".jsonl":
        return mt_bench.read_judgments(path, models)
    record = read_json("sources", path)
    if isinstance(record, list):
        return [result for result in alpaca_eval.read_annotations(path) if models is None or result.model in models]
    return lm_eval.read_results(path, models)
