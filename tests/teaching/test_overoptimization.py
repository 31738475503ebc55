"""Notebook 01's experiments against single solves, SciPy and arithmetic by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from rpo.bandit import sample_wins, solve
from rpo.bandit.data import PreferenceCounts
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO
from rpo.teaching import exercises
from rpo.teaching.lessons import overoptimization as lesson

ANSWERS = exercises("01")


def table() -> pd.DataFrame:
    """Two seeds, one method at two betas, the reference repeated at each beta as `simulate` does."""
    rows = []
    for seed, shift in ((0, 0.0), (1, 1.0)):
        for beta, kl, gold, proxy in ((1.0, 0.1, 1.2, 1.4), (0.1, 2.0, 0.8, 3.0)):
            rows.append(("DPO", beta, seed, kl, gold + shift, proxy, 10, 2.0 - gold))
            rows.append(("reference", beta, seed, 0.0, 1.0 + shift, 0.5, 10, 1.0))
    columns = ["method", "beta", "seed", "kl/reference", "reward/gold", "reward/proxy", "n", "gap"]
    return pd.DataFrame(rows, columns=columns)


def test_the_reference_is_where_the_responses_come_from() -> None:
    problem = lesson.skewed_problem(arms=5, skew=1.5, rng=3)
    assert np.array_equal(problem.reference, problem.behavior)
    assert problem.reference.max() / problem.reference.min() > 2


def test_estimates_are_those_of_single_solves() -> None:
    problem = lesson.skewed_problem(arms=4, rng=0)
    frame = lesson.estimates(problem, n=50, draws=3, rng=7)
    wins = sample_wins(problem, 50, 3, rng=7)
    reference, reward = problem.reference[0], problem.true_reward()[0]
    for draw, rows in frame.groupby("draw"):
        fitted = solve(problem, PreferenceCounts.from_wins(wins[draw]), DPO(beta=1.0), method="newton").reward[0]
        assert np.allclose(rows["estimate"], fitted - reference @ fitted, atol=1e-6)
        assert np.allclose(rows["reward"], reward - reference @ reward)
        assert np.allclose(rows["error"], rows["estimate"] - rows["reward"])
        assert rows["best"].to_numpy().tolist() == (np.arange(4) == fitted.argmax()).tolist()
        assert rows["compared"].sum() == pytest.approx(2.0)  # a pair shows two responses


def test_the_best_looking_is_overestimated() -> None:
    frame = lesson.estimates(lesson.skewed_problem(rng=0), n=100, draws=60, rng=0)
    assert frame.loc[frame["best"], "error"].mean() > frame["error"].mean() + 0.3
    title = lesson.winners_curse(frame).axes[1].get_title(loc="left")
    assert f"{frame.loc[frame['best'], 'error'].mean():+.2f}" in title


def test_curves_count_from_the_reference_and_gaps_are_averaged() -> None:
    means = lesson.mean_curves(table()).set_index("beta")
    assert means.loc[1.0, "reward/gold"] == pytest.approx(0.2) and means.loc[0.1, "reward/gold"] == pytest.approx(-0.2)
    assert means.loc[0.1, "reward/proxy"] == pytest.approx(2.5)
    gaps = lesson.mean_gaps(table()).set_index("series")
    assert gaps.loc["DPO", "mean"] == pytest.approx(1.0) and gaps.loc["reference", "mean"] == 1.0
    assert gaps.loc["DPO", "standard_error"] == pytest.approx(np.std([0.8, 1.2, 0.8, 1.2], ddof=1) / 2)


def test_draws_stand_beside_their_mean() -> None:
    figure = lesson.draws_and_mean(table(), shown=2)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["draw 0", "draw 1", "mean of 2 draws"]
    gold = figure.axes[2].get_lines()[0]
    assert gold.get_xdata().tolist() == [0.1, 2.0] and np.allclose(gold.get_ydata(), [0.2, -0.2])
    two = pd.concat([table(), table().replace("DPO", "RPO")])
    with pytest.raises(InvalidArgument, match="table: expected rows of one method"):
        lesson.draws_and_mean(two)


def test_at_a_glance_shows_the_means_at_the_chosen_beta() -> None:
    figure = lesson.at_a_glance(0.3, 40, 1.0, draws=4, seed=2)
    problem = lesson.skewed_problem(skew=1.0, rng=2)
    wins = sample_wins(problem, 40, 4, rng=2)
    moved = []
    for table_ in wins:
        policy = solve(problem, PreferenceCounts.from_wins(table_), DPO(beta=0.3), method="newton").policy
        moved.append(problem.expected_reward(policy) - problem.expected_reward(problem.reference))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == f"gold: {np.mean(moved):+.2f} at this beta"
    with pytest.raises(InvalidArgument, match="beta"):
        lesson.at_a_glance(0.0, 40, 1.0)


def test_answers_by_hand() -> None:
    weights = np.array([0.2 * math.exp(2), 0.8])
    assert ANSWERS["01.1"].accepts((weights / weights.sum())[0])
    assert ANSWERS["01.2"].accepts(2 * math.log(10))
    errors = np.random.default_rng(0).normal(size=(400_000, 2)) * 0.8 / math.sqrt(2)
    assert ANSWERS["01.4"].accepts(errors.max(axis=1).mean())


def test_the_best_beta_by_another_fit() -> None:
    """Maximum likelihood in the box by L-BFGS-B, gold of its Gibbs policies."""
    problem = lesson.skewed_problem(arms=10, skew=2.0, rng=33)
    wins = problem.sample_preferences(100, rng=33).wins()[0]

    def loss(r: np.ndarray) -> float:
        return float((wins * np.logaddexp(0.0, r[None, :] - r[:, None])).sum())

    starts = np.random.default_rng(0).uniform(0, 3, size=(4, 10))
    fitted = min((minimize(loss, r, bounds=[(0, 3)] * 10) for r in starts), key=lambda found: found.fun).x
    gold = {}
    for beta in (1.0, 0.5, 0.3, 0.2, 0.1, 0.05):
        tilt = problem.reference[0] * np.exp((fitted - 3) / beta)
        gold[beta] = tilt / tilt.sum() @ problem.true_reward()[0]
    assert ANSWERS["01.3"].accepts(max(gold, key=gold.get))  # type: ignore[arg-type]


def test_a_fixed_penalty_costs_most_in_the_end() -> None:
    gaps = dict.fromkeys(("DPO", "RPO"), 0.0)
    for seed in range(6):
        problem = lesson.skewed_problem(rng=100 + seed)
        pairs = problem.sample_preferences(10_000, rng=seed)
        for objective in (DPO(beta=0.05), RPO(beta=0.05, eta=0.05)):
            policy = solve(problem, pairs, objective, method="newton").policy
            gaps[type(objective).__name__] += problem.suboptimality(policy)
    assert gaps["RPO"] > 1.5 * gaps["DPO"] and ANSWERS["01.5"].accepts("RPO")
