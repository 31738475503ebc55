"""Messages as plain values, whatever a data frame, Arrow or a text cell made of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

# Messages as Python or NumPy print them, which pandas' to_csv writes into cells.
PRINTED = re.compile(r"\s*(?:array\(\s*)?\[\s*\{\s*'\w+'\s*:")


def text_of(message: Message) -> str:
    """Return the words of a message."""
    return message.get("content") or ""


def is_absent(value: Any) -> bool:
    """Return whether a cell holds nothing: None, or what pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType"


def plain(value: Any) -> Any:
    """Return NumPy arrays and scalars, which pandas keeps in its cells, as lists and numbers; tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    # What begins with an int is a list of token ids, which may be long.
    return list(value) if value and type(value[0]) is int else [plain(item) for item in value]


def without_none(value: Any) -> Any:
    """Return `value` without the None fields that Arrow adds where rows of one column have different keys."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(item) for item in value]
    return value


def nulls_in_calls(value: Any, inside: bool = False) -> int:
    """Return how many arguments of tool calls are None, by which Arrow also writes that one is missing."""
    if isinstance(value, Mapping):
        within = {key: inside or key == "arguments" for key in value}
        return sum(int(inside and item is None) + nulls_in_calls(item, within[key]) for key, item in value.items())
    return sum(nulls_in_calls(item, inside) for item in value) if isinstance(value, (list, tuple)) else 0


def stored_messages(text: str) -> Any:
    """Return the messages, or lists of them, that a text holds as JSON; None if it holds none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = list(_flat(value))
    return value if found and all(isinstance(item, dict) and item.get("role") in ROLES for item in found) else None


def is_printed(text: str) -> bool:
    """Return whether a text is what Python prints for a list of messages, which is no JSON."""
    return bool(PRINTED.match(text)) and "'role'" in text and stored_messages(text) is None


def _flat(value: list[Any]) -> Iterator[Any]:
    for item in value:
        yield from item if isinstance(item, list) else [item]
