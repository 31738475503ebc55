"""`WinRateCallback` inside a trainer: the rate counted by hand, what is kept for a resumed run, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models_for_tests
import numpy as np
import pytest
import torch
from training import tiny_pairs, trainer

from rpo.core.errors import InvalidArgument
from rpo.eval.judges.scored import Scored
from rpo.eval.scorers import Function
from rpo.eval.win_rate_callback import WinRateCallback
from rpo.eval.win_rates import wilson
from rpo.llm.data import stream_pairs
from rpo.llm.sampling import generate

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7 w8"]
FEW = {"max_new_tokens": 6, "prompts": PROMPTS}


def length(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


class Counted:
    """A judge by length that counts what it is asked."""

    at_once = 256

    def __init__(self) -> None:
        self.judge, self.asked = Scored(Function(length, name="length")), 0
        self.identity = self.judge.identity

    def tokens(self, question: Any) -> tuple[int, int]:
        return 0, 0

    def __call__(self, questions: Sequence[Any]) -> Any:
        self.asked += len(questions)
        return self.judge(questions)


def made(folder: Path, judge: Any, *, steps: int = 2, callback: dict[str, Any] | None = None, **options: Any) -> Any:
    run = trainer(folder, tiny_pairs(8), max_steps=steps, processing_class=models_for_tests.tiny_tokenizer(), **options)
    run.add_callback(WinRateCallback(judge, run, **(FEW if callback is None else callback)))
    return run


def rates(run: Any) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in run.state.log_history if "eval_win_rate" in row}


def test_the_rate_is_that_of_the_two_models_responses(tmp_path: Path) -> None:
    """Both sampled again here, with the seeds of their steps, and counted by length."""
    run = made(tmp_path, "scorer:length", callback=FEW | {"every": 2}, steps=2)
    start = models_for_tests.tiny_model("llama", dtype=torch.float64)
    run.train()
    assert list(rates(run)) == [2]

    def lengths(model: Any, step: int) -> list[int]:
        seed = int(np.random.SeedSequence([3, step]).generate_state(1)[0])
        found = generate(model, run.tokenizer, PROMPTS, max_new_tokens=6, seed=seed, progress=False)
        return [len(one[0].text.split()) for one in found]

    before, after = lengths(start, 0), lengths(run.model, 3)
    expected = float(np.mean([(a > b) + 0.5 * (a == b) for a, b in zip(after, before, strict=True)]))
    row = rates(run)[2]
    assert row["eval_win_rate"] == expected
    assert (row["eval_win_rate_low"], row["eval_win_rate_high"]) == wilson(expected, len(PROMPTS))
    baseline = json.loads((tmp_path / "win_rate" / "baseline.json").read_text())["responses"]
    assert [len(text.split()) for text in baseline] == before


def test_every_update_keeps_its_loss(tmp_path: Path) -> None:
    """Before the last one, whose log is due in any case."""
    run = made(tmp_path, "scorer:length", callback=FEW | {"every": 2}, steps=3)
    run.train()
    assert list(rates(run)) == [2, 3]
    assert [row["step"] for row in run.state.log_history if "loss" in row] == [1, 2, 3]


def test_it_measures_at_evaluations_and_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    """With the responses from before training, which the policy has left; the same verdicts are not asked again."""
    schedule = {"eval_dataset": tiny_pairs(4, seed=1), "eval_strategy": "steps", "eval_steps": 1}
    saving = schedule | {"save_strategy": "steps", "save_steps": 1}
    whole = made(tmp_path / "whole", Counted(), **schedule)
    whole.train()
    assert list(rates(whole)) == [1, 2]
    made(tmp_path / "a", Counted(), steps=2, **saving).train()
    (tmp_path / "a" / "checkpoint-2" / "manifest.json").unlink()
    judge = Counted()
    again = made(tmp_path / "a", judge, **saving)
    again.train(resume_from_checkpoint=True)
    assert rates(again)[2]["eval_win_rate"] == rates(whole)[2]["eval_win_rate"] and judge.asked == 0
    (tmp_path / "a" / "win_rate" / "baseline.json").unlink()
    (tmp_path / "a" / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(InvalidArgument, match="the responses before training in"):
        made(tmp_path / "a", judge, **saving).train(resume_from_checkpoint=True)


def test_prompts_are_those_of_the_data_unless_given(tmp_path: Path) -> None:
    run = made(tmp_path, Counted(), callback={"num_prompts": 3, "max_new_tokens": 2})
    callback = run.callback_handler.callbacks[-1]
    assert [list(ids) for ids in callback.prompt_ids] == [list(tiny_pairs(8)[k].prompt_ids) for k in range(3)]
    assert callback.prompts[0] == " ".join(f"w{k - models_for_tests.FIRST_WORD}" for k in tiny_pairs(8)[0].prompt_ids)


def test_what_it_cannot_work_with_is_refused(tmp_path: Path) -> None:
    bare = trainer(tmp_path / "a", tiny_pairs(4))
    with pytest.raises(InvalidArgument, match="trainer: expected a trainer with a tokenizer"):
        WinRateCallback("scorer:length", bare)
    run = made(tmp_path / "b", Counted())
    for options, words in (({"prompts": []}, "prompts: expected at least one"), ({"every": 0}, "every")):
        with pytest.raises(InvalidArgument, match=words):
            WinRateCallback("scorer:length", run, **options)
    with pytest.raises(InvalidArgument, match="judge: expected endpoint:MODEL"):
        WinRateCallback("gpt-4", run)
    for other in (length, Scored, [1]):
        with pytest.raises(
            InvalidArgument, match=r"judge: expected endpoint:MODEL.* a scorer or a Judge.*scorers\.Function"
        ):
            WinRateCallback(other, run)
    scorer = Function(length, name="length")
    assert WinRateCallback(scorer, run).judge == Scored(scorer)

    class Stream:
        def __iter__(self) -> Any:
            return iter([{name: tiny_pairs(1)[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}])

    tokenizer = models_for_tests.tiny_tokenizer()
    streamed = trainer(tmp_path / "c", stream_pairs(Stream(), tokenizer), processing_class=tokenizer)
    with pytest.raises(InvalidArgument, match="a data set that is not streamed"):
        WinRateCallback("scorer:length", streamed)
