"""What `fit` says of its end: bounds that bound, hand-derived optima, two minima, a saddle, infima at infinity."""

from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from scipy.special import xlogy

import rpo
from rpo.bandit import ContextualBandit, PreferenceCounts, RankedLists, Unconstrained, fit, instances, minimizer_exists
from rpo.bandit.evidence import _beyond, loss_gap
from rpo.bandit.metrics import total_variation
from rpo.bandit.solver.saddle import build_saddle
from rpo.bandit.table_loss import TableLoss
from rpo.core import numerics
from rpo.core.columns import Columns
from rpo.core.divergences import ForwardKL
from rpo.core.errors import InvalidArgument
from rpo.core.links import LogRatio
from rpo.core.objectives import DPO, RPO, Anchor, Objective
from rpo.core.shapes import Logistic, MarginShape, Shape
from rpo.methods import registry


def made(kind: type[Objective]) -> Objective:
    """A method with its defaults, a base that has mass everywhere, and a fifth for what has no default."""
    named = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    given = {name: 0.2 for name, f in named.items() if f.default is f.default_factory is MISSING}
    return kind(**given, **({"base": "reference"} if "base" in named else {}))


ON_TABLES = ("certified", "stationary")
METHODS = {name: made(row.load()) for name, row in registry.METHODS.items() if row.evidence in ON_TABLES}


@dataclass(frozen=True, kw_only=True)
class Of(Objective):
    """Any shape of beta log(pi / pi_ref), with an SFT term."""

    of: Any
    beta: float = 1.0
    weight: float = 0.0

    @property
    def link(self) -> LogRatio:
        return LogRatio(beta=self.beta)

    @property
    def shape(self) -> Shape:
        return self.of

    @property
    def anchor(self) -> Anchor:
        return Anchor(weight=self.weight)


@pytest.fixture(scope="module")
def problem() -> ContextualBandit:
    return instances.random(prompts=2, arms=4, features=3, rng=3)


@pytest.fixture(scope="module")
def pairs(problem: ContextualBandit) -> PreferenceCounts:
    """Enough comparisons that every response of a prompt has beaten every other."""
    return problem.sample_preferences(4_000, rng=4)


def data_for(problem: ContextualBandit, pairs: PreferenceCounts, objective: Objective) -> Any:
    """Pairs; or where scores are read, scores in [0, 1]: of lists of three, of pairs without ties, of single responses.

    Noise puts every response on top now and then.
    """
    if "scores" not in objective.needs:
        return pairs
    size = 3 if objective.takes_lists else 2 if objective.shape.pairs else 1
    drawn = problem.sample_rankings(3_000 if size == 2 else 300, size=max(size, 2), score_noise=1.0, rng=0)
    (block,) = drawn.blocks
    assert block.scores is not None
    scores = (block.scores - block.scores.min()) / np.ptp(block.scores)
    return RankedLists.from_lists(
        block.prompt, block.responses[:, :size], scores=scores[:, :size], num_prompts=2, num_responses=4
    )


def two(share: float) -> tuple[ContextualBandit, PreferenceCounts]:
    """One prompt, a uniform reference, and A over B in `share` of the comparisons."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    return problem, PreferenceCounts.from_wins([[[0, share], [1 - share, 0]]])


def loss_of(problem: ContextualBandit, pairs: Any, objective: Objective) -> TableLoss:
    return TableLoss(build_saddle(problem, pairs, objective, Unconstrained()), problem.softmax_policy())


# --- certified -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_registry_says_what_the_code_answers(problem: ContextualBandit, pairs: PreferenceCounts, name: str) -> None:
    """Certified rows are so by `solve`, or on a table at each of three betas; stationary rows by neither."""
    words, objective = [], METHODS[name]
    data = data_for(problem, pairs, objective)
    for beta in (0.1, 1.0, 5.0):
        at = replace(objective, beta=beta) if hasattr(objective, "beta") else objective
        words.append(fit(problem.softmax_policy(), data, at, max_steps=2_000).evidence)
    try:
        solved = rpo.bandit.solve(problem, data, objective, reward_class=Unconstrained()).status
    except InvalidArgument:
        solved = "refused"
    certified = solved == "certified" or all(word == "certified" for word in words)
    assert registry.METHODS[name].evidence == ("certified" if certified else "stationary")


BOUNDED = [name for name, row in registry.METHODS.items() if row.evidence == "certified"] + ["NCA", "SLiC"]


@pytest.mark.parametrize("name", BOUNDED)
def test_gap_is_never_negative_and_bounds_the_distance_to_the_least_loss(
    problem: ContextualBandit, pairs: PreferenceCounts, name: str
) -> None:
    """At 120 tables from 1e-6 to 1 nat away from the best found: gap >= loss - best, and finite near it."""
    objective = METHODS[name]
    data = data_for(problem, pairs, objective)
    loss, run = loss_of(problem, data, objective), fit(problem.softmax_policy(), data, objective, max_steps=5_000)
    rng, end, finite = np.random.default_rng(0), run.arrays["parameters"].ravel(), 0
    for scale in (1e-6, 1e-3, 0.03, 0.1, 0.3, 1.0):
        for _ in range(20):
            at = end + rng.normal(scale=scale, size=end.size)
            gap = loss_gap(loss, at)[0]
            assert gap >= max(0.0, loss.value(at) - run.loss) - 1e-14
            finite += np.isfinite(gap)
    assert finite >= 20 or name == "SLiC"


@pytest.mark.parametrize("name", ["RPO", "DPO", "IPO", "SimPO", "FDPO", "CPO", "ASFT"])
def test_gap_shrinks_with_the_distance(problem: ContextualBandit, pairs: PreferenceCounts, name: str) -> None:
    """A bound of no use would pass the test above: near the optimum it is small, whatever the method."""
    loss = loss_of(problem, pairs, METHODS[name])
    end = fit(problem.softmax_policy(), pairs, METHODS[name]).arrays["parameters"].ravel()
    away = np.random.default_rng(1).normal(size=end.size)
    far, near = (loss_gap(loss, end + scale * away)[0] for scale in (1e-6, 1e-8))
    assert near <= far / 50 <= 1e-6


RIVALS = (
    1.5 * np.array(1 / (1 + 5**0.5 / 10)) / (1 / (1 + 4 / 5**0.5))
)  # of the test below: 3/2 sigma(-z_B) / sigma(-z_A)


@pytest.mark.parametrize(
    ("objective", "share", "expected"),
    [
        (rpo.ASFT(weight=0.5), 0.7, 0.7),
        (rpo.CPL(alpha=1.0, lam=0.5), RIVALS / (1 + RIVALS), 0.8),
        (rpo.NCA(beta=0.5), 889 / 990, 0.98),
        (DPO(beta=1.0), 0.7, 0.7),
        (RPO(beta=1.0, eta=0.3), 0.7, 0.7),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_certified_optimum_of_two_responses_is_the_hand_derived_one(
    objective: Objective, share: float, expected: float
) -> None:
    """A beats B in a share t of comparisons, the reference is uniform, x = pi(A).

    ASFT: 1 - p_l = p_w, so the loss is -(1 + 2 weight) E[log p_w], least at x = t. DPO and RPO on chosen: x = t.
    CPL, lam = 1/2, x = 4/5: z_A = log(.8 / sqrt(.2)) = log(4 / sqrt 5), z_B = log(.2 / sqrt(.8)) = log(sqrt 5 / 10),
    and x (1 - lam) (t s_A + (1 - t) s_B) = t s_A - lam (1 - t) s_B with s = sigma(-z) gives t / (1 - t) =
    (3 / 2) s_B / s_A. NCA, beta = 1/2: sigma(r) = sqrt(u) / (1 + sqrt(u)); at x = .98, u = (1.96, .04), so 7/12 and
    1/6, and (1 - x) (-5 t / 12 + 7 / 24) = x (-5 (1 - t) / 6 + 1 / 12) gives t = 889 / 990.
    """
    problem, pairs = two(share)
    run = fit(problem.softmax_policy(), pairs, objective)
    assert run.policy[0, 0] == pytest.approx(expected, abs=1e-9)
    assert run.evidence == "certified" and run.certificate["attained"]
    assert 0.0 <= run.certificate["gap"] <= 1e-12


def test_certificate_at_a_table_where_it_is_known_by_hand() -> None:
    """Two responses of shares (t, 1 - t), SFT alone: q = -(t, 1 - t), C = 1, so the gap is KL(t || pi), exact."""

    class Nothing(Logistic):  # a preference term of zero
        def of_margin(self, z: Any) -> Any:
            return 0.0 * numerics.square(z)

    problem, pairs = two(0.8)
    loss = loss_of(problem, pairs, Of(of=Nothing(), weight=1.0))
    at = np.array([1.3, -0.2])
    pi = np.exp(at) / np.exp(at).sum()
    by_hand = float((xlogy([0.8, 0.2], [0.8, 0.2]) - [0.8, 0.2] * np.log(pi)).sum())
    assert loss_gap(loss, at) == (pytest.approx(by_hand, rel=1e-12), "log-probabilities")
    # DPO, beta = 1, one pair of shares (t, 1 - t): the slope is |sigma(z) - t|, one edge, so that is the gap.
    loss = loss_of(problem, pairs, DPO(beta=1.0))
    at = np.array([1.5, 0.2])  # z = 1.3
    assert loss_gap(loss, at) == (pytest.approx(abs(1 / (1 + np.exp(-1.3)) - 0.8), rel=1e-12), "rewards")
    # ASFT, weight 1/2, at pi = (1/2, 1/2): -gradient is (1.5 t / x - .5 (1 - t) / (1 - x), the same turned round), so
    # (2.2, -.2) of mean 1: the gap is 1.2.
    assert loss_gap(loss_of(problem, pairs, rpo.ASFT(weight=0.5)), np.zeros(2)) == (pytest.approx(1.2), "policy")


@pytest.mark.parametrize("steps", [3, 5, 8, 500])
def test_total_variation_bound_of_an_anchored_loss_holds_on_the_way_down(
    problem: ContextualBandit, pairs: PreferenceCounts, steps: int
) -> None:
    """Steepest descent, stopped early: the optimum that `solve` certifies is no further off than the run says."""
    objective = RPO(beta=0.5, eta=2.0, base="reference")
    theory = rpo.bandit.solve(problem, pairs, objective, reward_class=Unconstrained())
    optimizer = "gradient_descent" if steps < 500 else "newton"
    run = fit(problem.softmax_policy(), pairs, objective, optimizer=optimizer, learning_rate=1.0, max_steps=steps)
    distance = float(pairs.prompt_frequencies @ total_variation(theory.policy, run.policy))
    assert distance <= run.certificate["tv_bound"] + 1e-9
    assert 0.01 * run.certificate["tv_bound"] <= distance or run.certificate["tv_bound"] < 1e-6
    assert run.evidence == ("certified" if steps == 500 else "none")


def test_a_policy_of_shared_parameters_is_not_certified_by_bounds_over_all_tables(
    problem: ContextualBandit, pairs: PreferenceCounts
) -> None:
    run = fit(problem.linear_softmax_policy(), pairs, RPO(beta=0.5, eta=0.2))
    assert run.status == "converged" and run.evidence == "stationary"
    assert "gap" not in run.certificate and run.certificate["least_eigenvalue"] > 0


class Lying(MarginShape):
    """Declared convex, and a bounded sigmoid."""

    convex = True

    def of_margin(self, z: Any) -> Any:
        return numerics.sigmoid(-z)


def test_a_shape_that_lies_about_its_convexity_is_not_certified() -> None:
    problem, pairs = two(0.7)
    loss = loss_of(problem, pairs, Of(of=Lying(), weight=1.0))
    assert loss_gap(loss, np.zeros(2)) == (np.inf, "")
    assert fit(problem.softmax_policy(), pairs, Of(of=Lying(), weight=1.0)).evidence == "stationary"


class Bent(LogRatio):
    """A link of its own under a known name."""

    def __call__(self, columns: Columns) -> tuple[Any, ...]:
        return tuple(-numerics.square(logp) for logp in columns.logps)


def test_a_subclass_of_a_known_link_is_not_certified() -> None:
    class Odd(Of):
        @property
        def link(self) -> LogRatio:
            return Bent(beta=1.0)

    problem, pairs = two(0.7)
    assert loss_gap(loss_of(problem, pairs, Odd(of=Logistic())), np.zeros(2)) == (np.inf, "")


def test_signs_that_break_convexity_are_not_certified() -> None:
    problem, pairs = two(0.7)
    for objective in (Of(of=Logistic(), weight=-0.01), Of(of=Logistic(rival=0.5, tilt=0.3))):
        assert not objective.convex_in_logits
    assert loss_gap(loss_of(problem, pairs, Of(of=Logistic(), weight=-0.01)), np.zeros(2))[1] == ""
    # A concave margin under a loss that rises on the right bends the wrong way: seen in the Hessian.
    three = instances.random(prompts=1, arms=3, rng=0)
    loss = loss_of(three, three.sample_preferences(50, rng=0), Of(of=Logistic(rival=0.5, tilt=0.9)))
    tables = np.random.default_rng(0).normal(scale=3.0, size=(50, 3))
    assert min(np.linalg.eigvalsh(loss.derivatives(table)[2])[0] for table in tables) < -1e-2
    assert Of(of=Logistic(rival=0.5)).convex_in_logits


def test_proofs_of_convexity_cannot_be_overridden() -> None:
    with pytest.raises(InvalidArgument, match="its own convex_in_policy"):

        class Claimed(Of):
            convex_in_policy = True


# --- stationary ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(rpo.ORPO(weight=1 / 6), 2 / 3), (rpo.EXO(beta=1.0, epsilon=0.1), 9**0.4 / (1 + 9**0.4))],
    ids=lambda value: getattr(value, "label", ""),
)
def test_stationary_optimum_of_two_responses_from_five_starts(objective: Objective, expected: float) -> None:
    """A beats B in .7 of comparisons, o = logit pi(A).

    ORPO: sigma(o) - .7 + 2 weight (sigma(2 o) - .7) = 0; at o = log 2 that is -1/30 + weight / 5. EXO, beta = 1, a
    uniform reference: the KL of (sigma(o), sigma(-o)) from the geometric mean of the labels, so o = .4 log(.9 / .1).
    """
    problem, pairs = two(0.7)
    run = fit(problem.softmax_policy(), pairs, objective, starts=5, rng=0)
    assert run.policy[0, 0] == pytest.approx(expected, abs=1e-9)
    found = run.certificate
    assert run.evidence == "stationary" and "no proved distance" in run.message
    assert found["starts"] == found["starts_converged"] == 5 and run.config["starts"] == 5
    assert found["loss_spread"] <= 1e-12 and found["tv_spread"] <= 1e-7
    assert found["least_eigenvalue"] > 0 and found["gradient"] <= 1e-10
    assert "gap" not in found


class TwoWells(MarginShape):
    """(z^2 - 1)^2 + tilt z."""

    def __init__(self, tilt: float) -> None:
        self.tilt = tilt

    def of_margin(self, z: Any) -> Any:
        return numerics.square(numerics.square(z) - 1.0) + self.tilt * z


def test_two_minima_show_in_the_spread_of_the_starts() -> None:
    """4 z (z^2 - 1) + .1 = 0 has minima near -1.012 and .987: the second, near the start, is .2 above the first."""
    problem, pairs = two(1.0)
    low, _, high = np.sort(np.roots([4.0, 0.0, -4.0, 0.1]).real)
    value = lambda z: (z**2 - 1) ** 2 + 0.1 * z  # noqa: E731
    start = problem.softmax_policy().with_parameters(np.array([[0.4, -0.4]]))
    run = fit(start, pairs, Of(of=TwoWells(0.1)), starts=6, rng=1)
    assert np.log(run.policy[0, 0] / run.policy[0, 1]) == pytest.approx(high, abs=1e-8)
    found = run.certificate
    assert run.evidence == "stationary" and found["least_eigenvalue"] > 0
    assert found["loss_spread"] == pytest.approx(value(high) - value(low), abs=1e-9)
    assert found["tv_spread"] == pytest.approx(1 / (1 + np.exp(-high)) - 1 / (1 + np.exp(-low)), abs=1e-8)
    assert "this is not the least" in run.message
    best = run.arrays["best_parameters"]
    assert best[0, 0] - best[0, 1] == pytest.approx(low, abs=1e-8)
    again = fit(start, pairs, Of(of=TwoWells(0.1)), starts=6, rng=1)
    assert again.certificate == found
    single = fit(start, pairs, Of(of=TwoWells(0.1)))
    assert "starts" not in single.certificate and "not the least" not in single.message


def test_start_on_a_saddle_is_called_one() -> None:
    """At z = 0 the untilted wells have slope 0 and curvature -4; along (1, -1) / sqrt 2, z grows by sqrt 2: -8."""
    problem, pairs = two(1.0)
    run = fit(problem.softmax_policy(), pairs, Of(of=TwoWells(0.0)))
    assert run.status == "converged" and run.evidence == "stationary"
    assert run.certificate["least_eigenvalue"] == pytest.approx(-8.0, abs=1e-12)
    assert run.message.endswith("least eigenvalue of the Hessian -8.0e+00, a saddle point")


def test_where_the_steps_end_too_early_nothing_is_claimed(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    run = fit(problem.softmax_policy(), pairs, rpo.ORPO(), max_steps=3)
    assert run.status == "not_converged" and run.evidence == "none"
    assert fit(problem.softmax_policy(), pairs, rpo.ORPO(), max_steps=3, starts=5).certificate.get("starts") is None


# --- infima at infinity ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "infimum"),
    [
        (DPO(beta=1.0), 0.0),
        (rpo.FDPO(beta=0.5, divergence=ForwardKL()), 0.0),
        (rpo.APOZero(beta=1.0), 1 / 3),
        (rpo.DiscoPOP(beta=1.0, tau=1.0), 0.0),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_a_pair_never_lost_has_its_infimum_at_infinity(objective: Objective, infimum: float) -> None:
    """A beat B always, uniform reference. APO-zero tends to sigma(-log 2) = 1/3, as pi(A) tends to 1 and pi(B) to 0."""
    problem, pairs = two(1.0)
    run = fit(problem.softmax_policy(), pairs, objective, max_steps=2_000)
    assert run.evidence == "infimum approached" and not run.certificate["attained"]
    assert "no minimum" in run.message and "minimum over" not in run.message
    assert infimum <= run.loss <= infimum + 1e-6


def test_an_emptied_response_leaves_the_infimum_certified_and_not_attained() -> None:
    """A and B five to five, C in no pair, lam = .9, alpha = 1: at pi = (1/2, 1/2, 0) both margins are -.1 log 2."""
    problem = ContextualBandit(d0=[1.0], reference=[[1 / 3, 1 / 3, 1 / 3]], reward_bound=1.0)
    pairs = PreferenceCounts.from_pairs([0, 0], [0, 1], [1, 0], count=[5, 5], num_prompts=1, num_responses=3)
    run = fit(problem.softmax_policy(), pairs, rpo.CPL(alpha=1.0, lam=0.9))
    infimum = np.log1p(2**0.1)
    assert run.evidence == "certified" and not run.certificate["attained"]
    assert run.loss - run.certificate["gap"] <= infimum + 1e-15 <= run.loss + 2e-15
    assert "infimum, which is only approached" in run.message
    assert run.policy[0, 2] < 1e-7
    # SFT's own shape: ASFT never sees C either, and its minimum over the simplex is bounded by Frank and Wolfe.
    run = fit(problem.softmax_policy(), pairs, rpo.ASFT(weight=1.0))
    assert run.evidence == "certified" and not run.certificate["attained"] and run.certificate["bound"] == "policy"


def test_running_away_is_seen_wherever_the_theorem_says_so() -> None:
    """Forty random comparison graphs of five responses: Ford's condition, against how the loss goes on beyond the end.

    The second knows neither graphs nor shapes.
    """
    rng, found = np.random.default_rng(0), []
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 5), 0.2), reward_bound=1.0)
    for _ in range(40):
        wins = rng.integers(1, 9, size=(1, 5, 5)) * (rng.random((1, 5, 5)) < 0.4) * (1 - np.eye(5))
        pairs = PreferenceCounts.from_wins(wins)
        run = fit(problem.softmax_policy(), pairs, DPO(beta=1.0), proxy_reward=None)
        loss = loss_of(problem, pairs, DPO(beta=1.0))
        exists = minimizer_exists(loss.saddle).exists
        assert (_beyond(loss, run.arrays["parameters"].ravel())[0] == "") == exists
        assert run.evidence == ("certified" if exists else "infimum approached")
        found.append(exists)
    assert 8 < sum(found) < 32


def test_a_loss_without_a_floor_is_not_certified_on_its_way_down() -> None:
    """Thirty graphs of four responses under labels corrected for noise: certified exactly where a minimum exists."""
    rng, found = np.random.default_rng(1), []
    problem = ContextualBandit(d0=[1.0], reference=np.full((1, 4), 0.25), reward_bound=1.0)
    objective = rpo.RobustDPO(beta=1.0, epsilon=0.15)
    for _ in range(30):
        wins = rng.integers(1, 12, size=(1, 4, 4)) * (rng.random((1, 4, 4)) < 0.8) * (1 - np.eye(4))
        pairs = PreferenceCounts.from_wins(wins)
        run = fit(problem.softmax_policy(), pairs, objective, proxy_reward=None, max_steps=60)
        found.append(minimizer_exists(loss_of(problem, pairs, objective).saddle).exists)
        assert run.evidence == ("certified" if found[-1] else "none")
    assert 5 < sum(found) < 25


def test_evidence_is_kept_in_the_record(tmp_path: Any) -> None:
    problem, pairs = two(0.7)
    run = fit(problem.softmax_policy(), pairs, rpo.EXO(), starts=5)
    run.save(tmp_path / "run")
    back = rpo.Run.load(tmp_path / "run")
    assert (back.evidence, back.certificate) == (run.evidence, run.certificate)
