"""Preference tables read from files: CSV, JSON lines or Parquet, in one of three column layouts.

Rows are counted as they are read, so memory grows with the distinct (prompt, chosen, rejected)
triples and not with the rows. Labels stay text: "007", "NA" and "None" mean what they say. A bad cell
costs its row, counted with the reason and the first place; a damaged file is refused.
"""

from __future__ import annotations

import contextlib
import math
import re
import reprlib
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.table_rows import Layout, open_rows, unwritable
from rpo.core import checks
from rpo.core.errors import InvalidArgument, LookAlikeLabels, OutputError
from rpo.core.progress import track

TIES = ("drop", "half", "error")
TIE_REASONS = {
    "tie": "tie",
    "tie (bothbad)": "tie, both bad",
    "both_bad": "tie, both bad",
    "bothbad": "tie, both bad",
    "tie (inconsistent)": "tie, inconsistent",
}
ONE_HOT_OUTCOMES: dict[tuple[bool | None, ...], str] = {
    (True, False, False): "model_a", (False, True, False): "model_b", (False, False, True): "tie",
}  # fmt: skip
FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
NAMED_LOOK_ALIKES = 3
LONG_READ = 30_000_000  # bytes from which the rows read are shown: a few seconds


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferenceTable:
    """What was read from a file, and what was left out of it.

    counts: labelled win counts. dropped: reason -> number of rows left out; empty when none was.
    unused_labels: response labels that occur in dropped rows only. unused_columns: columns not read.
    look_alikes: groups of labels that differ in spaces, Unicode form or decimal zeros only; they are
    counted as different. source: the file.
    """

    counts: PreferenceCounts
    dropped: dict[str, int]
    unused_labels: tuple[str, ...]
    unused_columns: tuple[str, ...]
    look_alikes: tuple[tuple[str, ...], ...]
    source: str


class _BadCell(Exception):
    """A cell that cannot be used: it costs its row. reason: the kind, by which rows are counted; got: the cell."""

    def __init__(self, reason: str, got: str) -> None:
        self.reason, self.got = reason, got


def read_preferences(path: str | Path, *, ties: str = "drop", prompt_column: str | None = None) -> PreferenceTable:
    """Read preferences with string labels from a .csv, .jsonl, .ndjson or .parquet file.

    Columns: (chosen, rejected) or (model_a, model_b, winner), winner being "model_a", "model_b" or a
    tie: "tie", "tie (bothbad)", "both_bad", "bothbad", "tie (inconsistent)"; or, in place of winner,
    (winner_model_a, winner_model_b, winner_tie) of which one is 1. Each with an optional `count` (> 0)
    and an optional prompt, named "prompt" or `prompt_column`; without it there is one prompt, "".
    Numbers become strings. A row with a cell that is missing, no label, no count, no outcome, or with
    a response against itself is left out and counted in `.dropped`. ties: "drop" (counted in
    `.dropped`), "half" (half a win each way) or "error". Labels are indexed in sorted order over the
    rows kept. Warns LookAlikeLabels. Raises InvalidArgument (with the place), OutputError,
    MissingDependency.
    """
    checks.one_of("ties", ties, TIES)
    source = checks.path("path", path)
    rows, unit = open_rows(source, prompt_column)
    try:
        # closing: the reader restores what it changed even while an exception keeps it alive
        with contextlib.closing(rows):
            long = source.stat().st_size > LONG_READ
            table = _count(source, track(rows, f"Reading {source.name}", show=None if long else False), ties, unit)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            "path",
            expected="UTF-8 text",
            got=f"{source}: {error.reason} at line {_undecodable_line(source)}",
            remedy="Save the file as UTF-8.",
        ) from error
    except OSError as error:
        raise OutputError(
            f"path: expected a readable file, got {source} ({error.strerror or error}). Check the name and permissions."
        ) from error
    if table.look_alikes:
        warnings.warn(look_alike_sentence(table), LookAlikeLabels, stacklevel=2)
    return table


def look_alike_sentence(table: PreferenceTable) -> str:
    """Return the sentence that names the labels of a table that look alike and are counted apart."""
    named = "; ".join(" and ".join(map(repr, group)) for group in table.look_alikes[:NAMED_LOOK_ALIKES])
    more = len(table.look_alikes) - NAMED_LOOK_ALIKES
    return (
        f"{len(table.look_alikes)} group(s) of labels differ only in spaces, Unicode form or decimal zeros and are "
        f"counted as different: {named}{f'; and {more} more' if more > 0 else ''}. "
        "If they mean the same, write them the same way."
    )


def bandit_from_preferences(
    counts: PreferenceCounts, *, reward_bound: float | None = None, name: str = "preferences"
) -> ContextualBandit:
    """Return the bandit the data describe: d0 = prompt frequencies, reference uniform, reward unknown.

    The reference is uniform over the responses that occur at each prompt, chosen or rejected, and
    zero elsewhere. reward_bound: R > 0, log-odds, or None. Raises InvalidArgument for a prompt
    without data.
    """
    checks.instance("counts", counts, PreferenceCounts, remedy="Pass read_preferences(path).counts.")
    occurs = counts.response_frequencies("responses") > 0
    size = occurs.sum(axis=1, keepdims=True)
    empty = np.flatnonzero(size == 0)
    if empty.size:
        raise InvalidArgument(
            "counts",
            expected="data at every prompt",
            got=f"none at prompt {int(empty[0])} ({empty.size} such prompts)",
            remedy="Leave those prompts out, or build ContextualBandit with a reference of your own.",
        )
    return ContextualBandit(
        d0=counts.prompt_frequencies,
        reference=occurs / size,
        reward_bound=reward_bound,
        prompt_labels=counts.prompt_labels,
        response_labels=counts.response_labels,
        own_labels=counts.own_labels,
        name=name,
    )


def _count(source: Path, rows: Iterator[Any], ties: str, unit: str) -> PreferenceTable:
    """Add up the rows: `rows` yields the layout, then (where, values of its columns), where in `unit`s."""
    layout: Layout = next(rows)
    prompts: dict[str, int] = {}
    responses: dict[str, int] = {}
    wins: dict[tuple[int, int, int], float] = {}
    dropped: dict[str, int] = {}
    first_bad: dict[str, str] = {}
    first, second = layout.responses
    at = 0 if layout.prompt is None else 1

    def index(known: dict[str, int], label: str, column: str) -> int:
        found = known.get(label)
        if found is None:
            trouble = unwritable(label)
            if trouble is not None:
                raise InvalidArgument(
                    column,
                    expected="labels that can be written as UTF-8 text",
                    got=f"{trouble} at {unit} {where} of {source}",
                    remedy="Mend or remove the row.",
                )
            found = known[label] = len(known)
        return found

    for where, values in rows:
        try:
            label = "" if layout.prompt is None else _label(values[0], layout.prompt)
            a = index(responses, _label(values[at], first), first)
            b = index(responses, _label(values[at + 1], second), second)
            if a == b:
                raise _BadCell("a response against itself", reprlib.repr(values[at]))
            n = 1.0 if layout.count is None else _number(values[-1], layout.count)
            outcome = "model_a" if not layout.winner else _outcome(values[at + 2 : at + 2 + len(layout.winner)])
        except _BadCell as bad:
            dropped[bad.reason] = dropped.get(bad.reason, 0) + 1
            first_bad.setdefault(bad.reason, f"{bad.got} at {unit} {where}")
            continue
        tie = None
        if outcome == "model_b":
            a, b = b, a
        elif outcome != "model_a":
            tie = TIE_REASONS[outcome]
            if ties == "error":
                raise InvalidArgument(
                    ", ".join(layout.winner),
                    expected="no ties, since ties='error'",
                    got=f"{outcome!r} at {unit} {where} of {source}",
                    remedy="Pass ties='drop' to leave ties out and count them, or 'half' to split them.",
                )
            if ties == "drop":
                dropped[tie] = dropped.get(tie, 0) + 1
                continue
        x = index(prompts, label, layout.prompt or "")
        if tie is not None:
            n /= 2.0
            wins[x, b, a] = wins.get((x, b, a), 0.0) + n
        wins[x, a, b] = wins.get((x, a, b), 0.0) + n
    left_out = {f"{r}, first {first_bad[r]}" if r in first_bad else r: number for r, number in dropped.items()}
    if not wins:
        got = f"only dropped rows in {source}: {left_out}" if left_out else f"no rows in {source}"
        remedy = "Mend the cells, or pass some data."
        if any("no short label" in reason for reason in dropped):
            remedy = "Conversations are not labels: give each response a name, or train on the text with rpo.fit."
        raise InvalidArgument("path", expected="at least one preference", got=got, remedy=remedy)
    return _table(source, prompts, responses, wins, left_out, layout.unused)


def _table(
    source: Path,
    prompts: dict[str, int],
    responses: dict[str, int],
    wins: dict[tuple[int, int, int], float],
    dropped: dict[str, int],
    unused_columns: tuple[str, ...],
) -> PreferenceTable:
    """Renumber the labels in sorted order, without those that only dropped rows hold."""
    used = {index for _, w, lost in wins for index in (w, lost)}
    prompt_labels = tuple(sorted(prompts))
    response_labels = tuple(sorted(label for label, index in responses.items() if index in used))
    rank_prompt = {prompts[label]: rank for rank, label in enumerate(prompt_labels)}
    rank_response = {responses[label]: rank for rank, label in enumerate(response_labels)}
    counts = PreferenceCounts.from_pairs(
        np.array([rank_prompt[x] for x, _, _ in wins]),
        np.array([rank_response[w] for _, w, _ in wins]),
        np.array([rank_response[lost] for _, _, lost in wins]),
        count=np.array(list(wins.values())),
        num_prompts=len(prompt_labels),
        num_responses=len(response_labels),
        prompt_labels=prompt_labels,
        response_labels=response_labels,
    )
    unused = tuple(sorted(label for label, index in responses.items() if index not in used))
    return PreferenceTable(
        counts=counts,
        dropped=dropped,
        unused_labels=unused,
        unused_columns=unused_columns,
        look_alikes=(*_look_alikes(prompt_labels), *_look_alikes(response_labels)),
        source=str(source),
    )


def _look_alikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of labels that a reader cannot tell apart."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_appearance(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _appearance(label: str) -> str:
    """Return what is seen of a label: one Unicode form, no invisible characters, single spaces, no decimal zeros."""
    if not label.isascii():
        visible = (c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf")
        label = "".join(visible)
    label = " ".join(label.split())
    return label.rstrip("0").rstrip(".") if re.fullmatch(r"[+-]?\d+\.\d*", label) else label


def _label(value: Any, column: str) -> str:
    if type(value) is str and value:
        return value
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise _BadCell(f"missing {column}", repr(value))
    if isinstance(value, (list, dict, tuple, bytes)):
        raise _BadCell(f"{column} is no short label", f"a {type(value).__name__}")
    return str(value)


def _number(value: Any, column: str) -> float:
    try:
        # float() also takes True and "1_000", neither of which is a count anyone meant to write
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise _BadCell(f"{column} is no finite number > 0", reprlib.repr(value))
    return number


def _outcome(values: list[Any]) -> str:
    """Return "model_a", "model_b" or a key of `TIE_REASONS` from one named outcome, or from three flags."""
    if len(values) == 1:
        outcome = values[0]
        if isinstance(outcome, str) and (outcome in ("model_a", "model_b") or outcome in TIE_REASONS):
            return outcome
    else:
        flags = (FLAGS.get(str(v).strip().lower()) if isinstance(v, (str, int, float)) else None for v in values)
        outcome = ONE_HOT_OUTCOMES.get(tuple(flags))
        if outcome is not None:
            return outcome
    raise _BadCell("winner is not model_a, model_b or a tie", ", ".join(map(reprlib.repr, values)))


def _undecodable_line(source: Path) -> int:
    """Return the first line of a text file that is not UTF-8."""
    with source.open("rb") as stream:
        for where, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return where
    return 0
