"""Rows from wherever they are: files, the hub, `datasets`, pandas, or lists."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.llm.data.formats import LABEL, TOKEN_COLUMNS
from rpo.llm.data.messages import plain, stored_messages
from rpo.llm.data.report import SourceRow, shown

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Columns of a CSV that are never prose, so that JSON in them is meant as JSON.
JSON_COLUMNS = (*TOKEN_COLUMNS, "completion_ids", "completions", "responses", "scores", "ranks", LABEL)


class Rows:
    """Rows read anew at every iteration, for streaming a file."""

    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read()


def load_preferences(
    source: Any,
    *,
    split: str = "train",
    streaming: bool = False,
    name: str | None = None,
    revision: str | None = None,
) -> Iterable[dict[str, Any]]:
    """Return the rows of `source` as dicts, with a length unless streamed.

    source: a .jsonl, .json, .parquet or .csv file, a folder or hub name for `datasets`, a Dataset,
    IterableDataset or DatasetDict, a pandas DataFrame, or a sequence of dicts. split: of what has
    splits. name, revision: the hub's configuration and commit. Code from the hub is never run. Rows of
    files know where they are from, so that a refusal says it.
    Raises InvalidArgument for a missing file, a malformed line or an empty dataset, MissingDependency.
    """
    for option, text in (("split", split), ("name", name), ("revision", revision)):
        if text is not None or option == "split":
            checks.instance(option, text, str)
    if isinstance(source, (str, Path)):
        rows = _from_path(str(source), split, streaming, name, revision)
    elif type(source).__name__ in ("DatasetDict", "IterableDatasetDict"):
        if split not in source:
            remedy = "Choose one: load_preferences(..., split=...), or data[split] itself; in a recipe, split."
            raise InvalidArgument(
                "split", expected=f"one of {', '.join(map(repr, source))}", got=repr(split), remedy=remedy
            )
        rows = source[split]
    elif hasattr(source, "to_dict") and hasattr(source, "iloc"):  # a DataFrame, without importing pandas
        if not source.columns.is_unique:
            got = ", ".join(map(repr, source.columns))
            remedy = "Of columns of one name, one would be lost: rename them."
            raise InvalidArgument("source", expected="a DataFrame with distinct columns", got=got, remedy=remedy)
        rows = plain(source.to_dict("records"))
    elif checks.is_listed(source):
        rows = source
    else:
        raise InvalidArgument(
            "source",
            expected="a path, a hub name, a dataset, a DataFrame or a sequence of dicts",
            got=type(source).__name__,
            remedy="A dict of columns becomes rows through datasets.Dataset.from_dict.",
        )
    if type(rows).__module__.partition(".")[0] == "datasets":
        rows = rows.with_format(None)  # plain Python values, whatever arrays the dataset was set to give
    if hasattr(rows, "__len__") and len(rows) == 0:
        got = f"none in {source!r}" if isinstance(source, (str, Path)) else f"an empty {type(source).__name__}"
        raise InvalidArgument("source", expected="at least one row", got=got, remedy="Check the file, split or filter.")
    return rows


def _from_path(source: str, split: str, streaming: bool, name: str | None, revision: str | None) -> Any:
    path = Path(source)
    suffix = path.suffix.lower()
    try:
        folder, file, problem = path.is_dir(), path.is_file(), "a NUL in it" if "\0" in source else None
    except OSError as error:  # too long
        folder, file, problem = False, False, str(error)
    if problem is not None:
        got = f"{shown(source)} ({problem})"
        raise InvalidArgument("source", expected="a path or a hub name", got=got, remedy="Check the path.")
    if suffix not in SUFFIXES or folder:
        return _from_datasets(source, split, streaming, name, revision)
    if not file:
        remedy = "Check the path; relative paths start at the current folder."
        raise InvalidArgument("source", expected="an existing file", got=f"{path}", remedy=remedy)
    for option, value, default in (("split", split, "train"), ("name", name, None), ("revision", revision, None)):
        if value != default:
            remedy = "Leave it out: only folders and data sets on the hub have splits, configurations and commits."
            raise InvalidArgument(option, expected=f"{default!r} for a file", got=f"{value!r} ({path})", remedy=remedy)
    read = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet, ".csv": _csv}[suffix]
    return Rows(lambda: read(path)) if streaming else list(read(path))


def _malformed(path: Path, line: int, expected: str, problem: object) -> InvalidArgument:
    return InvalidArgument(
        "source", expected=expected, got=f"{path}, line {line}: {problem}", remedy="Correct that line."
    )


@contextlib.contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Refuse a file that cannot be read, whatever csv, a codec or pyarrow raises."""
    try:
        yield
    except InvalidArgument:
        raise
    except Exception as error:
        got = f"{path}: {error}"
        raise InvalidArgument("source", expected=expected, got=got, remedy="Write the file again.") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    expected = "one JSON object a line, in UTF-8"
    with _reading(path, expected), path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:  # of the encoding or of JSON
                raise _malformed(path, number, expected, error) from error
            if not isinstance(row, dict):
                raise _malformed(path, number, expected, f"a {type(row).__name__}")
            yield SourceRow(row, f"{path}, line {number}")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    expected = "a JSON array of objects, in UTF-8"
    with _reading(path, expected), path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):  # many .json files hold lines
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise _malformed(path, error.lineno, expected, error) from error
    except (OSError, ValueError, RecursionError) as error:
        got = f"{path}: {error}"
        raise InvalidArgument("source", expected=expected, got=got, remedy="Write it again, as UTF-8.") from error
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            remedy = "Write one object a row."
            got = f"a {type(row).__name__} at position {position} of {path}"
            raise InvalidArgument("source", expected=expected, got=got, remedy=remedy)
        yield SourceRow(row, f"{path}, position {position}")


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with _reading(path, "comma-separated values"), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    problem = f"a row whose number of cells differs from the header's {len(reader.fieldnames or ())}"
                    raise _malformed(path, reader.line_num, "rows as long as the header", problem)
                cells = {column: _cell(column, text) for column, text in row.items()}
                yield SourceRow(cells, f"{path}, line {reader.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise _malformed(path, reader.line_num, "comma-separated values, in UTF-8", error) from error


def _cell(column: str, text: str) -> Any:
    """Return a cell's text, or the messages or lists that it holds as JSON."""
    if (messages := stored_messages(text)) is not None:
        return messages
    try:
        return json.loads(text) if column in JSON_COLUMNS else text
    except (ValueError, RecursionError):
        return text


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("Parquet files need pyarrow: pip install 'rpo-lab[parquet]'.") from error
    row = 0
    with _reading(path, "a Parquet file"), pyarrow.parquet.ParquetFile(path) as file:
        if len(set(names := file.schema_arrow.names)) < len(names):
            remedy = "Of columns of one name, one would be lost: rename them."
            raise InvalidArgument("source", expected="distinct columns", got=f"{path}: {names}", remedy=remedy)
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                yield SourceRow(values, f"{path}, row {row}")
                row += 1


def _from_datasets(source: str, split: str, streaming: bool, name: str | None, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"{source!r} is no {', '.join(SUFFIXES)} file, and names on the hub need datasets: "
            "pip install 'rpo-lab[datasets]'."
        ) from error
    folder = Path(source)
    # datasets' readers of formats have names as data sets have, and read whatever lies in the current folder.
    if not folder.is_dir() and source in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", ()):
        raise InvalidArgument(
            "source",
            expected="a path or a hub name",
            got=f"{source!r}, a reader of datasets",
            remedy="Give the file or folder itself, or what datasets.load_dataset returns for it.",
        )
    try:
        if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(source)
            return load_preferences(saved, split=split)
        return datasets.load_dataset(source, name, split=split, streaming=streaming, revision=revision)
    except InvalidArgument:
        raise
    except Exception as error:  # datasets lets through whatever its readers and the hub's client raise
        raise InvalidArgument(
            "source",
            expected=f"a {', '.join(SUFFIXES)} file, a folder or a dataset on the hub with a split {split!r}",
            got=f"{source!r} ({type(error).__name__}: {error})",
            remedy="Check the name, the split and the connection.",
        ) from error
