"""The flagship: theory, table and transformer on one problem."""

import numpy as np
import pytest

from rpo.bandit import Unconstrained, build_saddle, minimizer_exists, solve
from rpo.compare import Comparison, compare, distance, draw_problem, fit_language_model, measure, total_variation
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO


def test_table_and_transformer_agree_with_the_certified_maximin(comparison: Comparison) -> None:
    assert comparison.theory.certificate.relative_gap <= 1e-12
    assert comparison.agreement["table"]["max_total_variation"] <= 1e-9
    found = comparison.agreement["transformer"]
    assert found["max_total_variation"] <= 1e-4
    assert abs(found["loss_difference"]) <= 1e-8
    assert len(found["total_variation"]) == 2


def test_the_reward_side_value_is_the_loss_plus_the_constant(comparison: Comparison) -> None:
    """Theory section 3: add eta beta E_base[log pi_ref], here computed from the pairs, one by one."""
    theory, data = comparison.theory, comparison.data
    x, w, _ = data.to_pairs()
    constant = 0.3 * 0.2 * np.mean(np.log(comparison.problem.reference[x, w]))
    assert theory.programs["reward"]["value"] == pytest.approx(comparison.transformer.loss + constant, abs=1e-8)


def test_the_gap_over_training_falls_and_bounds_the_distance(comparison: Comparison) -> None:
    """tv <= sqrt(gap / (2 eta beta d_x)) on every prompt, at every logged step."""
    frame = comparison.transformer.to_frame()
    assert frame["gap"].iloc[0] > 1e-3
    assert frame["gap"].iloc[-1] <= 1e-10
    least = comparison.theory.saddle.d.min()
    assert (frame["tv"] <= np.sqrt(frame["gap"] / (2 * 0.3 * 0.2 * least)) + 1e-9).all()


def test_the_gap_is_the_loss_above_the_optimum(comparison: Comparison) -> None:
    frame = comparison.transformer.to_frame()
    np.testing.assert_allclose(frame["gap"], frame["loss"] - comparison.theory.loss, atol=1e-9)


def test_dpo_lowers_the_chosen_likelihood_further_than_rpo(comparison: Comparison) -> None:
    fall = {
        name: run.history[-1]["logps/chosen"] - run.history[0]["logps/chosen"]
        for name, run in (("DPO", comparison.dpo), ("RPO", comparison.transformer))
    }
    assert fall["DPO"] < 0
    assert fall["DPO"] < fall["RPO"]


def test_the_drawn_data_guarantee_a_minimiser_for_dpo_and_rpo() -> None:
    _, problem, data, draws = draw_problem(
        prompts=2, vocab_size=3, length=2, num_preferences=60, reward_bound=2.0, rng=5
    )
    assert draws > 1  # the first draw failed, so the condition did something
    for objective in (DPO(beta=0.1), RPO(beta=0.1, eta=0.01)):
        assert minimizer_exists(build_saddle(problem, data, objective, Unconstrained())).exists


def test_hopeless_data_and_objectives_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="num_preferences: expected enough for a strongly connected"):
        draw_problem(prompts=2, vocab_size=3, length=2, num_preferences=5, reward_bound=2.0, rng=0)
    with pytest.raises(InvalidArgument, match="objective: expected an RPO with eta > 0 and base 'chosen'"):
        compare(RPO(beta=0.1, eta=0.0))
    with pytest.raises(InvalidArgument, match="objective: expected an RPO"):
        compare(RPO(beta=0.1, eta=0.1, base="reference"))


def test_distance_of_the_theory_from_itself_is_zero_and_of_the_reference_is_not(comparison: Comparison) -> None:
    theory = comparison.theory
    assert distance(theory.logps, theory)["gap"] <= 1e-12
    start = distance(comparison.problem.log_reference, theory)
    first = comparison.transformer.history[0]
    assert start["gap"] == pytest.approx(first["gap"], abs=1e-12)
    assert start["tv"] == pytest.approx(first["tv"], abs=1e-12)


def test_the_same_seed_gives_the_same_comparison() -> None:
    options = {"prompts": 2, "vocab_size": 2, "length": 2, "num_preferences": 200, "steps": 10, "skew_draws": 2}
    first, second = (compare(RPO(beta=0.5, eta=0.5), **options, seed=3, progress=False) for _ in range(2))
    assert first.agreement == second.agreement
    assert first.curves == second.curves
    assert first.skew_curves == second.skew_curves


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("beta", "eta"), [(0.1, 0.1), (0.1, 0.5), (0.2, 0.05), (0.5, 0.02), (0.5, 0.2), (1.0, 0.01), (1.0, 0.3)]
)
def test_the_grid_of_beta_eta_and_seed(beta: float, eta: float, seed: int) -> None:
    """eta * beta >= 0.01 throughout; 3 prompts and 64 responses, as in the demo."""
    lm, problem, data, _ = draw_problem(
        prompts=3, vocab_size=4, length=3, num_preferences=2500, reward_bound=2.0, rng=np.random.default_rng(seed)
    )
    objective = RPO(beta=beta, eta=eta)
    theory = solve(problem, data, objective, reward_class=Unconstrained())
    run = fit_language_model(lm, data, objective, problem=problem, steps=1500, log_every=500)
    assert theory.status == "certified"
    found = measure(run, theory)
    assert found["max_total_variation"] <= 1e-4
    assert abs(found["loss_difference"]) <= 1e-8
    assert total_variation(run.policy, theory.policy).max() == found["max_total_variation"]
