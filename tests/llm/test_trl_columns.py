"""Reference values as TRL's columns and back: the numbers of a run's cache, and a run that computes none of its own."""

import re
from pathlib import Path
from typing import Any

import models_for_tests
import pytest
import torch
from training import trainer

from rpo.core.errors import InvalidArgument
from rpo.llm.reference.cache import CacheMiss
from rpo.llm.reference.trl_columns import COLUMNS, from_trl_columns, to_trl_columns

ROWS = [{"prompt": f"w{k} ", "chosen": f"w{k + 1} w2", "rejected": f"w{k + 3}", "id": k} for k in range(6)]
TOKENIZER = models_for_tests.tiny_tokenizer()


def run(folder: Path, rows: Any = ROWS, **options: Any) -> Any:
    model = models_for_tests.tiny_model("llama")
    return trainer(folder, rows, model=model, processing_class=TOKENIZER, max_steps=1, **options)


def exact(model: Any, row: Any, name: str) -> float:
    """The sum over the response and its end, from the logits."""
    prompt, answer = (TOKENIZER.encode(text, add_special_tokens=False) for text in (row["prompt"], row[name] + " </s>"))
    with torch.no_grad():
        logps = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logps[len(prompt) - 1 + k, token]) for k, token in enumerate(answer))


def test_there_and_back(tmp_path: Path) -> None:
    """What a run cached is what the logits say; written back, a run finds every value and trains the same."""
    first = run(tmp_path / "a", ref_logps_cache=str(tmp_path / "own.safetensors"))
    first.train()
    columns = to_trl_columns(ROWS, TOKENIZER, tmp_path / "own.safetensors")
    model = models_for_tests.tiny_model("llama")
    for row in columns:
        assert [row[name] for name in COLUMNS] == pytest.approx([exact(model, row, n) for n in ("chosen", "rejected")])
        assert row["id"] == ROWS[row["id"]]["id"]
    file = from_trl_columns(columns, TOKENIZER, model, tmp_path / "theirs.safetensors", path="padded")
    second = run(tmp_path / "b", ref_logps_cache=str(file))
    before = file.read_bytes()
    second.train()
    assert file.read_bytes() == before  # nothing was computed, so nothing was saved
    assert second.state.log_history[0]["loss"] == pytest.approx(first.state.log_history[0]["loss"], rel=1e-6)


def test_values_of_other_weights_or_tokens_are_refused(tmp_path: Path) -> None:
    model, other = (models_for_tests.tiny_model("llama", seed=seed) for seed in (0, 5))
    values = [dict(zip(COLUMNS, (exact(model, row, n) for n in ("chosen", "rejected")), strict=True)) for row in ROWS]
    rows = [row | found for row, found in zip(ROWS, values, strict=True)]
    file = tmp_path / "x.safetensors"
    with pytest.raises(InvalidArgument, match=re.escape("as the reference says of the tokens scored here")):
        from_trl_columns(rows, TOKENIZER, other, file)
    with pytest.raises(InvalidArgument, match="row 5: expected ref_chosen_logps and ref_rejected_logps"):
        from_trl_columns([*rows[:5], ROWS[5]], TOKENIZER, model, file)
    assert not file.exists()
    assert from_trl_columns(rows, TOKENIZER, model, file) == file
    with pytest.raises(CacheMiss):
        to_trl_columns([ROWS[0] | {"chosen": "w40 w41"}], TOKENIZER, file)
    with pytest.raises(InvalidArgument, match="a pair of each of 2"):
        long = [ROWS[0], ROWS[1] | {"prompt": "w1 " * 50}]
        to_trl_columns(long, TOKENIZER, file, max_length=20, truncation_mode="drop")
