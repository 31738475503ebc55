"""Curves along beta against limits known in closed form."""

import numpy as np
import pytest

from rpo.bandit import Box, instances
from rpo.compare import Comparison
from rpo.compare.curves import beta_path, coverage_skew_curves, mean_and_error

BETAS = np.array([1e4, 0.5, 0.02])


def test_a_huge_beta_stays_at_the_reference_and_a_small_one_is_nearly_greedy_on_the_proxy() -> None:
    problem = instances.coverage_skew(arms=5, rng=0)
    data = problem.sample_preferences(10_000, rng=1)
    rows = beta_path(problem, data, (0.0, 0.1), BETAS, reward_class=Box(3.0))
    assert [(row["beta"], row["eta"]) for row in rows] == [(b, e) for b in BETAS for e in (0.0, 0.1)]
    assert all(row["certified"] == 1.0 for row in rows)
    for row in rows[:2]:
        assert row["kl/reference"] <= 1e-6
        assert row["reward/gold"] == pytest.approx(problem.expected_reward(problem.reference), abs=1e-3)
    # plenty of data: the plug-in at beta = 0.02 takes the best arm
    assert rows[4]["reward/gold"] == pytest.approx(problem.reward.max(), abs=0.05)


def test_the_proxy_of_the_plug_in_policy_grows_as_beta_falls_and_bounds_the_pessimists(comparison: Comparison) -> None:
    """The plug-in maximises proxy - beta KL, so along falling beta its proxy rises; at the same beta
    no policy of equal or smaller KL has a larger proxy."""
    plug_in = [row for row in comparison.curves if row["eta"] == 0.0]
    proxy = [row["reward/proxy"] for row in plug_in]
    assert (np.diff(proxy) >= -1e-9).all()
    for greedy, careful in zip(plug_in, [row for row in comparison.curves if row["eta"] > 0], strict=True):
        assert (
            careful["reward/proxy"] - careful["beta"] * careful["kl/reference"]
            <= greedy["reward/proxy"] - greedy["beta"] * greedy["kl/reference"] + 0.05
        )


def test_mean_and_error_by_hand() -> None:
    """Two draws with values 1 and 3: mean 2, standard error 1."""
    rows = [{"beta": 1.0, "eta": 0.0, "draw": d, "v": v} for d, v in ((0, 1.0), (1, 3.0))]
    mean, error = mean_and_error(rows, "v", eta=0.0)
    assert mean == pytest.approx([2.0])
    assert error == pytest.approx([1.0])


def test_draws_are_fresh_problems_and_repeat_with_the_seed() -> None:
    options = {"etas": (0.0,), "betas": np.array([0.5]), "n": 30, "draws": 3}
    rows = coverage_skew_curves(**options, rng=0, progress=False)
    assert len({row["reward/gold"] for row in rows}) == 3
    assert rows == coverage_skew_curves(**options, rng=0, progress=False)
