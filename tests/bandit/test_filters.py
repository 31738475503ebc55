"""Filters by rank: their weights by hand, their law by enumeration, and when keeping fewer samples teaches more."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.special import erf

from rpo.bandit import filters
from rpo.core.errors import InvalidArgument

SEEDS, SAMPLES, DIMENSION = 400, 5, 20
# Prompts at which each filter trains on twenty responses: five, two or one of them is kept.
PROMPTS = {"all": 4, "best_random": 10, "best_worst": 10, "best": 20}


def test_weights_by_hand() -> None:
    """Of scores 3, 1, 2, and of 2, 2, 1, where the two best share; where all are equal every filter keeps all."""
    expected = {
        "all": ([1 / 3] * 3, [1 / 3] * 3),
        "best": ([1, 0, 0], [0.5, 0.5, 0]),
        "best_random": ([2 / 3, 1 / 6, 1 / 6], [5 / 12, 5 / 12, 1 / 6]),
        "best_worst": ([0.5, 0.5, 0], [0.25, 0.25, 0.5]),
    }
    assert expected.keys() == filters.FILTERS.keys()
    for keep, rows in expected.items():
        found = filters.kept_weights([[3.0, 1.0, 2.0], [2.0, 2.0, 1.0], [5.0, 5.0, 5.0]], keep)
        assert found == pytest.approx(np.array([*rows, [1 / 3] * 3]), abs=1e-15), keep


@pytest.mark.parametrize("keep", filters.FILTERS)
def test_the_law_of_what_is_kept_by_enumeration(keep: str) -> None:
    """All 5^3 draws of three samples, two of the scores tied; one sample of zero mass is never drawn."""
    reference, scores = np.array([0.1, 0.2, 0.3, 0.4, 0.0]), np.array([1.0, 3.0, 3.0, 2.0, 9.0])
    law = np.zeros(5)
    for draw in itertools.product(range(5), repeat=3):
        drawn = np.array(draw)
        np.add.at(law, drawn, reference[drawn].prod() * filters.kept_weights(scores[drawn], keep))
    assert filters.kept_policy([reference], [scores], keep, n=3)[0] == pytest.approx(law, abs=1e-15)


def test_agreement_by_hand() -> None:
    """A squared correlation of one on a line, 1/4 for (0, 1, 2) against (0, 2, 1), NaN where the proxy is constant."""
    ones = np.ones(3)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [5.0, 3.0, 1.0], ones) == pytest.approx(1.0)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [0.0, 2.0, 1.0], ones) == pytest.approx(0.25)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [0.0, 2.0, 9.0], [1, 1, 0]) == pytest.approx(1.0)
    assert math.isnan(filters.proxy_agreement(ones, [0.0, 1.0, 2.0], ones))


def step(seed: int, keep: str, noise: str, prompts: int) -> tuple[float, float]:
    """Return R^2 on what is kept, and the cosine of its policy-gradient step (mean baseline) with the gold direction.

    Gold is linear in 20 features, of variance one; the proxy's noise is the same everywhere, or largest where gold is
    extreme, or smallest there. A random one beside the best is drawn, so that two of five are trained on.
    """
    g = np.random.default_rng(seed)
    direction = g.normal(size=DIMENSION) / math.sqrt(DIMENSION)
    phi = g.normal(size=(prompts, SAMPLES, DIMENSION))
    gold = phi @ direction
    extreme = np.abs(erf(gold / math.sqrt(2)))
    spread = {"even": 1.5, "extremes unreliable": 3 * extreme + 0.1, "extremes reliable": 3 * (1 - extreme) + 0.1}
    proxy = gold + spread[noise] * g.normal(size=gold.shape)
    weights = filters.kept_weights(proxy, keep)
    if keep == "best_random":
        best = proxy.argmax(axis=1)
        other = (best + g.integers(1, SAMPLES, prompts)) % SAMPLES
        weights = (np.eye(SAMPLES)[best] + np.eye(SAMPLES)[other]) / 2
    advantage = proxy - (weights * proxy).sum() / weights.sum()
    pull = np.einsum("sn,snd->d", weights * advantage, phi)
    cosine = float(pull @ direction / np.linalg.norm(pull) / np.linalg.norm(direction))
    return filters.proxy_agreement(proxy, gold, weights), cosine


def steps(noise: str, prompts: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return R^2 and cosine by filter, and the half interval of the cosine less that of all."""
    found = {keep: np.array([step(seed, keep, noise, n) for seed in range(SEEDS)]) for keep, n in prompts.items()}
    means = {keep: table.mean(axis=0) for keep, table in found.items()}
    half = {keep: 1.96 * (table - found["all"])[:, 1].std(ddof=1) / math.sqrt(SEEDS) for keep, table in found.items()}
    return {k: v[0] for k, v in means.items()}, {k: v[1] for k, v in means.items()}, half


def test_at_equal_trained_samples_the_proxy_s_agreement_picks_the_filter() -> None:
    """Twenty responses, 400 seeds, intervals +- .02: best and worst teach most, .583 of the gold direction, all .458.

    The best alone teaches least. R^2 on what is kept has the same order, also where the noise is largest at the
    extremes. A random one beside the best gains .02; weights on all fifty responses in its place would reach .596.
    """
    for noise, cosines in {
        "even": [0.338, 0.458, 0.481, 0.583],
        "extremes unreliable": [0.393, 0.405, 0.435, 0.549],
    }.items():
        agreement, cosine, half = steps(noise, PROMPTS)
        order = ["best", "all", "best_random", "best_worst"]
        assert sorted(agreement, key=agreement.__getitem__) == order == sorted(cosine, key=cosine.__getitem__)
        assert [cosine[keep] for keep in order] == pytest.approx(cosines, abs=0.001)
        assert cosine["best_worst"] - cosine["all"] > half["best_worst"]


def test_the_best_alone_learns_nothing_where_only_the_extremes_are_judged_well() -> None:
    """Cosine -.07 +- .02, and the least R^2, .06: kept responses are all good, and the noise decides among them."""
    agreement, cosine, half = steps("extremes reliable", PROMPTS)
    assert agreement["best"] < 0.1 < min(agreement[keep] for keep in ("all", "best_random", "best_worst"))
    assert cosine["best"] == pytest.approx(-0.065, abs=0.001) and cosine["best"] < cosine["all"] - half["best"]


@pytest.mark.parametrize("noise", ["even", "extremes unreliable", "extremes reliable"])
def test_at_equal_prompts_no_filter_gains(noise: str) -> None:
    """The control, ten prompts: all five responses of each teach more than any choice of them, whatever R^2 says."""
    agreement, cosine, half = steps(noise, dict.fromkeys(PROMPTS, 10))
    assert all(cosine["all"] - cosine[keep] > half[keep] for keep in ("best", "best_random", "best_worst"))
    assert noise == "extremes reliable" or agreement["best_worst"] > agreement["all"]


def test_what_does_not_fit_is_refused_by_name() -> None:
    even = np.full((1, 2), 0.5)
    for match, ask in {
        "^keep": lambda: filters.kept_weights(even, "worst"),
        "^scores": lambda: filters.kept_weights([[1.0]], "best"),
        "^n:": lambda: filters.kept_policy(even, even, "best", n=1),
        "^reference": lambda: filters.kept_policy([0.5, 0.5], even, "best", n=2),
        "^weights": lambda: filters.proxy_agreement(even, even, [[0.0, 0.0]]),
        "^gold": lambda: filters.proxy_agreement(even, [0.5], even),
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            ask()
