"""Rows of a prompt and several responses with scores or ranks, in the ways such data are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpo.llm.data.messages import is_absent, plain
from rpo.llm.data.report import RefusedRow, shown

PROMPTS = ("prompt", "instruction")
LISTS = ("responses", "completions")
ANSWERS = ("response", "completion", "content", "text")
SCORES = ("overall_score", "score", "rating")
SCORES_COLUMN, RANKS_COLUMN, RANK = "scores", "ranks", "rank"
TOO_FEW = "too_few_scores"  # of refusals that drop a row, whatever is asked for rows that cannot be used


@dataclass(frozen=True, slots=True)
class Listed:
    """The responses of a row in its order. prompt, column: names of the columns. values: what orders them, a higher one
    first, None of a response without; no values where their order is the ranking. scores: whether values are scores,
    not ranks. finish: why each response ended, where the row says it ("length": it was cut). used: the columns read.
    """

    prompt: str
    column: str
    answers: list[Any]
    values: list[float | None] | None
    scores: bool
    finish: list[Any]
    used: frozenset[str]

    @property
    def unscored(self) -> int:
        """How many responses have no score or rank."""
        return 0 if self.values is None else self.values.count(None)

    @property
    def tied(self) -> bool:
        """Whether two of them have the same score or rank."""
        known = [] if self.values is None else [value for value in self.values if value is not None]
        return len(set(known)) < len(known)

    def best_first(self) -> list[int]:
        """Return the places of the responses with a score, the best first; equal ones in the order of the row."""
        if self.values is None:
            return list(range(len(self.answers)))
        known = [(k, value) for k, value in enumerate(self.values) if value is not None]
        return [k for k, _ in sorted(known, key=lambda item: -item[1])]


def list_column(row: Any) -> str | None:
    """Return the name of the column with the responses of a row of several, None where it is no such row."""
    if not isinstance(row, Mapping) or {"chosen", "chosen_ids"} & set(row):
        return None
    return next((name for column in LISTS for name in (column, f"{column}_ids") if name in row), None)


def read_list(row: Any, index: int, *, ranked: bool = False) -> Listed:
    """Return the responses of a row with their scores or ranks.

    The row has a prompt (or instruction) and responses (or completions): a list of texts, of messages or of token ids,
    with a column scores or ranks (1 is the best) as long, or a list of mappings with a text under response, completion,
    content or text and a number under overall_score, score, rating or rank. ranked: without either, they stand best
    first. Raises RefusedRow.
    """
    column = list_column(row)
    prompts = PROMPTS if column is None or not column.endswith("_ids") else ("prompt_ids",)
    prompt = None if column is None else next((name for name in prompts if name in row), None)
    given = None if column is None else plain(row[column])
    if column is None or prompt is None or not isinstance(given, list) or not given:
        raise _refused(row, index, shown(row))
    answers = [_answer(item) for item in given]
    if any(answer is None for answer in answers):
        raise _refused(row, index, shown(given))
    used, values, scores = {prompt, column}, None, True
    beside = next((name for name in (SCORES_COLUMN, RANKS_COLUMN) if not is_absent(row.get(name))), None)
    if beside is not None:
        listed = plain(row[beside])
        if not isinstance(listed, list) or len(listed) != len(given):
            raise _refused(row, index, f"{beside} {shown(listed)} for {len(given)} responses")
        used.add(beside)
        values, scores = [number(value) for value in listed], beside == SCORES_COLUMN
    elif any(_has(item, (*SCORES, RANK)) for item in given):
        scores = any(_has(item, SCORES) for item in given)
        values = [number(_pick(item, SCORES if scores else (RANK,))) for item in given]
    elif not ranked:
        raise _refused(row, index, "responses without scores or ranks")
    if values is not None and not scores:
        values = [None if value is None else -value for value in values]
    ended = f"{column.removesuffix('_ids')}_finish_reason"
    reasons = plain(row.get(ended))
    finish = reasons if isinstance(reasons, list) else [reasons] * len(given)
    if len(finish) != len(given):
        raise _refused(row, index, f"{ended} {shown(reasons)} for {len(given)} responses")
    return Listed(prompt, column, answers, values, scores, finish, frozenset({*used, ended}))


def number(score: Any) -> float | None:
    """Return a score as a float, or None where there is none ("N/A" and NaN occur in UltraFeedback)."""
    try:
        value = math.nan if isinstance(score, bool) else float(score)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _refused(row: Any, index: int, got: str) -> RefusedRow:
    return RefusedRow(
        index, "completions", reason="not_scored",
        expected="a prompt and a list of completions with scores", got=got,
        remedy='Write completions as [{"response": ..., "score": ...}], or columns responses and scores (or ranks); '
        "lists that stand best first without either are read with ranked=True (ranked_lists of a trainer).",
    ).of(row)  # fmt: skip


def _answer(item: Any) -> Any:
    """Return the response of an item of a list: what a mapping holds, a message of its own, or the item itself."""
    if not isinstance(item, Mapping):
        return None if is_absent(item) else item
    return [item] if "role" in item and not _has(item, (*SCORES, RANK)) else _pick(item, ANSWERS)


def _has(item: Any, names: tuple[str, ...]) -> bool:
    return isinstance(item, Mapping) and any(name in item for name in names)


def _pick(item: Any, names: tuple[str, ...]) -> Any:
    return (
        next((item[name] for name in names if item.get(name) is not None), None) if isinstance(item, Mapping) else None
    )
