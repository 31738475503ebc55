"""What became of the rows: a refusal that names its row, and the counts of everything cut, merged or dropped."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rpo.core.errors import InvalidArgument

KEPT_MESSAGES = 5
EXCERPT = 200
# Columns that other data sets keep a prompt, or a part of it, in, under any capitals.
PROMPT_LIKE = (
    "prompt", "question", "instruction", "input", "inputs", "query", "problem", "context", "system", "system_prompt",
    "prompt_text", "user_prompt", "task", "history",
)  # fmt: skip


class SourceRow(dict[str, Any]):
    """A row that knows where it is from: `origin` is a file and a line, or a source of a mixture and a row."""

    __slots__ = ("origin",)

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        super().__init__(values)
        self.origin = origin

    def __reduce__(self) -> Any:
        return SourceRow, (dict(self), self.origin)


def with_origin(values: dict[str, Any], row: object) -> dict[str, Any]:
    """Return `values`, made of `row`, with the origin of that row if it is known."""
    origin = getattr(row, "origin", None)
    return values if origin is None else SourceRow(values, origin)


class RefusedRow(InvalidArgument):
    """A row that cannot become a pair; `row` is its position in the source, `reason` a short key to count by."""

    def __init__(
        self, row: int, column: str, *, reason: str, expected: str, got: object, remedy: str, origin: str | None = None
    ) -> None:
        self.row, self.column, self.reason = row, column, reason
        place = f"row {row}" if origin is None else f"row {row} ({origin})"
        super().__init__(f"{place}, {column}", expected=expected, got=got, remedy=remedy)

    def of(self, row: object) -> RefusedRow:
        """Return the same refusal with the origin of `row`, where it is known."""
        origin = getattr(row, "origin", None)
        fields: dict[str, Any] = {"expected": self.expected, "got": self.got, "remedy": self.remedy}
        return RefusedRow(self.row, self.column, reason=self.reason, origin=origin, **fields)


def shown(value: object) -> str:
    """Return the repr of `value`, its middle left out when long."""
    text = repr(value)
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT // 2]} ... {text[-EXCERPT // 2 :]}"


@dataclass(slots=True)
class DataReport:
    """Counts over the rows read so far.

    formats: rows by kind. refused: rows left out, by reason, the first few in words in `messages`.
    dropped_too_long: rows left out by truncation_mode="drop". truncated: pairs cut
    anywhere at the limits; *_truncated: in that part.
    boundary_merges: pairs whose prompt gave up its last tokens, which merged with a response.
    rewritten: responses that the chat template did not reproduce word for word. several_messages:
    responses of several messages, of which the assistant's are scored. unwritten: messages by
    field that it left out (in prompts also changed, for content), such as the reasoning of earlier turns.
    nulls: arguments of tool calls and fields of tools that were None and are left out. cut_when_made:
    responses whose finish reason is "length". ends: responses by the id of the end token written.
    unpaired: responses alone, with a label or a score; desirable: those of them whose label says so.
    unscored: responses of lists without a score, which are left out. ties: lists in which two scores or ranks are the
    same, the first in the row counting as the better. chosen_truncated, rejected_truncated: of a list its best
    response, and any of the others.
    unused_columns: rows by column that nothing here reads. unread_prompts: those of them whose names say that
    they hold a prompt, where their text is not in it. prompts_inferred: rows without a prompt column.
    """

    rows: int = 0
    pairs: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    dropped_too_long: int = 0
    truncated: int = 0
    prompts_truncated: int = 0
    chosen_truncated: int = 0
    rejected_truncated: int = 0
    base_truncated: int = 0
    boundary_merges: int = 0
    identical: int = 0
    rewritten: int = 0
    several_messages: int = 0
    unwritten: Counter[str] = field(default_factory=Counter)
    nulls: int = 0
    cut_when_made: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)
    unread_prompts: Counter[str] = field(default_factory=Counter)
    prompts_inferred: int = 0
    unpaired: int = 0
    desirable: int = 0
    unscored: int = 0
    ties: int = 0

    def refuse(self, refusal: RefusedRow) -> None:
        """Count a row that was left out, and keep its message if it is among the first."""
        self.refused[refusal.reason] += 1
        if len(self.messages) < KEPT_MESSAGES:
            self.messages.append(str(refusal))

    def count_columns(self, extra: Mapping[str, Any], prompt: str | None) -> None:
        """Count the columns of a row that nothing reads, and those that seem to belong to its prompt, if it is text."""
        self.unused_columns.update(extra.keys())
        if prompt is None:
            return
        for name, value in extra.items():
            if str(name).lower() in PROMPT_LIKE and any(text not in prompt for text in _texts_in(value)):
                self.unread_prompts[name] += 1

    def unused_prompts(self) -> str | None:
        """Return a sentence on columns that seem to hold the prompt, or a part of it, and are not read."""
        if not self.unread_prompts:
            return None
        inferred = "taken from what both responses begin with" if self.prompts_inferred else "in the column 'prompt'"
        named = ", ".join(f"{name!r} ({count} rows)" for name, count in self.unread_prompts.items())
        return f"the prompt is {inferred}, and nothing reads {named}; rename or join the columns if it belongs there"

    def to_dict(self) -> dict[str, Any]:
        """Return plain counts, for a record."""
        plain: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Counter):
                value = {str(key): count for key, count in sorted(value.items(), key=lambda item: str(item[0]))}
            plain[each.name] = list(value) if isinstance(value, list) else value
        return plain


def warn_of_unused_prompts(report: DataReport) -> None:
    """Warn of unused columns whose names say that the prompt is in them."""
    sentence = report.unused_prompts()
    if sentence is not None:
        warnings.warn(f"dataset: {sentence}.", UserWarning, stacklevel=2)


def _texts_in(value: Any) -> list[str]:
    """Return the texts of a cell: itself, or those of a list of turns, which may be messages."""
    if isinstance(value, Mapping):
        value = [item for key, item in value.items() if key not in ("role", "from")]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts_in(item)]
    return [value.strip()] if isinstance(value, str) else []
