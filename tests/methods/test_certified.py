"""Objectives that `solve` certifies beside RPO and DPO: a convex loss of the margin, with or without an SFT term."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.bandit import Box, ContextualBandit, LinearBall, PreferenceCounts, Unconstrained, fit, instances, solve
from rpo.bandit.metrics import total_variation
from rpo.core import numerics
from rpo.core.errors import InvalidArgument, NoMinimizer
from rpo.core.links import LogRatio
from rpo.core.objectives import DPO, Anchor, Objective
from rpo.core.shapes import Logistic, MarginShape, Shape, Square


@dataclass(frozen=True, kw_only=True)
class Anchored(Objective):
    """Any margin loss with RPO's penalty: the maximin under another likelihood."""

    of: Any
    beta: float = 0.5
    weight: float = 0.1
    base: str = "responses"

    @property
    def link(self) -> LogRatio:
        return LogRatio(beta=self.beta)

    @property
    def shape(self) -> Shape:
        return self.of

    @property
    def anchor(self) -> Anchor:
        return Anchor(role=self.base, weight=self.weight)


PLAIN = {
    "IPO": rpo.IPO(tau=0.5),
    "ConservativeDPO": rpo.ConservativeDPO(beta=0.5, epsilon=0.1),
    "RobustDPO": rpo.RobustDPO(beta=0.5, epsilon=0.1),
    "RDPO": rpo.RDPO(beta=0.5, alpha=0.1),
}
ANCHORED: dict[str, Objective] = {
    "logistic": Anchored(of=Logistic()),
    "conservative": Anchored(of=Logistic(tilt=0.1)),
    "robust": Anchored(of=Logistic(tilt=-0.1)),
    "square": Anchored(of=Square(target=0.7)),
}


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
    assert ("policy" in solution.programs) == (name == "logistic + SFT")
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


@pytest.mark.parametrize("name", ANCHORED)
def test_a_response_in_no_pair_gets_its_mass_under_the_base(name: str) -> None:
    """Whatever the loss is: its gradient in an unseen reward is eta (pi - pi_base)."""
    problem = instances.random(prompts=1, arms=5, rng=0)
    wins = np.zeros((1, 5, 5))
    wins[0, :3, :3] = [[0, 7, 5], [3, 0, 6], [4, 2, 0]]
    base = np.array([[0.1, 0.2, 0.3, 0.15, 0.25]])
    objective = Anchored(of=ANCHORED[name].shape, base="custom")
    solution = solve(
        problem, PreferenceCounts.from_wins(wins), objective, reward_class=Unconstrained(), base_policy=base
    )
    assert solution.status == "certified"
    assert solution.policy[0, 3:] == pytest.approx(base[0, 3:], abs=1e-10)


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


@pytest.mark.parametrize("shape", [Logistic(), Logistic(tilt=0.2), Logistic(tilt=-0.3), Square(target=0.4)], ids=repr)
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


class Lying(Logistic):
    """Declared convex, and a square root."""

    def of_margin(self, z: Any) -> Any:
        return -numerics.square(z)


class Silent(MarginShape):
    """Convex, with no word of its slopes."""

    convex = True

    def of_margin(self, z: Any) -> Any:
        return numerics.exp(-z)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (Anchored(of=Lying()), "cvxpy's rules do not find convex"),
        (Anchored(of=Silent()), "slopes towards infinity are not declared"),
        (Anchored(of=Logistic(rival=0.5)), "not declared a convex function of the difference"),
        (Anchored(of=Logistic(), weight=-0.1), "negative weight"),
        (rpo.SLiC(), "slopes"),
        (rpo.EXO(), "not declared a convex function"),
        (rpo.NCA(), "not declared a convex function"),
        (rpo.SimPO(), "not beta"),
        (rpo.FDPO(), "not beta"),
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
