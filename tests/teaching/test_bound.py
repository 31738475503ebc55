"""Notebook 04's bounds against their formulas, its ledger against its sum, its rare arm against single solves."""

import math

import numpy as np
import pytest

from rpo.bandit import Box, sample_wins, solve
from rpo.bandit.coverage import coverage_coefficient
from rpo.bandit.data import PreferenceCounts
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO
from rpo.teaching import exercises
from rpo.teaching.lessons import bound as lesson

ANSWERS = exercises("04")
KAPPA = math.e / (1 + math.e) ** 2  # sigma(1) sigma(-1)


def hellinger(n: float) -> float:
    """2 C sqrt(3 L / (kappa N)) + N^-1/2 log 4, written out for four responses and R = 1."""
    problem = lesson.covered_problem()
    coverage = coverage_coefficient(problem, base=problem.reference).value
    cells = math.ceil(0.5 * 6 * (1 + math.e) * n)
    confidence = min(4 * math.log(cells), math.log(4) + 3 * math.log(cells)) + math.log(20)
    return 2 * coverage * math.sqrt(3 * confidence / (KAPPA * n)) + math.log(4) / math.sqrt(n)


def test_bounds_are_the_formulas() -> None:
    problem = lesson.covered_problem()
    table = lesson.bounds_table(problem, [100, 10_000]).pivot(index="n", columns="route", values="value")
    for n in (100, 10_000):
        assert table.loc[n, "hellinger"] == pytest.approx(hellinger(n))
    assert (table["hellinger"] < table["sharper"]).all() and (table["sharper"] < table["paper"]).all()


def test_measured_gaps_are_those_of_single_solves() -> None:
    problem = lesson.covered_problem()
    row = lesson.measured_gaps(problem, [200], ["hellinger"], draws=3, rng=5).iloc[0]
    wins = sample_wins(problem, 200, 3, rng=np.random.default_rng(5).spawn(1)[0])
    objective = RPO(beta=200**-0.5, eta=row["eta"], base="reference")
    gaps = [
        problem.suboptimality(
            solve(
                problem, PreferenceCounts.from_wins(table), objective, prompt_weights="population", method="newton"
            ).policy
        )
        for table in wins
    ]
    assert row["mean"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert row["standard_error"] == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(3), abs=1e-6)
    assert row["held"] == 1.0 and row["bound"] == pytest.approx(hellinger(200))


def test_the_ledger_adds_up_to_the_bound() -> None:
    problem = lesson.covered_problem()
    pairs = problem.sample_preferences(5000, rng=0)
    frame = lesson.ledger_frame(problem, pairs)
    assert set(frame["chain"]) == {"paper", "hellinger"} and frame["holds"].all()
    for chain, rows in frame.groupby("chain"):
        gap = rows["lhs"].iloc[0]
        assert gap + rows["slack_reward"].sum() == pytest.approx(lesson.bound_of(problem, 5000, chain).value, rel=1e-6)


def test_curves_say_where_they_begin_to_speak() -> None:
    labels = [text.get_text() for text in lesson.bound_curves(1.0, 1.0, 4).axes[0].get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels] == ["paper", "sharper", "hellinger"]
    starts = [float(label.rsplit(" ", 1)[1].rstrip("+")) for label in labels]
    assert starts == sorted(starts, reverse=True)
    assert "1e12+" in lesson.bound_curves(6.0, 5.0, 100).axes[0].get_legend().get_texts()[0].get_text()


def test_the_rare_arm_is_compared_once_and_its_resistance_is_n() -> None:
    problem = lesson.rare_arm(n=100)
    wins = problem.sample_preferences(100, rng=0).wins()[0]
    assert wins[2].sum() + wins[:, 2].sum() == 1 and wins.sum() == 100
    # Chosen: first and second in proportion to sigma(0.5) and sigma(-0.5), the rare one sigma(-1) / 100.
    lucky = 1 / (1 + math.e) / 100
    first = 0.99 / (1 + math.exp(-0.5))
    found = lesson.coverage_of_each(problem)
    # The current to the rare response crosses its own wire (conductance 1/100), and the other one.
    assert found["rare"] == pytest.approx(math.sqrt(100 * (1 - lucky) ** 2 + first**2 / 0.99))
    assert found["first"] == pytest.approx(math.sqrt(100 * lucky**2 + (1 - first) ** 2 / 0.99))
    assert lesson.rare_arm(n=10, rare="best").greedy_policy()[0].tolist() == [0, 0, 1]
    with pytest.raises(InvalidArgument, match="rare"):
        lesson.rare_arm(n=10, rare="median")


def test_luck_is_what_greedy_loses_to() -> None:
    frame = lesson.partial_coverage([20_000], "bad", draws=60, rng=3).set_index("series")
    problem = lesson.rare_arm(n=20_000)
    wins = sample_wins(problem, 20_000, 60, rng=np.random.default_rng(3).spawn(1)[0])
    lucky = wins[:, 0, 2, 1].mean()
    assert 0.1 < lucky < 0.45
    assert frame.loc["greedy", "mean"] == pytest.approx(1.5 * lucky)  # r* = 1.5 against 0
    assert frame.loc["DPO", "mean"] == pytest.approx(1.5 * lucky, rel=0.02)
    one = solve(
        problem,
        PreferenceCounts.from_wins(wins[int(wins[:, 0, 2, 1].argmax())]),
        RPO(beta=20_000**-0.5, eta=20_000**-0.5),
        reward_class=Box(2.0),
        method="newton",
    )
    assert problem.suboptimality(one.policy) < 0.01 and frame.loc["RPO", "mean"] < 0.01
    figure = lesson.pessimism_figure({"one": frame.reset_index(), "two": frame.reset_index()})
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_the_price_of_pessimism() -> None:
    frame = lesson.partial_coverage([20_000], "best", draws=40, rng=3).set_index("series")
    assert frame.loc["RPO", "mean"] == pytest.approx(0.5, abs=0.01)  # the best covered response: 0.5 of 1
    assert frame.loc["greedy", "mean"] < 0.4


def test_answers_by_hand() -> None:
    assert ANSWERS["04.1"].accepts(math.e)
    assert ANSWERS["04.2"].accepts(4)
    assert ANSWERS["04.3"].accepts(min(n for n in (1000, 2000, 5000, 10_000, 20_000) if hellinger(n) < 1))
    problem = lesson.covered_problem()
    frame = lesson.ledger_frame(problem, problem.sample_preferences(30_000, rng=8), ["hellinger"])  # other data
    assert ANSWERS["04.4"].accepts(frame.sort_values("slack_reward")["name"].iloc[-1])
    assert ANSWERS["04.5"].accepts("RPO")
