"""Objectives that `solve` certifies: a convex loss of the margin under any divergence, with or without its penalty."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    LinearBall,
    PreferenceCounts,
    Unconstrained,
    build_saddle,
    certify,
    fit,
    instances,
    solve,
)
from rpo.bandit.batched import solve_batch
from rpo.bandit.batched.cells import Cells
from rpo.bandit.metrics import total_variation
from rpo.bandit.solver.blocks import blocks
from rpo.bandit.solver.reward_side import derivatives
from rpo.core import divergences, numerics
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument, NoMinimizer
from rpo.core.links import LogRatio
from rpo.core.objectives import DPO, Anchor, Objective
from rpo.core.shapes import Hinge, Logistic, MarginShape, Shape, SmoothHinge, Square


@dataclass(frozen=True, kw_only=True)
class Anchored(Objective):
    """Any margin loss with the penalty of its divergence: the maximin under another likelihood."""

    of: Any
    divergence: Divergence = KL()  # noqa: RUF009, frozen
    beta: float = 0.5
    weight: float = 0.1
    base: str = "responses"

    @property
    def link(self) -> LogRatio:
        return LogRatio(beta=self.beta, divergence=self.divergence)

    @property
    def shape(self) -> Shape:
        return self.of

    @property
    def anchor(self) -> Anchor:
        return Anchor(role=self.base, weight=self.weight, divergence=self.divergence)


PLAIN = {
    "IPO": rpo.IPO(tau=0.5),
    "ConservativeDPO": rpo.ConservativeDPO(beta=0.5, epsilon=0.1),
    "RobustDPO": rpo.RobustDPO(beta=0.5, epsilon=0.1),
    "RDPO": rpo.RDPO(beta=0.5, alpha=0.1),
    "FDPO": rpo.FDPO(beta=0.5),
    "FDPO-forward": rpo.FDPO(beta=0.5, divergence=divergences.ForwardKL()),
    "ChiPO": rpo.ChiPO(beta=0.5),
    "SimPO": rpo.SimPO(),
    "AlphaPO": rpo.AlphaPO(),
    "CPO": rpo.CPO(beta=0.5),
    "CPL": rpo.CPL(lam=1.0),
}
SHAPES: dict[str, MarginShape] = {
    "logistic": Logistic(),
    "conservative": Logistic(tilt=0.1),
    "robust": Logistic(tilt=-0.1),
    "square": Square(target=0.7),
    "margin": Logistic(margin=0.4),
}
INTERIOR: tuple[Divergence, ...] = (
    KL(),
    divergences.ForwardKL(),
    divergences.JensenShannon(),
    divergences.Alpha(0.5),
    divergences.ChiSquaredKL(),
)
DIVERGENCES = (*INTERIOR, divergences.ChiSquared())
ANCHORED: dict[str, Objective] = {name: Anchored(of=shape) for name, shape in SHAPES.items()}


class SquaredRPO(rpo.RPO):
    """A subclass: IPO's square with RPO's penalty."""

    @property
    def shape(self) -> Shape:
        return Square(target=1.0)


ANCHORED["a subclass of RPO"] = SquaredRPO(beta=0.5, eta=0.2, base="responses")
ALL = PLAIN | {f"{name} + SFT": objective for name, objective in ANCHORED.items()}


@pytest.fixture(scope="module")
def problem() -> ContextualBandit:
    return instances.random(prompts=2, arms=4, features=3, rng=3)


@pytest.fixture(scope="module")
def pairs(problem: ContextualBandit) -> PreferenceCounts:
    return problem.sample_preferences(4_000, rng=4)


@pytest.mark.parametrize("kind", ["all", "box", "ball"])
@pytest.mark.parametrize("name", ALL)
def test_certified_in_every_class_and_the_convex_program_agrees(
    problem: ContextualBandit, pairs: PreferenceCounts, name: str, kind: str
) -> None:
    """Relative gap at most 1e-10; cvxpy's optimal value within 1e-6 of the certified one."""
    classes = {"all": Unconstrained(), "box": Box(0.8), "ball": LinearBall(problem.features, 0.7)}
    solution = solve(problem, pairs, ALL[name], reward_class=classes[kind], method="programs")
    assert solution.status == "certified", solution.message
    assert 0.0 <= solution.certificate.relative_gap <= 1e-10
    assert solution.programs["reward"]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    assert solution.programs["policy"]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    assert solution.evidence == "certified"
    assert solution.label == ALL[name].label
    assert "this is DPO" not in solution.message


@pytest.mark.parametrize("name", ALL)
def test_unconstrained_optimum_is_that_of_the_loss_on_policies(
    problem: ContextualBandit, pairs: PreferenceCounts, name: str
) -> None:
    """`fit` knows log-probabilities of pairs only, `solve` rewards only."""
    exact = solve(problem, pairs, ALL[name], reward_class=Unconstrained(), method="newton")
    run = fit(problem.softmax_policy(), pairs, ALL[name])
    assert total_variation(exact.policy, run.policy).max() <= 1e-6
    assert run.loss == pytest.approx(exact.loss, abs=1e-10)


@pytest.mark.parametrize("kind", ["all", "box", "ball"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("f", DIVERGENCES, ids=repr)
def test_ninety_combinations_of_divergence_shape_and_class(
    problem: ContextualBandit, pairs: PreferenceCounts, f: Divergence, shape: MarginShape, kind: str
) -> None:
    """Gap at most 1e-10, both cvxpy programs within 1e-6: f* on the reward side, f and the shape's dual on the other.

    The policy program knows neither link, nor policy map, nor Newton's method. The bound on the policy is true of it.
    """
    classes = {"all": Unconstrained(), "box": Box(0.8), "ball": LinearBall(problem.features, 0.7)}
    objective = Anchored(of=shape, divergence=f)
    solution = solve(problem, pairs, objective, reward_class=classes[kind], method="programs")
    assert solution.status == "certified" and 0.0 <= solution.certificate.relative_gap <= 1e-10
    for side in ("reward", "policy"):
        assert solution.programs[side]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    assert solution.program_certificate is not None and 0.0 <= solution.program_certificate.gap <= 1e-5
    again = solve_batch(
        pairs.wins()[None], objective, reference=problem.reference, reward_class=classes[kind], start=None
    )
    assert again.certified.all() and total_variation(again.policy[0], solution.policy).max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("f", INTERIOR, ids=repr)
def test_derivatives_of_one_prompt_and_of_a_batch_are_those_of_the_value(f: Divergence, shape: str) -> None:
    """Central differences of the reward side of one prompt; the batch's arrays are the single prompt's."""
    problem = instances.random(prompts=1, arms=4, rng=1)
    pairs = problem.sample_preferences(50, rng=2)
    objective = Anchored(of=SHAPES[shape], divergence=f, weight=0.3)
    saddle = build_saddle(problem, pairs, objective, Box(1.0))
    (block,) = blocks(saddle)
    r = np.random.default_rng(0).normal(size=4)
    value, gradient, hessian = derivatives(block, r)
    for e in 1e-5 * np.eye(4):
        ahead, behind = derivatives(block, r + e), derivatives(block, r - e)
        assert (ahead[0] - behind[0]) / 2e-5 == pytest.approx(gradient @ e / 1e-5, rel=1e-6, abs=1e-9)
        assert (ahead[1] - behind[1]) / 2e-5 == pytest.approx(hessian @ e / 1e-5, rel=1e-6, abs=1e-8)
    first, second = np.triu_indices(4, k=1)
    shares = pairs.wins() / pairs.n
    compared = (shares[:, first, second] + shares[:, second, first]), shares[:, second, first]
    cells = Cells(objective, 0.5, f, *compared, saddle.d, saddle.log_measure, saddle.base)
    found = cells.evaluate(r[None], np.zeros(1, dtype=np.int64))
    for ours, theirs in zip(found, (value, gradient, hessian), strict=True):
        assert ours[0] == pytest.approx(theirs, rel=1e-11, abs=1e-13)


def test_the_modulus_is_that_of_the_worst_prompt_with_weight() -> None:
    """Forward KL, whose modulus is the least mass: 0.2, 0.1, and 0.01 without data; gap over 2 eta beta m."""
    reference = [[0.2, 0.8], [0.9, 0.1], [0.01, 0.99]]
    problem = ContextualBandit(d0=[0.3, 0.3, 0.4], reference=reference, reward_bound=1.0)
    wins = np.zeros((3, 2, 2))
    wins[:2, 0, 1], wins[:2, 1, 0] = 5.0, 3.0
    objective = Anchored(of=Logistic(), divergence=divergences.ForwardKL())
    pairs = PreferenceCounts.from_wins(wins)
    for weights, least in (("data", 0.1), ("population", 0.01)):
        found = build_saddle(problem, pairs, objective, Box(1.0), prompt_weights=weights)
        bound = certify(found, np.full((3, 2), 0.5))
        assert bound.modulus == pytest.approx(least, rel=1e-12)
        assert bound.tv_bound == pytest.approx(min(1.0, np.sqrt(bound.gap / (2.0 * 0.1 * least))), rel=1e-12)


@pytest.mark.parametrize("kind", ["all", "box", "ball"])
@pytest.mark.parametrize("f", DIVERGENCES, ids=repr)
def test_the_certificate_of_any_reward_bounds_what_it_is_said_to(
    problem: ContextualBandit, pairs: PreferenceCounts, f: Divergence, kind: str
) -> None:
    """Thirty members of the class around the optimum: each gap is above F(r) - F(optimum), each term above zero.

    The policy of r is within tv_bound of the optimum's. A dual point of one's own is bounded likewise.
    """
    classes = {"all": Unconstrained(), "box": Box(0.8), "ball": LinearBall(problem.features, 0.7)}
    rng = np.random.default_rng(0)
    best = solve(problem, pairs, Anchored(of=Logistic(), divergence=f), reward_class=classes[kind], method="newton")
    for size in np.repeat([1e-3, 1e-2, 1e-1], 10):
        if kind == "ball":
            theta = classes[kind].parameters(best.reward) + size * rng.normal(size=3)
            reward = classes[kind].reward(theta * min(1.0, 0.7 / np.linalg.norm(theta)))
        else:
            reward = best.reward + size * rng.normal(size=best.reward.shape)
            reward = np.clip(reward, 0.0, 0.8) if kind == "box" else reward
        for p in (None, np.clip(best.saddle.losing_probabilities(reward) + size * rng.normal(size=24), 0.0, 1.0)):
            found = certify(best.saddle, reward, p=p)
            assert min(found.kl_term, found.likelihood_term, found.support_term) >= 0.0
            assert found.gap >= found.reward_value - best.certificate.reward_value - 1e-13
            distance = best.saddle.d @ total_variation(best.saddle.gibbs(reward), best.policy)
            assert distance <= found.tv_bound and (p is not None or found.likelihood_term <= 1e-15)


@pytest.mark.parametrize("shape", ["logistic", "square"])
@pytest.mark.parametrize("f", INTERIOR, ids=repr)
def test_the_maximin_policy_minimises_the_loss_over_policies(f: Divergence, shape: str) -> None:
    """A plain optimiser over logits of the preference loss plus eta beta B_f(base, pi), f written as its `value`.

    The Bregman divergence is f(v) - f(u) - f'(u) (v - u) by its definition, f' by a difference of f.
    """
    problem = instances.random(prompts=1, arms=4, rng=1)
    pairs = problem.sample_preferences(300, rng=2)
    objective = Anchored(of=SHAPES[shape], divergence=f, base="reference", weight=0.2)
    solution = solve(problem, pairs, objective, reward_class=Unconstrained(), method="newton")
    reference = problem.reference[0]

    def slope(u: Any) -> Any:
        return (f.value(u * (1 + 1e-5)) - f.value(u * (1 - 1e-5))) / (2e-5 * u)

    def loss(logits: Any) -> float:
        u = np.exp(numerics.log_softmax(logits)) / reference
        z = 0.5 * (slope(u)[pairs.chosen] - slope(u)[pairs.rejected])
        bregman = f.value(np.ones(4)) - f.value(u) - slope(u) * (1.0 - u)
        return float(pairs.weights @ SHAPES[shape].of_margin(z) + 0.2 * reference @ bregman)

    found = minimize(loss, np.log(reference), method="BFGS", options={"gtol": 1e-9})
    policy = np.exp(numerics.log_softmax(found.x))
    assert total_variation(policy[None], solution.policy).max() <= 1e-5
    assert loss(np.log(solution.policy[0])) <= found.fun + 1e-10
    run = fit(problem.softmax_policy(), pairs, objective)
    assert total_variation(run.policy, solution.policy).max() <= 1e-8
    assert run.loss == pytest.approx(solution.loss, abs=1e-12)


def test_rpo_is_frpo_under_the_kl(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    for reward_class in (Unconstrained(), Box(0.8), LinearBall(problem.features, 0.7)):
        ours, theirs = (
            solve(problem, pairs, method(beta=0.3, eta=0.1, base="responses"), reward_class=reward_class)
            for method in (rpo.FRPO, rpo.RPO)
        )
        assert np.array_equal(ours.policy, theirs.policy) and ours.loss == theirs.loss
    logps = np.log(problem.reference[[0, 0, 1], [1, 2, 3]]), np.log(problem.reference[[0, 0, 1], [0, 0, 0]])
    reference = logps[0] + 0.1, logps[1] - 0.2
    values = [method(beta=0.3, eta=0.1)(*logps, *reference)[0] for method in (rpo.FRPO, rpo.RPO)]
    assert values[0] == values[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("f", DIVERGENCES, ids=repr)
def test_a_response_in_no_pair_gets_its_mass_under_the_base(f: Divergence, shape: str) -> None:
    """Whatever loss and divergence are: the gradient in an unseen reward is eta (pi - pi_base)."""
    problem = instances.random(prompts=1, arms=5, rng=0)
    wins = np.zeros((1, 5, 5))
    wins[0, :3, :3] = [[0, 7, 5], [3, 0, 6], [4, 2, 0]]
    base = np.array([[0.1, 0.2, 0.3, 0.15, 0.25]])
    objective = Anchored(of=SHAPES[shape], base="custom", divergence=f)
    solution = solve(
        problem,
        PreferenceCounts.from_wins(wins),
        objective,
        reward_class=Unconstrained(),
        base_policy=base,
        method="newton",
    )
    assert solution.status == "certified"
    assert solution.policy[0, 3:] == pytest.approx(base[0, 3:], abs=1e-10)
    assert np.abs(solution.policy[0, :3] - base[0, :3]).max() > 1e-2  # the others move


@pytest.mark.parametrize("f", INTERIOR, ids=repr)
def test_without_a_penalty_components_keep_the_mass_of_the_base(f: Divergence) -> None:
    """The limit of a small penalty, found with one: both pairs of four responses keep their share of the base."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.4, 0.3, 0.2, 0.1]], reward_bound=3.0)
    wins = np.zeros((1, 4, 4))
    wins[0, 0, 1], wins[0, 1, 0], wins[0, 2, 3], wins[0, 3, 2] = 6, 2, 3, 9
    pairs, base = PreferenceCounts.from_wins(wins), np.array([[0.1, 0.2, 0.3, 0.4]])
    for reward_class in (Unconstrained(), Box(1.5)):
        limit, near = (
            solve(
                problem,
                pairs,
                Anchored(of=Logistic(), divergence=f, weight=weight, base="custom"),
                reward_class=reward_class,
                base_policy=base,
                method="newton",
            )
            for weight in (0.0, 1e-5)
        )
        assert total_variation(limit.policy, near.policy).max() <= 1e-4
        batch = solve_batch(
            wins[None], limit.objective, reference=problem.reference, reward_class=reward_class, base_policy=base
        )
        assert total_variation(batch.policy[0], limit.policy).max() <= 1e-8
    free = solve(
        problem,
        pairs,
        Anchored(of=Logistic(), divergence=f, weight=0.0, base="custom"),
        reward_class=Unconstrained(),
        base_policy=base,
    )
    assert free.policy[0, :2].sum() == pytest.approx(0.3, abs=1e-12)


def test_the_chi_squared_program_is_solved_where_its_link_is_refused() -> None:
    """Response 0 wins 19 in 20 against each: with beta small the worst get nothing, which no log-ratio could say."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.25] * 4], reward_bound=3.0)
    wins = np.array([[[0, 19, 19, 19], [1, 0, 5, 9], [1, 5, 0, 9], [1, 1, 1, 0]]], dtype=float)
    pairs = PreferenceCounts.from_wins(wins)
    objective = rpo.FRPO(beta=0.5, eta=0.01, divergence=divergences.ChiSquared(), base="chosen")
    solution = solve(problem, pairs, objective, reward_class=Box(3.0), method="programs")
    assert solution.status == "certified" and solution.certificate.relative_gap <= 1e-10
    assert (solution.policy[0] == 0.0).sum() >= 1 and solution.policy[0, 0] > 0.5
    for side in ("reward", "policy"):
        assert solution.programs[side]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    with pytest.raises(InvalidArgument, match=r"f'\(0\) = -inf.*solve with rpo\.FRPO"):
        fit(problem.softmax_policy(), pairs, objective)


def test_ipo_is_one_laplacian_solve(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    """Sum n (z - t)^2 has the normal equations L r = b, L the comparison graph's Laplacian, b_w += n t, b_l -= n t."""
    solution = solve(problem, pairs, rpo.IPO(tau=0.5), reward_class=Unconstrained(), method="newton")
    for x in range(problem.num_prompts):
        wins = pairs.wins()[x]
        graph = wins + wins.T
        laplacian, net = np.diag(graph.sum(axis=1)) - graph, wins.sum(axis=1) - wins.sum(axis=0)
        r = np.linalg.lstsq(laplacian, 1.0 * net, rcond=None)[0]  # t = 1 / (2 tau) = 1
        assert np.ptp(solution.reward[x] - r) <= 1e-12


@pytest.mark.parametrize("f", [KL(), divergences.JensenShannon()], ids=repr)
@pytest.mark.parametrize("kind", ["all", "box", "ball"])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_hinge_is_certified_as_itself(
    problem: ContextualBandit, pairs: PreferenceCounts, weight: float, kind: str, f: Divergence
) -> None:
    """Solved with its corner rounded, certified by the hinge's own Fenchel-Young loss: both programs within 1e-6."""
    classes = {"all": Unconstrained(), "box": Box(0.8), "ball": LinearBall(problem.features, 0.7)}
    objective = Anchored(of=Hinge(target=0.3), divergence=f, weight=weight)
    solution = solve(problem, pairs, objective, reward_class=classes[kind], method="programs")
    assert solution.status == "certified" and 0.0 <= solution.certificate.gap <= 1e-7
    for side in ("reward", "policy"):
        assert solution.programs[side]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    batch = solve_batch(pairs.wins()[None], objective, reference=problem.reference, reward_class=classes[kind])
    assert 0.0 <= batch.relative_gap.max() <= 1e-7
    if weight:  # without a penalty many policies are best
        assert pairs.prompt_frequencies @ total_variation(batch.policy[0], solution.policy) <= batch.tv_bound[0] + 1e-9


def test_a_hinge_alone_has_a_minimiser_where_a_likelihood_has_none() -> None:
    """0 beat 1 in all of 5: a margin of delta ends the hinge; the likelihood grows for ever."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    pairs = PreferenceCounts.from_pairs([0], [0], [1], count=[5], num_prompts=1, num_responses=2)
    solution = solve(problem, pairs, rpo.SLiC(), reward_class=Unconstrained())
    assert solution.status == "certified" and solution.certificate.reward_value == pytest.approx(0.0, abs=1e-7)
    assert solution.reward[0, 0] - solution.reward[0, 1] >= 1.0 - 1e-6
    with pytest.raises(NoMinimizer):
        solve(problem, pairs, DPO(beta=0.1), reward_class=Unconstrained())


def test_a_margin_asked_for_moves_the_answer_by_itself() -> None:
    """Won 3 of 4, margin 0.4: -log sigma(z - 0.4) and -log sigma(-z - 0.4): 3 sigma(0.4 - z) = sigma(0.4 + z)."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    pairs = PreferenceCounts.from_wins([[[0, 3], [1, 0]]])
    solution = solve(problem, pairs, Anchored(of=Logistic(margin=0.4), weight=0.0), reward_class=Unconstrained())
    z = solution.reward[0, 0] - solution.reward[0, 1]
    assert 3.0 * numerics.sigmoid(0.4 - z) == pytest.approx(numerics.sigmoid(0.4 + z), rel=1e-12)


def test_labels_corrected_for_noise_need_a_box_where_a_response_never_lost() -> None:
    """A beat B in all of 5: the loss falls without bound along r_A - r_B; in a box it ends at the wall."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    pairs = PreferenceCounts.from_pairs([0], [0], [1], count=[5], num_prompts=1, num_responses=2)
    with pytest.raises(NoMinimizer, match="response 1 beat 0 too seldom"):
        solve(problem, pairs, rpo.RobustDPO(), reward_class=Unconstrained())
    boxed = solve(problem, pairs, rpo.RobustDPO(), reward_class=Box(2.0))
    assert boxed.status == "certified" and boxed.reward[0, 0] - boxed.reward[0, 1] == pytest.approx(2.0)
    # Conservative labels are finite there without one: logit(0.9).
    free = solve(problem, pairs, rpo.ConservativeDPO(beta=1.0, epsilon=0.1), reward_class=Unconstrained())
    assert free.reward[0, 0] - free.reward[0, 1] == pytest.approx(np.log(9.0), rel=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        Logistic(),
        Logistic(tilt=0.2),
        Logistic(tilt=-0.3),
        Square(target=0.4),
        Hinge(target=0.3),
        SmoothHinge(target=1.0, width=0.1),
    ],
    ids=repr,
)
def test_closed_form_derivatives_and_slopes_are_those_of_the_formula(shape: MarginShape) -> None:
    """A hot shape may write its derivatives out; jets of the formula, and its growth far out, hold them."""
    margins = np.linspace(-6.0, 6.0, 13)
    for beta in (0.3, 1.0, 2.5):
        ours, jets = shape.derivatives(margins, beta), MarginShape.derivatives(shape, margins, beta)
        for mine, theirs in zip(ours, jets, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-14)
    assert shape.slopes is not None
    for slope, far in zip(shape.slopes, (-1e9, 1e9), strict=True):
        found = float(shape.of_margin(np.array(far)) / far)
        assert found == pytest.approx(slope, abs=1e-6) if np.isfinite(slope) else abs(found) > 1e8
    if (back := shape.reversal) is not None:
        assert shape.of_margin(-margins) == pytest.approx(shape.of_margin(margins) + back * margins, abs=1e-12)


@pytest.mark.parametrize(
    "shape", [Logistic(), Logistic(tilt=0.2), Logistic(tilt=-0.3), Square(target=0.4), Hinge()], ids=repr
)
def test_the_dual_of_a_shape_gives_the_shape_back(shape: MarginShape) -> None:
    """loss(z) = max over p of dual(p) - p z, on a grid of p; the Fenchel-Young loss is what a p is short of it."""
    import cvxpy as cp

    left, right = shape.slopes or (-1.0, 0.0)
    p = np.linspace(max(-right, -20.0), min(-left, 20.0), 40_001)
    dual = shape.dual(cp.Constant(p)).value
    for z in (-2.0, 0.1, 1.3):
        reached = dual - p * z
        assert reached.max() == pytest.approx(float(shape.of_margin(np.array(z))), abs=1e-6)
        short = shape.fenchel_young(p, np.full(p.shape, z))
        assert short == pytest.approx(float(shape.of_margin(np.array(z))) - reached, abs=1e-9) and (short >= 0).all()


class Lying(MarginShape):
    """Declared convex, and concave."""

    convex = True
    slopes = (-1.0, 0.0)

    def of_margin(self, z: Any) -> Any:
        return -numerics.square(z)


class Steeper(Logistic):
    """A convex loss of its own, with the derivatives, slopes and dual of another."""

    def of_margin(self, z: Any) -> Any:
        return numerics.softplus(-2.0 * z)


class Shifted(LogRatio):
    """A link of its own under the name of a known one."""

    def __call__(self, columns: Any) -> tuple[Any, ...]:
        return tuple(2.0 * value for value in super().__call__(columns))


class WithLink(Anchored):
    @property
    def link(self) -> LogRatio:
        return Shifted(beta=self.beta)


class Silent(MarginShape):
    """Convex, with no word of its slopes."""

    convex = True

    def of_margin(self, z: Any) -> Any:
        return numerics.exp(-z)


class SFTUnderAnother(Anchored):
    """f-DPO with a plain SFT term, whose loss is not convex in the rewards."""

    @property
    def anchor(self) -> Anchor:
        return Anchor(weight=self.weight)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (Anchored(of=Lying()), "cvxpy's rules do not find convex"),
        (Anchored(of=Steeper()), "derivatives, slopes or dual of another"),
        (WithLink(of=Logistic()), "not beta"),
        (Anchored(of=Silent()), "slopes towards infinity are not declared"),
        (Anchored(of=Logistic(rival=0.5)), "not declared a convex function of the difference"),
        (Anchored(of=Logistic(), weight=-0.1), "negative weight"),
        (rpo.EXO(), "not declared a convex function"),
        (rpo.NCA(), "not declared a convex function"),
        (rpo.CPL(), "not declared a convex function of the difference"),
        (SFTUnderAnother(of=Logistic(), divergence=divergences.ForwardKL()), "not the penalty of its divergence"),
        (rpo.ORPO(), "not beta"),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_has_no_convex_program_is_refused_with_the_reason(
    problem: ContextualBandit, pairs: PreferenceCounts, objective: Objective, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=rf"^objective: expected an objective whose maximin.*{why}"):
        solve(problem, pairs, objective, reward_class=Box(1.0))


def test_the_bound_of_the_theorem_is_about_rpo_alone(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    from rpo.bandit import bounds

    solution = solve(problem, pairs, ANCHORED["square"], prompt_weights="population", reward_class=Box(1.0))
    with pytest.raises(InvalidArgument, match="expected an RPO or a DPO"):
        bounds.slack_ledger(problem, pairs, solution)
    assert solve(problem, pairs, DPO(beta=0.5), reward_class=Box(1.0)).message.count("this is DPO") == 1


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_existence_under_falling_losses_is_what_descent_finds(weight: float) -> None:
    """Forty random graphs of four responses: where the linear program says no, Newton's rewards run away in a wide box.

    Where it says yes, they stay where they are however wide the box is.
    """
    rng, found = np.random.default_rng(0), []
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 4), 0.25), reward_bound=1.0)
    objective = Anchored(of=Logistic(tilt=-0.25), weight=weight, beta=1.0, base="reference")
    for _ in range(40):
        wins = rng.integers(0, 12, size=(1, 4, 4)) * (rng.random((1, 4, 4)) < 0.8) * (1 - np.eye(4))
        pairs = PreferenceCounts.from_wins(wins)
        boxes = [solve(problem, pairs, objective, reward_class=Box(b), method="newton") for b in (60.0, 120.0)]
        spread = [float(np.ptp(box.reward)) for box in boxes]
        runs_away = spread[1] > 1.5 * spread[0]
        try:
            free = solve(problem, pairs, objective, reward_class=Unconstrained(), method="newton")
            assert free.status == "certified"
            exists = True
        except NoMinimizer:
            exists = False
        assert exists != runs_away
        found.append(exists)
    assert 5 < sum(found) < 35
