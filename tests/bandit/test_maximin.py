"""`solve`: 200 random instances certified, closed forms, the facts of theory.md section 3, invariances."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import rpo
from rpo import bandit
from rpo.bandit import instances, maximin, solve_batch
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution, solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.bandit.simulation import Maximin
from rpo.bandit.solver import certificate, newton, reward_side
from rpo.bandit.solver.certificate import Certificate, within_tolerance
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core.errors import InaccurateSolution, InvalidArgument, NoMinimizer
from rpo.core.objectives import DPO, RPO

INSTANCES = 200
RADIUS = 4.0


def random_instance(i: int, seed: np.random.SeedSequence) -> tuple[ContextualBandit, PreferenceCounts, RPO, Any]:
    """X 1-8, A 2-12, N 10-1e6, beta 0.02-1, eta 1e-3-1, R 0.5-3; class and base in turn and at random."""
    g = np.random.default_rng(seed)
    x, a, d = int(g.integers(1, 9)), int(g.integers(2, 13)), int(g.integers(1, 6))
    n, beta, eta = int(10 ** g.uniform(1, 6)), float(np.exp(g.uniform(np.log(0.02), 0))), float(10 ** g.uniform(-3, 0))
    phi, theta = g.normal(size=(x, a, d)), g.normal(size=d)
    reward = phi @ theta
    reward = reward - reward.min(axis=1, keepdims=True)
    reward = reward * (g.uniform(0.5, 3.0) / reward.max())
    problem = ContextualBandit(
        d0=g.dirichlet(np.ones(x)),
        reference=g.dirichlet(np.ones(a), size=x),
        reward=reward,
        features=phi,
        behavior=g.dirichlet(np.full(a, 2.0), size=x),
    )
    assert problem.reward_bound is not None
    radius = float(g.uniform(0.3, 2.0) * np.linalg.norm(theta))
    reward_class = [Unconstrained(), Box(problem.reward_bound), LinearBall(phi, radius)][i % 3]
    objective = RPO(beta=beta, eta=eta, base=["chosen", "reference"][int(g.integers(2))])
    return problem, problem.sample_preferences(n, rng=g), objective, reward_class


@pytest.fixture(scope="module")
def attempts() -> list[tuple[Saddle, Solution | NoMinimizer]]:
    """Return each instance's saddle with its solution or its refusal."""
    found: list[tuple[Saddle, Solution | NoMinimizer]] = []
    for i, seed in enumerate(np.random.SeedSequence(1).spawn(INSTANCES)):
        problem, data, objective, reward_class = random_instance(i, seed)
        saddle = build_saddle(problem, data, objective, reward_class)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InaccurateSolution)  # held against `status` below
            try:
                found.append((saddle, solve(problem, data, objective, reward_class=reward_class)))
            except NoMinimizer as refusal:
                found.append((saddle, refusal))
    return found


@pytest.fixture(scope="module")
def solutions(attempts: list[Any]) -> list[Solution]:
    return [outcome for _, outcome in attempts if isinstance(outcome, Solution)]


def test_at_least_150_instances_of_every_class_are_solved(solutions: list[Solution]) -> None:
    kinds = [type(s.reward_class).__name__ for s in solutions]
    assert len(solutions) >= 150
    assert min(kinds.count(k) for k in ("Unconstrained", "Box", "LinearBall")) >= 40


def test_every_solution_is_certified_by_its_own_dual_point(solutions: list[Solution]) -> None:
    for s in solutions:
        assert 0.0 <= s.certificate.relative_gap <= 1e-7


def test_every_solution_is_certified_by_the_policy_program(solutions: list[Solution]) -> None:
    """The dual point of the other program knows nothing of Newton's polish."""
    for s in solutions:
        assert s.program_certificate is not None
        assert np.isfinite(s.program_certificate.gap) and 0.0 <= s.program_certificate.relative_gap <= 1e-7


def test_reward_program_reaches_the_value_written_in_loops(solutions: list[Solution], upper_value: Any) -> None:
    for s in solutions:
        value = upper_value(s.saddle, s.reward)
        scale = max(1.0, abs(value))
        assert abs(s.programs["reward"]["value"] - value) <= 1e-7 * scale
        assert abs(s.certificate.reward_value - value) <= 1e-10 * scale


def test_policy_program_reaches_the_value_of_the_reward_program(solutions: list[Solution]) -> None:
    for s in solutions:
        scale = max(1.0, abs(s.certificate.reward_value))
        assert abs(s.programs["reward"]["value"] - s.programs["policy"]["value"]) <= 1e-7 * scale


def test_policy_is_certified_where_the_penalty_is_not_tiny(solutions: list[Solution]) -> None:
    """tv_bound <= 1e-3 for eta * beta >= 1e-3; elsewhere the status says which side of the tolerance it is."""
    heavy = [s for s in solutions if s.objective.sft_weight >= 1e-3]
    assert 60 < len(heavy) < len(solutions)
    assert all(s.certificate.tv_bound <= 1e-3 and s.status == "certified" for s in heavy)
    for s in solutions:
        good = s.certificate.relative_gap <= 1e-7 and s.certificate.tv_bound <= 1e-3
        assert s.status == ("certified" if good else "inaccurate")


def test_every_reward_is_a_member_and_every_policy_a_distribution(solutions: list[Solution]) -> None:
    for s in solutions:
        assert s.reward_class.contains(s.reward)
        assert s.policy.min() >= 0 and np.abs(s.policy.sum(axis=1) - 1).max() < 1e-12
        assert np.abs(np.exp(s.logps) - s.policy).max() < 1e-14


def test_refusals_are_confirmed_by_enumeration(attempts: list[Any]) -> None:
    """A direction d in {0,1}^A that the loss never pays for (test_existence.py) exists iff solve refused.

    The prompt and response the message names are those of such a direction: it is 0 there.
    """
    refused = 0
    for s, outcome in attempts:
        if not isinstance(s.reward_class, Unconstrained):
            assert isinstance(outcome, Solution)
            continue
        escapes: list[tuple[int, int]] = []
        for x in np.flatnonzero(s.d > 0):
            wins = [(w, k) for y, w, k in zip(s.prompt, s.chosen, s.rejected, strict=True) if y == x]
            d = np.array(list(itertools.product((0, 1), repeat=s.base.shape[1])), dtype=bool)
            ok = d[:, s.base[x] > 0].all(axis=1) & ~d.all(axis=1)
            for w, k in wins:
                ok &= d[:, w] >= d[:, k]
            escapes += [(int(x), int(a)) for a in np.flatnonzero((~d[ok]).any(axis=0))]
        assert isinstance(outcome, NoMinimizer) == bool(escapes)
        if escapes:
            refused += 1
            assert any(str(outcome).startswith(f"prompt {x}: response {a} has no mass") for x, a in escapes)
            assert "Use Box(R)" in str(outcome)
    assert refused >= 5


@pytest.mark.parametrize(("seed", "bound"), [(25, 20.0), (31, 20.0), (43, 20.0), (67, 20.0), (103, 20.0)])
def test_newton_alone_certifies_a_large_box_at_low_temperature(seed: int, bound: float) -> None:
    """From zero, without the programs' start: rewards of 20 over beta of about 0.01 saturate the softmax."""
    g = np.random.default_rng(seed)
    problem = instances.random(prompts=int(g.integers(1, 30)), arms=int(g.integers(2, 13)), rng=seed)
    data = problem.sample_preferences(int(10 ** g.uniform(1, 8)), rng=1)
    beta, eta = 10 ** g.uniform(-2.3, 0), 10 ** g.uniform(-4, 0)
    objective = RPO(beta=beta, eta=eta, base=("chosen", "reference")[seed % 2])
    assert solve(problem, data, objective, reward_class=Box(bound), method="newton").status == "certified"


def two_armed(n0: float, n1: float) -> PreferenceCounts:
    return PreferenceCounts.from_wins([[[0.0, n0], [n1, 0.0]]])


TWO_ARMS = {"d0": [1.0], "reference": [[0.5, 0.5]], "reward_bound": 9.0}


@pytest.mark.parametrize("method", ["programs", "newton"])
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5, 3.0])
@pytest.mark.parametrize("base", [0.3, 0.9])
def test_two_arms_in_closed_form(method: str, eta: float, base: float) -> None:
    """beta = 1 and uniform pi_ref make pi(0) = sigmoid(z), z = r(0) - r(1), so with w the win rate of 0
    stationarity, -w (1 - pi) + (1 - w) pi + eta (pi - b) = 0, gives pi = (w + eta b) / (1 + eta).

    The loss there is -w log pi - (1 - w) log(1 - pi) - eta (b log pi + (1 - b) log(1 - pi)).
    """
    w, problem, base_policy = 0.6, ContextualBandit(**TWO_ARMS), [[base, 1 - base]]
    solution = solve(
        problem, two_armed(6, 4), RPO(beta=1.0, eta=eta, base="custom"), reward_class=Unconstrained(),
        base_policy=base_policy, method=method,
    )  # fmt: skip
    pi = (w + eta * base) / (1 + eta)
    assert solution.policy[0] == pytest.approx([pi, 1 - pi], abs=1e-9)
    loss = -w * math.log(pi) - (1 - w) * math.log(1 - pi)
    loss -= eta * (base * math.log(pi) + (1 - base) * math.log(1 - pi))
    assert solution.loss == pytest.approx(loss, abs=1e-12)
    assert not solution.active


def test_two_arms_in_a_box_stop_at_its_wall() -> None:
    """Unconstrained log-odds ln(0.9/0.1) = ln 9; in Box(ln 3) they are ln 3, in Box(ln 10) they are ln 9."""
    problem, objective = ContextualBandit(**TWO_ARMS), RPO(beta=1.0, eta=0.2)
    tight = solve(problem, two_armed(9, 1), objective, reward_class=Box(math.log(3)))
    loose = solve(problem, two_armed(9, 1), objective, reward_class=Box(math.log(10)))
    assert tight.policy[0] == pytest.approx([0.75, 0.25], abs=1e-12) and tight.active
    assert loose.policy[0] == pytest.approx([0.9, 0.1], abs=1e-9) and not loose.active


def test_two_arms_on_a_ball_stop_at_its_radius() -> None:
    """Features (1, 0) and (0, 1) with ||theta|| <= rho: at most z = sqrt(2) rho, at theta = (rho, -rho)/sqrt 2."""
    problem, objective = ContextualBandit(**TWO_ARMS), RPO(beta=1.0, eta=0.2)
    tight = solve(problem, two_armed(9, 1), objective, reward_class=LinearBall(np.eye(2)[None], math.log(3) / 2**0.5))
    loose = solve(problem, two_armed(9, 1), objective, reward_class=LinearBall(np.eye(2)[None], math.log(10)))
    assert tight.policy[0] == pytest.approx([0.75, 0.25], abs=1e-9) and tight.active
    assert tight.reward[0] == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-9)
    assert loose.policy[0] == pytest.approx([0.9, 0.1], abs=1e-8) and not loose.active


@pytest.mark.parametrize("seed", range(3))
def test_box_solution_agrees_with_lbfgsb_on_the_formula(
    make_bandit: Callable[..., ContextualBandit], upper_value: Callable[..., float], seed: int
) -> None:
    """L-BFGS-B, differences for gradients, on the value of theory.md written out in conftest."""
    problem = make_bandit(seed, prompts=2, arms=3, bound=1.0)
    data = problem.sample_preferences(40, rng=seed)
    solution = solve(problem, data, RPO(beta=0.5, eta=0.3, base=("chosen", "reference", "responses")[seed]))
    s = solution.saddle
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000}
    found = minimize(
        lambda r: upper_value(s, r.reshape(2, 3)), np.full(6, 0.5), method="L-BFGS-B", bounds=[(0, 1)] * 6,
        options=options,
    )  # fmt: skip
    assert solution.certificate.reward_value == pytest.approx(found.fun, abs=1e-8)
    weights = problem.reference * np.exp(found.x.reshape(2, 3) / 0.5)
    assert solution.policy == pytest.approx(weights / weights.sum(axis=1, keepdims=True), abs=1e-4)


def test_methods_and_starts_agree(make_bandit: Callable[..., ContextualBandit]) -> None:
    problem = make_bandit(3, prompts=3, arms=5, dim=3)
    data = problem.sample_preferences(80, rng=0)
    for reward_class in (Box(1.0), LinearBall(problem.features, 0.7), Unconstrained()):
        objective = RPO(beta=0.2, eta=0.1, base="reference")
        first = solve(problem, data, objective, reward_class=reward_class)
        start = np.random.default_rng(0).uniform(0, 1, size=(3, 5))
        for more in ({}, {"start": start}):
            other = solve(problem, data, objective, reward_class=reward_class, method="newton", **more)
            assert other.policy == pytest.approx(first.policy, abs=1e-7)
            assert other.programs == {} and other.program_certificate is None
        assert set(first.programs) == {"reward", "policy"}


def two_components() -> tuple[ContextualBandit, PreferenceCounts, list[list[int]]]:
    """Two prompts; 0-1-2 are compared, 3-4 are, 5 never: wins both ways, so every minimiser exists."""
    g = np.random.default_rng(5)
    wins = np.zeros((2, 6, 6))
    for i, j in ((0, 1), (1, 2), (0, 2), (3, 4)):
        wins[:, i, j], wins[:, j, i] = g.integers(5, 30, size=2), g.integers(5, 30, size=2)
    problem = ContextualBandit(
        d0=[0.5, 0.5],
        reference=g.dirichlet(np.full(6, 3.0), size=2),
        reward_bound=3.0,
        features=g.normal(size=(2, 6, 9)),
    )
    return problem, PreferenceCounts.from_wins(wins), [[0, 1, 2], [3, 4], [5]]


@pytest.mark.parametrize(("beta", "eta"), [(0.1, 0.05), (1.0, 0.5), (0.3, 0.005)])
def test_unseen_responses_keep_the_base_probability_and_components_its_mass(beta: float, eta: float) -> None:
    """Fact 1, for any beta and eta. Control: an active box breaks it; so does DPO's data within a component."""
    problem, data, components = two_components()
    base = np.random.default_rng(0).dirichlet(np.ones(6), size=2)
    objective = RPO(beta=beta, eta=eta, base="custom")
    free = solve(problem, data, objective, reward_class=Unconstrained(), base_policy=base)
    assert free.policy[:, 5] == pytest.approx(base[:, 5], abs=1e-6)
    for group in components:
        assert free.policy[:, group].sum(axis=1) == pytest.approx(base[:, group].sum(axis=1), abs=1e-9)
    assert np.abs(free.policy - base).max() > 0.02
    boxed = solve(problem, data, objective, reward_class=Box(0.05), base_policy=base)
    assert boxed.active and np.abs(boxed.policy[:, 5] - base[:, 5]).max() > 0.01


def test_policy_tends_to_that_of_dpo_as_eta_vanishes() -> None:
    """On a connected graph the distance is of first order in eta: a hundred times less at each step."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.2, 0.3, 0.5]], reward_bound=3.0)
    data = PreferenceCounts.from_wins([[[0, 7, 5], [4, 0, 6], [3, 9, 0]]])
    unconstrained = Unconstrained()
    dpo = solve(problem, data, DPO(beta=0.4), reward_class=unconstrained).policy
    distance = [
        np.abs(solve(problem, data, RPO(beta=0.4, eta=eta), reward_class=unconstrained).policy - dpo).sum() / 2
        for eta in (1e-2, 1e-4, 1e-6)
    ]
    assert distance[0] > 1e-4
    assert distance[0] / distance[1] == pytest.approx(100, rel=0.1)
    assert distance[1] / distance[2] == pytest.approx(100, rel=0.1)


def test_penalty_at_the_reference_base_is_a_kl_divergence(make_bandit: Callable[..., ContextualBandit]) -> None:
    """Fact 2: E_ref[-log pi] - KL(pi_ref || pi) is the entropy for all pi; for pi_base = chosen it varies."""
    problem = make_bandit(4, prompts=3, arms=4)
    data = problem.sample_preferences(50, rng=0)
    rng = np.random.default_rng(0)

    def left(base: str) -> Any:
        s = build_saddle(problem, data, RPO(beta=0.5, eta=0.2, base=base), Unconstrained())
        rest = []
        for policy in rng.dirichlet(np.ones(4), size=(20, 3)):
            kl = (problem.reference * np.log(problem.reference / policy)).sum(axis=1)
            loss, terms = s.loss(np.log(policy))
            assert loss - terms.preference == pytest.approx(0.1 * terms.sft, rel=1e-9)
            rest.append(terms.sft - s.d @ kl)
        return np.ptp(rest)

    assert left("reference") < 1e-12
    assert left("chosen") > 0.1


def classes(problem: ContextualBandit) -> list[Any]:
    return [Unconstrained(), Box(0.6), LinearBall(problem.features, 0.6)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_renaming_responses_and_prompts_renames_the_solution(
    make_bandit: Callable[..., ContextualBandit], which: int
) -> None:
    """Control: renaming the data but not the problem gives something else."""
    problem = make_bandit(6, prompts=3, arms=4, dim=3)
    data = problem.sample_preferences(60, rng=0)
    assert problem.features is not None
    objective = RPO(beta=0.3, eta=0.1, base="reference")
    policy = solve(problem, data, objective, reward_class=classes(problem)[which], method="newton").policy
    rows, columns = np.array([2, 0, 1]), np.array([1, 3, 0, 2])
    pick = np.ix_(rows, columns)
    renamed = ContextualBandit(
        d0=problem.d0[rows], reference=problem.reference[pick], features=problem.features[pick], reward_bound=2.0
    )
    wins = PreferenceCounts.from_wins(data.wins()[np.ix_(rows, columns, columns)])
    again = solve(renamed, wins, objective, reward_class=classes(renamed)[which]).policy
    assert again == pytest.approx(policy[pick], abs=1e-7)
    mixed = solve(problem, wins, objective, reward_class=classes(problem)[which], method="newton").policy
    assert np.abs(mixed - policy[pick]).max() > 1e-3


def test_a_shift_of_the_reward_of_a_prompt_matters_only_to_a_bounded_class(
    make_bandit: Callable[..., ContextualBandit],
) -> None:
    """Value, policy and unconstrained gap ignore r + c(x); the gap of the box does not."""
    problem = make_bandit(7, prompts=3, arms=4)
    data = problem.sample_preferences(60, rng=0)
    rng = np.random.default_rng(0)
    reward, shift = rng.uniform(0, 0.5, size=(3, 4)), rng.uniform(0, 0.5, size=(3, 1))
    objective = RPO(beta=0.3, eta=5.0, base="reference")
    free, box = (build_saddle(problem, data, objective, c) for c in (Unconstrained(), Box(1.0)))
    assert free.reward_side(reward + shift) == pytest.approx(free.reward_side(reward), abs=1e-13)
    assert free.gibbs(reward + shift) == pytest.approx(free.gibbs(reward), abs=1e-14)
    gaps = [[maximin.certify(s, r).gap for r in (reward, reward + shift)] for s in (free, box)]
    assert gaps[0][1] == pytest.approx(gaps[0][0], abs=1e-13) and np.isfinite(gaps[0][0])
    # sum_a g(x, a) = 0, so S_R(g) - <g, r> moves only through r leaving or nearing the walls: it does not.
    assert gaps[1][1] == pytest.approx(gaps[1][0], abs=1e-13)
    other = maximin.certify(box, reward + 0.5 * (np.arange(4) == 0))
    assert other.gap != pytest.approx(gaps[1][0], abs=1e-3)
    with pytest.raises(InvalidArgument, match=r"^reward: expected a member of Box\(bound=1.0\)"):
        maximin.certify(box, reward + 3.0 * (np.arange(4) == 0))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_responses_without_reference_mass_are_as_good_as_deleted(
    make_bandit: Callable[..., ContextualBandit], which: int
) -> None:
    problem = make_bandit(8, prompts=2, arms=3, dim=2)
    data = problem.sample_preferences(60, rng=0)
    assert problem.features is not None
    wide = np.array([0, 2, 3])
    reference, features, wins = np.zeros((2, 4)), np.full((2, 4, 2), 7.0), np.zeros((2, 4, 4))
    reference[:, wide], features[:, wide] = problem.reference, problem.features
    wins[np.ix_([0, 1], wide, wide)] = data.wins()
    bigger = ContextualBandit(d0=problem.d0, reference=reference, features=features, reward_bound=2.0)
    objective = RPO(beta=0.3, eta=0.1, base="reference")
    small = solve(problem, data, objective, reward_class=classes(problem)[which])
    large = solve(bigger, PreferenceCounts.from_wins(wins), objective, reward_class=classes(bigger)[which])
    assert (large.policy[:, 1] == 0.0).all() and (large.logps[:, 1] == -np.inf).all()
    assert large.policy[:, wide] == pytest.approx(small.policy, abs=1e-8)
    assert large.certificate.reward_value == pytest.approx(small.certificate.reward_value, abs=1e-12)


@pytest.mark.parametrize("prompt_weights", ["data", "population"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_prompts_without_data_keep_the_reference_and_are_counted(
    make_bandit: Callable[..., ContextualBandit], prompt_weights: str, which: int
) -> None:
    """With a ball and population weights prompts are coupled, so only the tabular classes keep pi_ref there."""
    problem = make_bandit(9, prompts=3, arms=3, dim=3)
    wins = problem.sample_preferences(60, rng=0).wins()
    wins[1] = 0
    solution = solve(
        problem, PreferenceCounts.from_wins(wins), RPO(beta=0.3, eta=0.1), reward_class=classes(problem)[which],
        prompt_weights=prompt_weights,
    )  # fmt: skip
    assert solution.prompts_without_data == 1 and "1 prompt(s) without data" in solution.message
    if which != 2 or prompt_weights == "data":
        assert solution.policy[1] == pytest.approx(problem.reference[1], abs=1e-8)
    assert np.abs(solution.policy[0] - problem.reference[0]).max() > 1e-3
    wins[1, 0, 1] = wins[1, 1, 0] = 1
    full = solve(problem, PreferenceCounts.from_wins(wins), RPO(beta=0.3, eta=0.1), reward_class=Box(0.6))
    assert full.prompts_without_data == 0 and "without data" not in full.message


def test_prompt_weights_agree_iff_the_frequencies_do() -> None:
    """Ten pairs at each of two prompts: equal for d0 = (1/2, 1/2), different for d0 = (1/5, 4/5)."""
    wins = np.zeros((2, 2, 2))
    wins[:, 0, 1], wins[:, 1, 0] = [7, 4], [3, 6]

    def policy(d0: list[float], weights: str) -> Any:
        problem = ContextualBandit(d0=d0, reference=[[0.5, 0.5], [0.3, 0.7]], reward_bound=3.0)
        objective = RPO(beta=0.4, eta=0.5, base="reference")
        return solve(problem, PreferenceCounts.from_wins(wins), objective, prompt_weights=weights).policy

    assert policy([0.5, 0.5], "population") == pytest.approx(policy([0.5, 0.5], "data"), abs=1e-9)
    assert np.abs(policy([0.2, 0.8], "population") - policy([0.2, 0.8], "data")).max() > 0.01
    assert (policy([0.2, 0.8], "data") == policy([0.5, 0.5], "data")).all()


def limit_distance(reward_class: Any, eta: float) -> tuple[float, Solution]:
    problem, data, _ = two_components()
    base = np.random.default_rng(0).dirichlet(np.ones(6), size=2)
    kinds = {"reward_class": reward_class, "base_policy": base, "method": "newton"}
    zero = solve(problem, data, RPO(beta=0.5, eta=0.0, base="custom"), **kinds)
    near = solve(problem, data, RPO(beta=0.5, eta=eta, base="custom"), **kinds)
    return float((zero.saddle.d @ np.abs(zero.policy - near.policy).sum(axis=1)) / 2), zero


@pytest.mark.parametrize("kind", ["unconstrained", "box", "tight box", "ball"])
def test_eta_zero_is_the_limit_of_small_eta_on_a_disconnected_graph(kind: str) -> None:
    """The data leave the level of each component free; the limit picks the most pessimistic.

    Control: the minimiser nearest to zero, an equally good fit, is a different policy.
    """
    features = two_components()[0].features
    assert features is not None
    reward_class = {
        "unconstrained": Unconstrained(), "box": Box(3.0), "tight box": Box(0.8), "ball": LinearBall(features, RADIUS)
    }[kind]  # fmt: skip
    distance, zero = limit_distance(reward_class, 1e-6)
    assert distance < 1e-3
    assert limit_distance(reward_class, 3.0)[0] > 1e-2
    s = zero.saddle
    if kind == "unconstrained":
        for group in ([0, 1, 2], [3, 4], [5]):
            assert zero.policy[:, group].sum(axis=1) == pytest.approx(s.base[:, group].sum(axis=1), abs=1e-9)

    def likelihood(r: Any) -> float:
        return float(s.weights @ np.logaddexp(0.0, -s.margins(r)))

    def penalty(r: Any) -> float:
        scaled = np.exp(s.log_reference + r / 0.5).sum(axis=1)
        return float(s.d @ (-(s.base * r).sum(axis=1) + 0.5 * np.log(scaled)))

    # Another minimiser: move what no comparison sees, half way towards the middle of the class.
    if kind == "ball":
        seen = features[s.prompt, s.chosen] - features[s.prompt, s.rejected]
        project = np.linalg.pinv(seen) @ seen
        other = features @ (project @ LinearBall(features, RADIUS).parameters(zero.reward))
    else:
        level = np.zeros((2, 6))
        for group in ([0, 1, 2], [3, 4], [5]):
            part = zero.reward[:, group]
            low, high = part.min(axis=1, keepdims=True), part.max(axis=1, keepdims=True)
            level[:, group] = 0.0 if kind == "unconstrained" else (reward_class.bound - high - low) / 2
            level[:, group] -= part.mean(axis=1, keepdims=True) if kind == "unconstrained" else 0.0
        other = zero.reward + level
    assert zero.reward_class.contains(other)
    assert likelihood(other) == pytest.approx(likelihood(zero.reward), abs=1e-12)
    assert penalty(other) > penalty(zero.reward) + 1e-3
    assert np.abs(s.gibbs(other) - zero.policy).max() > 1e-2


def test_eta_zero_refuses_a_component_that_the_base_gives_no_mass() -> None:
    """Response 5 was never compared and never chosen: its most pessimistic reward is minus infinity."""
    problem, data, _ = two_components()
    with pytest.raises(NoMinimizer, match=r"prompt 0: at eta = 0 .* response 5's component free"):
        solve(problem, data, DPO(beta=0.5), reward_class=Unconstrained())
    with pytest.raises(NoMinimizer, match="prompt 0: response 5 has no mass"):
        solve(problem, data, RPO(beta=0.5, eta=1e-3), reward_class=Unconstrained())
    boxed = solve(problem, data, DPO(beta=0.5))
    assert (boxed.reward[:, 5] == 0.0).all()
    assert solve(problem, data, DPO(beta=0.5, base="reference"), reward_class=Unconstrained()).status == "certified"


@pytest.mark.parametrize("eta", [1e-3, 0.1, 1.0])
def test_active_says_whether_the_box_changes_the_policy(
    make_bandit: Callable[..., ContextualBandit], eta: float
) -> None:
    """Against a box of ten times the span of the free solution: both answers occur, each is right."""
    problem = make_bandit(10, prompts=2, arms=4)
    data = problem.sample_preferences(200, rng=0)
    objective = RPO(beta=0.5, eta=eta, base="reference")
    free = solve(problem, data, objective, reward_class=Unconstrained(), method="newton")
    span = float(np.ptp(free.reward, axis=1).max())
    assert not free.active
    for factor, binds in ((0.1, True), (0.5, True), (0.9, True), (1.1, False), (10.0, False)):
        boxed = solve(problem, data, objective, reward_class=Box(factor * span), method="newton")
        assert boxed.active == binds
        assert (np.abs(boxed.policy - free.policy).max() > 1e-6) == binds
        assert (boxed.multiplier > 1e-8) == binds


def test_active_does_not_depend_on_the_size_of_eta() -> None:
    """Response 2 is unseen and not in the base: every box pins it, at eta = 1e-8 as at eta = 1e-3."""
    problem = ContextualBandit(d0=[1.0], reference=[[1 / 3] * 3], reward_bound=2.0)
    data = PreferenceCounts.from_wins([[[0, 60, 0], [40, 0, 0], [0, 0, 0]]])
    for eta in (1e-3, 1e-8):
        objective = RPO(beta=0.5, eta=eta)
        small, large = (solve(problem, data, objective, reward_class=Box(b), method="newton") for b in (1.0, 4.0))
        assert np.abs(small.policy - large.policy).max() > 0.05
        assert small.active


def test_a_class_in_place_of_an_objective_is_refused(make_bandit: Callable[..., ContextualBandit]) -> None:
    problem = make_bandit(11, prompts=2, arms=3, dim=2)
    with pytest.raises(InvalidArgument, match=r"^objective: .*got the class RPO. Call it: RPO\(...\)"):
        solve(problem, problem.sample_preferences(20, rng=0), RPO)  # type: ignore[call-overload]


def test_refusals_name_the_argument_and_the_remedy(make_bandit: Callable[..., ContextualBandit]) -> None:
    problem = make_bandit(11, prompts=2, arms=3, dim=2)
    data = problem.sample_preferences(20, rng=0)
    objective = RPO(beta=0.5, eta=0.1)
    real = ContextualBandit(d0=problem.d0, reference=problem.reference)
    with pytest.raises(InvalidArgument, match=r"^reward_class: .*reward_bound is unknown.*Pass Box\(R\)"):
        solve(real, data, objective)
    with pytest.raises(InvalidArgument, match=r"^method: expected one of 'programs', 'newton'"):
        solve(problem, data, objective, method="magic")
    with pytest.raises(InvalidArgument, match=r"^prompt_weights: expected one of 'data', 'population'"):
        solve(problem, data, objective, prompt_weights="uniform")
    with pytest.raises(InvalidArgument, match=r"^base_policy: .*exactly when objective.base is 'custom'"):
        solve(problem, data, objective, base_policy=problem.reference)
    with pytest.raises(InvalidArgument, match=r"^base_policy: .*exactly when objective.base is 'custom'"):
        solve(problem, data, RPO(beta=0.5, eta=0.1, base="custom"))
    with pytest.raises(InvalidArgument, match=r"^base_policy: .*sum to one"):
        solve(problem, data, RPO(beta=0.5, eta=0.1, base="custom"), base_policy=2 * problem.reference)
    with pytest.raises(InvalidArgument, match=r"^data: expected counts over 2 prompts and 3 responses"):
        solve(problem, PreferenceCounts.from_pairs([0], [0], [1], num_prompts=2, num_responses=2), objective)
    with pytest.raises(InvalidArgument, match=r"^reward_class\.features: expected shape \(2, 3, any\)"):
        solve(problem, data, objective, reward_class=LinearBall(np.ones((1, 3, 2)), 1.0))


@pytest.mark.parametrize("start", [np.zeros((3, 3)), np.full((2, 3), np.nan)])
def test_bad_start_is_refused_by_name(make_bandit: Callable[..., ContextualBandit], start: Any) -> None:
    problem = make_bandit(11, prompts=2, arms=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidArgument, match=r"^start: expected"):
            solve(problem, problem.sample_preferences(20, rng=0), RPO(beta=0.5, eta=0.1), method="newton", start=start)


def test_unknown_solver_is_refused_by_name(make_bandit: Callable[..., ContextualBandit]) -> None:
    problem = make_bandit(11, prompts=2, arms=3)
    with pytest.raises(InvalidArgument, match=r"^solver: expected"):
        solve(problem, problem.sample_preferences(20, rng=0), RPO(beta=0.5, eta=0.1), solver="NOPE")


def test_mass_outside_the_support_of_the_reference_is_refused_by_name() -> None:
    """In the data (response 2 of prompt 0) and in pi_base."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5, 0.0]], reward_bound=1.0)
    inside = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=3)
    for chosen, rejected, name in ((2, 0, "chosen"), (0, 2, "rejected")):
        data = PreferenceCounts.from_pairs([0], [chosen], [rejected], num_prompts=1, num_responses=3)
        with pytest.raises(InvalidArgument, match=rf"^data\.{name}: .*response 2 at prompt 0"):
            solve(problem, data, RPO(beta=0.5, eta=0.1))
    with pytest.raises(InvalidArgument, match=r"^base_policy: .*mass 0\.1"):
        solve(problem, inside, RPO(beta=0.5, eta=0.1, base="custom"), base_policy=[[0.5, 0.4, 0.1]])


@dataclass(frozen=True)
class Optimism:
    """Everything a solver reads of an objective, with XPO's sign of eta."""

    beta: float = 0.3
    eta: float = -0.3
    base: str = "reference"
    sft_reduction: str = "sequence_sum"
    sft_weight: float = -0.09

    def terms(self, margins: Any, base_logps: Any = None, weights: Any = None, base_weights: Any = None) -> Any:
        return RPO(beta=self.beta, eta=0.3).terms(margins, base_logps, weights, base_weights)

    def to_dict(self) -> dict[str, Any]:
        return {}


OTHERS = [Optimism(), RPO, None]
# The others take a preference objective with its own derivatives: tests/methods.
DOORS = ["batch", "simulate", "maximin", "solve", "newton", "certify", "fit", "rpo.fit"]


@pytest.mark.parametrize("objective", OTHERS, ids=str)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_objective_is_never_solved_as_if_it_were_one(door: str, objective: Any) -> None:
    """Each way in: none may answer, with a certificate least of all."""
    problem, data, _ = two_components()
    batch = {"reference": problem.reference, "reward_class": Box(1.0)}
    doors: dict[str, Callable[[], Any]] = {
        "solve": lambda: solve(problem, data, objective, reward_class=Box(1.0)),
        "newton": lambda: solve(problem, data, objective, reward_class=Unconstrained(), method="newton"),
        "batch": lambda: solve_batch(data.wins()[None], objective, **batch),
        "fit": lambda: bandit.fit(problem.softmax_policy(), data, objective),
        "rpo.fit": lambda: rpo.fit(problem.softmax_policy(), data, objective),
        "certify": lambda: certificate.certify(
            build_saddle(problem, data, objective, Box(1.0)), np.zeros(problem.reference.shape)
        ),
        "simulate": lambda: bandit.simulate("coverage_skew", [objective], {"n": [9]}, 1, rng=0),
        "maximin": lambda: bandit.simulate("coverage_skew", [Maximin(objective)], {"n": [9]}, 1, rng=0),
    }
    with pytest.raises(InvalidArgument, match=r"^(saddle\.)?(objective|methods)"):
        doors[door]()


@pytest.mark.parametrize("eta", [0.0, 0.1])
@pytest.mark.parametrize("beta", [5e-324, 1e-300, 1e-21, 1e-20, 1e-12, 1e12, 1e20, 1e21, 1e300])
def test_a_temperature_beyond_float64_is_refused_and_any_other_answered(beta: float, eta: float) -> None:
    """Squares of beta under- or overflow beyond. DPO tends to the best responses, and to pi_ref."""
    problem, data, _ = two_components()
    objective = RPO(beta=beta, eta=eta, base="reference")
    for reward_class in (Box(3.0), Unconstrained(), LinearBall(problem.features, 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InaccurateSolution)
            if not 1e-20 <= beta <= 1e20:
                with pytest.raises(InvalidArgument, match=r"^objective\.beta: expected a number between 1e-20"):
                    solve(problem, data, objective, reward_class=reward_class, method="newton")
                continue
            found = solve(problem, data, objective, reward_class=reward_class, method="newton")
        batch = solve_batch(data.wins()[None], objective, reference=problem.reference, reward_class=reward_class)
        for policy, reward in ((found.policy, found.reward), (batch.policy[0], batch.reward[0])):
            assert np.allclose(policy.sum(axis=1), 1.0) and (policy >= 0).all()
            if beta >= 1e12:
                assert np.allclose(policy, problem.reference)
            elif eta == 0 and isinstance(reward_class, Box):
                assert found.status == "certified"
                assert (policy * (reward.max(axis=1, keepdims=True) - reward)).max() < 1e-12
    with pytest.raises(InvalidArgument, match="^features: expected a largest entry between"):
        LinearBall(problem.features * 1e150, 1.0)


def test_another_reward_class_than_the_package_s_is_refused() -> None:
    """A subclass may widen the set; its support function would be the narrower one's."""
    problem, data, _ = two_components()
    wide = type("Wide", (Box,), {"contains": lambda self, reward: True})(1.0)
    for reward_class in (wide, Box, 3.0, "box"):
        with pytest.raises(InvalidArgument, match=r"^reward_class: expected Unconstrained\(\), Box\(R\), Intervals"):
            solve(problem, data, RPO(beta=0.5, eta=0.1), reward_class=reward_class)


def test_a_gap_below_zero_is_no_certificate() -> None:
    """What a wrong derivative or sign leaves: bounds that cross. Within rounding of zero it still certifies."""
    for gap, status in ((-0.05, "inaccurate"), (-1e-10, "inaccurate"), (-1e-15, "certified"), (np.nan, "inaccurate")):
        crossed = Certificate(1.0, kl_term=0.0, likelihood_term=gap, support_term=0.0, eta_beta=0.1)
        for objective in (RPO(beta=1.0, eta=0.1), DPO(beta=1.0)):
            verdict = maximin._verdict(crossed, objective, 0, "")
            assert verdict["status"] == status
            assert ("Not a proof" in verdict["message"]) == (gap < -1e-12)
            found = within_tolerance(np.array([gap, 0.0]), np.array([crossed.tv_bound, 0.0]), objective.eta)
            assert found.tolist() == [status == "certified", True]


@pytest.mark.parametrize(("name", "value"), [("RELATIVE_GAP", -1.0), ("TV_BOUND", -1.0)])
def test_solution_over_tolerance_is_flagged_and_warned_about(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    """With an impossible tolerance the same solution that was certified is not; it is still returned."""
    problem, objective = ContextualBandit(**TWO_ARMS), RPO(beta=1.0, eta=0.2)
    good = solve(problem, two_armed(6, 4), objective, method="newton")
    assert good.status == "certified" and good.message.startswith("Certified optimal")
    monkeypatch.setattr(certificate, name, value)
    with pytest.warns(InaccurateSolution, match="Over tolerance"):
        flagged = solve(problem, two_armed(6, 4), objective, method="newton")
    assert flagged.status == "inaccurate" and (flagged.policy == good.policy).all()


def test_solution_that_is_really_inaccurate_is_flagged() -> None:
    """eta * beta = 1e-12: a gap of one rounding error allows sqrt(1e-16 / 2e-12) = 0.7 % of total variation."""
    problem, data, _ = two_components()
    with pytest.warns(InaccurateSolution, match="Raise eta"):
        assert solve(problem, data, RPO(beta=1e-4, eta=1e-8), method="newton").status == "inaccurate"


def test_large_data_are_solved_by_newton_alone_and_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distinct comparisons at one prompt: over a limit of one, within a limit of two; a named method is obeyed."""
    problem, data, objective = ContextualBandit(**TWO_ARMS), two_armed(6, 4), RPO(beta=1.0, eta=0.2)
    usual = solve(problem, data, objective)
    assert usual.programs and "Newton" not in usual.message
    for limits in ({"PROGRAM_COMPARISONS": 1}, {"PROGRAM_PROMPTS": 0}):
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(maximin, name, value)
            large = solve(problem, data, objective)
            assert not large.programs and large.program_certificate is None and large.status == "certified"
            assert "by Newton's method alone, 2 distinct comparisons at 1 prompt(s)" in large.message
            assert np.abs(large.policy - usual.policy).max() < 1e-7
            assert solve(problem, data, objective, method="programs").programs
    monkeypatch.setattr(maximin, "PROGRAM_COMPARISONS", 2)
    assert solve(problem, data, objective).programs


@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_many_responses_are_certified_through_factors_and_spectra_alike(
    bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 responses, dozens at the walls of the small box: the answer does not depend on how steps are solved for."""
    problem = instances.random(prompts=1, arms=150, rng=0)
    data = problem.sample_preferences(20_000, rng=1)
    found = []
    for large in (64, 10**9):
        monkeypatch.setattr(newton, "LARGE", large)
        found.append(solve(problem, data, RPO(beta=0.3, eta=0.01), reward_class=Box(bound), method="newton"))
        assert found[-1].status == "certified" and found[-1].certificate.relative_gap <= 1e-12
    assert np.abs(found[0].policy - found[1].policy).max() < 1e-9
    assert ((found[0].reward == 0).sum() > 10 and (found[0].reward == bound).sum() > 10) == (bound == 1.0)


def test_prompts_with_the_same_data_are_minimised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 prompts with one comparison each share a minimum; one more count, or the other winner, needs its own."""
    x, seen = np.arange(50), []
    problem = ContextualBandit(d0=np.full(50, 0.02), reference=np.full((50, 2), 0.5), reward_bound=3.0)
    original = reward_side.minimize_box
    monkeypatch.setattr(reward_side, "minimize_box", lambda *a, **k: seen.append(1) or original(*a, **k))
    objective = RPO(beta=1.0, eta=0.5, base="reference")  # inside the box: pi = 5 / 6
    for extra, turned, minima in ((0, 0, 1), (1, 0, 2), (0, 1, 2)):
        seen.clear()
        counts, winner = 1.0 + extra * (x == 7), turned * (x == 7)
        data = PreferenceCounts.from_pairs(x, winner, 1 - winner, count=counts, num_prompts=50, num_responses=2)
        solution = solve(problem, data, objective, method="newton", prompt_weights="population")
        assert len(seen) == minima and solution.status == "certified"
        assert (solution.policy[x != 7] == solution.policy[0]).all()
        assert (solution.policy[7] != solution.policy[0]).all() == (minima == 2)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    """20,000 responses at one prompt: five matrices of 3.2 GB; and a beta whose square underflows."""
    data = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=20_000)
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 20_000), 1 / 20_000), reward_bound=1.0)
    with pytest.raises(InvalidArgument, match=r"^problem.reference: expected at most 10000 .*20000, for which .*16 GB"):
        solve(problem, data, RPO(beta=1.0, eta=0.1))
    for extreme in (RPO(beta=1e-300, eta=0.1), RPO(beta=1e300, eta=0.1), RPO(beta=1.0, eta=1e300)):
        with pytest.raises(InvalidArgument, match=r"^objective\.(beta|eta): expected a number between 1e-20 "):
            solve(ContextualBandit(**TWO_ARMS), two_armed(6, 4), extreme)


def test_record_repeats_the_evidence() -> None:
    solution = solve(ContextualBandit(**TWO_ARMS), two_armed(6, 4), RPO(beta=1.0, eta=0.2))
    record = solution.to_dict()
    assert record["objective"]["eta"] == 0.2 and record["reward_class"] == {"name": "Box", "bound": 9.0}
    assert record["certificate"]["gap"] == solution.certificate.gap and record["status"] == "certified"
    assert record["programs"]["reward"]["status"] == "optimal"
