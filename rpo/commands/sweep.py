"""`grid:` in a recipe of `rpo train`: a run for every combination of values, each in a folder named by its own.

The same command goes on after a kill: a run with a record is done, one with checkpoints continues. Every combination is
parsed before the first begins.
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rpo.commands.choices import Given
from rpo.core.errors import InvalidArgument, shown
from rpo.core.records import Run, write_file

if TYPE_CHECKING:
    import pandas

GRID, FOLDER, SEED = "grid", "training.output_dir", "training.seed"
TABLE = "sweep.csv"
CONFIG, RECORD = "config.yaml", "run.json"
MOST_RUNS = 1000
# What the table shows of each run, where it was logged.
METRICS = (
    "loss", "loss/preference", "loss/sft", "rewards/margins", "rewards/accuracies", "displacement/share", "eval_loss",
    "eval_loss/preference", "eval_rewards/margins", "eval_rewards/accuracies", "eval_displacement/share",
    "eval_displacement/chosen_change", "eval_win_rate",
)  # fmt: skip
TOTALS = ("loss", "eval_loss")  # of the whole objective, so that those of two objectives do not compare


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its name, and the value of each dotted option."""

    name: str
    values: Mapping[str, Any]

    def options(self) -> list[str]:
        """Return its values as options of the command line."""
        return [f"--{key}={_written(value)}" for key, value in self.values.items()]

    def arguments(self, base: str) -> list[str]:
        """Return the options that make this run of the recipe, in its folder."""
        return [*self.options(), f"--{FOLDER}={Path(base) / self.name}", "--resume=auto", f"--label={self.name}"]


def cells(grid: Any) -> list[Cell]:
    """Return the combinations of a grid, the last key varying fastest. Raises InvalidArgument."""
    if not isinstance(grid, dict) or not grid:
        remedy = "Write grid: {objective.beta: [0.05, 0.1]}."
        raise InvalidArgument(GRID, expected="lists of values by option", got=shown(grid), remedy=remedy)
    for key, values in grid.items():
        if not isinstance(key, str) or key in (FOLDER, "resume", "label"):
            remedy = "Each run's folder, label and continuation are made of its values."
            raise InvalidArgument(GRID, expected="options that tell runs apart", got=shown(key), remedy=remedy)
        if not isinstance(values, list) or not values:
            remedy = "Write one value as a list too."
            raise InvalidArgument(f"{GRID}.{key}", expected="a list of values", got=shown(values), remedy=remedy)
    count = 1
    for values in grid.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise InvalidArgument(GRID, expected=f"at most {MOST_RUNS} runs", got=count, remedy="Leave values out.")
    ends = [key.rpartition(".")[2] for key in grid]
    shorts = [end if ends.count(end) == 1 else key for key, end in zip(grid, ends, strict=True)]
    found: list[Cell] = []
    for place, values in enumerate(itertools.product(*grid.values())):
        name = "_".join(f"{short}={_named(value)}" for short, value in zip(shorts, values, strict=True))
        taken = any(other.name == name for other in found)
        found.append(Cell(f"{name}_{place}" if taken else name, dict(zip(grid, values, strict=True))))
    return found


def taken_out(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the grid of a command line and its files, None without one, and the other arguments."""
    given = Given(arguments)
    grid = given.take(GRID)
    return grid, given.arguments if grid is not None else list(arguments)


def run_sweep(
    grid: Any,
    arguments: Sequence[str],
    prepare: Callable[[Sequence[str]], Any],
    execute: Callable[[Any], int],
) -> int:
    """Train every cell that is not done, print and write the table; 2 where a run failed. Raises as `prepare` does.

    prepare: parses a command line, whose `options` and `resolved` are read here; execute: runs what it returned.
    """
    found = cells(grid)
    base = str(prepare([*arguments, *found[0].options()]).options["training"]["output_dir"])
    ready = [prepare([*arguments, *cell.arguments(base)]) for cell in found]
    folders = [Path(base) / cell.name for cell in found]
    for folder, one in zip(folders, ready, strict=True):
        _require_same(folder, one.resolved)
    main, failed = ready[0].values["training"].process_index == 0, 0
    for place, (cell, folder, one) in enumerate(zip(found, folders, ready, strict=True), 1):
        done = (folder / RECORD).is_file()
        if main:
            print(f"[{place}/{len(found)}] {cell.name}" + (": done already" if done else ""), flush=True)
        try:
            failed += 0 if done else execute(one) != 0
        except KeyboardInterrupt:
            print("The finished runs are kept; the same command goes on with this one and the others.", file=sys.stderr)
            raise
        gc.collect()  # a trainer refers to itself, and so keeps its model in memory
    if main:
        frame = sweep_frame(found, folders)
        table = sweep_table(frame, list(grid))
        Path(base).mkdir(parents=True, exist_ok=True)
        write_file(Path(base) / TABLE, frame.to_csv(index=False))
        write_file(Path(base) / "sweep.md", table)
        print(f"{table}Written to {Path(base) / TABLE} and sweep.md; curves: rpo plot {base}")
    return 2 if failed else 0


def sweep_frame(found: Sequence[Cell], folders: Sequence[Path]) -> pandas.DataFrame:
    """Return one row a cell: its name, values, how it ended, and the last of the numbers it logged."""
    import pandas

    rows = []
    for cell, folder in zip(found, folders, strict=True):
        row: dict[str, Any] = {"run": cell.name} | {key: _named(value) for key, value in cell.values.items()}
        if (folder / RECORD).is_file():
            record = Run.load(folder)
            last = record.last_metrics()
            row |= {"status": record.status} | {name: last[name] for name in METRICS if name in last}
        else:
            row["status"] = "not finished"
        rows.append(row)
    return pandas.DataFrame(rows)


def sweep_table(frame: pandas.DataFrame, keys: Sequence[str]) -> str:
    """Return the runs' last numbers as Markdown; with several seeds their means (standard errors).

    Where the objective varies and the preference loss was logged, total losses are left out, and a line says so.
    """
    from rpo.plotting.tables import mean_table

    by = [key for key in keys if key != SEED or len(keys) == 1]
    shown = [name for name in METRICS if name in frame]
    left = [name for name in TOTALS if name in shown and f"{name}/preference" in shown]
    if not any(key.partition(".")[0] == "objective" for key in by):
        left = []
    table = mean_table(frame, [name for name in shown if name not in left], by=[*by, "status"])
    return table + (f"\nNot shown: {', '.join(left)}, which differ by the objective; see {TABLE}.\n" if left else "")


def runs_of(folder: str) -> list[str]:
    """Return the folders of the runs of a sweep, in its order, or the folder itself where it is none."""
    table = Path(folder) / TABLE
    if not table.is_file():
        return [folder]
    import pandas

    names = [str(Path(folder) / str(name)) for name in pandas.read_csv(table, dtype=str)["run"]]
    return [name for name in names if (Path(name) / RECORD).is_file() or list(Path(name).glob("checkpoint-*"))]


def _require_same(folder: Path, resolved: str) -> None:
    """Refuse a folder with a run of other options. Raises InvalidArgument."""
    if not (folder / CONFIG).is_file():
        return
    there, here = (yaml.safe_load(text) for text in ((folder / CONFIG).read_text(encoding="utf-8"), resolved))
    changed = [key for key in here if there.get(key) != here[key]]
    if changed:
        key = changed[0]
        old, new = there.get(key), here[key]
        if isinstance(old, dict) and isinstance(new, dict):
            name = next(name for name in {*old, *new} if old.get(name) != new.get(name))
            key, old, new = f"{key}.{name}", old.get(name), new.get(name)
        raise InvalidArgument(
            key,
            expected=f"{shown(old)}, as of the run in {folder}",
            got=shown(new),
            remedy="Choose another training.output_dir, or remove that run.",
        )


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(yaml.safe_dump(value, default_flow_style=True, width=float("inf"))).removesuffix("...\n").strip()


def _named(value: Any) -> str:
    """Return a value as a part of a folder's name."""
    if isinstance(value, dict):
        value = "-".join(str(one) for one in value.values())
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")[:60]
