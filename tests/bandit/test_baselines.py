"""Baselines against brute force, enumeration and second constructions; what permutations, shifts and splits leave."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import expit

from rpo.bandit import instances
from rpo.bandit.baseline import Baseline
from rpo.bandit.baselines.catalogue import list_baselines
from rpo.bandit.baselines.ensembles import RewardEnsemble
from rpo.bandit.baselines.members import bootstrap
from rpo.bandit.baselines.pessimism import EllipticGame, PessimisticMLE, covariance
from rpo.bandit.baselines.plain import (
    BasePolicy,
    BestOfN,
    ChiSquaredPO,
    Greedy,
    PlugIn,
    ReferencePolicy,
    best_of_n_policy,
    maximum_likelihood,
)
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.metrics import policy_outcome
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.core.aggregators import combine
from rpo.core.divergences import ChiSquaredKL
from rpo.core.errors import InvalidArgument

Make = Callable[..., ContextualBandit]
METHODS: list[Baseline] = [
    PlugIn(0.3),
    Greedy(),
    BestOfN(4),
    ChiSquaredPO(0.3),
    PessimisticMLE(radius=0.2),
    RewardEnsemble(0.3, size=3, how="worst"),
    RewardEnsemble(0.3, size=3, how="hull"),
    BasePolicy("responses"),
    ReferencePolicy(),
]
EXACT = METHODS[:4] + METHODS[7:]  # closed forms and Newton; PessimisticMLE goes through a cone solver


@pytest.fixture(scope="module")
def problem(make_bandit: Make) -> ContextualBandit:
    return make_bandit(3, prompts=2, arms=4)


@pytest.fixture(scope="module")
def data(problem: ContextualBandit) -> PreferenceCounts:
    return problem.sample_preferences(200, rng=1)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_baseline_runs_through_solve_and_carries_its_evidence(
    method: Baseline, problem: ContextualBandit, data: PreferenceCounts
) -> None:
    result = solve(problem, data, method, rng=0)
    assert result.policy.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-12) and (result.policy >= 0).all()
    assert result.status in ("certified", "exact") and result.message.endswith(".") and result.label == method.label
    assert (result.reward is None) == (result.status == "exact")
    if result.reward is not None:
        assert result.evidence["relative_gap"] <= 1e-7
    assert method.to_dict()["name"] == type(method).__name__


def test_the_list_names_every_baseline_class_with_a_sentence() -> None:
    listed = list_baselines()
    assert {info.method for info in listed.values()} == {type(method) for method in METHODS}
    assert len(listed) == len({type(method) for method in METHODS}) and all(
        info.sentence.endswith(".") for info in listed.values()
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_prompts_without_data_and_responses_without_reference_mass_are_left_alone(method: Baseline) -> None:
    """Prompt 1 was never compared: pi_ref. Response 2 of prompt 0 is outside the support: nothing."""
    reference = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    problem = ContextualBandit(d0=[0.5, 0.5], reference=reference, reward_bound=2.0)
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1], wins[0, 1, 0] = 8, 3
    result = solve(problem, PreferenceCounts.from_wins(wins), method, rng=0)
    assert result.policy[1] == pytest.approx(reference[1], abs=1e-12)
    assert result.policy[0, 2] == 0.0
    assert (result.policy[0, 0] > result.policy[0, 1]) != isinstance(method, (ReferencePolicy, BasePolicy))


@pytest.mark.parametrize("kind", [PlugIn, Greedy, BestOfN, ChiSquaredPO, PessimisticMLE, RewardEnsemble])
def test_a_shared_theta_does_not_move_prompts_without_data(kind: type[Baseline]) -> None:
    """With one feature the data of prompt 0 price prompt 1's responses too; pi_ref stays. Control: prompt 0 moves."""
    reference = np.array([[0.5, 0.5], [0.3, 0.7]])
    problem = ContextualBandit(d0=[0.5, 0.5], reference=reference, reward_bound=2.0)
    ball = LinearBall(np.array([[[0.0], [1.0]], [[0.0], [1.0]]]), 2.0)
    settings_ = {PlugIn: {"beta": 0.3}, ChiSquaredPO: {"beta": 0.3}, RewardEnsemble: {"beta": 0.3}, BestOfN: {"n": 3}}
    method = kind(reward_class=ball, **settings_.get(kind, {}))  # type: ignore[call-arg]
    data = PreferenceCounts.from_wins([[[0, 90], [10, 0]], [[0, 0], [0, 0]]])
    result = solve(problem, data, method, rng=0)
    assert result.policy[1] == pytest.approx(reference[1], abs=1e-12)
    assert method.to_dict() and ((result.policy[0, 0] > 0.6) or kind is PessimisticMLE)
    assert result.reward is not None and result.reward[1, 0] != result.reward[1, 1]


# --- plug-in and greedy -------------------------------------------------------------------------------------


def test_plug_in_of_two_responses_by_hand() -> None:
    """Won 3 of 4: r_0 - r_1 = ln 3; pi_ref (1/3, 2/3), beta 1/2: odds 1/2 * 3^2 = 9/2. Unconstrained or Box(2)."""
    problem = ContextualBandit(d0=[1.0], reference=[[1 / 3, 2 / 3]], reward_bound=2.0)
    data = PreferenceCounts.from_wins([[[0, 3], [1, 0]]])
    for reward_class in (Unconstrained(), None):
        policy = solve(problem, data, PlugIn(0.5, reward_class)).policy
        assert policy[0] == pytest.approx([9 / 11, 2 / 11], abs=1e-9)
    bound = solve(problem, data, PlugIn(0.5, Box(0.5))).policy  # the box stops at 1/2: odds e / 2
    assert bound[0, 0] / bound[0, 1] == pytest.approx(math.e / 2, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_plug_in_maximises_the_regularised_proxy_of_a_reward_found_by_scipy(make_bandit: Make, seed: int) -> None:
    """Second construction: L-BFGS-B on the likelihood in the box, then softmax(log pi_ref + r / beta)."""
    problem = make_bandit(seed, prompts=1, arms=4)
    data = problem.sample_preferences(100, rng=seed)

    def loss(r: Any) -> float:
        return float(data.weights @ np.logaddexp(0, r[data.rejected] - r[data.chosen]))

    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5_000}
    r = minimize(loss, np.full(4, 1.0), bounds=[(0, 2.0)] * 4, method="L-BFGS-B", options=options).x
    gibbs = problem.reference[0] * np.exp(r / 0.5)
    assert solve(problem, data, PlugIn(0.5)).policy[0] == pytest.approx(gibbs / gibbs.sum(), abs=1e-4)
    assert solve(problem, data, Greedy()).policy[0].argmax() == r.argmax()


def test_greedy_shares_ties_equally() -> None:
    """Arms 0 and 1 each beat arm 2 three times in four, pi_ref (1/6, 1/2, 1/3): half each; best of 1 is pi_ref."""
    problem = ContextualBandit(d0=[1.0], reference=[[1 / 6, 1 / 2, 1 / 3]], reward_bound=2.0)
    data = PreferenceCounts.from_wins([[[0, 0, 3], [0, 0, 3], [1, 1, 0]]])
    result = solve(problem, data, Greedy())
    assert result.policy[0] == pytest.approx([0.5, 0.5, 0.0], abs=1e-15) and result.evidence["prompts_tied"] == 1
    assert solve(problem, data, BestOfN(1)).policy == pytest.approx(problem.reference, abs=1e-15)
    # Best of 2: arm 2 wins only against itself, (1/3)^2; the tied two share the rest 1 : 3.
    assert solve(problem, data, BestOfN(2)).policy[0] == pytest.approx([2 / 9, 6 / 9, 1 / 9], abs=1e-12)


# --- best of n ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rewards", [[0.3, 1.2, 0.7, 0.1], [0.5, 0.5, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
def test_best_of_n_equals_the_enumeration_of_all_draws(n: int, rewards: list[float]) -> None:
    """All A^n draws with their probability; a draw's best is one of its tied positions, uniformly."""
    reference = np.array([0.4, 0.0, 0.35, 0.25])
    expected = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        top = max(rewards[i] for i in draw)
        best = [i for i in draw if rewards[i] == top]
        for i in best:
            expected[i] += np.prod(reference[list(draw)]) / len(best)
    found = best_of_n_policy(np.array([rewards]), reference[None], n)
    assert found[0] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("n", [2, 16, 1000, 10**6])
def test_best_of_n_obeys_its_kl_bound_and_reaches_it_on_many_responses(n: int) -> None:
    """KL <= log n - (n - 1) / n; with 10^5 equal responses it is within 2 % for n = 16 and, control, not for A = 4.

    For large n over few responses KL stops at -log pi_ref(best), and small masses keep their digits.
    """
    bound = math.log(n) - (n - 1) / n
    kl = {}
    for arms in (4, 100_000):
        reference = np.full((1, arms), 1.0 / arms)
        policy = best_of_n_policy(np.arange(arms, dtype=float)[None], reference, n)
        problem = ContextualBandit(d0=[1.0], reference=reference)
        kl[arms] = policy_outcome(policy, problem, reference)["kl/reference"]
        assert kl[arms] <= bound + 1e-12
    if n == 16:
        assert kl[100_000] == pytest.approx(bound, rel=0.02) and kl[4] < 0.9 * bound
    if n >= 1000:
        assert kl[4] == pytest.approx(math.log(4), abs=1e-9)


def test_best_of_n_reports_its_exact_kl(problem: ContextualBandit, data: PreferenceCounts) -> None:
    result = solve(problem, data, BestOfN(8))
    p, q = result.policy, problem.reference
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = problem.d0 @ np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=1)
    assert result.evidence["kl/reference"] == pytest.approx(kl, abs=1e-12)
    assert kl <= result.evidence["kl_bound"] == pytest.approx(math.log(8) - 7 / 8)


# --- chi-squared --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 20), min_size=2, max_size=6),
    st.floats(1e-3, 10),
    st.integers(0, 2**32 - 1),
)
def test_chi_squared_policy_against_brentq_on_u_plus_log_u(rewards: list[float], beta: float, seed: int) -> None:
    """phi^-1(y) by its own root finding in log u (e^t + t = y), Z by another brentq: nothing of the product's."""
    r = np.array(rewards)
    reference = np.random.default_rng(seed).dirichlet(np.ones(len(r)))

    def inverse_link(y: float) -> float:
        # e^t + t = y: t <= y, and t <= log y above one
        high = y if y < 1 else math.log(y)
        low = high - max(1.0, math.exp(min(high, 5.0)), y if y > 1 else 0.0)
        return math.exp(brentq(lambda t: math.exp(t) + t - y, low - 1, high + 1e-9, xtol=1e-15))

    def excess(z: float) -> float:
        return float(sum(p * inverse_link((v - z) / beta) for p, v in zip(reference, r, strict=True))) - 1.0

    z = brentq(excess, r.min() - beta * (1 + 1e-9), r.max() - beta * (1 - 1e-9), xtol=1e-14)
    expected = reference * [inverse_link((v - z) / beta) for v in r]
    policy = ChiSquaredKL().reply(r / beta, np.log(reference)).policy
    assert policy == pytest.approx(expected, abs=1e-8)
    shift = beta * (ChiSquaredKL().shift(r / beta, np.log(reference)) - 1.0)  # the link is u + log u - 1
    assert shift == pytest.approx(z, abs=1e-8 * max(1.0, beta))
    assert (policy <= reference * (1 + np.ptp(r) / beta) * (1 + 1e-9)).all()


def test_chi_squared_policy_maximises_its_regularised_value_over_a_grid() -> None:
    """<pi, r> - beta (chi2 / 2 + KL) with chi2 = E_ref[(pi / pi_ref - 1)^2], on 80,000 policies of three responses.

    The Gibbs policy of the same reward, the control, is visibly worse.
    """
    r, reference, beta = np.array([1.5, 0.7, 0.0]), np.array([0.1, 0.3, 0.6]), 0.4
    steps = np.arange(1, 400) / 400
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b < 1 - 1e-9])

    def value(p: Any) -> Any:
        u = p / reference
        return p @ r - beta * ((reference * (u - 1) ** 2).sum(axis=-1) / 2 + (p * np.log(u)).sum(axis=-1))

    policy = ChiSquaredKL().reply(r / beta, np.log(reference)).policy
    gibbs = reference * np.exp(r / beta)
    assert value(policy) >= value(grid).max() and value(policy) - value(grid).max() < 1e-4
    assert value(gibbs / gibbs.sum()) < value(policy) - 0.1


def test_chi_squared_po_minimises_the_clipped_loss_over_policies() -> None:
    """Its loss with the link and the clip, written out, is not bettered by 2,000 other policies of the class.

    At beta = 1/10 the most-favoured ratio is 1 + O(R / beta), where DPO's is exponential.
    """
    g = np.random.default_rng(0)
    problem = ContextualBandit(d0=[1.0], reference=[[0.2, 0.3, 0.5]], reward_bound=1.0)
    data = PreferenceCounts.from_wins([[[0, 5, 6], [2, 0, 4], [1, 3, 0]]])
    result = solve(problem, data, ChiSquaredPO(0.1))

    def loss(policy: Any) -> float:
        u = policy / problem.reference[0]
        h = 0.1 * (u + np.log(u))
        return float(data.weights @ np.logaddexp(0, -np.clip(h[data.chosen] - h[data.rejected], -2.0, 2.0)))

    others = ChiSquaredKL().reply(g.uniform(0, 1, (2_000, 3)) / 0.1, np.log(problem.reference)).policy
    best = min(loss(p) for p in others)
    assert loss(result.policy[0]) <= best <= loss(result.policy[0]) + 1e-2
    assert 1 < result.evidence["largest_ratio"] <= 1 + 1.0 / 0.1
    assert result.evidence["largest_margin"] <= 1.0 and result.evidence["clip"] == 2.0


def test_chi_squared_po_says_so_where_the_clip_would_act() -> None:
    """Won 99 of 100: margin ln 99 = 4.6 without a class, over 2 R = 2; with a clip of 5 there is nothing to say."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    data = PreferenceCounts.from_wins([[[0, 99], [1, 0]]])
    over = solve(problem, data, ChiSquaredPO(0.5, Unconstrained()))
    assert over.status == "inaccurate" and over.message.startswith("The clip would act")
    assert solve(problem, data, ChiSquaredPO(0.5, Unconstrained(), clip=5.0)).status == "certified"


# --- pessimistic maximum likelihood -------------------------------------------------------------------------


def worst_value(policy: Any, phi: Any, theta: Any, gram: Any, radius: float, anchor: Any, weights: Any) -> float:
    """<u, theta> - radius sqrt(u' gram^-1 u), u = sum_x d_x (pi - anchor) phi, in loops and an explicit inverse."""
    u = np.zeros(phi.shape[2])
    for x, a in itertools.product(range(phi.shape[0]), range(phi.shape[1])):
        u += weights[x] * (policy[x, a] - anchor[x, a]) * phi[x, a]
    return float(u @ theta - radius * math.sqrt(u @ np.linalg.inv(gram) @ u))


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_pessimistic_mle_beats_a_simplex_grid(make_bandit: Make, seed: int, radius: float) -> None:
    """Linear ball, three responses, v = chosen: no policy of a grid of 20,000 is better; its value is the one reported.

    The adversary's theta is inside the ellipsoid, and random thetas on its surface are no worse for the policy.
    """
    problem = make_bandit(seed, prompts=1, arms=3, dim=2)
    data = problem.sample_preferences(80, rng=seed)
    assert problem.features is not None
    ball = LinearBall(problem.features, 2.0)
    result = solve(problem, data, PessimisticMLE(ball, radius=radius, ridge=0.02))
    fitted = maximum_likelihood(problem, data, reward_class=ball)
    theta, anchor = ball.parameters(fitted.reward), data.response_frequencies("chosen")
    gram = 0.02 * np.eye(2)
    for w, lost, n in zip(data.chosen, data.rejected, data.count, strict=True):
        step = problem.features[0, w] - problem.features[0, lost]
        gram += n / data.n * np.outer(step, step)
    arguments = (problem.features, theta, gram, radius, anchor, np.ones(1))
    steps = np.arange(201) / 200
    grid = [np.array([[a, b, 1 - a - b]]) for a in steps for b in steps if a + b <= 1 + 1e-12]
    best = max(worst_value(p, *arguments) for p in grid)
    mine = worst_value(result.policy, *arguments)
    assert result.status == "certified" and mine == pytest.approx(result.evidence["worst_case_value"], abs=1e-9)
    assert best - 1e-7 <= mine <= best + 0.02
    game = EllipticGame(phi=problem.features, theta=theta, gram=gram, radius=radius, d=np.ones(1), anchor=anchor)
    _, worst = game.lower(result.policy)
    assert (worst - theta) @ gram @ (worst - theta) <= radius**2 * (1 + 1e-9)
    directions = np.random.default_rng(0).normal(size=(500, 2))
    surface = theta + radius * directions / np.sqrt(np.einsum("kd,de,ke->k", directions, gram, directions))[:, None]
    assert (surface @ game.direction(result.policy)).min() >= mine - 1e-9
    if radius == 0.0:
        assert result.policy == pytest.approx(solve(problem, data, Greedy(ball)).policy, abs=1e-6)


def test_pessimistic_mle_on_a_table_of_two_prompts_against_scipy(
    problem: ContextualBandit, data: PreferenceCounts
) -> None:
    """Indicator features, softmax policies by L-BFGS from five starts; the certificate's upper value holds."""
    result = solve(problem, data, PessimisticMLE(radius=0.3))
    phi = np.eye(8).reshape(2, 4, 8)
    gram = covariance(phi, data) + np.eye(8) / data.n
    theta = maximum_likelihood(problem, data).reward.ravel()
    anchor, d = data.response_frequencies("chosen"), data.prompt_frequencies

    def loss(logits: Any) -> float:
        p = np.exp(logits.reshape(2, 4) - logits.reshape(2, 4).max(axis=1, keepdims=True))
        return -worst_value(p / p.sum(axis=1, keepdims=True), phi, theta, gram, 0.3, anchor, d)

    starts = np.random.default_rng(0).normal(size=(5, 8))
    best = -min(minimize(loss, start, method="L-BFGS-B").fun for start in starts)
    value = result.evidence["worst_case_value"]
    assert value >= best - 1e-6 and value + result.evidence["gap"] >= best and value == pytest.approx(best, abs=1e-3)


def test_pessimistic_mle_uses_the_papers_radius_and_a_given_one_replaces_it(
    problem: ContextualBandit, data: PreferenceCounts
) -> None:
    """D = 8, N = 200, R = 2: gamma = sigma(2) sigma(-2); B = 1 * sqrt(8); lambda = 1/200; delta = 0.05, C = 1."""
    found = solve(problem, data, PessimisticMLE()).evidence
    gamma = expit(2.0) * expit(-2.0)
    assert found["gamma"] == pytest.approx(gamma, rel=1e-12)
    assert found["radius"] == pytest.approx(math.sqrt((8 + math.log(20)) / (gamma**2 * 200) + 8 / 200), rel=1e-12)
    assert solve(problem, data, PessimisticMLE(scale=0.5)).evidence["radius"] == pytest.approx(found["radius"] / 2)
    assert solve(problem, data, PessimisticMLE(radius=0.7)).evidence["radius"] == 0.7


def test_pessimistic_mle_with_a_huge_radius_imitates_its_reference_vector(
    problem: ContextualBandit, data: PreferenceCounts
) -> None:
    """Nothing is then worth leaving pi_v for; with a small radius it leaves."""
    base = np.array([[0.1, 0.2, 0.3, 0.4]] * 2)
    far = solve(problem, data, PessimisticMLE(radius=50.0, base_policy=base))
    assert far.policy == pytest.approx(base, abs=1e-5)
    near = solve(problem, data, PessimisticMLE(radius=0.05, base_policy=base))
    assert np.abs(near.policy - base).max() > 0.3 and near.evidence["worst_case_value"] > 0


# --- ensembles ----------------------------------------------------------------------------------------------


def test_combinations_by_hand() -> None:
    """Rewards 1, 3 and 2, 2: means 2, 2; least 1, 2; variances 1, 0, so mean - 2 variance is 0, 2."""
    rewards = np.array([[[1.0, 2.0]], [[3.0, 2.0]]])
    assert (combine(rewards, "mean", 9.0) == [[2.0, 2.0]]).all()
    assert (combine(rewards, "worst", 9.0) == [[1.0, 2.0]]).all()
    assert (combine(rewards, "variance", 2.0) == [[0.0, 2.0]]).all()


def test_bootstrap_keeps_the_size_and_has_multinomial_moments(data: PreferenceCounts) -> None:
    """Over 400 replicates each count's mean is within 5 standard errors, sqrt(N w (1 - w) / 400)."""
    g = np.random.default_rng(0)
    tables = np.array([bootstrap(data, g).wins() for _ in range(400)])
    assert (tables.sum(axis=(1, 2, 3)) == data.n).all()
    share = data.wins() / data.n
    error = np.sqrt(data.n * share * (1 - share) / 400)
    assert (np.abs(tables.mean(axis=0) - data.wins()) <= 5 * error + 1e-12).all()
    assert tables.std(axis=0).max() > 1.0


@pytest.mark.parametrize("how", ["mean", "worst", "variance"])
def test_ensemble_equals_replicates_solved_by_hand(problem: ContextualBandit, data: PreferenceCounts, how: str) -> None:
    """Each spawned generator's replicate, its plug-in reward centred on the chosen, combined, softmax."""
    result = solve(problem, data, RewardEnsemble(0.4, size=4, how=how, penalty=2.0), rng=7)
    base, rewards = data.response_frequencies("chosen"), []
    for child in np.random.default_rng(7).spawn(4):
        r = solve(problem, bootstrap(data, child), PlugIn(0.4)).reward
        assert r is not None
        rewards.append(r - (base * r).sum(axis=1, keepdims=True))
    stack = np.array(rewards)
    combined = {"mean": stack.mean(0), "worst": stack.min(0), "variance": stack.mean(0) - 2.0 * stack.var(0)}[how]
    weights = problem.reference * np.exp(combined / 0.4)
    assert result.policy == pytest.approx(weights / weights.sum(axis=1, keepdims=True), abs=1e-12)
    assert (
        solve(problem, data, RewardEnsemble(0.4, size=4, how=how, penalty=2.0), rng=7).policy == result.policy
    ).all()
    other = solve(problem, data, RewardEnsemble(0.4, size=4, how=how, penalty=2.0), rng=8).policy
    assert not np.allclose(other, result.policy)


def test_a_worst_case_or_a_penalty_never_raises_the_reward(problem: ContextualBandit, data: PreferenceCounts) -> None:
    found = {how: solve(problem, data, RewardEnsemble(0.4, how=how), rng=1).reward for how in ("mean", "worst")}
    free = solve(problem, data, RewardEnsemble(0.4, how="variance", penalty=0.0), rng=1).reward
    assert found["mean"] is not None and found["worst"] is not None and free is not None
    assert (found["worst"] <= found["mean"] + 1e-12).all() and (found["worst"] < found["mean"] - 1e-3).any()
    assert (free == found["mean"]).all()


# --- reference and base -------------------------------------------------------------------------------------


def test_reference_and_base_by_hand(problem: ContextualBandit) -> None:
    wins = np.zeros((2, 4, 4))
    wins[0, 0, 1], wins[0, 2, 1], wins[1, 3, 0] = 3, 1, 5
    data = PreferenceCounts.from_wins(wins)
    assert (solve(problem, data, ReferencePolicy()).policy == problem.reference).all()
    chosen = solve(problem, data, BasePolicy()).policy
    assert chosen == pytest.approx(np.array([[0.75, 0, 0.25, 0], [0, 0, 0, 1.0]]))
    assert solve(problem, data, BasePolicy("rejected")).policy[0] == pytest.approx([0, 1.0, 0, 0])


# --- what must not matter -----------------------------------------------------------------------------------


def small(seed: int, bound: float = 2.0) -> tuple[ContextualBandit, PreferenceCounts]:
    """Two prompts, four responses, every pair compared, so that the likelihood's maximum is unique."""
    g = np.random.default_rng(seed)
    problem = ContextualBandit(
        d0=g.dirichlet(np.full(2, 5.0)),
        reference=g.dirichlet(np.full(4, 2.0), size=2),
        reward=g.uniform(0, bound, size=(2, 4)),
        reward_bound=bound,
    )
    wins = g.integers(1, 30, size=(2, 4, 4)).astype(float) * (1 - np.eye(4))
    return problem, PreferenceCounts.from_wins(wins)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_permuting_responses_permutes_the_policy(seed: int, order: list[int]) -> None:
    """Control: unless the order is the identity, the policies as they stand differ for pi_ref at least.

    The cone program's value is within 1e-7, which fixes its policy to the root of that.
    """
    problem, data = small(seed)
    moved = ContextualBandit(
        d0=problem.d0, reference=problem.reference[:, order], reward=problem.true_reward()[:, order], reward_bound=2.0
    )
    wins = data.wins()[:, order][:, :, order]
    for method in [*EXACT, METHODS[4]]:
        policy = solve(problem, data, method).policy
        again = solve(moved, PreferenceCounts.from_wins(wins), method).policy
        assert again == pytest.approx(policy[:, order], abs=1e-3 if method is METHODS[4] else 1e-6), method.label
    if order != sorted(order):
        assert not np.allclose(problem.reference, moved.reference)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_constant_per_prompt_changes_neither_draws_nor_policies(seed: int, first: float, second: float) -> None:
    """r* + c(x) draws the same counts and the same policies; only gold moves, by E[c]. Control: scaling r* matters."""
    problem, _ = small(seed)
    base, shift = 0.5 * problem.true_reward(), np.array([[first], [second]])
    made = [
        ContextualBandit(d0=problem.d0, reference=problem.reference, reward=r, reward_bound=2.0)
        for r in (base, base + shift, 2.0 * base)
    ]
    # Win probabilities agree to rounding, so the binomials agree unless a uniform falls in that sliver.
    data = [p.sample_preferences(500, rng=seed) for p in made]
    assert made[0].preference_probability() == pytest.approx(made[1].preference_probability(), abs=1e-12)
    assert (data[0].wins() == data[1].wins()).all()
    for method in METHODS:
        one, two = (solve(p, d, method, rng=1).policy for p, d in zip(made[:2], data[:2], strict=True))
        assert (one == two).all()
        assert made[1].expected_reward(two) - made[0].expected_reward(one) == pytest.approx(
            float(problem.d0 @ shift[:, 0]), abs=1e-9
        )
        assert made[0].suboptimality(one) == pytest.approx(made[1].suboptimality(two), abs=1e-9)
    assert not np.allclose(made[2].preference_probability(), made[0].preference_probability())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_splitting_counts_changes_nothing(seed: int) -> None:
    """The same wins as single pairs in any order; as fractions of the same shares too, but for the radius' N.

    Control: moving one win to its loser changes the plug-in.
    """
    problem, data = small(seed)
    x, w, lost = data.to_pairs()
    order = np.random.default_rng(seed).permutation(len(x))
    split = PreferenceCounts.from_pairs(x[order], w[order], lost[order], num_prompts=2, num_responses=4)
    for method in METHODS:
        assert (solve(problem, data, method, rng=2).policy == solve(problem, split, method, rng=2).policy).all()
    tenfold = PreferenceCounts.from_wins(10 * data.wins())
    for method in EXACT:
        ten = solve(problem, tenfold, method).policy
        assert ten == pytest.approx(solve(problem, data, method).policy, abs=1e-7), method.label
    wins = data.wins()
    wins[0, 0, 1], wins[0, 1, 0] = wins[0, 0, 1] - 0.5, wins[0, 1, 0] + 0.5
    changed = solve(problem, PreferenceCounts.from_wins(wins), PlugIn(0.3, Unconstrained())).policy
    assert np.abs(changed - solve(problem, data, PlugIn(0.3, Unconstrained())).policy).max() > 1e-6


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: PlugIn(0.0), "beta"),
        (lambda: PlugIn(0.1, base="custom"), "base"),
        (lambda: BestOfN(0), "n"),
        (lambda: ChiSquaredPO(0.1, clip=-1.0), "clip"),
        (lambda: RewardEnsemble(0.1, how="median"), "how"),
        (lambda: RewardEnsemble(0.1, size=0), "size"),
        (lambda: RewardEnsemble(0.1, members="seeds"), "members"),
        (lambda: RewardEnsemble(0.1, ridge=0.0), "ridge"),
        (lambda: RewardEnsemble(0.1, scale=-1.0), "scale"),
        (lambda: RewardEnsemble(0.1, members="prior", reward_class=Box(1.0)), "reward_class"),
        (lambda: PessimisticMLE(delta=1.0), "delta"),
        (lambda: PessimisticMLE(ridge=0.0), "ridge"),
        (lambda: PessimisticMLE(Unconstrained()), "radius"),
        (lambda: BasePolicy("custom"), "base"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], Baseline], name: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        make()
    assert error.value.name == name


@pytest.mark.parametrize(
    "method", [method for method in METHODS if hasattr(method, "reward_class")], ids=lambda m: type(m).__name__
)
def test_a_function_for_a_reward_class_is_completed_by_simulate_alone(
    method: Baseline, problem: ContextualBandit, data: PreferenceCounts
) -> None:
    asked = dataclasses.replace(method, reward_class=len)
    with pytest.raises(InvalidArgument, match="^reward_class: expected .*, got <built-in function len>"):
        solve(problem, data, asked, rng=0)


def test_what_draws_needs_an_rng_and_unknown_options_are_refused(
    problem: ContextualBandit, data: PreferenceCounts
) -> None:
    with pytest.raises(InvalidArgument, match="rng"):
        solve(problem, data, RewardEnsemble(0.1))
    with pytest.raises(InvalidArgument, match="solver"):
        solve(instances.coverage_skew(rng=0), instances.coverage_skew(rng=0).sample_preferences(50, rng=0),
              PessimisticMLE(solver="nothing", radius=0.1))  # fmt: skip
