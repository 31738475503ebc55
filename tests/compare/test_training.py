"""The transformer's training against the table and the certified maximin."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import rpo
from rpo.bandit import ContextualBandit, PreferenceCounts, RankedLists, Unconstrained, solve
from rpo.compare import EnumerableLM, NonFiniteLoss, fit_language_model, tiny_gpt2, total_variation
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Objective
from rpo.methods.lists import PRO, ALoL, CoPG, InfoNCA, PlackettLuceDPO

Small = tuple[EnumerableLM, ContextualBandit, PreferenceCounts]


@pytest.mark.parametrize("objective", [RPO(beta=0.2, eta=0.3), RPO(beta=0.3, eta=0.2, base="responses")])
def test_the_transformer_meets_the_convex_program(small: Small, objective: RPO) -> None:
    lm, problem, data = small
    run = rpo.fit(lm, data, objective, problem=problem, steps=900)
    theory = solve(problem, data, objective, reward_class=Unconstrained())
    assert total_variation(run.policy, theory.policy).max() <= 1e-4
    assert abs(run.loss - theory.loss) <= 1e-8
    assert run.status == "converged"


def test_too_few_steps_do_not_meet_it_and_are_said_not_to_have_converged(small: Small) -> None:
    """The control of the test above."""
    lm, problem, data = small
    objective = RPO(beta=0.2, eta=0.3)
    run = fit_language_model(lm, data, objective, problem=problem, steps=20)
    theory = solve(problem, data, objective, reward_class=Unconstrained())
    assert total_variation(run.policy, theory.policy).max() > 1e-4
    assert run.status == "not_converged"


def test_a_custom_base_enters_the_loss(small: Small) -> None:
    lm, problem, data = small
    base = np.full((2, 9), 1 / 9)
    objective = RPO(beta=0.3, eta=0.3, base="custom")
    run = fit_language_model(lm, data, objective, problem=problem, base_policy=base, steps=900)
    theory = solve(problem, data, objective, reward_class=Unconstrained(), base_policy=base)
    assert total_variation(run.policy, theory.policy).max() <= 1e-4


def test_step_zero_is_the_reference_and_the_logged_loss_is_the_optimised_one(small: Small) -> None:
    lm, problem, data = small
    run = fit_language_model(lm, data, RPO(beta=0.2, eta=0.3), problem=problem, steps=30, log_every=10)
    first = run.history[0]
    assert first["loss/preference"] == pytest.approx(np.log(2.0), abs=1e-14)
    assert first["kl/reference"] == pytest.approx(0.0, abs=1e-14)
    assert [row["step"] for row in run.history] == [0, 10, 20, 30]
    for row in run.history:
        assert row["loss"] == pytest.approx(row["loss/preference"] + 0.06 * row["loss/sft"], rel=1e-13)
    # computed once more on the table, by another path
    assert run.config["table_disagreement"] <= 1e-13


def test_a_start_is_where_training_begins_and_does_not_move_the_reference(small: Small) -> None:
    lm, problem, data = small
    first = fit_language_model(lm, data, RPO(beta=0.2, eta=0.3), problem=problem, steps=20)
    weights = {name: value.clone() for name, value in first.artifact.model.state_dict().items()}
    again = fit_language_model(lm, data, RPO(beta=0.2, eta=0.3), problem=problem, start=first.artifact, steps=5)
    for name in ("loss", "kl/reference"):
        assert again.history[0][name] == pytest.approx(first.history[-1][name], rel=1e-12)
    assert first.history[-1]["kl/reference"] > 0.01
    assert all(torch.equal(value, weights[name]) for name, value in first.artifact.model.state_dict().items())


def test_training_leaves_the_reference_model_as_it_was(small: Small) -> None:
    lm, problem, data = small
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    fit_language_model(lm, data, DPO(beta=0.2), problem=problem, steps=5)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_training_twice_gives_the_same_numbers(small: Small) -> None:
    lm, problem, data = small
    first, second = (fit_language_model(lm, data, RPO(beta=0.2, eta=0.3), problem=problem, steps=20) for _ in range(2))
    assert first.history == second.history


def test_a_loss_that_is_not_finite_stops_the_run(small: Small) -> None:
    lm, problem, data = small
    with pytest.raises(NonFiniteLoss, match=r"at step \d+\. Lower learning_rate"):
        fit_language_model(lm, data, DPO(beta=0.2), problem=problem, steps=5, learning_rate=1e308)


@pytest.mark.parametrize(
    "objective",
    [PlackettLuceDPO(beta=0.5), InfoNCA(beta=0.5, alpha=1.0), CoPG(beta=0.5), PRO(sft_weight=0.05)],
    ids=lambda value: type(value).__name__,
)
def test_the_transformer_meets_the_exact_optimum_of_lists(objective: Objective) -> None:
    """Lists of three and of four in one data set: total variation at most 1e-6 from the certified policy.

    PRO, which sees more than differences, has no maximin: its optimum is the table's, certified by `fit`.
    """
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=2, rng=0)
    problem = lm.bandit(np.random.default_rng(0).uniform(0.0, 1.5, size=(2, 9)))
    drawn = [problem.sample_rankings(n, size=k, score_noise=1.0, rng=k) for n, k in ((400, 3), (200, 4))]
    data = dataclasses.replace(drawn[0], by_size=tuple(block for lists in drawn for block in lists.blocks))
    run = fit_language_model(lm, data, objective, problem=problem, steps=300, proxy_reward=None)
    exact: Any = rpo.fit(problem.softmax_policy(), data, objective, proxy_reward=None)
    assert exact.evidence == "certified"
    if not isinstance(objective, PRO):
        exact = solve(problem, data, objective, reward_class=Unconstrained(), method="newton")
        assert exact.status == "certified"
    assert total_variation(run.policy, exact.policy).max() <= 1e-6
    assert total_variation(problem.reference, exact.policy).max() > 0.1
    assert run.loss == pytest.approx(exact.loss, abs=1e-10) and run.config["table_disagreement"] <= 1e-12


def test_single_scored_responses_train_the_transformer_too() -> None:
    """A-LoL without a ratio: mu max(A, 0) / Z, with every advantage above zero so that it is inside the simplex."""
    lm = tiny_gpt2(prompts=1, vocab_size=3, length=1, rng=0)
    advantage = np.array([0.5, 1.0, 2.0])
    data = RankedLists.from_lists(
        [0, 0, 0], [[0], [1], [2]], count=[3, 2, 1], scores=advantage[:, None], num_prompts=1, num_responses=3
    )
    run = fit_language_model(lm, data, ALoL(ratio=False), steps=300)
    expected = np.array([3.0, 2.0, 1.0]) * advantage
    assert np.abs(run.policy[0] - expected / expected.sum()).max() <= 1e-6
    with pytest.raises(InvalidArgument, match="^objective: .*which reads mismatched, shift"):
        fit_language_model(lm, data, rpo.KTO())
