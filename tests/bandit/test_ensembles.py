"""Ensembles of rewards: aggregators and their limits, two kinds of member, and what a worst case over each is worth."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.bandit import ContextualBandit, PreferenceCounts, Unconstrained, build_saddle, solve
from rpo.bandit.baselines import RewardEnsemble, ensemble_rewards, entropic
from rpo.bandit.baselines.plain import best_of_n_policy
from rpo.core.aggregators import combine


@pytest.fixture(scope="module")
def problem(make_bandit: Callable[..., ContextualBandit]) -> ContextualBandit:
    return make_bandit(3, prompts=2, arms=4)


@pytest.fixture(scope="module")
def data(problem: ContextualBandit) -> PreferenceCounts:
    return problem.sample_preferences(200, rng=1)


def test_entropic_is_the_mean_the_variance_and_the_worst_case_in_its_limits() -> None:
    """p -> 0 the mean, at p = 1e-5 less p times the variance, up to p^2; p -> infinity the least, to log M / 2p.

    Of rewards 0 and 2 at p = 1/2: -log((1 + e^-2) / 2). Control: at p = 1/2 it is none of the three.
    """
    by_hand = entropic(np.array([[[0.0]], [[2.0]]]), 0.5)
    assert by_hand[0, 0] == pytest.approx(-np.log((1 + np.exp(-2.0)) / 2), abs=1e-15)
    rewards = np.random.default_rng(0).normal(size=(5, 3, 4)) + 100.0
    mean, worst = rewards.mean(axis=0), rewards.min(axis=0)
    assert np.abs(entropic(rewards, 0.0) - mean).max() == 0.0
    assert np.abs(entropic(rewards, 1e-9) - mean).max() < 1e-8
    assert np.abs(entropic(rewards, 1e-5) - combine(rewards, "variance", 1e-5)).max() < 1e-8
    assert np.abs(entropic(rewards, 1e-5) - mean).max() > 1e-6
    assert np.abs(entropic(rewards, 1e9) - worst).max() < 1e-8
    halves = [entropic(rewards, p) for p in (0.0, 0.1, 0.5, 5.0, 500.0)]
    assert all((more <= less).all() for less, more in itertools.pairwise(halves))  # it falls in p
    others = (mean, worst, combine(rewards, "variance", 0.5))
    assert all(np.abs(entropic(rewards, 0.5) - other).max() > 1e-2 for other in others)


def test_hull_of_an_ensemble_is_the_robust_policy_of_its_members(
    problem: ContextualBandit, data: PreferenceCounts
) -> None:
    """And no other combination of the members is worth more in the worst case."""
    found = solve(problem, data, RewardEnsemble(0.4, size=4, how="hull"), rng=7)
    rewards = ensemble_rewards(problem, data, size=4, members="bootstrap", base="chosen", rng=7)
    base = build_saddle(problem, data, rpo.DPO(beta=0.4), Unconstrained()).base
    d = data.prompt_frequencies
    assert found.status == "certified" and found.evidence["robust"]["relative_gap"] <= 1e-9

    def worth(policy: Any) -> float:
        inside = policy > 0
        ratio = np.log(np.where(inside, policy, 1.0) / np.where(inside, problem.reference, 1.0))
        gains = (d[:, None] * (policy - base) * rewards).sum(axis=(1, 2))
        return float(gains.min() - 0.4 * d @ (policy * ratio).sum(axis=1))

    assert worth(found.policy) == pytest.approx(found.evidence["robust"]["reward_value"], abs=1e-8)
    for how in ("mean", "worst", "variance", "entropic"):
        other = solve(problem, data, RewardEnsemble(0.4, size=4, how=how), rng=7).policy
        assert worth(other) < worth(found.policy) - 1e-4


def test_members_from_priors_are_the_ridge_s_minimum(problem: ContextualBandit, data: PreferenceCounts) -> None:
    """Gradient of N L_D + ridge / 2 ||r - prior||^2 by loops, zero; a response in no pair keeps its prior."""
    rewards = ensemble_rewards(problem, data, size=2, ridge=0.7, scale=1.5, base="reference", rng=3)
    wins = data.wins()
    for reward, child in zip(rewards, np.random.default_rng(3).spawn(2), strict=True):
        prior = 1.5 * child.normal(size=problem.reference.shape)
        for x in np.flatnonzero(data.prompt_frequencies > 0):
            lost = 1 / (1 + np.exp(reward[x][:, None] - reward[x][None, :]))
            slope = -(wins[x] * lost).sum(axis=1) + (wins[x] * lost).sum(axis=0)
            inside = problem.reference[x] > 0
            # The constant of centring: the likelihood's gradient sums to zero, so the ridge's does before it.
            away = (reward[x] - prior[x])[inside]
            assert (slope[inside] + 0.7 * (away - away.mean())) == pytest.approx(np.zeros(inside.sum()), abs=1e-8)
        assert (problem.reference * reward).sum(axis=1) == pytest.approx(np.zeros(len(reward)), abs=1e-12)


@pytest.fixture(scope="module")
def best_of_many() -> dict[str, dict[str, Any]]:
    """Return, by kind of member, 150 seeds: gold gain at best of 12,500 by each reward, and the members' variances.

    Twelve responses of a skewed reference, 60 pairs drawn from it, a quarter of the labels flipped.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in ("prior", "bootstrap", "covered"):
        rows: dict[str, list[Any]] = {"single": [], "worst": [], "unseen": [], "seen": []}
        for seed in range(150):
            g = np.random.default_rng(seed)
            reference = 0.98 * g.dirichlet(np.full(12, 0.6)) + 0.02 / 12
            gold = g.normal(size=12)
            problem = ContextualBandit(
                d0=np.ones(1), reference=reference[None], reward=(gold - gold.min())[None],
                behavior=np.full((1, 12), 1 / 12) if kind == "covered" else None,
                label_noise=0.0 if kind == "covered" else 0.25,
            )  # fmt: skip
            data = problem.sample_preferences(3000 if kind == "covered" else 60, rng=10**6 + seed)
            rewards = ensemble_rewards(problem, data, members="bootstrap" if kind == "bootstrap" else "prior", rng=seed)
            for name, reward in (("single", rewards[0]), ("worst", rewards.min(axis=0))):
                policy = best_of_n_policy(reward, problem.reference, 12_500)
                rows[name].append((policy - problem.reference)[0] @ gold)
            unseen = data.response_counts("responses")[0] == 0
            if unseen.any():
                spread = rewards[:, 0].var(axis=0)
                rows["unseen"].append(spread[unseen].mean())
                rows["seen"].append(spread[~unseen].mean())
        found[kind] = {name: np.array(row) for name, row in rows.items()}
    return found


def test_bootstraps_agree_where_there_are_no_data_and_random_priors_do_not(
    best_of_many: dict[str, dict[str, Any]],
) -> None:
    """Mean variance of five members, unseen and seen responses: .02 and .47 of bootstraps, .95 and .07 of priors."""
    prior, boot = best_of_many["prior"], best_of_many["bootstrap"]
    assert prior["unseen"].mean() == pytest.approx(0.94, abs=0.1) and prior["seen"].mean() < 0.1
    assert boot["unseen"].mean() < 0.05 and boot["seen"].mean() > 0.3


def test_the_worst_case_over_random_priors_helps_and_over_bootstraps_less(
    best_of_many: dict[str, dict[str, Any]],
) -> None:
    """Gold at best of 12,500 above a single reward's: priors .24 +- .15. Control: with all covered, no difference."""
    gain = {kind: found["worst"] - found["single"] for kind, found in best_of_many.items()}
    half = {kind: 1.96 * d.std(ddof=1) / np.sqrt(len(d)) for kind, d in gain.items()}
    assert gain["prior"].mean() > half["prior"]
    assert abs(gain["bootstrap"].mean()) < half["bootstrap"] and gain["bootstrap"].mean() < gain["prior"].mean()
    assert abs(gain["covered"].mean()) <= 1e-3
