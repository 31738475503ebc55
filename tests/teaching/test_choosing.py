"""Rules for beta and eta are scored on draws that did not choose them, and the theorem's is the theorem's."""

import math

import numpy as np
import pandas
import pytest

from rpo import DPO, RPO
from rpo.bandit import simulate
from rpo.core.errors import InvalidArgument
from rpo.teaching.lessons import choosing

PARAMETERS = {"arms": [4], "reward_bound": [1.0]}
BETAS, ETAS, SEEDS = [0.1, 1.0], [0.01, 0.1, 1.0], 6


@pytest.fixture(scope="module")
def sweep() -> pandas.DataFrame:
    grid = {**PARAMETERS, "n": [20], "beta": BETAS, "eta": ETAS}
    return simulate("coverage_skew", RPO, grid, SEEDS, rng=3, proxy=False, progress=False)


@pytest.fixture(scope="module")
def compared(sweep: pandas.DataFrame) -> pandas.DataFrame:
    return choosing.rules(sweep, "coverage_skew", PARAMETERS, ns=[20], etas=ETAS, rng=3)


def of(compared: pandas.DataFrame, rule: str) -> pandas.DataFrame:
    return compared[compared["rule"] == rule].sort_values("seed")


def test_each_rule_has_its_beta_and_eta(compared: pandas.DataFrame) -> None:
    """By hand: eps = 1 / (6 (1 + e^R) N), margins within R = 1, N_eps = A ceil(R / (2 eps))^(A - 1) of four arms."""
    radius = 1.0 / (6.0 * (1.0 + math.e) * 20)
    covering = math.log(4) + 3 * math.log(math.ceil(1.0 / (2.0 * radius)))
    eta = (1.0 + math.e) ** -2 * math.sqrt(24.0 * (covering - math.log(0.05)) / 20)
    theorem = of(compared, "theorem's eta")
    assert theorem["eta"].to_numpy() == pytest.approx(eta)
    for rule in choosing.RULES[:4]:
        assert of(compared, rule)["beta"].to_numpy() == pytest.approx(20**-0.5)
    assert (of(compared, "eta = 0")["eta"] == 0.0).all()
    assert set(of(compared, "held-out likelihood")["eta"]) <= {0.0, *ETAS}


def test_no_penalty_is_dpo_on_the_same_draws(compared: pandas.DataFrame) -> None:
    grid = {**PARAMETERS, "n": [20], "beta": [20**-0.5]}
    plain = simulate("coverage_skew", DPO, grid, SEEDS, rng=3, proxy=False, progress=False)
    assert of(compared, "eta = 0")["gap"].to_numpy() == pytest.approx(plain.sort_values("seed")["gap"].to_numpy())


def test_hindsight_is_chosen_on_the_other_half(sweep: pandas.DataFrame, compared: pandas.DataFrame) -> None:
    table = {(row.seed, row.beta, row.eta): row.gap for row in sweep.itertuples()}
    for row in of(compared, choosing.RULES[-1]).itertuples():
        others = [seed for seed in range(SEEDS) if seed % 2 != row.seed % 2]
        mean = {(b, e): np.mean([table[seed, b, e] for seed in others]) for b in BETAS for e in ETAS}
        best = min(mean, key=lambda setting: mean[setting])
        assert (row.beta, row.eta) == best and row.gap == pytest.approx(table[(row.seed, *best)])


def test_the_table_pairs_the_excess() -> None:
    rows = [
        {"n": 10, "rule": rule, "seed": seed, "beta": 0.1, "eta": 0.0, "gap": gap}
        for rule, gaps in (("eta = 0", (0.5, 0.9)), (choosing.RULES[-1], (0.2, 0.4)))
        for seed, gap in enumerate(gaps)
    ]
    table = choosing.rules_table(pandas.DataFrame(rows)).set_index("rule")
    assert table.loc["eta = 0", "gap"] == pytest.approx(0.7)
    assert table.loc["eta = 0", "excess"] == pytest.approx(0.4)  # 0.3 and 0.5
    assert table.loc["eta = 0", "excess/se"] == pytest.approx(0.1)
    assert table.loc[choosing.RULES[-1], "excess"] == 0.0


def test_the_figure_has_every_rule_and_units(compared: pandas.DataFrame) -> None:
    figure = choosing.rules_figure(compared)
    left, right = figure.axes
    assert left.get_legend_handles_labels()[1] == list(choosing.RULES)
    assert right.get_legend_handles_labels()[1] == list(choosing.RULES[:-1])
    assert "log-odds" in left.get_ylabel() and "log-odds" in right.get_ylabel()


def test_an_n_that_was_not_swept_is_refused(sweep: pandas.DataFrame) -> None:
    with pytest.raises(InvalidArgument, match="ns: expected values of n in the sweep"):
        choosing.rules(sweep, "coverage_skew", PARAMETERS, ns=[21], etas=ETAS, rng=3)
