"""Filters by rank: their weights by hand, their law by enumeration, and agreement on what they keep."""

import itertools
import math

import numpy as np
import pytest

from rpo.bandit import filters
from rpo.core.errors import InvalidArgument


def test_weights_by_hand() -> None:
    """Of scores 3, 1, 2, and of 2, 2, 1, where the two best share; where all are equal every filter keeps all."""
    expected = {
        "all": ([1 / 3] * 3, [1 / 3] * 3),
        "best": ([1, 0, 0], [0.5, 0.5, 0]),
        "best_random": ([2 / 3, 1 / 6, 1 / 6], [5 / 12, 5 / 12, 1 / 6]),
        "best_worst": ([0.5, 0.5, 0], [0.25, 0.25, 0.5]),
    }
    assert expected.keys() == filters.FILTERS.keys()
    for keep, rows in expected.items():
        found = filters.kept_weights([[3.0, 1.0, 2.0], [2.0, 2.0, 1.0], [5.0, 5.0, 5.0]], keep)
        assert found == pytest.approx(np.array([*rows, [1 / 3] * 3]), abs=1e-15), keep


@pytest.mark.parametrize("keep", filters.FILTERS)
def test_the_law_of_what_is_kept_by_enumeration(keep: str) -> None:
    """All 5^3 draws of three samples, two of the scores tied; one sample of zero mass is never drawn."""
    reference, scores = np.array([0.1, 0.2, 0.3, 0.4, 0.0]), np.array([1.0, 3.0, 3.0, 2.0, 9.0])
    law = np.zeros(5)
    for draw in itertools.product(range(5), repeat=3):
        drawn = np.array(draw)
        np.add.at(law, drawn, reference[drawn].prod() * filters.kept_weights(scores[drawn], keep))
    assert filters.kept_policy([reference], [scores], keep, n=3)[0] == pytest.approx(law, abs=1e-15)


def test_agreement_by_hand() -> None:
    """A squared correlation of one on a line, 1/4 for (0, 1, 2) against (0, 2, 1), NaN where the proxy is constant."""
    ones = np.ones(3)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [5.0, 3.0, 1.0], ones) == pytest.approx(1.0)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [0.0, 2.0, 1.0], ones) == pytest.approx(0.25)
    assert filters.proxy_agreement([0.0, 1.0, 2.0], [0.0, 2.0, 9.0], [1, 1, 0]) == pytest.approx(1.0)
    assert math.isnan(filters.proxy_agreement(ones, [0.0, 1.0, 2.0], ones))


def test_what_does_not_fit_is_refused_by_name() -> None:
    even = np.full((1, 2), 0.5)
    for match, ask in {
        "^keep": lambda: filters.kept_weights(even, "worst"),
        "^scores": lambda: filters.kept_weights([[1.0]], "best"),
        "^n:": lambda: filters.kept_policy(even, even, "best", n=1),
        "^reference": lambda: filters.kept_policy([0.5, 0.5], even, "best", n=2),
        "^weights": lambda: filters.proxy_agreement(even, even, [[0.0, 0.0]]),
        "^gold": lambda: filters.proxy_agreement(even, [0.5], even),
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            ask()
