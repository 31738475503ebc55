"""Rows made of rows: each transform by hand on a few rows, its counts, and what the trainers read of it."""

from __future__ import annotations

import json
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from tokenizers_for_tests import CHATML, characters, turn

from rpo.commands.data_source import DataSource, load
from rpo.core.errors import InvalidArgument
from rpo.llm.data import (
    RefusedRow,
    agreed,
    agreement,
    best_by_direction,
    binarize,
    controlled,
    prepare_pairs,
    read_preference,
    reward_augmented,
    singles,
    ultrafeedback,
    with_condition,
)
from rpo.llm.data.responses import response_rows


def completion(text: str, overall: float, **ratings: Any) -> dict[str, Any]:
    annotations = {name: {"Rating": rating, "Rationale": "..."} for name, rating in ratings.items()}
    return {"model": f"m-{text}", "response": text, "annotations": annotations, "overall_score": overall}


ULTRA = {
    "source": "evol_instruct",
    "instruction": "Say it.",
    "models": ["m-a", "m-b", "m-c"],
    "completions": [
        completion("a", 10.0, helpfulness="1", honesty="N/A", truthfulness="2"),  # 10 where 1 was meant
        completion("b", 7.5, helpfulness="4", honesty="5", truthfulness="3"),
        completion("c", 8.0, helpfulness="N/A", honesty="N/A", truthfulness="N/A"),
    ],
}
CODE = {
    "instruction": "Sort it.",
    "preference": "readability",
    "responses": [{"model": "x", "response": "a"}, {"model": "y", "response": "b"}, {"model": "z", "response": "c"}],
    "annotations": [  # in another order
        {"model": "y", "rating": "5", "rationale": "..."},
        {"model": "x", "rating": "N/A", "rationale": "..."},
        {"model": "z", "rating": "2", "rationale": "..."},
    ],
}


# --- UltraFeedback ----------------------------------------------------------------------------------


def test_aspects_to_one_score() -> None:
    """a: (1 + 2) / 2; b: (4 + 5 + 3) / 3; c has no rating. The overall score has a first, which is the known error."""
    (row,) = ultrafeedback([ULTRA])
    assert row["prompt"] == [turn("user", "Say it.")] and row["responses"] == ["a", "b", "c"]
    assert row["scores"] == [1.5, 4.0, None]
    assert row["aspects"] == {"helpfulness": [1, 4, None], "honesty": [None, 5, None], "truthfulness": [2, 3, None]}
    record = read_preference(row, 0, lists=True, scores=True)
    assert [one.content[0]["content"] for one in record.responses] == ["b", "a"]
    assert (record.scores, record.unscored) == ((4.0, 1.5), 1)
    (wrong,) = ultrafeedback([ULTRA], score="overall_score")
    assert wrong["scores"] == [10.0, 7.5, 8.0]
    assert next(iter(binarize([wrong])))["chosen"] == "a"
    assert next(iter(binarize([row])))["chosen"] == "b"


def test_code_ultrafeedback_rates_by_model() -> None:
    for score in ("aspects", "overall_score"):
        (row,) = ultrafeedback([CODE], score=score)
        assert (row["responses"], row["scores"]) == (["a", "b", "c"], [None, 5.0, 2.0])
    assert row["aspects"] == {"readability": [None, 5.0, 2.0]}
    assert [pair["rejected"] for pair in binarize(ultrafeedback([CODE]))] == ["c"]


def test_rows_that_are_not_rated_are_refused_or_counted() -> None:
    plain = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
    with pytest.raises(RefusedRow, match=r"row 1, completions: expected an instruction and completions with annot"):
        list(ultrafeedback([ULTRA, plain]))
    rows = ultrafeedback([ULTRA, plain, "train", CODE], on_refused="drop")
    assert len(list(rows)) == 2
    assert rows.report.to_dict() == {"rows": 4, "made": 2, "refused": 2, "dropped": {}}
    assert len(list(rows)) == 2 and rows.report.rows == 4  # a pass of its own


def test_a_recipe_names_the_rating_and_the_rule(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ultra.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (ULTRA, CODE)))
    lists = load(DataSource(source=str(file), ultrafeedback="aspects"), 0)
    assert [row["scores"] for row in lists] == [[1.5, 4.0, None], [None, 5.0, 2.0]]
    assert "2 rows gave 2 lists, refused 0" in capsys.readouterr().out
    pairs = load(DataSource(source=str(file), ultrafeedback="overall_score", binarize="all_pairs"), 0)
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [("a", "c"), ("a", "b"), ("c", "b"), ("b", "c")]


def test_all_pairs_leave_ties_out() -> None:
    """Scores 3, 1, 3, 2: of six pairs the two with 3 tie, and five are left, the better first."""
    rows = binarize([{"prompt": "p", "responses": list("abcd"), "scores": [3, 1, 3, 2]}], strategy="all_pairs")
    assert {(row["chosen"], row["rejected"]) for row in rows} == {
        ("a", "d"),
        ("a", "b"),
        ("c", "d"),
        ("c", "b"),
        ("d", "b"),
    }
    assert (rows.report.pairs, rows.report.tied_pairs, rows.report.ties) == (5, 1, 0)


# --- agreement --------------------------------------------------------------------------------------


def test_the_longest_chain_that_both_order_alike() -> None:
    """By hand, and against every subset of five; equal scores agree with nothing."""
    assert agreement([4, 3, 2, 1], [4, 3, 2, 1]) == [0, 1, 2, 3]
    assert agreement([4, 3, 2, 1], [1, 2, 3, 4]) == [0]
    assert agreement([4, 3, 2, 1], [3, 4, 2, 1]) == [0, 2, 3]
    assert agreement([2, 2], [2, 1]) == [0]
    for second in permutations(range(5)):
        chain = agreement([5, 4, 3, 2, 1], second)
        falls = [second[k] for k in chain]
        assert falls == sorted(falls, reverse=True) and chain == sorted(chain)
        longest = max(
            (bin(mask).count("1") for mask in range(32) if _falls([second[k] for k in range(5) if mask >> k & 1])),
        )
        assert len(chain) == longest
    with pytest.raises(InvalidArgument, match="^second: "):
        agreement([1, 2], [1])


def _falls(values: list[int]) -> bool:
    return all(a > b for a, b in pairwise(values))


def test_what_two_rankers_agree_on_is_wrong_less_often() -> None:
    """Each is wrong on a quarter of 20,000 pairs: 62.5 % are kept, of which 10 % are wrong; 5 sd are .017 and .014."""
    rng = np.random.default_rng(0)
    wrong = rng.uniform(size=(2, 20_000)) < 0.25
    rows = [
        {"prompt": "p", "responses": ["good", "bad"], "scores": [0, 1] if a else [1, 0], "b": [0, 1] if b else [1, 0]}
        for a, b in wrong.T
    ]
    kept = agreed(rows, "b")
    best = [row["responses"][0] for row in kept]
    assert abs(len(best) / 20_000 - 0.625) < 0.017
    assert abs(np.mean([word == "bad" for word in best]) - 0.1) < 0.014
    assert kept.report.dropped == {"disagreement": 20_000 - len(best)}
    # The assumption: rankers that are wrong on the same pairs agree on all of them.
    alike = agreed([row | {"b": row["scores"]} for row in rows], "b")
    assert abs(np.mean([row["responses"][0] == "bad" for row in alike]) - 0.25) < 0.016


# --- conditions -------------------------------------------------------------------------------------

PAIR = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "w")], "rejected": [turn("assistant", "l")]}
SCORED = PAIR | {"score_chosen": 9, "score_rejected": 8, "id": 3}


def test_reward_augmented_pairs_by_hand() -> None:
    """Goal 9: w above l; goal 8: l above w; both a squared gap of 1 apart. Without system messages it is the same."""
    for where in ("system", "prompt"):
        first, second = reward_augmented([SCORED], where=where, text="Score {goal:g}.")
        assert (first["chosen"], first["rejected"]) == (PAIR["chosen"], PAIR["rejected"])
        assert (second["chosen"], second["rejected"]) == (PAIR["rejected"], PAIR["chosen"])
        for row, goal in ((first, "9"), (second, "8")):
            system = [turn("system", f"Score {goal}."), turn("user", "q")]
            assert row["prompt"] == (system if where == "system" else [turn("user", f"Score {goal}.\n\nq")])
            assert (row["score_chosen"], row["score_rejected"], row["id"]) == (0.0, -1.0, 3)
    pairs = prepare_pairs(reward_augmented([SCORED]), characters(CHATML), scores=True)
    assert [pair.scores for pair in pairs] == [(0.0, -1.0)] * 2 and pairs[0].prompt_ids != pairs[1].prompt_ids


def test_reward_augmentation_of_cut_responses_ties_and_texts() -> None:
    cut = SCORED | {"rejected_finish_reason": "length"}
    first, second = reward_augmented([cut])
    assert first["rejected_finish_reason"] == second["chosen_finish_reason"] == "length"
    assert not first["chosen_finish_reason"] and not second["rejected_finish_reason"]
    rows = reward_augmented([SCORED | {"score_rejected": 9}, SCORED])
    assert len(list(rows)) == 2
    assert rows.report.to_dict() == {"rows": 2, "made": 2, "refused": 0, "dropped": {"ties": 1}}
    text = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 2, "rejected_score": 1}
    assert next(iter(reward_augmented([text], where="prompt", text="{goal}")))["prompt"] == "2.0\n\np"
    assert read_preference(next(iter(reward_augmented([text]))), 0, scores=True).kind == "chat"
    with pytest.raises(RefusedRow, match="score_chosen, score_rejected: expected finite numbers, the first larger"):
        list(reward_augmented([SCORED | {"score_rejected": 10}]))
    with pytest.raises(InvalidArgument, match=r"text: expected a text with \{goal\}"):
        reward_augmented([SCORED], text="Do well.")


def test_the_best_by_a_direction() -> None:
    """(0.6, 0.8): a 0.6 * 5 + 0.8 * 1 = 3.8, b 0.6 + 4 = 4.6; (1, 0) prefers a; c lacks a rating."""
    row = {
        "prompt": "p",
        "responses": ["a", "b", "c"],
        "aspects": {"help": [5, 1, 5], "truth": ["1", 5, "N/A"]},
        "id": 1,
    }
    (made,) = best_by_direction([row], [{"help": 3, "truth": 4}], rng=0, where="prompt")
    assert made == {"id": 1, "prompt": "Weigh the answer by 60 help, 80 truth.\n\np", "completion": "b"}
    (made,) = best_by_direction([row], [{"help": 2.0, "truth": 0.0}], rng=0)
    assert (made["completion"], made["prompt"][0]["role"]) == ("a", "system")
    rows = best_by_direction([row] * 200, [{"help": 1}, {"truth": 1}], rng=0)
    drawn = [one["completion"] for one in rows]
    assert 65 < drawn.count("a") < 135 and list(rows) == list(rows)  # 5 sd are 35
    empty = best_by_direction([row | {"aspects": {"help": [None] * 3}}], [{"help": 1}], rng=0)
    assert list(empty) == [] and empty.report.dropped == {"unrated": 1}
    with pytest.raises(RefusedRow, match="expected 3 ratings in each of honesty"):
        list(best_by_direction([row], [{"honesty": 1}], rng=0))
    with pytest.raises(InvalidArgument, match=r"directions\[0\]: expected weights by aspect, not all zero"):
        best_by_direction([row], [{"help": 0}], rng=0)
    assert len(list(best_by_direction(ultrafeedback([ULTRA]), [{"helpfulness": 1}], rng=0))) == 1


def test_control_texts_for_pairs_and_labels() -> None:
    rows = controlled([PAIR, {"prompt": "p", "completion": "c", "label": 0}], good="+", bad="-")
    good, bad, labelled = rows
    assert (good["prompt"][0], good["completion"]) == (turn("system", "+"), PAIR["chosen"])
    assert (bad["prompt"][0], bad["completion"]) == (turn("system", "-"), PAIR["rejected"])
    assert labelled == {"prompt": [turn("system", "-"), turn("user", "p")], "completion": "c"}
    learnt = prepare_pairs(response_rows(list(rows), "chosen"), characters(CHATML))
    assert len(learnt) == 3 and rows.report.made == 3


def test_lists_as_single_responses_with_advantages() -> None:
    """Scores 3, 1, 2 less their mean of 2."""
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [3, 1, None, 2], "id": 7}
    rows = singles([row])
    assert [(one["completion"], one["score"], one["id"]) for one in rows] == [
        ("a", 1.0, 7),
        ("d", 0.0, 7),
        ("b", -1.0, 7),
    ]
    assert rows.report.dropped == {"unscored": 1}
    assert [one["score"] for one in singles([row], centred=False)] == [3.0, 2.0, 1.0]
    (first, *_) = prepare_pairs(rows, characters(), unpaired=True, scores=True)
    assert (first.label, first.scores, len(first.own)) == (None, (1.0,), 1)


def test_why_a_response_ended_stays_with_it() -> None:
    """Of responses a (cut) and b: in pairs, singles, agreements, the best by a direction, and lists themselves."""
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "responses_finish_reason": ["length", "stop"]}
    (pair,) = binarize([row])
    assert (pair["chosen_finish_reason"], pair["rejected_finish_reason"]) == ("stop", "length")
    assert [one["completion_finish_reason"] for one in singles([row])] == ["stop", "length"]
    (chain,) = agreed([row | {"second": [3, 4]}], "second")
    assert (chain["responses"], chain["responses_finish_reason"]) == (["b", "a"], ["stop", "length"])
    (best,) = best_by_direction([row | {"aspects": {"x": [5, 1]}}], [{"x": 1}], rng=0)
    assert best["completion_finish_reason"] == "length"
    assert [response.cut for response in read_preference(row, 0, lists=True).responses] == [False, True]
    with pytest.raises(RefusedRow, match="responses_finish_reason .* for 2 responses"):
        read_preference(row | {"responses_finish_reason": ["stop"]}, 0, lists=True)


def test_a_condition_joins_what_is_there() -> None:
    system, user = turn("system", "Be kind."), turn("user", "q")
    assert with_condition([system, user], "C") == [turn("system", "C\n\nBe kind."), user]
    assert with_condition([system, user], "C", where="prompt") == [system, turn("user", "C\n\nq")]
    assert with_condition([user], "C") == [turn("system", "C"), user]
    assert with_condition("q", "C") == [turn("system", "C"), user]
    with pytest.raises(InvalidArgument, match="prompt: expected a user message"):
        with_condition([system], "C", where="prompt")
    ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "score_chosen": 2, "score_rejected": 1}
    with pytest.raises(RefusedRow, match="row 0, prompt_ids: expected texts or messages"):
        list(reward_augmented([ids]))
