"""Covering numbers, the three bounds, exact intervals and slopes."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from rpo.bandit.bounds.covering import (
    covering_radius,
    largest_margin,
    log_covering,
)
from rpo.bandit.bounds.intervals import clopper_pearson, loglog_slope
from rpo.bandit.bounds.theorem import (
    Bound,
    bound_arguments,
    curvature_constant,
    hellinger_bound,
    paper_bound,
    sharper_bound,
    slope_constant,
    suboptimality_bound,
)
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.core.errors import InvalidArgument

# R = ln 3 makes (1 + e^R)^-2 = 1/16 and sigma(R) sigma(-R) = 3/16; L = 6 and N = 144 make sqrt(24 L / N) = 1.
HAND = {"n": 144, "margin_bound": math.log(3.0), "log_covering": 4.0, "delta": math.exp(-2.0)}


def test_bounds_by_hand() -> None:
    """With C = 1, KL = 2: paper 1/4 * 16 * (1 + 1/2) * 1 = 6; printed 16/8 * (1 + 1) = 4;

    sharper (16/3) sqrt(18/144); hellinger 2 sqrt(18 / (144 * 3/16)); each plus 2/12.
    """
    kl = 2.0 / 12.0
    paper = paper_bound(coverage=1.0, kl=2.0, **HAND)
    assert paper.value == pytest.approx(6.0 + kl, rel=1e-12)
    assert paper.eta == pytest.approx(1.0 / 16.0, rel=1e-12)
    assert paper.beta == pytest.approx(1.0 / 12.0, rel=1e-12)
    printed = paper_bound(coverage=1.0, kl=2.0, constant="printed", **HAND)
    assert printed.value == pytest.approx(4.0 + kl, rel=1e-12)
    sharper = sharper_bound(coverage=1.0, kl=2.0, **HAND)
    assert sharper.value == pytest.approx(16.0 / 3.0 * math.sqrt(18.0 / 144.0) + kl, rel=1e-12)
    ours = hellinger_bound(coverage=1.0, kl=2.0, **HAND)
    assert ours.value == pytest.approx(2.0 * math.sqrt(2.0 / 3.0) + kl, rel=1e-12)
    assert paper.vacuous and sharper.vacuous and ours.vacuous
    assert not hellinger_bound(coverage=0.1, **HAND).vacuous


def test_two_arms_from_the_problem() -> None:
    """One prompt, two arms, base and reference uniform, R = ln 3: C = 1/2, KL = ln 2.

    eps = 1 / (6 * 4 * 144), R / (2 eps) = 12 * 144 ln 3 = 1898.4, so 2 * 1899 balls cover.
    """
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward=[[0.0, 1.0]], reward_bound=math.log(3.0))
    found = bound_arguments(problem, 144, base=problem.reference, reward_class=Box(math.log(3.0)))
    assert found["coverage"] == pytest.approx(0.5, rel=1e-12)
    assert found["kl"] == pytest.approx(math.log(2.0), rel=1e-12)
    assert found["log_covering"] == pytest.approx(math.log(2 * 1899), rel=1e-12)
    level = math.log(2 * 1899) + math.log(20.0)
    expected = math.sqrt(3.0 * level / (144.0 * 3.0 / 16.0)) + math.log(2.0) / 12.0
    assert hellinger_bound(**found).value == pytest.approx(expected, rel=1e-12)


def test_data_dependent_coverage_by_hand() -> None:
    """Two prompts of two arms, d0 = (1/2, 1/2) but 3/4 and 1/4 of the data: C^2 = sum d0^2 (1/2)^2 / f = 1/3."""
    problem = ContextualBandit(
        d0=[0.5, 0.5], reference=np.full((2, 2), 0.5), reward=[[0.0, 1.0], [1.0, 0.0]], reward_bound=1.0
    )
    data = PreferenceCounts.from_pairs(
        [0, 0, 1], [1, 0, 0], [0, 1, 1], count=[20, 10, 10], num_prompts=2, num_responses=2
    )
    found = bound_arguments(problem, base=problem.reference, reward_class=Box(1.0), data=data)
    assert found["coverage"] == pytest.approx(math.sqrt(1.0 / 3.0), rel=1e-12)
    assert found["n"] == 40
    population = bound_arguments(problem, 40, base=problem.reference, reward_class=Box(1.0))
    assert population["coverage"] == pytest.approx(0.5, rel=1e-12)  # d0^2 / d0: another number
    # r* is 0 and R at its two arms, so against the worst policy the cone of r* - R leaves nothing; the
    # data-dependent bound does not know r* and keeps the interior value.
    worst = {"base": problem.reference, "reward_class": Box(1.0), "comparator": problem.greedy_policy()[::-1]}
    assert bound_arguments(problem, data=data, **worst)["coverage"] == pytest.approx(math.sqrt(1.0 / 3.0), rel=1e-12)
    assert bound_arguments(problem, 40, **worst)["coverage"] == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(InvalidArgument, match="exactly one"):
        bound_arguments(problem, 40, base=problem.reference, reward_class=Box(1.0), data=data)


@pytest.mark.parametrize("route", ["sharper", "hellinger"])
@pytest.mark.parametrize("bound", [0.3, 1.0, 4.0])
def test_prescribed_eta_is_the_best(route: str, bound: float) -> None:
    """The eta of the two sharper theorems minimises their bound; half of it does worse."""
    fixed = {"coverage": 0.7, "n": 5000, "margin_bound": bound, "log_covering": 30.0}
    best = suboptimality_bound(route, **fixed)
    search = minimize_scalar(
        lambda t: suboptimality_bound(route, eta=math.exp(t), **fixed).value, bounds=(-20, 20), options={"xatol": 1e-10}
    )
    assert best.eta == pytest.approx(math.exp(search.x), rel=1e-5)
    assert best.value <= search.fun * (1 + 1e-12)
    assert suboptimality_bound(route, eta=best.eta / 2, **fixed).value > 1.2 * best.value


def test_inequalities_behind_the_constants() -> None:
    """On random margins in [-R, R]: 2 H^2 >= m D^2 on every route, and a factor above its limit fails."""
    g = np.random.default_rng(0)
    for bound in (0.1, 0.5, 1.0, 3.0, 6.0):
        z, other = g.uniform(-bound, bound, size=(2, 20_000))
        # close pairs at the edge, where the constants are attained
        z[:2000], other[:2000] = bound, bound * (1 - 5e-2 * g.uniform(size=2000))
        p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-other))
        h2 = 1 - np.sqrt(p * q) - np.sqrt((1 - p) * (1 - q))
        keep = np.abs(z - other) > 1e-3  # below, the textbook formula cancels
        ratio = (2 * h2 / (z - other) ** 2)[keep]
        slope = (np.abs(p - q) / np.abs(z - other))[keep]
        for route in ("paper", "sharper", "hellinger"):
            assert ratio.min() >= curvature_constant(route, bound) * (1 - 1e-6)
        assert ratio.min() < 1.02 * curvature_constant("hellinger", bound)  # Lemma 7 is sharp
        assert slope.min() >= slope_constant("sharper", bound) * (1 - 1e-9)
        assert slope.min() < 1.02 * slope_constant("sharper", bound)
        assert ratio.min() < 2 * curvature_constant("hellinger", bound)
    # The printed constant needs H^2 >= kappa^2 D^2, which fails below R = 0.333 and holds above.
    assert curvature_constant("hellinger", 0.30) < 2 * curvature_constant("paper", 0.30)
    assert curvature_constant("hellinger", 0.35) > 2 * curvature_constant("paper", 0.35)
    with pytest.raises(InvalidArgument, match=r"0\.333"):
        paper_bound(constant="printed", coverage=1.0, n=10, margin_bound=0.3, log_covering=1.0)


@pytest.mark.parametrize("make", [paper_bound, sharper_bound, hellinger_bound])
def test_monotone(make) -> None:
    """The bound falls in N and in delta, rises in C, in the covering number and in the duality gap."""
    fixed = {"coverage": 0.7, "n": 5000, "margin_bound": 1.0, "log_covering": 30.0, "delta": 0.05, "kl": 1.0}
    value = make(**fixed).value
    for change in ({"n": 10_000}, {"coverage": 0.5}, {"delta": 0.1}, {"log_covering": 20.0}, {"kl": 0.5}):
        assert make(**{**fixed, **change}).value < value
    assert make(**fixed, gap=1e-3).value == pytest.approx(value + 1e-3 / make(**fixed).eta, rel=1e-12)
    assert make(**fixed, kl_learned=0.4).value == pytest.approx(value - 0.4 / math.sqrt(5000), rel=1e-12)
    infinite = make(**{**fixed, "coverage": math.inf})
    assert infinite.value == math.inf and infinite.vacuous


def test_hellinger_factor_at_given_r() -> None:
    """The ratio ours / sharper is 2 sqrt(kappa): 0.89 at R = 1, 0.43 at R = 3."""
    for bound, ratio in ((1.0, 0.887), (3.0, 0.425)):
        fixed = {"coverage": 0.7, "n": 5000, "margin_bound": bound, "log_covering": 30.0}
        assert hellinger_bound(**fixed).value / sharper_bound(**fixed).value == pytest.approx(ratio, abs=1e-3)


def test_nothing_to_cover() -> None:
    """At C = 0 the oracle's eta is infinite and the statistical term vanishes; the paper's does not."""
    fixed = {"coverage": 0.0, "n": 100, "margin_bound": 1.0, "log_covering": 5.0, "kl": 1.0}
    assert hellinger_bound(**fixed).value == pytest.approx(0.1)
    assert paper_bound(**fixed).statistical > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("coverage", -1.0), ("coverage", math.nan), ("n", 0), ("delta", 0.0), ("delta", 1.0), ("margin_bound", 0.0),
     ("log_covering", -1.0), ("kl", -0.1), ("gap", math.inf), ("eta", 0.0), ("beta", -1.0)],
)  # fmt: skip
def test_refuses(field: str, value: float) -> None:
    """Each argument outside its range is refused by name."""
    fixed = {"coverage": 1.0, "n": 100, "margin_bound": 1.0, "log_covering": 5.0}
    with pytest.raises(InvalidArgument) as raised:
        suboptimality_bound("paper", **{**fixed, field: value})
    assert raised.value.name == field
    with pytest.raises(InvalidArgument, match="pay for the cover"):
        suboptimality_bound("paper", coverage=1.0, n=100, margin_bound=1.0, log_covering=0.0, delta=0.9)


def test_bound_is_recorded() -> None:
    """Every constant a record needs is in to_dict, and value is the sum of its terms."""
    bound = hellinger_bound(coverage=1.0, kl=2.0, gap=1e-3, **HAND)
    assert isinstance(bound, Bound)
    record = bound.to_dict()
    assert record["value"] == pytest.approx(record["statistical"] + record["kl"] + record["optimization"], rel=1e-14)
    assert {"kappa", "log_covering", "coverage", "delta", "eta", "beta", "formula", "vacuous"} <= set(record)


def test_box_covering_is_exact() -> None:
    """[0, 1]^2 at eps = 1/4 needs 2^2 squares of side 1/2: four corners further than 1/2 apart prove it.

    Modulo a constant: the two edges through the origin, 2 intervals each, so min(4, 2 * 2) = 4; with
    three arms min(8, 3 * 4) = 8; at eps = 0.01, 50 cells, min(50^3, 3 * 50^2).
    """
    assert Box(1.0).log_covering(prompts=1, arms=2, radius=0.25, modulo_constants=False) == pytest.approx(math.log(4))
    assert Box(1.0).log_covering(prompts=1, arms=3, radius=0.25) == pytest.approx(math.log(8))
    assert Box(1.0).log_covering(prompts=2, arms=3, radius=0.01) == pytest.approx(2 * math.log(3 * 2500))
    assert Box(1.0).log_covering(prompts=1, arms=3, radius=0.6) == 0.0  # one ball
    # brute force: every table with least entry 0 is within eps of a centre of some face's grid
    cells, eps = 5, 0.1
    grid = (np.arange(cells) + 0.5) / cells
    table = np.random.default_rng(0).uniform(size=(4000, 3))
    table -= table.min(axis=1, keepdims=True)
    snapped = grid[np.minimum((table * cells).astype(int), cells - 1)]
    snapped[table == 0] = 0.0
    assert np.abs(snapped - table).max() <= eps
    assert np.log(len(np.unique(snapped, axis=0))) <= Box(1.0).log_covering(prompts=1, arms=3, radius=eps)


def test_ball_covering() -> None:
    """D log(1 + 2 B Phi_max / eps): unit features, D = 3, B = 2, eps = 1/2 give 3 log 9.

    A greedy packing of the parameters, which covers, has fewer members; a constant added to one
    prompt's features changes nothing where centring removes it.
    """
    g = np.random.default_rng(1)
    unit = g.normal(size=(2, 4, 3))
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    ball = LinearBall(np.concatenate([unit, -unit], axis=1), 2.0)  # centred already
    assert ball.log_covering(prompts=1, arms=2, radius=0.5) == pytest.approx(3 * math.log(9.0))
    moved = LinearBall(ball.features + np.array([[[7.0, 0, 0]], [[0, -5.0, 0]]]), 2.0)
    assert moved.log_covering(prompts=1, arms=2, radius=0.5) == pytest.approx(3 * math.log(9.0))
    theta = g.normal(size=(1500, 3))
    theta *= 2.0 * g.uniform(size=(1500, 1)) ** (1 / 3) / np.linalg.norm(theta, axis=1, keepdims=True)
    packed: list[np.ndarray] = []
    for t in theta:
        if all(np.linalg.norm(t - other) > 0.5 for other in packed):
            packed.append(t)
    assert 50 < len(packed) <= math.exp(ball.log_covering(prompts=1, arms=2, radius=0.5))


def test_largest_margin() -> None:
    """A box allows R; a ball B times the widest feature difference, found here by random search."""
    g = np.random.default_rng(2)
    ball = LinearBall(g.normal(size=(2, 3, 4)), 1.5)
    theta = g.normal(size=(20_000, 4))
    theta *= 1.5 / np.linalg.norm(theta, axis=1, keepdims=True)
    reward = np.einsum("xad,sd->sxa", ball.features, theta)
    widest = np.ptp(reward, axis=2).max()
    assert widest <= largest_margin(ball) <= 1.02 * widest
    assert largest_margin(Box(2.5)) == 2.5


def test_covering_refuses() -> None:
    """Unbounded classes, huge R, and no pairs are refused."""
    with pytest.raises(InvalidArgument, match="bounded class"):
        log_covering(Unconstrained(), prompts=1, arms=2, radius=0.1)
    with pytest.raises(InvalidArgument, match="bounded class"):
        largest_margin(Unconstrained())
    with pytest.raises(InvalidArgument, match="margin_bound"):
        covering_radius(10, 1e4)
    with pytest.raises(InvalidArgument, match="n:"):
        covering_radius(0, 1.0)
    assert covering_radius(100, math.log(3.0)) == pytest.approx(1 / 2400)


def test_clopper_pearson() -> None:
    """0 of n: (0, 1 - (alpha/2)^(1/n)). Coverage over all outcomes is at least the level; at 0.5 it is not 0.95."""
    none = clopper_pearson(0, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20), rel=1e-12))
    assert clopper_pearson(2000, 2000).low == pytest.approx(0.025 ** (1 / 2000), rel=1e-12)
    exact = stats.binomtest(7, 30).proportion_ci(0.9, method="exact")
    assert (clopper_pearson(7, 30, 0.9).low, clopper_pearson(7, 30, 0.9).high) == pytest.approx((exact.low, exact.high))

    def least(level: float) -> float:
        found = [clopper_pearson(k, 25, level) for k in range(26)]
        return min(
            sum(stats.binom.pmf(i.successes, 25, p) for i in found if i.low <= p <= i.high)
            for p in np.linspace(0.01, 0.99, 99)
        )

    assert least(0.95) >= 0.95
    assert least(0.5) < 0.95
    for bad in (
        {"successes": 3, "trials": 2},
        {"successes": 1, "trials": 0},
        {"successes": 1, "trials": 2, "level": 1},
    ):
        with pytest.raises(InvalidArgument):
            clopper_pearson(**bad)


def test_slope_of_a_power_law() -> None:
    """y = 3 n^-0.7 exactly; the same as a weighted polynomial fit; points under 3 standard errors are left out."""
    n = np.array([1e2, 1e3, 1e4, 1e5, 1e6])
    y = 3.0 * n**-0.7
    line = loglog_slope(n, y, 0.1 * y)
    assert (line.slope, line.used, line.omitted) == (pytest.approx(-0.7, abs=1e-12), 5, 0)
    assert line.predict(1e3) == pytest.approx(y[1])
    noisy = y * np.array([1.1, 0.9, 1.2, 1.0, 0.8])
    se = y * np.array([0.05, 0.1, 0.1, 0.2, 0.5])  # the last is under 3 standard errors
    found = loglog_slope(n, noisy, se)
    assert (found.used, found.omitted) == (4, 1)
    weight = 1 / np.sqrt((se / noisy)[:4] ** 2 + found.scatter**2)
    assert found.misfit > 1 and found.scatter > 0
    expected, cov = np.polyfit(np.log(n[:4]), np.log(noisy[:4]), 1, w=weight, cov="unscaled")
    assert found.high - found.slope == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(cov[0, 0]))
    residual = np.log(noisy[:4]) - np.polyval(expected, np.log(n[:4]))
    assert ((weight * residual) ** 2).sum() == pytest.approx(2.0)  # chi-squared = P - 2
    assert (found.slope, found.intercept) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    with pytest.raises(InvalidArgument, match="at least 3"):
        loglog_slope(n, y, y)
    with pytest.raises(InvalidArgument, match="> 0"):
        loglog_slope(n, y, 0 * y)


def test_slope_interval_covers() -> None:
    """Over 600 simulated curves the 95 % interval holds the truth in at least 92 %; a bent curve widens it."""
    g = np.random.default_rng(3)
    n = 10.0 ** np.arange(2, 8)
    truth = n**-0.5
    hits = 0
    for _ in range(600):
        y = truth * (1 + 0.03 * g.normal(size=n.size))
        line = loglog_slope(n, y, 0.03 * truth)
        hits += line.low <= -0.5 <= line.high
    assert hits >= 0.92 * 600
    precise = loglog_slope(n, truth * [1.2, 0.9, 1.1, 1, 1, 1], 0.1 * truth * [1, 1, 1, 1e-9, 1e-9, 1e-9])
    assert precise.high - precise.low > 0.01  # not the 1e-10 of its three exact points
    bent = truth * np.exp(-0.02 * np.log(n / 100) ** 2)
    wide, narrow = loglog_slope(n, bent, 0.01 * bent), loglog_slope(n, truth, 0.01 * truth)
    assert wide.misfit > 10 and wide.high - wide.low > 3 * (narrow.high - narrow.low)
