"""Divergences: link, ratio and value are three views of one f, held to each other and to known numbers."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch

from rpo.core import divergences
from rpo.core.divergences import Divergence
from rpo.core.errors import InvalidArgument
from rpo.core.replies import normaliser

ALL = (
    divergences.KL(),
    divergences.ForwardKL(),
    divergences.JensenShannon(),
    divergences.Alpha(0.3),
    divergences.Alpha(0.8),
    divergences.ChiSquaredKL(),
    divergences.ChiSquared(),
)
every = pytest.mark.parametrize("f", ALL, ids=repr)
U = np.array([0.05, 0.4, 1.0, 1.7, 6.0])
STEP = 1e-5


@every
def test_normalised_at_one(f: Divergence) -> None:
    assert f.value(np.ones(1)) == pytest.approx([0.0], abs=1e-15)
    assert f.link(np.zeros(1)) == pytest.approx([0.0], abs=1e-15)


@every
def test_link_is_the_slope_of_the_value(f: Divergence) -> None:
    slope = (f.value(U + STEP) - f.value(U - STEP)) / (2 * STEP)
    assert f.link(np.log(U)) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@every
def test_ratio_inverts_the_link_and_knows_its_slope(f: Divergence) -> None:
    s = f.link(np.log(U))
    u, slope = f.ratio(s)
    assert u == pytest.approx(U, rel=1e-12)
    assert slope == pytest.approx((f.ratio(s + STEP)[0] - f.ratio(s - STEP)[0]) / (2 * STEP), rel=1e-5, abs=1e-8)
    assert (s < f.top).all()


@every
def test_torch_agrees(f: Divergence) -> None:
    h = np.log(U)
    assert f.link(torch.tensor(h)).numpy() == pytest.approx(f.link(h), rel=1e-14)


@pytest.mark.parametrize(
    ("f", "by_hand"),
    [
        (divergences.KL(), math.log(2.0)),
        (divergences.ForwardKL(), 1.0 - 1.0 / 2.0),
        (divergences.JensenShannon(), math.log(4.0 / 3.0)),
        (divergences.Alpha(0.5), (2.0**-0.5 - 1.0) / -0.5),
        (divergences.ChiSquaredKL(), 2.0 - 1.0 + math.log(2.0)),
        (divergences.ChiSquared(), 2.0 - 1.0),
    ],
    ids=repr,
)
def test_link_at_two_is_the_hand_derived_value(f: Divergence, by_hand: float) -> None:
    """f'(2) for f' = log u, 1 - 1/u, log(2u/(1+u)), (u^(a-1) - 1)/(a - 1), u - 1 + log u, u - 1."""
    assert float(f.link(np.log(np.array(2.0)))) == pytest.approx(by_hand, rel=1e-14)


def test_alpha_lies_between_the_forward_and_the_reverse_kl() -> None:
    h = np.linspace(-2.0, 2.0, 9)
    assert divergences.Alpha(1 - 1e-7).link(h) == pytest.approx(divergences.KL().link(h), abs=1e-6)
    assert divergences.Alpha(1e-7).link(h) == pytest.approx(divergences.ForwardKL().link(h), abs=1e-6)
    for outside in (0.0, 1.0, -0.5, math.nan, "half"):
        with pytest.raises(InvalidArgument, match="alpha"):
            divergences.Alpha(outside)  # type: ignore[arg-type]


@every
def test_only_a_link_that_falls_without_bound_is_interior(f: Divergence) -> None:
    """f'(0) = -inf: at h = -600 the link is below -100 for all but the chi-squared, which stops at -1."""
    assert (float(f.link(np.array(-600.0))) < -100.0) == f.interior


# --- what a solver asks of a divergence -----------------------------------------------------------------------


def bandits(size: int = 5, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return references, rewards over beta and other policies, each (count, size)."""
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(size), size=count) * 0.98 + 0.02 / size
    return reference, rng.normal(scale=3.0, size=(count, size)), rng.dirichlet(np.ones(size), size=count)


@every
def test_the_conjugate_and_the_dual_are_what_their_definitions_say(f: Divergence) -> None:
    """f*(f'(u)) = u f'(u) - f(u), and f*(s) = max of s u - f(u) over a grid; cvxpy's f is E_ref[f(pi / ref)]."""
    slope = f.link(np.log(U))
    assert f.dual(np.log(U)) == pytest.approx(U * slope - f.value(U), rel=1e-12, abs=1e-14)
    assert f.dual(torch.tensor(np.log(U))).numpy() == pytest.approx(f.dual(np.log(U)), rel=1e-14)
    grid = np.linspace(1e-9, 50.0, 400_001)
    s = cp.Variable(3, value=[-2.0, -0.3, 0.4])
    least = f.conjugate(s)
    auxiliary = [v for v in least.variables() if v is not s]
    if auxiliary:  # written as a least value over another variable
        cp.Problem(cp.Minimize(cp.sum(least)), [s == s.value]).solve(solver="CLARABEL")
    by_grid = [float((value * grid - f.value(grid)).max()) for value in s.value]
    assert least.is_convex() and least.value == pytest.approx(by_grid, abs=1e-6)
    reference, _, policy = (table[0] for table in bandits())
    pi = cp.Variable(5, value=policy)
    program = f.program(pi, reference)
    assert program.is_convex() and program.value == pytest.approx(reference @ f.value(policy / reference), rel=1e-9)
    assert f.from_reference(policy, np.log(reference)) == pytest.approx(program.value, rel=1e-9)


@every
def test_a_reply_is_the_best_policy_and_its_slopes_are_the_jacobian(f: Divergence) -> None:
    """No other of 60 policies is worth more; its worth is short of the best by the Fenchel-Young loss."""
    reference, scaled, others = bandits()
    log_reference = np.log(reference)
    reply = f.reply(scaled, log_reference)

    def worth(policy: np.ndarray) -> np.ndarray:
        return (policy * scaled).sum(axis=1) - (reference * f.value(policy / reference)).sum(axis=1)

    assert reply.policy.sum(axis=1) == pytest.approx(np.ones(60), abs=1e-13)
    short = worth(reply.policy) - worth(others)
    assert (short > 0).all()
    assert f.distance(others, reply, log_reference) == pytest.approx(short, rel=1e-9, abs=1e-11)
    assert f.distance(reply.policy, reply, log_reference) == pytest.approx(np.zeros(60), abs=1e-12)
    shift = f.shift(scaled, log_reference)
    assert (reference * f.ratio(scaled - shift[:, None])[0]).sum(axis=1) == pytest.approx(np.ones(60), abs=1e-10)
    constant = f.reply(scaled + 7.0, log_reference)
    assert constant.policy == pytest.approx(reply.policy, abs=1e-12)
    total = reply.total if isinstance(reply.total, float) else reply.total[0]
    jacobian = np.diag(reply.slope[0]) - np.outer(reply.slope[0], reply.slope[0]) / total
    found = [
        (
            f.reply(scaled[:1] + STEP * e, log_reference[:1]).policy
            - f.reply(scaled[:1] - STEP * e, log_reference[:1]).policy
        )
        / (2 * STEP)
        for e in np.eye(5)
    ]
    assert jacobian == pytest.approx(np.concatenate(found), abs=1e-8)


@every
def test_minus_the_base_value_is_the_bregman_divergence_up_to_a_constant(f: Divergence) -> None:
    """B_f(base, pi) = E_ref[f(v) - f(u) - f'(u) (v - u)]: over 60 policies the difference has no spread."""
    if not f.interior:
        return
    reference, base, policies = bandits()[0][:1], bandits(seed=1)[2][:1], bandits(seed=2)[2]
    u, v = policies / reference, base / reference
    slope = f.link(np.log(u))
    bregman = (reference * (f.value(v) - f.value(u) - slope * (v - u))).sum(axis=1)
    found = f.base_value(base, np.log(policies), np.log(reference))
    assert np.ptp(found + bregman) <= 1e-10 * np.abs(bregman).max()
    value, gradient, curvature = f.base_derivatives(base[0], np.log(policies[0]), np.log(reference[0]))
    by_step = [
        (f.base_derivatives(base[0], np.log(policies[0]) + STEP * e, np.log(reference[0]))[0] - value) / STEP
        for e in np.eye(5)
    ]
    assert gradient == pytest.approx(by_step, rel=1e-3, abs=1e-3)
    after = f.base_derivatives(base[0], np.log(policies[0]) + STEP, np.log(reference[0]))[1]
    assert curvature == pytest.approx((after - gradient) / STEP, rel=1e-2, abs=1e-3)


@every
@pytest.mark.parametrize("measure", ["reference", "counting"])
def test_the_modulus_bounds_the_divergence_and_is_reached(f: Divergence, measure: str) -> None:
    """1 / sup of sum ref / f''(u), f'' = 1 / (du/ds): the rarest response or pi ~ ref reaches it."""
    reference, scaled, others = bandits()
    if measure == "counting":
        reference = np.ones_like(reference)
    modulus = f.modulus(reference.min(axis=1), reference.sum(axis=1))

    def sums(policy: np.ndarray) -> np.ndarray:
        return (reference * f.ratio(f.link(np.log(policy / reference)))[1]).sum(axis=1)

    assert (sums(others) <= 1.0 / modulus * (1 + 1e-9)).all()
    rarest = np.eye(5)[reference.argmin(axis=1)] * (1 - 5e-9) + 1e-9
    even = reference / reference.sum(axis=1, keepdims=True)
    assert np.maximum(sums(rarest), sums(even)) == pytest.approx(1.0 / modulus, rel=1e-4)
    reply = f.reply(scaled, np.log(reference))
    apart = np.abs(others - reply.policy).sum(axis=1)
    assert (f.distance(others, reply, np.log(reference)) >= modulus / 2 * apart**2 * (1 - 1e-9)).all()


@every
def test_a_plain_sft_term_is_convex_in_the_reward_under_the_kl_and_the_chi_squared_alone(f: Divergence) -> None:
    """docs/theory.md, Theorem 18, at midpoints of 2,000 pairs of rewards of two responses."""
    rewards = np.random.default_rng(0).normal(scale=3.0, size=(2, 2_000, 2))
    log_half = np.log(np.full((2_000, 2), 0.5))

    def sft(r: np.ndarray) -> np.ndarray:
        return -f.reply(r, log_half).logps[:, 0]

    with np.errstate(invalid="ignore"):
        above = sft(rewards.mean(axis=0)) - (sft(rewards[0]) + sft(rewards[1])) / 2
    convex = isinstance(f, (divergences.KL, divergences.ChiSquaredKL, divergences.ChiSquared))
    assert ((above > 1e-9).mean() == 0) if convex else ((above > 1e-3).mean() > 0.1)


def test_unnormalised_measures_and_responses_outside_the_support() -> None:
    """A third response without mass changes nothing; without a reference KL's reply is a softmax, sum f' = log pi."""
    for f in ALL:
        r = np.array([[0.3, -0.2, 5.0]])
        inside = f.reply(r[:, :2], np.log([[0.4, 0.6]]))
        whole = f.reply(r, np.array([[math.log(0.4), math.log(0.6), -math.inf]]))
        assert whole.policy[0] == pytest.approx([*inside.policy[0], 0.0], abs=1e-14)
    softmax = np.exp(r) / np.exp(r).sum()
    assert divergences.KL().reply(r, np.zeros((1, 3))).policy == pytest.approx(softmax, rel=1e-12)
    # forward KL, one a response: pi_a = 1 / (1 - s_a) with s = r - Z; of two equal rewards each is 1/2 at s = -1.
    assert divergences.ForwardKL().reply(np.zeros((1, 2)), np.zeros((1, 2))).s == pytest.approx(-1.0, abs=1e-14)


@every
def test_the_normaliser_is_found_in_a_dozen_evaluations(f: Divergence) -> None:
    """Newton's method on a convex sum; a stopping rule finer than rounding would run to the end instead."""
    reference, scaled, _ = bandits(size=10, count=400)
    calls = []

    def ratio(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(s.shape)
        return f.ratio(s)

    normaliser(f.link, ratio, scaled, np.log(reference))
    assert len(calls) <= 12
