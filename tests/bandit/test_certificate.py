"""The closed-form gap against the two values it separates, each written out on its own.

Upper value: `upper_value` (conftest). Lower value: -eta beta E KL(pi || pi_ref) + sum_k w_k H(p_k) - S_R(g).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from rpo.bandit.maximin import solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.bandit.solver.certificate import Certificate, certify
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO

KINDS = ("box", "ball")


def setting(
    make_bandit: Callable[..., ContextualBandit], seed: int, kind: str, *, beta: float = 0.3, eta: float = 0.2,
    base: str = "chosen", n: int = 60,
) -> tuple[Any, Any, Any, Saddle]:  # fmt: skip
    problem = make_bandit(seed, prompts=3, arms=4, dim=3)
    assert problem.features is not None
    classes = {"box": Box(1.0), "ball": LinearBall(problem.features, 0.8), "unconstrained": Unconstrained()}
    data = problem.sample_preferences(n, rng=seed)
    objective = RPO(beta=beta, eta=eta, base=base)
    return problem, data, objective, build_saddle(problem, data, objective, classes[kind])


def random_reward(s: Saddle, rng: np.random.Generator) -> Any:
    if isinstance(s.reward_class, Box):
        return rng.uniform(0.0, s.reward_class.bound, size=s.base.shape)
    if isinstance(s.reward_class, LinearBall):
        theta = rng.normal(size=s.reward_class.features.shape[2])
        return s.reward_class.reward(theta * s.reward_class.radius * rng.uniform() / np.linalg.norm(theta))
    return rng.normal(size=s.base.shape)


def multiplier(s: Saddle, policy: Any, p: Any) -> Any:
    g = np.zeros(s.base.shape)
    for x, w, lost, n, q in zip(s.prompt, s.chosen, s.rejected, s.weights, p, strict=True):
        g[x, w] += n * q
        g[x, lost] -= n * q
    for x in range(len(s.d)):
        g[x] -= s.objective.eta * s.d[x] * (policy[x] - s.base[x])
    return g


def support_value(reward_class: Any, g: Any) -> float:
    """S_R(g): a linear program for the box; for the ball the linear functional along its own direction."""
    if isinstance(reward_class, Box):
        return float(-linprog(-g.ravel(), bounds=[(0.0, reward_class.bound)] * g.size).fun)
    pulled = sum(reward_class.features[x, a] * g[x, a] for x, a in np.ndindex(*g.shape))
    return float(reward_class.radius * np.sqrt((pulled**2).sum()))


def lower_value(s: Saddle, policy: Any, p: Any) -> float:
    value = -support_value(s.reward_class, multiplier(s, policy, p))
    for n, q in zip(s.weights, p, strict=True):
        value -= n * sum(v * np.log(v) for v in (q, 1 - q) if v > 0)
    for x in range(len(s.d)):
        value -= s.objective.eta * s.objective.beta * s.d[x] * (policy[x] @ (np.log(policy[x]) - s.log_reference[x]))
    return float(value)


@pytest.mark.parametrize("kind", [*KINDS, "unconstrained"])
def test_reward_side_is_the_upper_value_written_in_loops(
    make_bandit: Callable[..., ContextualBandit], upper_value: Callable[..., float], kind: str
) -> None:
    for seed in range(10):
        *_, s = setting(make_bandit, seed, kind, base=("chosen", "reference")[seed % 2])
        r = random_reward(s, np.random.default_rng(seed))
        assert s.reward_side(r) == pytest.approx(upper_value(s, r), abs=1e-13)


def test_reward_side_is_the_maximum_of_phi_over_policies(make_bandit: Callable[..., ContextualBandit]) -> None:
    """phi written out at 100 random policies never exceeds it, and reaches it at the Gibbs policy."""
    *_, s = setting(make_bandit, 0, "box")
    rng = np.random.default_rng(0)
    r = random_reward(s, rng)

    def phi(policy: Any) -> float:
        kl = (policy * (np.log(policy) - s.log_reference)).sum(axis=1)
        loss = s.weights @ np.logaddexp(0.0, -s.margins(r))
        return float(0.2 * (s.d @ (((policy - s.base) * r).sum(axis=1) - 0.3 * kl)) + loss)

    weights = np.exp(s.log_reference + r / 0.3)
    assert phi(weights / weights.sum(axis=1, keepdims=True)) == pytest.approx(s.reward_side(r), abs=1e-13)
    assert max(phi(rng.dirichlet(np.ones(4), size=3)) for _ in range(100)) < s.reward_side(r)


def test_policy_side_never_exceeds_phi_on_the_class(make_bandit: Callable[..., ContextualBandit]) -> None:
    """For any pi and p, and 100 random members r of R: lower value <= phi(pi, r) <= reward side at r."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        *_, s = setting(make_bandit, 1, kind)
        policy, p = rng.dirichlet(np.ones(4), size=3), rng.uniform(size=s.weights.size)
        kl = (policy * (np.log(policy) - s.log_reference)).sum(axis=1)
        for _ in range(100):
            r = random_reward(s, rng)
            phi = 0.2 * (s.d @ (((policy - s.base) * r).sum(axis=1) - 0.3 * kl))
            phi += s.weights @ np.logaddexp(0.0, -s.margins(r))
            assert lower_value(s, policy, p) <= phi + 1e-13
            assert phi <= s.reward_side(r) + 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_gap_is_the_difference_of_the_two_values(
    make_bandit: Callable[..., ContextualBandit], upper_value: Callable[..., float], kind: str
) -> None:
    """Far from the optimum, at any policy and p; the sum of the three terms has no cancellation to hide."""
    for seed in range(20):
        *_, s = setting(make_bandit, seed, kind, base=("chosen", "reference")[seed % 2])
        rng = np.random.default_rng(seed)
        r, policy = random_reward(s, rng), rng.dirichlet(np.ones(4), size=3)
        p = rng.uniform(size=s.weights.size)
        c = certify(s, r, policy=policy, p=p)
        assert c.gap == pytest.approx(upper_value(s, r) - lower_value(s, policy, p), abs=1e-11)
        assert c.policy_value == pytest.approx(lower_value(s, policy, p), abs=1e-11)
        given = s.policy_side(policy, p, support_value(s.reward_class, multiplier(s, policy, p)))
        assert given == pytest.approx(lower_value(s, policy, p), abs=1e-11)
        assert min(c.kl_term, c.likelihood_term, c.support_term) > 1e-6  # each of them is tested


@pytest.mark.parametrize("kind", KINDS)
def test_gap_is_nonnegative_everywhere(make_bandit: Callable[..., ContextualBandit], kind: str) -> None:
    """200 random points, a quarter of them with a p of zeros and ones and a policy with zeros."""
    *_, s = setting(make_bandit, 2, kind)
    rng = np.random.default_rng(0)
    for i in range(200):
        policy, p = rng.dirichlet(np.ones(4), size=3), rng.uniform(size=s.weights.size)
        if i % 4 == 0:
            policy, p = np.eye(4)[rng.integers(4, size=3)], np.round(p)
        c = certify(s, random_reward(s, rng), policy=policy, p=p)
        assert np.isfinite(c.gap) and min(c.kl_term, c.likelihood_term, c.support_term) >= 0.0


@pytest.mark.parametrize("kind", [*KINDS, "unconstrained"])
def test_gap_vanishes_at_the_optimum_and_nowhere_near_it(
    make_bandit: Callable[..., ContextualBandit], kind: str
) -> None:
    problem, data, objective, s = setting(make_bandit, 3, kind, base="reference")
    solution = solve(problem, data, objective, reward_class=s.reward_class, method="newton")
    assert 0.0 <= certify(s, solution.reward).gap < 1e-13
    toward = 0.99 * solution.reward + 0.01 * random_reward(s, np.random.default_rng(0))
    assert certify(s, toward).gap > 1e-7


def test_default_dual_point_leaves_only_the_support_term(make_bandit: Callable[..., ContextualBandit]) -> None:
    """With pi = pi_r and p = sigmoid(-z) the first two terms vanish: the residual of optimality remains."""
    for kind in KINDS:
        *_, s = setting(make_bandit, 4, kind)
        c = certify(s, random_reward(s, np.random.default_rng(0)))
        assert max(c.kl_term, c.likelihood_term) < 1e-16 and c.support_term > 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_multiplier_is_minus_the_gradient_of_the_upper_value(
    make_bandit: Callable[..., ContextualBandit], upper_value: Callable[..., float], eta: float
) -> None:
    *_, s = setting(make_bandit, 5, "unconstrained", eta=eta, base="reference")
    r = random_reward(s, np.random.default_rng(0))
    g = s.multiplier(s.gibbs(r), s.losing_probabilities(r))
    for x, a in np.ndindex(*r.shape):
        step = np.zeros(r.shape)
        step[x, a] = 1e-5
        assert (upper_value(s, r + step) - upper_value(s, r - step)) / 2e-5 == pytest.approx(-g[x, a], abs=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "unconstrained"])
def test_tv_bound_bounds_the_distance_to_the_optimal_policy(
    make_bandit: Callable[..., ContextualBandit], kind: str
) -> None:
    """Prompt-weighted total variation between pi_r and the solution, over perturbations of five sizes.

    It says something (below 1/2 at the smaller ones), and a hundredth of it would be wrong.
    """
    distances, bounds = [], []
    for seed in range(8):
        problem, data, objective, s = setting(make_bandit, seed, kind, base="reference", eta=0.5)
        best = solve(problem, data, objective, reward_class=s.reward_class, method="newton")
        assert best.certificate.tv_bound < 1e-6
        rng = np.random.default_rng(seed)
        for size in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
            r = (1 - size) * best.reward + size * random_reward(s, rng)
            distances.append(float(s.d @ np.abs(s.gibbs(r) - best.policy).sum(axis=1) / 2))
            bounds.append(certify(s, r).tv_bound)
    tv, bound = np.array(distances), np.array(bounds)
    assert (tv <= bound + 1e-6).all()
    assert (bound < 0.5).sum() >= 16
    assert (tv > bound / 100).any()


def test_unconstrained_gap_by_hand(make_saddle: Callable[..., Saddle]) -> None:
    """One win of 0 over 1, r = 0, uniform base and reference: p = 1/2 and pi = (1/2 + 1/(2 eta), 1/2 - 1/(2 eta)).

    eta = 2 gives pi = (3/4, 1/4) and gap = eta beta KL(pi || uniform) = 0.75 ln 1.5 + 0.25 ln 0.5 for
    beta = 1/2. eta = 0.1 would need pi(1) = -4.5: no policy balances p, so nothing is certified.
    """
    wins = [[[0, 1], [0, 0]]]
    uniform = np.full((1, 2), 0.5)
    c = certify(make_saddle(wins, eta=2.0, beta=0.5, base=uniform), np.zeros((1, 2)))
    assert c.gap == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-13)
    assert c.infeasibility < 1e-16
    none = certify(make_saddle(wins, eta=0.1, beta=0.5, base=uniform), np.zeros((1, 2)))
    assert none.gap == np.inf and none.tv_bound == 1.0 and none.policy_value == -np.inf


def test_balanced_policy_makes_the_multiplier_vanish(make_bandit: Callable[..., ContextualBandit]) -> None:
    """Whatever p; and it sums to one, for the step moves mass from rejected to chosen."""
    *_, s = setting(make_bandit, 6, "unconstrained")
    p = np.random.default_rng(0).uniform(size=s.weights.size)
    balanced = s.balanced_policy(p)
    assert balanced.sum(axis=1) == pytest.approx(np.ones(3))
    assert np.abs(s.multiplier(balanced, p)).max() < 1e-15
    assert np.abs(s.multiplier(s.base, p)).max() > 1e-3


def test_unweighted_prompt_with_data_is_not_forgiven(make_saddle: Callable[..., Saddle]) -> None:
    """d0 = (1, 0), data at prompt 1 only, equal wins: r = 0 is optimal there and r = (1, 0) is not.

    The penalty has no weight at prompt 1, so no policy absorbs the residual 1/2 - sigmoid(-1) > 0.
    """
    wins = [[[0, 0], [0, 0]], [[0, 1], [1, 0]]]
    s = make_saddle(wins, d0=[1.0, 0.0], prompt_weights="population", base="reference")
    assert certify(s, np.zeros((2, 2))).gap < 1e-15
    assert certify(s, np.array([[0.0, 0.0], [1.0, 0.0]])).gap == np.inf


def test_loss_of_the_gibbs_policy_and_reward_side_differ_by_the_constant(
    make_bandit: Callable[..., ContextualBandit],
) -> None:
    """theory.md section 3: with r = beta log(pi / pi_ref) + Z they differ by eta beta E_base[log pi_ref]."""
    for seed in range(5):
        *_, s = setting(make_bandit, seed, "unconstrained")
        r = random_reward(s, np.random.default_rng(seed))
        loss, terms = s.loss(s.gibbs_logps(r))
        by_hand = 0.06 * float(s.d @ (s.base * s.log_reference).sum(axis=1))
        assert s.constant == pytest.approx(by_hand, rel=1e-13) and abs(by_hand) > 1e-3
        assert loss + by_hand == pytest.approx(s.reward_side(r), abs=1e-13)
        assert terms.sft == pytest.approx(-float(s.d @ (s.base * s.gibbs_logps(r)).sum(axis=1)), rel=1e-13)


def test_at_eta_zero_the_policy_is_not_certified(make_bandit: Callable[..., ContextualBandit]) -> None:
    problem, data, _, s = setting(make_bandit, 7, "box")
    solution = solve(problem, data, DPO(beta=0.3), reward_class=s.reward_class, method="newton")
    assert solution.certificate.gap < 1e-13 and solution.certificate.tv_bound == np.inf


def test_derived_numbers_follow_from_the_terms() -> None:
    """gap 0.06 = 0.01 + 0.02 + 0.03; over |value| = 3: 0.02; sqrt(0.06 / (2 * 0.75)) = 0.2."""
    c = Certificate(reward_value=-3.0, kl_term=0.01, likelihood_term=0.02, support_term=0.03, eta_beta=0.75)
    assert repr(c) == (  # sqrt(0.06 / 1.5) = 0.2
        "Certificate: gap 0.06, relative_gap 0.02, tv_bound 0.2\n"
        "  reward_value -3, kl_term 0.01, likelihood_term 0.02, support_term 0.03, infeasibility 0"
    )
    assert c.gap == pytest.approx(0.06) and c.relative_gap == pytest.approx(0.02)
    assert c.policy_value == pytest.approx(-3.06) and c.tv_bound == pytest.approx(0.2)
    record = c.to_dict()
    assert record["gap"] == c.gap and record["kl_term"] == 0.01 and record["tv_bound"] == c.tv_bound
    small = Certificate(reward_value=0.5, kl_term=0.06, likelihood_term=0.0, support_term=0.0, eta_beta=0.001)
    assert small.relative_gap == pytest.approx(0.06) and small.tv_bound == 1.0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"d": [-0.5, 0.5, 1.0]}, {}, r"saddle\.d: expected entries >= 0, got -0\.5"),
        ({"weights": -1.0}, {}, r"saddle\.weights: "),
        ({"base": 2.0}, {}, r"saddle\.base: .*sum to one"),
        ({"eta": -0.1}, {}, r"saddle\.objective\.eta: expected entries >= 0, got -0\.1"),
        ({"beta": -0.1}, {}, r"saddle\.objective\.beta: "),
        ({}, {"p": 1.5}, "1 - p: expected entries >= 0, got -0.5"),
        ({}, {"p": -0.5}, "p: expected entries >= 0, got -0.5"),
        ({}, {"p": np.nan}, "p: expected finite numbers"),
        ({}, {"policy": 0.7}, "policy: expected probabilities"),
        ({}, {"policy": -0.25}, "policy: expected entries >= 0"),
        ({}, {"reward": 5.0}, "reward: expected a member of Box"),
        ({}, {"reward": np.nan}, "reward: expected finite numbers"),
    ],
)
def test_signs_on_which_the_proof_rests_are_checked(
    make_bandit: Callable[..., ContextualBandit], change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """A saddle made by hand, or a field forced past its class's check, must not make a term negative unseen."""
    *_, objective, saddle = setting(make_bandit, 1, "box")
    for name, value in change.items():
        if name in ("beta", "eta"):
            object.__setattr__(objective, name, value)
        elif name == "weights":
            (pairs,) = saddle.groups
            pairs = dataclasses.replace(pairs, weights=value * pairs.weights)
            saddle = dataclasses.replace(saddle, groups=(pairs,))
        else:
            scaled = np.asarray(value) if name == "d" else value * getattr(saddle, name)
            saddle = dataclasses.replace(saddle, **{name: scaled})
    shapes = {"p": saddle.weights.shape}
    given = {name: np.full(shapes.get(name, saddle.base.shape), value) for name, value in options.items()}
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        certify(saddle, given.pop("reward", np.zeros(saddle.base.shape)), **given)
