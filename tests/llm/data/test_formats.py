"""Rows of every format, read into one record; and every refusal, with its row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers_for_tests import chat_row, turn

from rpo.core.errors import InvalidArgument
from rpo.llm.data.formats import Response, read_preference
from rpo.llm.data.report import RefusedRow
from rpo.llm.data.shared import shared_text

USER, YES, NO = turn("user", "Hi"), turn("assistant", "Yes"), turn("assistant", "No")
CHAT = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
SYSTEM = turn("system", "Be kind.")


def read(row: Any, **options: Any) -> Any:
    return read_preference(row, 7, **options)


def test_standard_explicit() -> None:
    record = read({"prompt": "The sky is", "chosen": " blue", "rejected": " green", "id": 3})
    assert (record.kind, record.row, record.prompt) == ("text", 7, "The sky is")
    assert record.responses == (Response(" blue"), Response(" green"))
    assert record.extra == {"id": 3}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is green", "The sky is"),  # the space goes to the responses
        ("The sky is blue", "The sky is blond", "The sky is"),  # not inside a word: TRL says "The sky is bl"
        ("Q: 1+1?\nA: 2", "Q: 1+1?\nA: 11", "Q: 1+1?\nA:"),
        ("Q\nyes", "Q\nno", "Q\n"),  # only a space moves; the line break is the prompt's
        ("Hi<|a|>x", "Hi<|b|>x", "Hi"),  # not inside a special token
        ("[INST] q [/INST]x", "[INST] q [/OTHER]x", "[INST] q"),
        ("is it blue", "is it blue or not", "is it"),  # words are left to both
        ("same words here", "same words here", "same words"),
        ("天空是蓝", "天空是红", "天空是"),  # written without spaces
        ("word", "work", ""),
    ],
)
def test_a_shared_beginning_ends_at_a_sensible_boundary(chosen: str, rejected: str, prompt: str) -> None:
    assert shared_text(chosen, rejected) == shared_text(rejected, chosen) == prompt


def test_standard_implicit() -> None:
    record = read({"chosen": "The sky is blue", "rejected": "The sky is blond"})
    assert record.prompt == "The sky is"
    assert [response.content for response in record.responses] == [" blue", " blond"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},  # implicit
        {"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]},  # as in ultrafeedback_binarized
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},  # the prompt twice
        {"prompt": "Hi", "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": "Yes", "rejected": "No"},
        {"prompt": (USER,), "chosen": (YES,), "rejected": (NO,)},
        {"prompt": [USER | {"name": None}], "chosen": [YES | {"tool_calls": None}], "rejected": [NO]},  # from Arrow
        {"prompt": np.array([USER]), "chosen": np.array([YES]), "rejected": np.array([NO])},  # from pandas
        {"prompt": [turn("user", [{"type": "text", "text": "H"}, {"text": "i"}])], "chosen": [YES], "rejected": [NO]},
        {name: json.dumps(value) for name, value in CHAT.items()},  # JSON in the cells
        CHAT | {"prompt": json.dumps([USER])},
        {name: json.dumps([USER, *CHAT[name]]) for name in ("chosen", "rejected")},
        CHAT | {"images": [], "audio": None, "tools": float("nan"), "chat_template_kwargs": float("nan")},
    ],
)
def test_conversational_rows_that_say_the_same(row: dict[str, Any]) -> None:
    record = read(row)
    assert (record.kind, record.prompt) == ("chat", [USER])
    assert record.responses == (Response([YES]), Response([NO]))


def test_implicit_conversations_share_system_and_earlier_turns() -> None:
    shared = [SYSTEM, USER, YES, turn("user", "Sure?")]
    record = read({"chosen": [*shared, YES], "rejected": [*shared, NO]})
    assert record.prompt == shared
    assert record.responses == (Response([YES]), Response([NO]))


def test_a_response_may_be_several_messages() -> None:
    """What the assistant says first is its response, even where both begin with it: the prompt ends before."""
    called, result = turn("assistant", "I look."), turn("tool", "12")
    record = read({"chosen": [USER, called, result, YES], "rejected": [USER, called, turn("tool", "13"), NO]})
    assert record.prompt == [USER]
    assert record.responses[0] == Response([called, result, YES])
    assert read({"prompt": [USER], "chosen": [YES, USER, NO], "rejected": [NO]}).responses[0] == Response(
        [YES, USER, NO]
    )


def test_json_is_text_where_only_one_response_is_messages() -> None:
    """A control of the rows above: an answer that happens to be JSON stays an answer."""
    text = json.dumps([YES])
    assert read({"prompt": "p", "chosen": text, "rejected": "b"}).kind == "text"
    assert read({"prompt": "p", "chosen": "[1, 2]", "rejected": "[3]"}).responses[0] == Response("[1, 2]")
    assert read({"prompt": "p", "chosen": repr([YES]), "rejected": "b"}).responses[0] == Response(repr([YES]))


def test_identical_conversations_keep_their_answer() -> None:
    record = read({"chosen": [USER, YES], "rejected": [USER, YES]})
    assert record.prompt == [USER]
    assert record.responses == (Response([YES]), Response([YES]))


def test_tools_and_template_arguments() -> None:
    """Tools may be JSON; the None that Arrow puts where schemas differ goes; an empty list is no tools."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}
    padded = {"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}, "y": None}}}
    assert read(chat_row(tools=json.dumps([tool]))).tools == read(chat_row(tools=[padded])).tools == [tool]
    assert read(chat_row(tools=np.array([tool]))).tools == [tool]
    assert read(chat_row(tools=[])).tools is read(chat_row(tools=float("nan"))).tools is None
    assert read(chat_row(chat_template_kwargs={"mood": "calm"})).template_kwargs == {"mood": "calm"}
    called = turn("assistant", "", tool_calls=[{"function": {"name": "f"}}])
    row = {"prompt": [USER], "chosen": [called | {"content": None}], "rejected": [NO]}
    assert read(row).responses[0].content == [called]


def test_nulls_in_tool_calls_are_counted() -> None:
    """Arrow writes None for a key that other rows have, so it cannot be told from a null of the call's own."""

    def calling(**arguments: Any) -> Any:
        return read(
            chat_row() | {"chosen": [turn("assistant", "", tool_calls=[{"function": {"name": "f"} | arguments}])]}
        )

    one, other = {"city": "Oslo", "day": None, "at": {"x": None}}, {"city": "Oslo", "at": {}}
    assert (calling(arguments=one).nulls, calling(arguments=other).nulls) == (2, 0)
    assert calling(arguments=one).responses == calling(arguments=other).responses
    whole = json.dumps(one)
    assert calling(arguments=whole).responses[0].content[0]["tool_calls"][0]["function"]["arguments"] == whole
    tools = [{"name": "f", "parameters": {"x": None}}]
    assert (read(chat_row(tools=tools)).nulls, read(chat_row(tools=json.dumps(tools))).nulls) == (1, 0)
    assert read(chat_row(tools=json.dumps(tools))).tools == tools  # JSON says what it means


def test_finish_reasons_base_and_weight() -> None:
    row = {
        "prompt": "p", "chosen": "a", "rejected": "b", "samples": ["c", "d"], "w": 2,
        "chosen_finish_reason": "length", "rejected_finish_reason": "stop", "samples_finish_reason": ["stop", "length"],
    }  # fmt: skip
    record = read(row, base_column="samples", weight_column="w")
    assert record.responses == (Response("a", True), Response("b"), Response("c"), Response("d", True))
    assert (record.weight, record.extra) == (2.0, {})
    assert read(row | {"samples": "c", "samples_finish_reason": "length"}, base_column="samples").responses[2:] == (
        Response("c", True),
    )
    chat = chat_row(samples=[[YES], [NO]], w="0.5")
    assert read(chat, base_column="samples", weight_column="w").responses[2:] == (Response([YES]), Response([NO]))
    assert read(chat | {"samples": [YES]}, base_column="samples").responses[2:] == (Response([YES]),)
    assert read(chat | {"samples": ["Yes", "No"]}, base_column="samples").responses[2:] == (
        Response([YES]),
        Response([NO]),
    )
    assert set(read(chat).extra) == {"samples", "w"}


def test_tokenized_rows() -> None:
    record = read({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": (4,), "b": [[5], [6]]}, base_column="b")
    assert (record.kind, record.prompt) == ("tokens", (1,))
    assert [response.content for response in record.responses] == [(2, 3), (4,), (5,), (6,)]


IMAGE = turn("user", [{"type": "image"}, {"type": "text", "text": "what is it"}])
PRINTED = "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Yes', 'role': 'assistant'}]"  # as NumPy prints them
TEXT = {"prompt": "p", "chosen": "a", "rejected": "b"}
TOKENS = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ("train", "wrong_type", "row 7, row: expected a mapping"),
        ({"prompt": "p", "chosen": "a"}, "missing_column", "row 7, rejected: .* columns 'prompt', 'chosen'"),
        (TEXT | {"chosen": None}, "none", "row 7, chosen"),
        (TEXT | {"prompt": None}, "none", "row 7, prompt"),
        (TEXT | {"chosen": 3}, "wrong_type", "row 7, chosen: expected a string"),
        (TEXT | {"rejected": " \n"}, "empty_response", "row 7, rejected"),
        (TEXT | {"chosen": [YES]}, "wrong_type", "row 7, rejected"),
        ({"chosen": "yes", "rejected": "no"}, "no_prompt", "begin with the same prompt"),
        (chat_row(chosen=" "), "empty_response", "row 7, chosen"),
        (chat_row() | {"chosen": []}, "wrong_type", "row 7, chosen"),
        (chat_row() | {"chosen": [{"from": "gpt", "value": "x"}]}, "wrong_type", "row 7, chosen"),
        (chat_row() | {"chosen": [turn("gpt", "x")]}, "roles", "'gpt'"),
        (chat_row() | {"chosen": [turn("assistant", 3)]}, "wrong_type", "content that is text"),  # type: ignore[arg-type]
        (chat_row() | {"chosen": [YES, USER]}, "roles", "roles assistant, user"),
        (chat_row() | {"chosen": [YES, turn("assistant", "")]}, "empty_response", "row 7, chosen"),
        (chat_row(images=[[0, 1]]), "media", "row 7, images: expected no images, audio or video"),
        (TEXT | {"audio": {"path": "a.wav"}}, "media", "row 7, audio"),
        (chat_row() | {"prompt": [IMAGE]}, "media", "row 7, prompt: .*'type': 'image'.* Only text is supported"),
        (chat_row() | {"prompt": [turn("user", ["Hi"])]}, "media", "row 7, prompt"),
        (chat_row() | {"prompt": PRINTED}, "printed", "row 7, prompt: expected messages, or JSON .*to_json"),
        (TEXT | {"chosen": PRINTED, "rejected": repr([NO])}, "printed", "row 7, chosen, rejected"),
        (TEXT | {"tools": [{"name": "f"}]}, "unwritten", "row 7, tools: expected messages, whose chat template"),
        (TEXT | {"chosen": float("nan")}, "none", "row 7, chosen"),
        (TEXT | {"chosen": {"role": "assistant"}}, "wrong_type", "row 7, chosen"),
        (chat_row() | {"chosen": [USER]}, "roles", "row 7, chosen"),
        (chat_row() | {"prompt": [USER, YES]}, "no_prompt", "ends with an assistant"),
        ({"chosen": [YES], "rejected": [NO]}, "no_prompt", "no message"),
        ({"prompt": "Else", "chosen": [USER, YES], "rejected": [USER, NO]}, "no_prompt", "'Else'"),
        (chat_row(tools="{"), "wrong_type", "row 7, tools"),
        (chat_row(tools={"a": 1}), "wrong_type", "row 7, tools"),
        (chat_row(chat_template_kwargs={"tokenize": True}), "wrong_type", "row 7, chat_template_kwargs"),
        (TOKENS | {"chosen_ids": []}, "empty_response", "row 7, chosen_ids"),
        (TOKENS | {"chosen_ids": [1.0]}, "wrong_type", "row 7, chosen_ids"),
        (TOKENS | {"rejected_ids": [-100]}, "wrong_type", "row 7, rejected_ids"),
        (TOKENS | {"rejected_ids": [10**400]}, "wrong_type", "row 7, rejected_ids"),
        ({"prompt_ids": [1], "chosen_ids": [2]}, "missing_column", "row 7, rejected_ids"),
    ],
)
def test_refusals_name_row_and_column(row: Any, reason: str, words: str) -> None:
    with pytest.raises(RefusedRow, match=words) as caught:
        read(row)
    assert (caught.value.row, caught.value.reason) == (7, reason)
    assert isinstance(caught.value, InvalidArgument)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), "heavy", True, None, 10**400])
def test_weights_that_are_none(weight: Any) -> None:
    with pytest.raises(RefusedRow, match="row 7, w"):
        read(TEXT | {"w": weight}, weight_column="w")
