"""JSON and JSONL as other tools write them, read with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.lines import read_lines as read_text_lines


def read_text(name: str, path: str | Path) -> str:
    """Return the text of a UTF-8 file. Raises InvalidArgument."""
    try:
        return checks.path(name, path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            name, expected="a readable text file", got=f"{path} ({error})", remedy="Check the path."
        ) from error


def read_json(name: str, path: str | Path) -> Any:
    """Return what a JSON file holds. Raises InvalidArgument."""
    try:
        return json.loads(read_text(name, path))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(
            name, expected="a whole JSON file", got=f"{path} ({error})", remedy="Was it cut short? Write it again."
        ) from error


def read_lines(name: str, path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a JSONL file, and 1 if a last line cut short by a killed writer was left out, else 0.

    Raises InvalidArgument for any other line that is not a JSON object, and for a file without rows.
    """
    rows, torn = [], 0
    lines = read_text_lines(name, path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # without a line feed
                torn = 1
                continue
            row = None
        if not isinstance(row, dict):
            raise InvalidArgument(
                f"{name}, line {number}", expected="a JSON object", got=line[:80], remedy=f"Mend that line of {path}."
            )
        rows.append(row)
    if not rows:
        raise InvalidArgument(name, expected="at least one row", got=f"none in {path}", remedy="Look at the file.")
    return rows, torn


def require(name: str, row: Any, columns: Collection[str], where: str) -> None:
    """Refuse a row without all of `columns`. Raises InvalidArgument."""
    have = row if isinstance(row, dict) else {}
    missing = [column for column in columns if column not in have]
    if missing:
        raise InvalidArgument(
            name,
            expected="the columns " + ", ".join(columns),
            got=f"{where} without {', '.join(missing)} (it has {', '.join(map(str, have)) or 'none'})",
            remedy="Pass a file as that tool writes it.",
        )
