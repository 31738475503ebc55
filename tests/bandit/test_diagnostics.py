"""Entangled gradients, ranking accuracies and averaged policies: facts against small steps, enumeration or algebra."""

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import rpo
from rpo.bandit import (
    ContextualBandit,
    LinearSoftmaxPolicy,
    PreferenceCounts,
    TabularSoftmaxPolicy,
    Unconstrained,
    diagnostics,
    solve,
)
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
