"""Conditions written into prompts: a goal score, a direction among aspects, good or bad; with them, what they are of.

A prompt that is too long is cut from the left, its system message first: where goals matter, set max_length for whole
prompts, or truncation_mode="drop".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.formats import SCORES, read_preference
from rpo.llm.data.lists import number, read_list
from rpo.llm.data.messages import plain
from rpo.llm.data.report import RefusedRow, shown
from rpo.llm.data.transforms import Derived, TransformReport, completed, kept

PLACES = ("system", "prompt")
GOAL = "Give an answer whose score is {goal:g}."
DIRECTION = "Weigh the answer by {direction}."
GOOD, BAD = "Give a good answer.", "Give a bad answer."


def reward_augmented(
    rows: Iterable[Any], *, where: str = "system", text: str = GOAL, on_refused: str = "error"
) -> Derived:
    """Return each scored pair twice: asked for the chosen score, and asked for the rejected one with the two exchanged.

    Under the goal g a response is worth -(g - score)^2, which the new scores are. Pairs of equal scores contradict
    themselves: dropped and counted. where: the goal goes into the system message, or before the prompt; text: how it is
    written, with {goal}; ask for the highest score, by `with_condition`, whenever the model is used. Any objective then
    trains on the rows. Raises InvalidArgument; RefusedRow while iterating.
    Source: Zhang et al. 2024 (arXiv 2410.08067); its code leaves the second half of models without a system message
    as it is, which this does not.
    """
    _check_text(where, text, "goal", 1.0)

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        columns = next((names for names in SCORES if isinstance(row, Mapping) and names[0] in row), SCORES[0])
        given = [number(row.get(name)) if isinstance(row, Mapping) else None for name in columns]
        if None not in given and given[0] == given[1]:
            report.dropped["ties"] += 1
            return []
        record = read_preference(row, index, scores=True)
        _require_written(record.kind, index)
        (chosen, rejected), (best, worst) = record.responses, record.scores
        gap = (best - worst) ** 2
        made = []
        for goal, first, second in ((best, chosen, rejected), (worst, rejected, chosen)):
            prompt = with_condition(record.prompt, text.format(goal=goal), where=where)
            one = dict(row) | {"prompt": prompt, "chosen": first.content, "rejected": second.content}
            for name, response in (("chosen", first), ("rejected", second)):
                one[f"{name}_finish_reason"] = "length" if response.cut else None
            made.append(one | dict(zip(columns, (0.0, -gap), strict=True)))
        report.made += 2
        return made

    return Derived(rows, make, on_refused)


def best_by_direction(
    rows: Iterable[Any],
    directions: Sequence[Mapping[str, float]],
    rng: np.random.Generator | np.random.SeedSequence | int,
    *,
    where: str = "system",
    text: str = DIRECTION,
    on_refused: str = "error",
) -> Derived:
    """Return for each list its best response by a direction drawn for it, and the direction in its prompt, for SFT.

    rows: lists with the column aspects, name -> K ratings (`ultrafeedback` makes it). directions: weights by aspect,
    not all zero; they are scaled to length 1 and written as "70 helpfulness, 71 honesty", hundredths. Responses without
    a rating in an aspect of the direction are left out; a list without any left is dropped and counted; the first of
    equal ones is taken. where, text: as of `reward_augmented`, with {direction}. Raises InvalidArgument; RefusedRow
    while iterating. Source: Wang et al. 2024 (arXiv 2402.18571).
    """
    _check_text(where, text, "direction", "")
    units = [_unit(k, one) for k, one in enumerate(checks.listed("directions", directions))]
    if not units:
        raise InvalidArgument("directions", expected="at least one direction", got="none", remedy="Name one.")
    seed = int(checks.generator("rng", rng).integers(2**63))

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        listed = read_list(row, index, ranked=True)
        direction = units[int(np.random.default_rng([seed, index]).integers(len(units)))]
        aspects = plain(row.get("aspects"))
        columns: list[Any] = [aspects.get(name) if isinstance(aspects, dict) else None for name in direction]
        if not all(isinstance(column, list) and len(column) == len(listed.answers) for column in columns):
            raise RefusedRow(
                index, "aspects", reason="not_rated", got=shown(aspects),
                expected=f"{len(listed.answers)} ratings in each of {', '.join(direction)}",
                remedy="Make them by rpo.llm.data.ultrafeedback, or write {aspect: [rating of each response]}.",
            )  # fmt: skip
        rated = [[number(column[k]) for column in columns] for k in range(len(listed.answers))]
        worth = {k: _along(direction, values) for k, values in enumerate(rated) if None not in values}
        if not worth:
            report.dropped["unrated"] += 1
            return []
        report.made += 1
        named = ", ".join(f"{round(100 * weight)} {name}" for name, weight in direction.items())
        prompt = with_condition(plain(row[listed.prompt]), text.format(direction=named), where=where)
        others = {name: value for name, value in kept(row, listed).items() if name != "aspects"}
        return [others | completed(prompt, listed, max(worth, key=worth.__getitem__))]

    return Derived(rows, make, on_refused)


def controlled(
    rows: Iterable[Any], *, good: str = GOOD, bad: str = BAD, where: str = "system", on_refused: str = "error"
) -> Derived:
    """Return responses with a control text in their prompts that says whether they are good or bad, for SFT.

    rows: pairs, which give a good and a bad one, or prompt, completion and label. At the optimum the model asked for a
    good answer is mu P(good | y) / Z, mu the data's own distribution. where: as of `reward_augmented`. Raises
    InvalidArgument; RefusedRow while iterating. Source: Xue et al. 2023 (arXiv 2310.00819), its control text without
    the adapters it is learnt in.
    """
    for name, words in (("good", good), ("bad", bad)):
        checks.instance(name, words, str)
    checks.one_of("where", where, PLACES)

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        record = read_preference(row, index, unpaired=True)
        _require_written(record.kind, index)
        made = []
        for k, response in enumerate(record.responses):
            desirable = record.label if record.label is not None else k == 0
            prompt = with_condition(record.prompt, good if desirable else bad, where=where)
            read = {"chosen", "rejected", "chosen_finish_reason", "rejected_finish_reason", "label"}
            columns = {name: value for name, value in row.items() if name not in read}
            finish = {"completion_finish_reason": "length"} if response.cut else {}
            made.append(columns | {"prompt": prompt, "completion": response.content} | finish)
        report.made += len(made)
        return made

    return Derived(rows, make, on_refused)


def with_condition(prompt: Any, condition: str, *, where: str = "system") -> Any:
    """Return a prompt with a condition in its system message ("system"), or before its last user message or text.

    prompt: a text or messages; a text becomes one user message where a system message is asked for. Raises
    InvalidArgument.
    """
    checks.one_of("where", where, PLACES)
    checks.instance("condition", condition, str)
    if isinstance(prompt, str):
        if where == "prompt":
            return f"{condition}\n\n{prompt}"
        return [{"role": "system", "content": condition}, {"role": "user", "content": prompt}]
    given = checks.listed("prompt", prompt)
    if not all(isinstance(message, Mapping) for message in given):
        remedy = 'Write each turn as {"role": "user", "content": "..."}.'
        raise InvalidArgument("prompt", expected="a text or messages", got=shown(prompt), remedy=remedy)
    messages = [dict(message) for message in given]
    role = "system" if where == "system" else "user"
    place = next((k for k in reversed(range(len(messages))) if messages[k].get("role") == role), None)
    if place is not None:
        messages[place]["content"] = f"{condition}\n\n{messages[place].get('content') or ''}"
        return messages
    if where == "prompt":
        raise InvalidArgument(
            "prompt", expected="a user message", got="none", remedy='Write the condition by where="system".'
        )
    return [{"role": "system", "content": condition}, *messages]


def _require_written(kind: str, index: int) -> None:
    if kind == "tokens":
        raise RefusedRow(
            index, "prompt_ids", reason="wrong_type", expected="texts or messages", got="token ids",
            remedy="A condition is written into text: transform the rows before they are tokenised.",
        )  # fmt: skip


def _check_text(where: str, text: str, name: str, example: Any) -> None:
    checks.one_of("where", where, PLACES)
    checks.instance("text", text, str)
    try:
        fits = text.format(**{name: example}) != text
    except (KeyError, IndexError, ValueError):
        fits = False
    if not fits:
        raise InvalidArgument("text", expected=f"a text with {{{name}}}", got=repr(text), remedy="Write it in.")


def _along(direction: Mapping[str, float], values: Sequence[float | None]) -> float:
    return math.fsum(w * (value or 0.0) for w, value in zip(direction.values(), values, strict=True))


def _unit(place: int, direction: Any) -> dict[str, float]:
    """Return a direction scaled to length 1."""
    name, given = f"directions[{place}]", direction if isinstance(direction, Mapping) else {}
    found = {str(aspect): float(checks.finite(name, weight, shape=())) for aspect, weight in given.items()}
    length = math.hypot(*found.values())
    if not length > 0:
        remedy = 'Pass {"helpfulness": 0.8, "honesty": 0.6}, for example.'
        raise InvalidArgument(name, expected="weights by aspect, not all zero", got=shown(direction), remedy=remedy)
    return {aspect: weight / length for aspect, weight in found.items()}
