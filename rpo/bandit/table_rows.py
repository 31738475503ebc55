"""The rows of a preference file, read one by one: which columns to read, and CSV, JSON lines, Parquet.

Each reader yields the `Layout` first and then (where, the values of its columns), where being the
line, or in Parquet the row, counted from 1. A file that is damaged is refused by name and place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo.core.errors import InvalidArgument, MissingDependency

PAIR_COLUMNS = ("chosen", "rejected")
MODEL_COLUMNS = ("model_a", "model_b")
ONE_HOT_WINNER = ("winner_model_a", "winner_model_b", "winner_tie")
LAYOUTS = ((PAIR_COLUMNS, ()), (MODEL_COLUMNS, ("winner",)), (MODEL_COLUMNS, ONE_HOT_WINNER))
MAX_CELL = 2**31 - 1
PARQUET_BATCH = 65_536
Rows = Generator[Any, None, None]


@dataclass(frozen=True)
class Layout:
    """Which columns to read: the labels in this order, then the outcome and the count where present.

    winner: () where the columns say who won, ("winner",), or `ONE_HOT_WINNER`.
    """

    prompt: str | None
    responses: tuple[str, str]
    winner: tuple[str, ...]
    count: str | None
    unused: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The names, in the order in which a row's values come."""
        return [name for name in (self.prompt, *self.responses, *self.winner, self.count) if name is not None]


def open_rows(source: Path, prompt_column: str | None) -> tuple[Rows, str]:
    """Return the rows of a file, and what its places are called: "line" or "row"."""
    readers: dict[str, Callable[[Path, str | None], Rows]] = {
        ".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows,
    }  # fmt: skip
    suffix = source.suffix.lower()
    if suffix not in readers:
        raise InvalidArgument(
            "path", expected="a file ending in " + ", ".join(readers), got=str(source), remedy="Convert or rename it."
        )
    return readers[suffix](source, prompt_column), "row" if suffix == ".parquet" else "line"


def unwritable(text: str) -> str | None:
    """Return what makes this text impossible to write as UTF-8 or to read back, or None."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    return None


def malformed(source: Path, got: str) -> InvalidArgument:
    """Return the refusal of a damaged file; got: what was found, and where."""
    return InvalidArgument(
        "path", expected=f"a well-formed {source.suffix} file", got=f"{got} in {source}", remedy="Mend the file."
    )


def _layout(source: Path, columns: Sequence[str], prompt_column: str | None) -> Layout:
    """Find the columns to read, or say which were found."""
    for name in columns:
        trouble = unwritable(name)
        if trouble is not None:
            raise malformed(source, f"{trouble} in the column name {name!r}")
    found = ", ".join(map(repr, columns))
    layouts = [layout for layout in LAYOUTS if all(name in columns for part in layout for name in part)]
    if len(layouts) != 1 or len(set(columns)) < len(columns):
        raise InvalidArgument(
            "columns",
            expected="(chosen, rejected) or (model_a, model_b, winner), each once, with optional prompt and count; "
            f"in place of winner also ({', '.join(ONE_HOT_WINNER)})",
            got=f"{found or 'none'} in {source}",
            remedy="Rename the columns, and remove those of the other layouts.",
        )
    if prompt_column is not None and prompt_column not in columns:
        raise InvalidArgument(
            "prompt_column", expected=f"one of the columns {found}", got=repr(prompt_column), remedy="Correct the name."
        )
    responses, winner = layouts[0]
    prompt = prompt_column if prompt_column is not None else "prompt" if "prompt" in columns else None
    named = {*responses, *winner, prompt, "count"}
    return Layout(
        prompt=prompt,
        responses=responses,
        winner=winner,
        count="count" if "count" in columns else None,
        unused=tuple(name for name in columns if name not in named),
    )


def _csv_rows(source: Path, prompt_column: str | None) -> Rows:
    """Read cells as text: nothing is guessed to be a number or missing."""
    limit = csv.field_size_limit(MAX_CELL)  # a prompt column may hold long texts
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            layout = _layout(source, header, prompt_column)
            yield layout
            columns = [header.index(name) for name in layout.columns]
            for cells in reader:
                if len(cells) != len(header):
                    if not cells:
                        continue  # a blank line
                    got = f"{len(cells)} cells at line {reader.line_num} and {len(header)} in the header"
                    raise malformed(source, got)
                yield reader.line_num, [cells[k] for k in columns]
    except csv.Error as error:
        raise malformed(source, f"'{error}' at line {reader.line_num}") from error
    finally:
        csv.field_size_limit(limit)


def _json_rows(source: Path, prompt_column: str | None) -> Rows:
    """Read one object a line, a line ending at \\n alone; the layout is found in the first."""
    layout: Layout | None = None
    with source.open(encoding="utf-8-sig", newline="\n") as stream:
        for where, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise malformed(source, f"'{error}' at line {where}") from error
            if not isinstance(record, dict):
                raise malformed(source, f"a {type(record).__name__} and not an object at line {where}")
            if layout is None:
                layout = _layout(source, list(record), prompt_column)
                yield layout
                optional = [name for name in ("prompt", "count") if name not in record]
            for name in optional:
                # Reading on without it would ignore what the later rows say.
                if name in record and not (name == "prompt" and prompt_column is not None):
                    raise InvalidArgument(
                        name,
                        expected="the same columns in every row",
                        got=f"{name!r} at line {where} of {source} but not in the first row",
                        remedy="Give it in every row or in none.",
                    )
            yield where, [record.get(name) for name in layout.columns]
    if layout is None:
        _layout(source, [], prompt_column)


def _parquet_rows(source: Path, prompt_column: str | None) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            f"path: reading {source.name} needs pyarrow. Run: pip install 'rpo-lab[parquet]', or save it as .csv."
        ) from error
    source.open("rb").close()  # so that an OSError below is about the content: pyarrow raises it for both
    where = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            layout = _layout(source, file.schema_arrow.names, prompt_column)
            yield layout
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=layout.columns):
                for values in zip(*(batch.column(name).to_pylist() for name in layout.columns), strict=True):
                    where += 1
                    yield where, values
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise malformed(source, f"'{error}' after row {where}") from error
