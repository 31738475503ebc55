"""Rows with one response to learn, read as preferences of that response over itself: the same rules hold for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rpo.llm.data.formats import read_preference
from rpo.llm.data.report import RefusedRow, with_origin
from rpo.llm.data.streaming import splits_itself

RESPONSES = ("chosen", "rejected")


def response_rows(rows: Any, response: str) -> Any:
    """Return `rows` as preferences of one response over itself; response: of preference rows, chosen or rejected."""
    if iter(rows) is rows:  # a generator, which is refused as it is
        return rows
    return (SizedResponseRows if hasattr(rows, "__len__") else ResponseRows)(rows, response)


class ResponseRows:
    """Rows of prompts and responses, read anew at every iteration as preferences of one response over itself."""

    def __init__(self, rows: Any, response: str) -> None:
        self._rows, self._response = rows, response
        self.splits_itself = splits_itself(rows)

    def __iter__(self) -> Iterator[Any]:
        return (as_preference(row, index, self._response) for index, row in enumerate(self._rows))

    def set_epoch(self, epoch: int) -> None:
        """Tell the source which pass comes next, where it shuffles by epoch."""
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)


class SizedResponseRows(ResponseRows):
    """The same of rows whose number is known."""

    def __len__(self) -> int:
        return len(self._rows)


def as_preference(row: Any, index: int, response: str) -> Any:
    """Return a prompt-completion or preference row as the preference of its response over itself.

    All that the rules of preference data say (boundary, end of turn, truncation, templates) then holds for
    it. A row that has no such response is returned as it is, to be refused by those rules.
    """
    if not isinstance(row, Mapping):
        return row
    ids = "_ids" if any(f"{name}_ids" in row for name in ("prompt", "completion", response)) else ""
    source = f"completion{ids}" if f"completion{ids}" in row else f"{response}{ids}"
    if source not in row:
        return row
    prompt, content = row.get(f"prompt{ids}"), row[source]
    if not ids and "prompt" not in row and source == response:
        try:  # the prompt is what the two responses share
            record = read_preference(row, index)
        except RefusedRow:
            return row
        prompt, content = record.prompt, record.responses[RESPONSES.index(response)].content
    finish = row.get(f"{source.removesuffix('_ids')}_finish_reason")
    read = {f"completion{ids}", "completion_finish_reason"}
    kept = {name: value for name, value in row.items() if name not in read}
    kept |= {f"prompt{ids}": prompt, f"chosen{ids}": content, f"rejected{ids}": content}
    return with_origin(kept | {f"{name}_finish_reason": finish for name in RESPONSES}, row)
