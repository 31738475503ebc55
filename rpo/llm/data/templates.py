"""Prompt and responses as text: chat templates, and the one end of turn that closes an answer."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rpo.core.errors import InvalidArgument
from rpo.llm.data.formats import Message, Preference, common_length, text_of
from rpo.llm.data.report import RefusedRow, shown

PROBE = "closingprobe"
AROUND = 40


class Rendered(NamedTuple):
    """A row as text. bodies: what follows the prompt, one a response, with its end of turn if `closed`.

    rewritten: responses whose words the template changed.
    """

    prompt: str
    bodies: list[str]
    closed: list[bool]
    rewritten: int = 0


class Renderer:
    """Writes rows as the model will read them, under the tokenizer's chat template or the one given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, chat_template
        added = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {""}
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or r"(?!)")

    def __call__(self, record: Preference) -> Rendered:
        """Return prompt and bodies as text. Raises RefusedRow, and InvalidArgument without a chat template."""
        if record.kind == "text":
            bodies = [response.content for response in record.responses]
            return Rendered(record.prompt, bodies, [False] * len(bodies))
        if self._template is None and self._tokenizer.chat_template is None:
            raise InvalidArgument(
                "tokenizer",
                expected=f"a chat template, since row {record.row} is conversational",
                got=f"{type(self._tokenizer).__name__} without one",
                remedy="Pass chat_template=, take the tokenizer of an instruct model, or write rows as plain strings.",
            )
        prompt = self._write(record, record.prompt, add_generation_prompt=True)
        tail = self._tail(record)
        bodies, closed, rewritten = [], [], 0
        for column, response in zip(record.columns, record.responses, strict=True):
            full = self._write(record, [*record.prompt, response.content])
            if not full.startswith(prompt):
                self._refuse_prefix(record.row, column, prompt, full)
            stem, closing, ends = self._split(record.row, column, full[len(prompt) :], tail)
            if not stem.strip():
                raise RefusedRow(
                    record.row, column, reason="template", expected="a template that writes the whole answer",
                    got=shown(full[len(prompt) :]), remedy="It may lack tool calls; pass another chat_template.",
                )  # fmt: skip
            rewritten += text_of(response.content).strip() not in stem
            # Data made by a model may bring the end token in its text already.
            done = response.cut or (ends and stem.endswith(self._special.findall(closing)[-1]))
            bodies.append(stem if done else stem + closing)
            closed.append(ends and not response.cut)
        return Rendered(prompt, bodies, closed, rewritten)

    def _write(self, record: Preference, messages: list[Message], **options: Any) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=record.tools,
                chat_template=self._template,
                tokenize=False,
                **options,
                **record.template_kwargs,
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
            stem, end = body[: len(body) - len(tail)], self._special.search(tail)
            # Without an end token the words that close a turn stay, and the tokenizer's EOS will follow them.
            return (stem, tail[: end.end()], True) if end else (stem, tail.rstrip(), False)
        ends = [match for match in self._special.finditer(body) if not body[match.end() :].strip()]
        if not ends:
            raise RefusedRow(
                row, column, reason="template", expected=f"an answer closed by {tail!r}",
                got=shown(body), remedy="Pass a chat_template that closes every answer in the same way.",
            )  # fmt: skip
        return body[: ends[0].start()], ends[0].group(), True

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
        tokens = [self._tokenizer.tokenize(text) for text in excerpts]
        raise RefusedRow(
            row, column, reason="template_prefix", expected="a prompt that the full conversation begins with",
            got=f"prompt ...{excerpts[0]!r} {tokens[0]} and full text ...{excerpts[1]!r} {tokens[1]}",
            remedy="The template rewrites the prompt once an answer follows; pass a chat_template that does not.",
        )  # fmt: skip
