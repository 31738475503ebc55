"""Notebook 03's networks against pseudo-inverses of Laplacians."""

import math
from typing import Any

import numpy as np
import pytest

from rpo.bandit import instances
from rpo.core.errors import InvalidArgument
from rpo.teaching import exercises
from rpo.teaching.lessons import electrical as lesson

ANSWERS = exercises("03")
CHAIN = np.array([[0, 40, 0, 0, 0], [40, 0, 30, 0, 0], [0, 30, 0, 6, 0], [0, 0, 6, 0, 3], [0, 0, 0, 3, 0]], dtype=float)
POLICY, BASE = np.array([0, 0, 0, 0, 1.0]), np.array([0.7, 0.2, 0.1, 0, 0])


def resistance(weights: Any, p: Any, q: Any) -> float:
    """(p - q)' L^+ (p - q), L the Laplacian."""
    table, current = np.asarray(weights, dtype=float), np.asarray(p, dtype=float) - np.asarray(q, dtype=float)
    return float(current @ np.linalg.pinv(np.diag(table.sum(axis=1)) - table) @ current)


def with_more(pair: str, extra: float) -> np.ndarray:
    a, b = ("ABCDE".index(letter) for letter in pair.split("-"))
    table = CHAIN.copy()
    table[[a, b], [b, a]] += extra
    return table


def test_pairs_are_drawn_in_proportion() -> None:
    problem = lesson.compared([[0, 1, 0], [1, 0, 3], [0, 3, 0]], reward=[0, 1, 2])
    pairs = problem.pair_distribution()[0]
    assert pairs[0, 1] == pairs[1, 0] == pytest.approx(1 / 8) and pairs[1, 2] == pytest.approx(3 / 8)
    assert problem.response_labels == ("A", "B", "C")
    with pytest.raises(InvalidArgument, match="symmetric"):
        lesson.compared([[0, 1], [2, 0]], reward=[0, 1])


def test_spreads_of_a_path_are_predicted() -> None:
    """Conductances 3/4 and 1/4 of N; sigma' is 1/4 for equals and sigma(1) sigma(-1) for a difference of one."""
    frame = lesson.spreads(lesson.compared([[0, 3, 0], [3, 0, 1], [0, 1, 0]], [1, 1, 0]), 4000, 300, rng=0)
    slope = math.e / (1 + math.e) ** 2
    variance = {"A-B": 4 / 3 / 4000 * 4, "B-C": 4 / slope / 4000}
    variance["A-C"] = variance["A-B"] + variance["B-C"]
    assert dict(zip(frame["pair"], frame["predicted"] ** 2, strict=True)) == pytest.approx(variance)
    assert frame["resistance"].tolist() == pytest.approx([4 / 3, 16 / 3, 4])
    # 300 draws give a standard deviation within 4.1 %: four of those.
    assert np.allclose(frame["measured"] / frame["predicted"], 1.0, atol=0.17)
    assert len(lesson.spread_figure(frame).axes[0].texts) == 3


def test_the_next_pair_by_pseudo_inverse() -> None:
    frame = lesson.next_pairs(CHAIN, POLICY, BASE, extra=10)
    assert len(frame) == 10 and frame["resistance"].is_monotonic_increasing
    for row in frame.itertuples():
        assert row.resistance == pytest.approx(resistance(with_more(row.pair, 10), POLICY, BASE))
        slope = (resistance(with_more(row.pair, 1e-6), POLICY, BASE) - resistance(CHAIN, POLICY, BASE)) / 1e-6
        assert slope == pytest.approx(-(row.voltage**2), rel=1e-3, abs=1e-6)
    figure = lesson.next_pair_figure(frame, resistance(CHAIN, POLICY, BASE))
    assert figure.axes[0].get_yticklabels()[0].get_text() == "A-E (0 so far)"
    with pytest.raises(InvalidArgument, match="connect"):
        lesson.next_pairs([[0, 1, 0], [1, 0, 0], [0, 0, 0]], [1, 0, 0], [0, 0, 1])


def test_labelling_by_rule() -> None:
    frame = lesson.labelling(CHAIN, POLICY, BASE, batch=10, rounds=2, draws=5, rng=0)
    curves = frame.pivot(index="labels", columns="rule", values="resistance")
    assert np.allclose(curves.loc[0], resistance(CHAIN, POLICY, BASE))
    assert curves.loc[10, "best pair"] == pytest.approx(resistance(with_more("A-E", 10), POLICY, BASE))
    weakest = with_more("D-E", 10)
    weakest[[2, 3], [3, 2]] += 10  # then C-D, 6 so far
    assert curves.loc[20, "weakest link"] == pytest.approx(resistance(weakest, POLICY, BASE))
    assert (curves["best pair"] <= curves["random pair"]).all()
    assert len(lesson.labelling_figure(frame).axes[0].get_lines()) == 3


def test_gaps_stand_beside_the_coverage_of_their_problem() -> None:
    frame = lesson.gaps_and_coverage([0.0, 0.05, 0.5], n=200, seeds=4, rng=1)
    assert len(frame) == 3 * 4 * 2 and (frame["gap"] >= 0).all()
    finite = np.isfinite(frame["coverage"])
    assert (finite == (frame["bridge"] > 0)).all()
    by_bridge = frame[finite].groupby(["seed", "bridge"])["coverage"].first().unstack()
    assert (by_bridge[0.05] > by_bridge[0.5]).all()
    # The same problem at every bridge: C of the first, from its conductances and chosen responses.
    generator = np.random.default_rng(1).spawn(4)[0].spawn(2)[0]
    problem = instances.disconnected(bridge=0.5, rng=generator)
    shares, reward = 2 * problem.pair_distribution()[0], problem.true_reward()[0]
    chosen = (shares / (1 + np.exp(reward[None, :] - reward[:, None]))).sum(axis=1)
    expected = math.sqrt(resistance(shares, np.arange(6) == reward.argmax(), chosen))
    assert by_bridge.loc[0, 0.5] == pytest.approx(expected)


def test_answers_by_pseudo_inverse() -> None:
    assert ANSWERS["03.1"].accepts(resistance([[0, 2, 0], [2, 0, 4], [0, 4, 0]], [1, 0, 0], [0, 0, 1]))
    assert ANSWERS["03.2"].accepts(resistance(1 - np.eye(3), [1, 0, 0], [0, 0, 1]))
    assert ANSWERS["03.3"].accepts(4 * 20 / 0.1**2)  # D-E is a bridge with one comparison in twenty
    star = np.zeros((4, 4))
    star[0, 1:] = star[1:, 0] = 1
    assert ANSWERS["03.4"].accepts(resistance(star, [0, 1, 0, 0], [0, 0, 0.5, 0.5]))
    after = {pair: resistance(with_more(pair, 10), POLICY, BASE) for pair in ("A-B", "C-D", "D-E", "A-E")}
    assert ANSWERS["03.5"].accepts(min(after, key=after.get))  # type: ignore[arg-type]
