"""What a run prints: numbers of the history, few a line, and what the pass before training has to do."""

import re
from pathlib import Path
from typing import Any

import pytest
from training import tiny_pairs, trainer
from transformers import PrinterCallback

from rpo.core.errors import InvalidArgument
from rpo.llm.training.console import COLUMNS, LogLines, duration

PAIRS = tiny_pairs(12)


def printed(capsys: pytest.CaptureFixture[str], folder: Path, **options: Any) -> tuple[list[str], Any]:
    made = trainer(folder, PAIRS, **options)
    made.train()
    return capsys.readouterr().out.splitlines(), made


def test_a_log_is_a_row_of_numbers_of_the_history(capsys: Any, tmp_path: Path) -> None:
    lines, made = printed(capsys, tmp_path, max_steps=20)
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    header = next(line for line in lines if line.split()[0] == "step")
    assert header.split() == ["step", "preference", "sft", "margin", "accuracy", "fell"]
    rows = [line.split() for line in lines if re.match(r" +\d", line)]
    logged = [row for row in made.state.log_history if "loss" in row]
    assert len(rows) == len(logged) == 20
    for row, log in zip(rows, logged, strict=True):
        assert row == [str(log["step"]), *(f"{log[name]:.4g}" for name in COLUMNS)]
    assert lines[-1].startswith("20 updates in 0:")


def test_evaluations_are_rows_and_other_logs_name_their_numbers(capsys: Any, tmp_path: Path) -> None:
    lines, made = printed(
        capsys, tmp_path, eval_dataset=PAIRS, eval_strategy="steps", eval_steps=2, gradient_diagnostics_steps=1
    )
    rows = [line.split()[1:] for line in lines if line.split()[0] == "eval"]
    logs = [row for row in made.state.log_history if "eval_loss" in row]
    assert rows == [[str(log["step"]), *(f"{log['eval_' + name]:.4g}" for name in COLUMNS)] for log in logs] != []
    made.log({"kl/reference": 0.25})
    assert capsys.readouterr().out.split() == ["3", "kl/reference", "0.25"]


def test_full_prints_every_number_and_none_nothing(capsys: Any, tmp_path: Path) -> None:
    lines, made = printed(capsys, tmp_path / "full", log="full")
    assert any("'logps/chosen_per_token'" in line for line in lines)
    assert any(type(one) is PrinterCallback for one in made.callback_handler.callbacks)
    lines, made = printed(capsys, tmp_path / "none", log="none")
    assert lines == []
    with pytest.raises(InvalidArgument, match="log"):
        trainer(tmp_path, PAIRS, log="loud")


def test_a_callback_of_the_callers_own_is_left_alone(tmp_path: Path) -> None:
    class Mine(PrinterCallback):
        pass

    made = trainer(tmp_path, PAIRS, callbacks=[Mine()])
    kinds = [type(one) for one in made.callback_handler.callbacks]
    assert Mine in kinds and LogLines in kinds and PrinterCallback not in kinds


def test_the_pass_before_training_says_what_it_has_to_do(capsys: Any, tmp_path: Path) -> None:
    """The tokens of every prompt once and of its two responses; in the second run nothing is left to score."""
    file = str(tmp_path / "values.safetensors")
    first, _ = printed(capsys, tmp_path / "a", ref_logps_cache=file)
    again, _ = printed(capsys, tmp_path / "b", ref_logps_cache=file)
    tokens = sum(len(pair.prompt_ids) + sum(map(len, pair.responses)) for pair in PAIRS)
    assert first[0] == f"Reference log-probabilities: {len(PAIRS)} groups, {tokens} tokens to score."
    assert again[0] == f"Reference log-probabilities: {len(PAIRS)} groups, all cached in {file}."


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 65, 3661)] == ["0:00", "1:05", "1:01:01"]
