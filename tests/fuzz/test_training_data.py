"""Rows and files of training data: any messages, fields, nesting, bytes; a tokenizer of one token a character.

The independent reading: every row is a pair, refused or dropped; and what a pair's row says is in its tokens, character
by character, each text of each message, or counted as left out by the template, since nothing is cut here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import TIERS, chosen, command, damaged, explore, outcome
from hypothesis import strategies as st
from tokenizers_for_tests import CHARACTERS, CHATML, TOOLS, characters, spelled

from rpo.llm.data import check_pairs, load_preferences, prepare_pairs

CHAT, WITH_TOOLS = characters(CHATML), characters(TOOLS)
KNOWN = set(CHARACTERS)
words = st.sampled_from(["Hi", "Yes", "No", "No way", "a", "b c"])
strange = st.sampled_from([" ", "", "\n", "a\u2028b", "é", "<|im_end|>", "</s>", "\ud800"]) | st.text(max_size=6)
texts = words | words | st.text(st.sampled_from("abc .\n"), min_size=1, max_size=8) | strange
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "developer", "narrator", "", None])
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": None, "n": 1}}}


@st.composite
def messages(draw: Any, role: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": role, "content": draw(texts)}
    how = draw(st.integers(0, 14))
    if how == 0:
        made["content"] = [{"type": "text", "text": draw(texts)} for _ in range(draw(st.integers(0, 2)))]
    elif how == 1:
        made["tool_calls"] = draw(st.sampled_from([[CALL], [], None, "call", [json.dumps(CALL)]]))
    elif how == 2:
        made[draw(st.sampled_from(["reasoning_content", "thinking", "name", "weight"]))] = draw(texts)
    elif how == 3:
        made["content"] = draw(junk)
    elif how == 4:
        made["role"] = draw(roles)
    elif how == 5:
        made = draw(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), junk, max_size=2))
    return made


@st.composite
def conversations(draw: Any, *path: str) -> list[dict[str, Any]]:
    return [draw(messages(role)) for role in path]


@st.composite
def rows(draw: Any) -> Any:
    kind = draw(st.sampled_from(["text", "implicit", "chat", "chat", "chat", "turns", "tokens", "scored", "junk"]))
    if kind == "junk":
        return draw(junk | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected"]), junk))
    if kind == "text":
        row: dict[str, Any] = {name: draw(texts) for name in ("prompt", "chosen", "rejected")}
    elif kind == "implicit":
        start = draw(texts)
        row = {name: start + draw(texts) for name in ("chosen", "rejected")}
    elif kind == "chat":
        row = {"prompt": draw(conversations(*draw(st.sampled_from([["user"], ["system", "user"]])))),
               "chosen": draw(conversations("assistant")), "rejected": draw(conversations("assistant"))}  # fmt: skip
    elif kind == "turns":
        start = draw(conversations("user", "assistant", "user"))
        more = draw(st.sampled_from([["assistant"], ["assistant", "tool", "assistant"], ["assistant", "user"]]))
        row = {name: [*start, *draw(conversations(*more))] for name in ("chosen", "rejected")}
    elif kind == "tokens":
        ids = st.lists(st.integers(-1, 104) | st.sampled_from([2**31, 10**20, 1.0, True, None, "3"]), max_size=3)
        row = {f"{name}_ids": draw(ids) for name in ("prompt", "chosen", "rejected")}
    else:
        row = {"prompt": draw(texts), "responses": draw(st.lists(texts, max_size=3)),
               "scores": draw(st.lists(st.floats() | st.none() | st.integers(), max_size=3))}  # fmt: skip
    how = draw(st.integers(0, 15))
    if how == 0:
        row[draw(st.sampled_from(sorted(row)))] = draw(junk)
    elif how == 1:
        row.pop(draw(st.sampled_from(sorted(row))))
    elif how == 2:
        row[draw(st.sampled_from(["tools", "chat_template_kwargs", "images", "margin", "chosen_finish_reason"]))] = (
            draw(junk | st.just([CALL]) | st.just(json.dumps([CALL])) | st.just({"mood": "glad"}))
        )
    elif how == 3:
        row = {name: chosen(draw, [json.dumps(value), repr(value)]) for name, value in row.items()}
    elif how == 4:
        row = {name: np.array(value, dtype=object) if isinstance(value, list) else value for name, value in row.items()}
    return row


def said(row: Any) -> Iterator[str]:
    """Yield what stands in prompt and chosen of a row of texts or messages."""
    for name in ("prompt", "chosen"):
        value = row.get(name, "")
        if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
            yield value
        for message in value if isinstance(value, (list, np.ndarray)) else ():
            content = message.get("content") if isinstance(message, dict) else None
            parts = content if isinstance(content, list) else [content]
            yield from (part if isinstance(part, str) else part.get("text", "") for part in parts if part)
            yield from (message[key] for key in ("reasoning_content", "thinking") if isinstance(message.get(key), str))


def as_spelled(text: str) -> str:
    """Return the text as the tokenizer's vocabulary has it."""
    for special in ("<|im_end|>", "</s>"):
        text = text.replace(special, "")
    return "".join(character if character in KNOWN else "<unk>" for character in text)


def check_pairs_against(given: list[Any], tokenizer: Any) -> Any:
    def check(pairs: Any) -> None:
        report = pairs.report
        assert report.rows == len(given)
        assert report.rows == len(pairs) + sum(report.refused.values()) + report.dropped_too_long
        assert all(np.isfinite(pair.weight) and pair.prompt_ids for pair in pairs)
        for pair in pairs:
            if "prompt_ids" in given[pair.row]:
                continue
            found = spelled(tokenizer, pair.prompt_ids + pair.chosen_ids).replace("<|im_end|>", "").replace("</s>", "")
            for text in said(given[pair.row]):
                counted = sum(report.unwritten.values()) + report.rewritten
                assert counted or as_spelled(text).strip() in found, f"{text!r} is not in {found!r}, nor counted"
        check_pairs(pairs, tokenizer, samples=1).render()

    return check


@pytest.mark.parametrize("tier", TIERS)
def test_prepare_pairs(tier: int, record_property: Any) -> None:
    def prepare(drawn: tuple[list[Any], bool, bool]) -> str:
        given, tools, drop = drawn
        tokenizer = WITH_TOOLS if tools else CHAT
        options: dict[str, Any] = {"on_refused": "drop" if drop else "error", "max_length": None}
        return outcome(lambda: prepare_pairs(given, tokenizer, **options), check_pairs_against(given, tokenizer))

    inputs = st.tuples(st.lists(rows(), min_size=1, max_size=2), st.booleans(), st.booleans())
    explore("training rows", tier, inputs, prepare, record_property)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, all that `rpo data check` reads of a model."""
    folder = tmp_path_factory.mktemp("model")
    CHAT.pad_token = "<unk>"  # else every check says on stderr which token pads
    CHAT.save_pretrained(folder)
    return folder


def write(folder: Path, name: str, given: list[Any], damage: int | None) -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        try:
            made = pyarrow.Table.from_pylist([row if isinstance(row, dict) else {"row": repr(row)} for row in given])
            pyarrow.parquet.write_table(made, path)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            pyarrow.parquet.write_table(pyarrow.table({"chosen": [ascii(row) for row in given]}), path)
    elif path.suffix == ".csv":
        frame = pandas.DataFrame([row if isinstance(row, dict) else {"row": repr(row)} for row in given])
        path.write_bytes(frame.to_csv(index=False).encode("utf-8", "surrogatepass"))
    else:
        text = json.dumps(given, default=lambda value: value.tolist(), ensure_ascii=path.suffix == ".json")
        if path.suffix == ".jsonl":
            lines = [json.dumps(row, default=lambda value: value.tolist(), ensure_ascii=False) for row in given]
            text = "\n".join(lines) + "\n"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    if damage is not None:
        path.write_bytes(damaged(path.read_bytes(), damage))
    return path


@pytest.mark.parametrize("tier", TIERS)
def test_rpo_data_check(tier: int, record_property: Any, model_folder: Path) -> None:
    def look(drawn: tuple[list[Any], str, int | None]) -> str:
        given, name, damage = drawn
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            path = write(folder, name, given, damage)
            loaded = outcome(lambda: list(load_preferences(path)))
            out = folder / "out"

            def check(printed: str) -> None:
                assert loaded == "result"
                assert sorted(file.name for file in out.iterdir()) == ["config.yaml", "report.json", "report.txt"]
                record = json.loads((out / "report.json").read_text(encoding="utf-8"))
                assert record["report"]["rows"] == record["pairs"] + sum(record["report"]["refused"].values())
                assert f"{record['pairs']} pairs" in printed

            options = ["--output", str(out), "--max_length", "null"]
            return command(["data", "check", str(path), "--model", str(model_folder), *options], folder, check)

    names = st.sampled_from(["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
    inputs = st.tuples(st.lists(rows(), min_size=1, max_size=3), names, st.none() | st.integers(0, 2**32))
    explore("training files", tier, inputs, look, record_property)
