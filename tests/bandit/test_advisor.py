"""The advisor: the theorem's rate by hand, honest splits, warnings that fire, and a simulation."""

from typing import Any

import numpy as np
import pytest

from rpo.bandit import instances
from rpo.bandit.advisor import DOMINATED_TV, NEGLIGIBLE_TV, advise, split_counts
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO


def skewed(seed: int, n: int = 100) -> tuple[ContextualBandit, PreferenceCounts]:
    first, second = np.random.SeedSequence(seed).spawn(2)
    problem = instances.coverage_skew(rng=first)
    return problem, problem.sample_preferences(n, rng=second)


def test_the_rate_is_the_theorems_by_hand() -> None:
    """beta = N^-1/2; eta = (1 + e^R)^-2 sqrt(24 log(N_eps / delta) / N), eps = 1 / (6 (1 + e^R) N).

    A box of 10 arms at one prompt, up to a constant: 10 ceil(R / 2 eps)^9 cubes cover its faces.
    """
    problem, data = skewed(0)
    advice = advise(data, problem, delta=0.1, split="none", rng=0)
    growth = 1.0 + np.exp(3.0)
    cubes = np.log(10) + 9 * np.log(np.ceil(3.0 * 6 * growth * 100 / 2))
    assert advice.beta == advice.theory_beta == pytest.approx(0.1)
    assert advice.eta == advice.theory_eta == pytest.approx(growth**-2 * np.sqrt(24 * (cubes + np.log(10)) / 100))
    assert advice.objective() == RPO(beta=advice.beta, eta=advice.eta)


def test_the_rate_knows_neither_the_true_reward_nor_the_coverage() -> None:
    """The same counts under another r* and behaviour give the same advice; control: another R does not."""
    problem, data = skewed(1)
    other = ContextualBandit(d0=problem.d0, reference=problem.reference, reward_bound=3.0)
    ours, theirs = (advise(data, p, split="none", rng=0) for p in (problem, other))
    assert ours.message == theirs.message and ours.eta == theirs.eta
    assert advise(data, other, bound=2.0, split="none", rng=0).eta > 2 * ours.eta


@pytest.mark.parametrize(("n", "folds"), [(100, 5), (7, 7), (23, 4), (5_000_000_000, 3)])
def test_splits_conserve_every_count(n: int, folds: int) -> None:
    _, data = skewed(2, n)
    parts = split_counts(data, folds, rng=0)
    assert parts.shape == (folds, data.count.size) and parts.min() >= 0
    assert (parts.sum(axis=0) == data.count).all() and (parts % 1 == 0).all()
    sizes = parts.sum(axis=1)
    assert sizes.max() - sizes.min() <= (1 if n < 10**9 else 10 * n**0.5)


def test_split_ties_are_dealt_by_halves() -> None:
    data = PreferenceCounts.from_pairs([0, 0], [0, 1], [1, 0], num_prompts=1, num_responses=2, count=[2.5, 0.5])
    parts = split_counts(data, 3, rng=1)
    assert (parts.sum(axis=0) == data.count).all() and (parts * 2 % 1 == 0).all()


def test_splits_are_hypergeometric() -> None:
    """4 pairs of one triple and 4 of another, two folds: P(fold 0 holds k of the first) = C(4,k)^2 / C(8,4).

    1, 16, 36, 16, 1 of 70: 4,000 splits, chi-square with 4 degrees of freedom below its 99.99 % point;
    the binomial that drawing with replacement would give (control) is far above it.
    """
    data = PreferenceCounts.from_pairs([0, 0], [0, 1], [1, 0], num_prompts=1, num_responses=2, count=[4, 4])
    rng = np.random.default_rng(3)
    seen = np.bincount([int(split_counts(data, 2, rng=rng)[0, 0]) for _ in range(4000)], minlength=5)
    expected = np.array([1, 16, 36, 16, 1]) / 70 * 4000
    with_replacement = np.array([1, 4, 6, 4, 1]) / 16 * 4000
    assert ((seen - expected) ** 2 / expected).sum() < 23.5
    assert ((seen - with_replacement) ** 2 / with_replacement).sum() > 200


def held_out_by_brute_force(problem: ContextualBandit, data: PreferenceCounts, objective: Any) -> tuple[float, float]:
    """Solve again without each single pair, by `solve` on a new data set, and score that pair; mean and SE."""
    x, w, lost = data.to_pairs()
    scores = []
    for i in range(len(x)):
        keep = np.arange(len(x)) != i
        rest = PreferenceCounts.from_pairs(x[keep], w[keep], lost[keep], num_prompts=1, num_responses=10)
        r = solve(problem, rest, objective, method="newton").reward
        scores.append(np.logaddexp(0.0, r[0, lost[i]] - r[0, w[i]]))
    return float(np.mean(scores)), float(np.std(scores, ddof=1) / np.sqrt(len(scores)))


def test_leave_one_out_leaves_each_pair_out() -> None:
    """K solves, weighted by counts, against N solves pair by pair."""
    problem, data = skewed(4, 40)
    assert data.count.max() > 1  # or the weights would not matter
    frame = advise(data, problem, betas=[0.2], etas=[0.1], split="leave_one_out", rng=0).to_frame()
    assert list(frame["eta"]) == [0.0, 0.1]
    for objective, row in zip((DPO(beta=0.2), RPO(beta=0.2, eta=0.1)), frame.itertuples(), strict=True):
        mean, error = held_out_by_brute_force(problem, data, objective)
        assert row.held_out == pytest.approx(mean, abs=1e-5)
        assert frame["held_out/se"][row.Index] == pytest.approx(error, abs=1e-5)


def test_rows_say_what_solve_says() -> None:
    """Terms, KL and distances of a row against a solution from the other solver."""
    problem, data = skewed(5)
    row = advise(data, problem, betas=[0.2], etas=[0.1], split="none", rng=0).row
    solution = solve(problem, data, RPO(beta=0.2, eta=0.1), method="newton")
    zero = solve(problem, data, DPO(beta=0.2), method="newton")
    loss, terms = solution.saddle.loss(solution.logps)
    assert row["loss/preference"] == pytest.approx(terms.preference, abs=1e-6)
    assert row["loss/sft"] == pytest.approx(terms.sft, abs=1e-5)
    assert row["loss/preference"] + row["loss/sft_weighted"] == pytest.approx(loss, abs=1e-7)
    assert row["tv/zero"] == pytest.approx(0.5 * np.abs(solution.policy - zero.policy).sum(), abs=1e-5)
    assert row["tv/base"] == pytest.approx(0.5 * np.abs(solution.policy - solution.saddle.base).sum(), abs=1e-5)
    # At the reference p = 1/2; the two gradients in the logits by hand.
    wins = data.wins()[0] / data.n
    preference = 0.2 * 0.5 * (wins.sum(axis=1) - wins.sum(axis=0))
    sft = 0.1 * 0.2 * (wins.sum(axis=1) - 0.1)
    share = np.abs(sft).sum() / (np.abs(sft).sum() + np.abs(preference).sum())
    assert row["gradient_share/reference"] == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("eta", "word"), [(1e-8, "negligible"), (100.0, "dominates"), (0.05, "")])
def test_warnings_fire_where_they_should(eta: float, word: str) -> None:
    problem, data = skewed(6)
    advice = advise(data, problem, etas=[eta], split="none", rng=0)
    assert advice.eta == eta and "nearest given" in advice.message
    if word:
        assert advice.row["regime"] == word and any(word in warning for warning in advice.warnings)
    else:
        assert advice.warnings == () and advice.row["regime"] == "active"
    assert (advice.row["tv/zero"] < NEGLIGIBLE_TV) == (word == "negligible")
    assert (advice.row["tv/base"] < DOMINATED_TV) == (word == "dominates")


def test_a_warning_names_what_would_do() -> None:
    """A ball so wide that the theorem's eta is 1e-9: the warning gives the grid's etas that do something."""
    problem = instances.random(prompts=2, arms=5, features=3, reward_bound=1.9, rng=3)
    data = problem.sample_preferences(300, rng=1)
    assert problem.features is not None
    advice = advise(data, problem, reward_class=LinearBall(problem.features, 2.0), split="none", rng=0)
    frame = advice.to_frame()
    active = frame.loc[frame["regime"] == "active", "eta"]
    assert advice.eta < 1e-5 and advice.row["regime"] == "negligible" and len(active) > 0
    assert f"eta from {active.min():.2g} to {active.max():.2g} is neither negligible" in advice.warnings[0]


def test_a_costly_eta_is_reported() -> None:
    """eta = 3 on 20,000 pairs fits left-out pairs worse by many standard errors; the theorem's does not."""
    problem, data = skewed(7, 20_000)
    costly = advise(data, problem, etas=[3.0], rng=0)
    assert any("fitted worse" in warning for warning in costly.warnings)
    assert not any("fitted worse" in warning for warning in advise(data, problem, etas=[1e-4], rng=0).warnings)


def test_data_alone_are_enough() -> None:
    """No problem: a uniform reference over what occurs, two prompts, labels kept."""
    data = PreferenceCounts.from_pairs(
        [0, 0, 0, 1, 1, 1],
        [0, 1, 2, 0, 1, 1],
        [1, 2, 0, 1, 0, 2],
        num_prompts=2,
        num_responses=3,
        count=[9, 5, 2, 4, 7, 3],
    )
    advice = advise(data, bound=1.0, rng=0)
    assert advice.to_frame()["held_out"].notna().all() and advice.config["num_preferences"] == 30
    assert advice.held_out_eta in set(advice.to_frame()["eta"])
    assert repr(advise(data, bound=1.0, rng=0)) == repr(advice)
    assert repr(advise(data, bound=1.0, rng=1)) != repr(advice)  # control: the split does matter


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("rng", {"rng": None}),
        ("delta", {"delta": 1.5}),
        ("etas", {"etas": [-0.1]}),
        ("betas", {"betas": []}),
        ("split", {"split": "half"}),
        ("folds", {"folds": 1}),
        ("data", {"folds": 1000}),
        ("reward_class", {"reward_class": Unconstrained()}),
    ],
)
def test_refusals_name_the_argument(name: str, more: dict[str, Any]) -> None:
    problem, data = skewed(8)
    with pytest.raises(InvalidArgument) as caught:
        advise(data, problem, **{"rng": 0, **more})
    assert caught.value.name == name


def test_the_recommended_eta_is_no_worse_than_none() -> None:
    """30 fresh coverage_skew problems, N = 100: paired difference of gaps, recommended - eta = 0.

    Not above zero by more than two standard errors; the control eta = 3, which turns the policy into
    pi_base, is.
    """
    difference, control = [], []
    for child in np.random.SeedSequence(9).spawn(30):
        first, second = child.spawn(2)
        problem = instances.coverage_skew(rng=first)
        data = problem.sample_preferences(100, rng=second)
        advice = advise(data, problem, split="none", rng=0)
        gaps = [
            problem.suboptimality(solve(problem, data, objective, method="newton", reward_class=Box(3.0)).policy)
            for objective in (DPO(beta=advice.beta), advice.objective(), RPO(beta=advice.beta, eta=3.0))
        ]
        difference.append(gaps[1] - gaps[0])
        control.append(gaps[2] - gaps[0])

    def mean_and_error(values: list[float]) -> tuple[float, float]:
        return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))

    mean, error = mean_and_error(difference)
    assert mean <= 2 * error and error < 0.1
    mean, error = mean_and_error(control)
    assert mean > 2 * error
