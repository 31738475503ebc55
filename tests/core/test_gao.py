"""Gao's laws: planted parameters, closed-form peaks, intervals on simulated noise, controls."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize_scalar
from scipy.stats import binom

from rpo.core.errors import InvalidArgument
from rpo.core.gao import bootstrap_gao, fit_gao

KL = np.linspace(0.05, 9.0, 25)


def law(form: str, kl: Any, alpha: float, gamma: float) -> Any:
    """The two laws as Gao, Schulman and Hilton print them."""
    d = np.sqrt(kl)
    return d * (alpha - gamma * d) if form == "best_of_n" else d * (alpha - gamma * np.log(d))


@pytest.mark.parametrize(("form", "peak"), [("best_of_n", 1.2 / 0.8), ("policy", np.exp(1.2 / 0.4 - 1.0))])
def test_planted_parameters_are_recovered(form: str, peak: float) -> None:
    """Without noise: alpha, gamma exactly. Peak by hand: a / 2g = 1.5, and exp(a / g - 1) = e^2 = 7.4."""
    fit = fit_gao(KL, 5.0 + law(form, KL, 1.2, 0.4), form=form, reference_gold=5.0)
    assert (fit.alpha, fit.gamma) == pytest.approx((1.2, 0.4), abs=1e-10)
    assert fit.peak == pytest.approx(peak, rel=1e-9)
    numeric = minimize_scalar(lambda d: -law(form, d**2, 1.2, 0.4), bounds=(0.01, 20.0), method="bounded")
    assert fit.peak == pytest.approx(numeric.x, rel=1e-4) and fit.peak_gold == pytest.approx(-numeric.fun, rel=1e-6)
    assert fit.status == ("peak" if form == "best_of_n" else "peak_outside_range")
    assert "outside" in fit.message or form == "best_of_n"


def test_the_wrong_form_is_seen() -> None:
    """Control: the other law leaves residuals at least three times larger, and a lack-of-fit p-value below 1e-6."""
    rng = np.random.default_rng(0)
    gold = law("policy", KL, 1.0, 0.8) + 0.01 * rng.normal(size=KL.size)
    se = np.full(KL.size, 0.01)
    right = fit_gao(KL, gold, form="policy", standard_error=se)
    wrong = fit_gao(KL, gold, form="best_of_n", standard_error=se)
    assert right.p_value > 0.01 and wrong.p_value < 1e-6
    assert wrong.residual > 3 * right.residual
    gold_offset = fit_gao(KL, gold + 1.0, form="policy", standard_error=se)
    assert gold_offset.p_value < 1e-6  # control: gold not measured from the reference


@pytest.mark.parametrize("form", ["best_of_n", "policy"])
def test_estimates_and_errors_agree_with_scipy(form: str) -> None:
    """scipy's curve_fit minimises the same squares by another algorithm."""
    rng = np.random.default_rng(1)
    se = rng.uniform(0.02, 0.1, KL.size)
    gold = law(form, KL, 1.0, 0.5) + se * rng.normal(size=KL.size)
    other, covariance = curve_fit(lambda k, a, g: law(form, k, a, g), KL, gold, sigma=se, absolute_sigma=True)
    fit = fit_gao(KL, gold, form=form, standard_error=se)
    assert (fit.alpha, fit.gamma) == pytest.approx(tuple(other), rel=1e-5)
    half = 1.959964 * np.sqrt(np.diag(covariance))
    assert fit.alpha_interval == pytest.approx((other[0] - half[0], other[0] + half[0]), rel=1e-4)
    assert fit.gamma_interval == pytest.approx((other[1] - half[1], other[1] + half[1]), rel=1e-4)


def within(hits: int, trials: int, level: float) -> bool:
    """Whether `hits` is inside the central 99.98 % of Binomial(trials, level)."""
    low, high = binom.ppf([1e-4, 1 - 1e-4], trials, level)
    return bool(low <= hits <= high)


@pytest.mark.parametrize("form", ["best_of_n", "policy"])
@pytest.mark.parametrize("known", [True, False])
def test_intervals_cover_at_the_nominal_rate(form: str, known: bool) -> None:
    """1,000 noisy curves, known or estimated errors: alpha, gamma and the peak each covered 90 % of the time."""
    rng = np.random.default_rng([2, known, form == "policy"])
    noise, trials, hits, narrow = 0.08, 1000, np.zeros(3, dtype=int), 0
    truth = (1.0, 0.5, 1.0 if form == "best_of_n" else np.exp(1.0))
    for _ in range(trials):
        gold = law(form, KL, *truth[:2]) + noise * rng.normal(size=KL.size)
        fit = fit_gao(KL, gold, form=form, standard_error=np.full(KL.size, noise) if known else None, level=0.9)
        intervals = (fit.alpha_interval, fit.gamma_interval, fit.peak_interval)
        hits += [low <= value <= high for (low, high), value in zip(intervals, truth, strict=True)]
        middle, half = fit.peak, (fit.peak_interval[1] - fit.peak_interval[0]) / 4
        narrow += abs(middle - truth[2]) <= half
    assert all(within(int(h), trials, 0.9) for h in hits), hits
    assert not within(narrow, trials, 0.9)  # control: an interval of half the width is found out


def test_bootstrap_over_seeds_covers_where_points_are_dependent() -> None:
    """Curves whose errors are one shared shift in alpha a seed: independent-point intervals fail, the bootstrap holds.

    Seed s has alpha + N(0, 0.3^2); the mean of 40 has standard error 0.047, and no residuals at all
    around its own law, so least squares reports an interval of width near zero.
    """
    rng = np.random.default_rng(3)
    trials, hits, naive = 150, 0, 0
    for _ in range(trials):
        alpha = 1.0 + 0.3 * rng.normal(size=(40, 1))
        gold = law("policy", KL[None, :], alpha, 0.5) + 0.001 * rng.normal(size=(40, KL.size))
        kl = np.broadcast_to(KL, gold.shape)
        fit = bootstrap_gao(kl, gold, form="policy", level=0.9, resamples=200, rng=rng)
        hits += fit.alpha_interval[0] <= 1.0 <= fit.alpha_interval[1]
        plain = fit_gao(KL, gold.mean(axis=0), form="policy", level=0.9)
        naive += plain.alpha_interval[0] <= 1.0 <= plain.alpha_interval[1]
    assert 0.8 <= hits / trials <= 0.97
    assert naive / trials < 0.2


def test_flags_say_when_there_is_no_peak() -> None:
    rng = np.random.default_rng(4)
    rising = fit_gao(KL, law("best_of_n", KL, 1.0, -0.1), form="best_of_n")
    assert rising.status == "no_peak" and rising.peak == np.inf and rising.peak_interval == (0.0, np.inf)
    noisy = law("best_of_n", KL, 1.0, 0.02) + 0.5 * rng.normal(size=KL.size)
    uncertain = fit_gao(KL, noisy, form="best_of_n")
    assert uncertain.gamma_interval[0] < 0 < uncertain.gamma_interval[1]
    assert uncertain.status in ("gamma_uncertain", "no_peak") and uncertain.peak_interval == (0.0, np.inf)


def test_reference_gold_may_differ_by_seed() -> None:
    offset = np.array([1.0, 5.0, -2.0])
    gold = law("policy", KL, 1.0, 0.5) + offset[:, None]
    fit = bootstrap_gao(np.tile(KL, (3, 1)), gold, form="policy", reference_gold=offset, resamples=50, rng=0)
    assert (fit.alpha, fit.gamma) == pytest.approx((1.0, 0.5), abs=1e-9)
    assert fit.to_dict()["interval_method"] == "bootstrap over seeds"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("kl", lambda: fit_gao([-1.0, 1.0, 2.0], [0.0, 1.0, 1.0], form="policy")),
        ("kl", lambda: fit_gao([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], form="policy")),
        ("form", lambda: fit_gao(KL, KL, form="linear")),
        ("gold", lambda: fit_gao(KL, KL[:3], form="policy")),
        ("standard_error", lambda: fit_gao(KL, KL, form="policy", standard_error=np.zeros(KL.size))),
        ("level", lambda: fit_gao(KL, KL, form="policy", level=1.0)),
        ("rng", lambda: bootstrap_gao(np.ones((2, 3)), np.ones((2, 3)), form="policy", rng=None)),
    ],
)
def test_refusals_name_the_argument(name: str, call: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.name == name
