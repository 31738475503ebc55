"""Rows from wherever they are: files, the hub, `datasets`, pandas, or lists."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rpo.core.errors import InvalidArgument, MissingDependency

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Columns of a CSV that are never prose, so that JSON in them is meant as JSON.
JSON_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "completions", "responses", "scores")


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
    splits. name, revision: the hub's configuration and commit. Code from the hub is never run.
    Raises InvalidArgument for a missing file, a malformed line or an empty dataset, MissingDependency.
    """
    if isinstance(source, (str, Path)):
        rows = _from_path(str(source), split, streaming, name, revision)
    elif type(source).__name__ in ("DatasetDict", "IterableDatasetDict"):
        if split not in source:
            remedy = "Choose one with split=."
            raise InvalidArgument(
                "split", expected=f"one of {', '.join(map(repr, source))}", got=repr(split), remedy=remedy
            )
        rows = source[split]
    elif hasattr(source, "to_dict") and hasattr(source, "iloc"):  # a DataFrame, without importing pandas
        rows = [{key: _plain(value) for key, value in row.items()} for row in source.to_dict("records")]
    elif isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
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
    if suffix not in SUFFIXES or path.is_dir():
        return _from_datasets(source, split, streaming, name, revision)
    if not path.is_file():
        remedy = "Check the path; relative paths start at the current folder."
        raise InvalidArgument("source", expected="an existing file", got=f"{path}", remedy=remedy)
    read = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet, ".csv": _csv}[suffix]
    return Rows(lambda: read(path)) if streaming else list(read(path))


def _malformed(path: Path, line: int, expected: str, problem: object) -> InvalidArgument:
    return InvalidArgument(
        "source", expected=expected, got=f"{path}, line {line}: {problem}", remedy="Correct that line."
    )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    expected = "one JSON object a line, in UTF-8"
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # of the encoding or of JSON
                raise _malformed(path, number, expected, error) from error
            if not isinstance(row, dict):
                raise _malformed(path, number, expected, f"a {type(row).__name__}")
            yield row


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):  # many .json files hold lines
        yield from _json_lines(path)
        return
    expected = "a JSON array of objects, in UTF-8"
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise _malformed(path, error.lineno, expected, error) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            "source", expected=expected, got=f"{path}: {error}", remedy="Save it as UTF-8."
        ) from error
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            remedy = "Write one object a row."
            got = f"a {type(row).__name__} at position {position} of {path}"
            raise InvalidArgument("source", expected=expected, got=got, remedy=remedy)
        yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    problem = f"a row whose number of cells differs from the header's {len(reader.fieldnames or ())}"
                    raise _malformed(path, reader.line_num, "rows as long as the header", problem)
                yield {column: _cell(column, text) for column, text in row.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise _malformed(path, reader.line_num, "comma-separated values, in UTF-8", error) from error


def _cell(column: str, text: str) -> Any:
    """Return a cell's text, or the messages or lists that it holds as JSON."""
    if not text.startswith("["):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    flat = [item for items in value for item in (items if isinstance(items, list) else [items])]
    messages = bool(flat) and all(isinstance(item, dict) and "role" in item for item in flat)
    return value if messages or column in JSON_COLUMNS else text


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency("Parquet files need pyarrow: pip install 'rpo-lab[parquet]'.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        got = f"{path}: {error}"
        raise InvalidArgument("source", expected="a Parquet file", got=got, remedy="Write the file again.") from error


def _from_datasets(source: str, split: str, streaming: bool, name: str | None, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"{source!r} is no {', '.join(SUFFIXES)} file, and names on the hub need datasets: "
            "pip install 'rpo-lab[datasets]'."
        ) from error
    folder = Path(source)
    try:
        if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(source)
            return load_preferences(saved, split=split)
        return datasets.load_dataset(source, name, split=split, streaming=streaming, revision=revision)
    except InvalidArgument:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            "source",
            expected=f"a {', '.join(SUFFIXES)} file, a folder or a dataset on the hub with a split {split!r}",
            got=f"{source!r} ({type(error).__name__}: {error})",
            remedy="Check the name, the split and the connection.",
        ) from error


def _plain(value: Any) -> Any:
    """Return NumPy arrays and scalars, which pandas keeps in its cells, as lists and numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
