"""Win rates by hand, intervals that cover, length bias planted and removed, strengths planted and found."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binom

from rpo.core.errors import InvalidArgument, SolverFailed
from rpo.eval import matrix
from rpo.eval.logistic import fit_logistic
from rpo.eval.planning import Pair
from rpo.eval.ranking import bradley_terry
from rpo.eval.win_rates import compare_models, length_controlled_win_rate, wilson, win_rate

Z = 1.959963984540054


def within(hits: int, trials: int, level: float) -> bool:
    """Whether `hits` is inside the central 99.98 % of Binomial(trials, level)."""
    low, high = binom.ppf([1e-4, 1 - 1e-4], trials, level)
    return bool(low <= hits <= high)


def test_wilson_by_hand() -> None:
    """Its ends solve (p - rate)^2 = z^2 p (1 - p) / n.

    At rate 1 they are n / (n + z^2) and 1; at rate 1/2 they are 1/2 -+ z / 2 sqrt(n + z^2).
    """
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + Z**2), 1.0))
    assert wilson(0.0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)))
    half = Z / 2 / np.sqrt(150 + Z**2)
    assert wilson(0.5, 150) == pytest.approx((0.5 - half, 0.5 + half))
    for end in wilson(0.56, 150, level=0.9):
        assert (end - 0.56) ** 2 == pytest.approx(1.6448536**2 * end * (1 - end) / 150, rel=1e-6)


def test_win_rate_by_hand() -> None:
    """Two wins, one tie, one loss of four: (1 + 1 + .5 + 0) / 4. A result of .75 is a win, .25 a loss, in counting."""
    found = win_rate([1.0, 1.0, 0.5, 0.0], rng=0)
    assert (found.rate, found.wins, found.ties, found.losses, found.prompts) == (0.625, 2, 1, 1, 4)
    assert found.wilson == wilson(0.625, 4)
    mixed = win_rate([0.75, 0.25, 0.5], rng=0)
    assert (mixed.rate, mixed.wins, mixed.ties, mixed.losses) == (0.5, 1, 1, 1)


def test_bootstrap_by_hand() -> None:
    """Of a win and a loss, resamples have means 0, 1/2, 1 with shares 1/4, 1/2, 1/4.

    So the central 95 % are [0, 1], the central 40 % [1/2, 1/2]. With each pair twice, as two samples of its
    prompt, nothing changes. Control: taken as four prompts it does.
    """
    for y, prompts in (([1.0, 0.0], None), ([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"])):
        assert win_rate(y, prompts, rng=0).bootstrap == (0.0, 1.0)
        assert win_rate(y, prompts, level=0.4, rng=0).bootstrap == (0.5, 0.5)
        assert win_rate(y, prompts, rng=0).prompts == 2
    assert win_rate([1.0, 1.0, 0.0, 0.0], level=0.4, rng=0).bootstrap != (0.5, 0.5)
    assert win_rate([0.3, 0.9, 0.5], rng=1).bootstrap == win_rate([0.3, 0.9, 0.5], rng=1).bootstrap


def test_intervals_cover_and_wilson_is_wide_where_there_are_ties() -> None:
    """200 evaluations of 150 prompts with 40 % ties, true rate .55, and of 75 prompts with two like pairs each.

    Control: like pairs taken as independent are covered too rarely.
    """
    rng = np.random.default_rng(0)
    hits, trials = np.zeros(4, dtype=int), 200
    for _ in range(trials):
        y = rng.choice([1.0, 0.5, 0.0], p=[0.35, 0.4, 0.25], size=150)
        one = win_rate(y, resamples=200, rng=rng)
        twice = win_rate(np.repeat(y[:75], 2), np.repeat(np.arange(75), 2), resamples=200, rng=rng)
        wrong = win_rate(np.repeat(y[:75], 2), resamples=200, rng=rng)
        intervals = (one.wilson, one.bootstrap, twice.bootstrap, wrong.bootstrap)
        hits += [low <= 0.55 <= high for low, high in intervals]
    assert hits[0] / trials > 0.97 and within(hits[1], trials, 0.94) and within(hits[2], trials, 0.94)
    assert hits[3] / trials < 0.9


def biased(rng: np.random.Generator, quality: float, bias: float, size: int = 600) -> tuple[Any, Any]:
    """Results of a judge with P(win) = sigma(quality + bias tanh(D / std D)), the first model the longer by far."""
    difference = rng.normal(150.0, 100.0, size).round()
    p = expit(quality + bias * np.tanh(difference / difference.std(ddof=1)))
    return (rng.random(size) < p).astype(float), difference


def test_planted_length_bias_is_removed() -> None:
    """Equal models: the plain rate is far above one half, its interval never has it; the controlled one has it 95 %."""
    rng = np.random.default_rng(1)
    hits, effects, plain, trials = 0, [], [], 300
    for _ in range(trials):
        y, difference = biased(rng, 0.0, 1.5)
        found = length_controlled_win_rate(y, difference)
        hits += found.interval[0] <= 0.5 <= found.interval[1]
        effects.append(found.length_effect)
        plain.append(win_rate(y, resamples=20, rng=rng).wilson[0])
    assert within(hits, trials, 0.95)
    assert np.mean(effects) == pytest.approx(1.5, abs=0.1) and min(plain) > 0.6
    y, difference = biased(rng, 0.8, -1.0, 20000)
    assert length_controlled_win_rate(y, difference).rate == pytest.approx(expit(0.8), abs=0.03)
    assert y.mean() < 0.6


def test_length_controlled_rate_agrees_with_another_optimiser_and_with_symmetry() -> None:
    """Results with halves and quarters; the models swapped give one minus the rate."""
    rng = np.random.default_rng(2)
    y, difference = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], size=80), rng.normal(30.0, 80.0, 80).round()
    found = length_controlled_win_rate(y, difference)
    x = np.tanh(difference / difference.std(ddof=1))

    def loss(theta: Any) -> float:
        p = expit(theta[0] + theta[1] * x)
        return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum())

    other = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert (found.rate, found.length_effect) == pytest.approx((expit(other.x[0]), other.x[1]), abs=1e-6)
    swapped = length_controlled_win_rate(1 - y, -difference)
    assert swapped.rate == pytest.approx(1 - found.rate) and swapped.length_effect == pytest.approx(found.length_effect)
    assert swapped.interval == pytest.approx((1 - found.interval[1], 1 - found.interval[0]))
    twice = length_controlled_win_rate(np.repeat(y, 2), np.repeat(difference, 2), np.repeat(np.arange(80), 2))
    wrong = length_controlled_win_rate(np.repeat(y, 2), np.repeat(difference, 2))  # control: narrower by sqrt 2
    assert np.diff(twice.interval) == pytest.approx(np.diff(found.interval), rel=0.02)
    assert np.diff(found.interval) / np.diff(wrong.interval) == pytest.approx(np.sqrt(2), rel=0.03)


@pytest.mark.parametrize(
    ("results", "differences", "word"),
    [
        ([1.0, 0.0, 1.0], [5.0, 5.0, 5.0], "equally"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "won every pair"),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "won every pair"),
        ([0.0, 0.0, 1.0], [1.0, 2.0, 3.0], "lengths alone"),
        ([1.0, 0.5, 0.0], [1.0, 2.0, 3.0], "lengths alone"),
        ([1.0], [1.0], "equally"),
        ([1.0, 0.0, 1.0], [1.0, 2.0, 3.0], "could be anything"),
        ([1.0, 0.0, 1.0] * 50, [10000.0, 10003.0, 10001.0] * 50, "equally"),
        ([1.0, 0.0, 0.5, 0.0] * 10, [700.0, 400.0, 450.0, 750.0] * 10, "could be anything"),
        ([1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], ""),
        ([0.5, 0.5, 1.0, 0.0], [-1.0, 0.0, 1.0, 1.0], ""),
    ],
)
def test_no_length_controlled_rate_where_nothing_shows_it(
    results: list[float], differences: list[float], word: str
) -> None:
    """No maximum of the likelihood; or equal length far from all lengths, whose tanh are then 1 but for some digits."""
    found = length_controlled_win_rate(results, differences)
    assert word in found.message and (found.message == "") == (word == "") == np.isfinite(found.rate)
    assert np.isfinite(found.interval).all() == (word == "")


def test_length_controlled_rates_of_any_lengths_are_numbers_with_intervals_or_say_why_not() -> None:
    """2,000 draws of few prompts, far and near lengths; before rounding is reached nothing overflows or is singular."""
    rng = np.random.default_rng(5)
    kinds = {"rate": 0, "no rate": 0, "no interval": 0}
    for _ in range(2000):
        size, offset, spread = rng.integers(2, 40), rng.choice([0, 30, 1000, 1e5]), rng.choice([0, 1, 30, 300])
        difference = offset + np.round(spread * rng.normal(size=size))
        y = rng.choice([0.0, 0.5, 1.0] if rng.random() < 0.8 else [0.5], size=size)
        found = length_controlled_win_rate(y, difference, np.arange(size) // rng.integers(1, 4))
        finite = np.isfinite(found.rate), np.isfinite(found.interval).all()
        assert finite[1] == (found.message == "") and (finite[0] or not finite[1])
        assert not finite[1] or found.interval[0] < found.rate < found.interval[1]
        kinds["rate" if finite[1] else "no interval" if finite[0] else "no rate"] += 1
    assert min(kinds.values()) > 40, kinds


def test_errors_have_the_factor_of_few_clusters() -> None:
    """A rate alone, from 2, 3 and 1 pairs of 3 prompts, by hand.

    y = 1 1 | 1 0 0 | 0: p = 1/2 and sigma' = 1/4, so the bread is 1 / (6 / 4) = 2/3. Clusters' scores, sums of y - p:
    1, -1/2, -1/2, whose squares sum to 3/2. Sandwich 4/9 * 3/2 = 2/3, times C / (C - 1) = 3/2: 1.
    """
    y, prompts = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]), np.array([0, 0, 1, 1, 1, 2])
    found = fit_logistic(np.ones((6, 1)), y, prompts)
    assert found.estimate == pytest.approx([0.0]) and found.covariance == pytest.approx(np.array([[1.0]]))
    assert found.coins == pytest.approx(np.array([[2 / 3]]))
    (half,), message = found.half_widths(np.ones((1, 1)), 0.95)
    assert half == pytest.approx(Z) and message == ""


def test_clustered_errors_agree_with_a_sum_over_prompts_written_out() -> None:
    """Two columns, 40 rows of 11 unequal prompts: V = C / (C - 1) H^-1 (sum_c s_c s_c') H^-1, an entry at a time."""
    rng = np.random.default_rng(6)
    x, prompts = rng.normal(size=40), rng.integers(0, 12, 40)
    y = rng.choice([0.0, 0.25, 0.5, 1.0], size=40)
    found = fit_logistic(np.stack([np.ones(40), x], axis=1), y, prompts)
    a, b = found.estimate
    p = [1 / (1 + np.exp(-(a + b * value))) for value in x]
    h = [sum(q * (1 - q) * value**power for q, value in zip(p, x, strict=True)) for power in range(3)]
    inverse = np.array([[h[2], -h[1]], [-h[1], h[0]]]) / (h[0] * h[2] - h[1] ** 2)
    names, meat = sorted(set(prompts.tolist())), np.zeros((2, 2))
    for name in names:
        rows = [k for k in range(40) if prompts[k] == name]
        s = np.array([sum(y[k] - p[k] for k in rows), sum((y[k] - p[k]) * x[k] for k in rows)])
        meat += np.outer(s, s)
    count = len(names)
    assert count == 11  # one of the twelve is not drawn
    assert found.covariance == pytest.approx(inverse @ meat @ inverse * count / (count - 1), rel=1e-8)
    assert found.coins == pytest.approx(inverse, rel=1e-8)


def test_a_design_that_is_singular_is_refused_by_type() -> None:
    with pytest.raises(SolverFailed, match="Singular matrix"):
        fit_logistic(np.ones((4, 2)), np.array([1.0, 0.0, 1.0, 0.0]), np.arange(4))


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("Singular matrix"), FloatingPointError("overflow")])
def test_a_regression_that_fails_costs_its_own_numbers_alone(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any) -> Any:
        raise error

    pairs = [pair(a, b, f"p{k}", k % 3 - 1) for k in range(6) for a, b in (("a", "b"), ("a", "c"), ("b", "c"))]
    results = [float(k % 2) for k in range(18)]
    whole = compare_models(pairs, results, rng=0)
    monkeypatch.setattr("rpo.eval.logistic._fit", fails)
    found = compare_models(pairs, results, rng=0)
    assert [one.win for one in found] == [one.win for one in whole]
    assert all(str(error) in one.length_controlled.message for one in found)
    names = [(one.model_a, one.model_b) for one in pairs]
    ranking = bradley_terry(*zip(*names, strict=True), results)
    assert str(error) in ranking.message and "No Bradley-Terry strengths" in matrix.ranking_text(ranking)


def test_one_prompt_and_results_without_spread_have_no_interval() -> None:
    """Three answers to one prompt; eight prompts all split; three models on two prompts, of which a mean takes one."""
    one = win_rate([1.0, 0.0, 1.0], ["p"] * 3, rng=0)
    assert np.isnan([*one.wilson, *one.bootstrap]).all() and "one prompt" in one.message
    split = win_rate([0.5] * 8, rng=0)
    assert split.wilson == wilson(0.5, 8) and np.isnan(split.bootstrap).all() and "all results are 0.5" in split.message
    assert win_rate([1.0, 0.0], rng=0).message == ""  # control
    for results, prompts, word in (
        ([0.5] * 4, ["p", "q", "r", "s"], "all alike"),
        ([1.0, 0.5, 0.0, 1.0], ["p"] * 4, "one prompt"),
    ):
        found = bradley_terry(["a"] * 4, ["b"] * 4, results, prompts)
        assert np.isfinite(found.strengths).all() and np.isnan(found.intervals).all() and word in found.message
        text = matrix.ranking_text(found)
        assert f"(no interval: {found.message})" in text and "nan" not in text
    pairs = [pair("a", "b", f"p{k}", k) for k in range(8)]
    (found,) = compare_models(pairs, [0.5] * 8, rng=0)
    text = matrix.sentence(found)
    assert "no bootstrap: all results are 0.5" in text and "at equal length 50.0 % (no interval: " in text
    (found,) = compare_models(pairs[:1], [1.0], rng=0)
    assert "100.0 % (no interval: one prompt" in matrix.sentence(found) and "nan" not in matrix.sentence(found)
    assert "nan" not in matrix.to_markdown([found]) + matrix.to_text([found]) + matrix.to_csv([found])


def tournament(rng: np.random.Generator, strengths: Any, count: int, shared: float = 0.0) -> tuple[Any, ...]:
    """Every two of M models meet three times on `count` prompts; `shared`: spread of a model's luck with a prompt."""
    size = len(strengths)
    own = np.asarray(strengths) + shared * rng.normal(size=(count, size))
    i, j = (np.tile(part, 3 * count) for part in np.triu_indices(size, 1))
    prompts = np.repeat(np.arange(count), 3 * size * (size - 1) // 2)
    wins = (rng.random(i.size) < expit(own[prompts, i] - own[prompts, j])).astype(float)
    names = np.array([f"m{k}" for k in range(size)])
    return names[i], names[j], wins, prompts


def test_planted_strengths_are_recovered_with_intervals_that_cover() -> None:
    """200 tournaments of 4 models on 60 prompts, where a model's luck with a prompt is shared by its nine duels.

    With shared luck the truth is the large-sample limit. Control: duels taken as independent cover too rarely.
    """
    rng = np.random.default_rng(3)
    planted = np.array([0.9, 0.3, -0.2, -1.0])
    first, second, wins, _ = tournament(rng, planted, 10000)
    large = bradley_terry(first, second, wins)
    assert large.models == ("m0", "m1", "m2", "m3") and large.strengths == pytest.approx(planted, abs=0.03)
    first, second, wins, _ = tournament(rng, planted, 40000, shared=2.0)
    limit = bradley_terry(first, second, wins)
    truth = limit.strengths[limit.models.index("m0")]
    hits, naive, trials = 0, 0, 200
    for _ in range(trials):
        first, second, wins, prompts = tournament(rng, planted, 60, shared=2.0)
        found, wrong = bradley_terry(first, second, wins, prompts), bradley_terry(first, second, wins)
        place = found.models.index("m0")
        hits += found.intervals[place][0] <= truth <= found.intervals[place][1]
        naive += wrong.intervals[place][0] <= truth <= wrong.intervals[place][1]
    assert within(hits, trials, 0.94) and naive / trials < 0.85


def test_strengths_agree_with_minorisation_maximisation() -> None:
    """Zermelo's iteration, w_i = (wins of i) / sum_j n_ij / (w_i + w_j), ties as half wins; by hand for two models."""
    rng = np.random.default_rng(4)
    i, j = np.array([(a, b) for a in range(5) for b in range(5) if a != b] * 3).T
    y = rng.choice([0.0, 0.25, 0.5, 1.0], size=i.size)
    credit, met = np.zeros((5, 5)), np.zeros((5, 5))
    np.add.at(credit, (i, j), y)
    np.add.at(credit, (j, i), 1 - y)
    np.add.at(met, (i, j), 1)
    np.add.at(met, (j, i), 1)
    w = np.ones(5)
    for _ in range(5000):
        w = credit.sum(axis=1) / (met / (w[:, None] + w[None, :])).sum(axis=1)
    log = np.log(w) - np.log(w).mean()
    found = bradley_terry([f"m{k}" for k in i], [f"m{k}" for k in j], y)
    assert found.models == tuple(f"m{k}" for k in np.argsort(-log))
    assert found.strengths == pytest.approx(np.sort(log)[::-1], abs=1e-9)
    two = bradley_terry(["a"] * 4, ["b"] * 4, [1.0, 1.0, 0.5, 0.5])  # 3 to 1: log-odds log 3, halved about the mean
    assert two.strengths == pytest.approx((np.log(3) / 2, -np.log(3) / 2))


@pytest.mark.parametrize(
    ("duels", "word"),
    [
        ([("a", "b", 1.0), ("b", "c", 0.5)], "a never lost or tied"),
        ([("a", "b", 0.5), ("c", "a", 1.0), ("c", "b", 1.0)], "c never lost or tied"),
        ([("a", "b", 0.5), ("c", "d", 0.5)], "a, b | c, d"),
        ([("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)], ""),
    ],
)
def test_strengths_that_would_be_infinite_are_reported(duels: list[Any], word: str) -> None:
    """A circle of wins has finite strengths, all equal; a chain without a way back has none."""
    first, second, results = zip(*duels, strict=True)
    found = bradley_terry(first, second, results)
    assert word in found.message and (found.message == "") == (word == "") == bool(np.isfinite(found.strengths).all())
    assert word in matrix.ranking_text(found) and len(matrix.ranking_text(found).splitlines()) == (1 if word else 4)


def pair(a: str, b: str, prompt: str, shorter: int = 0) -> Pair:
    return Pair(prompt, a, b, "x" * 10, "x" * (10 - shorter))


def test_models_are_compared_in_either_order_and_missing_results_counted() -> None:
    """a-b: 1 and, asked as b-a, 0, so 1 again; one missing. Lengths turn with the pair: 3, and -(-2) = 2."""
    pairs = [pair("a", "b", "p1", 3), pair("b", "a", "p2", -2), pair("a", "b", "p3"), pair("a", "c", "p1")]
    (ab, ac) = compare_models(pairs, [1.0, 0.0, np.nan, 0.25], rng=0)
    assert (ab.model_a, ab.model_b, ab.win.rate, ab.win.prompts, ab.undecided) == ("a", "b", 1.0, 2, 1)
    assert ab.length_controlled.std == pytest.approx(np.std([3, 2], ddof=1))
    assert (ac.win.rate, ac.undecided) == (0.25, 0)
    with pytest.raises(InvalidArgument, match="a result for a against c"):
        compare_models(pairs, [1.0, 0.0, 1.0, np.nan], rng=0)


def test_the_matrix_shows_each_rate_from_both_sides() -> None:
    pairs = [pair("a", "b|c", f"p{k}") for k in range(4)] + [pair("d", "a", "p0")]
    found = compare_models(pairs, [1.0, 1.0, 0.5, 0.5, 0.0], rng=0)
    low, high = (f"{100 * end:.1f}" for end in wilson(0.75, 4))
    lines = matrix.to_markdown(found).splitlines()
    assert lines[0] == "| win rate of row against column | a | b\\|c | d |"
    assert f"| a | - | 75.0 [{low}, {high}] | 100.0 |" == lines[2]  # one prompt has no interval
    assert lines[3].startswith("| b\\|c | 25.0 [") and lines[3].endswith("| - | - |")
    assert matrix.to_csv(found).splitlines()[1:] == ["a,,0.75,1", "b|c,0.25,,", "d,0,,"]
    assert matrix.to_text(found).splitlines()[1].split() == ["a", "-", "75.0", "100.0"]
    assert "a against b|c: 75.0 % (Wilson 95 %" in matrix.sentence(found[0])
    assert "2 wins, 2 ties, 0 losses; no rate at equal length" in matrix.sentence(found[0])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("results", lambda: win_rate([1.5], rng=0)),
        ("results", lambda: win_rate([], rng=0)),
        ("results", lambda: win_rate([np.nan], rng=0)),
        ("prompts", lambda: win_rate([1.0, 0.0], ["p"], rng=0)),
        ("level", lambda: win_rate([1.0], level=95, rng=0)),
        ("rng", lambda: win_rate([1.0], rng=None)),
        ("differences", lambda: length_controlled_win_rate([1.0, 0.0], [1.0])),
        ("results", lambda: bradley_terry(["a"], ["b"], [2.0])),
        ("results", lambda: bradley_terry([], [], [])),
        ("second", lambda: bradley_terry(["a"], ["a"], [1.0])),
    ],
)
def test_refusals_name_the_argument(name: str, call: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.name == name
