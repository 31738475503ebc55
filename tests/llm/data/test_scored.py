"""Scored lists to pairs, by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rpo.core.errors import InvalidArgument
from rpo.llm.data import RefusedRow, binarize, prepare_pairs


def scored(*scores: Any, **more: Any) -> dict[str, Any]:
    """Return a row whose completion k says "r{k}"."""
    return {"prompt": "p", "completions": [{"response": f"r{k}", "score": s} for k, s in enumerate(scores)], **more}


def test_best_vs_worst_counts_what_it_drops() -> None:
    """Rows: a pair; all equal; one score only, two missing; a tie at the top, whose first is taken."""
    rows = [scored(2, 5, 1.5, 4, id=9), scored(3, 3, 3), scored(1, "N/A", None), scored("4", 1, 4, float("nan"))]
    pairs = binarize(rows)
    assert list(pairs) == [
        {"id": 9, "prompt": "p", "chosen": "r1", "rejected": "r2", "score_chosen": 5.0, "score_rejected": 1.5},
        {"prompt": "p", "chosen": "r0", "rejected": "r1", "score_chosen": 4.0, "score_rejected": 1.0},
    ]
    counts = {"rows": 4, "pairs": 2, "ties": 1, "too_few": 1, "unscored": 3, "refused": 0, "tied_pairs": 0}
    assert pairs.report.to_dict() == counts


def test_best_vs_random_draws_among_the_lower_ones() -> None:
    """Scores 1 4 4 3 2: r1 against r0, r3 or r4 and never r2; 600 draws leave each within 5 sd (58) of 200."""
    pairs = binarize([scored(1, 4, 4, 3, 2)] * 600, strategy="best_vs_random", rng=0)
    rows = list(pairs)
    assert {row["chosen"] for row in rows} == {"r1"}
    counts = Counter(row["rejected"] for row in rows)
    assert set(counts) == {"r0", "r3", "r4"}
    assert all(abs(count - 200) < 58 for count in counts.values())
    assert list(pairs) == rows  # the same at every pass
    assert list(binarize([scored(1, 4, 4, 3, 2)] * 600, strategy="best_vs_random", rng=1)) != rows


def test_a_rows_draw_does_not_depend_on_the_rows_before_it() -> None:
    rows = [scored(1, 2, 3, 4)] * 20
    draws = list(binarize(rows, strategy="best_vs_random", rng=0))
    with_ties = list(binarize([scored(1, 1), *rows[1:]], strategy="best_vs_random", rng=0))
    assert with_ties == draws[1:]


@pytest.mark.parametrize(
    "row",
    [
        {
            "instruction": "p",
            "completions": [{"response": "a", "overall_score": 7.0}, {"response": "b", "overall_score": 5}],
        },
        {"prompt": "p", "responses": ["a", "b"], "scores": [7, "5.0"]},
    ],
)
def test_the_ways_to_write_scores(row: dict[str, Any]) -> None:
    expected = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 7.0, "score_rejected": 5.0}
    assert list(binarize([row])) == [expected]


def test_pairs_as_messages_go_on_to_be_prepared() -> None:
    (row,) = binarize([scored(1, 2)], conversational=True)
    assert row["prompt"] == [{"role": "user", "content": "p"}]
    assert (row["chosen"], row["rejected"]) == tuple([{"role": "assistant", "content": f"r{k}"}] for k in (1, 0))
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}]
    from tokenizers_for_tests import characters

    assert len(prepare_pairs(binarize(rows), characters())) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p"},
        {"completions": [{"response": "a", "score": 1}]},
        {"prompt": "p", "completions": "a"},
        {"prompt": "p", "completions": [{"score": 1}]},
        {"prompt": "p", "responses": ["a"], "scores": [1, 2]},
        {"prompt": "p", "completions": float("nan")},
        "train",
    ],
)
def test_rows_that_are_not_scored(row: Any) -> None:
    with pytest.raises(RefusedRow, match="row 1, completions"):
        list(binarize([scored(1, 2), row]))
    pairs = binarize([scored(1, 2), row, scored(1, 2)], on_refused="drop")
    assert len(list(pairs)) == 2 and (pairs.report.rows, pairs.report.refused) == (3, 1)


def test_bad_arguments() -> None:
    with pytest.raises(InvalidArgument, match="^rng: "):
        binarize([scored(1, 2)], strategy="best_vs_random")
    with pytest.raises(InvalidArgument, match="^strategy: "):
        binarize([scored(1, 2)], strategy="best")
    with pytest.raises(InvalidArgument, match="^rows: "):
        binarize(iter([scored(1, 2)]))
