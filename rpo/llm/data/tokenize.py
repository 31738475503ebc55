"""Rows to token ids: one boundary between prompt and responses, one end of turn, and every exception counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.progress import track
from rpo.llm.data.formats import Preference, read_preference
from rpo.llm.data.lists import TOO_FEW
from rpo.llm.data.pairs import PreparedPairs, TokenizedGroup
from rpo.llm.data.report import DataReport, RefusedRow
from rpo.llm.data.shared import common_length
from rpo.llm.data.templates import Rendered, Renderer
from rpo.llm.data.truncation import Ids, Limits

MAX_MOVED_TOKENS = 8


def prepare_pairs(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: str = "keep_end",
    on_refused: str = "error",
    base_column: str | None = None,
    weight_column: str | None = None,
    chat_template: str | None = None,
    unpaired: bool = False,
    scores: bool = False,
    lists: bool = False,
    ranked: bool = False,
    progress: bool | None = None,
) -> PreparedPairs:
    """Return the rows as tokenised groups, with a report of everything cut, merged or left out.

    rows: dicts in any of TRL's preference formats, lists of responses, or already tokenised (the tokenizer may be None
    then). max_length, max_prompt_length, truncation_mode: see `Limits`. on_refused: "error" raises
    at the first row that cannot be used, "drop" counts it. base_column: further responses, for
    pi_base. weight_column: a number > 0 a pair. chat_template: in place of the tokenizer's own. unpaired, scores,
    lists, ranked: as of `read_preference`; rows are all pairs and lists, or all responses alone with a label. A list of
    fewer than two responses with a score is left out and counted, whatever on_refused. progress: None draws a bar only
    on a terminal.
    Raises RefusedRow, InvalidArgument.
    """
    limits = Limits(max_length, max_prompt_length, truncation_mode)
    read = {"unpaired": unpaired, "scores": scores, "lists": lists, "ranked": ranked}
    encoder = PairEncoder(tokenizer, limits, on_refused, base_column, weight_column, chat_template, **read)
    checks.iterable("rows", rows)
    report = DataReport()
    pairs = PreparedPairs(encoder.encode(enumerate(track(rows, "Tokenizing", show=progress)), report), report)
    if not pairs:
        remedy = report.messages[0] if report.messages else "Check the split, and max_length where rows were too long."
        got = f"{report.rows} rows, {sum(report.refused.values())} refused, {report.dropped_too_long} too long"
        raise InvalidArgument("rows", expected="at least one usable row", got=got, remedy=remedy)
    return pairs


class PairEncoder:
    """The rules that make a row a group, with the tokenizer and limits they are applied under."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        limits: Limits,
        on_refused: str = "error",
        base_column: str | None = None,
        weight_column: str | None = None,
        chat_template: str | None = None,
        *,
        unpaired: bool = False,
        scores: bool = False,
        lists: bool = False,
        ranked: bool = False,
    ) -> None:
        checks.one_of("on_refused", on_refused, ("error", "drop"))
        if tokenizer is not None:
            checks.instance("tokenizer", tokenizer, PreTrainedTokenizerBase)
        texts = {"base_column": base_column, "weight_column": weight_column, "chat_template": chat_template}
        for name, text in texts.items():
            if text is not None:
                checks.instance(name, text, str)
        self._limits, self._drop = limits, on_refused == "drop"
        self._columns: dict[str, Any] = {"base_column": base_column, "weight_column": weight_column}
        self._columns |= {"unpaired": unpaired, "scores": scores, "lists": lists, "ranked": ranked}
        self._base_count: int | None = None
        self._single: bool | None = None
        self._tokenizer = tokenizer
        self._bos = None if tokenizer is None else tokenizer.bos_token_id
        if tokenizer is not None:
            self._render = Renderer(tokenizer, chat_template)
            self._opening = self._find_opening()

    def encode(self, numbered: Iterable[tuple[int, Any]], report: DataReport) -> Iterator[TokenizedGroup]:
        """Yield the groups of (index, row), counting in `report`. Raises RefusedRow unless they are dropped."""
        for index, row in numbered:
            report.rows += 1
            try:
                pair = self._pair(read_preference(row, index, **self._columns), report)
            except (RefusedRow, RecursionError) as error:
                refusal = _too_deep(index) if isinstance(error, RecursionError) else error
                if not self._drop and refusal.reason != TOO_FEW:
                    raise refusal.of(row) from error.__cause__
                report.refuse(refusal.of(row))
                continue
            if pair is not None:
                report.pairs += 1
                yield pair

    def _pair(self, record: Preference, report: DataReport) -> TokenizedGroup | None:
        single = record.label is not None
        if self._single not in (None, single):
            raise RefusedRow(
                record.row, "completion" if single else "chosen", reason="mixed",
                expected="a pair, as in the first row" if single else "a completion and its label, as in the first row",
                got="a completion and its label" if single else "a pair", remedy="Train on one kind at a time.",
            )  # fmt: skip
        own = record.own
        if self._base_count not in (None, len(record.responses) - own):
            raise RefusedRow(
                record.row, str(self._columns["base_column"]), reason="base_count",
                expected=f"{self._base_count} responses, as in the first row", got=len(record.responses) - own,
                remedy="Give every row the same number.",
            )  # fmt: skip
        text: Rendered | None = None
        ends: list[int] = []
        masks: tuple[bytes | None, ...] = ()
        moved = 0
        if record.kind == "tokens":
            prompt, full = self._given(record)
        else:
            text = self._rendered(record)
            prompt, full, ends, moved, masks = self._tokenized(record, text)
        # Counted only now, when nothing can refuse the row any more.
        self._base_count, self._single = len(record.responses) - own, single
        report.unpaired += own == 1
        report.desirable += bool(record.label)
        report.formats[record.kind] += 1
        report.count_columns(record.extra, None if text is None else text.prompt)
        report.prompts_inferred += not record.prompt_given
        report.nulls += record.nulls
        report.unscored += record.unscored
        report.ties += record.tied
        report.boundary_merges += moved > 0
        if text is not None:
            report.rewritten += text.rewritten
            report.unwritten.update(text.unwritten)
            report.several_messages += sum(turns is not None for turns in text.turns)
        report.cut_when_made += sum(response.cut for response in record.responses)
        report.ends.update(ends)
        fitted = self._limits.fit(prompt, full, first=self._bos)
        if fitted is None:
            report.dropped_too_long += 1
            return None
        short, responses = fitted
        cuts = [len(after) < len(before) for after, before in zip(responses, full, strict=True)]
        report.truncated += len(short) < len(prompt) or any(cuts)
        report.prompts_truncated += len(short) < len(prompt)
        report.chosen_truncated += cuts[0]
        report.rejected_truncated += any(cuts[1:own])
        report.base_truncated += any(cuts[own:])
        report.identical += len(set(responses[:own])) < own
        masks = tuple(mask and mask[: len(ids)] for mask, ids in zip(masks, responses, strict=True)) if masks else ()
        base, known = tuple(responses[own:]), (masks, record.label, record.scores)
        return TokenizedGroup(short, tuple(responses[:own]), record.row, base, record.weight, *known)

    def _given(self, record: Preference) -> tuple[Ids, list[Ids]]:
        """Return ids that came tokenised, all of them inside the vocabulary."""
        responses = [response.content for response in record.responses]
        largest = max(map(max, (record.prompt, *responses)))
        if self._tokenizer is not None and largest >= len(self._tokenizer):
            raise RefusedRow(
                record.row, "token ids", reason="vocabulary", expected=f"ids below {len(self._tokenizer)}",
                got=largest, remedy="Tokenise with the tokenizer of this model.",
            )  # fmt: skip
        return record.prompt, responses

    def _rendered(self, record: Preference) -> Rendered:
        """Return the row as text that a tokenizer can take."""
        if self._tokenizer is None:
            expected = f"a tokenizer, since row {record.row} is text"
            remedy = "Pass the model's, or rows of prompt_ids, chosen_ids and rejected_ids."
            raise InvalidArgument("tokenizer", expected=expected, got=None, remedy=remedy)
        text = self._render(record)
        for name, written in zip(("prompt", *record.columns), (text.prompt, *text.bodies), strict=True):
            problem = "a NUL character" if "\0" in written else None
            try:
                written.encode()
            except UnicodeEncodeError as error:
                problem = f"half a character, {written[error.start]!r}"
            if problem:
                raise RefusedRow(
                    record.row, name, reason="encoding", expected="text in Unicode", got=problem,
                    remedy="Was a file read in another encoding, or a text cut inside a character? Write it again.",
                )  # fmt: skip
        return text

    def _tokenized(
        self, record: Preference, text: Rendered
    ) -> tuple[Ids, list[Ids], list[int], int, tuple[bytes | None, ...]]:
        """Return prompt, responses, the end tokens written, tokens moved at the boundary, and the masks."""
        # Prompt and response are tokenised together, as a model reads them, and never glued from two tokenisations.
        prompt, *full = self._ids([text.prompt, *(text.prompt + body for body in text.bodies)])
        shared = min(common_length(prompt, ids) for ids in full)
        if len(prompt) - shared > MAX_MOVED_TOKENS:
            self._refuse_boundary(record, prompt, full, shared)
        opening = () if record.kind == "chat" or prompt[: len(self._opening)] == self._opening else self._opening
        start, responses, ends = opening + prompt[:shared], [ids[shared:] for ids in full], []
        if not start and prompt:
            body = next(ids for ids in full if common_length(prompt, ids) == shared)
            merged = self._tokenizer.convert_ids_to_tokens(list(body[:1]))  # type: ignore[union-attr]
            raise RefusedRow(
                record.row, "prompt", reason="prompt_merged", expected="a token of the prompt that no response changes",
                got=f"a prompt whose every token merges with a response's beginning, as {merged}",
                remedy="Write more before it, or end it where the tokenizer splits, for example before a space.",
            )  # fmt: skip
        if not start:
            remedy = "Write at least one token of prompt; this tokenizer adds no BOS that could stand for it."
            raise RefusedRow(
                record.row, "prompt", reason="no_prompt", expected="at least one token", got=shared, remedy=remedy
            )
        for k, (name, response) in enumerate(zip(record.columns, record.responses, strict=True)):
            if not responses[k]:
                raise RefusedRow(
                    record.row, name, reason="empty_response", expected="at least one token",
                    got="none for this tokenizer", remedy="Remove the row.",
                )  # fmt: skip
            if not response.cut:
                if not text.closed[k]:
                    responses[k] = self._closed(responses[k], record.row)
                ends.append(responses[k][-1])
        masks = [
            None
            if turns is None
            else self._mask(text.prompt, text.bodies[k], turns, full[k], shared, len(responses[k]))
            for k, turns in enumerate(text.turns)
        ]
        return start, responses, ends, len(prompt) - shared, tuple(masks) if any(masks) else ()

    def _mask(self, prompt: str, body: str, turns: list[tuple[int, int]], full: Ids, shared: int, length: int) -> bytes:
        """Return 1 for each token of a response that is, or begins, in a turn of the assistant's, else 0."""
        beginnings = [prompt + body[:place] for turn in turns for place in turn]
        places = iter([max(0, common_length(ids, full) - shared) for ids in self._ids(beginnings)])
        mask = bytearray(length)
        for start, end in zip(places, places, strict=True):
            mask[start:end] = b"\1" * (end - start)
        mask[len(full) - shared :] = b"\1" * (length - len(full) + shared)  # an EOS that was added
        return bytes(mask)

    def _closed(self, response: Ids, row: int) -> Ids:
        end = None if self._tokenizer is None else self._tokenizer.eos_token_id
        if end is None:
            raise InvalidArgument(
                "tokenizer",
                expected=f"an EOS token to end the complete response of row {row}",
                got="eos_token_id None",
                remedy='Set tokenizer.eos_token; text that was cut has chosen_finish_reason "length".',
            )
        return response if response[-1] == end else (*response, end)

    def _ids(self, texts: list[str], special: bool = False) -> list[Ids]:
        # verbose=False: a tokenizer's own warning about long texts knows nothing of the limits here.
        encoded = self._tokenizer(texts, add_special_tokens=special, truncation=False, padding=False, verbose=False)  # type: ignore[misc]
        return [tuple(ids) for ids in encoded["input_ids"]]

    def _find_opening(self) -> Ids:
        """Return what the tokenizer itself puts before a text: BOS, more for some, or nothing."""
        (bare,), (full,) = self._ids(["a"]), self._ids(["a"], special=True)
        starts = [k for k in range(len(full)) if full[k : k + len(bare)] == bare]
        return full[: starts[0]] if starts else ()

    def _refuse_boundary(self, record: Preference, prompt: Ids, full: list[Ids], shared: int) -> NoReturn:
        worst = min(range(len(full)), key=lambda k: common_length(prompt, full[k]))
        tokens = [
            self._tokenizer.convert_ids_to_tokens(list(ids[max(0, shared - 2) : shared + 10]))  # type: ignore[union-attr]
            for ids in (prompt, full[worst])
        ]
        raise RefusedRow(
            record.row, record.columns[worst], reason="boundary",
            expected=f"a prompt whose tokens, all but the last {MAX_MOVED_TOKENS}, begin the full text's",
            got=f"from token {max(0, shared - 2)} on: prompt {tokens[0]}, full text {tokens[1]}",
            remedy="End the prompt where the tokenizer splits, for example before a space or after a newline.",
        )  # fmt: skip


def _too_deep(index: int) -> RefusedRow:
    return RefusedRow(
        index, "row", reason="too_deep", expected="messages and tools that nest less",
        got="values nested too deeply to read", remedy="Is the row damaged? Remove it.",
    )  # fmt: skip
