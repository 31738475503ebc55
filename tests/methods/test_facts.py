"""Facts of the field on exact bandits, with their numbers: what each method is known for, or turned out not to be.

Rewards, labels and counts are given or drawn from stated seeds; "population" counts are the preference probabilities
themselves, so that a fit is the method's answer to endless data.
"""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    PreferenceCounts,
    fit,
    flip_weakest,
    preference_strength,
    soft_labels,
    solve,
    solve_batch,
)
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL, Alpha, ChiSquaredKL, Divergence, ForwardKL, JensenShannon
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, Objective

# Twelve rewards drawn uniformly in [0, 1], to four digits.
REWARDS = np.array([0.6144, 0.0284, 0.7192, 0.016, 0.758, 0.5128, 0.9291, 0.0661, 0.8413, 0.0667, 0.3443, 0.4303])
FAMILY: dict[str, tuple[Divergence, float]] = {
    "KL": (KL(), 1.0),
    "forward KL": (ForwardKL(), 1.0),
    "Jensen-Shannon": (JensenShannon(), 0.5),
    "chi-squared + KL": (ChiSquaredKL(), 2.0),
    "alpha = 1/2": (Alpha(0.5), 1.0),
}
every_divergence = pytest.mark.parametrize("name", FAMILY)


def one_prompt(size: int, reference: Any = None) -> ContextualBandit:
    rho = np.full(size, 1.0 / size) if reference is None else reference
    return ContextualBandit(d0=[1.0], reference=[rho], reward_bound=1.0)


def population(reward: Array, weights: Any = 1.0) -> PreferenceCounts:
    """Every pair in both directions, by its Bradley-Terry probability times `weights`."""
    wins = expit(reward[:, None] - reward[None]) * weights
    np.fill_diagonal(wins, 0.0)
    return PreferenceCounts.from_wins(wins[None])


def policy(objective: Objective, problem: ContextualBandit, pairs: PreferenceCounts, **options: Any) -> Array:
    run = fit(problem.softmax_policy(), pairs, objective, proxy_reward=None, **options)
    assert run.status == "converged", run.message
    return run.policy[0]


def plug_in(reward: Array, reference: Array, beta: float, f: Divergence) -> Array:
    """argmax <pi, r> - beta D_f(pi || pi_ref): u = (f')^-1((r - Z) / beta), Z by halving; reward (..., A)."""
    top = reward.max(axis=-1, keepdims=True)
    least = top - beta * f.top if np.isfinite(f.top) else reward.min(axis=-1, keepdims=True) - beta
    low, high = np.maximum(least, reward.min(axis=-1, keepdims=True) - beta) + 0.0 * top, top + beta
    for _ in range(80):
        middle = 0.5 * (low + high)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            mass = (reference * f.ratio((reward - middle) / beta)[0]).sum(axis=-1, keepdims=True)
        heavy = ~(mass < 1.0)
        low, high = np.where(heavy, middle, low), np.where(heavy, high, middle)
    weights = reference * f.ratio((reward - high) / beta)[0]
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def entropy(pi: Array) -> float:
    return float(-(pi * np.log(pi)).sum())


# --- links and the scale of beta -------------------------------------------------------------------


@every_divergence
def test_reward_and_entropy_at_one_beta_and_at_beta_over_curvature(name: str) -> None:
    """beta is not comparable across divergences: (reward, entropy) at beta = .1, and at .1 / f''(1), uniform reference.

    At twelve rewards in [0, 1]. The method's own minimiser, on population counts, is the plug-in.
    """
    f, curvature = FAMILY[name]
    expected = {
        "KL": ((0.863, 1.245), (0.863, 1.245)),
        "forward KL": ((0.841, 1.180), (0.841, 1.180)),
        "Jensen-Shannon": ((0.918, 0.382), (0.883, 0.948)),
        "chi-squared + KL": ((0.769, 1.851), (0.832, 1.471)),
        "alpha = 1/2": ((0.863, 1.136), (0.863, 1.136)),
    }[name]
    problem, uniform = one_prompt(12), np.full(12, 1 / 12)
    for beta, (reward, spread) in zip((0.1, 0.1 / curvature), expected, strict=True):
        pi = plug_in(REWARDS, uniform, beta, f)
        assert (pi @ REWARDS, entropy(pi)) == (pytest.approx(reward, abs=6e-4), pytest.approx(spread, abs=6e-4))
        fitted = policy(rpo.FDPO(beta=beta, divergence=f), problem, population(REWARDS), tolerance=1e-9)
        assert np.abs(fitted - pi).max() <= 1e-6


@every_divergence
def test_far_from_greed_beta_counts_by_the_curvature_at_one(name: str) -> None:
    """u - 1 tends to (r - E r) / (beta f''(1)): at beta = 1000 to two parts in a thousand of the largest."""
    f, curvature = FAMILY[name]
    moved = plug_in(REWARDS, np.full(12, 1 / 12), 1_000.0, f) * 12 - 1
    expected = (REWARDS - REWARDS.mean()) / (1_000.0 * curvature)
    assert np.abs(moved - expected).max() <= 2e-3 * np.abs(expected).max()


def test_at_equal_reward_the_kl_is_the_most_diverse() -> None:
    """The maximum-entropy principle: no policy of this reward has more entropy than the KL's from a uniform reference.

    Diversity said to be gained from other divergences is not there at equal reward.
    """
    uniform = np.full(12, 1 / 12)
    target = float(plug_in(REWARDS, uniform, 0.1, KL()) @ REWARDS)
    found = {}
    for name, (f, _) in FAMILY.items():
        beta = np.exp(
            brentq(lambda log, f=f: plug_in(REWARDS, uniform, np.exp(log), f) @ REWARDS - target, -5.3, 1.6, xtol=1e-10)
        )
        found[name] = entropy(plug_in(REWARDS, uniform, beta, f))
    expected = [("KL", 1.2451), ("chi-squared + KL", 1.2046), ("Jensen-Shannon", 1.1699), ("alpha = 1/2", 1.1363)]
    expected.append(("forward KL", 0.9593))
    assert sorted(found, key=lambda name: -found[name]) == [name for name, _ in expected]
    assert [found[name] for name, _ in expected] == pytest.approx([number for _, number in expected], abs=3e-4)


@every_divergence
def test_what_is_left_of_the_worst_response(name: str) -> None:
    """Eight rewards from 0 to 3, beta = .1: forward KL keeps at least beta / (beta + 3) of pi_ref, others less."""
    f, _ = FAMILY[name]
    expected = {"KL": 7.4e-13, "forward KL": 0.03318, "Jensen-Shannon": 8.3e-14, "chi-squared + KL": 1.36e-10}
    left = plug_in(np.linspace(0.0, 3.0, 8), np.full(8, 1 / 8), 0.1, f)[0] * 8
    assert left == pytest.approx(expected.get(name, 0.00424), rel=0.01)
    assert (left >= 0.1 / 3.1) == (name == "forward KL")


def test_chi_po_overestimates_less_than_dpo_where_data_are_many_and_beta_is_small() -> None:
    """Ten responses, gold uniform in [0, 3], reference proportional to exp(gold / 2 + noise), 300 pairs from it.

    One maximum-likelihood reward in Box(3), of several the most pessimistic, under both plug-ins at six betas; paired
    over 960 seeds. The least mean gap over beta is .109 against .136, and at the smallest beta chi-PO loses less too,
    both by more than three standard errors of the difference.
    """
    seeds, size, n, betas = 960, 10, 300, (0.5, 0.2, 0.1, 0.05, 0.02, 0.005)
    gold, reference, wins = np.empty((seeds, size)), np.empty((seeds, 1, size)), np.zeros((seeds, 1, size, size))
    for s in range(seeds):
        rng = np.random.default_rng(1_000 + s)
        gold[s] = rng.uniform(0.0, 3.0, size)
        weights = np.exp(rng.normal(size=size) + 0.5 * gold[s])
        reference[s, 0] = weights / weights.sum()
        first, second = rng.choice(size, n, p=reference[s, 0]), rng.choice(size, n, p=reference[s, 0])
        first, second = first[first != second], second[first != second]
        won = rng.random(first.size) < expit(gold[s, first] - gold[s, second])
        np.add.at(wins[s, 0], (np.where(won, first, second), np.where(won, second, first)), 1.0)
    fitted = solve_batch(wins, DPO(beta=1.0), reference=np.full((1, size), 1 / size), reward_class=Box(3.0)).reward[
        :, 0
    ]
    gaps = {
        name: np.stack([gold.max(1) - (plug_in(fitted, reference[:, 0], beta, f) * gold).sum(1) for beta in betas])
        for name, f in (("DPO", KL()), ("chi-PO", ChiSquaredKL()))
    }
    best = {name: found[found.mean(1).argmin()] for name, found in gaps.items()}
    for gain in (best["DPO"] - best["chi-PO"], gaps["DPO"][-1] - gaps["chi-PO"][-1]):
        assert gain.mean() >= 3 * gain.std(ddof=1) / np.sqrt(seeds)
    for name, number in (("DPO", 0.136), ("chi-PO", 0.109)):
        assert best[name].mean() == pytest.approx(number, abs=2 * best[name].std(ddof=1) / np.sqrt(seeds))


# --- label noise -----------------------------------------------------------------------------------


def columns(policy: Any, reference: Any = None) -> Columns:
    one = np.ones(np.shape(policy[0]))
    return Columns(logps=tuple(policy), reference=None if reference is None else tuple(reference), lengths=(one, one))


def test_noise_corrections_are_dpo_and_a_straight_line() -> None:
    """cDPO = DPO + eps d, rDPO = DPO - eps / (1 - 2 eps) d; at d = 1000 and eps = .1 the second is at -125."""
    d = np.random.default_rng(0).normal(scale=5.0, size=1_000)
    zero = np.zeros(1_000)
    plain = DPO(beta=1.0).per_pair(columns((d, zero), (zero, zero)))
    careful = rpo.ConservativeDPO(beta=1.0, epsilon=0.1).per_pair(columns((d, zero), (zero, zero)))
    robust = rpo.RobustDPO(beta=1.0, epsilon=0.1).per_pair(columns((d, zero), (zero, zero)))
    assert careful == pytest.approx(plain + 0.1 * d, abs=1e-12)
    assert robust == pytest.approx(plain - 0.125 * d, abs=1e-12)
    far = columns(([1_000.0], [0.0]), ([0.0], [0.0]))
    far = columns(tuple(map(np.asarray, far.logps)), tuple(map(np.asarray, far.reference or ())))
    assert rpo.RobustDPO(beta=1.0, epsilon=0.1).per_pair(far) == pytest.approx(-125.0, rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "margin"),
    [
        (DPO(beta=1.0), logit(0.74)),
        (rpo.ConservativeDPO(beta=1.0, epsilon=0.1), logit(0.8 * 0.74 + 0.1)),
        (rpo.RobustDPO(beta=1.0, epsilon=0.1), np.log(4.0)),
        (rpo.IPO(tau=0.5), 0.8 * 0.6),
        (rpo.IPO(tau=0.5 * 0.8), 0.6),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_a_tenth_of_flipped_labels_does(objective: Objective, margin: float) -> None:
    """A beats B with p = .8; a tenth of labels is flipped, so .74 say so. The clean margin is log 4 (IPO: 2p - 1 = .6).

    Robust labels give the clean one back, conservative ones shrink DPO's further. IPO shrinks by 1 - 2 eps exactly,
    which a smaller tau undoes: noise is one factor of its temperature.
    """
    pairs = PreferenceCounts.from_wins([[[0.0, 0.74], [0.26, 0.0]]])
    pi = policy(objective, one_prompt(2), pairs)
    assert np.log(pi[0] / pi[1]) == pytest.approx(margin, rel=1e-9)


def test_a_preference_without_exception() -> None:
    """IPO stops at 1 / (2 tau) = 1.25, conservative DPO at logit(.9); DPO's and the robust loss never stop."""
    problem, pairs = one_prompt(2), PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=2)
    pi = policy(rpo.IPO(tau=0.4), problem, pairs)
    assert np.log(pi[0] / pi[1]) == pytest.approx(1.25, rel=1e-12)
    pi = policy(rpo.ConservativeDPO(beta=1.0, epsilon=0.1), problem, pairs)
    assert np.log(pi[0] / pi[1]) == pytest.approx(np.log(9.0), rel=1e-9)
    assert fit(problem.softmax_policy(), pairs, DPO(beta=1.0)).evidence == "infimum approached"
    assert fit(problem.softmax_policy(), pairs, rpo.RobustDPO(beta=1.0), max_steps=50).evidence == "none"


def test_ipo_maximises_the_chance_to_win_and_not_the_reward() -> None:
    """With both responses of a pair drawn from mu, its optimum is pi_ref exp(E_mu p(y > .) / tau)."""
    rng = np.random.default_rng(0)
    mu, reference, reward = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5)), rng.normal(size=5)
    pi = policy(rpo.IPO(tau=0.4), one_prompt(5, reference), population(reward, mu[:, None] * mu[None]))
    expected = reference * np.exp(expit(reward[:, None] - reward[None]) @ mu / 0.4)
    assert np.abs(pi - expected / expected.sum()).max() <= 2e-9


@pytest.mark.parametrize("share", [0.55, 0.7, 0.95])
def test_the_hinge_knows_only_the_order(share: float) -> None:
    """Whatever the share of wins above a half, the population loss is least at a margin of exactly delta = 1."""
    z = np.linspace(-3.0, 3.0, 6_001)
    hinge, zero = rpo.SLiC(beta=1.0, delta=1.0), np.zeros(z.size)
    loss = share * hinge.per_pair(columns((z, zero), (zero, zero)))
    loss = loss + (1 - share) * hinge.per_pair(columns((zero, z), (zero, zero)))
    assert z[loss.argmin()] == pytest.approx(1.0, abs=1e-9)


# --- empty responses, absolute likelihood ----------------------------------------------------------


ADVANTAGES = np.array([1.4023, 1.1502, -2.3653, 1.2287, 0.3396, 0.4238])


def test_contrastive_preference_learning_recovers_the_regret_policy() -> None:
    """lam = 1 and labels by the advantages A / alpha: the optimum is softmax(A / alpha)."""
    objective = rpo.CPL(alpha=0.7, lam=1.0)
    pi = policy(objective, one_prompt(6), population(ADVANTAGES))
    expected = np.exp(ADVANTAGES / 0.7)
    assert np.abs(pi - expected / expected.sum()).max() <= 1.5e-8


@pytest.mark.parametrize("lam", [1.0, 0.9, 0.75, 0.5])
def test_contrastive_preference_learning_empties_what_it_never_saw(lam: float) -> None:
    """Two of six responses are in no pair, from a uniform start: together .1527 at lam = 1, exactly nothing below.

    At lam = 1 their logits stay where they are, at the mean of the others: 2 / (2 + sum exp((A - mean A) / alpha)).
    """
    seen = ADVANTAGES[:4] / 0.7
    wins = np.zeros((1, 6, 6))
    wins[0, :4, :4] = expit(ADVANTAGES[:4, None] - ADVANTAGES[None, :4]) * (1 - np.eye(4))
    # Descent, because at lam = 1 any mass is optimal: it never moves a logit without a slope.
    options: dict[str, Any] = {"optimizer": "gradient_descent", "learning_rate": 5.0, "max_steps": 2_000}
    objective, problem = rpo.CPL(alpha=0.7, lam=lam), one_prompt(6)
    options = (options if lam == 1.0 else {}) | {"proxy_reward": None, "log_every": 1_000}
    run = fit(problem.softmax_policy(), PreferenceCounts.from_wins(wins), objective, **options)
    left = float(run.policy[0, 4:].sum())
    if lam == 1.0:
        assert left == pytest.approx(2 / (2 + np.exp(seen - seen.mean()).sum()), rel=1e-7)
        assert left == pytest.approx(0.1527, abs=5e-5)
    else:
        assert left < 1e-8 and run.evidence == "certified" and not run.certificate["attained"]


def test_odds_ratio_losses_are_bounded_by_the_absolute_one() -> None:
    """ASFT's is -log p_w - log(1 - p_l); ORPO's that plus log(p_w (1 - p_l) + p_l (1 - p_w)), which is below zero."""
    p = np.random.default_rng(0).uniform(0.01, 0.98, size=(2, 5_000))
    given = columns(np.log(p))
    absolute, odds = rpo.ASFT().per_pair(given), rpo.ORPO().per_pair(given)
    assert absolute == pytest.approx(-np.log(p[0]) - np.log1p(-p[1]), abs=1e-12)
    assert odds == pytest.approx(absolute + np.log(p[0] * (1 - p[1]) + p[1] * (1 - p[0])), abs=1e-12)
    assert (odds <= absolute).all()


def test_dpo_pushes_the_rejected_harder_than_it_pulls_the_chosen_and_asft_does_not() -> None:
    """|dL/dp_l| / |dL/dp_w| is p_w / p_l for DPO, of median 3.03 where p_l < p_w, and p_w / (1 - p_l) < 1 for ASFT.

    5,000 policies of five responses, uniform on the simplex.
    """
    p = np.random.default_rng(0).dirichlet(np.ones(5), 5_000).T[:2]
    ratio = {}
    for objective in (DPO(beta=1.0), rpo.ASFT()):
        given = columns(np.log(p), np.zeros((2, 5_000)))
        slope = objective.derivatives(given)[1] / p
        ratio[type(objective).__name__] = np.abs(slope[1] / slope[0])
    assert ratio["DPO"] == pytest.approx(p[0] / p[1], rel=1e-9)
    assert ratio["ASFT"] == pytest.approx(p[0] / (1 - p[1]), rel=1e-9)
    assert 2.8 <= np.median(ratio["DPO"][p[1] < p[0]]) <= 3.3
    assert 0.9 <= ratio["ASFT"].max() < 1.0


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_noise_contrastive_alignment_raises_the_chosen_to_a_fixed_ratio(beta: float) -> None:
    """A always beats B among eight responses: sigma(r_w) = 2/3, so pi(A) = 2^(1 / beta) pi_ref(A); DPO has no end."""
    pairs = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=8)
    run = fit(one_prompt(8).softmax_policy(), pairs, rpo.NCA(beta=beta), proxy_reward=None, max_steps=3_000)
    assert run.policy[0, 0] * 8 == pytest.approx(2 ** (1 / beta), rel=1e-6)


def test_simpo_of_single_tokens_without_a_margin_is_dpo_from_a_uniform_reference() -> None:
    pairs = population(REWARDS)
    one, other = (policy(o, one_prompt(12), pairs) for o in (rpo.SimPO(beta=0.7, gamma=0.0), DPO(beta=0.7)))
    assert np.abs(one - other).max() <= 1e-9


# --- labels repaired by an ensemble ----------------------------------------------------------------


def linear_problem(features: Array) -> ContextualBandit:
    return ContextualBandit(
        d0=[1.0], reference=np.full((1, len(features)), 1 / len(features)), features=features[None], reward_bound=1.0
    )


def repaired(share: float, seed: int) -> list[float]:
    """Return precision and recall of mu < 0 as a sign of a flip, and held-out accuracies plain, flipped, softened.

    400 pairs of responses with normal features in eight dimensions, labelled by a linear reward, `share` of the labels
    flipped; ten linear rewards, each fitted on a resample; 4,000 new pairs.
    """
    rng, d, n = np.random.default_rng(seed), 8, 400
    apart, theta = rng.normal(size=(n, d)), rng.normal(size=d) * 1.5
    apart = np.where((apart @ theta > 0)[:, None], apart, -apart)
    flipped = rng.random(n) < share
    apart = np.where(flipped[:, None], -apart, apart)
    problem = linear_problem(np.concatenate([apart, np.zeros((n, d))]))  # response k against the origin, k + n
    start = problem.linear_softmax_policy()

    def fitted(pairs: PreferenceCounts) -> Array:
        options: dict[str, Any] = {"optimizer": "lbfgs", "tolerance": 1e-6, "log_every": 1_000, "proxy_reward": None}
        return fit(start, pairs, DPO(beta=1.0), **options).arrays["parameters"]

    def pairs(which: Array) -> PreferenceCounts:
        return PreferenceCounts.from_pairs(
            np.zeros(len(which), dtype=int), which, which + n, num_prompts=1, num_responses=2 * n
        )

    data = pairs(np.arange(n))
    rewards = np.stack([problem.features[0] @ fitted(pairs(rng.integers(0, n, n))) for _ in range(10)])
    strength = preference_strength(data, rewards[:, None])
    disputed = strength < 0
    new = rng.normal(size=(4_000, d))
    new = np.where((new @ theta > 0)[:, None], new, -new)
    fits = (data, flip_weakest(data, strength, int(share * n) / n), soft_labels(data, 1.0 - share))
    caught = float((disputed & flipped).sum())
    return [caught / disputed.sum(), caught / flipped.sum(), *((new @ fitted(found) > 0).mean() for found in fits)]


@pytest.mark.parametrize(
    ("share", "precision", "recall", "plain", "gain"),
    [(0.1, 0.727, 0.948, 0.950, 0.011), (0.2, 0.787, 0.919, 0.927, 0.008), (0.3, 0.782, 0.857, 0.886, -0.005)],
)
def test_flipping_weak_preferences_helps_until_the_ensemble_is_corrupted_itself(
    share: float, precision: float, recall: float, plain: float, gain: float
) -> None:
    """Held-out accuracy rises at 10 and 20 % of flips and falls at 30 %, by more than two standard errors, paired.

    24 seeds; numbers within three standard errors of those of forty.
    """
    found = np.array([repaired(share, seed) for seed in range(24)])
    error = found.std(axis=0, ddof=1) / np.sqrt(24)
    for column, number in enumerate((precision, recall, plain)):
        assert found[:, column].mean() == pytest.approx(number, abs=3 * error[column])
    change = found[:, 3] - found[:, 2]
    uncertain = change.std(ddof=1) / np.sqrt(24)
    assert change.mean() == pytest.approx(gain, abs=3 * uncertain)
    assert change.mean() * (1 if share < 0.3 else -1) > 2 * uncertain
    # In a linear class soft labels only rescale the reward.
    assert abs((found[:, 4] - found[:, 2]).mean()) <= 0.003


def test_strength_and_flips_by_hand() -> None:
    """Two rewards, three preferences of counts 2, 1, 1: strengths 1, -2, 1/2; a half flipped is the second and one
    count of the third, three quarters takes one of the two of the first."""
    data = PreferenceCounts.from_pairs([0, 0, 0], [0, 1, 2], [1, 2, 0], count=[2, 1, 1], num_prompts=1, num_responses=3)
    rewards = np.array([[[2.0, 1.0, 2.0]], [[1.0, 0.0, 3.0]]])
    strength = preference_strength(data, rewards)
    assert strength.tolist() == [1.0, -2.0, 1.0]
    strength[2] = 0.5
    assert flip_weakest(data, strength, 0.5).wins()[0].tolist() == [[0, 2, 1], [0, 0, 0], [0, 1, 0]]
    assert flip_weakest(data, strength, 0.75).wins()[0].tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]
    soft = soft_labels(data, [0.75, 1.0, 0.0])
    assert soft.wins()[0].tolist() == [[0, 1.5, 1], [0.5, 0, 1], [0, 0, 0]] and soft.n == data.n
    careful = fit(linear_problem(np.eye(3)).softmax_policy(), data, rpo.ConservativeDPO(beta=1.0, epsilon=0.2))
    plain = fit(linear_problem(np.eye(3)).softmax_policy(), soft_labels(data, 0.8), DPO(beta=1.0))
    assert careful.policy == pytest.approx(plain.policy, abs=1e-9)
    for bad in (1.5, [0.5, 0.5], [0.5, -0.1, 0.5]):
        with pytest.raises(InvalidArgument, match=r"^right: expected a number in \[0, 1\]"):
            soft_labels(data, bad)
    with pytest.raises(InvalidArgument, match=r"^rewards: expected shape \(any, 1, 3\)"):
        preference_strength(data, rewards[:, 0])


# --- WPO's weights -----------------------------------------------------------------------------------


def wpo_gradient(pi: Array, reference: Array, draws: Array, wins: Array, capped: bool) -> tuple[Array, Array]:
    """Gradients in the logits: of WPO on the pairs drawn, and of DPO on pairs of the policy's own.

    draws: (A, A), how often (a, b) is compared. wins: (A, A), how often a beats b. One token: a response is likely by
    log p - log sum p^2.
    """
    chosen, rejected = (part.ravel() for part in np.indices(draws.shape))
    likeness = np.log(pi) - np.log((pi**2).sum())
    columns = Columns(
        logps=(np.log(pi)[chosen], np.log(pi)[rejected]),
        reference=(np.log(reference)[chosen], np.log(reference)[rejected]),
        likeness=(likeness[chosen], likeness[rejected]),
    )

    def slope(objective: Objective, weights: Array) -> Array:
        found = objective.derivatives(columns)[1] * weights.ravel()
        score = np.eye(len(pi)) - pi  # d log pi_a / d logits
        return found[0] @ score[chosen] + found[1] @ score[rejected]

    own = np.outer(pi, pi)
    return slope(rpo.WPO(beta=0.5, capped=capped), draws * wins), slope(DPO(beta=0.5), own * wins)


def test_wpo_is_on_policy_exactly_where_pairs_were_drawn_uniformly() -> None:
    """Its gradient is then DPO's on pairs of the policy's own, times 1 / (A sum p^2)^2.

    Controls: pairs drawn otherwise, the policy's own draws too, and capped weights turn it by over a hundredth.
    """
    rng = np.random.default_rng(0)
    size = 6
    reference, pi = rng.dirichlet(np.ones(size)), rng.dirichlet(np.ones(size))
    wins = expit(2 * (REWARDS[:size, None] - REWARDS[None, :size]))
    uniform = np.full((size, size), 1 / size**2)
    weighted, own = wpo_gradient(pi, reference, uniform, wins, capped=False)
    assert weighted == pytest.approx(own / (size * (pi**2).sum()) ** 2, rel=1e-12)
    behaviour = rng.dirichlet(np.ones(size))
    for draws, capped in ((np.outer(behaviour, behaviour), False), (np.outer(pi, pi), False), (uniform, True)):
        other, own = wpo_gradient(pi, reference, draws, wins, capped)
        turned = np.linalg.norm(other / np.linalg.norm(other) - own / np.linalg.norm(own))
        assert turned > 0.01


def test_wpo_has_no_optimum_on_a_table() -> None:
    """Its weights follow the policy: every solver and fit of tables refuses it by name."""
    problem = one_prompt(3)
    data = population(REWARDS[:3])
    for ask in (
        lambda: fit(problem.softmax_policy(), data, rpo.WPO(), proxy_reward=None),
        lambda: solve(problem, data, rpo.WPO()),
    ):
        with pytest.raises(InvalidArgument, match=r"^objective: .*WPO"):
            ask()
