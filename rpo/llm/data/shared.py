"""What two responses begin with: the prompt, where a row has no column for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# A shared beginning must not end inside a special token such as "<|user|>" or "[/INST]", nor inside a word. Scripts
# written without spaces have no words to protect: a character of theirs is as good a boundary as any.
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"
OPENED = re.compile(r"(?:<[^\s<>]*|\[[^\s\[\]]*)\Z")
WORD_END = re.compile(LETTER + r"+\Z")
LAST_WORD = re.compile(r"\S+\s*\Z")


def shared_text(chosen: str, rejected: str) -> str:
    """Return the prompt that two full texts share: their common beginning, moved back to a sensible boundary.

    Its end is never inside a word or a special token, leaves words to both responses, and gives one
    space before them to the responses, where tokenizers put it.
    """
    prompt = chosen[: common_length(chosen, rejected)]
    rests = [text[len(prompt) :] for text in (chosen, rejected)]
    found = OPENED.search(prompt)
    if not found and any(re.match(LETTER, rest) for rest in rests):
        found = WORD_END.search(prompt)
    if not found and not all(rest.strip() for rest in rests):
        found = LAST_WORD.search(prompt)
    return (prompt[: found.start()] if found else prompt).removesuffix(" ")


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return how many leading items two sequences share."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
