"""What a chat template leaves out of a conversation, seen by writing marks in place of its texts.

A mark is found whatever a template trims, escapes or moves, and does not occur by chance as a short word may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rpo.llm.data.messages import Message
from rpo.llm.data.report import RefusedRow

Write = Callable[[list[Message]], str]

# What names or links messages and calls, and is no text of theirs.
LABELS = ("role", "id", "tool_call_id", "type", "index")


class Text(NamedTuple):
    """One text of a message: which message, under which of its fields, and where inside that."""

    message: int
    field: str
    place: tuple[Any, ...]


def unwritten(messages: Sequence[Message], start: int, write: Write) -> list[Text]:
    """Return the texts of messages[start:] that do not reach what `write` returns, one for each field of a message."""
    texts = [
        Text(k, field, place)
        for k, message in enumerate(messages)
        if k >= start
        for field, value in message.items()
        if field not in LABELS
        for place in _places(value, calls=field == "tool_calls")
    ]
    marks = [f"writtenmark{k}end" for k in range(len(texts))]
    try:
        written = write(_marked(messages, texts, marks)).lower()
    except RefusedRow:  # the template reads some text: each is tried by itself
        written = ""
    missing = [text for text, mark in zip(texts, marks, strict=True) if mark not in written]
    return _distinct([text for text in missing if not _changes(messages, text, write)])


def is_verbatim(text: str, written: str) -> bool:
    """Return whether `written` holds a text but for the space around and between its words, as it is or in JSON."""
    if text.strip() in written or json.dumps(text, ensure_ascii=False)[1:-1] in written:
        return True
    return "".join(text.split()) in "".join(written.split())


def unwritten_tools(tools: Sequence[Any], with_tools: str, without: str) -> list[str]:
    """Return the names of the tools that a text written with them has no more often than one written without."""
    names = [str((tool.get("function") or tool).get("name", "")) for tool in tools if isinstance(tool, dict)]
    left_out = [name for name in names if name and with_tools.count(name) <= without.count(name)]
    return names if with_tools == without else left_out


def _changes(messages: Sequence[Message], text: Text, write: Write) -> bool:
    """Return whether another text in that place makes another conversation."""
    try:
        return write(_marked(messages, [text], ["writtenmarkend"])) != write(list(messages))
    except RefusedRow:
        return True


def _distinct(texts: list[Text]) -> list[Text]:
    return list({(text.message, text.field): text for text in texts}.values())


def _places(value: Any, *, calls: bool, within: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of the texts inside a field; of tool calls also of numbers, since their arguments count."""
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if "arguments" in within or key not in LABELS]
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        counts = bool(value.strip()) if isinstance(value, str) else calls and value is not None
        return [within] if counts else []
    return [place for key, item in items for place in _places(item, calls=calls, within=(*within, key))]


def _marked(messages: Sequence[Message], texts: Sequence[Text], marks: Sequence[str]) -> list[Message]:
    """Return a copy of the messages with a mark in place of each text."""
    copies = [_copied(message) for message in messages]
    for (k, field, place), mark in zip(texts, marks, strict=True):
        target, key = copies[k], field
        for step in place:
            target, key = target[key], step
        target[key] = mark
    return copies


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
