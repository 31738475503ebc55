"""Batches cut by tokens: the cut by hand, and updates that do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import training
from models_for_tests import PAD

from rpo.core.errors import InvalidArgument
from rpo.llm.data.batching import BudgetCollator, cut, fed_tokens
from rpo.llm.logps.packing import PackedPath, SharedPrefixPath
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.training.trainer import RPOTrainer

PATHS = {"padded": lambda: PaddedPath(PAD), "packed": PackedPath, "shared": SharedPrefixPath}
every_path = pytest.mark.parametrize("path", [pytest.param(make(), id=name) for name, make in PATHS.items()])


def test_the_cut_by_hand() -> None:
    """Longest first, each into the first part with room: 9 | 7+3 | 5+4 of 10, and 20, too long, alone.

    Padded: 9 | 7 | 5+4 counts 2 * 5 | 3, as 2 * 9, 2 * 7 and 3 * 5 are over 10.
    """
    sizes = [5, 9, 3, 20, 7, 4]
    assert cut(sizes, 10) == [[3], [1], [2, 4], [0, 5]]
    assert cut(sizes, 10, rows=[1] * 6) == [[3], [1], [4], [0, 5], [2]]
    assert cut(sizes, 100) == [[0, 1, 2, 3, 4, 5]]
    assert cut([], 10) == []


def test_a_cut_into_more_parts_than_tokens_ask_for() -> None:
    """Items leave the part with the most, until there are none to part; within the budget all the same."""
    assert cut([1, 1, 1, 1], 10, at_least=2) == [[0, 1, 2], [3]]
    assert cut([1, 1, 1, 1], 10, at_least=3) == [[0, 1], [3], [2]]
    assert cut([1, 1], 10, at_least=5) == [[0], [1]]


def test_tokens_of_a_group_as_each_path_feeds_them() -> None:
    """A prompt of 3 and responses of 2 and 4: 2 * (3 + 4); 3 + 1 + 3 + 3; 3 + 1 + 3."""
    group = PromptGroup([5, 6, 7], ([8, 9], [8, 9, 10, 11]))
    assert [fed_tokens(make(), group) for make in PATHS.values()] == [14, 10, 7]


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_tokens_per_batch: expected an integer >= 1"):
        BudgetCollator(PackedPath(), max_tokens=0)


# --- updates ---------------------------------------------------------------------------------------


class Budgeted(RPOTrainer):
    """RPOTrainer with batches cut by tokens; keeps how many parts, and the tokens of the largest, it saw."""

    lose = False

    def parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        parts = super().parts(inputs)
        self.seen = [*getattr(self, "seen", []), [part["input_ids"].numel() for part in parts]]
        return parts[:-1] if self.lose else parts


def budgeted(folder: Any, path: Any, max_tokens: int, **options: Any) -> Budgeted:
    run = training.trainer(folder, PAIRS, **{"per_device_train_batch_size": 6, **options})
    run.__class__, run.path, plain = Budgeted, path, run.data_collator
    run.data_collator = BudgetCollator(path, plain.group_of, plain.tokens_of, max_tokens=max_tokens)
    return run


PAIRS = training.tiny_pairs(24, weights=True)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - value).norm() / value.norm()) for name, value in other.items())


def assert_same(ours: dict[str, float], theirs: dict[str, float], prefix: str = "") -> None:
    """Compare what is continuous in the log-probabilities: at the start, who won is up to rounding."""
    names = ("loss", "loss/preference", "loss/sft", "logps/chosen", "logps/rejected", "rewards/margins")
    for name in (prefix + name for name in names):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), name


@every_path
def test_updates_do_not_depend_on_the_budget(tmp_path, path) -> None:
    """Three updates of 6 weighted pairs in float64: weights to 1e-7 (norms are in float32), losses and metrics too.

    The control loses the last part of each update.
    """
    whole = training.trainer(tmp_path, PAIRS, per_device_train_batch_size=6)
    whole.train()
    expected = training.weights_of(whole.model)
    for max_tokens in (1, 40, 80):
        run = budgeted(tmp_path, path, max_tokens)
        run.train()
        assert apart(training.weights_of(run.model), expected) < 1e-7
        for ours, theirs in zip(run.state.log_history[:3], whole.state.log_history[:3], strict=True):
            assert_same(ours, theirs)
        if max_tokens == 1:
            assert all(len(parts) == 6 for parts in run.seen)
        else:
            assert max(map(max, run.seen)) <= max_tokens
        assert max(map(len, run.seen)) > 1
    lost = budgeted(tmp_path, path, 40)
    lost.lose = True
    lost.train()
    assert apart(training.weights_of(lost.model), expected) > 1e-3


def test_accumulated_batches_are_cut_too(tmp_path) -> None:
    """6 pairs an update: one batch cut by tokens is three batches of 2, cut as well."""
    one, three = (
        budgeted(tmp_path, SharedPrefixPath(), 30, per_device_train_batch_size=6 // n, gradient_accumulation_steps=n)
        for n in (1, 3)
    )
    one.train()
    three.train()
    assert apart(training.weights_of(three.model), training.weights_of(one.model)) < 1e-7


def test_an_evaluation_does_not_depend_on_the_budget(tmp_path) -> None:
    whole = training.trainer(tmp_path, PAIRS, eval_dataset=PAIRS, per_device_eval_batch_size=24).evaluate()
    run = budgeted(tmp_path, SharedPrefixPath(), 50, eval_dataset=PAIRS, per_device_eval_batch_size=24)
    found = run.evaluate()
    assert len(run.seen[0]) > 1
    assert_same(found, whole, "eval_")


def test_a_run_continues_where_it_stopped(tmp_path) -> None:
    """The sampler is transformers' own: 4 updates are 2, a checkpoint, and 2."""
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    through = budgeted(tmp_path, SharedPrefixPath(), 30, **options)
    through.train()
    resumed = budgeted(tmp_path, SharedPrefixPath(), 30, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert apart(training.weights_of(resumed.model), training.weights_of(through.model)) == 0.0
    assert resumed.seen == through.seen[2:]
