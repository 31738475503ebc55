"""Lines of a text file: what stands between line feeds, and no more."""

from __future__ import annotations

from pathlib import Path

from rpo.core import checks
from rpo.core.errors import InvalidArgument


def read_lines(name: str, path: str | Path, *, expected: str = "a readable UTF-8 text file") -> list[str]:
    """Return the lines of a UTF-8 file, which end in a line feed, with a carriage return before it or without.

    `str.splitlines` would also cut at U+2028, U+2029 and U+0085, which occur in texts and in JSON strings.
    name: the argument that a refusal names. Raises InvalidArgument.
    """
    try:
        text = checks.path(name, path).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, and so is a NUL in a path
        raise InvalidArgument(name, expected=expected, got=f"{path} ({error})", remedy="Check the path.") from error
    return [line.removesuffix("\r") for line in text.split("\n")]
