"""Entangled gradients, ranking accuracies and averaged policies: facts against small steps, enumeration or algebra."""

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    LinearSoftmaxPolicy,
    PreferenceCounts,
    TabularSoftmaxPolicy,
    Unconstrained,
    diagnostics,
    solve,
    solve_batch,
)
from rpo.bandit.baselines import ensemble_rewards
from rpo.core.errors import InvalidArgument


def one_pair(arms: int, chosen: int, rejected: int) -> PreferenceCounts:
    return PreferenceCounts.from_pairs([0], [chosen], [rejected], num_prompts=1, num_responses=arms)


def linear(seed: int) -> tuple[LinearSoftmaxPolicy, PreferenceCounts]:
    """Six responses, three features, both standard normal; a uniform reference and one random comparison."""
    g = np.random.default_rng(seed)
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 6), 1 / 6), features=g.normal(size=(1, 6, 3)))
    chosen, rejected = g.choice(6, 2, replace=False)
    return problem.linear_softmax_policy().with_parameters(g.normal(size=3)), one_pair(6, chosen, rejected)


def test_the_signs_of_a_small_step_are_those_foretold() -> None:
    """2,000 random linear policies: of all, and of RPO's at an eta on either side of its least one.

    Three quarters are ideal, an eighth each fall or rise together. Control: at half the least eta the chosen falls.
    """
    cases: list[str] = []
    for seed in range(2000):
        policy, data = linear(seed)
        found = diagnostics.gradient_entanglement(policy, data)
        (case,) = found.case
        cases.append(str(case))

        def change(eta: float, policy: Any = policy, data: Any = data) -> Any:
            """Return how log pi of the two moves along minus the gradient, by differences of the loss itself."""
            w, lost, start = int(data.chosen[0]), int(data.rejected[0]), policy.parameters

            def loss(theta: Any) -> float:
                logps = policy.with_parameters(theta).logps[0]
                return float(np.logaddexp(0.0, -0.1 * (logps[w] - logps[lost])) - 0.1 * eta * logps[w])

            step = np.array([(loss(start - 1e-5 * e) - loss(start + 1e-5 * e)) / 2e-5 for e in np.eye(3)])
            length = 1e-4 / np.linalg.norm(step)
            ends = [policy.with_parameters(start + sign * length * step).logps[0] for sign in (1, -1)]
            return (ends[0] - ends[1])[[w, lost]]

        rise = change(0.0)
        assert (rise[0] > 0, rise[1] > 0) == {"ideal": (True, False), "both fall": (False, False)}.get(
            str(case), (True, True)
        )
        assert rise[0] > rise[1]
        logps = policy.logps[0]
        margin = logps[data.chosen] - logps[data.rejected]
        (least,) = found.least_eta(margin, 0.1)
        assert (least > 0) == (case == "both fall")
        if least > 0:
            assert change(2.0 * least)[0] > 0 > change(0.5 * least)[0]
    shares = [cases.count(case) / len(cases) for case in diagnostics.CASES]
    assert shares == pytest.approx([0.753, 0.124, 0.122], abs=0.03)


def test_on_a_table_the_chosen_always_rises() -> None:
    """<g_w, g_l> - |g_w|^2 = -(1 - pi_w + pi_l), by hand and below zero; no eta is needed."""
    g = np.random.default_rng(0)
    problem = ContextualBandit(d0=np.ones(1), reference=g.dirichlet(np.ones(5))[None])
    policy = TabularSoftmaxPolicy(problem, g.normal(size=(1, 5)))
    data = PreferenceCounts.from_pairs([0] * 3, [0, 1, 4], [1, 2, 0], num_prompts=1, num_responses=5)
    found, pi = diagnostics.gradient_entanglement(policy, data), np.exp(policy.logps[0])
    assert found.inner - found.chosen == pytest.approx(-(1 - pi[data.chosen] + pi[data.rejected]), abs=1e-14)
    assert (found.least_eta(np.zeros(3), 0.1) == 0).all()


def test_least_eta_by_hand() -> None:
    """|g_w|^2 = 1, <g_w, g_l> = 3, margin 0: s = 1/2, and 1/2 + eta > 3/2 from eta = 1 on."""
    found = diagnostics.Entanglement(np.array([1.0]), np.array([16.0]), np.array([3.0]))
    assert found.case.tolist() == ["both fall"]
    assert found.least_eta([0.0], 2.0) == pytest.approx([1.0])
    assert found.least_eta([np.log(3.0)], 1.0) == pytest.approx([0.5])  # s = 1/4


def test_a_pair_is_ranked_right_iff_its_loss_is_below_the_threshold() -> None:
    """20,000 random policies and references; the loss at the reference is log 2 whatever its ranking."""
    g = np.random.default_rng(0)
    data, right = one_pair(2, 0, 1), 0
    for _ in range(20_000):
        reference, policy = (log_softmax(3 * g.normal(size=(1, 2)), axis=1) for _ in range(2))
        margin = (policy - reference)[0] @ [1.0, -1.0]
        ranked = diagnostics.ranking_accuracy(policy, data)
        assert ranked == float(np.logaddexp(0, -0.1 * margin) <= diagnostics.ranking_loss(reference, data, 0.1)[0])
        right += int(ranked)
    assert 9_500 < right < 10_500


def test_idealised_accuracy_is_that_of_the_optimum_and_falls_in_beta() -> None:
    """Two responses and fractional counts (a, 1 - a): DPO's certified optimum ranks as the closed form says.

    Over 400 pairs: near one at a low beta, the reference's own at a high one.
    """
    means = {}
    for beta in (0.05, 0.5, 5.0):
        hits = []
        for seed in range(400):
            reference = np.exp(log_softmax(3 * np.random.default_rng(seed).normal(size=(1, 2)), axis=1))
            rate = 0.5 + 0.45 * np.random.default_rng(10**6 + seed).random()
            hits.append(diagnostics.idealised_ranking_accuracy(np.log(reference), one_pair(2, 0, 1), beta, rate))
            if seed < 20:
                problem = ContextualBandit(d0=np.ones(1), reference=reference)
                data = PreferenceCounts.from_pairs(
                    [0, 0], [0, 1], [1, 0], count=[rate, 1 - rate], num_prompts=1, num_responses=2
                )
                found = solve(problem, data, rpo.DPO(beta=beta), reward_class=Unconstrained(), method="newton")
                assert diagnostics.ranking_accuracy(np.log(found.policy), one_pair(2, 0, 1)) == hits[-1]
        means[beta] = float(np.mean(hits))
    assert means[0.05] > 0.9 > means[0.5] > means[5.0]
    assert means[5.0] == pytest.approx(0.5, abs=0.06)


def gibbs_of(reference: Any, reward: Any, beta: float) -> Any:
    return np.exp(log_softmax(np.log(reference) + reward / beta, axis=1))


def test_gold_changes_by_its_covariance_with_the_proxy() -> None:
    """Against differences in 1 / beta; the proxy's own value rises by its variance; gold peaks at zero covariance."""
    g = np.random.default_rng(0)
    reference = g.dirichlet(np.ones(8), size=3)
    gold = g.normal(size=(3, 8))
    proxy = gold + 1.5 * g.normal(size=(3, 8))
    for beta in (0.2, 1.0, 5.0):
        near = [(gibbs_of(reference, proxy, 1 / (1 / beta + step)) * gold).sum(axis=1) for step in (1e-5, -1e-5)]
        policy = gibbs_of(reference, proxy, beta)
        found = diagnostics.gold_slope(policy, gold, proxy)
        assert found == pytest.approx((near[0] - near[1]) / 2e-5, abs=1e-8)
        spread = (policy * proxy**2).sum(axis=1) - (policy * proxy).sum(axis=1) ** 2
        assert diagnostics.gold_slope(policy, proxy, proxy) == pytest.approx(spread)
    # A rare response that the proxy likes best is worst: gold rises while the others are told apart, then falls.
    rare, good, liked = np.array([[0.33, 0.33, 0.33, 0.01]]), np.array([[0.0, 1, 2, -3]]), np.array([[0.0, 1, 2, 3]])
    policies = [gibbs_of(rare, liked, 1 / force) for force in np.linspace(1e-3, 20, 4001)]
    worth = [float((policy * good).sum()) for policy in policies]
    slopes = [diagnostics.gold_slope(policy, good, liked)[0] for policy in policies]
    peak = int(np.argmax(worth))
    assert 0 < peak < 4000 and slopes[peak - 1] > 0 > slopes[peak + 1]


def test_labels_made_in_hindsight_help_where_claims_mislead() -> None:
    """Claims anticorrelated with what follows (-.6): utility falls along foresight labels, and rises along hindsight.

    Hindsight that is simulated with noise of deviation .3, 1, 3, 10 gains less and less, and worsens up to half of 400
    instances. Control: where claims are correlated with the outcome, foresight helps too.
    """
    reference = np.full((1, 8), 1 / 8)
    gains: dict[str, list[float]] = {"foresight": [], "honest": [], "hindsight": []}
    noisy: dict[float, list[float]] = {0.3: [], 1.0: [], 3.0: [], 10.0: []}
    for seed in range(400):
        g = np.random.default_rng(seed)
        utility, noise = g.normal(size=(1, 8)), g.normal(size=(1, 8))
        start = float((reference * utility).sum())
        claims = {"foresight": -0.6 * utility, "honest": 0.6 * utility}
        labels = {**{name: claim + 0.8 * noise for name, claim in claims.items()}, "hindsight": utility}
        for name, label in labels.items():
            gains[name].append(float((gibbs_of(reference, label, 0.5) * utility).sum()) - start)
        for deviation, found in noisy.items():
            label = utility + deviation * noise
            found.append(float((gibbs_of(reference, label, 0.5) * utility).sum()) - start)
    half = 1.96 * np.std(gains["foresight"], ddof=1) / 20
    assert np.mean(gains["foresight"]) < -half and np.mean(gains["honest"]) > half
    assert np.mean(gains["hindsight"]) > np.mean(gains["honest"])
    means = [float(np.mean(found)) for found in noisy.values()]
    assert means == sorted(means, reverse=True) and means[0] > 1.0 and means[3] > 0
    worse = [float(np.mean(np.array(found) < 0)) for found in noisy.values()]
    assert worse == sorted(worse) and worse[0] == 0.0 and 0.4 < worse[3] < 0.5


def test_drawn_labels_do_what_the_reward_behind_them_does() -> None:
    """DPO on 100 preferences by each labeller, 200 instances as prompts of one problem, beta .5, certified.

    Utility gained: foresight -.69 +- .09, hindsight 1.04 +- .07, and the control, claims that are correlated, .63
    +- .08; within .04 of the Gibbs policies of what the annotators judge by.
    """
    g = np.random.default_rng(0)
    utility, noise = g.normal(size=(2, 200, 8))
    problem = ContextualBandit(d0=np.full(200, 1 / 200), reference=np.full((200, 8), 1 / 8))
    gained = {}
    for name, judged in {
        "foresight": -0.6 * utility + 0.8 * noise,
        "honest": 0.6 * utility + 0.8 * noise,
        "hindsight": utility,
    }.items():
        wins = problem.sample_preferences(200 * 100, labels=judged, rng=1).wins()
        found = solve_batch(wins[None], rpo.DPO(beta=0.5), reference=problem.reference, reward_class=Box(8.0))
        assert found.certified.all()
        gains = ((found.policy[0] - problem.reference) * utility).sum(axis=1)
        exact = ((gibbs_of(problem.reference, judged, 0.5) - problem.reference) * utility).sum(axis=1)
        assert gains.mean() == pytest.approx(exact.mean(), abs=0.04)
        gained[name] = (float(gains.mean()), 1.96 * float(gains.std(ddof=1)) / np.sqrt(200))
    assert gained["foresight"][0] < -gained["foresight"][1]
    assert gained["honest"][0] > gained["honest"][1] and gained["hindsight"][0] > gained["honest"][0]


def test_demonstrations_are_as_good_a_reference_as_their_expert() -> None:
    """The plug-in policy held to a clone of N_E demonstrations: the best weight of its KL follows the expert.

    Regret at beta = .02, .1, .5 and of the clone itself. A good expert, 1,000 demonstrations and 20 pairs: it falls in
    beta. Ten demonstrations and 500 pairs: it rises, and does so for a poor expert however many there are.
    Source: Tiapkin et al. 2024 (arXiv 2310.17303); solved here as `PlugIn` with another reference.
    """

    def regret(skill: float, demonstrations: int, pairs: int, seed: int) -> list[float]:
        g = np.random.default_rng(seed)
        gold = g.uniform(0, 1, 10)
        expert = np.exp(log_softmax(4 * skill * gold))
        clone = (g.multinomial(demonstrations, expert) + 1.0) / (demonstrations + 10)
        problem = ContextualBandit(
            d0=np.ones(1), reference=clone[None], reward=4 * (gold - gold.min())[None], reward_bound=6.0
        )
        data = problem.sample_preferences(pairs, rng=seed)
        fitted = ensemble_rewards(problem, data, size=1, scale=0.0, ridge=0.05, rng=0)[0] / 4
        policies = [gibbs_of(clone[None], fitted, beta) for beta in (0.02, 0.1, 0.5)]
        return [float(gold.max() - policy[0] @ gold) for policy in [*policies, clone[None]]]

    mean = {
        case: np.mean([regret(*case, seed) for seed in range(100)], axis=0)
        for case in ((4.0, 1000, 20), (4.0, 10, 500), (-1.0, 1000, 20))
    }
    good, few, poor = mean.values()
    assert good[2] < good[1] < good[0] and few[0] < few[1] < few[2] and poor[0] < poor[1] < poor[2]
    assert good == pytest.approx([0.093, 0.045, 0.022, 0.026], abs=0.03)
    assert few == pytest.approx([0.006, 0.019, 0.104, 0.222], abs=0.02)
    assert poor == pytest.approx([0.273, 0.310, 0.558, 0.671], abs=0.05)
    assert good[3] < few[3] < poor[3]


def test_averaging_with_the_reference_is_a_higher_beta() -> None:
    """Control: the arithmetic mean of the two policies is no Gibbs policy of the reward."""
    g = np.random.default_rng(0)
    reference, reward = g.dirichlet(np.ones(8), size=2), g.normal(size=(2, 8))

    def gibbs(beta: float) -> Any:
        return np.exp(log_softmax(np.log(reference) + reward / beta, axis=1))

    for share in (0.25, 0.4, 1.0):
        mixed = diagnostics.geometric_mean([reference, gibbs(0.5)], [1 - share, share])
        assert mixed == pytest.approx(gibbs(0.5 / share), abs=1e-14)
    flat = 0.6 * reference + 0.4 * gibbs(0.5)
    left = np.log(flat / reference) - np.log(gibbs(0.5 / 0.4) / reference)
    assert np.ptp(left, axis=1).min() > 1e-2


def test_an_averaged_reference_is_nearer_by_the_bhattacharyya_distance() -> None:
    """KL(p || mean) = mean of the two KLs less the distance, for any p, to 1e-12; equal references gain nothing.

    Two SFT policies of 40 samples each, 400 seeds: nearer to what they were drawn from by .047 +- .002 nats.
    """
    gains = []
    for seed in range(400):
        g = np.random.default_rng(seed)
        truth = g.dirichlet(np.ones(12))
        fitted = [(g.multinomial(40, truth) + 0.5) / 46.0 for _ in range(2)]
        soup = diagnostics.geometric_mean([[row] for row in fitted])[0]

        def kl(p: Any, q: Any) -> float:
            return float((p * np.log(p / q)).sum())

        gain = 0.5 * (kl(truth, fitted[0]) + kl(truth, fitted[1])) - kl(truth, soup)
        assert gain == pytest.approx(diagnostics.bhattacharyya(*fitted), abs=1e-12)
        gains.append(gain)
    assert np.mean(gains) == pytest.approx(0.047, abs=0.004)
    assert diagnostics.bhattacharyya(truth, truth) == pytest.approx(0.0, abs=1e-15)
    assert diagnostics.geometric_mean([[truth], [truth]])[0] == pytest.approx(truth, abs=1e-15)


def test_what_does_not_fit_is_refused_by_name() -> None:
    half, data = np.full((1, 2), 0.5), one_pair(2, 0, 1)
    for match, ask in {
        "^weights": lambda: diagnostics.geometric_mean([half, half], [0.5, 0.6]),
        r"^policies\[1\]": lambda: diagnostics.geometric_mean([half, 2 * half]),
        "^policies: expected a response": lambda: diagnostics.geometric_mean([[[1.0, 0.0]], [[0.0, 1.0]]]),
        "^chosen_rate": lambda: diagnostics.idealised_ranking_accuracy(np.log(half), data, 0.1, 1.0),
        "^logps": lambda: diagnostics.ranking_accuracy(np.zeros((2, 2)), data),
        r"^exp\(logps\)": lambda: diagnostics.ranking_accuracy(np.zeros((1, 2)), data),
        "^policy": lambda: diagnostics.gradient_entanglement(half, data),
        "^margins": lambda: diagnostics.gradient_entanglement(
            TabularSoftmaxPolicy(ContextualBandit(d0=np.ones(1), reference=half)), data
        ).least_eta([0.0, 1.0], 0.1),
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            ask()
