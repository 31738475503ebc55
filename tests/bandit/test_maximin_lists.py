"""`solve` and `fit` on lists: certified in every class, against cvxpy, plain optimisers and enumerated directions."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import rpo
from rpo.bandit import (
    Box,
    ContextualBandit,
    Hull,
    Intervals,
    LinearBall,
    RankedLists,
    Unconstrained,
    build_saddle,
    certify,
    fit,
    instances,
    maximum_likelihood_reward,
    minimizer_exists,
    policy_metrics,
    solve,
)
from rpo.bandit.evidence import loss_gap
from rpo.bandit.metrics import total_variation
from rpo.bandit.solver.blocks import blocks
from rpo.bandit.solver.reward_side import derivatives
from rpo.bandit.table_loss import TableLoss
from rpo.core import divergences, numerics
from rpo.core.columns import Columns
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument, NoMinimizer
from rpo.core.group_shapes import GroupShape, PlackettLuce, ScoredPairs, SoftTargets, SquaredGaps
from rpo.core.jets import Jet
from rpo.core.links import LogRatio
from rpo.core.objectives import DPO, RPO, Anchor, Objective
from rpo.core.shapes import Hinge, Logistic, Shape, Square
from rpo.methods.lists import PRO, ALoL, CoPG, InfoNCA, LiPO, ListEXO, ListNCA, PlackettLuceDPO


@dataclass(frozen=True, kw_only=True)
class Listed(Objective):
    """Any loss of lists, with the penalty of its divergence at `weight`."""

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
        return Anchor(role=self.base, weight=self.weight, divergence=self.divergence if self.weight else KL())


SHAPES: dict[str, GroupShape] = {
    "Plackett-Luce": PlackettLuce(),
    "soft targets": SoftTargets(temperature=0.5),
    "squared gaps": SquaredGaps(),
    "scored pairs": ScoredPairs(),
    "scored pairs, tilted": ScoredPairs(pair=Logistic(tilt=0.1)),
    "scored pairs, squared": ScoredPairs(pair=Square(target=0.5)),
}
INTERIOR: tuple[Divergence, ...] = (
    KL(),
    divergences.ForwardKL(),
    divergences.JensenShannon(),
    divergences.Alpha(0.5),
    divergences.ChiSquaredKL(),
)
DIVERGENCES = (*INTERIOR, divergences.ChiSquared())
KINDS = ("all", "box", "ball", "hull", "intervals")
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(scope="module")
def problem() -> ContextualBandit:
    return instances.random(prompts=2, arms=4, features=3, rng=3)


def joined(*parts: RankedLists) -> RankedLists:
    """Lists of several sizes in one."""
    blocks = tuple(block for part in parts for block in part.blocks)
    return RankedLists(by_size=blocks, num_prompts=parts[0].num_prompts, num_responses=parts[0].num_responses)


@pytest.fixture(scope="module")
def lists(problem: ContextualBandit) -> RankedLists:
    """Two and three of four responses, their scores with noise, so that each comes out on top."""
    draws = (problem.sample_rankings(300, size=k, score_noise=1.0, rng=k) for k in (2, 3))
    return joined(*draws)


def classes(problem: ContextualBandit) -> dict[str, Any]:
    members = np.random.default_rng(0).normal(size=(5, *problem.reference.shape))
    walls = Intervals(members.min(axis=0) - 0.1, members.max(axis=0))
    ball = LinearBall(problem.features, 0.7)
    return {"all": Unconstrained(), "box": Box(0.8), "ball": ball, "hull": Hull(members), "intervals": walls}


# --- the maximin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@every_shape
@pytest.mark.parametrize("f", DIVERGENCES[1:], ids=repr)
def test_certified_for_every_divergence_shape_and_class(
    problem: ContextualBandit, lists: RankedLists, f: Divergence, shape: GroupShape, kind: str
) -> None:
    """Gap at most 1e-10, cvxpy's reward program, which holds the shape itself, within 1e-6; lists of two sizes."""
    objective = Listed(of=shape, divergence=f)
    solution = solve(problem, lists, objective, reward_class=classes(problem)[kind], method="programs")
    assert solution.status == "certified" and 0.0 <= solution.certificate.relative_gap <= 1e-10
    assert solution.programs["reward"]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    assert "policy" not in solution.programs and solution.program_certificate is None
    assert solution.certificate.likelihood_term == 0.0


@pytest.mark.parametrize("kind", [*KINDS, "hull", "intervals"])
@every_shape
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_certified_with_a_penalty_and_without(
    problem: ContextualBandit, lists: RankedLists, weight: float, shape: GroupShape, kind: str
) -> None:
    objective = Listed(of=shape, weight=weight)
    solution = solve(problem, lists, objective, reward_class=classes(problem)[kind], method="programs")
    assert solution.status == "certified" and 0.0 <= solution.certificate.relative_gap <= 1e-10
    assert solution.programs["reward"]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)
    assert ("the gap certifies the fit of the reward, not the policy" in solution.message) == (weight == 0.0)


@pytest.mark.parametrize("weight", [0.0, 0.1])
@every_shape
@pytest.mark.parametrize("f", INTERIOR, ids=repr)
def test_the_unconstrained_optimum_is_that_of_the_loss_on_policies(
    problem: ContextualBandit, lists: RankedLists, f: Divergence, shape: GroupShape, weight: float
) -> None:
    """`fit` knows log-probabilities only, `solve` rewards only; the loss logged is the certified one."""
    objective = Listed(of=shape, divergence=f, weight=weight)
    exact = solve(problem, lists, objective, reward_class=Unconstrained(), method="newton")
    run = fit(problem.softmax_policy(), lists, objective, proxy_reward=None)
    assert total_variation(exact.policy, run.policy).max() <= 1e-6
    assert run.loss == pytest.approx(exact.loss, abs=1e-10)
    assert run.evidence == ("certified" if weight == 0 or isinstance(f, KL) else "stationary"), run.message


@every_shape
def test_a_plain_optimiser_of_the_written_out_loss_finds_the_same(
    problem: ContextualBandit, lists: RankedLists, shape: GroupShape
) -> None:
    """Loops over lists, one formula a shape written here again, plus 0.1 E_base[-log pi]; BFGS over logits."""
    exact = solve(problem, lists, Listed(of=shape), reward_class=Unconstrained(), method="newton")

    def of_list(s: Any, score: Any) -> float:
        pairs = list(itertools.combinations(range(len(s)), 2))
        gaps = [s[i] - s[j] for i, j in pairs]
        if isinstance(shape, PlackettLuce):
            return sum(np.log(np.exp(s[k:]).sum()) - s[k] for k in range(len(s)))
        if isinstance(shape, SoftTargets):
            target = np.exp(score / 0.5) / np.exp(score / 0.5).sum()
            return float(-target @ (s - np.log(np.exp(s).sum())))
        if isinstance(shape, SquaredGaps):
            off = [gap - (score[i] - score[j]) for gap, (i, j) in zip(gaps, pairs, strict=True)]
            return float(np.square(off).sum() / (2 * 0.5 * (len(s) - 1)))
        if isinstance(shape.pair, Square):  # type: ignore[attr-defined]
            return float(sum((gap - 0.5) ** 2 for gap in gaps))
        tilt = shape.pair.tilt  # type: ignore[attr-defined]
        return float(sum(np.log1p(np.exp(-gap)) + tilt * gap for gap in gaps))

    base = lists.response_frequencies("responses")

    def loss(logits: Any) -> float:
        logps = numerics.log_softmax(logits.reshape(2, 4))
        rewards = 0.5 * (logps - problem.log_reference)
        total = 0.0
        for block in lists.blocks:
            for x, row, n, score in zip(block.prompt, block.responses, block.count, block.scores, strict=True):
                total += n / lists.n * of_list(rewards[x, row], score)
        return float(total - 0.1 * lists.prompt_frequencies @ (base * logps).sum(axis=1))

    at = np.log(exact.policy).ravel()
    assert loss(at) == pytest.approx(exact.loss, abs=1e-10)
    found = minimize(loss, np.zeros(8), method="BFGS", options={"gtol": 1e-6})
    assert found.fun >= exact.loss - 1e-12
    assert total_variation(np.exp(numerics.log_softmax(found.x.reshape(2, 4))), exact.policy).max() <= 1e-4


@every_shape
@pytest.mark.parametrize("f", [KL(), divergences.JensenShannon()], ids=repr)
def test_derivatives_are_those_of_the_value(lists: RankedLists, f: Divergence, shape: GroupShape) -> None:
    problem = instances.random(prompts=2, arms=4, rng=1)
    saddle = build_saddle(problem, lists, Listed(of=shape, divergence=f, weight=0.3), Box(1.0))
    for block in blocks(saddle):
        r = np.random.default_rng(0).normal(size=4)
        _, gradient, hessian = derivatives(block, r)
        for e in 1e-5 * np.eye(4):
            ahead, behind = derivatives(block, r + e), derivatives(block, r - e)
            assert (ahead[0] - behind[0]) / 2e-5 == pytest.approx(gradient @ e / 1e-5, rel=1e-6, abs=1e-9)
            assert (ahead[1] - behind[1]) / 2e-5 == pytest.approx(hessian @ e / 1e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("f", DIVERGENCES, ids=repr)
def test_the_certificate_of_any_reward_bounds_what_it_is_said_to(
    problem: ContextualBandit, lists: RankedLists, f: Divergence, kind: str
) -> None:
    """Thirty members around Plackett-Luce's optimum: the gap is above F(r) - F(optimum), and none of it is negative."""
    chosen, rng = classes(problem)[kind], np.random.default_rng(0)
    best = solve(problem, lists, Listed(of=PlackettLuce(), divergence=f), reward_class=chosen, method="newton")
    for size in np.repeat([1e-3, 1e-2, 1e-1], 10):
        if kind == "ball":
            theta = chosen.parameters(best.reward) + size * rng.normal(size=3)
            reward = chosen.reward(theta * min(1.0, 0.7 / np.linalg.norm(theta)))
        else:
            reward = chosen.project(best.reward + size * rng.normal(size=best.reward.shape))
        found = certify(best.saddle, reward)
        assert min(found.kl_term, found.likelihood_term, found.support_term) >= 0.0
        excess = found.reward_value - best.certificate.reward_value
        assert found.gap >= excess - 1e-13 and excess >= -1e-13
        assert best.saddle.d @ total_variation(best.saddle.gibbs(reward), best.policy) <= found.tv_bound


def test_a_dual_point_of_a_list_is_that_of_the_reward_itself(problem: ContextualBandit, lists: RankedLists) -> None:
    saddle = build_saddle(problem, lists, Listed(of=PlackettLuce()), Box(1.0))
    reward = np.full((2, 4), 0.5)
    with pytest.raises(InvalidArgument, match=r"^p: expected None with Listed"):
        certify(saddle, reward, p=saddle.losing_probabilities(reward))
    g = saddle.multiplier(saddle.base, saddle.losing_probabilities(reward))
    for x, a in np.ndindex(2, 4):
        step = np.zeros((2, 4))
        step[x, a] = 1e-6
        slope = (saddle.term.value((reward + step).ravel()) - saddle.term.value((reward - step).ravel())) / 2e-6
        assert g[x, a] == pytest.approx(-slope, abs=1e-9)


# --- pairs are lists of two ------------------------------------------------------------------------


def test_plackett_luce_of_pairs_is_dpo(problem: ContextualBandit) -> None:
    """By jets of two rewards in place of one margin: policies within 1e-12, with the penalty and without."""
    pairs = problem.sample_preferences(500, rng=4)
    for weight, plain in ((0.1, RPO(beta=0.5, eta=0.2, base="responses")), (0.0, DPO(beta=0.5, base="responses"))):
        for chosen in classes(problem).values():
            ours, theirs = (
                solve(problem, pairs, objective, reward_class=chosen, method="newton")
                for objective in (Listed(of=PlackettLuce(), weight=weight), plain)
            )
            assert np.abs(ours.policy - theirs.policy).max() <= 1e-12
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-14)


def test_scores_of_pairs_reach_a_loss_of_one_margin(problem: ContextualBandit) -> None:
    """ODPO asks the chosen response to win by log of the difference of scores: DPO's margin moves by it."""
    scored = RankedLists.from_lists(
        [0, 0], [[0, 1], [1, 0]], count=[3, 1], scores=[[3.0, 1.0], [2.0, 1.5]], num_prompts=1, num_responses=2
    )
    two = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    solution = solve(two, scored, rpo.ODPO(beta=1.0, alpha=1.0), reward_class=Unconstrained())
    z = solution.reward[0, 0] - solution.reward[0, 1]
    assert 3.0 * numerics.sigmoid(np.log(2.0) - z) == pytest.approx(numerics.sigmoid(np.log(0.5) + z), rel=1e-12)
    with pytest.raises(InvalidArgument, match=r"^data\.scores: expected scores above the rejected"):
        tied = RankedLists.from_lists([0], [[0, 1]], scores=[[1.0, 1.0]], num_prompts=1, num_responses=2)
        solve(two, tied, rpo.ODPO(), reward_class=Box(1.0))


# --- fixed points and invariances ------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("f", DIVERGENCES, ids=repr)
def test_a_response_in_no_list_gets_its_mass_under_the_base(f: Divergence, shape: GroupShape) -> None:
    """Lists of two and three of the first three of five responses; the others move."""
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 5), 0.2), reward=[[1.0, 0.5, 0.0, 0.0, 0.0]])
    behavior = ContextualBandit(
        d0=[1.0], reference=np.full((1, 5), 0.2), reward=problem.reward, behavior=[[0.5, 0.3, 0.2, 0.0, 0.0]]
    )
    data = joined(*(behavior.sample_rankings(200, size=k, score_noise=1.0, rng=k) for k in (2, 3)))
    base = np.array([[0.1, 0.2, 0.3, 0.15, 0.25]])
    objective = Listed(of=shape, base="custom", divergence=f)
    solution = solve(problem, data, objective, reward_class=Unconstrained(), base_policy=base, method="newton")
    assert solution.status == "certified"
    assert solution.policy[0, 3:] == pytest.approx(base[0, 3:], abs=1e-10)
    assert np.abs(solution.policy[0, :3] - base[0, :3]).max() > 1e-2


@pytest.mark.parametrize("f", INTERIOR, ids=repr)
def test_without_a_penalty_components_keep_the_mass_of_the_base(f: Divergence) -> None:
    """The limit of a small penalty, found with one: {0, 1, 2} and {3, 4} of a list each keep their share."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.3, 0.2, 0.2, 0.2, 0.1]], reward_bound=3.0)
    ranked = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [3, 4], [4, 3]]
    data = RankedLists.from_lists([0] * 5, ranked, count=[5, 2, 3, 4, 9], num_prompts=1, num_responses=5)
    base = np.array([[0.1, 0.2, 0.3, 0.3, 0.1]])
    for reward_class in (Unconstrained(), Box(1.5)):
        limit, near = (
            solve(
                problem, data, Listed(of=PlackettLuce(), divergence=f, weight=weight, base="custom"),
                reward_class=reward_class, base_policy=base, method="newton",
            )
            for weight in (0.0, 1e-5)
        )  # fmt: skip
        assert total_variation(limit.policy, near.policy).max() <= 1e-4
        if reward_class == Unconstrained():
            assert limit.policy[0, :3].sum() == pytest.approx(0.6, abs=1e-12)


def test_contrastive_policy_gradient_is_one_laplacian_solve(problem: ContextualBandit, lists: RankedLists) -> None:
    """Sum over pairs of w (r_i - r_j - (score_i - score_j))^2: L r = b, w = n / (K - 1)."""
    solution = solve(problem, lists, CoPG(beta=0.3), reward_class=Unconstrained(), method="newton")
    laplacian, right = np.zeros((2, 4, 4)), np.zeros((2, 4))
    for block in lists.blocks:
        size = block.responses.shape[1]
        for x, row, n, score in zip(block.prompt, block.responses, block.count, block.scores, strict=True):
            for i, j in itertools.permutations(range(size), 2):
                laplacian[x, row[i], row[i]] += n / (size - 1)
                laplacian[x, row[i], row[j]] -= n / (size - 1)
                right[x, row[i]] += n / (size - 1) * (score[i] - score[j])
    for x in range(2):
        r = np.linalg.lstsq(laplacian[x], right[x], rcond=None)[0]
        assert np.ptp(solution.reward[x] - r) <= 1e-12


# --- existence -------------------------------------------------------------------------------------


def recession(shape: str, lists: Any, d: Any) -> float:
    """The slope of the lists' loss far out along d, from its definition: of logsumexp the largest entry."""
    total = 0.0
    for row in lists:
        v = d[list(row)]
        if shape == "order":
            total += sum(v[k:].max() - v[k] for k in range(len(v)))
        elif shape == "top":  # a target of one for the first, nothing for the others
            total += v.max() - v[0]
        else:
            total += np.ptp(v)
    return total


TOP = SoftTargets(temperature=1e-3)  # exp(-1000) is zero in float64


@pytest.mark.parametrize("weight", [0.1, 0.0])
@pytest.mark.parametrize(("name", "shape"), [("order", PlackettLuce()), ("top", TOP), ("both", SquaredGaps())])
def test_existence_agrees_with_enumerated_recession_directions(name: str, shape: GroupShape, weight: float) -> None:
    """300 random sets of lists over four responses, base on some; 0/1 directions suffice, as for pairs."""
    rng, answers = np.random.default_rng(0), []
    directions = [np.array(bits, dtype=float) for bits in itertools.product((0, 1), repeat=4)]
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 4), 0.25), reward_bound=1.0)
    for _ in range(300):
        ranked = [rng.permutation(4)[: rng.integers(2, 5)].tolist() for _ in range(rng.integers(1, 9))]
        scores = [list(range(len(row), 0, -1)) for row in ranked]
        data = RankedLists.from_lists([0] * len(ranked), ranked, scores=scores, num_prompts=1, num_responses=4)
        base = np.where(rng.random(4) < 0.4, 1.0, 0.0)
        base = base / base.sum() if base.sum() else np.eye(4)[0]

        def slope(d: Any, base: Any = base, ranked: Any = ranked) -> float:
            return recession(name, ranked, d) + (d.max() - base @ d if weight else 0.0)

        # A minimum exists iff every direction along which nothing grows is one along which nothing changes.
        expected = all(slope(d) > 0 or slope(-d) == 0 for d in directions)
        objective = Listed(of=shape, weight=weight, base="custom", beta=1.0)
        found = minimizer_exists(build_saddle(problem, data, objective, Unconstrained(), base_policy=base[None]))
        assert found.exists == expected, (ranked, base)
        answers.append(expected)
    if not (name == "both" and weight == 0.0):  # squares alone always have a minimum
        assert 15 < sum(answers) < 285


def test_a_list_that_is_never_turned_round_has_no_likeliest_reward(problem: ContextualBandit) -> None:
    """0 > 1 > 2 alone; with 2 > 0 beside it there is a way back, and every response beat every other in a chain."""
    one = ContextualBandit(d0=[1.0], reference=np.full((1, 3), 1 / 3), reward_bound=1.0)
    once = RankedLists.from_lists([0], [[0, 1, 2]], num_prompts=1, num_responses=3)
    objective = PlackettLuceDPO(beta=1.0)
    with pytest.raises(NoMinimizer, match="prompt 0: responses 0 and 1 were compared, but no chain of wins"):
        solve(one, once, objective, reward_class=Unconstrained())
    assert solve(one, once, objective, reward_class=Box(1.0)).status == "certified"
    back = RankedLists.from_lists([0, 0], [[0, 1, 2], [2, 0]], num_prompts=1, num_responses=3)
    assert solve(one, back, objective, reward_class=Unconstrained()).status == "certified"
    run = fit(one.softmax_policy(), once, objective)
    assert run.evidence == "infimum approached" and "no chain of wins" in run.message


# --- refusals --------------------------------------------------------------------------------------


class Silent(Shape):
    """The best against all others: -log of its share; convex and invariant, with no word of its arrows."""

    lists = True
    convex = True
    invariant = True

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Any) -> Any:
        return numerics.logsumexp([beta * value for value in values]) - beta * values[0]


class Spoken(Silent):
    """The same with its arrows."""

    def arrows(self, columns: Any) -> Any:
        return {(0, j): True for j in range(1, len(columns.logps))}


class Lying(Shape):
    """Declared convex, and concave."""

    lists = True
    convex = True
    invariant = True

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Any) -> Any:
        return -numerics.square(values[0] - values[1])

    def arrows(self, columns: Any) -> Any:
        return {(0, 1): True}


class Own(PlackettLuce):
    """A formula of its own with another's arrows."""

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Any) -> Any:
        return numerics.logsumexp(values) - values[0]


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (Listed(of=Silent()), "whose arrows towards infinity are not declared"),
        (Listed(of=Lying()), "cvxpy's rules do not find convex"),
        (Listed(of=Own()), "arrows of another"),
        (Listed(of=ScoredPairs(pair=Hinge())), "a loss of lists with a corner"),
        (Listed(of=PlackettLuce(), weight=-0.1), "negative weight"),
        (PRO(), "not declared a convex function of the differences of a list's rewards"),
        (ListEXO(), "not declared a convex function of the differences of a list's rewards"),
        (ListNCA(), "not declared a convex function of the differences of a list's rewards"),
        (LiPO(), "not declared a convex function of the differences of a list's rewards"),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_has_no_convex_program_is_refused_with_the_reason(
    problem: ContextualBandit, lists: RankedLists, objective: Objective, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=rf"^objective: expected an objective whose maximin.*{why}"):
        solve(problem, lists, objective, reward_class=Box(1.0))


def test_a_list_loss_of_ones_own_is_certified_once_it_says_its_arrows(
    problem: ContextualBandit, lists: RankedLists
) -> None:
    solution = solve(problem, lists, Listed(of=Spoken()), reward_class=Unconstrained(), method="programs")
    assert solution.status == "certified" and solution.certificate.relative_gap <= 1e-10
    assert solution.programs["reward"]["value"] == pytest.approx(solution.certificate.reward_value, abs=1e-6)


def test_data_and_loss_must_be_of_the_same_groups(problem: ContextualBandit, lists: RankedLists) -> None:
    pairs, unscored = problem.sample_preferences(50, rng=0), problem.sample_rankings(50, size=3, rng=0)
    for run in (lambda *a: solve(problem, *a, reward_class=Box(1.0)), lambda *a: fit(problem.softmax_policy(), *a)):
        with pytest.raises(InvalidArgument, match="^data: expected pairs, got lists of 3 responses, of which DPO"):
            run(unscored, DPO(beta=0.1))
        for data in (pairs, unscored):
            with pytest.raises(InvalidArgument, match="^objective: .*no scores.*CoPG.*reads scores. Pass RankedLists"):
                run(data, CoPG())
        with pytest.raises(InvalidArgument, match=r"^data\.scores: expected scores in \[0, 1\] for LiPO"):
            run(lists, LiPO(variant="softmax"))
        with pytest.raises(InvalidArgument, match="^data: expected PreferenceCounts or RankedLists"):
            run(None, DPO(beta=0.1))
    narrow = ContextualBandit(d0=[0.5, 0.5], reference=[[0.5, 0.5, 0.0, 0.0]] * 2, reward_bound=1.0)
    with pytest.raises(InvalidArgument, match=r"^data\.responses: expected responses to which problem\.reference"):
        solve(narrow, unscored, PlackettLuceDPO(beta=0.1), reward_class=Box(1.0))


# --- what `fit` knows of its end -------------------------------------------------------------------


@every_shape
def test_a_fitted_table_is_certified_and_the_bound_holds_around_it(
    problem: ContextualBandit, lists: RankedLists, shape: GroupShape
) -> None:
    """Theorem 22 at tables moved by up to a nat: never below the excess of the loss; at the end next to nothing."""
    objective = Listed(of=shape, weight=0.0)
    loss = TableLoss(build_saddle(problem, lists, objective, Unconstrained()), problem.softmax_policy())
    run = fit(problem.softmax_policy(), lists, objective, proxy_reward=None)
    least, end, proved = run.loss, run.arrays["parameters"].ravel(), 0
    gap, name = loss_gap(loss, end)
    assert name == "rewards" and 0.0 <= gap <= 1e-12 and run.evidence == "certified"
    for seed, size in enumerate(np.repeat([1e-3, 1e-2, 1e-1, 1.0], 10)):
        moved = end + size * np.random.default_rng(seed).normal(size=end.size)
        gap, _ = loss_gap(loss, moved)
        assert gap >= loss.value(moved) - least - 1e-14
        proved += np.isfinite(gap)
    assert proved >= 20


def test_the_bound_of_a_fitted_table_is_the_excess_itself_where_nothing_is_lost() -> None:
    """Two responses, whose only direction is the least curved one: near the end the bound is 1 + O(step) the excess."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    data = RankedLists.from_lists([0, 0], [[0, 1], [1, 0]], count=[3, 2], num_prompts=1, num_responses=2)
    objective = Listed(of=PlackettLuce(), weight=0.0, beta=1.0)
    loss = TableLoss(build_saddle(problem, data, objective, Unconstrained()), problem.softmax_policy())
    least, ratio = loss.value(np.array([np.log(1.5), 0.0])), []
    for step in (0.1, 0.01, 0.001):
        moved = np.array([np.log(1.5) + step, 0.0])
        ratio.append(loss_gap(loss, moved)[0] / (loss.value(moved) - least))
    assert all(1.0 <= one <= 1.0 + 2.0 * step for one, step in zip(ratio, (0.1, 0.01, 0.001), strict=True)), ratio


@every_shape
def test_third_derivatives_are_held_by_second_ones(shape: GroupShape) -> None:
    """The third along v is at most (max v - min v) times the second, by differences of the jets' Hessian."""
    rng = np.random.default_rng(0)
    scores = tuple(np.sort(rng.normal(size=(4, 500)), axis=0)[::-1])
    columns = Columns(logps=scores, scores=scores)

    def bend(s: Any, v: Any) -> Any:
        jet = shape(Jet.variables(list(s)), 1.0, columns)
        return np.einsum("in,jn,ijn->n", v, v, np.broadcast_to(jet.hessian, (4, 4, 500)))

    s, v = rng.normal(scale=2.0, size=(4, 500)), rng.normal(size=(4, 500))
    third = (bend(s + 1e-4 * v, v) - bend(s - 1e-4 * v, v)) / 2e-4
    assert shape.concordant
    assert (np.abs(third) <= np.ptp(v, axis=0) * bend(s, v) + 1e-6).all()


def test_a_chain_of_temperatures_is_certified_though_it_sees_constants(
    problem: ContextualBandit, lists: RankedLists
) -> None:
    """PRO pulls every response of a list up: with all in lists there is a minimum, by the bound of Theorem 11."""
    objective = PRO(sft_weight=0.0)
    run = fit(problem.softmax_policy(), lists, objective, proxy_reward=None)
    assert run.evidence == "certified" and run.certificate["bound"] == "log-probabilities", run.message
    assert run.certificate["attained"]
    saddle, end = build_saddle(problem, lists, objective, Unconstrained()), run.arrays["parameters"]
    for seed in range(20):
        moved = problem.softmax_policy().with_parameters(end + np.random.default_rng(seed).normal(size=end.shape))
        assert float(saddle.loss(moved.logps)[0]) > run.loss


@pytest.mark.parametrize(
    "objective",
    [ListNCA(beta=0.5), ListEXO(beta=0.5, alpha=2.0), LiPO(beta=0.5)],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_no_bound_covers_is_said_to_be_flat(problem: ContextualBandit, objective: Objective) -> None:
    lists = problem.sample_rankings(300, size=3, score_noise=1.0, rng=0)
    run = fit(problem.softmax_policy(), unit(lists), objective, proxy_reward=None)
    assert run.status == "converged" and run.evidence == "stationary", run.message


def unit(lists: RankedLists) -> RankedLists:
    """Scores moved and scaled into [0, 1]."""
    (block,) = lists.blocks
    assert block.scores is not None
    block = dataclasses.replace(block, scores=(block.scores - block.scores.min()) / np.ptp(block.scores))
    return dataclasses.replace(lists, by_size=(block,))


@pytest.mark.parametrize(
    "objective",
    [PlackettLuceDPO(beta=0.5), PRO(), InfoNCA(beta=0.5), ListNCA(beta=0.5), ListEXO(beta=0.5), CoPG(beta=0.5)]
    + [LiPO(beta=0.5, variant=name) for name in ("pair_logistic", "softmax", "point_mse", "point_sigmoid")],
    ids=lambda value: value.label,
)
def test_derivatives_in_the_logits_agree_with_differences(objective: Objective) -> None:
    """Central differences of the loss and of its gradient at a random table; lists of two and of three."""
    problem = instances.random(prompts=2, arms=4, rng=1)
    data = joined(*(unit(problem.sample_rankings(60, size=k, score_noise=1.0, rng=k)) for k in (2, 3)))
    function = TableLoss(build_saddle(problem, data, objective, Unconstrained()), problem.softmax_policy())
    at, step = np.random.default_rng(0).normal(scale=0.5, size=8), 1e-5
    value, gradient, hessian = function.derivatives(at)
    logps = problem.softmax_policy().with_parameters(at.reshape(2, 4)).logps
    assert value == pytest.approx(float(function.saddle.loss(logps)[0]), rel=1e-13)
    for k, e in enumerate(step * np.eye(8)):
        up, down = function.derivatives(at + e), function.derivatives(at - e)
        assert gradient[k] == pytest.approx((up[0] - down[0]) / (2 * step), abs=1e-8)
        assert hessian[k] == pytest.approx((up[1] - down[1]) / (2 * step), abs=1e-7)


def test_weights_that_change_sign_with_the_scores_are_refused_at_those_scores(problem: ContextualBandit) -> None:
    """score * logsumexp(r) is convex where scores are positive, which is all that is seen before the data."""
    solution = solve(problem, scored_by(problem, 1.0), Listed(of=Weighed()), reward_class=Box(1.0), method="newton")
    assert solution.status == "certified"
    with pytest.raises(InvalidArgument, match=r"^saddle\.objective: expected a loss that is convex whatever scores"):
        solve(problem, scored_by(problem, -1.0), Listed(of=Weighed()), reward_class=Box(1.0), method="newton")


class Weighed(Shape):
    """The share of the best against the others, weighed by its score."""

    lists = True
    convex = True
    invariant = True
    needs = frozenset({"scores"})

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Any) -> Any:
        rewards = [beta * value for value in values]
        return numerics.times(columns.scores[0], numerics.logsumexp(rewards) - rewards[0])

    def arrows(self, columns: Any) -> Any:
        return {(0, j): True for j in range(1, len(columns.logps))}


def scored_by(problem: ContextualBandit, score: float) -> RankedLists:
    (block,) = problem.sample_rankings(60, size=3, rng=0).blocks
    return RankedLists.from_lists(
        block.prompt, block.responses, count=block.count, scores=np.full(block.responses.shape, score),
        num_prompts=2, num_responses=4,
    )  # fmt: skip


def test_a_response_alone_is_weighed_by_its_score(problem: ContextualBandit) -> None:
    """A-LoL without a ratio ends at mu max(A, 0) / Z, certified by the bound of Theorem 11."""
    rng = np.random.default_rng(0)
    mu, advantage = rng.dirichlet(np.ones(8)), rng.normal(size=8)
    one = ContextualBandit(d0=[1.0], reference=mu[None], reward_bound=1.0)
    alone = RankedLists.from_lists(
        np.zeros(8, dtype=int), np.arange(8)[:, None], count=mu, scores=advantage[:, None], num_prompts=1,
        num_responses=8,
    )  # fmt: skip
    run = fit(one.softmax_policy(), alone, ALoL(ratio=False))
    expected = mu * np.maximum(advantage, 0.0)
    assert np.abs(run.policy[0] - expected / expected.sum()).max() <= 1e-9
    assert run.evidence == "certified", run.message
    assert np.isnan(run.history[-1]["rewards/margins"]) and "reward/proxy" not in run.history[-1]
    with pytest.raises(InvalidArgument, match="^data: expected labels of single responses"):
        fit(one.softmax_policy(), alone, rpo.NCA())


@pytest.mark.parametrize(("scores", "accuracy"), [(None, 2 / 3), ([[3.0, 1.0, 1.0]], 1.0), ([[1.0, 1.0, 1.0]], np.nan)])
def test_metrics_of_a_list_by_hand(scores: Any, accuracy: float) -> None:
    """2 > 0 > 1 at logits 0, 1, 2: of three pairs 0 over 1 alone is wrong, and it is none where the two are tied."""
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 3), 1 / 3), reward_bound=1.0)
    data = RankedLists.from_lists([0], [[2, 0, 1]], scores=scores, num_prompts=1, num_responses=3)
    saddle = build_saddle(problem, data, PlackettLuceDPO(beta=2.0), Unconstrained())
    logps = numerics.log_softmax(np.array([[0.0, 1.0, 2.0]]))
    found, h = policy_metrics(logps, saddle, problem), (logps - np.log(1 / 3))[0]
    assert found["rewards/chosen"] == pytest.approx(2.0 * h[2])
    assert found["rewards/rejected"] == pytest.approx(2.0 * h[1])
    assert found["rewards/margins"] == pytest.approx(1.0)  # 2 (2 - 1) / 2
    assert found["rewards/accuracies"] == pytest.approx(accuracy, nan_ok=True)
    assert found["logps/rejected"] == pytest.approx(logps[0, 1])
    s = 2.0 * np.array([2.0, 0.0, 1.0])
    assert found["loss"] == pytest.approx(np.log(np.exp(s).sum()) - s[0] + np.log1p(np.exp(2.0)), rel=1e-12)


def test_the_proxy_of_lists_is_the_likeliest_reward_under_plackett_luce() -> None:
    """A thousand lists of three: r_MLE by BFGS of the likelihood written out, up to a constant."""
    problem = instances.random(prompts=1, arms=4, rng=0)
    data = problem.sample_rankings(1_000, size=3, rng=1)
    reward, found = maximum_likelihood_reward(problem, data, PlackettLuceDPO(beta=0.1))
    (block,) = data.blocks

    def loss(r: Any) -> float:
        s = r[block.responses]
        tails = (np.log(np.exp(s[:, k:]).sum(axis=1)) - s[:, k] for k in range(3))
        return float(block.count @ sum(tails) / data.n)

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    assert found == {"name": "Unconstrained"} and reward is not None
    assert np.ptp(reward[0] - best) <= 1e-4
