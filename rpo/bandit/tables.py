"""Preference tables read from files: CSV, JSON lines or Parquet, in either of two column layouts.

Rows are counted as they are read, so memory grows with the distinct (prompt, chosen, rejected)
triples and not with the rows. Labels stay text: "007", "NA" and "None" mean what they say.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency, OutputError

TIES = ("drop", "half", "error")
PAIR_COLUMNS = ("chosen", "rejected")
MATCH_COLUMNS = ("model_a", "model_b", "winner")
TIE_REASONS = {
    "tie": "tie",
    "tie (bothbad)": "tie, both bad",
    "both_bad": "tie, both bad",
    "bothbad": "tie, both bad",
}
MAX_CELL = 2**31 - 1
PARQUET_BATCH = 65_536


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferenceTable:
    """What was read from a file, and what was left out of it.

    counts: labelled win counts. dropped: reason -> number of rows left out; empty when none was.
    unused_labels: response labels that occur in dropped rows only. unused_columns: columns not read.
    source: the file.
    """

    counts: PreferenceCounts
    dropped: dict[str, int]
    unused_labels: tuple[str, ...]
    unused_columns: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class _Layout:
    """Which columns to read: the labels in this order, then the outcome and the count where present."""

    prompt: str | None
    responses: tuple[str, str]
    winner: str | None
    count: str | None
    unused: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        return [name for name in (self.prompt, *self.responses, self.winner, self.count) if name is not None]


def read_preferences(path: str | Path, *, ties: str = "drop", prompt_column: str | None = None) -> PreferenceTable:
    """Read preferences with string labels from a .csv, .jsonl, .ndjson or .parquet file.

    Columns: (chosen, rejected) or (model_a, model_b, winner), winner being "model_a", "model_b",
    "tie" or "tie (bothbad)" (also "both_bad", "bothbad"); each with an optional `count` (> 0) and an
    optional prompt, named "prompt" or `prompt_column`. Without it there is one prompt, "". Numbers
    become strings; an empty cell is missing. ties: "drop" (counted in `.dropped`), "half" (half a
    win each way) or "error". Labels are indexed in sorted order over the rows kept. Raises
    InvalidArgument (with the first offending line), OutputError, MissingDependency.
    """
    checks.one_of("ties", ties, TIES)
    source = checks.path("path", path)
    reader = _reader(source)
    unit = "row" if reader is _parquet_rows else "line"
    try:
        # closing: the reader restores what it changed even while an exception keeps it alive
        with contextlib.closing(reader(source, prompt_column)) as rows:
            return _count(source, rows, ties, unit)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            "path", expected="UTF-8 text", got=f"{source}: {error}", remedy="Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise OutputError(
            f"path: expected a readable file, got {source} ({error.strerror or error}). Check the name and permissions."
        ) from error


def bandit_from_preferences(
    counts: PreferenceCounts, *, reward_bound: float | None = None, name: str = "preferences"
) -> ContextualBandit:
    """Return the bandit the data describe: d0 = prompt frequencies, reference uniform, reward unknown.

    The reference is uniform over the responses that occur at each prompt, chosen or rejected, and
    zero elsewhere. reward_bound: R > 0, log-odds, or None. Raises InvalidArgument for a prompt
    without data.
    """
    checks.instance("counts", counts, PreferenceCounts, remedy="Pass read_preferences(path).counts.")
    occurs = counts.response_frequencies("responses") > 0
    size = occurs.sum(axis=1, keepdims=True)
    empty = np.flatnonzero(size == 0)
    if empty.size:
        raise InvalidArgument(
            "counts",
            expected="data at every prompt",
            got=f"none at prompt {int(empty[0])} ({empty.size} such prompts)",
            remedy="Leave those prompts out, or build ContextualBandit with a reference of your own.",
        )
    return ContextualBandit(
        d0=counts.prompt_frequencies,
        reference=occurs / size,
        reward_bound=reward_bound,
        prompt_labels=counts.prompt_labels,
        response_labels=counts.response_labels,
        name=name,
    )


def _count(source: Path, rows: Iterator[Any], ties: str, unit: str) -> PreferenceTable:
    """Add up the rows. `rows` yields the layout, then (where, values of its columns), where in `unit`s."""
    layout: _Layout = next(rows)
    prompts: dict[str, int] = {}
    responses: dict[str, int] = {}
    wins: dict[tuple[int, int, int], float] = {}
    dropped: dict[str, int] = {}
    first, second = layout.responses
    at_response = 0 if layout.prompt is None else 1
    for where, values in rows:
        label = "" if layout.prompt is None else _label(values[0], layout.prompt, unit, where)
        a = _label(values[at_response], first, unit, where)
        b = _label(values[at_response + 1], second, unit, where)
        if a == b:
            raise InvalidArgument(
                second,
                expected=f"a response other than {first}",
                got=f"{a!r} against itself at {unit} {where}",
                remedy="Remove the rows whose two responses are the same.",
            )
        n = 1.0 if layout.count is None else _number(values[-1], layout.count, unit, where)
        tie = None
        if layout.winner is not None:
            outcome = values[at_response + 2]
            if outcome == "model_b":
                a, b = b, a
            elif outcome != "model_a":
                tie = _tie(outcome, unit, where, ties)
        w = responses.setdefault(a, len(responses))
        lost = responses.setdefault(b, len(responses))
        if tie is not None and ties == "drop":
            dropped[tie] = dropped.get(tie, 0) + 1
            continue
        x = prompts.setdefault(label, len(prompts))
        if tie is not None:
            n /= 2.0
            wins[x, lost, w] = wins.get((x, lost, w), 0.0) + n
        wins[x, w, lost] = wins.get((x, w, lost), 0.0) + n
    if not wins:
        got = f"only dropped rows in {source}: {dropped}" if dropped else f"no rows in {source}"
        raise InvalidArgument("path", expected="at least one preference", got=got, remedy="Pass some data.")
    return _table(source, prompts, responses, wins, dropped, layout.unused)


def _table(
    source: Path,
    prompts: dict[str, int],
    responses: dict[str, int],
    wins: dict[tuple[int, int, int], float],
    dropped: dict[str, int],
    unused_columns: tuple[str, ...],
) -> PreferenceTable:
    """Renumber the labels in sorted order, without those that only dropped rows hold."""
    used = {index for _, w, lost in wins for index in (w, lost)}
    prompt_labels = tuple(sorted(prompts))
    response_labels = tuple(sorted(label for label, index in responses.items() if index in used))
    rank_prompt = {prompts[label]: rank for rank, label in enumerate(prompt_labels)}
    rank_response = {responses[label]: rank for rank, label in enumerate(response_labels)}
    counts = PreferenceCounts.from_pairs(
        np.array([rank_prompt[x] for x, _, _ in wins]),
        np.array([rank_response[w] for _, w, _ in wins]),
        np.array([rank_response[lost] for _, _, lost in wins]),
        count=np.array(list(wins.values())),
        num_prompts=len(prompt_labels),
        num_responses=len(response_labels),
        prompt_labels=prompt_labels,
        response_labels=response_labels,
    )
    unused = tuple(sorted(label for label, index in responses.items() if index not in used))
    return PreferenceTable(
        counts=counts, dropped=dropped, unused_labels=unused, unused_columns=unused_columns, source=str(source)
    )


def _label(value: Any, column: str, unit: str, where: int) -> str:
    if type(value) is str and value:
        return value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise InvalidArgument(
            column,
            expected="a label in every row",
            got=f"a missing value at {unit} {where}",
            remedy="Fill in or remove the row.",
        )
    if isinstance(value, (list, dict, tuple)):
        raise InvalidArgument(
            column,
            expected="a short label (text or number)",
            got=f"a {type(value).__name__} at {unit} {where}",
            remedy="Conversations are not labels: give each response a name, or train on the text with rpo.fit.",
        )
    return str(value)


def _number(value: Any, column: str, unit: str, where: int) -> float:
    try:
        # float() also takes True and "1_000", neither of which is a count anyone meant to write
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidArgument(
            column,
            expected="a finite number > 0 in every row",
            got=f"{value!r} at {unit} {where}",
            remedy="Remove the rows that never happened and correct the others.",
        )
    return number


def _tie(outcome: Any, unit: str, where: int, ties: str) -> str:
    reason = TIE_REASONS.get(outcome) if isinstance(outcome, str) else None
    if reason is None:
        raise InvalidArgument(
            "winner",
            expected="one of " + ", ".join(map(repr, ("model_a", "model_b", *TIE_REASONS))),
            got=f"{outcome!r} at {unit} {where}",
            remedy="Rename the outcome, or remove the row.",
        )
    if ties == "error":
        raise InvalidArgument(
            "winner",
            expected="no ties, since ties='error'",
            got=f"{outcome!r} at {unit} {where}",
            remedy="Pass ties='drop' to leave ties out and count them, or 'half' to split them.",
        )
    return reason


def _layout(columns: Sequence[str], prompt_column: str | None) -> _Layout:
    """Find the columns to read, or say which were found."""
    found = ", ".join(map(repr, columns))
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    pairs, matches = (all(name in columns for name in names) for names in (PAIR_COLUMNS, MATCH_COLUMNS))
    if pairs == matches or repeated:
        raise InvalidArgument(
            "columns",
            expected="(chosen, rejected) or (model_a, model_b, winner), each once, with optional prompt and count",
            got=found or "none",
            remedy="Rename the columns, and remove those of the other layout.",
        )
    if prompt_column is not None and prompt_column not in columns:
        raise InvalidArgument(
            "prompt_column", expected=f"one of the columns {found}", got=repr(prompt_column), remedy="Correct the name."
        )
    prompt = prompt_column if prompt_column is not None else "prompt" if "prompt" in columns else None
    named = {*(PAIR_COLUMNS if pairs else MATCH_COLUMNS), prompt, "count"}
    return _Layout(
        prompt=prompt,
        responses=("chosen", "rejected") if pairs else ("model_a", "model_b"),
        winner="winner" if matches else None,
        count="count" if "count" in columns else None,
        unused=tuple(name for name in columns if name not in named),
    )


def _malformed(source: Path, got: str) -> InvalidArgument:
    return InvalidArgument(
        "path", expected=f"a well-formed {source.suffix} file", got=f"{got} in {source}", remedy="Mend the file."
    )


def _csv_rows(source: Path, prompt_column: str | None) -> Generator[Any, None, None]:
    """Yield the layout, then (line, values). Cells are text: nothing is guessed to be a number or missing."""
    limit = csv.field_size_limit(MAX_CELL)  # a prompt column may hold long texts
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            layout = _layout(header, prompt_column)
            yield layout
            columns = [header.index(name) for name in layout.columns]
            for cells in reader:
                if len(cells) != len(header):
                    if not cells:
                        continue  # a blank line
                    got = f"{len(cells)} cells at line {reader.line_num} and {len(header)} in the header"
                    raise _malformed(source, got)
                yield reader.line_num, [cells[k] for k in columns]
    except csv.Error as error:
        raise _malformed(source, f"'{error}' at line {reader.line_num}") from error
    finally:
        csv.field_size_limit(limit)


def _json_rows(source: Path, prompt_column: str | None) -> Generator[Any, None, None]:
    """Yield the layout, found in the first object, then (line, values)."""
    layout: _Layout | None = None
    with source.open(encoding="utf-8-sig") as stream:
        for where, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _malformed(source, f"'{error}' at line {where}") from error
            if not isinstance(record, dict):
                raise _malformed(source, f"a {type(record).__name__} and not an object at line {where}")
            if layout is None:
                layout = _layout(list(record), prompt_column)
                yield layout
                optional = [name for name in ("prompt", "count") if name not in record]
            for name in optional:
                # Reading on without it would ignore what the later rows say.
                if name in record and not (name == "prompt" and prompt_column is not None):
                    raise InvalidArgument(
                        name,
                        expected="the same columns in every row",
                        got=f"{name!r} at line {where} but not in the first row",
                        remedy="Give it in every row or in none.",
                    )
            yield where, [record.get(name) for name in layout.columns]
    if layout is None:
        _layout([], prompt_column)


def _parquet_rows(source: Path, prompt_column: str | None) -> Generator[Any, None, None]:
    """Yield the layout, then (row, values), rows counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            f"path: reading {source.name} needs pyarrow. Run: pip install 'rpo-lab[parquet]', or save it as .csv."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            layout = _layout(file.schema_arrow.names, prompt_column)
            yield layout
            where = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=layout.columns):
                for values in zip(*(batch.column(name).to_pylist() for name in layout.columns), strict=True):
                    where += 1
                    yield where, values
    except pyarrow.ArrowInvalid as error:
        raise _malformed(source, f"'{error}'") from error


def _reader(source: Path) -> Callable[[Path, str | None], Generator[Any, None, None]]:
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows}
    suffix = source.suffix.lower()
    if suffix not in readers:
        raise InvalidArgument(
            "path", expected="a file ending in " + ", ".join(readers), got=str(source), remedy="Convert or rename it."
        )
    return readers[suffix]
