"""Text of others shown where it could act: on a terminal, in Markdown, in a spreadsheet. In HTML `html.escape` does."""

from __future__ import annotations

import html
import re

# Control characters, with which a terminal can be steered; line ends of Unicode; what turns the direction of writing;
# and lone surrogates, which no terminal can be sent.
_ACTIVE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_ACTIVE}]")
_IN_LINE = re.compile(f"[\t\n{_ACTIVE}]")
_MARKDOWN = re.compile(r"[\\|\[\]`]|\*(?=\S)|(?<=\S)\*")
# Full-width forms too: spreadsheets take them as formulas where the language writes them so.
_FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def text(value: object) -> str:
    """Return `value` for a terminal: line breaks and tabs stay, control characters are spelled out (``\\x1b``)."""
    return _IN_TEXT.sub(_spelled, str(value))


def line(value: object) -> str:
    """Return `value` for one line of a terminal or a cell of a table: line breaks and tabs are spelled out too."""
    return _IN_LINE.sub(_spelled, str(value))


def markdown(value: object) -> str:
    """Return `value` as words of a Markdown line or table: no HTML, link, code or emphasis, and no further column."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(line(value), quote=False))


def markdown_code(value: object) -> str:
    """Return `value` as a Markdown code span, between more backticks than it has in a row."""
    words = line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    edge = " " if words[:1] == "`" or words[-1:] == "`" else ""
    return f"{fence}{edge}{words}{edge}{fence}"


def cell(value: object) -> str:
    """Return `value` as a cell of a CSV file: an apostrophe before what a spreadsheet would compute; numbers stay."""
    words = text(value)
    return f"'{words}" if words.startswith(_FORMULA) and not _NUMBER.fullmatch(words) else words


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
