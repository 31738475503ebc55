"""Named instances: what each promises, the list of them, flipped labels, planned comparisons."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom

from rpo.bandit import instances
from rpo.bandit.baselines.plain import Greedy
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import LinearBall
from rpo.bandit.solver.existence import comparison_components
from rpo.core.errors import InvalidArgument


def test_earlier_instances_still_draw_the_same_bits() -> None:
    """Fingerprint of rewards and counts of 90 problems, taken before label noise and planned designs existed."""
    h = hashlib.sha256()
    for s in range(30):
        for problem in (instances.coverage_skew(rng=s), instances.random(rng=s), instances.random(features=3, rng=s)):
            assert problem.reward is not None
            h.update(problem.reward.tobytes())
            h.update(problem.sample_preferences(10 ** (s % 9 + 1), rng=s).wins().tobytes())
    assert h.hexdigest() == "81fc3651a34b323601fbdd00b4dd80b3edc4836ca87b40d68bce7f2419636615"


def test_the_list_names_every_instance_with_a_sentence_and_a_signature() -> None:
    listed = instances.list_instances()
    assert set(listed) == {
        "coverage_skew", "disconnected", "label_noise", "linear_outside_span", "random", "zhu_four_arms"
    }  # fmt: skip
    for name, info in listed.items():
        assert info.make is getattr(instances, name)
        assert info.sentence.endswith(".") and info.signature.startswith(name + "(")
    assert listed["disconnected"].signature == "disconnected(*, arms=6, prompts=1, bridge=0.0, reward_bound=3.0, rng)"
    made = {n: i.make(rng=0) for n, i in listed.items() if n not in ("label_noise", "zhu_four_arms")}
    assert all(isinstance(problem, ContextualBandit) and problem.name.startswith(n) for n, problem in made.items())


@pytest.mark.parametrize("arms", [4, 5, 7])
def test_disconnected_never_compares_across_unless_bridged(arms: int) -> None:
    """bridge is the share of pairs across; at zero the comparison graph has two components, above it one."""
    half = np.arange(arms) < (arms + 1) // 2
    across = half[:, None] != half[None, :]
    for bridge, components in ((0.0, 2), (0.2, 1)):
        problem = instances.disconnected(arms=arms, prompts=2, bridge=bridge, rng=0)
        mu = problem.pair_distribution()
        assert mu[:, across].sum(axis=1) == pytest.approx([bridge, bridge], abs=1e-12)
        wins = problem.sample_preferences(5_000, rng=1).wins()
        assert comparison_components(wins[0] > 0).max() + 1 == components
    with pytest.raises(InvalidArgument, match="bridge"):
        instances.disconnected(bridge=1.0, rng=0)


@pytest.mark.parametrize("seed", range(10))
def test_linear_outside_span_hides_the_direction_of_the_best_arm(seed: int) -> None:
    """phi(best) - E_behaviour[phi] leaves the span of the differences compared; with a leak it does not.

    r* is linear with a unit theta up to a constant a prompt: least squares on differences leaves nothing.
    """
    for leak, covered in ((0.0, False), (0.1, True)):
        problem = instances.linear_outside_span(prompts=2, leak=leak, rng=seed)
        phi, reward, mu = problem.features, problem.reward, problem.pair_distribution()
        assert phi is not None and reward is not None and problem.reward_bound == 2.0
        assert (reward.argmax(axis=1) == 6).all() and reward.min() == 0.0 and reward.max() == pytest.approx(2.0)
        x, i, j = np.nonzero(mu)
        seen = phi[x, i] - phi[x, j]
        best = phi[0, 6] - phi[0, 0]
        left = best - seen.T @ np.linalg.lstsq(seen.T, best, rcond=None)[0]
        assert (np.abs(left).max() < 1e-9) == covered
        centred = (phi - phi[:, :1]).reshape(-1, 3)
        theta, *_ = np.linalg.lstsq(centred, (reward - reward[:, :1]).ravel(), rcond=None)
        assert centred @ theta == pytest.approx((reward - reward[:, :1]).ravel(), abs=1e-9)
        assert np.linalg.norm(theta) == pytest.approx(1.0, abs=1e-9)


def test_label_noise_mixes_the_two_outcomes_and_leaves_the_truth() -> None:
    """At r = (ln 3, 0) arm 0 wins 3/4; a quarter flipped: 3/4 * 3/4 + 1/4 * 1/4 = 5/8. At 1/2 labels say nothing.

    The draws agree with 5/8 (p above 1e-6) and, the control, refuse 3/4.
    """
    clean = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward=[[math.log(3.0), 0.0]])
    noisy = instances.label_noise(clean, 0.25)
    assert noisy.preference_probability()[0] == pytest.approx(np.array([[0.5, 0.625], [0.375, 0.5]]), abs=1e-15)
    assert instances.label_noise(clean, 0.5).preference_probability() == pytest.approx(np.full((1, 2, 2), 0.5))
    assert (noisy.reward == clean.reward).all() and noisy.suboptimality(np.array([[0.0, 1.0]])) == math.log(3.0)
    won = int(noisy.sample_preferences(20_000, rng=0).wins()[0, 0, 1])
    assert 2 * min(binom.cdf(won, 20_000, 0.625), binom.sf(won - 1, 20_000, 0.625)) > 1e-6
    assert binom.cdf(won, 20_000, 0.75) < 1e-6
    same = instances.label_noise(clean, 0.0).sample_preferences(1_000, rng=3).wins()
    assert (same == clean.sample_preferences(1_000, rng=3).wins()).all()


@pytest.mark.parametrize("rate", [-0.1, 0.6, float("nan"), "0.1"])
def test_label_noise_outside_zero_to_one_half_is_refused(rate: Any) -> None:
    with pytest.raises(InvalidArgument, match="label_noise"):
        ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward=[[1.0, 0.0]], label_noise=rate)


def test_zhu_matches_the_construction_written_out() -> None:
    """phi theta* = (-0.9, -1, 0, 0.1), one lower than stored; ||theta*|| = sqrt(1.82) in the plane's basis too.

    The class: a reward of LinearBall(features, B) is phi theta with sum(theta) = 0, ||theta|| <= B and no other.
    """
    problem = instances.zhu_four_arms(n=50)
    assert problem.reward is not None and problem.features is not None
    phi = np.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    theta = np.array([-1.0, 0.1, 0.9])
    assert problem.reward[0] - 1.0 == pytest.approx(phi @ theta, abs=1e-15)
    ball = LinearBall(problem.features, 2.0)
    coordinates = ball.parameters((phi @ theta)[None])
    assert np.linalg.norm(coordinates) == pytest.approx(math.sqrt(1.82), abs=1e-12)
    g = np.random.default_rng(0).normal(size=(100, 3))
    for t in g - g.mean(axis=1, keepdims=True):
        assert ball.contains((phi @ t)[None]) == (np.linalg.norm(t) <= 2.0)
    wins = problem.sample_preferences(50, rng=0).wins()[0]
    assert wins[0, 1] + wins[1, 0] == 49 and wins[1, 2] + wins[2, 1] == 1 and wins.sum() == 50
    assert (problem.sample_preferences(50, rng=0).wins()[0] == wins).all()
    with pytest.raises(InvalidArgument, match="50 comparisons"):
        problem.sample_preferences(51, rng=0)
    with pytest.raises(InvalidArgument, match="radius"):
        instances.zhu_four_arms(n=10, radius=1.0)
    assert instances.label_noise(problem, 0.1).sample_preferences(50, rng=0).n == 50


def zhu_data(n: int, first: int, upset: bool) -> PreferenceCounts:
    wins = np.zeros((1, 4, 4))
    wins[0, 0, 1], wins[0, 1, 0] = first, n - 1 - first
    wins[0, 1, 2], wins[0, 2, 1] = upset, not upset
    return PreferenceCounts.from_wins(wins)


@pytest.mark.parametrize("upset", [False, True])
@pytest.mark.parametrize("n", [100, 10_000, 1_000_000])
def test_greedy_fails_on_zhu_exactly_when_the_single_comparison_is_an_upset(n: int, upset: bool) -> None:
    """theta-hat by scipy in the three original coordinates; a share sigmoid(0.1) of wins for arm 1.

    Upset (chance 0.269): arm 1, gap 1.0, so the mean gap is at least 0.269 whatever n. Otherwise arm 4.
    """
    problem = instances.zhu_four_arms(n=n)
    assert problem.features is not None
    first = round((n - 1) / (1 + math.exp(-0.1)))
    result = solve(problem, zhu_data(n, first, upset), Greedy(reward_class=LinearBall(problem.features, 2.0)))
    assert result.status == "certified" and result.policy[0].argmax() == (0 if upset else 3)
    assert problem.suboptimality(result.policy) == pytest.approx(1.0 if upset else 0.0, abs=1e-12)

    share = first / (n - 1)

    def loss(t: Any) -> float:  # the lone pair is scaled by n: its weight in theta_1 only sets how flat the loss is
        many = share * np.logaddexp(0, -t[1]) + (1 - share) * np.logaddexp(0, t[1])
        return float((n - 1) / n * many + np.logaddexp(0, -t[0] if upset else t[0]) / n)

    constraints = [{"type": "eq", "fun": np.sum}, {"type": "ineq", "fun": lambda t: 4.0 - t @ t}]
    start = np.array([1.0, 0.1, -1.1]) if upset else np.array([-1.0, 0.1, 0.9])
    options = {"ftol": 1e-16, "maxiter": 500}
    best = minimize(loss, start, method="SLSQP", constraints=constraints, options=options).x
    assert result.reward is not None
    mine = result.reward[0] - result.reward[0, 2]
    ours = np.array([mine[1], mine[3], -mine[1] - mine[3]])
    assert loss(ours) <= loss(best) + 1e-12 and ours @ ours <= 4.0 + 1e-9
    if n <= 10_000:
        assert ours == pytest.approx(best, abs=1e-2)


@pytest.mark.parametrize("design", [np.ones((1, 4, 4)), -np.ones((1, 4, 4)), np.zeros((1, 3, 3))])
def test_a_design_that_is_no_table_of_comparisons_is_refused(design: Any) -> None:
    with pytest.raises(InvalidArgument, match="design"):
        instances.FixedDesign(d0=[1.0], reference=[[0.25] * 4], reward=[[0.0, 1, 1, 1]], design=design)
