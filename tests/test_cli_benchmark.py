"""`rpo benchmark`, as its user meets it: from a file of generations and a tiny model to one table."""

import contextlib
import io
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

from models_for_tests import tiny_model, tiny_tokenizer

from rpo.cli import main


def rpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(item) for item in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def refusal(*arguments: object) -> str:
    result = rpo(*arguments)
    assert result.returncode == 2, result
    (line,) = result.stderr.splitlines()
    return line


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """Return the current folder, with ./model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny)
    return tmp_path


def printed_commands(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  ")]


def test_alpaca_eval_from_instructions_to_the_judging_command(here: Path) -> None:
    """The commands it prints are the next steps: they are run as printed, for a tiny model."""
    asked = [{"instruction": f"w{k} w{k + 1}", "output": "-", "dataset": "own"} for k in range(3)]
    (here / "set.json").write_text(json.dumps(asked))
    first = rpo("benchmark", "alpaca-eval", "--instructions", "set.json", "--output", "a")
    generate, export = printed_commands(first)
    assert generate[:4] == ["rpo", "generate", "--model", "MODEL"] and "2048" in generate
    generate = ["model" if item == "MODEL" else "5" if item == "2048" else item for item in generate]
    assert rpo(*generate[1:]).returncode == 0
    judging, table = printed_commands(rpo(*export[1:]))
    outputs = json.loads((here / "a" / "model_outputs.json").read_text())
    assert [item["instruction"] for item in outputs] == [item["instruction"] for item in asked]
    assert {tuple(item) for item in outputs} == {("instruction", "output", "generator", "dataset")}
    assert judging == [
        "alpaca_eval", "--model_outputs", "a/model_outputs.json",
        "--annotators_config", "weighted_alpaca_eval_gpt4_turbo", "--output_path", "a",
    ]  # fmt: skip
    assert table == ["rpo", "benchmark", "table", "a"]
    report = json.loads((here / "a" / "export.json").read_text())
    assert report["outputs"] == 3 and report["truncated"] > 0 and shlex.split(report["command"]) == judging
    assert yaml.safe_load((here / "a" / "export.yaml").read_text())["instructions"] == "set.json"
    assert "without an earlier result" in refusal(*export[1:])
    assert "expected alpaca_eval.json, to make prompts, or generations" in refusal(
        "benchmark", "alpaca-eval", "--output", "b"
    )
    assert not (here / "b").exists()


def test_mt_bench_answers_into_fastchats_folder(here: Path) -> None:
    questions = [{"question_id": k, "category": "math", "turns": ["w1 w2", f"w{k}"]} for k in (82, 81)]
    write_lines(here / "question.jsonl", questions)
    folder = "F/fastchat/llm_judge/data/mt_bench/model_answer"
    options = ["--model", "model", "--questions", "question.jsonl", "--max_new_tokens", "4"]
    result = rpo("benchmark", "mt-bench", *options, "--output", folder, "--fastchat", "F", "--model_id", "tiny-rpo")
    steps = printed_commands(result)
    assert steps[:2] == [
        ["cd", "F/fastchat/llm_judge"],
        ["python", "gen_judgment.py", "--model-list", "tiny-rpo", "--judge-model", "gpt-4", "--parallel", "2"],
    ]
    assert result.stdout.startswith("2 questions, 4 answers, ")
    rows = [json.loads(line) for line in (here / folder / "tiny-rpo.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [81, 82]
    assert all(len(row["choices"][0]["turns"]) == 2 and row["model_id"] == "tiny-rpo" for row in rows)
    # Another model's answers go beside them, from anywhere; earlier ones are not replaced.
    other = printed_commands(rpo("benchmark", "mt-bench", *options, "--output", "mine", "--fastchat", "F"))
    assert other[0] == ["cp", str(here / "mine" / "model.jsonl"), str(here / folder / "model.jsonl")]
    assert json.loads((here / "mine" / "model.report.json").read_text())["answers"] == 4
    assert "mine/model.jsonl" in refusal("benchmark", "mt-bench", *options, "--output", "mine")


def test_lm_eval_shows_its_command_and_asks_before_code_is_run(here: Path) -> None:
    options = ["--model", "model", "--output", "out"]
    (command,) = printed_commands(rpo("benchmark", "lm-eval", *options, "--dry_run", "true"))
    assert command[:5] == ["lm_eval", "--model", "hf", "--model_args", "pretrained=model,dtype=auto"]
    assert command[command.index("--tasks") + 1] == "gsm8k,arc_easy,arc_challenge" and not (here / "out").exists()
    line = refusal("benchmark", "lm-eval", *options, "--tasks", "[mbpp]")
    assert "--confirm_run_unsafe_code true" in line and "sandbox" in line


def test_a_table_is_printed_and_saved(here: Path) -> None:
    rows = [
        {"question_id": k, "model": name, "judge": ["gpt-4", "single-v1"], "score": score, "turn": 1}
        for name, scores in {"rpo": (8, 6, -1), "dpo": (5, 6, 7)}.items()
        for k, score in enumerate(scores)
    ]
    write_lines(here / "gpt-4_single.jsonl", rows)
    result = rpo("benchmark", "table", "gpt-4_single.jsonl", "--output", "t")
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if "MT-Bench" in line
    ]
    assert [row[:4] + row[7:] for row in table if row[2] == "score"] == [
        ["rpo", "MT-Bench", "score", "7", "2", "1"],
        ["dpo", "MT-Bench", "score", "6", "3", "0"],
    ]
    assert (here / "t" / "results.csv").exists() and "sources:" in (here / "t" / "config.yaml").read_text()
    one = rpo("benchmark", "table", "gpt-4_single.jsonl", "--models", "[dpo]").stdout
    assert "dpo" in one and "rpo" not in one
    assert "got none.json" in refusal("benchmark", "table", "none.json")
