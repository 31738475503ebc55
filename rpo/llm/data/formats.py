"""One row in any of TRL's preference formats, made into one canonical record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from rpo.llm.data.lists import TOO_FEW, Listed, list_column, number, read_list
from rpo.llm.data.messages import (
    ROLES,
    Message,
    is_absent,
    is_printed,
    nulls_in_calls,
    plain,
    stored_messages,
    text_of,
    without_none,
)
from rpo.llm.data.report import RefusedRow, shown
from rpo.llm.data.shared import common_length, shared_text

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
LABEL, SCORE = "label", "score"
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))  # under either pair of names
OPTIONS = ("tools", "chat_template_kwargs")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


class Response(NamedTuple):
    """One answer: text, messages from an assistant's to an assistant's, or token ids.

    cut: whether its finish reason was "length".
    """

    content: Any
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Preference:
    """A row understood: kind "text" (strings), "chat" (messages) or "tokens" (ids).

    responses: K that are compared, best first, then those of the base column; columns: their names, for messages. own:
    K: two of a preference, one alone that a label (whether it is desirable) or a score goes with, any number of a list.
    scores: K. prompt_given: it has a column of its own. nulls: arguments of tool calls and fields of tools that were
    None and are left out. unscored: responses of a list that have no score and are left out. tied: whether two scores
    or ranks of a list are the same. extra: columns that nothing here reads.
    """

    kind: str
    row: int
    prompt: Any
    responses: tuple[Response, ...]
    columns: tuple[str, ...]
    own: int = 2
    weight: float = 1.0
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prompt_given: bool = True
    nulls: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    label: bool | None = None
    scores: tuple[float, ...] = ()
    unscored: int = 0
    tied: bool = False


def read_preference(
    row: Any,
    index: int,
    *,
    base_column: str | None = None,
    weight_column: str | None = None,
    unpaired: bool = False,
    scores: bool = False,
    lists: bool = False,
    ranked: bool = False,
) -> Preference:
    """Return the record of one row: standard or conversational, explicit or implicit prompt, or token ids.

    index: position in the source, for messages. base_column: a response or a list of them. unpaired: also rows of a
    prompt, one completion and its label, or its score where scores are read. scores: read score_chosen and
    score_rejected (or chosen_score and rejected_score), the first above the second, and the scores of lists. lists:
    also rows of a prompt and several responses, as of `read_list`, with ranked; of equal scores the first in the row is
    the better one, and a response without a score is left out.
    Raises RefusedRow for missing columns, wrong types, wrong roles, empty responses, images and sound, and for a list
    of fewer than two responses with a score.
    Source: TRL, "Dataset formats", preference and unpaired preference.
    """
    if not isinstance(row, Mapping):
        raise RefusedRow(
            index, "row", reason="wrong_type", expected="a mapping from column to value", got=shown(row),
            remedy="Pass rows as dicts; of a DatasetDict, choose a split.",
        )  # fmt: skip
    reader = _Reader(row, index)
    reader.refuse_media()
    listed = read_list(row, index, ranked=ranked) if lists and list_column(row) is not None else None
    single = unpaired and not {"chosen", "chosen_ids"} & set(row) and bool({"completion", "completion_ids"} & set(row))
    tokens = any(name in row for name in (*TOKEN_COLUMNS, *(("completion_ids",) if single else ())))
    ids = "_ids" if tokens else ""
    names = [f"{name}{ids}" for name in ("prompt", *(("completion",) if single else ("chosen", "rejected")))]
    order: list[int] = []
    if listed is not None:
        order = reader.order(listed)
        names = [listed.prompt, *(f"{listed.column}[{k}]" for k in order)]
        values = [listed.answers[k] for k in order]
    else:
        values = [reader.value(name) for name in names[1:]]
    own = len(values)
    base = [] if base_column is None else reader.base(base_column)
    prompt = reader.value(names[0]) if tokens or single or listed is not None or "prompt" in row else None
    columns = [*names[1:], *([str(base_column)] * len(base))]
    tools, nulls = None, 0
    if not tokens:
        tools, (prompt, values, base) = reader.tools(), reader.unpacked(prompt, values, base)
        nulls = nulls_in_calls([prompt, *values, *base]) + nulls_in_calls(plain(row.get("tools")), inside=True)
    if tokens:
        kind, prompt = "tokens", reader.ids(names[0], prompt)
        contents: list[Any] = [reader.ids(name, value) for name, value in zip(columns, [*values, *base], strict=True)]
    elif isinstance(prompt, list) or any(isinstance(value, list) for value in values):
        kind = "chat"
        prompt, contents = reader.conversation(prompt, [*values, *base], columns, own)
    else:
        kind = "text"
        prompt, contents = reader.texts(prompt, [*values, *base], columns)
        if tools:
            remedy = "Write the row as messages; if its texts have the tools already, remove the column."
            reader.refuse("tools", "unwritten", "messages, whose chat template writes tools", "plain text", remedy)
    whose = [name.removesuffix("_ids") for name in names[1:]] if listed is None else []
    flags = [reader.cut(name) for name in whose] if listed is None else [listed.finish[k] == "length" for k in order]
    flags += reader.base_cuts(base_column, len(base))
    labelled = single and (LABEL in row or not scores)
    used = {*(names if listed is None else listed.used), *(() if tokens else OPTIONS), base_column, weight_column}
    used |= {f"{name}_finish_reason" for name in (*whose, base_column)}
    used |= {LABEL} if labelled else {SCORE} if single else set(reader.score_columns()) if scores else set()
    return Preference(
        kind=kind,
        row=index,
        prompt=prompt,
        responses=tuple(map(Response, contents, flags)),
        columns=(*(name.removesuffix("_ids") for name in names[1:]), *(f"base response {k}" for k in range(len(base)))),
        own=own,
        weight=1.0 if weight_column is None else reader.weight(weight_column),
        tools=tools,
        template_kwargs={} if tokens else reader.template_kwargs(),
        prompt_given=names[0] in row,
        nulls=nulls,
        extra={name: value for name, value in row.items() if name not in used},
        label=reader.label() if labelled else None,
        scores=reader.scores(listed, order, single) if scores and not labelled else (),
        unscored=0 if listed is None else listed.unscored,
        tied=listed is not None and listed.tied,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A row, its position, and how each of its columns is read."""

    row: Mapping[str, Any]
    index: int

    def refuse(self, column: str, reason: str, expected: str, got: object, remedy: str) -> NoReturn:
        raise RefusedRow(self.index, column, reason=reason, expected=expected, got=got, remedy=remedy)

    def value(self, column: str) -> Any:
        if column not in self.row:
            columns = ", ".join(map(repr, self.row))
            remedy = "Rename your columns to prompt, chosen and rejected (or prompt_ids, chosen_ids and rejected_ids)."
            if list_column(self.row) is not None:
                remedy = (
                    "Lists are for methods that take them; rpo.llm.data.binarize makes pairs of them for the others."
                )
            elif any(name.startswith("completion") for name in map(str, self.row)):
                remedy += " Completions alone are for rpo.SFT, with labels for rpo.KTO and rpo.BCO."
            self.refuse(column, "missing_column", f"a column {column!r}", f"columns {columns}", remedy)
        value = self.row[column]
        if is_absent(value):
            self.refuse(column, "none", "a value", value, "Fill it, or remove the row.")
        return plain(value)

    def refuse_media(self) -> None:
        """Refuse a row with images or sound: what the model would not see cannot be trained on."""
        for name in MEDIA:
            value = plain(self.row.get(name))
            if not (is_absent(value) or value in ("", [], {})):
                remedy = "Only text is supported: leave such rows out, or remove the column if the texts do without it."
                self.refuse(name, "media", "no images, audio or video", shown(value), remedy)

    def unpacked(self, prompt: Any, values: list[Any], base: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        """Return the columns with messages in place of the JSON of them; chosen and rejected both, or neither."""

        def all_texts(held: list[Any], are: Callable[[str], Any]) -> bool:
            return all(isinstance(value, str) and are(value) for value in held)

        for column, held in (("prompt", [prompt]), ("chosen, rejected", values)):
            if all_texts(held, is_printed):
                remedy = "Write JSON instead: a data frame has to_json(..., orient='records', lines=True)."
                got = f"what Python prints for them: {shown(held[0][:80])}"
                self.refuse(column, "printed", "messages, or JSON of messages", got, remedy)
        if all_texts([prompt], stored_messages):
            prompt = stored_messages(prompt)
        if all_texts(values, stored_messages):
            values = [stored_messages(value) for value in values]
        if any(isinstance(value, list) for value in values):
            base = [stored_messages(value) or value if isinstance(value, str) else value for value in base]
        return prompt, values, base

    def base(self, column: str) -> list[Any]:
        """Return the base responses: a list of strings, conversations or id lists is several, else it is one."""
        value = self.value(column)
        several = isinstance(value, list) and value and all(isinstance(item, (str, list, tuple)) for item in value)
        return list(value) if several else [value]

    def label(self) -> bool:
        """Return whether a response alone is desirable."""
        value = plain(self.row.get(LABEL))
        if not (isinstance(value, (bool, int, float)) and value in (0, 1)):
            self.refuse(LABEL, "label", "True or False, or 1 or 0", shown(value), "Say whether it is a good answer.")
        return bool(value)

    def order(self, listed: Listed) -> list[int]:
        """Return the places of a list's responses, the best first. Raises RefusedRow for fewer than two."""
        order = listed.best_first()
        if len(order) < 2:
            got = f"{len(order)} of {len(listed.answers)}"
            self.refuse(listed.column, TOO_FEW, "at least two responses with scores", got, "Such rows are left out.")
        return order

    def scores(self, listed: Listed | None, order: list[int], single: bool) -> tuple[float, ...]:
        """Return the scores of the responses: of a list, of one alone, or of a pair, the first above the second."""
        if listed is not None:
            if listed.values is None or not listed.scores:
                remedy = "Write a score for each response, or use a method of the order alone."
                self.refuse(listed.column, "scores", "scores", "their order alone", remedy)
            return tuple(float(listed.values[k] or 0.0) for k in order)
        if single:
            score = number(self.value(SCORE))
            if score is None:
                self.refuse(SCORE, "scores", "a finite number", shown(self.row.get(SCORE)), "Remove the row.")
            return (score,)
        columns = self.score_columns()
        first, second = (number(self.value(column)) for column in columns)
        if first is None or second is None or not (math.isfinite(first - second) and first > second):
            remedy = "Remove ties and rows whose scores contradict the preference."
            self.refuse(", ".join(columns), "scores", "finite numbers, the first larger", f"{first}, {second}", remedy)
        return first, second

    def score_columns(self) -> tuple[str, str]:
        """Return the names of the columns of scores."""
        return next((names for names in SCORES if names[0] in self.row), SCORES[0])

    def weight(self, column: str) -> float:
        value = self.value(column)
        weight = number(value)
        if weight is None or weight <= 0:
            self.refuse(column, "weight", "a finite number > 0", shown(value), "Remove rows that should not count.")
        return weight

    def cut(self, column: str) -> bool:
        return bool(plain(self.row.get(f"{column}_finish_reason")) == "length")

    def base_cuts(self, column: str | None, count: int) -> list[bool]:
        reasons = plain(self.row.get(f"{column}_finish_reason"))
        if not isinstance(reasons, (list, tuple)):
            reasons = [reasons] * count
        if len(reasons) != count:
            got = f"{len(reasons)} for {count} responses"
            self.refuse(f"{column}_finish_reason", "wrong_type", "one a response", got, "Pass one a response.")
        return [reason == "length" for reason in reasons]

    def ids(self, column: str, value: Any) -> tuple[int, ...]:
        valid = isinstance(value, list) and all(type(item) is int and 0 <= item < 2**31 for item in value)
        if not valid:
            self.refuse(column, "wrong_type", "a list of token ids in [0, 2^31)", shown(value), "Pass lists of ints.")
        if not value:
            self.refuse(column, "empty_response", "at least one token id", "an empty list", "Remove the row.")
        return tuple(value)

    def texts(self, prompt: Any, values: list[Any], columns: list[str]) -> tuple[str, list[str]]:
        given = list(zip(columns, values, strict=True))
        for name, value in given if prompt is None else [("prompt", prompt), *given]:
            if not isinstance(value, str):
                remedy = "Use the same format in every column of a row."
                self.refuse(name, "wrong_type", "a string, as in the other columns", shown(value), remedy)
        if prompt is None:
            chosen, rejected = values[:2]
            prompt = shared_text(chosen, rejected)
            if not prompt:
                got = f"{shown(chosen[:40])} and {shown(rejected[:40])}"
                remedy = "Add a prompt column."
                self.refuse("chosen, rejected", "no_prompt", "texts that begin with the same prompt", got, remedy)
            values = [value[len(prompt) :] if value.startswith(prompt) else value for value in values]
        for name, value in zip(columns, values, strict=True):
            if not value.strip():
                remedy = "Remove the row; if the prompt was inferred from equal beginnings, add a prompt column."
                self.refuse(name, "empty_response", "a response with words", shown(value), remedy)
        return prompt, values

    def conversation(
        self, prompt: Any, values: list[Any], columns: list[str], own: int
    ) -> tuple[list[Message], list[list[Message]]]:
        """Return the prompt's messages and those of each response; own: how many of them are no base responses."""
        if given := isinstance(prompt, list):
            prompt = self.messages("prompt", prompt)
        # Beside a prompt of messages, and for base responses, a string can only be the assistant's answer.
        values = [
            [{"role": "assistant", "content": value}] if isinstance(value, str) and (given or k >= own) else value
            for k, value in enumerate(values)
        ]
        turns = [self.messages(name, value) for name, value in zip(columns, values, strict=True)]
        if not given:
            prompt = self.shared_turns(prompt, turns[:own])
        if not prompt or prompt[-1]["role"] == "assistant":
            got = "no message" if not prompt else "one that ends with an assistant message"
            remedy = "Let chosen and rejected share the turns before the answer, and differ in the answer."
            self.refuse("prompt", "no_prompt", "a prompt that ends before the assistant's turn", got, remedy)
        answers = [turn[len(prompt) :] if turn[: len(prompt)] == prompt else turn for turn in turns]
        for name, answer in zip(columns, answers, strict=True):
            roles = [message["role"] for message in answer]
            if not roles or {roles[0], roles[-1]} != {"assistant"}:
                remedy = "Put shared turns in the prompt; a response begins and ends with an assistant message."
                got = "roles " + (", ".join(roles) or "(none)") + " after the prompt"
                self.refuse(name, "roles", "a response that the assistant begins and ends", got, remedy)
            for message in answer:
                if message["role"] == "assistant" and not (text_of(message).strip() or message.get("tool_calls")):
                    got = shown(message["content"])
                    self.refuse(name, "empty_response", "answers with words or tool calls", got, "Remove the row.")
        return prompt, answers

    def shared_turns(self, prompt: Any, turns: list[list[Message]]) -> list[Message]:
        """Return the turns that all conversations share; a string prompt must be one of them, or is the only one."""
        if isinstance(prompt, str) and all(len(turn) == 1 for turn in turns):
            return [{"role": "user", "content": prompt}]
        # Each keeps a message of its own, even where all are identical.
        first = turns[0]
        count = min(min(common_length(first, turn), len(turn) - 1) for turn in turns)
        while count and first[count - 1]["role"] == "assistant":  # what it said is its response, shared or not
            count -= 1
        if prompt is not None and not isinstance(prompt, str):
            self.refuse("prompt", "wrong_type", "a string or a list of messages", shown(prompt), "Use one of them.")
        if prompt is not None and prompt.strip() not in [text_of(message).strip() for message in first[:count]]:
            remedy = "Remove the prompt column, or make it agree with the turns."
            self.refuse("prompt", "no_prompt", "the text of a turn that all share", shown(prompt), remedy)
        return first[:count]

    def messages(self, column: str, value: Any) -> list[Message]:
        expected = 'a list of messages {"role", "content"}'
        remedy = 'Write each turn as {"role": "user" or "assistant" ..., "content": "..."}.'
        if not isinstance(value, (list, tuple)) or not value:
            self.refuse(column, "wrong_type", expected, shown(value), remedy)
        found = []
        for message in value:
            if not isinstance(message, Mapping) or "role" not in message:
                self.refuse(column, "wrong_type", expected, shown(message), remedy)
            if message["role"] not in ROLES:
                self.refuse(column, "roles", "a role among " + ", ".join(ROLES), shown(message["role"]), remedy)
            known: Message = without_none(message)
            content = known.get("content")
            if isinstance(content, list):  # parts, which most templates know nothing of
                content = self.joined(column, content)
            elif not (isinstance(content, str) or (content is None and known.get("tool_calls"))):
                self.refuse(column, "wrong_type", "content that is text", shown(message), "Only text is supported.")
            found.append(known | {"content": content or ""})
        return found

    def joined(self, column: str, parts: list[Any]) -> str:
        """Return the text of a message that is given in parts."""
        for part in parts:
            kind = part.get("type", "text") if isinstance(part, Mapping) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                remedy = "Only text is supported: images, audio and video would not reach the model."
                self.refuse(column, "media", 'parts {"type": "text", "text": ...}', shown(part), remedy)
        return "".join(part["text"] for part in parts)

    def parsed(self, column: str) -> Any:
        """Return an optional column: from JSON as it is if it is a string, else without Arrow's None fields."""
        value = plain(self.row.get(column))
        if is_absent(value):
            return None
        if isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                self.refuse(column, "wrong_type", "JSON", shown(value), "Write valid JSON, or pass the value itself.")
        return without_none(value)

    def tools(self) -> list[Any] | None:
        value = self.parsed("tools")
        if value is not None and not isinstance(value, list):
            self.refuse("tools", "wrong_type", "a list of tool schemas", shown(value), "Pass a list, or JSON of one.")
        # Some templates write the tool preamble for an empty list.
        return value or None

    def template_kwargs(self) -> dict[str, Any]:
        value = self.parsed("chat_template_kwargs") or {}
        taken = {"tokenize", "add_generation_prompt", "continue_final_message", "chat_template", "tools"}
        if not isinstance(value, dict) or taken & set(value):
            expected = "a mapping without " + ", ".join(sorted(taken))
            remedy = "Keep what your template reads, for example enable_thinking."
            self.refuse("chat_template_kwargs", "wrong_type", expected, shown(value), remedy)
        return value
