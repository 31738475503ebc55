"""The step-0 self-check: each thing that silently ruins a run is found, said in one sentence, and can be overruled."""

from __future__ import annotations

import math

import models_for_tests
import pytest
import torch
from training import EOS, tiny_pairs, trainer

from rpo.llm.data.pairs import PreparedPairs, TokenizedPair
from rpo.llm.reference import FrozenModel
from rpo.llm.training.selfcheck import SelfCheckFailed, check_data, check_gradient, check_start

LENGTHS = torch.tensor([[10, 20]])


def logps(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_a_good_run_records_what_was_checked(tmp_path):
    run = trainer(tmp_path, tiny_pairs(8), max_steps=1, processing_class=models_for_tests.tiny_tokenizer())
    run.train()
    found = run.self_check_results
    assert found["start_difference_per_token"] < 1e-12
    assert found["start_preference_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert found["start_gradient_norm"] > 0
    assert found["chosen_ending_with_eos"] == 1.0 and found["truncated_share"] == 0.0


def test_policy_and_reference_that_differ(tmp_path):
    """A reference that is not the policy, without having been asked for, as when an adapter's base is taken for it."""
    run = trainer(tmp_path, tiny_pairs(8))
    run.reference = FrozenModel(models_for_tests.tiny_model("llama", dtype=torch.float64, seed=1))
    with pytest.raises(SelfCheckFailed, match="policy and reference differ by .* nats per token"):
        run.train()
    assert run.state.global_step == 0


def test_switched_off_the_same_run_trains(tmp_path):
    run = trainer(tmp_path, tiny_pairs(8), self_check=False, max_steps=1)
    run.reference = FrozenModel(models_for_tests.tiny_model("llama", dtype=torch.float64, seed=1))
    run.train()
    assert run.state.global_step == 1 and run.self_check_results == {}


@pytest.mark.parametrize(("half_precision", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_difference_is_per_token(half_precision, tolerance):
    """0.5 and 2 times the tolerance on each of the pair's 30 tokens."""
    small, large = (check(30 * share * tolerance, half_precision) for share in (0.5, 2.0))
    assert small["start_difference_per_token"] == pytest.approx(tolerance / 2)
    assert large is None


def check(difference, half_precision):
    try:
        return check_start(
            logps(-5.0, -9.0),
            logps(-5.0, -9.0 + difference),
            LENGTHS,
            0.6931472,
            expected=math.log(2),
            slope=0.1,
            half_precision=half_precision,
        )
    except SelfCheckFailed:
        return None


def test_preference_loss_must_be_its_value_at_the_reference():
    with pytest.raises(SelfCheckFailed, match="0.700000 in place of 0.693147"):
        check_start(
            logps(-1.0, -2.0), logps(-1.0, -2.0), LENGTHS, 0.7, expected=math.log(2), slope=0.1, half_precision=False
        )


def test_nan_never_passes():
    with pytest.raises(SelfCheckFailed):
        check_start(
            logps(float("nan"), -2.0),
            logps(-1.0, -2.0),
            LENGTHS,
            0.6931472,
            expected=math.log(2),
            slope=0.1,
            half_precision=False,
        )
    with pytest.raises(SelfCheckFailed, match="norm is nan"):
        check_gradient(float("nan"))


def test_identical_responses_are_refused(tmp_path):
    """Chosen = rejected in every pair; one pair that differs is enough to go on."""
    same = [TokenizedPair((7, 8), (9, EOS), (9, EOS), row) for row in range(3)]
    with pytest.raises(SelfCheckFailed, match="chosen and rejected are the same in every pair"):
        trainer(tmp_path, PreparedPairs(same)).train()
    check_data([*same, TokenizedPair((7,), (9, EOS), (8, EOS), 3)], {}, {EOS})


def test_a_zero_gradient_is_refused(tmp_path):
    """A hook that zeroes every gradient stands for a graph that does not reach the parameters."""
    run = trainer(tmp_path, tiny_pairs(4))
    for value in run.model.parameters():
        value.register_hook(torch.zeros_like)
    with pytest.raises(SelfCheckFailed, match="the first gradient is zero"):
        run.train()


def test_no_end_of_turn(tmp_path):
    """Responses that never end in EOS: refused by name; with every second one ended, the share is recorded."""
    pairs = PreparedPairs(TokenizedPair((7, 8), (9, 10), (11, 12), row) for row in range(4))
    with pytest.raises(SelfCheckFailed, match="no chosen response ends with a token at which .*4 of 4 end with 10"):
        trainer(tmp_path, pairs, processing_class=models_for_tests.tiny_tokenizer()).train()
    half = [TokenizedPair((7,), (9, EOS if row % 2 else 10), (11,), row) for row in range(4)]
    assert check_data(half, {}, {EOS})["chosen_ending_with_eos"] == 0.5


def test_mostly_truncated_responses():
    """3 of 4 chosen responses cut is refused; 2 of 4 is recorded."""
    pairs = list(tiny_pairs(4))
    with pytest.raises(SelfCheckFailed, match="75% of the pairs have a truncated response"):
        check_data(pairs, {"chosen_truncated": 3}, {EOS})
    assert check_data(pairs, {"chosen_truncated": 2}, {EOS})["truncated_share"] == 0.5
