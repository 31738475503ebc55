"""Mixtures: shares, order, ends, and that the same seed gives the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument
from rpo.llm.data import mix
from rpo.llm.data.report import SourceRow


def numbered(name: str, size: int) -> list[dict[str, Any]]:
    return [{"source": name, "k": k} for k in range(size)]


A, B = numbered("a", 5), numbered("b", 40)


def count(rows: list[Any], name: str) -> int:
    return sum(row["source"] == name for row in rows)


def test_all_exhausted_reads_everything_and_rereads_in_order() -> None:
    mixture = mix([(A, 1.0), (B, 1.0)], 0)
    rows = list(mixture)
    assert [row["k"] for row in rows if row["source"] == "b"] == list(range(40))
    small = [row["k"] for row in rows if row["source"] == "a"]
    assert len(small) > 5 and small == [k % 5 for k in range(len(small))]
    assert rows[-1] == B[-1]  # it stops with the last row that was missing
    assert mixture.drawn == [len(small), 40]


def test_first_exhausted_stops_with_the_shortest() -> None:
    rows = list(mix([(A, 1.0), (B, 1.0)], 0, strategy="first_exhausted"))
    assert rows[-1] == A[-1] and count(rows, "a") == 5 and count(rows, "b") < 40


def test_the_same_seed_is_the_same_order_at_every_pass() -> None:
    """The control is another seed."""
    mixture = mix([(A, 1.0), (B, 2.0)], 3)
    assert list(mixture) == list(mixture) == list(mix([(A, 1.0), (B, 2.0)], np.random.default_rng(3)))
    assert list(mixture) != list(mix([(A, 1.0), (B, 2.0)], 4))


def test_rows_come_in_proportion_to_the_weights() -> None:
    """3:1 over n = 4000 or more draws: the share is within 5 sd = 5 sqrt(3/16/n) < 0.035 of 0.75."""
    rows = list(mix([(numbered("a", 3000), 3.0), (numbered("b", 1000), 1.0)], 0))
    assert len(rows) >= 4000
    assert abs(count(rows, "a") / len(rows) - 0.75) < 0.035


def test_the_global_generator_is_not_touched() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    list(mix([(A, 1.0), (B, 1.0)], 0))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_rows_say_which_source_they_are_of() -> None:
    """By its place in the list and theirs in it; those that know already keep what they know."""
    known = SourceRow({"source": "c", "k": 0}, "c.jsonl, line 1")
    rows = list(mix([(A, 1.0), ([known], 1.0)], 0))
    assert rows == [dict(row) for row in rows]
    assert {row.origin for row in rows} == {f"sources[0], row {k}" for k in range(5)} | {"c.jsonl, line 1"}


@pytest.mark.parametrize(
    ("sources", "rng", "options", "name"),
    [
        ([], 0, {}, "sources"),
        ([(A, 0.0)], 0, {}, "sources.0. weight"),
        ([(A, 1.0), ([], 1.0)], 0, {}, "source"),
        ([(A, 1.0), (iter(B), 1.0)], 0, {}, "sources.1."),
        ([(A, 1.0)], None, {}, "rng"),
        ([(A, 1.0)], 0, {"strategy": "longest"}, "strategy"),
    ],
)
def test_bad_mixtures(sources: Any, rng: Any, options: Any, name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: "):
        mix(sources, rng, **options)
