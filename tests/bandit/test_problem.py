"""Sampling against Bradley-Terry at stated error rates; the pair distribution and the gap by hand."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chi2

from rpo.bandit.problem import ContextualBandit
from rpo.core.errors import InvalidArgument

LN3 = math.log(3.0)


def three_arms(**more: Any) -> ContextualBandit:
    fields = {"d0": [1.0], "reference": [[0.5, 0.25, 0.25]], "reward": [[0.0, 1.0, 2.0]]}
    return ContextualBandit(**{**fields, **more})


def test_pair_distribution_is_two_draws_repeated_until_they_differ() -> None:
    """b = (1/2, 1/4, 1/4): b_i b_j = 1/8, 1/8, 1/16 for (01), (02), (12), twice 5/16: so 1/5, 1/5, 1/10."""
    mu = three_arms().pair_distribution()[0]
    assert mu == pytest.approx(np.array([[0, 0.2, 0.2], [0.2, 0, 0.1], [0.2, 0.1, 0]]), abs=1e-15)


def test_pair_distribution_is_symmetrised_and_loses_its_diagonal() -> None:
    """Mass 1/2 on (0,1), 1/4 on (2,2) and 1/4 on (1,2): 3/4 is left, 1/3 and 1/6 each way."""
    behavior = np.zeros((1, 3, 3))
    behavior[0, 0, 1], behavior[0, 2, 2], behavior[0, 1, 2] = 0.5, 0.25, 0.25
    mu = three_arms(behavior=behavior).pair_distribution()[0]
    assert mu == pytest.approx(np.array([[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]]) / 3, abs=1e-15)


def test_behavior_defaults_to_the_reference() -> None:
    same = three_arms(behavior=[[0.5, 0.25, 0.25]]).pair_distribution()
    assert (three_arms().pair_distribution() == same).all()
    assert not np.allclose(three_arms(behavior=[[0.2, 0.4, 0.4]]).pair_distribution(), same)


@pytest.mark.parametrize("seed", range(5))
def test_win_rates_follow_bradley_terry(seed: int) -> None:
    """Six pairs over two prompts at five seeds; each two-sided binomial p-value above 1e-6 (3e-5 in all).

    The control: reading the table transposed is rejected.
    """
    reward = np.array([[0.0, LN3, 1.0], [2.0, 0.5, 0.0]])
    problem = ContextualBandit(d0=[0.4, 0.6], reference=np.full((2, 3), 1 / 3), reward=reward)
    wins = problem.sample_preferences(20_000, rng=seed).wins()

    def least_p_value(table: Any) -> float:
        worst = 1.0
        for x, i, j in [(x, i, j) for x in (0, 1) for i, j in ((0, 1), (0, 2), (1, 2))]:
            n, k = int(table[x, i, j] + table[x, j, i]), int(table[x, i, j])
            p = 1.0 / (1.0 + math.exp(reward[x, j] - reward[x, i]))
            worst = min(worst, 2 * min(binom.cdf(k, n, p), binom.sf(k - 1, n, p)))
        return worst

    assert least_p_value(wins) > 1e-6
    assert least_p_value(wins.transpose(0, 2, 1)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_drawn_from_d0_times_mu(seed: int) -> None:
    """Pearson's statistic over six cells stays below its 1 - 1e-6 quantile; with d0 swapped it does not."""
    problem = ContextualBandit(
        d0=[0.3, 0.7], reference=[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], reward=np.zeros((2, 3)), reward_bound=1.0
    )
    wins = problem.sample_preferences(20_000, rng=seed).wins()
    first, second = np.triu_indices(3, k=1)
    seen = (wins + wins.transpose(0, 2, 1))[:, first, second]
    # By hand: (1/8, 1/8, 1/16) and (1/25, 3/25, 3/25), normalised.
    mu = np.array([[2, 2, 1], [1, 3, 3]]) / np.array([[5], [7]])

    def pearson(d0: Any) -> float:
        expected = 20_000 * np.array(d0)[:, None] * mu
        return float(((seen - expected) ** 2 / expected).sum())

    assert pearson([0.3, 0.7]) < chi2.isf(1e-6, 5)
    assert pearson([0.7, 0.3]) > chi2.isf(1e-6, 5)


def test_annotators_may_judge_by_another_reward() -> None:
    """Count by count what a problem with that reward would draw, negative entries allowed; r* need not be known."""
    claims = np.array([[-1.0, 3.0, 0.0]])
    drawn = three_arms().sample_preferences(500, labels=claims, rng=3).wins()
    assert (drawn == three_arms(reward=claims + 1.0).sample_preferences(500, rng=3).wins()).all()
    assert (drawn == three_arms(reward=None).sample_preferences(500, labels=claims, rng=3).wins()).all()
    assert (drawn != three_arms().sample_preferences(500, rng=3).wins()).any()
    with pytest.raises(InvalidArgument, match="^labels"):
        three_arms().sample_preferences(500, labels=claims[:, :2], rng=3)


def test_same_seed_same_counts_and_another_seed_others() -> None:
    draws = [three_arms().sample_preferences(1000, rng=seed).wins() for seed in (7, 7, np.random.SeedSequence(7), 8)]
    assert (draws[0] == draws[1]).all() and (draws[0] == draws[2]).all()
    assert (draws[0] != draws[3]).any()


def test_a_generator_advances() -> None:
    g = np.random.default_rng(0)
    first, second = (three_arms().sample_preferences(1000, rng=g).wins() for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("n", [1, 100, 10**6, 10**12])
def test_total_is_exactly_n_at_any_size(n: int) -> None:
    data = three_arms().sample_preferences(n, rng=0)
    assert data.n == n and data.count.sum() == n and len(data.count) <= 6


def test_impossible_pairs_are_never_drawn() -> None:
    data = three_arms(behavior=[[0.5, 0.5, 0.0]]).sample_preferences(10**6, rng=0)
    assert set(data.chosen) | set(data.rejected) == {0, 1}


def test_expected_reward_and_gap_by_hand() -> None:
    """d0 = (1/4, 3/4). Uniform policy: 1/4 * 1 + 3/4 * 2 = 7/4; greedy: 1/4 * 2 + 3/4 * 3 = 11/4."""
    problem = ContextualBandit(
        d0=[0.25, 0.75], reference=np.full((2, 3), 1 / 3), reward=[[0.0, 1.0, 2.0], [3.0, 2.0, 1.0]]
    )
    uniform = problem.reference
    assert problem.expected_reward(uniform) == pytest.approx(1.75)
    assert problem.suboptimality(uniform) == pytest.approx(1.0)
    assert problem.suboptimality(problem.greedy_policy()) == 0.0
    assert problem.suboptimality(problem.greedy_policy(), uniform) == pytest.approx(-1.0)


def test_greedy_policy_shares_ties_and_respects_the_reference() -> None:
    """Arms 1 and 2 tie at the top of the support; arm 3 is better but forbidden."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.2, 0.3, 0.5, 0.0]], reward=[[0.0, 1.0, 1.0, 2.0]])
    assert problem.greedy_policy().tolist() == [[0.0, 0.5, 0.5, 0.0]]
    assert problem.log_reference[0, 3] == -np.inf


def test_reward_bound_defaults_to_the_largest_reward() -> None:
    """Unless no reward is above zero: then nothing is known of R."""
    assert three_arms(reward=np.zeros((1, 3))).reward_bound is None
    assert three_arms().reward_bound == 2.0
    assert three_arms(reward_bound=5.0).reward_bound == 5.0


def test_problem_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        three_arms().d0 = np.ones(1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"d0": [0.9]}, "d0"),
        ({"d0": [[1.0]]}, "d0"),
        ({"d0": [1.5, -0.5], "reference": np.full((2, 3), 1 / 3), "reward": np.zeros((2, 3))}, "d0"),
        ({"d0": [0.5, 0.5]}, "reference"),
        ({"reference": [0.5, 0.25, 0.25]}, "reference"),
        ({"reference": [[0.5, 0.25, 0.2]]}, "reference"),
        ({"reference": [[0.75, 0.5, -0.25]]}, "reference"),
        ({"reward": [[0.0, math.nan, 1.0]]}, "reward"),
        ({"reward": [[0.0, 1.0]]}, "reward"),
        ({"reward": [[-0.1, 1.0, 2.0]]}, "reward"),
        ({"reward_bound": 1.5}, "reward"),
        ({"reward": None, "reward_bound": -1.0}, "reward_bound"),
        ({"features": np.zeros((1, 3))}, "features"),
        ({"features": np.zeros((1, 2, 4))}, "features"),
        ({"features": np.full((1, 3, 2), np.inf)}, "features"),
        ({"behavior": [[0.5, 0.5, 0.5]]}, "behavior"),
        ({"behavior": [[0.5, 0.5]]}, "behavior"),
        ({"behavior": np.full((1, 3, 3), 0.5)}, "behavior"),
        ({"prompt_labels": ("a", "b")}, "prompt_labels"),
        ({"response_labels": ("a", "b")}, "response_labels"),
    ],
)
def test_problem_refuses_a_bad_field_and_names_it(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
        three_arms(**fields)


@pytest.mark.parametrize("bound", [math.nan, "3"])
def test_bad_reward_bound_is_refused_by_name(bound: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^reward_bound: expected"):
        three_arms(reward_bound=bound)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**12 + 1}, "n"),
        ({"rng": None}, "rng"),
        ({"rng": -1}, "rng"),
    ],
)
def test_sampling_refuses_a_bad_argument_and_names_it(keywords: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
        three_arms().sample_preferences(**{"n": 10, "rng": 0, **keywords})


def test_sampling_refuses_a_single_response_and_an_unknown_reward() -> None:
    with pytest.raises(InvalidArgument, match=r"^behavior: .*one response at prompt 0"):
        three_arms(behavior=[[1.0, 0.0, 0.0]]).sample_preferences(10, rng=0)
    with pytest.raises(InvalidArgument, match=r"^problem\.reward"):
        three_arms(reward=None).sample_preferences(10, rng=0)


def test_builder_of_these_tests_draws_valid_problems(make_bandit: Callable[..., ContextualBandit]) -> None:
    """Rewards stay in [0, bound], for otherwise the other tests would solve another problem."""
    problem = make_bandit(0, prompts=3, arms=5, bound=1.5, dim=2)
    assert problem.reference.shape == (3, 5) and problem.reward is not None
    assert problem.reward_bound == 1.5
    assert problem.reward.min() >= 0.0 and problem.reward.max() <= 1.5
