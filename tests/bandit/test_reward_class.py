"""Support functions S_R(g) = max over R of <g, r>, against linear programs, members and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from rpo.bandit import bounds, coverage, instances, solve
from rpo.bandit.bounds.covering import largest_margin
from rpo.bandit.reward_class import Box, LinearBall, RewardSet, Unconstrained
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO


def support(reward_class: Any, g: Any, member: Any) -> float:
    """S_R(g) recovered from the gap at a member."""
    return float(reward_class.support_gap(g, member) + (g * member).sum())


@pytest.mark.parametrize("seed", range(5))
def test_box_support_is_the_linear_program(seed: int) -> None:
    """And the same S_R(g) comes out whichever member the gap is taken at."""
    rng = np.random.default_rng(seed)
    g, bound = rng.normal(size=(2, 4)), float(rng.uniform(0.5, 3.0))
    program = linprog(-g.ravel(), bounds=[(0.0, bound)] * 8)
    for member in (np.zeros((2, 4)), rng.uniform(0, bound, size=(2, 4))):
        assert support(Box(bound), g, member) == pytest.approx(-program.fun, abs=1e-9)


def test_box_support_by_hand() -> None:
    """R = 2, g = (1, -3, 0.5): S = 2 * 1.5 = 3; at r = (1, 1, 1), <g, r> = -1.5, so the gap is 4.5."""
    g = np.array([[1.0, -3.0, 0.5]])
    assert Box(2.0).support_gap(g, np.ones((1, 3))) == pytest.approx(4.5)
    assert Box(2.0).support_gap(g, np.array([[2.0, 0.0, 2.0]])) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_gap_is_nonnegative_over_members_and_zero_where_attained(seed: int) -> None:
    """Control: outside the class, along g, the gap is negative."""
    rng = np.random.default_rng(seed)
    g, phi = rng.normal(size=(2, 4)), rng.normal(size=(2, 4, 3))
    box, ball = Box(1.5), LinearBall(phi, 0.7)
    pulled = np.einsum("xad,xa->d", phi, g)
    theta = 0.7 * pulled / np.linalg.norm(pulled)
    for _ in range(200):
        inside = rng.normal(size=3)
        inside *= 0.7 * rng.uniform() ** (1 / 3) / np.linalg.norm(inside)
        assert ball.support_gap(g, ball.reward(inside)) >= 0.0
        assert box.support_gap(g, rng.uniform(0, 1.5, size=(2, 4))) >= 0.0
        assert ball.support_gap(g, ball.reward(inside)) == pytest.approx(float(pulled @ (theta - inside)), abs=1e-12)
    assert ball.support_gap(g, ball.reward(theta)) == pytest.approx(0.0, abs=1e-14)
    best = np.where(g > 0, 1.5, 0.0)
    assert box.support_gap(g, best) == 0.0
    assert box.support_gap(g, best + 0.1 * np.sign(g)) < -0.01


def test_unconstrained_support_is_the_indicator_of_zero() -> None:
    assert Unconstrained().support_gap(np.zeros((1, 2)), np.full((1, 2), 7.0)) == 0.0
    assert Unconstrained().support_gap(np.array([[1e-9, -1e-9]]), np.zeros((1, 2))) == math.inf


def test_membership() -> None:
    phi = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    ball = LinearBall(phi, 5.0)
    assert ball.contains(np.array([[3.0, 4.0, 7.0]]))  # theta = (3, 4), on the sphere
    assert not ball.contains(np.array([[3.0, 4.1, 7.1]]))  # outside the ball
    assert not ball.contains(np.array([[1.0, 1.0, 0.0]]))  # not linear in phi
    assert Box(2.0).contains(np.array([[0.0, 2.0]])) and not Box(2.0).contains(np.array([[0.0, 2.1]]))
    assert not Box(2.0).contains(np.array([[-0.1, 1.0]]))
    assert Unconstrained().contains(np.array([[1e9]])) and not Unconstrained().contains(np.array([[np.nan]]))


def test_parameters_invert_the_rewards_of_the_ball() -> None:
    phi = np.random.default_rng(0).normal(size=(2, 5, 3))
    ball = LinearBall(phi, 1.0)
    theta = np.array([0.1, -0.2, 0.3])
    assert ball.reward(theta)[1, 2] == pytest.approx(0.1 * phi[1, 2, 0] - 0.2 * phi[1, 2, 1] + 0.3 * phi[1, 2, 2])
    assert ball.parameters(ball.reward(theta)) == pytest.approx(theta)


def test_parameters_have_least_norm_where_features_repeat() -> None:
    """Two equal columns share the coefficient: reward 2 phi is (1, 1), not (2, 0)."""
    column = np.array([[[1.0], [3.0]]])
    ball = LinearBall(np.concatenate([column, column], axis=2), 2.0)
    assert ball.parameters(2 * column[..., 0]) == pytest.approx([1.0, 1.0])


def test_records_describe_the_class() -> None:
    assert Unconstrained().describe() == {"name": "Unconstrained"}
    assert Box(2).describe() == {"name": "Box", "bound": 2.0}
    assert LinearBall(np.zeros((1, 2, 3)), 0.5).describe() == {"name": "LinearBall", "radius": 0.5, "dimension": 3}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, None, "1"])
def test_bad_sizes_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^bound: expected"):
        Box(value)
    with pytest.raises(InvalidArgument, match=r"^radius: expected"):
        LinearBall(np.zeros((1, 2, 3)), value)


def test_bad_features_are_refused_by_name() -> None:
    for features in (np.zeros((2, 3)), np.full((1, 2, 3), np.nan)):
        with pytest.raises(InvalidArgument, match=r"^features: expected"):
            LinearBall(features, 1.0)


class Cells(RewardSet):
    """A class of a user's: a box with walls per entry, that answers what every class must and no more."""

    def __init__(self, lower: Any, upper: Any) -> None:
        self.lower, self.upper = np.asarray(lower), np.asarray(upper)

    def support_gap(self, g: Any, reward: Any) -> float:
        return float(np.where(g > 0, g * (self.upper - reward), g * (self.lower - reward)).sum())

    def contains(self, reward: Any) -> bool:
        return bool((reward >= self.lower).all() and (reward <= self.upper).all())

    def describe(self) -> dict[str, Any]:
        return {"name": "Cells"}


def test_a_class_of_ones_own_is_refused_by_what_it_lacks() -> None:
    """Each question names the answer that is missing and the method that would give it."""
    problem = instances.random(prompts=1, arms=3, rng=0)
    pairs = problem.sample_preferences(50, rng=0)
    own = Cells(np.zeros((1, 3)), np.full((1, 3), problem.reward_bound))
    with pytest.raises(InvalidArgument, match="bounded class with a covering number, got Cells.*`log_covering`"):
        bounds.log_covering(own, prompts=1, arms=3, radius=0.1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="bounded class with a largest margin, got Cells.*`largest_margin`"):
        largest_margin(own)
    with pytest.raises(InvalidArgument, match="class with walls, got Cells.*`walls`"):
        coverage.coverage_coefficient(problem, reward_class=own)
    for ask in (own.project, own.contains_differences, own.outer_normal):
        with pytest.raises(InvalidArgument, match=f"got Cells.*`{ask.__name__}`"):
            ask(problem.reward)
    with pytest.raises(InvalidArgument, match="got Cells.*`minimize`"):
        own.minimize([], (1, 3))
    for refused in (own, "box", Box):
        with pytest.raises(InvalidArgument, match="reward_class: expected Unconstrained"):
            solve(problem, pairs, DPO(beta=1.0), reward_class=refused)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgument, match="reward_class: expected a RewardSet"):
        bounds.log_covering("box", prompts=1, arms=3, radius=0.1)  # type: ignore[arg-type]


def test_a_class_of_ones_own_is_taken_where_it_answers() -> None:
    """Coverage asks for walls only where r* may lie on one; then the interior value is the box's."""
    problem = instances.random(prompts=1, arms=3, rng=0)
    own = Cells(np.zeros((1, 3)), np.full((1, 3), problem.reward_bound))
    inside = coverage.coverage_coefficient(problem, reward_class=own, boundary=False)
    assert inside.value == coverage.coverage_coefficient(problem, boundary=False).value


def test_projections_and_differences_by_hand() -> None:
    box, ball = Box(2.0), LinearBall(np.array([[[1.0], [3.0]]]), 0.5)
    assert box.project(np.array([[-1.0, 0.5, 3.0]])).tolist() == [[0.0, 0.5, 2.0]]
    assert box.contains_differences(np.array([[7.0, 9.0]])) and not box.contains_differences(np.array([[7.0, 9.1]]))
    # theta = 1/2 gives a difference of 1 between the two responses, whatever is added to both.
    assert ball.contains_differences(np.array([[7.0, 8.0]])) and not ball.contains_differences(np.array([[7.0, 8.1]]))
    assert ball.outer_normal(np.array([[7.0, 8.0]])) == pytest.approx(0.5)
    assert ball.outer_normal(np.array([[7.0, 7.9]])) is None
    at_zero, at_bound = box.walls(np.array([[0.0, 1.0, 2.0]]))
    assert at_zero.tolist() == [[True, False, False]] and at_bound.tolist() == [[False, False, True]]
