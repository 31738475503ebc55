"""The table's fit against the solver, closed forms and the shape of its history."""

import numpy as np
import pytest

import rpo
from rpo.bandit import (
    ContextualBandit,
    LinearSoftmaxPolicy,
    PreferenceCounts,
    TabularSoftmaxPolicy,
    Unconstrained,
    fit,
    instances,
    maximum_likelihood_reward,
    solve,
)
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO


@pytest.fixture(scope="module")
def problem() -> ContextualBandit:
    return instances.random(prompts=2, arms=5, features=3, rng=3)


@pytest.fixture(scope="module")
def pairs(problem: ContextualBandit) -> PreferenceCounts:
    return problem.sample_preferences(400, rng=4)


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs"])
@pytest.mark.parametrize("base", ["reference", "responses"])
def test_the_table_meets_the_convex_program(
    problem: ContextualBandit, pairs: PreferenceCounts, optimizer: str, base: str
) -> None:
    objective = RPO(beta=0.3, eta=0.2, base=base)
    run = fit(problem.softmax_policy(), pairs, objective, optimizer=optimizer, tolerance=1e-8)
    theory = solve(problem, pairs, objective, reward_class=Unconstrained())
    assert run.status == "converged"
    assert np.abs(run.policy - theory.policy).max() <= 1e-6
    assert run.loss - theory.loss == pytest.approx(0.0, abs=1e-12)


def test_gradient_descent_lowers_the_loss_every_step_and_meets_newton() -> None:
    problem = instances.random(prompts=1, arms=3, rng=0)
    pairs = problem.sample_preferences(100, rng=1)
    objective = RPO(beta=1.0, eta=0.5, base="reference")
    descent = fit(
        problem.softmax_policy(), pairs, objective, optimizer="gradient_descent", learning_rate=1.0, max_steps=3000,
        tolerance=1e-9,
    )  # fmt: skip
    losses = descent.to_frame()["loss"].to_numpy()
    assert (np.diff(losses) <= 1e-15).all()
    exact = fit(problem.softmax_policy(), pairs, objective)
    assert descent.status == exact.status == "converged"
    assert np.abs(descent.policy - exact.policy).max() <= 1e-6


def test_step_zero_is_the_reference_with_loss_ln_2(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    first = fit(problem.softmax_policy(), pairs, RPO(beta=0.3, eta=0.2)).history[0]
    assert first["step"] == 0
    assert first["loss/preference"] == pytest.approx(np.log(2.0), abs=1e-15)
    assert first["kl/reference"] == pytest.approx(0.0, abs=1e-15)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-15)
    assert first["loss"] == pytest.approx(first["loss/preference"] + 0.2 * 0.3 * first["loss/sft"], rel=1e-14)


def test_history_by_hand_on_two_arms() -> None:
    """One prompt, two arms, uniform reference, arm 0 beat arm 1 three times of four; DPO, beta = 1.

    The maximum-likelihood margin is ln 3, so pi = (3/4, 1/4), chosen log-probability
    3/4 ln(3/4) + 1/4 ln(1/4), KL = ln 2 - H(3/4), accuracy 3/4, gold = 3/4 r0 + 1/4 r1.
    """
    problem = ContextualBandit(
        d0=np.ones(1), reference=np.full((1, 2), 0.5), reward=np.array([[2.0, 1.0]]), reward_bound=2.0
    )
    pairs = PreferenceCounts.from_wins([[[0, 3], [1, 0]]])
    last = fit(problem.softmax_policy(), pairs, DPO(beta=1.0)).history[-1]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert last["logps/chosen"] == pytest.approx(-entropy, abs=1e-10)
    assert last["logps/rejected"] == pytest.approx(0.25 * np.log(0.75) + 0.75 * np.log(0.25), abs=1e-10)
    assert last["kl/reference"] == pytest.approx(np.log(2.0) - entropy, abs=1e-10)
    assert last["rewards/accuracies"] == 0.75
    assert last["reward/gold"] == pytest.approx(1.75, abs=1e-10)
    # pi equals pi_base (the chosen frequencies), so the proxy advantage is zero.
    assert last["reward/proxy"] == pytest.approx(0.0, abs=1e-10)


def test_the_linear_policy_equals_a_scipy_fit_of_the_formula(
    problem: ContextualBandit, pairs: PreferenceCounts
) -> None:
    """theta minimises E[softplus(-beta dh)] + eta beta E[-log pi(w)], written out from theory section 3."""
    from scipy.optimize import minimize

    beta, eta = 0.5, 0.3
    x, w, lost = pairs.to_pairs()

    def loss(theta: np.ndarray) -> float:
        logits = np.log(problem.reference) + problem.features @ theta
        logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        h = logps - np.log(problem.reference)
        margin = beta * (h[x, w] - h[x, lost])
        return float(np.mean(np.log1p(np.exp(-margin)) - eta * beta * logps[x, w]))

    expected = minimize(
        loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 5000}
    )
    run = fit(problem.linear_softmax_policy(), pairs, RPO(beta=beta, eta=eta))
    np.testing.assert_allclose(run.arrays["parameters"], expected.x, atol=1e-5)
    assert run.loss == pytest.approx(expected.fun, abs=1e-10)


def test_a_linear_policy_can_lower_the_chosen_likelihood_and_a_large_eta_prevents_it() -> None:
    """Theory fact 6: one pair, g_w = (1, 0) - mean, g_l = (2, 0) - mean, so <g_w, g_l> > |g_w|^2.

    Features 0, 1, 2 with a uniform reference have mean 1: take -1 (arm 0), 0.5 (chosen), 1.5
    (rejected), mean 1/3: g_w = 1/6, g_l = 7/6. DPO pushes theta down, so the chosen falls. RPO raises
    it iff (s + eta) / 36 > s 7/36 with s = 1/2 at the start, that is eta > 3.
    """
    problem = ContextualBandit(
        d0=np.ones(1), reference=np.full((1, 3), 1 / 3), features=np.array([[[-1.0], [0.5], [1.5]]]), reward_bound=1.0
    )
    pairs = PreferenceCounts.from_pairs([0], [1], [2], num_prompts=1, num_responses=3)
    change = {}
    for eta in (0.0, 2.9, 3.1):
        run = fit(
            problem.linear_softmax_policy(), pairs, RPO(beta=0.1, eta=eta), optimizer="gradient_descent",
            learning_rate=1e-3, max_steps=1,
        )  # fmt: skip
        change[eta] = run.history[-1]["logps/chosen"] - run.history[0]["logps/chosen"]
    assert change[0.0] < 0
    assert change[2.9] < 0 < change[3.1]


def test_a_tabular_policy_never_lowers_the_chosen_likelihood_of_a_single_pair() -> None:
    problem = instances.random(prompts=1, arms=6, rng=5)
    pairs = PreferenceCounts.from_pairs([0], [2], [4], num_prompts=1, num_responses=6)
    run = fit(
        problem.softmax_policy(), pairs, DPO(beta=0.1), optimizer="gradient_descent", learning_rate=5.0, max_steps=200
    )
    assert (np.diff(run.to_frame()["logps/chosen"]) > 0).all()
    assert run.status == "not_converged"
    assert "no minimiser exists" in run.message


def test_log_every_thins_the_history_but_keeps_first_and_last(
    problem: ContextualBandit, pairs: PreferenceCounts
) -> None:
    options = {"optimizer": "gradient_descent", "learning_rate": 1.0, "max_steps": 25}
    full = fit(problem.softmax_policy(), pairs, RPO(beta=0.3, eta=0.2), **options)
    thin = fit(problem.softmax_policy(), pairs, RPO(beta=0.3, eta=0.2), log_every=10, **options)
    assert [row["step"] for row in thin.history] == [0, 10, 20, 25]
    assert thin.history[-1] == full.history[-1]


def test_rpo_fit_dispatches_and_leaves_the_policy_as_it_was(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    policy = problem.softmax_policy()
    run = rpo.fit(policy, pairs, rpo.RPO(beta=0.3, eta=0.2))
    assert isinstance(run.artifact, TabularSoftmaxPolicy)
    assert not policy.parameters.any()
    np.testing.assert_allclose(np.exp(run.artifact.logps), run.policy)
    assert isinstance(rpo.fit(problem.linear_softmax_policy(), pairs, rpo.DPO(beta=1.0)).artifact, LinearSoftmaxPolicy)
    with pytest.raises(InvalidArgument, match=r"policy: expected a TabularSoftmaxPolicy.*got int"):
        rpo.fit(3, pairs, rpo.DPO(beta=1.0))


def test_the_proxy_falls_back_to_the_box_where_the_likelihood_has_no_maximum() -> None:
    problem = instances.random(prompts=1, arms=3, rng=0)
    lopsided = PreferenceCounts.from_pairs([0, 0], [0, 1], [1, 2], num_prompts=1, num_responses=3)
    reward, described = maximum_likelihood_reward(problem, lopsided, DPO(beta=1.0))
    assert described == {"name": "Box", "bound": problem.reward_bound}
    # the box's maximum-likelihood reward orders the arms as the two wins do
    assert reward is not None
    assert reward[0, 0] > reward[0, 1] > reward[0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: expected one of"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number > 0"),
        ({"max_steps": 0}, "max_steps: expected an integer >= 1"),
        ({"proxy_reward": "truth"}, "proxy_reward: expected one of"),
        ({"proxy_reward": np.zeros((3, 3))}, r"proxy_reward: expected shape \(2, 5\)"),
    ],
)
def test_bad_options_are_refused(
    problem: ContextualBandit, pairs: PreferenceCounts, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        fit(problem.softmax_policy(), pairs, RPO(beta=0.3, eta=0.2), **options)  # type: ignore[arg-type]


def test_a_linear_policy_needs_features() -> None:
    with pytest.raises(InvalidArgument, match=r"problem.features: expected an \(X, A, D\) array"):
        instances.coverage_skew(rng=0).linear_softmax_policy()


@pytest.mark.parametrize("optimizer", ["newton", "lbfgs", "gradient_descent"])
def test_a_tolerance_that_every_policy_meets_is_refused(
    problem: ContextualBandit, pairs: PreferenceCounts, optimizer: str
) -> None:
    """Gradients are of order beta: at 1e-10 the default 1e-10 would call the reference itself converged."""
    objective = DPO(beta=1e-10, base="reference")
    with pytest.raises(InvalidArgument, match=r"^tolerance: expected at most 0.001 beta = 1e-13.*Pass tolerance=1e-19"):
        fit(problem.softmax_policy(), pairs, objective, optimizer=optimizer)
    run = fit(problem.softmax_policy(), pairs, objective, optimizer=optimizer, tolerance=1e-13, max_steps=20)
    assert run.status == "converged" or run.loss > solve(problem, pairs, objective, method="newton").loss
