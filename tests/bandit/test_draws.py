"""Many problems and data sets drawn at once: the statistics of single draws, rows of their seed alone."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from rpo.bandit import ContextualBandit, instances
from rpo.bandit.problems import Problems
from rpo.bandit.simulation import draws as module
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.draws import Streams
from rpo.bandit.simulation.engine import FailedRows, simulate
from rpo.bandit.simulation.grid import source
from rpo.core.objectives import DPO

LEVEL = 1e-3  # of a false alarm, each test; the seeds are fixed
UNITS: dict[str, dict[str, Any]] = {
    "coverage_skew": {"n": 30, "arms": 5, "prompts": 2, "label_noise": 0.1},
    "disconnected": {"n": 30, "bridge": 0.2},
    "linear_outside_span": {"n": 30, "prompts": 2, "leak": 0.1},
    "random": {"n": 30, "features": 2},
    "zhu_four_arms": {"n": 3000},
}


def cell(name: Any, unit: dict[str, Any], seeds: Any, root: int = 0, **options: Any) -> Cell:
    return Cell(source(name), unit, list(seeds), root, **options)


def numbers(problem: ContextualBandit) -> tuple[Any, ...]:
    tables = (problem.d0, problem.reference, problem.reward, problem.behavior, problem.features)
    return tuple(None if table is None else table.tobytes() for table in tables)


@pytest.mark.parametrize("name", UNITS)
def test_a_seeds_draw_does_not_depend_on_the_other_seeds(name: str) -> None:
    """The same bits alone, among its block and beside other blocks; control: another root, and another seed."""
    wanted = [3, 99, 100, 2**62 + 5]
    among: Any = cell(name, UNITS[name], [*range(150), 2**62 + 5]).draws
    together: Any = cell(name, UNITS[name], wanted).draws
    for seed, draw in zip(wanted, together, strict=True):
        (alone,) = cell(name, UNITS[name], [seed]).draws
        other = among[seed if seed < 150 else 150]
        for found in (alone, other):
            assert not isinstance(found, BaseException)
            assert numbers(found.problem) == numbers(draw.problem) and (found.data.wins() == draw.data.wins()).all()
        assert numbers(cell(name, UNITS[name], [seed]).problem(seed)) == numbers(draw.problem)
    (elsewhere,) = cell(name, UNITS[name], [3], root=1).draws
    assert (elsewhere.data.wins() != together[0].data.wins()).any()  # type: ignore[union-attr]
    tables = {draw.data.wins().tobytes() for draw in among}
    assert len(tables) > 140 or name == "zhu_four_arms"  # whose winners alone are drawn


def test_every_n_and_noise_has_the_same_problems_and_data_of_its_own() -> None:
    unit = UNITS["coverage_skew"]
    one, more, clean = (
        cell("coverage_skew", unit | change, range(5)) for change in ({}, {"n": 31}, {"label_noise": 0.0})
    )
    for a, b, c in zip(one.draws, more.draws, clean.draws, strict=True):
        assert numbers(a.problem) == numbers(b.problem) == numbers(c.problem)  # type: ignore[union-attr]
        assert a.problem.label_noise == 0.1 and c.problem.label_noise == 0.0  # type: ignore[union-attr]
        assert (b.data.n, a.data.n) == (31, 30)  # type: ignore[union-attr]
        assert (a.data.wins() != c.data.wins()).any()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", UNITS)
def test_one_problem_drawn_at_once_has_the_bits_of_one_drawn_alone(name: str) -> None:
    """Two constructions of the data: `sample_preferences` of the problem, and a table over problems."""
    problem: Any = cell(name, UNITS[name], [7], at_once=False).problem(7)
    many = Problems.repeated(problem, 1)
    assert many[0] is problem
    n = UNITS[name]["n"]
    alone = problem.sample_preferences(n, rng=np.random.default_rng(3)).wins()
    assert (many.sample_wins(n, np.random.default_rng(3))[0] == alone).all()
    assert many.best[0] == pytest.approx(problem.expected_reward(problem.greedy_policy()), rel=1e-14)


@pytest.mark.parametrize("name", sorted(set(UNITS) - {"zhu_four_arms"}))
def test_problems_drawn_at_once_are_distributed_as_those_drawn_alone(name: str) -> None:
    """Kolmogorov-Smirnov, 2,000 problems each, of r*, d0, pi_ref, behaviour and features; control: a wrong skew."""
    unit = UNITS[name]
    at_once, alone = (
        [draw.problem for draw in cell(name, unit, range(2000), at_once=given).draws]  # type: ignore[union-attr]
        for given in (True, False)
    )

    def apart(first: Any, second: Any, field: str) -> float:
        a, b = (np.array([np.ravel(getattr(one, field))[-1] for one in problems]) for problems in (first, second))
        return float(stats.ks_2samp(a, b).pvalue)

    for field in ("reward", "d0", "reference", "behavior", "features"):
        if getattr(alone[0], field) is not None:
            assert apart(at_once, alone, field) > LEVEL / 2, field
    # Neighbours in a block are drawn apart: the correlation of r* has standard error 1 / sqrt(1000).
    reward = np.array([one.reward.ravel()[0] for one in at_once])
    assert abs(np.corrcoef(reward[::2], reward[1::2])[0, 1]) < 3.3 / np.sqrt(1000)
    if name == "coverage_skew":
        wrong = [draw.problem for draw in cell(name, unit | {"skew": 1.3}, range(2000)).draws]  # type: ignore[union-attr]
        assert apart(wrong, alone, "behavior") < LEVEL / 2


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_data_drawn_at_once_have_the_model_s_probabilities(noise: float) -> None:
    """Pearson's statistic of each of 2,000 data sets against n d0 mu P, and of their sum; both tails.

    n = 2,000 on a problem of 2 prompts and 3 responses: 12 outcomes, 11 degrees of freedom each. The sum of statistics
    is 22,000 on average with variance 2 * 22,000 (1 + O(1 / n)). Controls: labels flipped at a rate 0.02 higher, and
    five of the data sets many times over.
    """
    problem = ContextualBandit(
        d0=[0.4, 0.6], reference=np.full((2, 3), 1 / 3), reward=[[0.0, 0.5, 1.0], [1.0, 0.2, 0.0]],
        behavior=[[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], label_noise=noise,
    )  # fmt: skip
    n, size = 2000, 2000
    expected = 2.0 * problem.d0[:, None, None] * problem.pair_distribution() * problem.preference_probability()
    expected = n * expected[:, ~np.eye(3, dtype=bool)].ravel()

    def drawn(given: ContextualBandit) -> Any:
        found: Any = cell(given, {"n": n}, range(size)).drawn[0][0]
        return found.wins[:, :, ~np.eye(3, dtype=bool)].reshape(size, -1)

    def tails(counts: Any) -> tuple[float, float]:
        pooled = float(stats.chi2.sf(((counts.sum(axis=0) - size * expected) ** 2 / (size * expected)).sum(), 11))
        each = float(((counts - expected) ** 2 / expected).sum())
        return pooled, float(2 * min(stats.chi2.sf(each, 11 * size), stats.chi2.cdf(each, 11 * size)))

    assert expected.sum() == pytest.approx(n) and (drawn(problem).sum(axis=1) == n).all()
    pooled, each = tails(drawn(problem))
    assert pooled > LEVEL / 2 and each > LEVEL / 2
    assert tails(drawn(instances.label_noise(problem, noise + 0.02)))[0] < 1e-9
    assert tails(np.repeat(drawn(problem)[:5], size // 5, axis=0))[1] < LEVEL / 2  # few data sets, many times over
    counts = drawn(problem)[:, 0]
    assert abs(np.corrcoef(counts[::2], counts[1::2])[0, 1]) < 3.3 / np.sqrt(size / 2)


def test_large_problems_are_drawn_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """X A^2 = 2 * 25 = 50 entries: with room for 500, ten at once."""
    unit = {"n": 30, "arms": 5, "prompts": 2}
    assert Streams(source("coverage_skew"), unit, 0).block == 100
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 500)
    assert Streams(source("coverage_skew"), unit, 0).block == 10
    drawn: Any = cell("coverage_skew", unit, [9, 10, 11]).draws
    (alone,) = cell("coverage_skew", unit, [10]).draws
    assert numbers(drawn[1].problem) == numbers(alone.problem) != numbers(drawn[2].problem)  # type: ignore[union-attr]


def test_what_is_not_the_packages_own_is_drawn_seed_by_seed() -> None:
    class Own(ContextualBandit):
        pass

    assert source("random").at_once and source(instances.zhu_four_arms).at_once
    tables: dict[str, Any] = {"d0": [1.0], "reference": [[0.5, 0.5]], "reward": [[1.0, 0.0]]}
    assert source(ContextualBandit(**tables)).at_once and not source(Own(**tables)).at_once

    def mine(*, rng: Any) -> ContextualBandit:
        return ContextualBandit(**tables)

    assert not source(mine).at_once


def test_a_block_that_cannot_be_drawn_is_rows() -> None:
    with pytest.warns(FailedRows, match=r"2 of 2 rows failed .*n: expected"):
        frame = simulate("coverage_skew", DPO(beta=1.0), {"n": [10**13]}, 2, rng=0)
    assert list(frame["status"]) == ["failed"] * 2 and frame["gap"].isna().all()
