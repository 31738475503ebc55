"""A reward judged by its own policy: both derivatives against differences, and where the second is wanted."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from rpo.bandit import ContextualBandit, bilevel, instances
from rpo.core.divergences import KL, ChiSquaredKL, Divergence, JensenShannon
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import kl_divergence

BETA, ARMS, SEEDS = 0.5, 5, 20


@pytest.mark.parametrize("divergence", [KL(), ChiSquaredKL(), JensenShannon()], ids=lambda d: type(d).__name__)
def test_the_gradient_is_that_of_differences_and_needs_its_second_term(divergence: Divergence) -> None:
    """To 1e-8 under each divergence, on two prompts with flipped labels; the first term alone is off by over 1e-3."""
    problem = instances.label_noise(instances.random(prompts=2, arms=4, rng=0), 0.1)
    reward = np.random.default_rng(1).normal(size=(2, 4))

    def value(r: Any) -> float:
        return bilevel.label_loss(problem, r, beta=BETA, divergence=divergence).value

    units = np.eye(8).reshape(8, 2, 4) * 1e-5
    differences = np.array([value(reward + e) - value(reward - e) for e in units]).reshape(2, 4) / 2e-5
    found = bilevel.label_loss(problem, reward, beta=BETA, divergence=divergence)
    assert found.gradient == pytest.approx(differences, abs=1e-8)
    assert np.abs(found.direct - differences).max() > 1e-3


def test_one_pair_by_hand() -> None:
    """r = (1, 0), beta 1, even reference, r* equal: pi = sigma(1), loss 2 pi (1 - pi) l + (1 - 2 pi (1 - pi)) log 2."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 2), 0.5), reward=np.zeros((1, 2)), reward_bound=1.0)
    found = bilevel.label_loss(problem, [[1.0, 0.0]], beta=1.0)
    p = 1 / (1 + math.exp(-1))
    cross = 0.5 * (math.log1p(math.exp(-1)) + math.log1p(math.exp(1)))
    assert found.value == pytest.approx(2 * p * (1 - p) * cross + (p**2 + (1 - p) ** 2) * math.log(2))
    assert found.direct == pytest.approx(2 * p * (1 - p) * (p - 0.5) * np.array([[1, -1]]))
    assert found.answer[0, 0] == pytest.approx(p * (1 - p) * (2 - 4 * p) * (cross - math.log(2)))


def worth(problem: ContextualBandit, policy: Any) -> float:
    """Return E_pi[r*] - beta KL(pi || pi_ref)."""
    return float((policy * problem.true_reward()).sum() - BETA * kl_divergence(policy, problem.reference).sum())


def lost(seed: int) -> list[float]:
    """Return the worth lost against r*'s own policy at the minimum of the label loss over tables, and of two features.

    Of those first where descent along the first term ends, then at the loss's minimum, last at the best worth of the
    class, whose gradient is the second term alone.
    """
    g = np.random.default_rng(seed)
    problem = ContextualBandit(
        d0=np.ones(1), reference=g.dirichlet(np.ones(ARMS))[None], reward=g.uniform(0, 2, (1, ARMS)), reward_bound=2.0
    )

    def loss(r: Any) -> bilevel.OuterLoss:
        return bilevel.label_loss(problem, r[None], beta=BETA)

    def judged(r: Any) -> tuple[float, Any]:
        policy = loss(r).policy
        slope = problem.true_reward() - BETA * np.log(np.maximum(policy, 1e-300) / problem.reference)
        return -worth(problem, policy), -bilevel.policy_answer(problem, r[None], slope, beta=BETA)[0]

    def least(outer: Any, phi: Any, starts: Any) -> Any:
        def pulled(theta: Any) -> tuple[float, Any]:
            value, slope = outer(phi @ theta)
            return value, phi.T @ slope

        return min((minimize(pulled, s, jac=True, method="BFGS") for s in starts), key=lambda o: o.fun).x

    def full(r: Any) -> tuple[float, Any]:
        found = loss(r)
        return found.value, found.gradient[0]

    phi, table, drawn = g.normal(size=(ARMS, 2)), np.eye(ARMS), g.normal(size=(4, ARMS))
    truth = problem.true_reward()[0]
    assert np.abs(loss(truth).direct).max() < 1e-15 < 1e-4 < np.abs(loss(truth).answer).max()
    still = np.zeros(2)
    for _ in range(1500):
        still = still - phi.T @ loss(phi @ still).direct[0]
    rewards = [least(full, table, [np.zeros(ARMS), truth, *drawn]), phi @ still]
    rewards += [phi @ least(full, phi, drawn[:, :2]), phi @ least(judged, phi, [still, *drawn[:, :2]])]
    top = worth(problem, loss(truth).policy)
    return [top - worth(problem, loss(r).policy) for r in rewards]


def test_which_outer_loss_wants_the_second_term() -> None:
    """Worth lost, 20 instances: with the loss of labels for the outer one the term steers to easy pairs.

    A table: r* is where the first term vanishes, and the minimum of the loss lies .42 +- .16 below. Two features: .09
    +- .04 without the term, .37 +- .16 at the minimum. Where the outer loss is the policy's worth the term is the
    whole gradient, and the best of the class loses .08 +- .04.
    """
    found = np.array([lost(seed) for seed in range(SEEDS)])
    means, half = found.mean(axis=0), 1.96 * found.std(axis=0, ddof=1) / math.sqrt(SEEDS)
    least, still, minimum, best = means
    assert found.min() > -1e-9 and least > half[0] and minimum - still > half[1] + half[2]
    assert means == pytest.approx([0.423, 0.088, 0.366, 0.085], abs=0.01)
    assert (found[:, 3] <= found[:, 1] + 1e-9).all() and still - best < 0.01


def test_what_does_not_fit_is_refused_by_name() -> None:
    problem = instances.random(prompts=2, arms=3, rng=0)
    good = np.zeros((2, 3))
    for match, ask in {
        "^problem": lambda: bilevel.label_loss(good, good, beta=0.1),  # type: ignore[arg-type]
        "^reward": lambda: bilevel.label_loss(problem, good[:1], beta=0.1),
        "^slope": lambda: bilevel.policy_answer(problem, good, good[:1], beta=0.1),
        "^beta": lambda: bilevel.policy_answer(problem, good, good, beta=0.0),
        "^divergence": lambda: bilevel.label_loss(problem, good, beta=0.1, divergence="KL"),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            ask()
