"""A simulated table becomes its figure: the numbers drawn are the table's means."""

import numpy as np
import pandas
import pytest

from rpo.bandit import simulate
from rpo.bandit.baselines import ReferencePolicy
from rpo.bandit.simulation.figures import draw
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO

GRID = {"n": [60], "beta": [1.0, 0.3, 0.1, 0.03], "eta": [0.05, 0.2], "arms": [4], "reward_bound": [2.0]}


@pytest.fixture(scope="module")
def table() -> pandas.DataFrame:
    return simulate("coverage_skew", [RPO, DPO, ReferencePolicy()], GRID, 12, rng=0)


def test_overoptimization_keeps_each_series_once_and_counts_from_the_reference(table: pandas.DataFrame) -> None:
    figure, data = draw(table, "overoptimization")
    assert set(data["method"]) == {"DPO", "RPO, eta = 0.05", "RPO, eta = 0.2"}
    assert len(figure.axes) == 3
    rows = table[(table["objective/name"] == "RPO") & (table["eta"] == 0.2) & (table["beta"] == 0.1)]
    anchor = table[table["objective/name"] == "ReferencePolicy"].drop_duplicates("seed").set_index("seed")
    moved = rows.set_index("seed")["reward/gold"] - anchor["reward/gold"]
    drawn = data[(data["method"] == "RPO, eta = 0.2") & (data["beta"] == 0.1)]
    assert drawn["reward/gold"].item() == pytest.approx(moved.mean(), abs=1e-12)
    assert drawn["seeds"].item() == 12


def test_gap_against_n_draws_means_and_standard_errors() -> None:
    table = simulate("coverage_skew", [RPO, DPO], GRID | {"n": [30, 300], "beta": [0.1]}, 10, rng=0, proxy=False)
    _, data = draw(table, "gap_against_n")
    row = data[(data["series"] == "DPO") & (data["n"] == 300)]
    gaps = table[(table["method"] == "DPO") & (table["n"] == 300) & (table["eta"] == 0.05)]["gap"]
    assert row["mean"].item() == pytest.approx(gaps.mean())
    assert row["standard_error"].item() == pytest.approx(gaps.std(ddof=1) / np.sqrt(10))


def test_uncertified_rows_are_left_out_and_counted(table: pandas.DataFrame) -> None:
    spoiled = table.copy()
    spoiled.loc[spoiled["eta"] == 0.2, "status"] = "inaccurate"
    number = int((spoiled["status"] == "inaccurate").sum())
    figure, data = draw(spoiled, "heatmap")
    assert set(data["eta"]) == {0.05}
    assert f"{number} rows not certified left out" in " ".join(text.get_text() for text in figure.texts) + str(
        figure.get_suptitle()
    )


def test_of_a_path_the_whole_seed_is_left_out(table: pandas.DataFrame) -> None:
    """One row of one method is not certified: every curve is then a mean over the other eleven seeds."""
    spoiled = table.copy()
    one = (spoiled["objective/name"] == "DPO") & (spoiled["seed"] == 5) & (spoiled["beta"] == 0.3)
    spoiled.loc[one, "status"] = "inaccurate"
    figure, data = draw(spoiled, "overoptimization")
    assert set(data["seeds"]) == {11}
    assert "arms = 4, reward_bound = 2, N = 60" in figure.get_suptitle()
    assert "1 seed(s) not certified everywhere left out" in figure.get_suptitle()


def test_a_table_without_what_the_figure_needs_is_refused(table: pandas.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match="kind: expected one of"):
        draw(table, "pie")
    with pytest.raises(InvalidArgument, match="table: expected rows of ReferencePolicy"):
        draw(table[table["objective/name"] != "ReferencePolicy"], "overoptimization")
    with pytest.raises(InvalidArgument, match="table: expected rows of RPO"):
        draw(table[table["objective/name"] == "DPO"], "heatmap")


def test_a_grid_over_the_instance_is_not_thinned_to_its_first_value(table: pandas.DataFrame) -> None:
    both = pandas.concat([table, table.assign(arms=5)])
    with pytest.raises(InvalidArgument, match=r"one value of every parameter of the instance, got arms = \[4, 5\]"):
        draw(both, "heatmap")
