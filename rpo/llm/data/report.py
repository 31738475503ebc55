"""What became of the rows: a refusal that names its row, and the counts of everything cut, merged or dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from rpo.core.errors import InvalidArgument

KEPT_MESSAGES = 5
EXCERPT = 200


class RefusedRow(InvalidArgument):
    """A row that cannot become a pair; `row` is its position in the source, `reason` a short key to count by."""

    def __init__(self, row: int, column: str, *, reason: str, expected: str, got: object, remedy: str) -> None:
        self.row, self.column, self.reason = row, column, reason
        super().__init__(f"row {row}, {column}", expected=expected, got=got, remedy=remedy)


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
    rewritten: responses that the chat template did not reproduce word for word. cut_when_made:
    responses whose finish reason is "length". ends: responses by the id of the end token written.
    unused_columns: rows by column that nothing here reads.
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
    cut_when_made: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)

    def refuse(self, refusal: RefusedRow) -> None:
        """Count a row that was left out, and keep its message if it is among the first."""
        self.refused[refusal.reason] += 1
        if len(self.messages) < KEPT_MESSAGES:
            self.messages.append(str(refusal))

    def to_dict(self) -> dict[str, Any]:
        """Return plain counts, for a record."""
        plain: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Counter):
                value = {str(key): count for key, count in sorted(value.items())}
            plain[each.name] = list(value) if isinstance(value, list) else value
        return plain
