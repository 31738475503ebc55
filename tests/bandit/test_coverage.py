"""Coverage against the definition: by hand, by random search and ascent, by circuits, by a second program."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from rpo.bandit.coverage.coefficient import coverage_coefficient
from rpo.bandit.coverage.cone import ConeSolution, box_bounds, cone_program
from rpo.bandit.coverage.pair_distributions import chosen_distribution, empirical_pair_distribution
from rpo.bandit.coverage.resistance import effective_resistance, reduce_network
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.bandit.solver.saddle import build_saddle
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO


def ratio(problem: Any, pi: Any, base: Any, mu: Any, reward: Any) -> float:
    """E[D(a1, a0)] / sqrt(E_mu[D^2]) in loops over pairs, from theory.md section 4; none of rpo's code."""
    top, square = 0.0, 0.0
    for x in range(len(problem.d0)):
        for a in range(reward.shape[1]):
            for b in range(reward.shape[1]):
                d = (problem.reward[x, a] - problem.reward[x, b]) - (reward[x, a] - reward[x, b])
                top += problem.d0[x] * pi[x, a] * base[x, b] * d
                square += problem.d0[x] * mu[x, a, b] * d * d
    return top / np.sqrt(square) if square > 0 else (np.inf if top > 0 else -np.inf)


def sparse_problem(seed: int, arms: int = 5, prompts: int = 2, walls: float = 0.0, keep: float = 0.6) -> Any:
    """A random problem on a random sparse graph; a share `walls` of the rewards sits at 0, as many at R = 2."""
    g = np.random.default_rng(seed)
    reward = g.uniform(0.2, 1.8, size=(prompts, arms))
    where = g.random((prompts, arms))
    reward = np.where(where < walls, 0.0, np.where(where > 1 - walls, 2.0, reward))
    mu = g.random((prompts, arms, arms)) * (g.random((prompts, arms, arms)) < keep) * (1 - np.eye(arms))
    mu[:, 0, 1] += 0.05
    return ContextualBandit(
        d0=g.dirichlet(np.full(prompts, 3.0)),
        reference=np.full((prompts, arms), 1 / arms),
        reward=reward,
        reward_bound=2.0,
        behavior=mu / mu.sum(axis=(1, 2), keepdims=True),
    ), g.dirichlet(np.ones(arms), size=prompts)


def four_arms(reward: Any, pairs: Any, **more: Any) -> ContextualBandit:
    """One prompt; the pairs named are compared equally often."""
    arms = len(reward)
    mu = np.zeros((1, arms, arms))
    for a, b in pairs:
        mu[0, a, b] = 1.0 / len(pairs)
    fields = {"reward": [reward], "reward_bound": 2.0, "behavior": mu, **more}
    return ContextualBandit(d0=[1.0], reference=np.full((1, arms), 1 / arms), **fields)


# --- effective resistance -------------------------------------------------------------------------------------------


def graph(edges: dict[tuple[int, int], float], size: int) -> Any:
    table = np.zeros((size, size))
    for (a, b), c in edges.items():
        table[a, b] = table[b, a] = c
    return table


@pytest.mark.parametrize(
    ("edges", "size", "ends", "resistance"),
    [
        ({(0, 1): 2.0}, 2, (0, 1), 0.5),  # one conductance of 2
        ({(0, 1): 0.5, (1, 2): 0.25, (2, 3): 1.0}, 4, (0, 3), 2 + 4 + 1),  # in series, resistances add
        ({(0, 1): 0.5, (1, 2): 0.25, (2, 3): 1.0}, 4, (1, 2), 4),  # what hangs on the path carries nothing
        ({(0, 1): 1.0, (1, 3): 1.0, (0, 2): 1.0, (2, 3): 1.0}, 4, (0, 3), 1.0),  # two paths of 2 in parallel
        ({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0}, 3, (0, 1), 2 / 3),  # 1 parallel to 2
        ({(0, 1): 1.0, (1, 2): 1e-14, (2, 3): 1.0}, 4, (0, 3), 1e14 + 2),  # a thin bridge, full accuracy
    ],
)
def test_circuits_by_hand(edges: Any, size: int, ends: tuple[int, int], resistance: float) -> None:
    unit = np.eye(size)
    assert effective_resistance(graph(edges, size), unit[ends[0]], unit[ends[1]]) == pytest.approx(
        resistance, rel=1e-14
    )


def test_two_parallel_edges_halve_and_scaling() -> None:
    """Twice the conductance, half the resistance; half the demand, a quarter of the power."""
    table = graph({(0, 1): 1.0, (1, 2): 3.0, (0, 2): 0.7}, 3)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    once = effective_resistance(table, p, q)
    assert effective_resistance(2 * table, p, q) == pytest.approx(once / 2, rel=1e-14)
    assert effective_resistance(table, (p + q) / 2, q) == pytest.approx(once / 4, rel=1e-13)
    assert effective_resistance(table, p, p) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_resistance_against_potentials_and_flows(seed: int) -> None:
    """demand' v with L v = demand by least squares, and the least flow energy by the edges' least-norm problem."""
    g = np.random.default_rng(seed)
    size = 7
    table = np.triu(g.random((size, size)) * (g.random((size, size)) < 0.7), 1)
    table[np.arange(size - 1), np.arange(1, size)] += 0.1
    table = table + table.T
    p, q = g.dirichlet(np.ones(size), size=2)
    laplacian = np.diag(table.sum(axis=1)) - table
    potentials = np.linalg.lstsq(laplacian, p - q, rcond=None)[0]
    first, second = np.nonzero(np.triu(table))
    incidence = np.zeros((size, len(first)))
    incidence[first, np.arange(len(first))], incidence[second, np.arange(len(first))] = 1.0, -1.0
    flow = np.linalg.lstsq(incidence * np.sqrt(table[first, second]), p - q, rcond=None)[0]
    value = effective_resistance(table, p, q)
    assert value == pytest.approx((p - q) @ potentials, rel=1e-10)
    assert value == pytest.approx(flow @ flow, rel=1e-10)
    network = reduce_network(table)
    assert np.allclose(network.factor().T @ network.factor(), laplacian, atol=1e-13)


def test_resistance_is_infinite_between_components_where_a_pseudo_inverse_is_not() -> None:
    """Two separate edges; moving mass across them is impossible, within them 0.3^2 / 1 + 0.2^2 / 2."""
    table = graph({(0, 1): 1.0, (2, 3): 2.0}, 4)
    p, across, within = np.array([0.5, 0.1, 0.3, 0.1]), np.array([0.3, 0.1, 0.4, 0.2]), np.array([0.2, 0.4, 0.1, 0.3])
    laplacian = np.diag(table.sum(axis=1)) - table
    assert effective_resistance(table, p, across) == np.inf
    assert np.isfinite((p - across) @ np.linalg.pinv(laplacian) @ (p - across))
    assert effective_resistance(table, p, within) == pytest.approx(0.3**2 + 0.2**2 / 2, rel=1e-13)
    # A mass below the tolerance is a rounding, one above it is not.
    nearly = within + np.array([1e-7, 0, -1e-7, 0])
    assert effective_resistance(table, p, nearly) == np.inf
    assert effective_resistance(table, p, nearly, tolerance=1e-6) == pytest.approx(0.11, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "p", "named"),
    [
        ([[0.0, 1.0], [0.5, 0.0]], [1.0, 0.0], "weights"),
        ([[0.0, -1.0], [-1.0, 0.0]], [1.0, 0.0], "weights"),
        ([[0.0, 1.0, 0.0]], [1.0, 0.0], "weights"),
        ([[0.0, 1.0], [1.0, 0.0]], [0.7, 0.7], "p"),
    ],
)
def test_resistance_refuses(weights: Any, p: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        effective_resistance(weights, p, [0.0, 1.0])
    assert error.value.name == named


# --- closed form ----------------------------------------------------------------------------------------------------


def test_two_arms_by_hand() -> None:
    """D is one number, E[D] = (pi(0) - b(0)) D, E_mu[D^2] = D^2: C = |pi(0) - b(0)|, whatever mu."""
    problem = four_arms([1.3, 0.4], [(0, 1)])
    found = coverage_coefficient(problem, [[0.9, 0.1]], [[0.25, 0.75]])
    assert found.value == pytest.approx(0.65, rel=1e-14)
    assert found.method == "closed form" and found.status == "certified" and found.gap <= 1e-14


def test_prompts_add_with_weight_d0_squared_over_mu() -> None:
    """Two prompts of two arms, d0 = (.3, .7), mu = (.6, .4): C^2 = .09/.6 * .5^2 + .49/.4 * .2^2."""
    problem = ContextualBandit(
        d0=[0.3, 0.7], reference=np.full((2, 2), 0.5), reward=[[1.0, 0.5], [0.5, 1.0]], reward_bound=2.0
    )
    pi, base = np.array([[1.0, 0.0], [0.3, 0.7]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    found = coverage_coefficient(problem, pi, base, data_prompt_distribution=[0.6, 0.4])
    assert found.per_prompt == pytest.approx([0.09 / 0.6 * 0.25, 0.49 / 0.4 * 0.04], rel=1e-13)
    assert found.value == pytest.approx(np.sqrt(found.per_prompt.sum()), rel=1e-14)
    assert found.prompt_weight == pytest.approx([0.15, 1.225]) and found.resistance == pytest.approx([0.25, 0.04])
    # mu(x) = d0(x): the plain d0-weighted mean of the resistances.
    assert coverage_coefficient(problem, pi, base).value == pytest.approx(np.sqrt(0.3 * 0.25 + 0.7 * 0.04), rel=1e-13)


@pytest.mark.parametrize("seed", range(6))
def test_closed_form_equals_the_cone_program_inside_the_class(seed: int) -> None:
    problem, base = sparse_problem(seed, keep=0.9)
    closed = coverage_coefficient(problem, None, base)
    program = coverage_coefficient(problem, None, base, boundary=True)
    assert (closed.method, program.method) == ("closed form", "cone program")
    assert program.solver_status == "optimal"
    assert program.value == pytest.approx(closed.value, rel=1e-6)
    # The program of the whole matrix S at once, built here from the definition.
    rows, weights = [], []
    x_count, arms = problem.reference.shape
    mu = problem.pair_distribution()
    for x in range(x_count):
        for a in range(arms):
            for b in range(a):
                rows.append(np.zeros((x_count, arms)))
                rows[-1][x, a], rows[-1][x, b] = 1.0, -1.0
                weights.append(problem.d0[x] * 2 * mu[x, a, b])
    factor = np.sqrt(weights)[:, None] * np.array(rows).reshape(len(rows), -1)
    u = (problem.d0[:, None] * (problem.greedy_policy() - base)).ravel()
    v, _ = cone_program(factor, u, np.zeros((0, u.size)))
    assert u @ v == pytest.approx(closed.value, rel=1e-6)
    assert closed.value == pytest.approx(np.sqrt(u @ np.linalg.pinv(factor.T @ factor) @ u), rel=1e-9)


@pytest.mark.parametrize(("seed", "walls"), [(0, 0.0), (1, 0.0), (2, 0.35), (3, 0.35), (6, 0.35)])
def test_no_reward_of_the_class_beats_it_and_an_ascent_reaches_it(seed: int, walls: float) -> None:
    """Random members of the box stay below C; SLSQP over the box, started from the best, comes within 0.1 %."""
    problem, base = sparse_problem(seed, arms=4, walls=walls, keep=0.9)
    pi, mu = problem.greedy_policy(), problem.pair_distribution()
    if walls:  # the walls bind less often for a greedy comparator
        pi = np.random.default_rng(seed + 100).dirichlet(np.ones(4), size=2)
    found = coverage_coefficient(problem, pi, base)
    assert found.finite and (found.method == "cone program") == (walls > 0)
    g = np.random.default_rng(seed)
    draws = g.uniform(0, 2, size=(300, *problem.reference.shape))
    draws[:100] = 2.0 * (draws[:100] > 1)  # corners
    ratios = [ratio(problem, pi, base, mu, r) for r in draws]
    assert max(ratios) <= found.value + 1e-12
    best = 0.0
    for start in draws[np.argsort(ratios)[-3:]]:
        result = minimize(
            lambda r: -ratio(problem, pi, base, mu, r.reshape(base.shape)),
            start.ravel(),
            bounds=[(0.0, 2.0)] * base.size,
            method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-12},
        )
        best = max(best, -result.fun)
    assert best <= found.value * (1 + 1e-9)
    assert best >= found.value * (1 - 1e-3)
    # Control: a number one per cent too small is beaten.
    assert best > 0.99 * found.value


@pytest.mark.parametrize("seed", range(4))
def test_the_direction_attains_the_value(seed: int) -> None:
    problem, base = sparse_problem(seed, walls=0.3, keep=0.9)
    found = coverage_coefficient(problem, None, base)
    step = 1e-3
    reward = problem.reward - step * found.direction
    free = (problem.reward > 0) & (problem.reward < 2)
    wall = (problem.reward == 0) | (problem.reward == 2)
    # On a wall the step stays inside where the cone binds; elsewhere a shift of the prompt's rewards does.
    binds = (problem.reward == 0).any(axis=1) & (problem.reward == 2).any(axis=1)
    assert ((reward >= -1e-15) & (reward <= 2 + 1e-15))[binds[:, None] & wall].all()
    assert free.any() and binds.any() == (found.method == "cone program")
    value = ratio(problem, problem.greedy_policy(), base, problem.pair_distribution(), reward)
    assert value == pytest.approx(found.value, rel=1e-6)


def test_linear_class_with_indicator_features_is_the_tabular_one() -> None:
    problem, base = sparse_problem(11, keep=0.9)
    x, a = problem.reference.shape
    ball = LinearBall(np.eye(x * a).reshape(x, a, x * a), 100.0)
    linear = coverage_coefficient(problem, None, base, reward_class=ball)
    table = coverage_coefficient(problem, None, base)
    assert linear.value == pytest.approx(table.value, rel=1e-10)
    assert linear.per_prompt == pytest.approx(table.per_prompt, rel=1e-9)
    assert np.isnan(linear.resistance).all()


def linear_problem(seed: int, dim: int, radius_factor: float) -> Any:
    """r* = <phi, theta*> shifted to start at zero; the ball has radius_factor times theta*'s norm."""
    g = np.random.default_rng(seed)
    features = g.normal(size=(2, 4, dim))
    theta = g.normal(size=dim)
    reward = features @ theta
    problem = ContextualBandit(
        d0=[0.4, 0.6],
        reference=np.full((2, 4), 0.25),
        reward=reward - reward.min(axis=1, keepdims=True),
        features=features,
    )
    return problem, LinearBall(features, float(np.linalg.norm(theta) * radius_factor)), theta, g


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_ball_against_random_search(seed: int, factor: float) -> None:
    """theta* inside (1.5) and on the sphere (1.0); thetas of the ball stay below C and come near it."""
    problem, ball, theta, g = linear_problem(seed, 3, factor)
    pi, base, mu = problem.greedy_policy(), g.dirichlet(np.ones(4), size=2), problem.pair_distribution()
    if seed % 2:  # a comparator worse than the base, for which the half-space binds
        pi, base = base, pi
    found = coverage_coefficient(problem, pi, base, reward_class=ball)
    assert found.status == "certified"
    assert found.method == ("closed form" if factor > 1 else "cone program")
    draws = g.normal(size=(400, 3))
    # Points of the ball near theta* see its boundary as the cone does.
    points = theta + 0.05 * draws * np.linalg.norm(theta)
    points /= np.maximum(1.0, np.linalg.norm(points, axis=1, keepdims=True) / ball.radius)
    ratios = [ratio(problem, pi, base, mu, ball.reward(p)) for p in points]
    assert max(0.0, *ratios) <= found.value * (1 + 1e-9)
    assert max(0.0, *ratios) >= 0.8 * found.value


def test_half_space_by_hand() -> None:
    """Two arms, one feature phi = (1, 0), theta* = B: v = theta* - theta >= 0.

    u = pi(0) - b(0), S = 1. A comparator above the base has C = u; one below it has C = 0, where the
    interior value is |u|.
    """
    features = np.array([[[1.0], [0.0]]])
    problem = four_arms([1.0, 0.0], [(0, 1)])
    above, below = [[0.8, 0.2]], [[0.3, 0.7]]
    for radius, wanted in ((1.0, 0.0), (2.0, 0.5)):
        ball = LinearBall(features, radius)
        assert coverage_coefficient(problem, above, below, reward_class=ball).value == pytest.approx(0.5, rel=1e-6)
        assert coverage_coefficient(problem, below, above, reward_class=ball).value == pytest.approx(wanted, abs=1e-9)


# --- uncovered ------------------------------------------------------------------------------------------------------


def test_infinite_where_a_component_changes_mass_and_the_pseudo_inverse_hides_it() -> None:
    problem = four_arms([1.0, 0.5, 1.5, 0.4], [(0, 1), (2, 3)], response_labels=("p", "q", "r", "s"))
    base = np.array([[0.4, 0.3, 0.2, 0.1]])
    found = coverage_coefficient(problem, None, base)  # greedy: all on r, 1 against 0.3 of its component
    assert found.value == np.inf and not found.finite and found.gap == 0
    assert "responses 2 (r), 3 (s)" in found.message or "responses 0 (p), 1 (q)" in found.message
    assert np.isinf(found.resistance).all()
    # The direction is the evidence: no comparison sees it, and the expectation moves.
    differences = found.direction[0][:, None] - found.direction[0][None, :]
    assert (problem.pair_distribution()[0] * differences**2).sum() == 0
    assert ((problem.greedy_policy() - base) * found.direction).sum() > 0
    # Control: what a pseudo-inverse alone says here.
    table = problem.pair_distribution()[0] * 2
    u = (problem.greedy_policy() - base)[0]
    assert np.isfinite(u @ np.linalg.pinv(np.diag(table.sum(axis=1)) - table) @ u)
    # Mass that stays within its component is covered: .4^2/.5 + .1^2/.5 (each edge has half the pairs).
    within = coverage_coefficient(problem, [[0.0, 0.7, 0.3, 0.0]], base)
    assert within.value == pytest.approx(np.sqrt(0.4**2 / 0.5 + 0.1**2 / 0.5), rel=1e-13)


def test_linear_features_cover_what_a_table_does_not_and_the_other_way() -> None:
    """Arms 0-1 compared, 2 never. phi(2) = 2 phi(1) is measured through theta; a second feature of its own is not."""
    problem = four_arms([1.0, 0.5, 0.0], [(0, 1)])
    pi, base = [[0.0, 0.0, 1.0]], [[0.5, 0.5, 0.0]]
    assert coverage_coefficient(problem, pi, base, boundary=False).value == np.inf
    one = LinearBall(np.array([[[1.0], [0.5], [0.0]]]), 10.0)
    # u = 0 - .75, S = .25: C = .75 / .5
    assert coverage_coefficient(problem, pi, base, reward_class=one).value == pytest.approx(1.5, rel=1e-12)
    two = LinearBall(np.array([[[1.0, 0.0], [0.5, 0.0], [0.0, 1e-3]]]), 10.0)
    found = coverage_coefficient(problem, pi, base, reward_class=two)
    assert found.value == np.inf and "response 2 at prompt 0" in found.message


def test_a_rare_pair_is_not_a_missing_pair() -> None:
    """One edge of frequency e: C = |pi - b| of its far node / sqrt(e), growing without bound and infinite only at 0."""
    pi, base = [[0.0, 0.5, 0.5]], [[0.2, 0.5, 0.3]]
    for rare in (1e-3, 1e-9, 1e-15):
        mu = np.array([[[0, 1 - rare, 0], [0, 0, rare], [0, 0, 0]]])
        problem = four_arms([1.0, 0.5, 0.2], [(0, 1)], behavior=mu)
        identity = LinearBall(np.eye(3)[None], 10.0)
        wanted = np.sqrt(0.2**2 / (1 - rare) + 0.2**2 / rare)
        assert coverage_coefficient(problem, pi, base).value == pytest.approx(wanted, rel=1e-12)
        assert coverage_coefficient(problem, pi, base, reward_class=identity).value == pytest.approx(wanted, rel=1e-6)
    assert coverage_coefficient(four_arms([1.0, 0.5, 0.2], [(0, 1)]), pi, base).value == np.inf


def test_prompt_without_data() -> None:
    """d0 gives it weight and the policies differ there: infinite. Where they agree, or d0 is zero: finite."""
    wins = np.zeros((2, 2, 2))
    wins[0, 0, 1] = 5
    counts = PreferenceCounts.from_wins(wins)
    fields: Any = {"reference": np.full((2, 2), 0.5), "reward": [[1.0, 0.5], [0.5, 1.0]], "reward_bound": 2.0}
    both = ContextualBandit(d0=[0.5, 0.5], **fields)
    pi, base = [[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]
    found = coverage_coefficient(both, pi, base, data_distribution=counts)
    assert found.value == np.inf and "prompt 1" in found.message and found.resistance == pytest.approx([0.25, np.inf])
    agree = coverage_coefficient(both, [[1.0, 0.0], [0.5, 0.5]], base, data_distribution=counts)
    assert agree.value == pytest.approx(0.25, rel=1e-13)  # d0^2 / mu = 1/4, resistance 1/4
    absent = coverage_coefficient(ContextualBandit(d0=[1.0, 0.0], **fields), pi, base, data_distribution=counts)
    assert absent.value == pytest.approx(0.5, rel=1e-13)


# --- r* on the boundary ---------------------------------------------------------------------------------------------


def test_cone_by_hand_finite_where_the_interior_is_not_and_the_other_way() -> None:
    """Arms 0-1 compared, arm 2 apart; r* = (R, 0, R), comparator arm 0, base (1/2, 1/4, 1/4).

    v0 >= 0, v1 <= 0, v2 >= 0 and <u, v> = v0/2 - v1/4 - v2/4 with |v0 - v1| <= 1: best v = (1, 0, 0), C = 1/2;
    inside, v2 -> -inf is allowed. With r*(2) = 0 instead, v2 <= 0 and it is allowed again.
    """
    base = [[0.5, 0.25, 0.25]]
    comparator = [[1.0, 0.0, 0.0]]
    covered = four_arms([2.0, 0.0, 2.0], [(0, 1)])
    found = coverage_coefficient(covered, comparator, base)
    assert found.method == "cone program" and found.status == "certified"
    assert found.value == pytest.approx(0.5, rel=1e-9)
    assert coverage_coefficient(covered, comparator, base, boundary=False).value == np.inf
    assert coverage_coefficient(covered, comparator, base, reward_class=Unconstrained()).value == np.inf
    assert coverage_coefficient(four_arms([2.0, 0.0, 0.0], [(0, 1)]), comparator, base).value == np.inf
    # Every arm at zero and none at R: a shift leaves every sign open, so nothing is gained.
    assert coverage_coefficient(four_arms([0.5, 0.0, 0.0], [(0, 1)]), comparator, base).value == np.inf


def test_diode_by_hand() -> None:
    """A path 0-1-2-3 of three edges, r* = (R, 1, 1, 0), moving 0.3 from arm 0 to arm 3 or back.

    Each edge has a third of the pairs: resistance 9 end to end. Comparator on the arm at R: <u, v> = .3 (v0 - v3) with
    v0 >= 0 >= v3, nothing binds and C = .3 * 3. Backwards <u, v> = .3 (v3 - v0) <= 0 and C = 0: the ideal diode
    carries the current for nothing.
    """
    problem = four_arms([2.0, 1.0, 1.0, 0.0], [(0, 1), (1, 2), (2, 3)])
    high, low = [[0.5, 0.15, 0.15, 0.2]], [[0.2, 0.15, 0.15, 0.5]]
    assert coverage_coefficient(problem, high, low).value == pytest.approx(0.9, rel=1e-9)
    assert coverage_coefficient(problem, low, high).value == pytest.approx(0.0, abs=1e-9)
    assert coverage_coefficient(problem, low, high, boundary=False).value == pytest.approx(0.9, rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_cone_bracket_and_unboundedness_against_linear_programs(seed: int) -> None:
    """Infinite iff an LP finds v in the cone, unseen by the data, with <u, v> > 0; else never above the interior."""
    problem, base = sparse_problem(seed, arms=4 + seed % 3, walls=0.4, keep=0.25)
    arms = base.shape[1]
    pi = np.random.default_rng(seed + 1000).dirichlet(np.full(arms, 0.5), size=2)
    if seed % 3 == 0:  # the same mass in the components of the first prompt: exercises the finite side
        pi[0] = base[0]
    found = coverage_coefficient(problem, pi, base)
    interior = coverage_coefficient(problem, pi, base, boundary=False)
    unbounded = False
    for x in range(2):
        first, second = np.nonzero(problem.pair_distribution()[x])
        differences = np.eye(arms)[first] - np.eye(arms)[second]
        bounds = [(0 if r == 2 else -1, 0 if r == 0 else 1) for r in problem.reward[x]]
        # A shift is free where the prompt does not reach both walls.
        if not ((problem.reward[x] == 0).any() and (problem.reward[x] == 2).any()):
            bounds = [(-1, 1)] * arms
        best = linprog(base[x] - pi[x], A_eq=differences, b_eq=np.zeros(len(first)), bounds=bounds)
        unbounded |= -best.fun > 1e-7
    assert found.finite == (not unbounded)
    assert found.value <= interior.value * (1 + 1e-9)
    assert found.status == "certified"
    if found.finite:
        assert found.lower <= found.value <= found.lower * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_bounds_hold_at_any_potentials(seed: int) -> None:
    """Wherever a solver stops, lower <= C <= upper; and far from the optimum the bracket is open."""
    problem, base = sparse_problem(seed, prompts=1, walls=0.4, keep=0.9)
    g = np.random.default_rng(seed)
    pi = g.dirichlet(np.ones(5), size=1)
    network = reduce_network(2 * problem.pair_distribution()[0])
    value = coverage_coefficient(problem, pi, base, boundary=True).value
    signs = np.where(problem.reward[0] == 0, -1.0, np.where(problem.reward[0] == 2, 1.0, 0.0))
    # A prompt that does not reach both walls has no cone.
    signs = signs if (signs > 0).any() and (signs < 0).any() else np.zeros(5)
    for scale in (0.1, 1.0, 10.0):
        found = box_bounds(network, (pi - base)[0], signs, scale * g.normal(size=5), "")
        assert found.lower <= value * (1 + 1e-9) and value <= found.upper * (1 + 1e-9)
        assert found.upper > found.lower * 1.001


def test_an_open_bracket_is_flagged_and_reported_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that stops early: upper bound 1 against .9 attained must come out as "inaccurate", value 1."""
    problem = four_arms([2.0, 1.0, 1.0, 0.0], [(0, 1), (1, 2), (2, 3)])
    high, low = [[0.5, 0.15, 0.15, 0.2]], [[0.2, 0.15, 0.15, 0.5]]
    early = ConeSolution(upper=1.0, lower=0.9, direction=np.array([3.0, 1.0, -1.0, -3.0]), status="optimal_inaccurate")
    monkeypatch.setattr("rpo.bandit.coverage.coefficient.box_supremum", lambda *_, **__: early)
    found = coverage_coefficient(problem, high, low)
    assert found.status == "inaccurate" and found.solver_status == "optimal_inaccurate"
    assert found.value == 1.0 and found.lower == pytest.approx(0.9) and "bracket" in found.message


def test_a_rounding_of_mass_does_not_unbound_the_cone_program() -> None:
    """The diode's path with an arm apart that loses 1e-10, below the tolerance: C stays .9; 1e-6 is not a rounding."""
    problem = four_arms([2.0, 1.0, 1.0, 0.0, 1.0], [(0, 1), (1, 2), (2, 3)])
    high, low = np.array([[0.5, 0.1, 0.1, 0.2, 0.1]]), np.array([[0.2, 0.1, 0.1, 0.5, 0.1]])
    moved = np.array([[1.0, 0, 0, 0, -1.0]])
    found = coverage_coefficient(problem, high + 1e-10 * moved, low)
    assert found.method == "cone program" and found.value == pytest.approx(0.9, rel=1e-6)
    assert coverage_coefficient(problem, high + 1e-6 * moved, low).value == np.inf
    forgiving = coverage_coefficient(problem, high + 1e-3 * moved, low, tolerance=1e-2)
    assert forgiving.status == "certified" and forgiving.value == pytest.approx(0.9, abs=0.01)


def test_boundary_true_on_a_walled_problem_uses_the_cone_everywhere_and_agrees() -> None:
    problem, base = sparse_problem(3, walls=0.35, keep=0.9)
    pi = np.random.default_rng(103).dirichlet(np.ones(5), size=2)
    chosen = coverage_coefficient(problem, pi, base)
    forced = coverage_coefficient(problem, pi, base, boundary=True)
    inside = coverage_coefficient(problem, pi, base, boundary=False)
    assert forced.value == pytest.approx(chosen.value, rel=1e-6)
    assert chosen.method == "cone program" and chosen.value < inside.value * (1 - 1e-3)


def test_ball_on_the_sphere_finite_outside_the_range() -> None:
    """Two features; only the first is compared, u = (1, -1)/2, theta* = (1, 1): u + theta*/2 = (1, 0) is measured.

    Arms: phi = (1, 0), (0, 0), (0, 1). Pair (0, 1) gives S = diag(1, 0). pi = arm 0, base half arm 0, half arm 2:
    u = (1/2, -1/2). The cone is w1 + w2 >= 0, so w2 >= -w1 and <u, w> <= w1: C = 1 (S: |w1| <= 1). Off the sphere
    w2 -> -inf is free, and with pi and base exchanged w2 -> +inf is.
    """
    features = np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    problem = four_arms([1.0, 0.0, 1.0], [(0, 1)])
    pi, base = [[1.0, 0.0, 0.0]], [[0.5, 0.0, 0.5]]
    sphere, inside = LinearBall(features, np.sqrt(2)), LinearBall(features, 2.0)
    assert coverage_coefficient(problem, pi, base, reward_class=sphere).value == pytest.approx(1.0, rel=1e-6)
    assert coverage_coefficient(problem, pi, base, reward_class=inside).value == np.inf
    assert coverage_coefficient(problem, pi, base, reward_class=sphere, boundary=False).value == np.inf
    assert coverage_coefficient(problem, base, pi, reward_class=sphere).value == np.inf


@pytest.mark.parametrize("seed", range(30))
def test_half_space_unboundedness_against_a_linear_program(seed: int) -> None:
    """Two comparisons of four arms, three features: S has rank 2, so u and theta* leave its range along one line.

    Infinite iff an LP over |w| <= 1 finds w with S w = 0, <theta*, w> >= 0, <u, w> > 0; else the bracket closes.
    """
    problem, ball, theta, g = linear_problem(seed, 3, 1.0)
    mu = np.zeros((2, 4, 4))
    mu[0, 0, 1] = mu[1, 2, 3] = 1.0
    pi, base = g.dirichlet(np.ones(4), size=2), g.dirichlet(np.ones(4), size=2)
    found = coverage_coefficient(problem, pi, base, reward_class=ball, data_distribution=mu)
    phi = ball.features
    u = np.einsum("x,xa,xad->d", problem.d0, pi - base, phi)
    unseen = np.array([phi[0, 0] - phi[0, 1], phi[1, 2] - phi[1, 3]])
    best = linprog(-u, A_eq=unseen, b_eq=np.zeros(2), A_ub=-theta[None], b_ub=[0.0], bounds=[(-1, 1)] * 3)
    assert found.finite == (-best.fun <= 1e-8)
    assert found.status == "certified"
    assert coverage_coefficient(
        problem, pi, base, reward_class=ball, data_distribution=mu, boundary=False
    ).value == pytest.approx(np.inf)
    if found.finite:
        assert found.lower <= found.value <= found.lower * (1 + 1e-6)
        # SLSQP on the program itself, in w.
        factor = np.sqrt(problem.d0)[:, None] * unseen
        result = minimize(
            lambda w: -(u @ w),
            np.zeros(3),
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda w: 1 - ((factor @ w) ** 2).sum()},
                {"type": "ineq", "fun": lambda w: theta @ w},
            ],
        )
        assert -result.fun == pytest.approx(found.value, rel=1e-4)


def test_half_space_cases_both_occur() -> None:
    """The control of the test above: among its thirty problems some are finite and some are not."""
    finite = []
    for seed in range(30):
        problem, ball, _, g = linear_problem(seed, 3, 1.0)
        mu = np.zeros((2, 4, 4))
        mu[0, 0, 1] = mu[1, 2, 3] = 1.0
        pi, base = g.dirichlet(np.ones(4), size=2), g.dirichlet(np.ones(4), size=2)
        finite.append(coverage_coefficient(problem, pi, base, reward_class=ball, data_distribution=mu).finite)
    assert 5 <= sum(finite) <= 25


# --- invariances, inputs --------------------------------------------------------------------------------------------


def test_permutation_shift_and_order_of_pairs() -> None:
    problem, base = sparse_problem(5, keep=0.9)
    pi = problem.greedy_policy()
    value = coverage_coefficient(problem, pi, base).value
    order = np.array([3, 0, 4, 1, 2])
    mu = problem.pair_distribution()
    moved = ContextualBandit(
        d0=problem.d0,
        reference=problem.reference,
        reward=problem.reward[:, order] + 0.05,  # and shifted, still inside the box
        reward_bound=2.0,
        behavior=mu[:, order][:, :, order],
    )
    assert coverage_coefficient(moved, pi[:, order], base[:, order]).value == pytest.approx(value, rel=1e-12)
    one_way = 2 * np.triu(mu)  # every pair in one order
    assert coverage_coefficient(problem, pi, base, data_distribution=one_way).value == pytest.approx(value, rel=1e-12)
    # Control: moving the policies without the graph changes the answer.
    assert abs(coverage_coefficient(problem, pi[:, order], base[:, order]).value - value) > 1e-3


def test_chosen_distribution_is_what_sampling_gives() -> None:
    """Against 4e6 drawn preferences (six standard errors), and by hand for two arms: sigma(r0 - r1)."""
    problem, _ = sparse_problem(2, arms=4)
    counts = problem.sample_preferences(4_000_000, rng=0)
    chosen = chosen_distribution(problem)
    error = np.sqrt(0.25 / (4_000_000 * problem.d0.min()))
    assert np.abs(counts.response_frequencies("chosen") - chosen).max() <= 6 * error
    assert chosen.sum(axis=1) == pytest.approx(1.0, abs=1e-14)
    two = four_arms([1.0, 0.3], [(0, 1)])
    assert chosen_distribution(two)[0, 0] == pytest.approx(1 / (1 + np.exp(-0.7)), rel=1e-14)
    assert chosen_distribution(two, [[[0.0, 1.0], [0.0, 0.0]]]) == pytest.approx(chosen_distribution(two), rel=1e-14)
    # It is the default base, and its greedy comparator the default comparator.
    assert coverage_coefficient(problem).value == coverage_coefficient(problem, problem.greedy_policy(), chosen).value


def test_empirical_pairs_are_the_counts() -> None:
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1], wins[0, 1, 0], wins[0, 2, 1] = 3, 1, 4
    counts = PreferenceCounts.from_wins(wins)
    mu = empirical_pair_distribution(counts)
    assert mu[0, 0, 1] == mu[0, 1, 0] == mu[0, 1, 2] == mu[0, 2, 1] == 0.25
    assert mu[1].sum() == 0
    problem = ContextualBandit(d0=[1.0, 0.0], reference=np.full((2, 3), 1 / 3), reward=np.full((2, 3), 0.5))
    pi, base = [[1.0, 0, 0], [1.0, 0, 0]], [[0, 0, 1.0], [0, 0, 1.0]]
    # Arm 0 to 2 through two edges of 4 / 8 each: resistance 2 + 2.
    assert coverage_coefficient(problem, pi, base, data_distribution=counts).value == pytest.approx(2.0, rel=1e-13)
    # A prompt without pairs has pi_ref for its base, as in build_saddle.
    saddle = build_saddle(problem, counts, RPO(beta=1.0, eta=0.1), Unconstrained())
    assert np.array_equal(chosen_distribution(problem, mu)[1], saddle.base[1])


def test_unknown_reward_gives_the_interior_value_and_says_so() -> None:
    problem, base = sparse_problem(3, walls=0.35, keep=0.9)
    blind = ContextualBandit(d0=problem.d0, reference=problem.reference, behavior=problem.behavior)
    found = coverage_coefficient(blind, problem.greedy_policy(), base)
    assert found.value == coverage_coefficient(problem, None, base, boundary=False).value
    assert "upper bound" in found.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"comparator": [[0.5, 0.6]]}, "comparator"),
        ({"base": [[1.0, 0.0, 0.0]]}, "base"),
        ({"reward_class": Box(0.5)}, "reward_class"),
        ({"reward_class": LinearBall(np.ones((1, 2, 1)), 1.0)}, "reward_class"),
        ({"reward_class": LinearBall(np.array([[[1.0], [0.0]]]), 0.1)}, "reward_class"),
        ({"reward_class": "Box"}, "reward_class"),
        ({"data_distribution": np.zeros((1, 2, 2))}, "data_distribution"),
        ({"data_distribution": PreferenceCounts.from_wins(np.ones((1, 3, 3)) - np.eye(3))}, "data_distribution"),
        ({"data_prompt_distribution": [0.5, 0.5]}, "data_prompt_distribution"),
        ({"tolerance": -1.0}, "tolerance"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(options: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        coverage_coefficient(four_arms([1.0, 0.5], [(0, 1)]), **options)
    assert error.value.name == named


def test_unknown_reward_needs_both_policies() -> None:
    blind = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]])
    with pytest.raises(InvalidArgument, match="comparator, base"):
        coverage_coefficient(blind)
    with pytest.raises(InvalidArgument, match="boundary"):
        coverage_coefficient(blind, [[1.0, 0.0]], [[0.5, 0.5]], boundary=True)
