"""Prompt and responses as text: chat templates, and the one end of turn that closes an answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rpo.core.errors import InvalidArgument
from rpo.llm.data.formats import Preference
from rpo.llm.data.messages import Message, text_of
from rpo.llm.data.report import RefusedRow, shown
from rpo.llm.data.shared import common_length
from rpo.llm.data.unwritten import is_verbatim, unwritten, unwritten_tools

PROBE = "closingprobe"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
AROUND = 40
# transformers gives a template the reasoning of a message under each of these names.
REASONING = ("reasoning_content", "reasoning", "thinking")


class Rendered(NamedTuple):
    """A row as text. bodies: what follows the prompt, one per response, with its end of turn if `closed`.

    rewritten: responses whose words the template changed. unwritten: messages by field that it left out.
    turns: of a response of several messages, where in its body the assistant's turns begin and end, else None.
    """

    prompt: str
    bodies: list[str]
    closed: list[bool]
    turns: list[list[tuple[int, int]] | None]
    rewritten: int = 0
    unwritten: Mapping[str, int] = MappingProxyType({})


class Renderer:
    """Writes rows as the model will read them, under the tokenizer's chat template or the one given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, chat_template
        added = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {""}
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        one = "|".join(longest_first) or r"(?!)"
        self._special, self._run = re.compile(one), re.compile(f"(?:{one})+")
        self._eos = tokenizer.eos_token

    def __call__(self, record: Preference) -> Rendered:
        """Return prompt and bodies as text. Raises RefusedRow, and InvalidArgument without a chat template."""
        if record.kind == "text":
            bodies = [response.content for response in record.responses]
            return Rendered(record.prompt, bodies, [False] * len(bodies), [None] * len(bodies))
        if self._template is None and self._tokenizer.chat_template is None:
            raise InvalidArgument(
                "tokenizer",
                expected=f"a chat template, since row {record.row} is conversational",
                got=f"{type(self._tokenizer).__name__} without one",
                remedy="Pass chat_template=, take the tokenizer of an instruct model, or write rows as plain strings.",
            )
        prompt = self._write(record, record.prompt, add_generation_prompt=True)
        left_out = self._left_out_of_prompt(record, prompt)
        tail = self._tail(record)
        bodies, closed, turns, rewritten = [], [], [], 0
        for column, response in zip(record.columns, record.responses, strict=True):
            full = self._write(record, [*record.prompt, *response.content])
            if not full.startswith(prompt):
                self._refuse_prefix(record.row, column, prompt, full)
            stem, closing, ends = self._split(record.row, column, full[len(prompt) :], tail)
            if not stem.strip():
                raise RefusedRow(
                    record.row, column, reason="template", expected="a template that writes the whole answer",
                    got=shown(full[len(prompt) :]), remedy="It may lack tool calls; pass another chat_template.",
                )  # fmt: skip
            changed = not all(text_of(message).strip() in stem for message in response.content)
            if changed or any(set(message) > {"role", "content"} for message in response.content):
                left_out.update(self._left_out_of_response(record, column, response.content))
            rewritten += changed
            bodies.append(stem if response.cut else stem + self._lacking(stem, closing))
            closed.append(ends and not response.cut)
            several = len(response.content) > 1
            spans = self._turns(record, column, response.content, full, tail) if several else None
            turns.append(spans and [(max(0, a - len(prompt)), b - len(prompt)) for a, b in spans])
        return Rendered(prompt, bodies, closed, turns, rewritten, left_out)

    def _write(self, record: Preference, messages: Sequence[Message], **options: Any) -> str:
        options = {"tools": record.tools, **options, **record.template_kwargs}
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, tokenize=False, **options
            )
        except Exception as error:  # whatever a template raises, its author meant the row to be refused
            raise RefusedRow(
                record.row, "chat template", reason="template", expected="messages that the template accepts",
                got=f"{type(error).__name__}: {error}", remedy="Change the row, or pass another chat_template.",
            ) from error  # fmt: skip
        return str(text)

    def _split(self, row: int, column: str, body: str, tail: str) -> tuple[str, str, bool]:
        """Return the answer, what the template closes it with, and whether that ends in an end token.

        What follows the end token, such as the newline of ChatML, is cut: a model stops before it.
        """
        if body.endswith(tail):
            stem, end = body[: len(body) - len(tail)], self._end(tail)
            # Without an end token the words that close a turn stay, and the tokenizer's EOS will follow them.
            return (stem, tail[:end], True) if end else (stem, tail.rstrip(), False)
        ends = [match for match in self._special.finditer(body) if not body[match.end() :].strip()]
        if not ends:
            raise RefusedRow(
                row, column, reason="template", expected=f"an answer closed by {tail!r}",
                got=shown(body), remedy="Pass a chat_template that closes every answer in the same way.",
            )  # fmt: skip
        return body[: ends[0].start()], ends[0].group(), True

    def _end(self, tail: str) -> int:
        """Return where an answer's end of turn ends in what follows its words, 0 if there is none.

        After the EOS if it is there, else after the first run of special tokens: some templates close the answer
        with one token and the turn with another.
        """
        if self._eos and self._eos in tail:
            return tail.index(self._eos) + len(self._eos)
        run = self._run.search(tail)
        return run.end() if run else 0

    def _lacking(self, stem: str, closing: str) -> str:
        """Return what of `closing` an answer lacks: data made by a model may bring its end tokens already."""
        ends = [0, *(token.end() for token in self._special.finditer(closing))]
        if len(ends) > 1 and stem.endswith(closing[ends[-2] : ends[-1]].strip()):
            return ""
        return closing[next(end for end in reversed(ends) if stem.endswith(closing[:end])) :]

    def _left_out_of_prompt(self, record: Preference, prompt: str) -> Counter[str]:
        """Return the messages of the prompt by field that is not in it. Raises RefusedRow where that is a message.

        The reasoning of earlier turns is left out by design of many templates, names by most.
        """

        def write(messages: Sequence[Message]) -> str:
            return self._write(record, messages, add_generation_prompt=True)

        if record.tools:
            absent = unwritten_tools(
                record.tools, prompt, self._write(record, record.prompt, tools=None, add_generation_prompt=True)
            )
            if absent:
                remedy = "Pass a chat_template that writes tools, or remove the column."
                self._refuse_unwritten(record.row, "tools", ", ".join(absent), remedy)
        found = Counter("content" for message in record.prompt if not is_verbatim(text_of(message), prompt))
        for k, field, _ in unwritten(record.prompt, 0, write):
            if field in ("content", "tool_calls"):
                self._refuse_unwritten(record.row, f"prompt, {field} of message {k}", shown(record.prompt[k][field]))
            found[field] += 1
        return found

    def _left_out_of_response(self, record: Preference, column: str, response: Sequence[Message]) -> Counter[str]:
        """Return the messages of a response by field that is missing. Raises RefusedRow unless those are names."""
        whole, start = [*record.prompt, *response], len(record.prompt)
        missing = unwritten(whole, start, lambda messages: self._write(record, messages))
        for k, field, _ in missing:
            if field in ("content", "tool_calls", *REASONING):
                self._refuse_unwritten(record.row, f"{column}, {field}", shown(whole[k][field]))
        return Counter(field for _, field, _ in missing)

    def _refuse_unwritten(
        self, row: int, column: str, got: str, remedy: str = "Pass a chat_template that writes it, or remove it."
    ) -> NoReturn:
        expected = "a chat template that writes it"
        raise RefusedRow(
            row, column, reason="unwritten", expected=expected, got=f"one that leaves out {got}", remedy=remedy
        )

    def _turns(
        self, record: Preference, column: str, response: Sequence[Message], full: str, tail: str
    ) -> list[tuple[int, int]]:
        """Return where in `full` each of the assistant's turns begins and ends, with its end of turn.

        By writing the conversation up to each turn, which must be how the whole begins but for how the turn ends;
        where a template writes an earlier turn otherwise than the last, by its {% generation %} marks.
        """
        turns = []
        for k, message in enumerate(response):
            if message["role"] == "assistant":
                before = [*record.prompt, *response[:k]]
                opened = self._write(record, before, add_generation_prompt=True)
                ended = self._write(record, [*before, message])
                stem, closing, _ = self._split(record.row, column, ended[len(opened) :], tail)
                start, words = len(opened), len(opened + stem)
                end = self._special.match(full, words)
                if ended.startswith(opened) and full.startswith(opened + stem + closing):
                    turns.append((start, words + len(closing)))
                elif ended.startswith(opened) and full.startswith(opened + stem) and end:
                    turns.append((start, end.end()))
                else:
                    template = self._tokenizer.get_chat_template(self._template, record.tools)
                    if GENERATION.search(template):
                        return self._marked_turns(record, column, response, template)
                    self._refuse_prefix(record.row, column, ended, full)
        return turns

    def _marked_turns(
        self, record: Preference, column: str, response: Sequence[Message], template: str
    ) -> list[tuple[int, int]]:
        options = {**self._tokenizer.special_tokens_map, **record.template_kwargs}
        conversations = [list(record.prompt), [*record.prompt, *response]]
        (prompt, full), (_, spans) = render_jinja_template(
            conversations, record.tools, chat_template=template, return_assistant_tokens_mask=True, **options
        )
        spans = [(start, end) for start, end in spans if start >= common_length(prompt, full)]
        wanted = sum(message["role"] == "assistant" for message in response)
        if len(spans) < wanted:
            raise RefusedRow(
                record.row, column, reason="template", expected=f"{wanted} turns between generation marks",
                got=len(spans), remedy="Mark every turn of the assistant in the chat_template, or none.",
            )  # fmt: skip
        turns = []
        for start, end in spans:
            ends = [token.end() for token in self._special.finditer(full, start, end)]
            if ends and not full[ends[-1] : end].strip():
                end = ends[-1]
            elif outside := self._special.match(full, end):  # the end of turn may stand behind the marks
                end = outside.end()
            turns.append((start, end))
        return turns

    def _tail(self, record: Preference) -> str:
        """Return what the template writes after an answer's last word, seen by writing a known word."""
        text = self._write(record, [*record.prompt, {"role": "assistant", "content": PROBE}])
        _, found, tail = text.rpartition(PROBE)
        if not found:
            raise RefusedRow(
                record.row, "chat template", reason="template", expected="a template that writes the answer",
                got=shown(text), remedy="Pass another chat_template.",
            )  # fmt: skip
        return tail

    def _refuse_prefix(self, row: int, column: str, prompt: str, full: str) -> None:
        at = common_length(prompt, full)
        excerpts = [text[max(0, at - AROUND) : at + AROUND] for text in (prompt, full)]
        tokens = [self._tokenizer.tokenize(text.encode(errors="replace").decode()) for text in excerpts]
        raise RefusedRow(
            row, column, reason="template_prefix", expected="a prompt that the full conversation begins with",
            got=f"prompt ...{excerpts[0]!r} {tokens[0]} and full text ...{excerpts[1]!r} {tokens[1]}",
            remedy="The template rewrites the prompt once an answer follows; pass a chat_template that does not.",
        )  # fmt: skip
