"""Whatever stands in a row: pairs and a report, or one of the package's refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import CHATML, GEMMA, REASONING, TOOLS, characters, chat_row, turn

from rpo.core.errors import RPOError
from rpo.llm.data import binarize, check_pairs, prepare_pairs
from rpo.llm.data.responses import response_rows

ODD = [
    "user",
    "assistant",
    "[{'role': 'user'",
    json.dumps([turn("user", "x")]),
    "\ud800",
    "a\0",
    "<|im_end|>",
    "{}",
    "[",
]
leaf = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=3)),
    st.sampled_from([*ODD, 10**400, np.array([1, 2]), np.float32(1), np.array([turn("user", "q")])]),
)
nested = st.recursive(
    leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
call = st.fixed_dictionaries(
    {}, optional={"id": leaf, "function": st.fixed_dictionaries({}, optional={"name": leaf, "arguments": nested})}
)
part = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image"]), "text": leaf})
fields = {
    "role": leaf,
    "content": st.one_of(leaf, st.lists(part, max_size=2)),
    "tool_calls": st.one_of(leaf, st.lists(st.one_of(leaf, call), max_size=2)),
    "reasoning_content": leaf,
    "name": leaf,
}
message = st.fixed_dictionaries({}, optional=fields).map(lambda given: turn("assistant", "x") | given)
cell = st.one_of(leaf, nested, st.lists(message, max_size=3))
USER = turn("user", "r")
GOOD: list[dict[str, Any]] = [
    chat_row(base=["c"], w=1, tools=[{"name": "f"}]),
    {"prompt": "p", "chosen": "a", "rejected": "b", "base": ["c"], "w": 1},
    {name: [USER, turn("assistant", name), USER, turn("assistant", "x")] for name in ("chosen", "rejected")},
    {"prompt": "p", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]},
    {"prompt": [USER], "responses": ["a", [turn("assistant", "b")], "c"], "scores": [1, None, 2]},
    {"prompt": "p", "completion": "a", "score": 1},
    {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7], "base": [[5]], "w": 1},
]  # fmt: skip
LISTS = {"lists": True, "ranked": True, "unpaired": True}
COLUMNS = [
    *(name for good in GOOD if good is not GOOD[2] for name in good),
    "ranks",
    "chosen_finish_reason",
    "base_finish_reason",
    "chat_template_kwargs",
    "images",
]
row = st.tuples(st.sampled_from(GOOD), st.dictionaries(st.sampled_from(sorted(set(COLUMNS))), cell, max_size=2))
TOKENIZERS = [characters(template, bos="<s>") for template in (CHATML, TOOLS, REASONING, GEMMA, None)]
READ = {
    "pairs": lambda rows, mode: rows,
    "responses": lambda rows, mode: response_rows(rows, "chosen"),
    "scored": lambda rows, mode: list(binarize(rows, on_refused=mode)),
}


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(row.map(lambda both: both[0] | both[1]), min_size=1, max_size=2),
    tokenizer=st.sampled_from(TOKENIZERS),
    mode=st.sampled_from(["error", "drop"]),
    columns=st.sampled_from([{}, {"base_column": "base", "weight_column": "w"}, LISTS, LISTS | {"scores": True}]),
    read=st.sampled_from(sorted(READ)),
)
def test_any_row_is_read_or_refused(rows: Any, tokenizer: Any, mode: str, columns: Any, read: str) -> None:
    try:
        pairs = prepare_pairs(READ[read](rows, mode), tokenizer, on_refused=mode, max_length=12, **columns)
    except RPOError:
        return
    report = pairs.report.to_dict()
    assert report["rows"] == len(pairs) + sum(report["refused"].values()) + report["dropped_too_long"]
    assert json.dumps(report) and check_pairs(pairs, tokenizer).render()
