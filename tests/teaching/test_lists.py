"""What lists cost and are worth: the costs by hand, and the study's numbers where theory gives them."""

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument
from rpo.teaching.lessons import lists as lesson


def test_costs_by_hand() -> None:
    """A ranking of four: four readings, log2(24) questions of a sort, six pairs. A pair: two, one, one."""
    assert [lesson.cost(4, kind) for kind in lesson.COSTS] == pytest.approx([4.0, np.log2(24.0), 6.0])
    assert [lesson.cost(2, kind) for kind in lesson.COSTS] == pytest.approx([2.0, 1.0, 1.0])
    with pytest.raises(InvalidArgument, match="^kind: "):
        lesson.cost(4, "money")


def test_lists_pay_by_reading_and_lose_by_pairs() -> None:
    """The information of a ranking of K equals is (K - H_K) / (A - 1): per reading it rises in K, per pair it falls.

    The errors' ratios are those of the information within a quarter, at 150 pairs and 40 draws of unequal rewards.
    """
    frame = lesson.at_equal_cost((2, 6), pairs=600, draws=40)
    error = frame.groupby(["cost", "K"])["error"].mean()
    information = {size: size - sum(1.0 / k for k in range(1, size + 1)) for size in (2, 6)}
    for kind in lesson.COSTS:
        expected = information[2] / lesson.cost(2, kind) * lesson.cost(6, kind) / information[6]
        assert error[kind, 6] / error[kind, 2] == pytest.approx(expected, rel=0.25)
    assert error["reading", 6] < 0.6 * error["reading", 2] and error["all pairs", 6] > 1.5 * error["all pairs", 2]


def test_uses_of_the_same_lists() -> None:
    frame = lesson.uses(draws=6)
    assert list(frame["use"]) == list(lesson.USES) and (frame["gap"] > 0).all()
    figure = lesson.cost_figure(lesson.at_equal_cost((2, 3), pairs=40, draws=3))
    assert len(figure.axes[0].get_legend().get_texts()) == len(lesson.COSTS)
