"""Lists of responses with scores or ranks: every way to write them, ties and missing scores, the report."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers_for_tests import CHATML, characters, chat_row, turn

from rpo.llm.data import PreparedPairs, RefusedRow, check_pairs, load_preferences, prepare_pairs, read_preference
from rpo.llm.data.pairs import TokenizedGroup, TokenizedPair

USER = turn("user", "Hi")
# Three responses, b before c before a.
WRITTEN: dict[str, dict[str, Any]] = {
    "scores": {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 9.5, "2"]},
    "completions": {"prompt": "p", "completions": ["a", "b", "c"], "scores": np.array([1, 3, 2])},
    "ranks": {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [3, 1, 2]},
    "mappings": {
        "instruction": "p",
        "completions": [
            {"response": "a", "overall_score": 1.0, "model": "m"},
            {"content": "b", "score": 3},
            {"text": "c", "rating": 2},
        ],
    },
    "ranks in mappings": {
        "prompt": "p",
        "responses": [{"text": "a", "rank": 3}, {"text": "b", "rank": 1}, {"text": "c", "rank": 2}],
    },
    "in order": {"prompt": "p", "responses": ["b", "c", "a"]},
}


def read(row: Any, **options: Any) -> Any:
    return read_preference(row, 7, lists=True, **options)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_ways_to_write_a_list(name: str) -> None:
    record = read(WRITTEN[name], ranked=True)
    assert (record.kind, record.prompt, record.own, record.label) == ("text", "p", 3, None)
    assert [response.content for response in record.responses] == ["b", "c", "a"]
    assert not record.extra and not record.tied and record.unscored == 0
    order = (0, 1, 2) if name == "in order" else (1, 2, 0)
    column = "completions" if "completions" in WRITTEN[name] else "responses"
    assert record.columns == tuple(f"{column}[{k}]" for k in order)


def test_scores_come_with_the_responses_best_first() -> None:
    assert read(WRITTEN["scores"], scores=True).scores == (9.5, 2.0, 1.0)
    assert read(WRITTEN["scores"]).scores == ()
    for name in ("ranks", "in order"):
        with pytest.raises(RefusedRow, match=r"row 7, responses: expected scores, got their order alone"):
            read(WRITTEN[name], scores=True, ranked=True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "responses": ["No", "Yes"]},
        {"prompt": "Hi", "responses": [[turn("assistant", "No")], [turn("assistant", "Yes")]]},
        {"prompt": [USER], "responses": [turn("assistant", "No"), turn("assistant", "Yes")]},
        {"prompt": [USER], "responses": [[USER, turn("assistant", "No")], [USER, turn("assistant", "Yes")]]},
        {"prompt": [USER], "responses": [json.dumps([turn("assistant", word)]) for word in ("No", "Yes")]},
    ],
)
def test_messages(row: dict[str, Any]) -> None:
    record = read(row | {"scores": [1, 2]})
    assert (record.kind, record.prompt) == ("chat", [USER])
    assert [response.content for response in record.responses] == [
        [turn("assistant", "Yes")],
        [turn("assistant", "No")],
    ]


def test_ties_keep_the_order_of_the_row_and_missing_scores_are_left_out() -> None:
    row = {"prompt": "p", "responses": list("abcde"), "scores": [2, "N/A", 3, 2, None]}
    record = read(row, scores=True)
    assert [response.content for response in record.responses] == ["c", "a", "d"]
    assert (record.scores, record.tied, record.unscored) == ((3.0, 2.0, 2.0), True, 2)
    swapped = row | {"responses": list("dbcae")}  # the control: the tie follows the row
    assert [response.content for response in read(swapped).responses] == ["c", "d", "a"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "responses": ["a", "b"]}, "without scores or ranks.*ranked=True"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, r"scores \[1\] for 2 responses"),
        ({"prompt": "p", "responses": ["a", None], "scores": [1, 2]}, "a prompt and a list of completions"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "a prompt and a list of completions"),
        ({"prompt": "p", "responses": ["a", ""], "scores": [1, 2]}, r"responses\[1\]: expected a response with words"),
        ({"prompt": "p", "responses": ["a", 3], "scores": [1, 2]}, r"responses\[1\]: expected a string"),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, None]},
            "at least two responses with scores, got 1 of",
        ),
    ],
)
def test_refusals(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedRow, match=words):
        read(row)


def test_a_list_without_a_method_that_takes_it_names_the_remedy() -> None:
    with pytest.raises(RefusedRow, match=r"expected a column 'chosen'.*binarize makes pairs"):
        read_preference(WRITTEN["scores"], 0)


def test_a_single_scored_response() -> None:
    row = {"prompt": "p", "completion": "a", "score": "0.5"}
    record = read(row, unpaired=True, scores=True)
    assert (record.own, record.label, record.scores, record.extra) == (1, None, (0.5,), {})
    with pytest.raises(RefusedRow, match="score: expected a finite number"):
        read(row | {"score": "N/A"}, unpaired=True, scores=True)
    assert read(row | {"label": 1}, unpaired=True, scores=True).label is True


def test_groups_of_any_size_are_kept_as_they_are() -> None:
    groups = [
        TokenizedPair((1,), (2, 3), (4,), 0, base_ids=((9,),)),
        TokenizedGroup((1, 2), ((5,), (6, 7), (8,)), 1, base_ids=((9, 9),), scores=(3.0, 2.0, 2.0)),
        TokenizedGroup((3,), ((5,),), 2, base_ids=((1,),), label=True),
    ]
    prepared = PreparedPairs(groups)
    assert list(prepared) == groups
    assert [pair.rejected_ids for pair in prepared] == [(4,), (8,), ()]
    assert [len(pair.responses) for pair in prepared] == [3, 4, 2]


def test_all_rules_of_pairs_hold_for_lists() -> None:
    """One end of turn each, one truncation for all of a prompt, the same tokens as the pair of the same texts.

    The prompt is 32 tokens with its turns; the longest answer has 10 and its end, so that at most 36 cut all to 4.
    """
    tokenizer = characters(CHATML)
    row = {"prompt": [USER], "responses": ["n", "yes" * 3 + "!", "ok"], "scores": [1, 3, 2]}
    (group,) = prepare_pairs([row], tokenizer, lists=True)
    (pair,) = prepare_pairs([chat_row("Hi", "yes" * 3 + "!", "n")], tokenizer)
    assert group.prompt_ids == pair.prompt_ids and (group.own[0], group.own[2]) == pair.own
    assert len({ids[-1] for ids in group.own}) == 1
    limit = len(pair.prompt_ids) + 4
    short = prepare_pairs([row], tokenizer, lists=True, max_length=limit, max_prompt_length=limit - 4)
    assert [len(ids) for ids in short[0].own] == [4, 3, 2]
    assert (short.report.chosen_truncated, short.report.rejected_truncated) == (1, 0)


def test_the_report_and_the_check_count_what_lists_are(tmp_path: Any) -> None:
    """Sizes 3, 2, 3, 3: one tie, two responses without a score, one row of too few, one repeated backwards."""
    rows = [
        {"prompt": "p", "responses": ["aaaa", "b", "cc"], "scores": [3, 2, 1]},
        {"prompt": "p", "responses": ["aaaa", "b", "cc"], "scores": [1, 2, "N/A"]},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, None]},
        {"prompt": "q", "responses": ["a", "b", "a", "d"], "scores": [2, 2, 1, None]},
        {"prompt": "p", "responses": ["aaaa", "b", "cc"], "scores": [1, 2, 3]},
    ]
    file = tmp_path / "lists.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = characters()
    prepared = prepare_pairs(load_preferences(file), tokenizer, lists=True)  # on_refused is "error"
    report = prepared.report
    assert [len(group.own) for group in prepared] == [3, 2, 3, 3]
    assert (report.rows, report.pairs, report.refused) == (5, 4, {"too_few_scores": 1})
    assert (report.unscored, report.ties, report.identical) == (2, 1, 1)
    assert "row 2 (" in report.messages[0] and "at least two responses" in report.messages[0]
    check = check_pairs(prepared, tokenizer)
    assert (check.sizes, check.identical, check.contradictions, check.duplicates) == ({2: 1, 3: 3}, 1, 2, 0)
    assert check.lengths["best"]["max"] == 5 and check.lengths["others"]["median"] == 2
    assert check.length_bias is not None and (check.length_bias.chosen_longer, check.length_bias.equal) == (1, 1)
    text = check.render()
    assert "5 rows, 4 lists of 11 responses (1 of 2, 3 of 3)" in text
    assert "refused: 1 (too few scores)" in text
    assert "tied, in the order of the row        1  25.0%" in text
    assert "left out without a score             2" in text
    assert "2 lists occur in several orders" in text
    json.dumps(check.to_dict())


def test_lists_and_pairs_mix_but_not_with_labels() -> None:
    tokenizer = characters()
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert [len(g.own) for g in prepare_pairs([WRITTEN["scores"], pair], tokenizer, lists=True)] == [3, 2]
    alone = {"prompt": "p", "completion": "a", "label": True}
    with pytest.raises(RefusedRow, match="expected a pair, as in the first row"):
        prepare_pairs([WRITTEN["scores"], alone], tokenizer, lists=True, unpaired=True)


def test_lists_of_token_ids() -> None:
    row = {"prompt_ids": [1, 2], "responses_ids": [[3], [4, 5]], "scores": [1, 2]}
    (group,) = prepare_pairs([row], None, lists=True, scores=True)
    assert group == TokenizedGroup((1, 2), ((4, 5), (3,)), 0, scores=(2.0, 1.0))
