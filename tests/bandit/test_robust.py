"""`Hull`, `Intervals` and the ellipsoid in `solve` and `robust_policy`: independent programs, grids, closed forms."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import brentq, linprog

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    Hull,
    Intervals,
    LinearBall,
    PreferenceCounts,
    Unconstrained,
    bounds,
    coverage,
    robust_policy,
    simulate,
    solve,
    solve_batch,
)
from rpo.bandit.baselines import PessimisticMLE
from rpo.bandit.baselines.pessimism import covariance
from rpo.bandit.simulation import Maximin
from rpo.bandit.solver.newton import minimize_simplex
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core.divergences import KL, Alpha, ChiSquared, ChiSquaredKL, Divergence, ForwardKL, JensenShannon
from rpo.core.errors import InvalidArgument
from rpo.methods.divergence import FRPO
from rpo.methods.pairs import IPO, SLiC

DIVERGENCES = (KL(), ForwardKL(), JensenShannon(), Alpha(0.5), ChiSquaredKL(), ChiSquared())
NAMES = [type(f).__name__ for f in DIVERGENCES]


def ensemble(seed: int, prompts: int, arms: int, members: int, noise: float = 1.0) -> tuple[ContextualBandit, Any]:
    """Return a problem and members around its r*, (M, X, A)."""
    g = np.random.default_rng(seed)
    truth = g.uniform(0.0, 2.0, (prompts, arms))
    problem = ContextualBandit(
        d0=g.dirichlet(np.full(prompts, 5.0)), reference=g.dirichlet(np.full(arms, 2.0), size=prompts), reward=truth
    )
    return problem, truth + noise * g.normal(size=(members, prompts, arms))


def ellipsoid(seed: int, prompts: int, arms: int) -> LinearBall:
    g = np.random.default_rng(seed)
    root = g.normal(size=(3, 3))
    return LinearBall(
        g.normal(size=(prompts, arms, 3)), 0.7, metric=root @ root.T + 0.1 * np.eye(3), centre=g.normal(size=3)
    )


def worst_case(reward_class: Any, flow: Any) -> tuple[Any, list[Any]]:
    """Return the least <flow, r> over the class as a concave cvxpy expression of flow (X, A), from its definition."""
    x, a = flow.shape
    if isinstance(reward_class, Hull):
        least = cp.Variable()
        return least, [least <= cp.sum(cp.multiply(member, flow)) for member in reward_class.rewards]
    if isinstance(reward_class, LinearBall):
        pulled = reward_class.features.reshape(x * a, -1).T @ cp.vec(flow, order="C")
        metric = np.eye(3) if reward_class.metric is None else reward_class.metric
        centre = np.zeros(3) if reward_class.centre is None else reward_class.centre
        values, vectors = np.linalg.eigh(metric)
        root = (vectors / np.sqrt(values)) @ vectors.T
        return centre @ pulled - reward_class.radius * cp.norm(root @ pulled), []
    lower, upper = (np.broadcast_to(limit, (x, a)) for limit in reward_class.limits)
    return cp.sum(cp.multiply(lower, flow)) - cp.sum(cp.multiply(upper - lower, cp.neg(flow))), []


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=NAMES)
@pytest.mark.parametrize(("prompts", "arms", "members"), [(1, 6, 4), (3, 4, 9)])
def test_robust_policy_is_the_program_over_policies(
    divergence: Divergence, prompts: int, arms: int, members: int
) -> None:
    """The epigraph program knows rewards only as the least of the class against a policy; ours only mixtures."""
    problem, rewards = ensemble(members, prompts, arms, members)
    lower, upper = rewards.min(axis=0), rewards.max(axis=0)
    for reward_class in (Hull(rewards), Intervals(lower, upper), ellipsoid(0, prompts, arms), Box(1.0)):
        for base in ("reference", "none"):
            found = robust_policy(problem, reward_class, beta=0.2, divergence=divergence, base=base)
            held = problem.reference if base == "reference" else np.zeros(problem.reference.shape)
            pi = cp.Variable(problem.reference.shape, nonneg=True)
            flow = cp.multiply(np.broadcast_to(problem.d0[:, None], held.shape), pi - held)
            worst, needed = worst_case(reward_class, flow)
            kept = sum(
                d * divergence.program(pi[x], row)
                for x, (d, row) in enumerate(zip(problem.d0, problem.reference, strict=True))
            )
            program = cp.Problem(cp.Maximize(worst - 0.2 * kept), [*needed, cp.sum(pi, axis=1) == 1])
            program.solve(solver="CLARABEL")
            assert found.status == "certified" and 0.0 <= found.evidence["relative_gap"] <= 1e-9
            assert found.evidence["reward_value"] == pytest.approx(program.value, abs=1e-6)
            assert np.abs(found.policy - pi.value).max() < 1e-3


OBJECTIVES = (
    rpo.RPO(beta=0.3, eta=0.2),
    rpo.RPO(beta=0.05, eta=0.01, base="reference"),
    rpo.DPO(beta=0.3),
    IPO(tau=0.4),
    SLiC(beta=0.5),
    *(FRPO(beta=0.3, eta=0.2, divergence=f) for f in DIVERGENCES[1:]),
)


@pytest.mark.parametrize(
    ("objective", "seed"), [(o, seed) for o in OBJECTIVES for seed in range(1 if isinstance(o, SLiC) else 3)]
)
def test_with_data_both_programs_and_the_certificate_agree(objective: Any, seed: int) -> None:
    """The policy program's point knows nothing of Newton's steps, and must certify the same reward."""
    problem, rewards = ensemble(seed, 3, 4, 2 + 3 * seed, noise=2.0)
    data = problem.sample_preferences(200, rng=seed)
    classes = (Hull(rewards), Intervals(rewards.min(axis=0), rewards.max(axis=0)), ellipsoid(seed, 3, 4))
    for reward_class in classes:
        for weights in ("data", "population"):
            found = solve(problem, data, objective, reward_class=reward_class, prompt_weights=weights)
            limit = 1e-7 if isinstance(objective, SLiC) else 1e-10
            assert found.status == "certified" and 0.0 <= found.certificate.relative_gap <= limit
            assert reward_class.contains(found.reward)
            for program in found.programs.values():
                assert program["value"] == pytest.approx(found.certificate.reward_value, abs=1e-6)
            if found.program_certificate is not None:
                assert 0.0 <= found.program_certificate.relative_gap <= 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_hull_of_three_against_a_grid_of_mixtures(seed: int, upper_value: Callable[[Saddle, Any], float]) -> None:
    """Every mixture on a grid of step 1/400 is worse, the best of them by no more than the grid is coarse."""
    problem, rewards = ensemble(seed, 2, 4, 3)
    data = problem.sample_preferences(60, rng=seed)
    objective = rpo.RPO(beta=0.2, eta=0.5)
    found = solve(problem, data, objective, reward_class=Hull(rewards))
    saddle = build_saddle(problem, data, objective, Hull(rewards))
    steps = 40
    grid = [np.array([i, j, steps - i - j]) / steps for i in range(steps + 1) for j in range(steps + 1 - i)]
    values = [upper_value(saddle, np.tensordot(w, rewards, axes=1)) for w in grid]
    nearest = grid[int(np.argmin(values))]
    # Around the coarse minimum, ten times finer.
    fine = [nearest + np.array([i, j, -i - j]) / 400 for i in range(-15, 16) for j in range(-15, 16)]
    best = min(upper_value(saddle, np.tensordot(w, rewards, axes=1)) for w in fine if w.min() >= 0)
    assert -1e-12 <= best - found.certificate.reward_value <= 1e-4
    assert min(values) >= found.certificate.reward_value - 1e-12


def test_hull_of_one_is_its_gibbs_policy_and_of_copies_too() -> None:
    problem, rewards = ensemble(0, 3, 5, 1)
    gibbs = problem.reference * np.exp(rewards[0] / 0.4)
    gibbs /= gibbs.sum(axis=1, keepdims=True)
    data = problem.sample_preferences(50, rng=0)
    for members in (rewards, np.repeat(rewards, 3, axis=0)):
        assert robust_policy(problem, Hull(members), beta=0.4).policy == pytest.approx(gibbs, abs=1e-14)
        assert robust_policy(problem, Hull(members), beta=0.4, base="none").policy == pytest.approx(gibbs, abs=1e-14)
        found = solve(problem, data, rpo.RPO(beta=0.4, eta=0.1), reward_class=Hull(members))
        seen = data.prompt_frequencies > 0
        assert found.policy[seen] == pytest.approx(gibbs[seen], abs=1e-14)


def test_pessimism_of_a_policy_and_of_each_response_differ() -> None:
    """The optimum mixes two of four rewards, .30 and .70; the pointwise policy is .42 away in total variation.

    Its worst member is worse: the hull's policy is best against the hull. Control: of one member both are the same.
    """
    g = np.random.default_rng(0)
    reference, rewards = g.dirichlet(np.ones(6))[None], g.uniform(0, 2, (4, 6))[:, None]
    problem = ContextualBandit(d0=np.ones(1), reference=reference)
    policy = robust_policy(problem, Hull(rewards), beta=0.3, base="none")
    point = robust_policy(problem, Intervals(rewards.min(axis=0), rewards.max(axis=0)), beta=0.3, base="none")
    weights = Hull(rewards).weights(policy.reward)
    assert weights == pytest.approx([0.298, 0.0, 0.702, 0.0], abs=1e-3)
    assert policy.evidence["reward_value"] == pytest.approx(1.07149190, abs=1e-7)
    assert 0.5 * np.abs(policy.policy - point.policy).sum() == pytest.approx(0.418, abs=1e-3)

    def worth(pi: Any) -> float:
        return float((rewards * pi).sum(axis=(1, 2)).min() - 0.3 * (pi * np.log(pi / reference)).sum())

    assert worth(policy.policy) == pytest.approx(policy.evidence["reward_value"], abs=1e-9)
    assert worth(point.policy) < worth(policy.policy) - 0.05
    one = rewards[:1]
    alone = robust_policy(problem, Hull(one), beta=0.3).policy
    assert alone == pytest.approx(robust_policy(problem, Intervals(one[0], one[0]), beta=0.3).policy, abs=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=NAMES)
def test_intervals_answer_between_two_policies(divergence: Divergence) -> None:
    """Without a base the adversary takes every lower wall; against b, pi is the middle of b and the policies of both.

    pi_a = median(rho u((l_a - Z) / beta), b_a, rho u((u_a - Z) / beta)) with the one Z that makes it sum to one.
    """
    problem, rewards = ensemble(5, 2, 6, 3)
    lower, upper = rewards.min(axis=0), rewards.max(axis=0)
    beta, top = 0.5, divergence.top
    found = robust_policy(problem, Intervals(lower, upper), beta=beta, divergence=divergence, base="none")
    alone = divergence.reply(lower / beta, problem.log_reference).policy
    assert found.policy == pytest.approx(alone, abs=1e-12)
    base = 0.5 * problem.reference + 0.5 * np.random.default_rng(1).dirichlet(np.ones(6), size=2)
    found = robust_policy(problem, Intervals(lower, upper), beta=beta, divergence=divergence, base=base)
    for x, reference in enumerate(problem.reference):

        def middle(z: float, x: int = x, reference: Any = reference) -> Any:
            ratios = []
            for wall in (lower[x], upper[x]):
                s = (wall - z) / beta
                inside = s < top
                ratios.append(np.where(inside, divergence.ratio(np.where(inside, s, 0.0))[0], np.inf))
            return np.clip(base[x], reference * ratios[0], reference * ratios[1])

        start = upper[x].max() - beta * min(top, 1.0) + 1e-9
        z = brentq(lambda z: np.minimum(middle(z), 1e3).sum() - 1.0, lower[x].min() - 20.0, start + 20.0, xtol=1e-14)
        assert found.policy[x] == pytest.approx(middle(z), abs=1e-9)
        assert (np.abs(found.policy[x] - base[x]) < 1e-9).any() and (np.abs(found.policy[x] - base[x]) > 1e-3).any()


def test_a_response_in_no_pair_keeps_its_base_mass_as_far_as_its_interval_allows() -> None:
    """With data Z is the solution's own, r - beta log(pi / ref) at any response; two of six are in no pair.

    Control: those that were compared are moved by their data.
    """
    g = np.random.default_rng(2)
    problem = ContextualBandit(d0=np.ones(1), reference=g.dirichlet(np.ones(6))[None])
    data = PreferenceCounts.from_pairs([0] * 5, [0, 0, 1, 2, 3], [1, 2, 0, 3, 0], num_prompts=1, num_responses=6)
    centre, wide = g.normal(size=(1, 6)), np.array([[0.3, 0.3, 0.3, 0.3, 0.05, 3.0]])
    walls = Intervals(centre - wide, centre + wide)
    found = solve(problem, data, rpo.RPO(beta=0.5, eta=0.2, base="reference"), reward_class=walls)
    pi, rho, r = found.policy[0], problem.reference[0], found.reward[0]
    z = (r - 0.5 * np.log(pi / rho)).mean()
    low, high = (rho * np.exp((wall[0] - z) / 0.5) for wall in (walls.lower, walls.upper))
    middle = np.clip(rho, low, high)
    assert pi[4:] == pytest.approx(middle[4:], abs=1e-10)
    assert pi[5] == pytest.approx(rho[5], abs=1e-10) and abs(pi[4] - rho[4]) > 1e-3
    assert np.abs(pi - middle)[:4].max() > 1e-3


def test_prompts_with_the_same_data_and_other_walls_have_other_answers() -> None:
    """Equal prompts are minimised once, and walls are part of what makes them equal."""
    data = PreferenceCounts.from_pairs([0, 1], [0, 0], [1, 1], num_prompts=2, num_responses=2)
    problem = ContextualBandit(d0=np.full(2, 0.5), reference=np.full((2, 2), 0.5))
    walls = Intervals(np.zeros((2, 2)), np.array([[1.0, 1.0], [3.0, 1.0]]))
    found = solve(problem, data, rpo.DPO(beta=1.0), reward_class=walls, method="newton")
    assert found.status == "certified"
    assert found.reward[:, 0] - found.reward[:, 1] == pytest.approx([1.0, 3.0])


@pytest.mark.parametrize("members", [5, 40])
def test_many_uncertain_heads_hold_the_policy_at_the_reference(members: int) -> None:
    """Noise of deviation 3 around a reward in [0, 1], whose own policy has KL .69: .30 with 5 members, 0 with 40.

    The pointwise worst case leaves the reference further than the nominal policy does, and further with more members.

    Half nominal, half worst case is the hull of r_0 / 2 + r_m / 2; all nominal is the Gibbs policy of r_0.
    """
    g = np.random.default_rng(0)
    reference, nominal = g.dirichlet(np.ones(8))[None], g.uniform(0, 1, 8)[None]
    problem = ContextualBandit(d0=np.ones(1), reference=reference)
    rewards = nominal + 3.0 * g.normal(size=(members, 1, 8))

    def kl(policy: Any) -> float:
        return float((policy * np.log(policy / reference)).sum())

    centred = rewards - (rewards * reference).sum(axis=2, keepdims=True)
    policy = robust_policy(problem, Hull(rewards), beta=0.2).policy
    point = robust_policy(problem, Intervals(centred.min(axis=0), centred.max(axis=0)), beta=0.2, base="none").policy
    gibbs = robust_policy(problem, Hull(nominal[None]), beta=0.2).policy
    assert kl(policy) < 0.5 * kl(gibbs) < kl(gibbs) < kl(point)
    if members == 40:
        assert kl(policy) < 1e-9 and kl(point) > 1.5
    half = robust_policy(problem, Hull(0.5 * nominal + 0.5 * rewards), beta=0.2)
    pi = cp.Variable(8, nonneg=True)
    least = cp.Variable()
    flow = pi - reference[0]
    kept = cp.sum(cp.rel_entr(pi, reference[0]))
    program = cp.Problem(
        cp.Maximize(0.5 * nominal[0] @ flow + 0.5 * least - 0.2 * kept),
        [cp.sum(pi) == 1, *(least <= r[0] @ flow for r in rewards)],
    )
    program.solve(solver="CLARABEL")
    assert half.evidence["reward_value"] == pytest.approx(program.value, abs=1e-6)


def test_a_low_temperature_is_reached_through_higher_ones() -> None:
    """Margins 1e5 times beta, where one descent from the middle of the class ends short of the minimum."""
    g = np.random.default_rng(0)
    problem = ContextualBandit(d0=np.full(5, 0.2), reference=g.dirichlet(np.ones(10), size=5))
    hull = Hull(100.0 * g.normal(size=(20, 5, 10)))
    assert robust_policy(problem, hull, beta=1e-3).status == "certified"


def test_a_constant_of_a_member_counts_only_without_a_base() -> None:
    """Bradley-Terry leaves each prompt's constant free; the least over members that differ by one picks the lowest."""
    problem, rewards = ensemble(2, 2, 5, 4)
    data = problem.sample_preferences(80, rng=0)
    moved = rewards + np.array([[0.0, 3.0], [1.0, -2.0], [-4.0, 0.5], [2.0, 2.0]])[:, :, None]
    objective = rpo.RPO(beta=0.3, eta=0.3)
    plain, offset = (solve(problem, data, objective, reward_class=Hull(r)).policy for r in (rewards, moved))
    assert plain == pytest.approx(offset, abs=1e-7)
    for base, same in (("reference", True), ("none", False)):
        plain, offset = (robust_policy(problem, Hull(r), beta=0.3, base=base).policy for r in (rewards, moved))
        assert (np.abs(plain - offset).max() < 1e-7) == same
    centred = rewards - (rewards * problem.reference).sum(axis=2, keepdims=True)
    held = robust_policy(problem, Hull(rewards), beta=0.3)
    assert robust_policy(problem, Hull(centred), beta=0.3, base="none").policy == pytest.approx(held.policy, abs=1e-7)


def test_ellipsoid_is_the_ball_of_whitened_features() -> None:
    """theta = L'^-1 c maps the ball on the ellipsoid; a centre moves every reward by its own."""
    problem, _ = ensemble(0, 2, 4, 1)
    data = problem.sample_preferences(100, rng=0)
    given = replace(ellipsoid(3, 2, 4), radius=0.2)
    assert given.metric is not None and given.centre is not None
    values, vectors = np.linalg.eigh(given.metric)
    ball = LinearBall(given.features @ (vectors / np.sqrt(values)), given.radius)
    bare = LinearBall(given.features, given.radius, metric=given.metric)
    objective = rpo.RPO(beta=0.3, eta=0.2)
    one, other = (solve(problem, data, objective, reward_class=c) for c in (ball, bare))
    assert one.reward == pytest.approx(other.reward, abs=1e-8)
    theta = bare.parameters(other.reward)
    assert bare.reward(theta) == pytest.approx(other.reward, abs=1e-12)
    assert theta @ given.metric @ theta == pytest.approx(given.radius**2, abs=1e-9)  # it binds
    point = given.parameters(solve(problem, data, objective, reward_class=given).reward)
    assert (point - given.centre) @ given.metric @ (point - given.centre) <= given.radius**2 * (1 + 1e-9)
    assert given.longest() >= np.linalg.norm(point)
    g, member = np.random.default_rng(0).normal(size=(2, 4)), given.reward(given.centre)
    pulled = np.einsum("xad,xa->d", given.features, g)
    farthest = given.radius * np.sqrt(pulled @ np.linalg.solve(given.metric, pulled))
    assert given.support_gap(g, member) == pytest.approx(farthest)


def test_ellipsoid_at_a_low_temperature_is_pessimistic_maximum_likelihood() -> None:
    """Zhu's program is beta -> 0: its worst-case value exceeds ours by at most beta times the largest KL."""
    problem, _ = ensemble(4, 2, 4, 1)
    features = np.random.default_rng(4).normal(size=(2, 4, 3))
    data = problem.sample_preferences(300, rng=1)
    ridge, radius = 0.05, 0.3
    zhu = PessimisticMLE(LinearBall(features, 2.0), radius=radius, ridge=ridge, prompt_weights="population")
    found = zhu.solve(problem, data)
    theta = LinearBall(features, 2.0).parameters(found.reward)
    metric = covariance(features, data) + ridge * np.eye(3)
    base = build_saddle(problem, data, rpo.DPO(beta=1.0), Unconstrained()).base
    largest = float(-np.log(problem.reference).min())
    for beta in (1e-2, 1e-4):
        ours = robust_policy(
            problem, LinearBall(features, radius, metric=metric, centre=theta), beta=beta, base=base
        ).evidence["reward_value"]
        assert -1e-9 <= found.evidence["worst_case_value"] - ours <= beta * largest


@pytest.mark.parametrize("seed", range(3))
def test_ties_of_the_likelihood_go_to_the_most_pessimistic_mixture(seed: int) -> None:
    """At eta = 0 the limit of small eta, also where several mixtures fit the data alike; of any other they differ."""
    problem, rewards = ensemble(seed, 2, 4, 6, noise=3.0)
    data = PreferenceCounts.from_pairs([0, 0, 0], [0, 0, 1], [1, 1, 0], num_prompts=2, num_responses=4)
    reward_class = Hull(rewards)
    options: dict[str, Any] = {"reward_class": reward_class, "prompt_weights": "population"}
    found = solve(problem, data, rpo.DPO(beta=0.3), **options)
    near = solve(problem, data, rpo.RPO(beta=0.3, eta=1e-6), **options)
    assert found.certificate.relative_gap <= 1e-12
    assert found.policy == pytest.approx(near.policy, abs=1e-4)
    saddle = found.saddle
    fit = minimize_simplex(lambda w: _likelihood(reward_class, saddle, w), np.full(6, 1 / 6)).x
    assert np.abs(saddle.gibbs(reward_class.table(fit)) - found.policy).max() > 1e-2
    assert saddle.margins(reward_class.table(fit)) == pytest.approx(saddle.margins(found.reward), abs=1e-6)


def _likelihood(reward_class: Hull, saddle: Saddle, w: Any) -> Any:
    z = saddle.margins(reward_class.table(w))
    seen = reward_class.design[saddle.prompt, saddle.chosen] - reward_class.design[saddle.prompt, saddle.rejected]
    p = 1.0 / (1.0 + np.exp(z))
    curve = (saddle.weights * p * (1 - p))[:, None] * seen
    return float(saddle.weights @ np.logaddexp(0.0, -z)), -(saddle.weights * p) @ seen, seen.T @ curve


def test_newton_on_the_simplex_against_a_program() -> None:
    """Quadratics of any rank, with and without rows that must keep their value; the minimum may lie on a face."""
    g = np.random.default_rng(0)
    for rank in (1, 3, 8):
        root, pull = g.normal(size=(rank, 8)), g.normal(size=8)
        start = g.dirichlet(np.ones(8))
        for kept in (None, g.normal(size=(2, 8)), np.repeat(g.normal(size=(1, 8)), 3, axis=0)):
            found = minimize_simplex(
                lambda x, h=root.T @ root, b=pull: (0.5 * x @ h @ x - b @ x, h @ x - b, h), start, kept
            )
            x = cp.Variable(8, nonneg=True)
            rows = [] if kept is None else [kept @ x == kept @ start]
            program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ x) - pull @ x), [cp.sum(x) == 1, *rows])
            program.solve(solver="CLARABEL")
            assert found.value == pytest.approx(program.value, abs=1e-7)
            assert found.residual <= 1e-12 and found.x.min() >= 0.0
            assert found.x.sum() == pytest.approx(1.0, abs=1e-12)
            if kept is not None:
                assert kept @ found.x == pytest.approx(kept @ start, abs=1e-12)


def test_support_and_membership_by_linear_programs() -> None:
    g = np.random.default_rng(0)
    rewards, flow = g.normal(size=(5, 2, 3)), g.normal(size=(2, 3))
    hull, lower, upper = Hull(rewards), rewards.min(axis=0), rewards.max(axis=0)
    flat = rewards.reshape(5, -1)
    for weights in g.dirichlet(np.ones(5), size=10):
        member = np.tensordot(weights, rewards, axes=1)
        program = linprog(-(flat @ flow.ravel()), A_eq=np.ones((1, 5)), b_eq=[1.0])
        gap = -program.fun - float((flow * member).sum())
        assert hull.support_gap(flow, member) == pytest.approx(gap, abs=1e-12)
        wide = linprog(-flow.ravel(), bounds=list(zip(lower.ravel(), upper.ravel(), strict=True)))
        intervals = Intervals(lower, upper)
        assert intervals.support_gap(flow, member) == pytest.approx(-wide.fun - (flow * member).sum(), abs=1e-9)
        assert hull.contains(member) and intervals.contains(member)
        assert hull.weights(member) == pytest.approx(weights, abs=1e-9)
        assert hull.project(member) == pytest.approx(member, abs=1e-9)
        assert hull.contains_differences(member + np.array([[7.0], [-3.0]]))
        assert not hull.contains(member + 0.1) or np.ptp(rewards) == 0
    outside = 2 * rewards[0] - rewards[1:].mean(axis=0)
    assert not hull.contains(outside) and not hull.contains_differences(outside)
    # The nearest member: no mixture is nearer, by the angle it makes with every member.
    nearest = hull.project(outside)
    assert ((rewards - nearest) * (outside - nearest)).sum(axis=(1, 2)).max() <= 1e-9
    assert Intervals(lower, upper).contains_differences(lower + 5.0)
    assert not Intervals(lower, upper).contains_differences(upper + np.array([[5.0, 0.0, 0.0]]))


def test_margins_and_covering_numbers_by_hand() -> None:
    """Two members, (0, 1) and (3, 0): margins 1 and 3; entries differ by 3 and 1, so L = 3/2 and 1 + 6 / eps balls.

    Intervals [0, 3] and [0, 1] have margin 3, and at radius 1/4 six cells times two.
    """
    hull = Hull(np.array([[[0.0, 1.0]], [[3.0, 0.0]]]))
    assert hull.largest_margin() == 3.0
    assert hull.log_covering(prompts=1, arms=2, radius=0.5) == pytest.approx(np.log(13.0))
    g = np.random.default_rng(0)
    rewards = g.normal(size=(3, 2, 3))
    wide, centres = Hull(rewards), []
    for weights in g.dirichlet(np.ones(3), size=4000):  # a greedy net never needs more than the bound
        table = wide.table(weights)
        if all(np.abs(table - centre).max() > 0.4 for centre in centres):
            centres.append(table)
    assert 3 < len(centres) <= np.exp(wide.log_covering(prompts=2, arms=3, radius=0.4))
    intervals = Intervals(np.zeros((1, 2)), np.array([[3.0, 1.0]]))
    assert intervals.largest_margin() == 3.0
    assert intervals.log_covering(prompts=1, arms=2, radius=0.25) == pytest.approx(np.log(12.0))
    assert Intervals(np.ones((1, 2)), np.ones((1, 2))).log_covering(prompts=1, arms=2, radius=0.1) == 0.0
    ball = LinearBall(np.array([[[1.0], [3.0]]]), 0.5, centre=np.array([2.0]))
    assert ball.largest_margin() == 5.0  # theta in [1.5, 2.5], features two apart


def test_coverage_of_a_hull_is_that_of_its_directions() -> None:
    """Two members differ in one direction v: C = |<pi - base, v>| / root mean square difference of v over the data."""
    problem, rewards = ensemble(1, 1, 4, 2)
    found = coverage.coverage_coefficient(problem, reward_class=Hull(rewards), boundary=False)
    v = (rewards[1] - rewards[0])[0]
    mu = problem.pair_distribution()[0]
    gain = (problem.greedy_policy() - coverage.chosen_distribution(problem, problem.pair_distribution()))[0] @ v
    assert found.value == pytest.approx(abs(gain) / np.sqrt((mu * (v[:, None] - v[None]) ** 2).sum()))
    with pytest.raises(InvalidArgument, match="some mixture has the differences of r"):
        coverage.coverage_coefficient(problem, reward_class=Hull(rewards))
    truth = problem.true_reward() + 7.0
    held = coverage.coverage_coefficient(problem, reward_class=Hull(np.stack([truth, truth + rewards[1] - rewards[0]])))
    assert held.value == pytest.approx(found.value)  # the same direction, with r* at one end of it


@pytest.mark.parametrize("chain", ["paper", "sharper", "hellinger"])
def test_the_slack_ledger_holds_in_the_hull_and_the_intervals(chain: str) -> None:
    """Every step of the bound's proof, at the class's own margin and covering number, r* a member."""
    problem, rewards = ensemble(3, 2, 4, 3)
    members = np.concatenate([problem.true_reward()[None], rewards])
    for reward_class in (Hull(members), Intervals(members.min(axis=0), members.max(axis=0))):
        for n in (100, 10**5):
            known = bounds.bound_arguments(problem, n, base=problem.reference, reward_class=reward_class)
            bound = bounds.suboptimality_bound(chain, **known)
            objective = rpo.RPO(beta=bound.beta, eta=bound.eta, base="reference")
            data = problem.sample_preferences(n, rng=0)
            found = solve(
                problem, data, objective, reward_class=reward_class, method="newton", prompt_weights="population"
            )
            made = bounds.slack_ledger(problem, data, found, chain=chain)
            assert made.holds and 0.0 <= made.suboptimality <= made.bound.value
            assert made.adversary_residual < 1e-10


def test_what_does_not_fit_is_refused_by_name() -> None:
    problem, rewards = ensemble(0, 2, 4, 3)
    data, objective = problem.sample_preferences(20, rng=0), rpo.RPO(beta=0.3, eta=0.1)
    other = {
        "reward_class.rewards": Hull(rewards[:, :1]),
        "reward_class.lower": Intervals(rewards[0][:, :3], rewards[0][:, :3]),
        "reward_class.features": LinearBall(np.ones((2, 3, 1)), 1.0),
    }
    for name, reward_class in other.items():
        for ask in (
            lambda c=reward_class: solve(problem, data, objective, reward_class=c),
            lambda c=reward_class: robust_policy(problem, c, beta=1.0),
        ):
            with pytest.raises(InvalidArgument, match=f"^{name}"):
                ask()
    with pytest.raises(InvalidArgument, match=r"^upper: expected entries >= those of lower, got 0 < 1 at prompt 0"):
        Intervals(np.ones((1, 2)), np.array([[0.0, 2.0]]))
    with pytest.raises(InvalidArgument, match=r"^rewards: expected at least one reward"):
        Hull(np.zeros((0, 1, 2)))
    for metric, expected in ((np.diag([1.0, 0.0]), "positive definite"), (np.array([[1.0, 0.5], [0.0, 1.0]]), "symm")):
        with pytest.raises(InvalidArgument, match=f"^metric: expected a {expected}"):
            LinearBall(np.ones((1, 2, 2)), 1.0, metric=metric)
    with pytest.raises(InvalidArgument, match="bounded class with a largest margin, got Unconstrained"):
        robust_policy(problem, Unconstrained(), beta=1.0)
    with pytest.raises(InvalidArgument, match="^divergence: expected one that inherits no inverse"):
        other_link = type("Mine", (KL,), {"link": lambda self, h: 2 * h})()
        robust_policy(problem, Hull(rewards), beta=1.0, divergence=other_link)
    whole = (Hull(rewards), Intervals(rewards[0], rewards[0]), LinearBall(np.ones((2, 4, 1)), 1.0, centre=np.ones(1)))
    for reward_class in whole:
        with pytest.raises(InvalidArgument, match="^reward_class: expected .* many instances at once, got"):
            solve_batch(data.wins()[None], objective, reference=problem.reference, reward_class=reward_class)


def test_simulate_takes_a_hull_and_keeps_two_of_them_apart() -> None:
    """Where no batch is solved, each draw is solved on its own; a record tells two hulls of one size apart."""
    problem, rewards = ensemble(0, 1, 4, 3)
    methods = {
        name: Maximin(rpo.RPO(beta=0.2, eta=0.1), Hull(members))
        for name, members in (("hull", rewards), ("other", rewards + 1.0 * (np.arange(4) == 0)))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = simulate(problem, methods, {"n": [50]}, seeds=2, rng=0)
    assert set(result["status"]) == {"certified"}
    first, second = (methods[name].to_dict()["reward_class"] for name in ("hull", "other"))
    assert first["members"] == second["members"] == 3 and first["rewards"] != second["rewards"]
