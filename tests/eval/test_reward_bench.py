"""Accuracies on RewardBench's format: counted by hand, weighted as its sections are; implicit rewards recomputed."""

import json
from pathlib import Path
from typing import Any

import models_for_tests
import numpy as np
import pytest
import torch
from test_cli_benchmark import refusal, rpo

from rpo.core.errors import InvalidArgument
from rpo.eval.benchmarks.reward_bench import SECTIONS, accuracies, implicit_results, read_pairs, scored_results
from rpo.eval.scorers import Length
from rpo.eval.win_rates import wilson

ROWS = [
    {"prompt": "w1", "chosen": "w2 w3", "rejected": "w4", "subset": "a", "id": 0},
    {"prompt": "w1 w5", "chosen": "w2", "rejected": "w4 w6", "subset": "a", "id": 1},
    {"prompt": "w1", "chosen": "w2 w9", "rejected": "w4 w7", "subset": "b", "id": 2},
    {"prompt": "w1 w8", "chosen": "w2 w9 w3", "rejected": "w4 w7", "subset": "b", "id": 3},
]


def by_name(found: Any) -> dict[str, Any]:
    return {one.benchmark.partition(":")[2]: one for one in found}


def test_the_longer_response_by_hand() -> None:
    """Of a: one right, one wrong. Of b: a tie, which counts as half, and one right."""
    results = scored_results(read_pairs(ROWS), Length())
    assert results.tolist() == [1.0, 0.0, 0.5, 1.0]
    found = by_name(accuracies(results, [row["subset"] for row in ROWS], "length"))
    assert {name: (one.value, one.n, one.settings["ties"]) for name, one in found.items()} == {
        "a": (0.5, 2, 0), "b": (0.75, 2, 1), "all": (0.625, 4, 1),
    }  # fmt: skip
    assert found["b"].interval == wilson(0.75, 2)


def test_sections_are_weighted_as_rewardbench_weights_them() -> None:
    """Reasoning: math-prm right in all of 10 pairs counts 984, each code set wrong in all of 20 counts 20: 984/1104."""
    subsets = [name for parts in SECTIONS.values() for name in parts for _ in range(10 if name == "math-prm" else 20)]
    chat = [1.0 if name in SECTIONS["Chat"][:2] else 0.5 for name in subsets]
    results = [1.0 if name == "math-prm" else 0.0 if name[:3] == "hep" else chat[k] for k, name in enumerate(subsets)]
    found = by_name(accuracies(results, subsets, "m"))
    reasoning = 984 / (984 + 6 * 20)
    assert found["Chat"].value == pytest.approx((2 * 1.0 + 3 * 0.5) / 5)
    assert found["Reasoning"].value == pytest.approx(reasoning) and found["Reasoning"].n == 130
    assert found["mean of sections"].value == pytest.approx((0.7 + 0.5 + 0.5 + reasoning) / 4)
    assert found["Reasoning"].interval is None
    fewer = by_name(accuracies(results[:-20], subsets[:-20], "m"))  # a section that is not whole has no number
    assert "Chat" in fewer and "Reasoning" not in fewer and "mean of sections" not in fewer


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_implicit_rewards_are_sums_of_log_probabilities(reference: bool, per_token: bool) -> None:
    """Token by token from the logits, end of turn included, after the template's prompt."""
    tokenizer = models_for_tests.tiny_tokenizer()
    policy = models_for_tests.tiny_model("llama", seed=1)
    other = models_for_tests.tiny_model("llama", seed=2) if reference else None

    def logp(model: Any, row: dict[str, Any], name: str) -> tuple[float, int]:
        prompt = tokenizer.encode(f"<|user|> {row['prompt']} </s> <|assistant|>", add_special_tokens=False)
        answer = tokenizer.encode(f"{row[name]} </s>", add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(answer)), len(answer)

    expected = []
    for row in ROWS:
        values = []
        for name in ("chosen", "rejected"):
            value, tokens = logp(policy, row, name)
            value -= logp(other, row, name)[0] if other is not None else 0.0
            values.append(value / tokens if per_token else value)
        expected.append(float(values[0] > values[1]))
    results = implicit_results(read_pairs(ROWS), policy, tokenizer, other, per_token=per_token, progress=False)
    assert results.tolist() == expected


def test_messages_and_rows_without_subsets_are_read_and_others_refused() -> None:
    prompt, turn = [{"role": "user", "content": "w1"}], [{"role": "assistant", "content": "w2"}]
    (row,) = read_pairs([{"prompt": prompt, "chosen": prompt + turn, "rejected": "w3"}])
    assert row == {"prompt": prompt, "chosen": "w2", "rejected": "w3", "subset": "all"}
    with pytest.raises(InvalidArgument, match=r"row 0: expected a prompt and the texts .* got rejected = \['a'"):
        read_pairs([{"prompt": "w1", "chosen": "w2", "rejected": ["a", "b"]}])
    with pytest.raises(InvalidArgument, match="rows: expected 2 pairs within the model's 256 positions, got 1"):
        long = read_pairs([{"prompt": "w1 " * n, "chosen": "w2", "rejected": "w3"} for n in (1, 300)])
        implicit_results(long, models_for_tests.tiny_model("llama"), models_for_tests.tiny_tokenizer())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models_for_tests.tiny_model("llama").save_pretrained("model")
    models_for_tests.tiny_tokenizer().save_pretrained("model")
    Path("bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = rpo("benchmark", "reward-bench", "bench.jsonl", "--reward", "length", "--output", "out")
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("out/results.json").read_text())["results"]
    assert [(row["benchmark"], row["value"]) for row in rows][-1] == ("reward-bench:all", 0.625)
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx(wilson(0.5, 2))
    same = rpo("benchmark", "reward-bench", "bench.jsonl", "--reward", "implicit:model", "--reference", "model")
    assert same.returncode == 0 and "| 0.5 " in same.stdout.splitlines()[-1]  # a policy and itself tie everywhere
    assert "reference: expected nothing beside that reward" in refusal(
        "benchmark", "reward-bench", "bench.jsonl", "--reward", "length", "--reference", "model"
    )
    assert np.isfinite(rows[0]["value"])
