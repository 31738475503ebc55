"""Boundary, end of turn and truncation, on tokenizers whose tokens can be read off the text."""

from __future__ import annotations

from itertools import compress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import (
    CHATML,
    ENDLESS,
    EOS_AT_THE_END,
    GEMMA,
    LLAMA3,
    REASONING,
    REWRITING,
    TOOLS,
    TWO_ENDS,
    ZEPHYR,
    bpe,
    characters,
    chat_row,
    spelled,
    turn,
)

from rpo.core.errors import InvalidArgument
from rpo.llm.data import RefusedRow, prepare_pairs


def parts(tokenizer: Any, row: dict[str, Any], **options: Any) -> tuple[str, str, str]:
    """Return prompt, chosen and rejected of one row, as the tokens joined."""
    (pair,) = prepare_pairs([row], tokenizer, **options)
    return tuple(spelled(tokenizer, ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))  # type: ignore[return-value]


# --- one end of turn ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "bos", "prompt", "end"),
    [
        (CHATML, None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        (LLAMA3, "<s>", "<s><|head|>user<|/head|>\n\nHi<|eot|><|head|>assistant<|/head|>\n\n", "<|eot|>"),
        (ZEPHYR, None, "<|user|>\nHi</s>\n<|assistant|>\n", "</s>"),
        (GEMMA, "<s>", "<s><turn>user\nHi</turn>\n<turn>model\n", "</turn>"),
        (ENDLESS, None, "user: Hi\nassistant: ", "</s>"),  # the template writes none: the tokenizer's EOS
    ],
)
def test_each_template_ends_an_answer_once(template: str, bos: str | None, prompt: str, end: str) -> None:
    """Whatever the template writes after its end token, such as a newline, is not the model's and is cut."""
    tokenizer = characters(template, bos=bos, adds_bos=bos is not None)
    assert parts(tokenizer, chat_row()) == (prompt, f"Yes{end}", f"No{end}")
    (pair,) = pairs = prepare_pairs([chat_row()], tokenizer)
    assert pairs.report.ends == {tokenizer.convert_tokens_to_ids(end): 2}
    assert pair.chosen_ids[-1] == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, ZEPHYR, GEMMA, ENDLESS])
def test_text_that_was_cut_gets_no_end(template: str) -> None:
    row = chat_row(chosen_finish_reason="length", rejected_finish_reason="stop")
    tokenizer = characters(template, bos="<s>")
    _, chosen, rejected = parts(tokenizer, row)
    assert chosen == "Yes"
    assert rejected.startswith("No") and len(rejected) > 2
    assert prepare_pairs([row], tokenizer).report.cut_when_made == 1


def test_an_end_token_in_the_data_is_not_doubled() -> None:
    assert parts(characters(CHATML), chat_row(chosen="Yes<|im_end|>"))[1:] == ("Yes<|im_end|>", "No<|im_end|>")
    row = {"prompt": "p", "chosen": "a</s>", "rejected": "b"}
    assert parts(characters(), row) == ("p", "a</s>", "b</s>")


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [
        (TWO_ENDS, "<|im_end|>", "<|eot|><|im_end|>"),
        (TWO_ENDS, "</s>", "<|eot|><|im_end|>"),  # no EOS among them: after the last of the run
        (TWO_ENDS, "<|eot|>", "<|eot|>"),
        (EOS_AT_THE_END, "</s>", "<|im_end|>\n</s>"),
    ],
)
def test_an_answer_closed_by_several_tokens_keeps_its_eos(template: str, eos: str, end: str) -> None:
    """Those that the data bring are not doubled, whether all of them or the first."""
    tokenizer = characters(template, eos=eos)
    assert parts(tokenizer, chat_row())[1:] == (f"Yes{end}", f"No{end}")
    first = next(mark for mark in ("<|eot|>", "<|im_end|>") if end.startswith(mark))
    assert parts(tokenizer, chat_row(chosen=f"Yes{end}", rejected=f"No{first}"))[1:] == (f"Yes{end}", f"No{end}")
    cut = chat_row(chosen_finish_reason="length")
    assert parts(tokenizer, cut)[1:] == ("Yes", f"No{end}")


def test_an_answer_that_ends_in_spaces_keeps_them() -> None:
    assert parts(characters(CHATML), chat_row(chosen="Yes\n "))[1] == "Yes\n <|im_end|>"


def test_tools_calls_and_template_arguments_reach_the_template() -> None:
    """The end is the template's own even after a call, whose closing mark is an added token too."""
    called = turn("assistant", "", tool_calls=[{"function": {"name": "f"}}])
    row = chat_row(tools=[{"n": 1}], chat_template_kwargs={"mood": "calm"}) | {"rejected": [called]}
    row["chosen"] = [turn("assistant", "calm")]
    prompt = '<|im_start|>tools\n[{"n": 1}]<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    with pytest.raises(RefusedRow, match="row 0, chosen"):  # "calm" opens the prompt's answer, but not the full text's
        prepare_pairs([row], characters(TOOLS))
    row["chat_template_kwargs"] = {}
    expected = (prompt, "calm<|im_end|>", "<call>f</call><|im_end|>")
    assert parts(characters(TOOLS), row) == expected


def test_a_call_that_the_template_leaves_out_is_refused() -> None:
    called = turn("assistant", "", tool_calls=[{"function": {"name": "f"}}])
    with pytest.raises(RefusedRow, match="row 0, rejected: expected a template that writes the whole answer"):
        prepare_pairs([chat_row() | {"rejected": [called]}], characters(CHATML))


def test_calls_may_end_in_a_token_of_their_own() -> None:
    called = turn("assistant", "", tool_calls=[{"function": {"name": "f"}}])
    row = chat_row() | {"rejected": [called]}
    template = TOOLS.replace("{{ '<|im_end|>\n' }}", "{{ '<|eot|>' if m['tool_calls'] else '<|im_end|>\n' }}")
    assert parts(characters(template), row)[1:] == ("Yes<|im_end|>", "<call>f</call><|eot|>")
    with pytest.raises(RefusedRow, match="row 0, rejected: expected an answer closed by '<.im_end.>"):
        prepare_pairs([row], characters(template.replace("<|eot|>", "done")))


def test_a_template_of_the_callers_goes_before_the_tokenizers() -> None:
    assert parts(characters(CHATML), chat_row(), chat_template=ZEPHYR)[0] == "<|user|>\nHi</s>\n<|assistant|>\n"


def test_answers_that_a_template_changes_are_counted() -> None:
    upper = CHATML.replace("m['content']", "m['content'] | replace('Yes', 'YES')")
    pairs = prepare_pairs([chat_row(), chat_row(chosen="OK")], characters(upper))
    assert pairs.report.rewritten == 1


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (GEMMA, chat_row() | {"prompt": [turn("system", "s"), turn("user", "q")]}, "System role not supported"),
        (GEMMA, chat_row() | {"prompt": [turn("user", "s"), turn("user", "q")]}, "Roles must alternate"),
        (REWRITING, chat_row() | {"prompt": [turn("system", "Ab"), turn("user", "q")]}, "'A', 'b'.*full text .*'q'"),
    ],
)
def test_templates_that_refuse_or_rewrite(template: str, row: dict[str, Any], words: str) -> None:
    """A rewritten prompt is shown as text and as tokens."""
    with pytest.raises(RefusedRow, match=words) as caught:
        prepare_pairs([chat_row(), row], characters(template, bos="<s>"))
    assert caught.value.row == 1


def test_missing_template_eos_and_tokenizer() -> None:
    with pytest.raises(InvalidArgument, match="tokenizer: expected a chat template, since row 0"):
        prepare_pairs([chat_row()], characters(), on_refused="drop")
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(InvalidArgument, match="tokenizer: expected an EOS token"):
        prepare_pairs([row], characters(eos=None), on_refused="drop")
    with pytest.raises(InvalidArgument, match="tokenizer: expected a tokenizer"):
        prepare_pairs([row], None)
    cut = row | {"chosen_finish_reason": "length", "rejected_finish_reason": "length"}
    assert parts(characters(eos=None), cut) == ("p", "a", "b")  # none is needed where all was cut
    assert parts(characters(CHATML, eos=None), chat_row())[1] == "Yes<|im_end|>"  # nor where the template has its own


# --- nothing is left out -----------------------------------------------------------------------

CALL = turn("assistant", "I look.", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": {"city": "Oslo"}}}])
THOUGHT = turn("assistant", "Yes", reasoning_content="a thought")
TOOL = [{"type": "function", "function": {"name": "w", "description": 'of "all" <kinds>\n'}}]
NO_SYSTEM = CHATML.replace("{{ '<|im", "{% if m['role'] != 'system' %}{{ '<|im", 1).replace(
    "'\n' }}", "'\n' }}{% endif %}", 1
)
IN_PARTS = CHATML.replace("m['content']", "(m['content'] | select('mapping') | map(attribute='text') | join)")
NAME_ALONE = TOOLS.replace("(tools | tojson)", "tools[0]['function']['name']")


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (
            CHATML,
            chat_row("weather", tools=TOOL),
            "tools: expected a chat template that writes it, got .* leaves out w",
        ),
        (NAME_ALONE, chat_row(tools=[*TOOL, {"name": "other"}]), "tools: .*leaves out other"),
        (NO_SYSTEM, chat_row() | {"prompt": [turn("system", "H"), turn("user", "Hi")]}, "prompt, content of message 0"),
        (
            CHATML,
            chat_row() | {"prompt": [turn("user", "q"), CALL, turn("tool", "12")]},
            "prompt, tool_calls of message 1",
        ),
        (
            TOOLS,
            chat_row() | {"prompt": [turn("user", "q"), CALL, turn("tool", "12")]},
            "prompt, tool_calls of message 1: .*Oslo",
        ),
        (CHATML, chat_row() | {"chosen": [CALL]}, "chosen, tool_calls: .*Oslo"),
        (CHATML, chat_row() | {"rejected": [THOUGHT]}, "rejected, reasoning_content: .*a thought"),
        (IN_PARTS, chat_row(), "prompt, content of message 0"),
    ],
)
def test_what_a_template_leaves_out_is_refused(template: str, row: dict[str, Any], words: str) -> None:
    """Also where the same letters stand elsewhere: "w" in "weather", "H" in "Hi"."""
    with pytest.raises(RefusedRow, match=f"row 0, {words}") as caught:
        prepare_pairs([row], characters(template))
    assert caught.value.reason == "unwritten"


def test_reasoning_of_earlier_turns_may_be_left_out_and_is_counted() -> None:
    """By design of the template, which keeps that of the answer."""
    earlier = [turn("user", "q"), THOUGHT, turn("user", "Hi", name="Ann")]
    answer = turn("assistant", "Yes", reasoning_content="kept", name="Bob")
    row = chat_row() | {"prompt": earlier, "chosen": [answer]}
    pairs = prepare_pairs([row], characters(REASONING))
    assert pairs.report.unwritten == {"reasoning_content": 1, "name": 2}
    assert parts(characters(REASONING), row)[1] == "<think>kept</think>Yes<|im_end|>"
    shortened = REASONING.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}")
    row = chat_row() | {"prompt": [turn("user", "q"), turn("assistant", "<think>a</think>b"), turn("user", "Hi")]}
    assert prepare_pairs([row], characters(shortened)).report.unwritten == {"content": 1}


@pytest.mark.parametrize("template", [CHATML, LLAMA3, ZEPHYR, GEMMA, ENDLESS, TOOLS, REASONING, TWO_ENDS])
def test_trimming_escaping_and_other_roles_leave_nothing_out(template: str) -> None:
    """The control of the refusals above."""
    prompt = [turn("user", ' a "word"\nor two\n'), turn("assistant", " x "), turn("user", "~")]
    tools = TOOL if "tools" in template else None
    pairs = prepare_pairs([chat_row(tools=tools) | {"prompt": prompt}], characters(template, bos="<s>"))
    assert (len(pairs), pairs.report.unwritten) == (1, {})


def test_a_template_that_reads_the_words_is_asked_again_text_by_text() -> None:
    """It writes nothing but greetings, or accepts nothing else: a mark in their place is no reason to refuse them."""
    greets = "(m['content'] if m['role'] == 'assistant' or 'Hi' in m['content'] else '')"
    row = chat_row("Hi", "Hi!", "Hi.")
    assert len(prepare_pairs([row], characters(CHATML.replace("m['content']", greets)))) == 1
    strict = "{% if 'Hi' not in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    assert len(prepare_pairs([row], characters(strict + CHATML))) == 1
    with pytest.raises(RefusedRow, match="prompt, content of message 0: .*'Who'"):
        prepare_pairs([row | {"prompt": [turn("user", "Who")]}], characters(CHATML.replace("m['content']", greets)))


# --- responses of several messages -------------------------------------------------------------


def scored(tokenizer: Any, pair: Any) -> list[str]:
    """Return what is scored of each response."""
    masks = [mask or b"\1" * len(ids) for mask, ids in zip(pair.scored, pair.responses, strict=True)]
    return [spelled(tokenizer, list(compress(ids, mask))) for ids, mask in zip(pair.responses, masks, strict=True)]


TURNS = [turn("assistant", "a1"), turn("user", "u2"), turn("assistant", "a2")]
# Writes an earlier answer otherwise than the last.
CHANGING = CHATML.replace("+ m['content']", "+ ('!' if loop.last and loop.index > 1 else '') + m['content']")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ ('!' if loop.last else '') + m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "first", "last"),
    [
        (CHATML, "a1<|im_end|>", "a2<|im_end|>"),
        (LLAMA3, "a1<|eot|>", "a2<|eot|>"),
        (GEMMA, "a1</turn>", "a2</turn>"),
        (ENDLESS, "a1", "a2</s>"),
        (TWO_ENDS, "a1<|eot|><|im_end|>", "a2<|eot|><|im_end|>"),
        (EOS_AT_THE_END, "a1<|im_end|>", "a2<|im_end|>\n</s>"),
        (MARKED, "a1<|im_end|>", "!a2<|im_end|>"),
    ],
)
def test_the_assistants_turns_are_scored_and_the_others_read(template: str, first: str, last: str) -> None:
    tokenizer = characters(template, bos="<s>")
    row = chat_row() | {"chosen": TURNS}
    (pair,) = pairs = prepare_pairs([row], tokenizer)
    assert scored(tokenizer, pair)[0] == first + last
    assert "u2" in spelled(tokenizer, pair.chosen_ids)
    assert pair.scored[1] is None and pair.lengths == [sum(pair.scored[0]), len(pair.rejected_ids)]
    assert pairs.report.several_messages == 1 and pairs[:1] == [pair]
    cut = prepare_pairs([row], tokenizer, max_length=len(pair.prompt_ids) + len(pair.rejected_ids))[0]
    assert len(cut.scored[0]) == len(cut.chosen_ids) and cut.lengths[0] > 0


def test_turns_that_a_template_writes_otherwise_later_need_marks() -> None:
    with pytest.raises(RefusedRow, match="row 0, chosen: expected a prompt that the full conversation begins with"):
        prepare_pairs([chat_row() | {"chosen": TURNS}], characters(CHANGING))
    assert prepare_pairs([chat_row()], characters(CHANGING))[0].scored == ()


def test_a_call_and_its_answer() -> None:
    """The result of the tool is read; the call and the answer are scored. A cut answer has no end."""
    call = turn("assistant", "", tool_calls=[{"function": {"name": "f"}}])
    row = chat_row(tools=TOOL) | {"chosen": [call, turn("tool", "12"), turn("assistant", "Yes")]}
    tokenizer = characters(TOOLS)
    (pair,) = prepare_pairs([row | {"chosen_finish_reason": "length"}], tokenizer)
    assert scored(tokenizer, pair)[0] == "<call>f</call><|im_end|>Yes"


# --- text that is none -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\ud83d", "a\0b"])
def test_text_that_no_tokenizer_takes_is_refused(text: str) -> None:
    for row in (chat_row(rejected=text), {"prompt": "p", "chosen": "a", "rejected": text}):
        with pytest.raises(RefusedRow, match="row 1, rejected: expected text in Unicode, got (half a|a NUL) character"):
            prepare_pairs([chat_row(), row], characters(CHATML))
        pairs = prepare_pairs([chat_row(), row], characters(CHATML), on_refused="drop")
        assert (len(pairs), pairs.report.refused) == (1, {"encoding": 1})


def test_values_nested_too_deeply_are_refused() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    for row in ({"prompt": deep, "chosen": "a", "rejected": "b"}, chat_row(tools=deep)):
        with pytest.raises(RefusedRow, match="row 0, row: expected messages and tools that nest less"):
            prepare_pairs([row], characters(CHATML))


CELLS = [
    *(None, float("nan"), "", " ", "[", "[{}]", 3, 2.5, True, b"x", np.array([1.5]), {}, {"a": 1}),
    *([], [None], [1], [[]], [{}], [{"role": "user"}], [{"role": ["user"], "content": 1}]),
    {"role": "assistant", "content": "x"},
]


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "base", "weight"])
def test_one_bad_cell_loses_its_row_and_no_other(column: str) -> None:
    good = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "base": ["c"], "weight": 1},
        chat_row(base=[[turn("assistant", "c")]], weight=1),
    ]
    options: Any = {"base_column": "base", "weight_column": "weight", "on_refused": "drop"}
    for cell in CELLS:
        for row in good:
            bad = row | {column: cell}
            pairs = prepare_pairs([bad, *good], characters(CHATML, bos="<s>"), **options)
            assert [pair.row for pair in pairs][-2:] == [1, 2], cell
            assert len(pairs) + sum(pairs.report.refused.values()) == 3, cell


# --- BOS and the boundary ----------------------------------------------------------------------


def test_bos_is_there_once() -> None:
    tokenizer = characters(bos="<s>", adds_bos=True)
    for prompt in ("p", "<s>p"):
        assert parts(tokenizer, {"prompt": prompt, "chosen": "a", "rejected": "b"}) == ("<s>p", "a</s>", "b</s>")
    assert parts(characters(bos="<s>"), {"prompt": "p", "chosen": "a", "rejected": "b"})[0] == "p"  # it adds none


def test_an_empty_prompt_needs_a_bos() -> None:
    row = {"prompt": "", "chosen": "a", "rejected": "b"}
    assert parts(characters(bos="<s>", adds_bos=True), row) == ("<s>", "a</s>", "b</s>")
    with pytest.raises(RefusedRow, match="row 0, prompt"):
        prepare_pairs([row], characters())


MERGING = ("a", "b", "c", "bc", "</s>", "<s>")


def test_a_merge_moves_the_boundary_for_both() -> None:
    """Merge b+c. "ab"+"ca" reads a bc a, so "b" goes over to the chosen response, and to the rejected one too."""
    tokenizer = bpe(MERGING, [("b", "c")], eos_token="</s>")
    pairs = prepare_pairs([{"prompt": "ab", "chosen": "ca", "rejected": "a"}], tokenizer)
    assert (pairs[0].prompt_ids, pairs[0].chosen_ids, pairs[0].rejected_ids) == ((0,), (3, 0, 4), (1, 0, 4))
    assert pairs.report.boundary_merges == 1
    assert prepare_pairs([{"prompt": "ab", "chosen": "aa", "rejected": "b"}], tokenizer).report.boundary_merges == 0


def test_a_prompt_that_merges_away_is_said_and_counted_by_its_own_name() -> None:
    """b and c read bc, so that no token is the prompt's; an empty prompt is another case."""
    tokenizer = bpe(MERGING, [("b", "c")], eos_token="</s>")
    rows = [{"prompt": "b", "chosen": "c", "rejected": "a"}, {"prompt": "ab", "chosen": "c", "rejected": "a"}]
    with pytest.raises(RefusedRow, match="row 0, prompt: .* merges with a response's beginning, as \\['bc'\\]"):
        prepare_pairs(rows, tokenizer)
    assert prepare_pairs(rows, tokenizer, on_refused="drop").report.refused == {"prompt_merged": 1}


def test_a_base_response_moves_the_boundary_too() -> None:
    tokenizer = bpe(MERGING, [("b", "c")], eos_token="</s>")
    row = {"prompt": "ab", "chosen": "a", "rejected": "b", "more": ["c"]}
    (pair,) = prepare_pairs([row], tokenizer, base_column="more")
    assert (pair.prompt_ids, pair.chosen_ids, pair.base_ids) == ((0,), (1, 0, 4), ((3, 4),))


def chain(length: int) -> Any:
    """Return a tokenizer that merges a^k c into one token for k up to `length`, and "b" with nothing."""
    tails = ["a" * k + "c" for k in range(1, length + 1)]
    merges = [("a", tail[1:]) for tail in tails]
    return bpe(["a", "b", "c", *tails, "</s>"], merges, eos_token="</s>")


def test_more_than_eight_moved_tokens_are_refused() -> None:
    """b a^n + c is b and one token: n tokens of the prompt would move."""
    row = {"prompt": "b" + "a" * 8, "chosen": "c", "rejected": "b"}
    tokenizer = chain(12)
    assert parts(tokenizer, row) == ("b", "aaaaaaaac</s>", "aaaaaaaab</s>")
    with pytest.raises(RefusedRow, match=r"row 0, chosen: .*prompt \['b', 'a', .*full text \['b', 'aaaaaaaaac'\]"):
        prepare_pairs([row | {"prompt": "b" + "a" * 9}], tokenizer)


words = st.text(alphabet="abc ", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(prompt=words, chosen=words, rejected=words)
def test_pairs_read_back_as_the_text(prompt: str, chosen: str, rejected: str) -> None:
    """Prompt and response ids, joined, are the tokenisation of the joined text, and end in exactly one EOS."""
    merges = [("b", "c"), (" ", "a"), ("a", "b"), ("ab", "ab"), (" a", "bc")]
    tokenizer = bpe(["a", "b", "c", " ", "bc", " a", "ab", "abab", " abc", "</s>", "<s>"], merges, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for row in (text, chat_row(prompt, chosen, rejected)):
        pairs = prepare_pairs([row], tokenizer, on_refused="drop") if _has_start(tokenizer, text) else []
        for pair in pairs:
            for ids, answer in ((pair.chosen_ids, chosen), (pair.rejected_ids, rejected)):
                joined = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
                assert list(pair.prompt_ids + ids) == [*joined, tokenizer.eos_token_id]
                assert ids.count(tokenizer.eos_token_id) == 1 and len(ids) > 1
            assert len(pair.prompt_ids) <= len(tokenizer(prompt)["input_ids"])


def _has_start(tokenizer: Any, row: dict[str, str]) -> bool:
    """Whether the first token of the prompt survives both responses; otherwise the row is rightly refused."""
    first = [
        tokenizer(text)["input_ids"][0]
        for text in (row["prompt"], *(row["prompt"] + row[k] for k in ("chosen", "rejected")))
    ]
    return len(set(first)) == 1


# --- limits, drops and counts ------------------------------------------------------------------


def test_truncation_is_the_same_for_both_and_counted() -> None:
    """max_length 8, prompt at least 4: "abcdef" + "wxyz</s>" is 11 long, so the prompt keeps "cdef".

    Then 4 are left to the responses: the chosen one loses its end, the rejected one is whole.
    """
    rows = [{"prompt": "abcdef", "chosen": "wxyz", "rejected": "w"}]
    tokenizer = characters()
    assert parts(tokenizer, rows[0], max_length=8) == ("cdef", "wxyz", "w</s>")
    report = prepare_pairs(rows, tokenizer, max_length=8).report
    assert (report.truncated, report.prompts_truncated, report.chosen_truncated, report.rejected_truncated) == (
        1,
    ) * 3 + (0,)
    kept = [*rows, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    pairs = prepare_pairs(kept, tokenizer, max_length=8, truncation_mode="drop")
    assert ([pair.row for pair in pairs], pairs.report.dropped_too_long) == ([1], 1)
    assert parts(tokenizer, rows[0], max_length=None) == ("abcdef", "wxyz</s>", "w</s>")


def test_tokenized_rows_need_no_tokenizer_and_keep_to_the_limits() -> None:
    row = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "w": 0.5}
    (pair,) = prepare_pairs([row], None, max_length=3, weight_column="w")
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, pair.weight) == ((3,), (4, 5), (6,), 0.5)
    with pytest.raises(RefusedRow, match="ids below"):
        prepare_pairs([row | {"chosen_ids": [10_000]}], characters())


def test_refused_rows_are_counted_by_reason() -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "a"}
    pairs = prepare_pairs([good, {"prompt": "p"}, good | {"chosen": ""}, good], characters(), on_refused="drop")
    assert [pair.row for pair in pairs] == [0, 3]
    report = pairs.report.to_dict()
    assert report["refused"] == {"empty_response": 1, "missing_column": 1}
    assert (report["rows"], report["pairs"], report["identical"], report["formats"]) == (4, 2, 2, {"text": 2})
    assert len(report["messages"]) == 2 and report["messages"][0].startswith("row 1, chosen")


def test_columns_that_nothing_reads_are_named() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "source": "x"}] * 2
    assert prepare_pairs(rows, characters()).report.unused_columns == {"source": 2}


@pytest.mark.parametrize(("rows", "got"), [([], "0 rows, 0 refused"), ([{"prompt": "p"}], "1 rows, 1 refused")])
def test_nothing_left_is_an_error(rows: list[Any], got: str) -> None:
    with pytest.raises(InvalidArgument, match=f"rows: expected at least one usable row, got {got}"):
        prepare_pairs(rows, characters(), on_refused="drop")


def test_every_row_has_as_many_base_responses() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "more": more} for more in (["c"], ["c", "d"])]
    with pytest.raises(RefusedRow, match="row 1, more: expected 1 responses"):
        prepare_pairs(rows, characters(), base_column="more")


def test_pairs_come_back_from_the_flat_array() -> None:
    rows = [{"prompt": "p" * k, "chosen": "a", "rejected": "b" * k, "more": ["c", "d" * k]} for k in (1, 2, 3)]
    pairs = prepare_pairs(rows, characters(), base_column="more")
    assert len(pairs) == 3 and pairs[-1] == pairs[2] == list(pairs)[2] and pairs[1:] == list(pairs)[1:]
    assert [len(ids) for ids in (pairs[2].prompt_ids, pairs[2].rejected_ids, *pairs[2].base_ids)] == [3, 4, 2, 4]
    with pytest.raises(IndexError):
        pairs[3]
