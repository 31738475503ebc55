"""Facts of lists on exact bandits, with their numbers: what longer lists are worth, what making pairs of them costs.

Seeds are stated; where a number is a mean over seeds its interval is two or three standard errors.
"""

from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from scipy.optimize import root
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, softmax

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    PreferenceCounts,
    RankedLists,
    Unconstrained,
    build_saddle,
    fit,
    solve,
    solve_batch,
)
from rpo.bandit.baselines.plain import best_of_n_policy
from rpo.bandit.coverage import coverage_coefficient
from rpo.core.checks import Array
from rpo.core.objectives import DPO, RPO, Objective
from rpo.methods.lists import ALoL, CoPG, InfoNCA, LiPO, ListEXO, ListNCA, PlackettLuceDPO


def one_prompt(reward: Any, reference: Any = None, behavior: Any = None) -> ContextualBandit:
    """One prompt; rewards are moved to start at 0."""
    reward = np.asarray(reward, dtype=float)
    rho = np.full(reward.size, 1.0 / reward.size) if reference is None else reference
    drawn = None if behavior is None else [behavior]
    return ContextualBandit(d0=[1.0], reference=[rho], reward=[reward - reward.min()], behavior=drawn)


def scored(rows: Any, scores: Any, size: int, count: Any = None) -> RankedLists:
    """Lists of one prompt, each put in the order of its scores."""
    rows, scores = np.asarray(rows), np.asarray(scores, dtype=float)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, falling = (np.take_along_axis(table, order, 1) for table in (rows, scores))
    zeros = np.zeros(len(rows), dtype=int)
    return RankedLists.from_lists(zeros, ranked, count=count, scores=falling, num_prompts=1, num_responses=size)


def policy(objective: Objective, problem: ContextualBandit, data: Any) -> Array:
    run = fit(problem.softmax_policy(), data, objective, proxy_reward=None)
    assert run.status == "converged", run.message
    return run.policy[0]


# --- what a longer ranking is worth ------------------------------------------------------------------


def rankings(reward: Array, size: int) -> RankedLists:
    """Every ranking of `size` of the responses, counted by its Plackett-Luce probability: endless data."""
    rows = list(permutations(range(reward.size), size))
    chance = [
        np.prod([np.exp(reward[row[k]]) / np.exp(reward[list(row[k:])]).sum() for k in range(size)]) for row in rows
    ]
    return RankedLists.from_lists([0] * len(rows), rows, count=chance, num_prompts=1, num_responses=reward.size)


def information(reward: Array, size: int) -> Array:
    """The Fisher information of one ranking of `size` responses, drawn evenly, about the rewards, (A, A)."""
    saddle = build_saddle(one_prompt(reward), rankings(reward, size), PlackettLuceDPO(beta=1.0), Unconstrained())
    return saddle.term.derivatives(reward)[2]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_the_information_of_a_ranking_of_equals_is_its_length_less_a_harmonic_number(size: int) -> None:
    """Place by place the winner of m equals has covariance (I - 11'/m) / m, of trace 1 - 1/m: K - H_K in all.

    Spread evenly over the A - 1 directions that are seen: (K - H_K) / (A - 1) (I - 11'/A).
    """
    arms, harmonic = 6, sum(1 / k for k in range(1, size + 1))
    expected = (size - harmonic) / (arms - 1) * (np.eye(arms) - 1 / arms)
    assert information(np.zeros(arms), size) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("size", "number"), [(2, 0.228), (3, 0.092), (4, 0.052), (6, 0.023)])
def test_the_error_of_the_likeliest_reward_against_the_length_of_lists(size: int, number: float) -> None:
    """300 rankings of six rewards from -1 to 1: squared error .228, .092, .052, .023 for K = 2, 3, 4, 6.

    100 seeds; within three standard errors of the trace of the inverse information over 300 (plus a tenth of it for
    what is of second order), and of the number, itself a mean over 20 seeds.
    """
    reward, errors = np.linspace(-1.0, 1.0, 6), []
    problem = one_prompt(reward)
    for seed in range(100):
        drawn = problem.sample_rankings(300, size=size, rng=seed)
        found = solve(problem, drawn, PlackettLuceDPO(beta=1.0), reward_class=Unconstrained(), method="newton").reward[
            0
        ]
        errors.append(np.square(found - found.mean() - reward).sum())
    mean, error = np.mean(errors), np.std(errors, ddof=1) / 10
    predicted = np.trace(np.linalg.pinv(information(reward, size))) / 300
    assert mean == pytest.approx(predicted, abs=3 * error + 0.1 * predicted)
    assert mean == pytest.approx(number, abs=3 * error * np.hypot(1.0, np.sqrt(100 / 20)))


# --- what LambdaRank's weights are worth -------------------------------------------------------------


@cache
def top_of(size: int, seed: int) -> tuple[float, float]:
    """Return the gold of the best of 16 responses by a linear reward fitted to lists: pairwise, and by LambdaRank.

    60 prompts, three normal features, gold linear but for .6 of a product of features and noise of .3, which the reward
    cannot say: scores are gold in [0, 1], one list of `size` a prompt.
    """
    rng = np.random.default_rng(seed)
    features, noise, direction = rng.normal(size=(60, 16, 3)), rng.normal(size=(60, 16)), rng.normal(size=3)
    gold = features @ direction + 0.6 * features[..., 0] * features[..., 1] + 0.3 * noise
    unit = (gold - gold.min()) / np.ptp(gold)
    rows = np.array([rng.choice(16, size, replace=False) for _ in range(60)])
    scores = np.take_along_axis(unit, rows, 1)
    order = np.argsort(-scores, axis=1)
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    data = RankedLists.from_lists(np.arange(60), rows, scores=scores, num_prompts=60, num_responses=16)
    problem = ContextualBandit(
        d0=np.full(60, 1 / 60), reference=np.full((60, 16), 1 / 16), features=features, reward_bound=1.0
    )
    options: dict[str, Any] = {"optimizer": "lbfgs", "max_steps": 10, "tolerance": 1e-6, "log_every": 1_000}
    worth = []
    for variant in ("pair_logistic", "lambda"):
        objective = LiPO(beta=1.0, variant=variant)
        run = fit(problem.linear_softmax_policy(), data, objective, proxy_reward=None, **options)
        best = (features @ run.arrays["parameters"]).argmax(axis=1)
        worth.append(float(gold[np.arange(60), best].mean()))
    return worth[0], worth[1]


@pytest.mark.parametrize("size", [2, 8])
def test_only_long_lists_let_lambda_weights_pay_in_a_restricted_class(size: int) -> None:
    """LambdaRank minus pairwise, gold of the top response: .107 +- .015 over 60 seeds at K = 8, nothing at K = 2.

    24 seeds, paired, ten steps. The pairwise loss itself gains nothing from the longer lists.
    """
    found = np.array([top_of(size, seed) for seed in range(24)])
    gain = found[:, 1] - found[:, 0]
    error = gain.std(ddof=1) / np.sqrt(24)
    if size == 2:
        assert abs(gain.mean()) <= 3 * error
    else:
        assert gain.mean() > 3 * error
        longer = found[:, 0] - [top_of(2, seed)[0] for seed in range(24)]
        assert longer.mean() <= 2 * longer.std(ddof=1) / np.sqrt(24)
        assert gain.mean() == pytest.approx(0.107, abs=3 * np.hypot(error, 0.015))


# --- pairs made of lists -----------------------------------------------------------------------------

ROUNDS = 150
PAIR_RULES = ("best_random", "all_pairs", "best_worst", "adjacent")


@cache
def made_pairs() -> tuple[list[ContextualBandit], dict[str, list[PreferenceCounts]]]:
    """300 lists of four of twenty responses, drawn one by one from mu, scores with noise .7; pairs by each rule."""
    problems, pairs = [], {rule: [] for rule in PAIR_RULES}
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        reward = rng.normal(size=20)
        mu = softmax(0.7 * reward + rng.normal(size=20))
        rows = np.array([rng.choice(20, 4, replace=False, p=mu) for _ in range(300)])
        lists = scored(rows, reward[rows] + 0.7 * rng.normal(size=rows.shape), 20)
        problems.append(one_prompt(reward, mu))
        for rule in PAIR_RULES:
            pairs[rule].append(lists.to_pairs(rule, rng=seed))
    return problems, pairs


def regret(policies: Array) -> Array:
    problems, _ = made_pairs()
    return np.array([problem.suboptimality(pi) for problem, pi in zip(problems, policies, strict=True)])


def paired(first: Array, second: Array) -> tuple[float, float]:
    difference = first - second
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(ROUNDS))


def test_how_often_a_rule_leaves_responses_apart() -> None:
    """Share of comparison graphs in several pieces: .37 best against random, .15 against worst, .06 all or adjacent."""
    _, pairs = made_pairs()
    apart = {
        rule: np.mean([connected_components(found.wins()[0])[0] > 1 for found in made]) for rule, made in pairs.items()
    }
    for rule, share in {"best_random": 0.37, "best_worst": 0.15, "all_pairs": 0.06, "adjacent": 0.06}.items():
        assert apart[rule] == pytest.approx(share, abs=0.01)
    # Comparing each response with the next one links as much as comparing all of them.
    assert apart["adjacent"] == apart["all_pairs"] < apart["best_worst"] < apart["best_random"]


def test_best_against_worst_is_the_worst_rule_under_pessimism() -> None:
    """RPO at eta = .01: regret .084 best against random, .083 all pairs, .115 best against worst; 150 seeds, paired.

    Against the worst is worse than against a random one by more than three standard errors; all pairs are no better
    than one.
    """
    problems, pairs = made_pairs()
    objective, found = RPO(beta=0.2, eta=0.01, base="reference"), {}
    for rule in PAIR_RULES[:3]:
        made = [
            solve_batch(one.wins()[None], objective, reference=problem.reference, reward_class=Unconstrained())
            for problem, one in zip(problems, pairs[rule], strict=True)
        ]
        assert all(batch.certified.all() for batch in made)
        found[rule] = regret(np.stack([batch.policy[0] for batch in made]))
    for rule, number in {"best_random": 0.084, "all_pairs": 0.083, "best_worst": 0.115}.items():
        assert found[rule].mean() == pytest.approx(number, abs=1e-3)
    worse, error = paired(found["best_worst"], found["best_random"])
    assert worse > 3 * error
    better, error = paired(found["all_pairs"], found["best_random"])
    assert abs(better) <= 2 * error


def test_without_pessimism_all_pairs_win() -> None:
    """The most pessimistic of the likeliest rewards in Box(6): .054 all pairs, .075 best against random, .136 worst.

    That best against random is as good as all pairs is true of a penalised reward alone.
    """
    problems, pairs = made_pairs()
    found = {}
    for rule in PAIR_RULES[:3]:
        wins = np.stack([one.wins() for one in pairs[rule]])
        batch = solve_batch(
            wins, DPO(beta=0.2, base="reference"), reference=np.full((1, 20), 0.05), reward_class=Box(6.0)
        )
        plugged = [
            softmax(np.log(problem.reference) + reward / 0.2, axis=1)
            for problem, reward in zip(problems, batch.reward, strict=True)
        ]
        found[rule] = regret(np.stack(plugged))
    for rule, number in {"best_random": 0.075, "all_pairs": 0.054, "best_worst": 0.136}.items():
        assert found[rule].mean() == pytest.approx(number, abs=1e-3)
    for rule in ("best_random", "best_worst"):
        worse, error = paired(found[rule], found["all_pairs"])
        assert worse > 3 * error


def test_coverage_of_each_rule_at_equal_pairs_and_at_equal_lists() -> None:
    """Six responses, lists of four, endless data. At equal pairs a random rival covers best, C = 1.581 of 1.80 to 1.82.

    A list gives one pair, or six, or three: at equal lists all pairs cover best, C over the root of that number.
    """
    reward = np.linspace(0.0, 2.0, 6)
    mu = softmax([0.5, -1.0, 0.3, 0.0, 1.0, -0.5])
    problem = one_prompt(reward, mu)
    lists = problem.sample_rankings(10**11, size=4, rng=0)
    expected = {"best_random": 1.5806, "best_worst": 1.8177, "all_pairs": 1.8002, "adjacent": 1.8071}
    each = {"best_random": 1, "best_worst": 1, "all_pairs": 6, "adjacent": 3}
    found = {}
    for rule in PAIR_RULES:
        found[rule] = coverage_coefficient(
            problem, base=mu[None], data_distribution=lists.to_pairs(rule, rng=0), reward_class=Unconstrained()
        ).value
        assert found[rule] == pytest.approx(expected[rule], abs=2e-4)
    assert min(found, key=lambda rule: found[rule]) == "best_random"
    by_list = {rule: found[rule] / np.sqrt(each[rule]) for rule in PAIR_RULES}
    assert min(by_list, key=lambda rule: by_list[rule]) == "all_pairs"


# --- fixed points ------------------------------------------------------------------------------------

TOY, BETA = np.array([2.5, 2.0, 1.0]), 0.5
FIRST, SECOND = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])


def toy_regret(pi: Array) -> float:
    """E[r] - beta KL(pi || uniform) below its maximum."""

    def worth(q: Array) -> float:
        return float(q @ TOY - BETA * (q @ np.log(3.0 * q)))

    return worth(softmax(TOY / BETA)) - worth(pi)


def drawn_pairs(first: Array, second: Array) -> RankedLists:
    """Each two different responses, one from each distribution, by their probability."""
    rows = [row for row in product(range(3), repeat=2) if row[0] != row[1]]
    return scored(rows, [TOY[list(row)] for row in rows], 3, count=[first[a] * second[b] for a, b in rows])


@pytest.mark.parametrize(("first", "second"), [(FIRST, SECOND), (np.full(3, 1 / 3), np.full(3, 1 / 3))])
def test_contrastive_policy_gradient_does_not_see_who_drew_the_responses(first: Array, second: Array) -> None:
    """The paper's three responses: regret 0 at CoPG's fixed point from either distribution, certified."""
    problem = one_prompt(TOY)
    solution = solve(problem, drawn_pairs(first, second), CoPG(beta=BETA), reward_class=Unconstrained())
    assert solution.status == "certified" and abs(toy_regret(solution.policy[0])) <= 1e-12


def test_what_the_others_end_at_on_the_same_toy() -> None:
    """IPO .1525; a policy gradient off policy without baseline .638, with E_pi[R] .0148, and with E_pi[R - beta h] 0.

    The start is at .2919: without a baseline it ends worse than it began. The bias of the second is that the KL is left
    out of its baseline.
    """
    problem = one_prompt(TOY)
    wins = FIRST[:, None] * SECOND[None] * expit(TOY[:, None] - TOY[None])
    wins = wins + (SECOND[:, None] * FIRST[None]) * expit(TOY[:, None] - TOY[None])
    np.fill_diagonal(wins, 0.0)
    ipo = solve(problem, PreferenceCounts.from_wins(wins[None]), rpo.IPO(tau=BETA), reward_class=Unconstrained())
    assert toy_regret(ipo.policy[0]) == pytest.approx(0.1525, abs=5e-4)
    assert toy_regret(np.full(3, 1 / 3)) == pytest.approx(0.2919, abs=1e-4)

    def ends(baseline: Any) -> float:
        """Where the expected gradient over both draws, sum of (R - beta h - b)(e_y - pi), is zero; from pi_ref."""

        def gradient(logits: Array) -> Array:
            pi = softmax(np.append(logits, 0.0))
            worth = TOY - BETA * np.log(3.0 * pi)
            weight = (FIRST + SECOND) * (worth - baseline(pi, worth))
            return (weight - pi * weight.sum())[:2]

        found = root(gradient, np.zeros(2), tol=1e-12)
        assert found.success
        return toy_regret(softmax(np.append(found.x, 0.0)))

    assert ends(lambda pi, worth: 0.0) == pytest.approx(0.638, abs=5e-4)
    assert ends(lambda pi, worth: pi @ TOY) == pytest.approx(0.0148, abs=5e-5)
    assert ends(lambda pi, worth: pi @ worth) == pytest.approx(0.0, abs=1e-12)


SIX = np.array([1.2, 0.4, -0.3, 0.9, 0.0, -1.1])


@pytest.mark.parametrize("size", [3, 6])
@pytest.mark.parametrize("method", [InfoNCA, ListEXO])
def test_score_targets_give_the_scores_back_whatever_the_lists(method: Any, size: int) -> None:
    """beta h = score / alpha up to a constant, from any reference, from lists of three or of all: either KL."""
    rows = list(permutations(range(6), size))[:: 1 if size == 3 else 90]
    data, reference = scored(rows, SIX[np.array(rows)], 6), softmax([0.3, 0.0, 1.0, -0.4, 0.2, 0.5])
    problem = one_prompt(SIX, reference)
    pi = policy(method(beta=0.5, alpha=0.8), problem, data)
    assert np.ptp(0.5 * np.log(pi / reference) - SIX / 0.8) <= 1e-7


def test_noise_contrast_is_absolute_and_fits_one_list_of_all_alone() -> None:
    """beta h = log(K q) has mass one at beta = 1 from a uniform reference: pi = softmax(score / alpha).

    At another beta, or from lists of three, no policy is at that point, and another one is the end.
    """
    everyone = scored([range(6)], [SIX], 6)
    rows = list(permutations(range(6), 3))
    threes, problem, target = scored(rows, SIX[np.array(rows)], 6), one_prompt(SIX), softmax(SIX / 0.8)
    assert np.abs(policy(ListNCA(beta=1.0, alpha=0.8), problem, everyone) - target).max() <= 1e-7
    off = softmax(np.log(6.0 * target) / 0.5)  # were differences all that counted
    assert np.abs(policy(ListNCA(beta=0.5, alpha=0.8), problem, everyone) - off).max() > 1e-2
    assert np.abs(policy(ListNCA(beta=1.0, alpha=0.8), problem, threes) - target).max() > 1e-2


def alone(mu: Array, score: Array) -> RankedLists:
    return scored(np.arange(mu.size)[:, None], score[:, None], mu.size, count=mu)


def test_advantage_weights_end_inside_the_data_and_outlast_junk() -> None:
    """A-LoL without a ratio ends at mu A+ / Z, likelihood at mu. Half of the data are then a response worth -3.

    The likelihood's worth falls half the way to it; A-LoL's by less than half as much, as the lower baseline lets
    mediocre responses through.
    """
    rng = np.random.default_rng(0)
    mu, reward = np.append(rng.dirichlet(np.ones(7)), 0.0), np.append(rng.normal(size=7), -3.0)
    worth = {}
    for share in (0.0, 0.5):
        data = (1 - share) * mu + share * np.eye(8)[7]
        seen = data > 0
        advantage = reward - data @ reward
        problem = one_prompt(reward, np.full(8, 1 / 8))
        pi = policy(ALoL(ratio=False), problem, alone_of(data, advantage, seen))
        expected = data * np.maximum(advantage, 0.0)
        assert np.abs(pi - expected / expected.sum()).max() <= 1e-9
        worth[share] = (float(data @ reward), float(pi @ reward))
    assert worth[0.5][0] == pytest.approx((worth[0.0][0] - 3.0) / 2)
    assert worth[0.5][1] > worth[0.0][0] > worth[0.5][0]
    assert worth[0.0][1] - worth[0.5][1] < 0.5 * (worth[0.0][0] - worth[0.5][0])


def alone_of(data: Array, score: Array, seen: Any) -> RankedLists:
    return scored(np.flatnonzero(seen)[:, None], score[seen][:, None], data.size, count=data[seen])


def test_control_tokens_condition_on_being_good() -> None:
    """MEET's optimum p(y | good) = mu P(good | y) / Z is A-LoL's with P(good | y) for an advantage."""
    mu, good = np.array([0.4, 0.3, 0.2, 0.1]), expit(np.array([-1.0, 0.0, 1.0, 2.0]))
    pi = policy(ALoL(ratio=False), one_prompt(good), alone(mu, good))
    assert pi == pytest.approx(mu * good / (mu @ good), abs=1e-9)


# --- directions, agreement ---------------------------------------------------------------------------


def test_best_of_n_by_direction_moves_the_whole_front_out() -> None:
    """Two conflicting rewards of thirty responses, seven directions: the mean of v . R after each best of four.

    -.101, .824, 1.396, 1.625, 1.655 of 1.655 possible, and along every direction alone it rises. At equal KL
    it is below the Gibbs policy's, which is the best there is, by at most .06.
    """
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(30, 2))
    rewards[:, 1] -= 0.6 * rewards[:, 0]
    angles = np.radians(np.linspace(-45.0, 45.0, 7))
    worth = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ rewards.T
    front, policies = [], np.full((7, 30), 1 / 30)
    for _ in range(5):
        front.append((policies * worth).sum(axis=1))
        policies = best_of_n_policy(worth, policies, 4)
    assert [each.mean() for each in front] == pytest.approx([-0.1010, 0.8243, 1.3956, 1.6245, 1.6554], abs=1e-4)
    assert worth.max(axis=1).mean() == pytest.approx(1.6554, abs=1e-4)
    assert (np.diff(front, axis=0) > 0).all()
    once = best_of_n_policy(worth, np.full((7, 30), 1 / 30), 4)
    spent = (once * np.log(np.where(once > 0, once, 1.0) * 30)).sum(axis=1)
    for u, kl, reached in zip(worth, spent, front[1], strict=True):
        heat = root(lambda t, u=u, kl=kl: kl_of(u, t) - kl, 1.0, tol=1e-12)
        assert heat.success
        best = softmax(heat.x[0] * u) @ u
        assert reached < best < reached + 0.06


def kl_of(u: Array, t: Any) -> Any:
    pi = softmax(t * u)
    return pi @ np.log(pi * u.size)


def test_best_of_n_is_the_law_of_the_largest() -> None:
    """Enumerated over all triples of five responses, two of them of equal reward: F^n - F_-^n, ties in proportion."""
    reward, mass, law = np.array([1.0, 3.0, 3.0, 0.0, 2.0]), np.array([0.1, 0.3, 0.2, 0.15, 0.25]), np.zeros(5)
    for draw in product(range(5), repeat=3):
        best = [a for a in draw if reward[a] == reward[list(draw)].max()]
        for a in best:
            law[a] += np.prod(mass[list(draw)]) / len(best)
    found = best_of_n_policy(reward[None], mass[None], 3)[0]
    assert found == pytest.approx(law, abs=1e-15)


@pytest.mark.parametrize(("shared", "wrong"), [(0.0, 0.1), (1.0, 0.25)])
def test_what_two_rankers_agree_on_is_cleaner_if_they_err_apart(shared: float, wrong: float) -> None:
    """Each errs on a quarter of pairs: what both say alike is wrong in eps^2 / (eps^2 + (1 - eps)^2) = .1 of 100,000.

    Kept are eps^2 + (1 - eps)^2 = .625. Two rankers that err together keep all, and no label is any better.
    """
    rng, n, epsilon = np.random.default_rng(0), 100_000, 0.25
    first, own = rng.random(n) < epsilon, rng.random(n) < epsilon
    second = np.where(rng.random(n) < shared, first, own)
    kept = first == second
    share = 0.625 if shared == 0 else 1.0
    assert kept.mean() == pytest.approx(share, abs=3 * np.sqrt(0.25 / n))
    assert first[kept].mean() == pytest.approx(wrong, abs=3 * np.sqrt(0.25 / n))
