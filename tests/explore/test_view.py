"""Every number of the explorer is what a user of `rpo.bandit` gets who makes the same draw by hand."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from rpo.bandit import Box, baselines, fit, instances, policy_outcome, solve
from rpo.bandit.coverage import coverage_coefficient
from rpo.core.divergences import ChiSquaredKL
from rpo.core.objectives import DPO, RPO
from rpo.explore import Settings, View, state
from rpo.explore.drawing import curves, simplex
from rpo.explore.view import DRAWS
from rpo.methods.divergence import FRPO, ChiPO
from rpo.methods.pairs import EXO, IPO
from rpo.methods.reference_free import ORPO

METHOD: dict[str, Any] = {
    "rpo": lambda s: RPO(beta=s.beta, eta=s.eta),
    "dpo": lambda s: DPO(beta=s.beta),
    "ipo": lambda s: IPO(tau=s.beta),
    "chipo": lambda s: ChiPO(beta=s.beta),
    "frpo": lambda s: FRPO(beta=s.beta, eta=s.eta, divergence=ChiSquaredKL()),
    "orpo": lambda s: ORPO(weight=s.beta),
    "exo": lambda s: EXO(beta=s.beta),
    "greedy": lambda s: baselines.Greedy(),
    "base": lambda s: baselines.BasePolicy(),
}
FITTED = ("orpo", "exo")  # what `solve` does not take
SOME = Settings(arms=5, skew=1.5, noise=0.1, n=40, beta=0.15, eta=0.2, seed=7, method="rpo")


def answer(method: str, settings: Settings, problem: Any, counts: Any) -> Any:
    """What a user of the laboratory calls; IPO's rewards are counted in units of tau."""
    made = METHOD[method](settings)
    if method in FITTED:
        return fit(problem.softmax_policy(), counts, made, proxy_reward=None)
    if isinstance(made, baselines.Greedy | baselines.BasePolicy):
        return solve(problem, counts, made)
    unit = settings.beta if method == "ipo" else 1.0
    return solve(problem, counts, made, reward_class=Box(problem.reward_bound / unit), method="newton")


def by_hand(settings: Settings) -> tuple[Any, list[Any]]:
    """The problem and its data sets, from the seed by numpy's own spawning."""
    for_problem, for_data = np.random.SeedSequence(settings.seed).spawn(2)
    problem = instances.coverage_skew(arms=settings.arms, skew=settings.skew, rng=for_problem)
    if settings.reference == "behavior":
        problem = dataclasses.replace(problem, reference=problem.behavior)
    problem = instances.label_noise(problem, settings.noise)
    children = np.random.default_rng(for_data).spawn(DRAWS)
    return problem, [problem.sample_preferences(settings.n, rng=child) for child in children]


@pytest.mark.parametrize("reference", ["behavior", "uniform"])
@pytest.mark.parametrize("method", METHOD)
def test_the_policy_shown_and_its_evidence_are_those_of_solve(method: str, reference: str) -> None:
    settings = dataclasses.replace(SOME, method=method, reference=reference)
    view, (problem, data) = state(settings), by_hand(settings)
    found = answer(method, settings, problem, data[0])
    np.testing.assert_array_equal(view.policy, found.policy[0])
    word = found.evidence if method in FITTED else found.status
    assert (view.status, view.message) == (word, found.message)
    assert view.proved == (word in ("certified", "exact")) and (method != "exo" or not view.proved)
    outcome = policy_outcome(found.policy, problem, problem.reference)
    assert view.gold == outcome["reward/gold"] and view.kl == pytest.approx(outcome["kl/reference"], rel=1e-14)
    assert view.suboptimality == problem.suboptimality(found.policy)
    assert view.gold_best - view.gold == pytest.approx(view.suboptimality, abs=1e-14)
    if method not in (*FITTED, "greedy", "base"):
        shown = (view.gap, view.relative_gap, view.tv_bound)
        assert shown == (found.certificate.gap, found.certificate.relative_gap, found.certificate.tv_bound)


def test_the_policy_shown_is_that_of_both_convex_programs() -> None:
    """cvxpy's answer, from other algorithms, within what both certificates allow."""
    view, (problem, data) = state(SOME), by_hand(SOME)
    found = solve(problem, data[0], RPO(beta=SOME.beta, eta=SOME.eta))
    assert found.status == view.status == "certified"
    apart = 0.5 * np.abs(view.policy - found.policy[0]).sum()
    assert apart <= view.tv_bound + found.certificate.tv_bound + 1e-9
    other = solve(problem, data[0], RPO(beta=SOME.beta, eta=2 * SOME.eta), method="newton")
    assert 0.5 * np.abs(view.policy - other.policy[0]).sum() > 1e-2  # control: another eta is seen


@pytest.mark.parametrize("other", [{}, {"n": 4, "arms": 8, "skew": 0.0}])
@pytest.mark.parametrize("method", METHOD)
def test_the_curve_is_the_mean_over_the_data_sets_of_what_solve_gives(method: str, other: Any) -> None:
    """At the present beta: gold and proxy by policy_outcome, the proxy's reward r_MLE, each minus pi_ref's.

    With n = 4 the comparison graphs fall apart: which of the maximum-likelihood rewards is the proxy must agree too.
    """
    settings = dataclasses.replace(SOME, method=method, **other)
    view, (problem, data) = state(settings), by_hand(settings)
    rows = []
    for counts in data:
        found = answer(method, settings, problem, counts)
        proxy = solve(problem, counts, DPO(beta=1.0), method="newton").reward
        pair = (policy_outcome(p, problem, problem.reference, proxy) for p in (found.policy, problem.reference))
        mine, anchor = pair
        rows.append([mine["kl/reference"], *(mine[f"reward/{k}"] - anchor[f"reward/{k}"] for k in ("gold", "proxy"))])
    at = 0 if method in ("greedy", "base") else int(np.flatnonzero(view.curve.beta == settings.beta)[0])
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(DRAWS)
    curve = view.curve
    near = 2e-6 if method in FITTED else 2e-7
    assert (curve.kl[at], curve.gold[at], curve.proxy[at]) == pytest.approx(tuple(mean), abs=near)
    assert (curve.gold_error[at], curve.proxy_error[at]) == pytest.approx(tuple(error[1:]), abs=near)
    proved = curve.certified == curve.solved
    assert curve.solved >= DRAWS and (proved or method in FITTED) and view.contrast.method != curve.method


@pytest.mark.parametrize("along", ["beta", "eta"])
def test_the_path_holds_the_policy_shown_and_solves_of_its_neighbours(along: str) -> None:
    settings = dataclasses.replace(SOME, arms=3, along=along)
    view, (problem, data) = state(settings), by_hand(settings)
    at = int(np.flatnonzero(view.path_values == getattr(settings, along))[0])
    np.testing.assert_allclose(view.path[at], view.policy, atol=1e-6)
    for k in (1, len(view.path) - 1):
        changed = {"beta": settings.beta, "eta": settings.eta, along: float(view.path_values[k])}
        found = solve(problem, data[0], RPO(**changed), method="newton")
        np.testing.assert_allclose(view.path[k], found.policy[0], atol=1e-6)
        assert np.abs(view.path[k] - view.policy).max() > 1e-3  # control: the path moves
    if along == "beta":
        np.testing.assert_array_equal(view.path[0], problem.reference[0])
        assert np.isinf(view.path_values[0]) and (np.diff(view.path_values[1:]) < 0).all()
        dpo = state(dataclasses.replace(settings, method="dpo"))
        np.testing.assert_array_equal(view.contrast_path, dpo.path)
        np.testing.assert_array_equal(dpo.contrast_path, view.path)
    else:
        dpo = solve(problem, data[0], DPO(beta=settings.beta), method="newton")
        np.testing.assert_allclose(view.path[0], dpo.policy[0], atol=1e-6)  # eta = 0


def test_coverage_is_that_of_the_lab_from_both_sides() -> None:
    view, (problem, data) = state(SOME), by_hand(SOME)
    assert view.coverage == coverage_coefficient(problem).value
    base = solve(problem, data[0], baselines.BasePolicy()).policy
    np.testing.assert_array_equal(view.base, base[0])
    seen = coverage_coefficient(problem, None, base, data_distribution=data[0])
    assert view.coverage_data == seen.value and view.coverage_message == seen.message
    few = state(dataclasses.replace(SOME, arms=12, n=2))
    assert np.isinf(few.coverage_data) and "no comparison ties" in few.coverage_message


def test_imitation_is_the_share_of_wins() -> None:
    """By hand: pi_base(a) = wins of a / N."""
    view = state(dataclasses.replace(SOME, method="base"))
    np.testing.assert_allclose(view.policy, view.data.wins()[0].sum(axis=1) / SOME.n, rtol=1e-15)
    assert np.isnan(view.gap) and view.status == "exact"


def test_what_is_not_proved_has_hollow_marks() -> None:
    """As in the atlas: the square of the simplex and the dots of the curves are white inside."""
    for method, proved in (("exo", False), ("dpo", True)):
        view = state(dataclasses.replace(SOME, arms=3, method=method))
        assert view.proved == proved
        assert ('fill="white" stroke="#009E73"' in curves(view)) == (not proved)
        assert ('fill="white" stroke="#' in simplex(view)) == (not proved)


def numbers(view: View) -> list[float]:
    return [view.gold, view.kl, view.gap, view.coverage, *view.policy, *view.curve.gold, *view.path.ravel()]


def test_a_view_is_a_function_of_its_settings_and_of_each_of_them() -> None:
    """The same settings give the same bits; every setting moves something."""
    once = numbers(state(SOME))
    assert numbers(state(SOME)) == once
    for change in ({"skew": 2.0}, {"noise": 0.2}, {"n": 41}, {"beta": 0.2}, {"eta": 0.3}, {"seed": 8}, {"arms": 6}):
        assert numbers(state(dataclasses.replace(SOME, **change))) != once, change  # type: ignore[arg-type]
    for word in ({"method": "dpo"}, {"reference": "uniform"}, {"along": "eta"}):
        assert numbers(state(dataclasses.replace(SOME, **word))) != once, word  # type: ignore[arg-type]


def test_noise_changes_the_labels_and_not_the_reward() -> None:
    clean, noisy = state(SOME), state(dataclasses.replace(SOME, noise=0.3))
    np.testing.assert_array_equal(clean.problem.true_reward(), noisy.problem.true_reward())
    assert clean.coverage != noisy.coverage or (clean.data.wins() != noisy.data.wins()).any()


def test_the_default_state_shows_overoptimization_and_a_draw_where_pessimism_pays() -> None:
    """The page opens on it: the mean gold of DPO falls from its peak while its proxy rises; RPO is near the best."""
    rpo, dpo = state(Settings(method="rpo")), state(Settings())
    assert dpo.curve.method == "DPO" and dpo.contrast.method == "RPO"
    assert dpo.curve.proxy.argmax() == len(dpo.curve.proxy) - 1 > dpo.curve.gold.argmax()
    assert "gold falls by 0.70, the proxy rises" in curves(dpo)
    assert dpo.curve.gold.max() - dpo.curve.gold[-1] > 0.5 > 0.1 > rpo.curve.gold.max() - rpo.curve.gold[-1]
    assert rpo.gold > 0.9 * rpo.gold_best and dpo.gold < 0.1 * dpo.gold_best


CORNERS = [
    Settings(arms=arms, skew=4.0, noise=noise, n=n, beta=beta, eta=eta, seed=1, method=method)
    for (arms, n), (beta, eta), noise, method in itertools.product(
        ((3, 1), (12, 1), (12, 10**6)), ((0.02, 0.0), (0.02, 10.0), (10.0, 10.0)), (0.45,), ("rpo", "chipo")
    )
]


@pytest.mark.parametrize("settings", CORNERS, ids=lambda s: s.to_query())
def test_the_ends_of_the_sliders_give_policies_and_an_honest_status(settings: Settings) -> None:
    view = state(settings)
    for policy in (view.policy, view.base, *view.path):
        assert policy.min() >= 0 and policy.sum() == pytest.approx(1.0, abs=1e-9)
    assert view.status in ("certified", "inaccurate") and view.relative_gap >= 0
    assert view.curve.certified >= 0.9 * view.curve.solved
    for curve in (view.curve, view.contrast):
        assert np.isfinite([curve.kl, curve.gold, curve.proxy, curve.gold_error]).all()
