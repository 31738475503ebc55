"""Each number of the check, worked out by hand on a few rows."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tokenizers_for_tests import CHATML, TOOLS, characters, chat_row, turn

from rpo.core.errors import InvalidArgument
from rpo.llm.data import PreparedPairs, check_pairs, prepare_pairs
from rpo.llm.data.check import length_bias, wilson


def text(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


ROWS = [
    text("pp", "aaaa", "b"),
    text("pp", "aaaa", "b"),  # repeats the first
    text("pp", "b", "aaaa"),  # contradicts both
    text("q", "c", "c"),  # identical
    text("q", "a</s>a", "~é"),  # an end token before the last; one token is unknown
    text("q", "a" * 30, "b"),  # truncated: 1 + 31 > 16
    text("q", "cut", "b", chosen_finish_reason="length"),
]


def test_counts() -> None:
    """Empty, missing and several ends count responses, the rest pairs. The truncated and the cut lack an end."""
    tokenizer = characters()
    check = check_pairs(prepare_pairs(ROWS, tokenizer, max_length=16), tokenizer)
    assert check.pairs == 7
    assert (check.duplicates, check.identical, check.contradictions) == (1, 1, 3)
    assert (check.truncated, check.missing_ends, check.several_ends, check.empty_responses) == (1, 2, 1, 0)
    assert (check.distinct_prompts, check.most_repeated_prompt, check.unknown_tokens) == (2, 4, 1)
    assert check.lengths["prompt"] == {"min": 1, "p10": 1, "median": 1, "p90": 2, "p99": 2, "max": 2}
    assert check.lengths["chosen"]["max"] == 15 and check.lengths["longest"]["max"] == 16
    bias = check.length_bias  # differences 3, 3, -3, 0, 1, 13, 1 (ends included, but where it was cut)
    assert (bias.chosen_longer, bias.rejected_longer, bias.equal) == (5, 1, 1)
    assert bias.mean_difference == pytest.approx(18 / 7)
    assert any("both ways round" in warning for warning in check.warnings)


def test_an_end_token_inside_a_text_that_was_cut_counts_too() -> None:
    """It is the only one, and still not the last: that response lacks an end and has one before its last token."""
    rows = [text("q", "a</s>b", "b", chosen_finish_reason="length")]
    check = check_pairs(prepare_pairs(rows, characters()), characters())
    assert (check.several_ends, check.missing_ends) == (1, 1)


def test_clean_data_warn_of_nothing() -> None:
    """The control of the warnings above."""
    tokenizer = characters(CHATML)
    rows = [chat_row(f"q{k}", "a" * (1 + k % 3), "b" * (1 + (k + 1) % 3), input="", query=f"q{k}") for k in range(12)]
    assert check_pairs(prepare_pairs(rows, tokenizer), tokenizer).warnings == ()


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([text("p", "a" * 30, "b")], {"max_length": 9}, "50.0% of the responses lost their end"),
        ([text("p", "a", "a")], {}, "1 pairs prefer a response to itself"),
        ([text("p", "a", "b"), chat_row()], {}, "several formats: {'chat': 1, 'text': 1}"),
        ([text("p", "a", "b")], {}, "the tokenizer has a chat template"),
        ([chat_row(chosen="a" * 9)] * 30, {}, "the longer response is chosen in 100%"),
        ([chat_row(rejected="a" * 9)] * 30, {}, "the shorter response is chosen in 100%"),
        ([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}], {}, "2 responses lack an end token"),
        (
            [{"question": "q", "chosen": "x y", "rejected": "x z"}],
            {},
            "both responses begin with, and nothing reads 'question'",
        ),
        ([text("p", "a", "b", input="q")], {}, "in the column 'prompt', and nothing reads 'input' (1 rows)"),
        ([text("p", "a", "b", Prompt="q")], {}, "nothing reads 'Prompt' (1 rows)"),
        ([text("p", "a", "b", history=[["q", "r"]])], {}, "nothing reads 'history' (1 rows)"),
        ([text("p", "a", "b", history=[{"role": "user", "content": "q"}])], {}, "nothing reads 'history' (1 rows)"),
    ],
)
def test_warnings(rows: list[Any], options: dict[str, Any], words: str) -> None:
    tokenizer = characters(CHATML)
    check = check_pairs(prepare_pairs(rows, tokenizer, **options), tokenizer)
    assert any(words in warning for warning in check.warnings)


def test_the_length_bias_against_scipy() -> None:
    """Differences 4, -1, 1, 0: ranks of 4 1 1 are 3 1.5 1.5, so (3 - 1.5 + 1.5) / 6 = 0.5. Then 50 random pairs.

    The rank-biserial correlation is 1 - 2 W / (n (n + 1) / 2) with W Wilcoxon's smaller rank sum.
    """
    assert length_bias(np.array([9, 3, 4, 5]), np.array([5, 4, 3, 5])).rank_correlation == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(1, 40, 50) + 4, rng.integers(1, 40, 50)
    found = length_bias(chosen, rejected)
    used = chosen != rejected
    smaller = stats.wilcoxon(chosen[used], rejected[used]).statistic
    total = used.sum() * (used.sum() + 1) / 2
    assert found.rank_correlation == pytest.approx(1 - 2 * smaller / total)
    assert found.share == pytest.approx((chosen > rejected).sum() / used.sum())
    none = length_bias(np.array([3]), np.array([3]))
    assert (none.share, none.low, none.high, none.rank_correlation) == (0.5, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (3, 10), (61, 100)])
def test_wilson_against_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_samples_show_line_breaks_the_boundary_and_the_end() -> None:
    tokenizer = characters(CHATML)
    row = chat_row("a\nb", "Yes", "No", rejected_finish_reason="length")
    (sample,) = check_pairs(prepare_pairs([row], tokenizer), tokenizer, samples=9).samples
    assert sample.splitlines() == [
        "row 0",
        r"  prompt   <|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n",
        "  chosen   Yes [end <|im_end|>]",
        "           boundary 'n' 't' '\\n' | 'Y' 'e' 's'",
        "  rejected No [no end]",
        "           boundary 'n' 't' '\\n' | 'N' 'o'",
    ]


def test_what_no_pair_shows_is_named() -> None:
    """Columns that nothing reads, fields the template left out, nulls, responses of several messages."""
    called = turn("assistant", "a", tool_calls=[{"function": {"name": "f", "arguments": {"x": None}}}])
    row = chat_row(source="web") | {
        "prompt": [turn("user", "q", name="Ann")],
        "chosen": [called, turn("tool", "1"), turn("assistant", "b")],
    }
    check = check_pairs(prepare_pairs([row], characters(TOOLS)), characters(TOOLS), samples=0)
    words = check.render()
    lines = [
        "columns that nothing reads: source (1)",
        "left out by the template: name (1)",
        "nulls left out of tool calls and tools: in all (1)",
        "  of several messages" + " " * 18 + "1  50.0%",
    ]
    for line in lines:
        assert line in words
    assert check.several_ends == 0 and not any("question" in warning for warning in check.warnings)


def test_long_samples_are_shortened() -> None:
    tokenizer = characters()
    (sample,) = check_pairs(
        prepare_pairs([text("p" * 900, "a" * 900, "b")], tokenizer, max_length=None), tokenizer
    ).samples
    assert max(map(len, sample.splitlines())) < 640


def test_the_report_in_words_and_in_json() -> None:
    tokenizer = characters()
    prepared = prepare_pairs([*ROWS, text("p", "", "b")], tokenizer, on_refused="drop")
    check = check_pairs(prepared, tokenizer, samples=2)
    assert json.loads(json.dumps(check.to_dict()))["length_bias"]["equal"] == check.length_bias.equal
    words = check.render()
    assert words.startswith("8 rows, 7 pairs\n  refused: 1 (empty response)\n")
    assert "  occur both ways round                3  42.9%" in words
    assert "refusal: row 7, chosen" in words
    assert "  none: truncated," in words and not re.search(r"^  [a-z ]+ 0 +0\.0%$", words, flags=re.MULTILINE)
    assert len(check.samples) == 2 and check.samples[-1].startswith("row 6")


def test_token_ids_alone() -> None:
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}]
    (sample,) = check_pairs(prepare_pairs(rows, None)).samples
    assert "  rejected 4 5 [no end]" in sample
    with pytest.raises(InvalidArgument, match="^prepared: "):
        check_pairs(PreparedPairs([]))
