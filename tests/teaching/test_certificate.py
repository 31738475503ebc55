"""Notebook 02's pictures and paths against phi written out, a grid of rewards, and SciPy."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize, minimize_scalar

from rpo.bandit import Box, Unconstrained, solve
from rpo.bandit.solver.saddle import build_saddle
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO
from rpo.teaching import exercises
from rpo.teaching.lessons import certificate as lesson

ANSWERS = exercises("02")


def loss(wins: np.ndarray, r: np.ndarray) -> float:
    """L_D written out."""
    return float((wins * np.logaddexp(0.0, r[None, :] - r[:, None])).sum() / wins.sum())


def upper(wins: np.ndarray, base: np.ndarray, r: np.ndarray, beta: float, eta: float) -> float:
    """F(r) written out, uniform reference."""
    return loss(wins, r) + eta * (beta * math.log(np.exp(r / beta).mean()) - float(base @ r))


def test_phi_of_two_responses_is_the_formula() -> None:
    problem, pairs = lesson.two_responses(14, 6, bound=2.0)
    saddle = build_saddle(problem, pairs, RPO(beta=0.5, eta=0.3), Box(2.0))
    grid = lesson.saddle_values(saddle, 2.0)
    for i, j in ((10, 200), (120, 30), (240, 120)):
        p, t = grid["share"][j], grid["difference"][i]
        kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
        data = (14 * math.log1p(math.exp(-t)) + 6 * math.log1p(math.exp(t))) / 20
        assert grid["value"][i, j] == pytest.approx(0.3 * ((p - 0.7) * t - 0.5 * kl) + data, abs=1e-12)
    assert (grid["lower"].max() <= grid["upper"].min()) and grid["upper"].min() - grid["lower"].max() < 1e-3
    three, data_of_three = lesson.newcomer()
    with pytest.raises(InvalidArgument, match="two responses"):
        lesson.saddle_values(build_saddle(three, data_of_three, RPO(beta=1.0, eta=1.0), Box(3.0)), 3.0)


def test_the_picture_marks_the_saddle() -> None:
    problem, pairs = lesson.two_responses()
    objective = RPO(beta=0.5, eta=0.5)
    plane = lesson.saddle_picture(problem, pairs, objective).axes[0]
    x, y = (float(values[0]) for values in plane.get_lines()[2].get_data())
    wins, base = pairs.wins()[0], np.array([0.7, 0.3])
    found = minimize_scalar(lambda t: upper(wins, base, np.array([t, 0.0]), 0.5, 0.5), bounds=(0, 2), method="bounded")
    assert y == pytest.approx(found.x, abs=1e-4)
    assert x == pytest.approx(1 / (1 + math.exp(-found.x / 0.5)), abs=1e-4)


@pytest.mark.parametrize(
    ("reward_class", "base", "power"), [(Unconstrained(), "reference", 2), (Box(3.0), "chosen", 1)]
)
def test_a_push_raises_the_gap_and_the_bound_bounds(reward_class: object, base: str, power: int) -> None:
    problem, pairs = lesson.newcomer()
    frame = lesson.perturbations(problem, pairs, RPO(beta=0.3, eta=0.1, base=base), reward_class, (1e-4, 1e-3))
    assert (frame["tv_bound"] >= frame["distance"]).all() and (frame["distance"] > 0).all()
    assert math.log10(frame["gap"][1] / frame["gap"][0]) == pytest.approx(power, abs=0.02)
    assert frame["tv_bound"][0] == pytest.approx(math.sqrt(frame["gap"][0] / (2 * 0.3 * 0.1)))
    assert len(lesson.perturbation_figure({"one": frame, "two": frame}).axes) == 2


def test_no_reward_on_a_grid_is_worse_than_the_adversarys() -> None:
    problem, pairs = lesson.newcomer()
    wins = pairs.wins()[0]
    base = np.array([26, 14, 2]) / 42
    policy = np.array([0.1, 0.1, 0.8])
    frame = lesson.worst_cases(problem, pairs, {"mine": policy[None]}, etas=(0.05, 1.0))
    likely = solve(problem, pairs, DPO(beta=1.0), method="newton").reward[0]
    least = loss(wins, likely)
    grid = [np.array(r) for r in product(np.linspace(0, 3, 13), repeat=3)]
    for row in frame.itertuples():

        def payoff(r: np.ndarray, eta: float = row.eta) -> float:
            return eta * float((policy - base) @ r) + loss(wins, r)

        reached = row.eta * row.advantage + row.nats / 42 + least
        found = minimize(payoff, np.ones(3), bounds=[(0, 3)] * 3, options={"ftol": 1e-15})
        assert reached <= min(map(payoff, grid)) + 1e-9 and reached == pytest.approx(found.fun, abs=1e-7)
    assert frame["nats"].is_monotonic_increasing and frame["advantage"].is_monotonic_decreasing
    assert len(lesson.worst_case_figure(frame).axes[0].get_lines()) == 2


def test_the_path_along_eta_is_the_optimum_of_f() -> None:
    problem, pairs = lesson.newcomer()
    wins, base = pairs.wins()[0], np.array([26, 14, 2]) / 42
    path = lesson.eta_path(problem, pairs, 0.3, (0.05, 0.1))
    for row, eta in zip(path.to_dict("records"), (0.05, 0.1), strict=True):
        found = minimize(
            lambda r, eta=eta: upper(wins, base, r, 0.3, eta), np.ones(3), bounds=[(0, 3)] * 3, options={"ftol": 1e-15}
        )
        gibbs = np.exp(found.x / 0.3) / np.exp(found.x / 0.3).sum()
        assert np.allclose([row["pi:A"], row["pi:B"], row["pi:C"]], gibbs, atol=1e-3)
        assert row["r:C"] == pytest.approx(found.x[2] - base @ found.x, abs=1e-3)
        assert row[lesson.ADVERSARY] <= row[lesson.MLE]
        assert row[lesson.GOLD] == pytest.approx((gibbs - base) @ [2.0, 1.4, 0.5], abs=3e-3)
    assert ANSWERS["02.4"].accepts(0.1) and path["pi:A"][0] < path["pi:C"][0] and path["pi:A"][1] > path["pi:C"][1]
    assert len(lesson.eta_figure(path).axes) == 3


def test_a_solution_in_a_line() -> None:
    problem, pairs = lesson.two_responses(1, 1)
    line = lesson.describe(solve(problem, pairs, RPO(beta=1.0, eta=1.0), method="newton"))
    assert line == "policy (0.500, 0.500), reward (0.000, 0.000), certified"


def test_answers_by_hand() -> None:
    # log((e + 1) / 2) - 1/2 is the integral of sigma(t) - 1/2 from 0 to 1
    assert ANSWERS["02.1"].accepts(quad(lambda t: 1 / (1 + math.exp(-t)) - 0.5, 0, 1)[0])
    assert ANSWERS["02.2"].accepts(0.01)
    assert ANSWERS["02.3"].accepts(100) and not ANSWERS["02.3"].accepts(90)
    problem, pairs = lesson.newcomer()
    far = solve(problem, pairs, RPO(beta=0.3, eta=300.0), method="newton").policy[0]
    assert np.allclose(far, np.array([26, 14, 2]) / 42, atol=1e-2) and ANSWERS["02.5"].accepts("the base")
