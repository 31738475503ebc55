"""Newton's method over a box and a ball against scipy.optimize and closed forms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from rpo.bandit.solver import newton
from rpo.bandit.solver.newton import minimize_ball, minimize_box

Function = Callable[[Any], tuple[float, Any, Any]]


@pytest.fixture(params=["spectrum", "factor"], autouse=True)
def systems(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few variables are solved for through the spectrum; `factor` solves for them as for many."""
    if request.param == "factor":
        monkeypatch.setattr(newton, "LARGE", 0)
    else:
        monkeypatch.setattr(newton, "LARGE", 10**9)
    return str(request.param)


def logistic(seed: int, n: int = 5, rank: int = 5, curvature: float = 0.0) -> Function:
    """A random sum of softplus(a_i' x + b_i) + curvature |x|^2 / 2, flat along n - rank directions."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(12, rank)) @ rng.normal(size=(rank, n))
    b, w = rng.normal(size=12), rng.gamma(1.0, size=12)

    def function(x: Any) -> tuple[float, Any, Any]:
        t = a @ x + b
        s = 1.0 / (1.0 + np.exp(-t))
        value = float(w @ np.logaddexp(0.0, t) + curvature * x @ x / 2)
        return value, a.T @ (w * s) + curvature * x, (a.T * (w * s * (1 - s))) @ a + curvature * np.eye(n)

    return function


def quadratic(h: Any, b: Any) -> Function:
    return lambda x: (float(x @ h @ x / 2 - b @ x), h @ x - b, h)


@pytest.mark.parametrize("rank", [5, 3, 1])
@pytest.mark.parametrize("seed", range(5))
def test_box_minimum_agrees_with_lbfgsb(seed: int, rank: int) -> None:
    """Lower rank: the Hessian is singular everywhere and the minimiser need not be unique; the value is."""
    f = logistic(seed, rank=rank)
    lower, upper = np.full(5, -1.0), np.linspace(0.2, 2.0, 5)
    result = minimize_box(f, np.zeros(5), lower, upper)
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10000}
    other = minimize(
        lambda x: f(x)[:2], np.zeros(5), jac=True, method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)), options=options,
    )  # fmt: skip
    assert (result.x >= lower).all() and (result.x <= upper).all()
    assert result.value == pytest.approx(other.fun, abs=1e-8) and result.value <= other.fun + 1e-12
    assert result.residual < 1e-12
    if rank == 5:
        assert result.x == pytest.approx(other.x, abs=1e-4)


def test_like_variables_meet_their_wall_in_one_solve(systems: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 pairs of a quadratic with equal walls and slopes equal but for rounding: one walk is 2 solves and not 41."""
    n, solves = 40, []
    h = 2.0 * np.eye(2 * n) - np.kron(np.eye(n), np.array([[0.0, 1.0], [1.0, 0.0]]))
    b = np.tile([1.0, -1.0], n) * (1.0 + 1e-15 * np.arange(2 * n))
    original = newton._solve
    monkeypatch.setattr(newton, "_solve", lambda h, g: solves.append(g.size) or original(h, g))
    result = minimize_box(quadratic(h, b), np.full(2 * n, 0.1), np.zeros(2 * n), np.full(2 * n, 0.15))
    assert result.x == pytest.approx(np.tile([0.15, 0.0], n), abs=1e-12)
    assert result.residual < 1e-12
    assert len(solves) <= (4 if systems == "factor" else 2 * n)


@pytest.mark.parametrize("rank", [5, 3, 1])
@pytest.mark.parametrize("seed", range(5))
def test_ball_minimum_agrees_with_slsqp(seed: int, rank: int) -> None:
    """Radius 0.05 binds, radius 30 does for none with a little curvature."""
    for radius, curvature in ((0.05, 0.0), (30.0, 0.1)):
        f = logistic(seed, rank=rank, curvature=curvature)
        result = minimize_ball(f, np.zeros(5), radius)
        ball = {"type": "ineq", "fun": lambda x, r=radius: r**2 - x @ x, "jac": lambda x: -2 * x}
        other = minimize(
            lambda x, f=f: f(x)[:2], np.full(5, 0.01), jac=True, method="SLSQP",
            constraints=[ball], options={"ftol": 1e-15, "maxiter": 1000},
        )  # fmt: skip
        assert np.linalg.norm(result.x) <= radius * (1 + 1e-12)
        assert (np.linalg.norm(result.x) > radius * (1 - 1e-6)) == (radius < 1)
        assert result.value == pytest.approx(other.fun, abs=1e-7) and result.value <= other.fun + 1e-9
        assert result.residual < 1e-12


def test_projection_onto_a_box_and_onto_a_ball() -> None:
    """min |x - c|^2 / 2 for c = (3, -4, 0.5): clipped to [-1, 2]; scaled to radius 2, or c if it fits."""
    c = np.array([3.0, -4.0, 0.5])
    f = quadratic(np.eye(3), c)
    box = minimize_box(f, np.zeros(3), np.full(3, -1.0), np.full(3, 2.0))
    assert box.x == pytest.approx([2.0, -1.0, 0.5], abs=1e-15)
    assert minimize_ball(f, np.zeros(3), 2.0).x == pytest.approx(c * 2 / np.linalg.norm(c), abs=1e-12)
    assert minimize_ball(f, np.zeros(3), 10.0).x == pytest.approx(c, abs=1e-12)


def test_linear_function_on_a_ball_goes_to_the_sphere() -> None:
    """No curvature at all: -radius c / |c| with c = (3, -4)."""
    f = quadratic(np.zeros((2, 2)), np.array([-3.0, 4.0]))
    assert minimize_ball(f, np.zeros(2), 10.0).x == pytest.approx([-6.0, 8.0], rel=1e-9)


def test_linear_function_on_a_box_goes_to_the_corner() -> None:
    """No curvature at all: the corner opposite to c = (3, -4)."""
    f = quadratic(np.zeros((2, 2)), np.array([-3.0, 4.0]))
    assert minimize_box(f, np.zeros(2), np.zeros(2), np.ones(2)).x.tolist() == [0.0, 1.0]


def test_flat_directions_without_slope_do_not_move() -> None:
    """(x0 + x1 - 1)^2 / 2 from (0.4, 0) moves along (1, 1) only: to (0.7, 0.3)."""
    h, b = np.ones((2, 2)), np.ones(2)
    start = np.array([0.4, 0.0])
    assert minimize_box(quadratic(h, b), start, np.full(2, -np.inf), np.full(2, np.inf)).x == pytest.approx([0.7, 0.3])


def test_flat_quadratic_in_the_ball_takes_the_least_norm() -> None:
    h, b = np.ones((2, 2)), np.ones(2)
    assert minimize_ball(quadratic(h, b), np.array([0.4, 0.0]), 1.0).x == pytest.approx([0.5, 0.5])


def test_bad_scaling_is_no_obstacle() -> None:
    """Curvatures from 1e-8 to 1e4, minimum at (1, 1, 1)."""
    h = np.diag([1e-8, 1.0, 1e4])
    result = minimize_box(quadratic(h, h @ np.ones(3)), np.zeros(3), np.full(3, -np.inf), np.full(3, np.inf))
    assert result.x == pytest.approx(np.ones(3), rel=1e-6)


def saturated(x: Any) -> tuple[float, Any, Any]:
    """b softplus(x / b) - x / 2 with b = 0.01: slope +-1/2 and curvature exp(-500) / b at +-5, minimum at 0."""
    s = expit(x / 0.01)
    return float((0.01 * np.logaddexp(0.0, x / 0.01) - x / 2)[0]), s - 0.5, np.diag(s * (1 - s) / 0.01)


@pytest.mark.parametrize("start", [5.0, -5.0])
def test_start_where_the_curvature_underflows_is_left(start: float) -> None:
    free = minimize_box(saturated, np.array([start]), np.array([-np.inf]), np.array([np.inf]))
    assert free.x == pytest.approx([0.0], abs=1e-9)


def test_start_where_the_curvature_underflows_is_left_in_a_ball() -> None:
    for start in (5.0, -5.0):
        assert minimize_ball(saturated, np.array([start]), 10.0).x == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize("iterations", [0, 1, 2, 4])
def test_residual_bounds_the_distance_to_the_minimum_when_stopped_early(iterations: int) -> None:
    """Convexity: f(x) - min <= max over the set of <gradient, x - y>, at any iterate."""
    for seed in range(10):
        f, start = logistic(seed), np.full(5, 0.9)
        box = minimize_box(f, start, -np.ones(5), np.ones(5), max_iterations=iterations)
        best = minimize_box(f, start, -np.ones(5), np.ones(5)).value
        assert box.iterations == iterations and box.value - best <= box.residual + 1e-14
        ball = minimize_ball(f, start, 1.5, max_iterations=iterations)
        assert ball.value - minimize_ball(f, start, 1.5).value <= ball.residual + 1e-14
        if iterations == 0:
            assert box.residual > 1e-3 and ball.residual > 1e-3


def test_any_start_reaches_the_same_minimum_and_a_start_outside_is_brought_in() -> None:
    f = logistic(0)
    values = [minimize_box(f, np.full(5, s), -np.ones(5), np.ones(5)).x for s in (-1.0, 0.0, 1.0, 50.0)] + [
        minimize_box(f, np.random.default_rng(i).normal(size=5), -np.ones(5), np.ones(5)).x for i in range(5)
    ]
    for x in values[1:]:
        assert x == pytest.approx(values[0], abs=1e-7)
    inside = [minimize_ball(f, np.full(5, s), 0.5).x for s in (0.0, 50.0)]
    assert inside[1] == pytest.approx(inside[0], abs=1e-7)


def test_iterates_shown_are_feasible_and_never_ascend() -> None:
    f, seen = logistic(1), []
    result = minimize_box(f, np.full(5, 0.9), -np.ones(5), np.ones(5), on_iterate=seen.append)
    values = [f(np.full(5, 0.9))[0], *(f(x)[0] for x in seen)]
    assert len(seen) >= 2 and (np.abs(seen) <= 1.0).all()
    assert (np.diff(values) <= 1e-13).all() and values[-1] == result.value
