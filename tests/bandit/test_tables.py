"""Reading preference files: every format and layout, ties, labels, and every refusal."""

from __future__ import annotations

import csv
import json
import math
import reprlib
import sys
from pathlib import Path

import numpy as np
import pytest

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.table_rows import ONE_HOT_WINNER
from rpo.bandit.tables import bandit_from_preferences, read_preferences
from rpo.core.errors import InvalidArgument, LookAlikeLabels, MissingDependency, OutputError

PAIRS = [("q2", "b", "a"), ("q1", "a", "b"), ("q2", "b", "a"), ("q2", "c", "b")]
# Sorted labels: prompts q1, q2 -> 0, 1; responses a, b, c -> 0, 1, 2.
PAIR_COUNTS = {(0, 0, 1): 1.0, (1, 1, 0): 2.0, (1, 2, 1): 1.0}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def as_dict(counts: PreferenceCounts) -> dict[tuple[int, int, int], float]:
    keys = zip(counts.prompt.tolist(), counts.chosen.tolist(), counts.rejected.tolist(), strict=True)
    return dict(zip(keys, counts.count.tolist(), strict=True))


def save(path: Path, columns: list[str], rows: list[tuple]) -> Path:
    """Write the same table in the format of the suffix, without the code under test."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([columns, *rows])
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({name: [row[k] for row in rows] for k, name in enumerate(columns)}), path)
    else:
        write(path, "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson", ".parquet", ".CSV"])
def test_every_format_gives_the_same_counts(tmp_path, suffix):
    """The four pairs above, written four ways: q2 has b > a twice and c > b once; q1 has a > b once."""
    path = save(tmp_path / f"t{suffix.lower()}", ["prompt", "chosen", "rejected"], PAIRS)
    table = read_preferences(path.rename(tmp_path / f"t{suffix}"))
    assert as_dict(table.counts) == PAIR_COUNTS
    assert table.counts.prompt_labels == ("q1", "q2")
    assert table.counts.response_labels == ("a", "b", "c")
    assert table.dropped == {}
    assert table.source == str(tmp_path / f"t{suffix}")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_count_column_multiplies_rows(tmp_path, suffix):
    """a > b with counts 3 and 0.5, b > a with 2: 3.5 and 2; without the column they would be 2 and 1."""
    rows = [("a", "b", 3.0), ("b", "a", 2.0), ("a", "b", 0.5)]
    counts = read_preferences(save(tmp_path / f"t{suffix}", ["chosen", "rejected", "count"], rows)).counts
    assert as_dict(counts) == {(0, 0, 1): 3.5, (0, 1, 0): 2.0}
    assert counts.prompt_labels == ("",)
    without = read_preferences(save(tmp_path / f"u{suffix}", ["chosen", "rejected"], [row[:2] for row in rows])).counts
    assert as_dict(without) == {(0, 0, 1): 2.0, (0, 1, 0): 1.0}


ARENA = [
    ("x", "y", "model_a"),
    ("x", "y", "model_b"),
    ("y", "x", "model_a"),
    ("x", "y", "tie"),
    ("x", "y", "tie (bothbad)"),
    ("y", "x", "both_bad"),
    ("z", "x", "bothbad"),
]


def arena(tmp_path: Path, suffix: str = ".csv") -> Path:
    return save(tmp_path / f"arena{suffix}", ["model_a", "model_b", "winner"], ARENA)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_arena_winners_and_dropped_ties(tmp_path, suffix):
    """x beats y once (row 1), y beats x twice (rows 2, 3); four ties go, and with them z, seen nowhere else."""
    table = read_preferences(arena(tmp_path, suffix))
    assert as_dict(table.counts) == {(0, 0, 1): 1.0, (0, 1, 0): 2.0}
    assert table.counts.response_labels == ("x", "y")
    assert table.dropped == {"tie": 1, "tie, both bad": 3}
    assert table.unused_labels == ("z",)
    assert table.counts.n + sum(table.dropped.values()) == len(ARENA)


def test_half_ties_give_half_a_win_each_way(tmp_path):
    """The three ties of x and y add 1.5 wins each way: 2.5 and 3.5; that of z and x adds 0.5 each way."""
    table = read_preferences(arena(tmp_path), ties="half")
    assert as_dict(table.counts) == {(0, 0, 1): 2.5, (0, 1, 0): 3.5, (0, 0, 2): 0.5, (0, 2, 0): 0.5}
    assert table.dropped == {}
    assert table.unused_labels == ()
    assert table.counts.n == len(ARENA)


def test_ties_error_names_the_line_of_the_first_tie(tmp_path):
    """The first tie is the fourth data row: line 5 of the file. Without ties the same call passes."""
    with pytest.raises(InvalidArgument, match=r"winner: expected no ties.*'tie' at line 5"):
        read_preferences(arena(tmp_path), ties="error")
    path = save(tmp_path / "clean.csv", ["model_a", "model_b", "winner"], ARENA[:3])
    assert read_preferences(path, ties="error").counts.n == 3


def test_a_weighted_tie_is_split_by_its_count(tmp_path):
    """A tie that stands for 5 comparisons gives 2.5 wins each way."""
    path = write(tmp_path / "t.csv", "model_a,model_b,winner,count\nx,y,tie,5\n")
    assert as_dict(read_preferences(path, ties="half").counts) == {(0, 0, 1): 2.5, (0, 1, 0): 2.5}


def test_labels_stay_text(tmp_path):
    """A reader that guesses types turns NA, None, nan into missing and 007 into 7; sorted as text: 007 NA None nan."""
    path = write(tmp_path / "t.csv", "prompt,chosen,rejected\n01,NA,007\n1,None,nan\n")
    counts = read_preferences(path).counts
    assert counts.response_labels == ("007", "NA", "None", "nan")
    assert counts.prompt_labels == ("01", "1")


def test_numbers_become_strings(tmp_path):
    """JSON 7 and 10 sort as text, "10" before "7"; 7 beats 10 once."""
    path = write(tmp_path / "t.jsonl", '{"chosen": 7, "rejected": 10}\n')
    counts = read_preferences(path).counts
    assert counts.response_labels == ("10", "7")
    assert as_dict(counts) == {(0, 1, 0): 1.0}


def test_csv_dialect(tmp_path):
    """Quoted commas and newlines, a byte-order mark, a blank line and a cell beyond csv's usual limit are data."""
    long = "p" * 200_000
    path = write(tmp_path / "t.csv", f'\ufeffprompt,chosen,rejected\n{long},"a,1","b\n2"\n\n{long},"a,1","b\n2"\n')
    counts = read_preferences(path).counts
    assert counts.response_labels == ("a,1", "b\n2")
    assert counts.prompt_labels == (long,)
    assert counts.n == 2


def test_the_limit_of_csv_is_left_as_it_was(tmp_path):
    """The limit on the length of a cell belongs to the whole process: it survives a reading and a refusal."""
    before = csv.field_size_limit(1234)
    try:
        read_preferences(write(tmp_path / "t.csv", "chosen,rejected\na,b\n"))
        assert csv.field_size_limit() == 1234
        with pytest.raises(InvalidArgument) as caught:
            read_preferences(write(tmp_path / "t.csv", "chosen,rejected\na\n"))
        assert csv.field_size_limit() == 1234
        assert caught.value.name == "path"
    finally:
        csv.field_size_limit(before)


def test_prompt_column_by_name(tmp_path):
    """With prompt_column the named column is the prompt, and one called "prompt" is ignored."""
    path = write(tmp_path / "t.csv", "prompt,topic,chosen,rejected\np1,t,a,b\np2,t,a,b\n")
    assert read_preferences(path).counts.prompt_labels == ("p1", "p2")
    assert read_preferences(path, prompt_column="topic").counts.prompt_labels == ("t",)
    with pytest.raises(
        InvalidArgument, match=r"prompt_column: expected one of the columns 'prompt', 'topic'.*'subject'"
    ):
        read_preferences(path, prompt_column="subject")


REFUSED_CSV = {
    "columns": ("chosen,loser\na,b\n", r"columns: expected \(chosen, rejected\) or .*got 'chosen', 'loser'"),
    "both layouts": ("chosen,rejected,model_a,model_b,winner\na,b,a,b,tie\n", "columns: expected"),
    "both winners": ("model_a,model_b,winner,winner_model_a,winner_model_b,winner_tie\na,b,tie,0,0,1\n", "columns: "),
    "repeated": ("chosen,rejected,chosen\na,b,c\n", "columns: expected"),
    "no header": ("", "columns: expected .*got none"),
    "no rows": ("chosen,rejected\n", "path: expected at least one preference, got no rows"),
    "only ties": (
        "model_a,model_b,winner\na,b,tie\n",
        r"path: expected at least one preference, got only dropped rows in .*\{'tie': 1\}",
    ),
    "only bad cells": (
        "chosen,rejected\n,b\n",
        r"path: expected at least one preference, got only dropped rows in .*missing chosen, first '' at line 2",
    ),
    "NUL": ("chosen,rejected\na,b\na\0,b\n", r"chosen: expected labels .* got a NUL character at line 3 of .*t\.csv"),
    "NUL in a column": ("chosen,rej\0ected\na,b\n", r"path: expected a well-formed .*a NUL character in the column"),
    "short row": (
        "chosen,rejected\na\n",
        "path: expected a well-formed .csv file, got 1 cells at line 2 and 2 in the header",
    ),
    "long row": ("chosen,rejected\na,b,c\n", "path: .*3 cells at line 2"),
    "open quote": ('chosen,rejected\na,"b\n', "path: expected a well-formed .csv file, got 'unexpected end of data'"),
}


@pytest.mark.parametrize("case", REFUSED_CSV)
def test_csv_refusals(tmp_path, case):
    """Each file differs in one thing from one that is read; the message names column, line and value."""
    text, message = REFUSED_CSV[case]
    with pytest.raises(InvalidArgument, match=message):
        read_preferences(write(tmp_path / "t.csv", text))


NESTED = "[" * 100_000 + "]" * 100_000
REFUSED_JSON = {
    "empty": ("", "columns: expected .*got none"),
    "malformed": (
        '{"chosen": "a", "rejected": "b"}\n{"chosen": \n',
        "path: expected a well-formed .jsonl file.*line 2",
    ),
    "not an object": ('["a", "b"]\n', "path: .*got a list and not an object at line 1"),
    "deep": (
        f'{{"chosen": {NESTED}, "rejected": "b"}}\n',
        r"path: expected a well-formed .jsonl file.*line 1 in .*t\.j",
    ),
    "conversation": (
        '{"chosen": [{"role": "user", "content": "hi"}], "rejected": "b"}\n',
        "chosen is no short label, first a list at line 1.*Conversations are not labels",
    ),
    "surrogate": (
        '{"chosen": "a", "rejected": "b"}\n{"chosen": "a\\ud800", "rejected": "b"}\n',
        r"chosen: expected labels .* got half of a surrogate pair at line 2 of .*t\.jsonl",
    ),
    "surrogate prompt": (
        '{"prompt": "\\udfff", "chosen": "a", "rejected": "b"}\n',
        "prompt: .*surrogate pair at line 1",
    ),
    "surrogate column": ('{"chosen": "a", "rejected": "b", "\\udfff": 1}\n', "path: .*surrogate pair in the column"),
    "late count": (
        '{"chosen": "a", "rejected": "b"}\n{"chosen": "a", "rejected": "b", "count": 9}\n',
        "count: expected the same columns in every row, got 'count' at line 2",
    ),
    "late prompt": (
        '{"chosen": "a", "rejected": "b"}\n{"chosen": "a", "rejected": "b", "prompt": "q"}\n',
        "prompt: expected the same columns in every row",
    ),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_json_refusals(tmp_path, case):
    """As above, for JSON lines; a count that only later rows give is refused and not ignored."""
    text, message = REFUSED_JSON[case]
    with pytest.raises(InvalidArgument, match=message):
        read_preferences(write(tmp_path / "t.jsonl", text))


HUGE = 10**400
# One good comparison of a and b, then this row, then the reason for which it is left out.
BAD_CELLS = {
    "null": ({"chosen": None}, "missing chosen, first None"),
    "not a number": ({"rejected": math.nan}, "missing rejected, first nan"),
    "empty": ({"prompt": ""}, "missing prompt, first ''"),
    "dict": ({"chosen": {"role": "user"}}, "chosen is no short label, first a dict"),
    "list": ({"rejected": ["a", "b"]}, "rejected is no short label, first a list"),
    "itself": ({"chosen": "b"}, "a response against itself, first 'b'"),
    "count zero": ({"count": 0}, "count is no finite number > 0, first 0"),
    "count negative": ({"count": -1}, "count is no finite number > 0, first -1"),
    "count N/A": ({"count": "N/A"}, "count is no finite number > 0, first 'N/A'"),
    "count null": ({"count": None}, "count is no finite number > 0, first None"),
    "count true": ({"count": True}, "count is no finite number > 0, first True"),
    "count underscore": ({"count": "1_000"}, "count is no finite number > 0, first '1_000'"),
    "count infinite": ({"count": math.inf}, "count is no finite number > 0, first inf"),
    "count huge": ({"count": HUGE}, f"count is no finite number > 0, first {reprlib.repr(HUGE)}"),
    "count list": ({"count": [1]}, "count is no finite number > 0, first [1]"),
    "winner": ({"winner": "Model_A"}, "winner is not model_a, model_b or a tie, first 'Model_A'"),
    "winner null": ({"winner": None}, "winner is not model_a, model_b or a tie, first None"),
    "winner dict": ({"winner": {"a": 1}}, "winner is not model_a, model_b or a tie, first {'a': 1}"),
    "inconsistent": ({"winner": "tie (inconsistent)"}, "tie, inconsistent"),
    "itself in a match": ({"winner": "model_a", "model_a": "b"}, "a response against itself, first 'b'"),
    "two winners": ({"winner_tie": 1}, "winner is not model_a, model_b or a tie, first 1, 0, 1"),
    "no winner": ({"winner_model_a": 0}, "winner is not model_a, model_b or a tie, first 0, 0, 0"),
    "half a winner": ({"winner_model_a": 0.5}, "winner is not model_a, model_b or a tie, first 0.5, 0, 0"),
    "winner list": ({"winner_model_a": [1]}, "winner is not model_a, model_b or a tie, first [1], 0, 0"),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_one_bad_cell_costs_its_row_and_is_counted(tmp_path, case):
    """The good rows before and after it are kept: two wins of a over b."""
    bad, reason = BAD_CELLS[case]
    good = {"prompt": "q", "count": 1}
    if "winner" in bad:
        good |= {"model_a": "a", "model_b": "b", "winner": "model_a"}
    elif any(name.startswith("winner") for name in bad):
        good |= {"model_a": "a", "model_b": "b", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    else:
        good |= {"chosen": "a", "rejected": "b"}
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in (good, {**good, **bad}, good)))
    table = read_preferences(path)
    assert as_dict(table.counts) == {(0, 0, 1): 2.0}
    assert table.dropped == {reason if reason.startswith("tie") else f"{reason} at line 2": 1}


def test_bad_cells_of_csv_and_parquet(tmp_path):
    """Cells of CSV are text, so only an empty one is missing; Parquet has nulls, lists and bytes."""
    table = read_preferences(write(tmp_path / "t.csv", "chosen,rejected,count\na,b,1\n,b,1\na,b,\nb,b,1\na,b,inf\n"))
    assert table.dropped == {
        "missing chosen, first '' at line 3": 1,
        "count is no finite number > 0, first '' at line 4": 2,
        "a response against itself, first 'b' at line 5": 1,
    }
    table = read_preferences(save(tmp_path / "null.parquet", ["chosen", "rejected"], [("a", "b"), (None, "b")]))
    assert table.dropped == {"missing chosen, first None at row 2": 1}
    for cell, kind in (([{"role": "user"}], "list"), (b"a", "bytes"), ({"role": "user"}, "dict")):
        path = save(tmp_path / "odd.parquet", ["chosen", "rejected"], [(cell, "b")])
        with pytest.raises(InvalidArgument, match=rf"chosen is no short label, first a {kind} at row 1.*Conversations"):
            read_preferences(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_kaggle_layout_with_one_column_for_each_outcome(tmp_path, suffix):
    """x beats y once, y beats x twice, one tie; the responses' texts and the id are not read."""
    columns = ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *ONE_HOT_WINNER]
    flags = [(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1)]
    rows = [(i, "x", "y", '["hi"]', "['u']", "['v']", *flag) for i, flag in enumerate(flags)]
    table = read_preferences(save(tmp_path / f"t{suffix}", columns, rows))
    assert as_dict(table.counts) == {(0, 0, 1): 1.0, (0, 1, 0): 2.0}
    assert (table.dropped, table.unused_columns) == ({"tie": 1}, ("id", "response_a", "response_b"))
    assert table.counts.prompt_labels == ('["hi"]',)
    half = read_preferences(tmp_path / f"t{suffix}", ties="half")
    assert as_dict(half.counts) == {(0, 0, 1): 1.5, (0, 1, 0): 2.5}


def test_lines_end_at_a_newline_only(tmp_path):
    """U+2028, U+2029 and U+0085 are text; str.splitlines would cut the line there."""
    label = "a\u2028b\u2029c\u0085d"
    path = write(tmp_path / "t.jsonl", json.dumps({"chosen": label, "rejected": "z"}, ensure_ascii=False) + "\n")
    assert read_preferences(path).counts.response_labels == (label, "z")
    assert read_preferences(write(tmp_path / "t.csv", f"chosen,rejected\n{label},z\n")).counts.response_labels == (
        label,
        "z",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A", "A "),
        ("A", "\u00a0A"),
        ("a b", "a  b"),
        ("\u00e9", "e\u0301"),
        ("A", "A\u200b"),
        (1, 1.0),
        ("2.5", "2.50"),
    ],
)
def test_labels_that_look_alike_are_named_once_and_never_merged(tmp_path, one, other):
    rows = [{"chosen": one, "rejected": "z"}, {"chosen": other, "rejected": "z"}, {"chosen": other, "rejected": "z"}]
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(LookAlikeLabels, match="1 group.*counted as different") as caught:
        table = read_preferences(path)
    assert len(caught) == 1
    assert table.look_alikes == (tuple(sorted((str(one), str(other)))),)
    assert all(repr(str(label)) in str(caught[0].message) for label in (one, other))
    assert len(table.counts.response_labels) == 3
    path = write(tmp_path / "p.jsonl", "".join(json.dumps({"prompt": q, **rows[0]}) + "\n" for q in (one, other)))
    with pytest.warns(LookAlikeLabels):
        assert len(read_preferences(path).counts.prompt_labels) == 2


@pytest.mark.parametrize(
    ("one", "other"), [("A", "a"), ("7", "007"), ("1", "10"), ("10", "100"), ("v1.0", "v1"), ("é", "e")]
)
def test_labels_that_look_different_are_no_concern(tmp_path, one, other):
    table = read_preferences(write(tmp_path / "t.csv", f"chosen,rejected\n{one},{other}\n"))
    assert table.look_alikes == ()


def test_damaged_files_are_refused_by_name_or_read(tmp_path):
    """Every cut and every flipped byte gives a table or one typed error that names the file."""
    good = save(tmp_path / "good.parquet", ["prompt", "chosen", "rejected"], PAIRS * 20).read_bytes()
    rng = np.random.default_rng(0)
    refused = named = 0
    for trial in range(200):
        data = bytearray(good)
        if trial % 2:
            data = data[: rng.integers(len(data))]
        else:
            for at in rng.integers(len(data), size=3):
                data[at] = rng.integers(256)
        path = tmp_path / "damaged.parquet"
        path.write_bytes(bytes(data))
        try:
            read_preferences(path)
        except (InvalidArgument, OutputError) as error:
            refused += "damaged.parquet" in str(error)
            named += 1
    assert refused == named > 100
    with pytest.raises(InvalidArgument, match=r"path: expected a well-formed \.parquet file"):
        read_preferences(write(tmp_path / "text.parquet", "chosen,rejected\na,b\n"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = save(tmp_path / "t.parquet", ["chosen", "rejected"], [("a", "b")])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"rpo-lab\[parquet\]"):
        read_preferences(path)


@pytest.mark.parametrize("name", ["missing.csv", "missing.jsonl", "missing.parquet", "folder.csv", "folder.jsonl"])
def test_unreadable_files(tmp_path, name):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match=f"path: expected a readable file, got .*{name}"):
        read_preferences(tmp_path / name)


def test_other_refusals(tmp_path):
    with pytest.raises(InvalidArgument, match=r"path: expected a file ending in \.csv, .*got .*t\.xlsx"):
        read_preferences(write(tmp_path / "t.xlsx", "chosen,rejected\na,b\n"))
    with pytest.raises(InvalidArgument, match="ties: expected one of 'drop', 'half', 'error'"):
        read_preferences(tmp_path / "t.csv", ties="keep")
    for path in (None, 3, "a\0.csv"):
        with pytest.raises(InvalidArgument, match="path: expected (the path of a file or folder|the name of a file)"):
            read_preferences(path)  # type: ignore[arg-type]
    (tmp_path / "latin.csv").write_bytes("chosen,rejected\nné,b\n".encode("latin-1"))
    with pytest.raises(InvalidArgument, match=r"path: expected UTF-8 text, got .*latin\.csv: .* at line 2"):
        read_preferences(tmp_path / "latin.csv")


def test_bandit_from_preferences(tmp_path):
    """q1 has one pair of four over {a, b}, q2 three over {a, b, c}: d0 = (1/4, 3/4), references 1/2 and 1/3."""
    counts = read_preferences(save(tmp_path / "t.csv", ["prompt", "chosen", "rejected"], PAIRS)).counts
    problem = bandit_from_preferences(counts, reward_bound=2.0, name="toy")
    assert problem.d0 == pytest.approx([0.25, 0.75])
    assert problem.reference == pytest.approx(np.array([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert problem.prompt_labels == ("q1", "q2")
    assert problem.response_labels == ("a", "b", "c")
    assert (problem.reward, problem.reward_bound, problem.name) == (None, 2.0, "toy")
    assert bandit_from_preferences(counts).reward_bound is None


def test_bandit_from_preferences_refuses(tmp_path):
    table = read_preferences(save(tmp_path / "t.csv", ["chosen", "rejected"], [("a", "b")]))
    with pytest.raises(InvalidArgument, match="counts: expected a PreferenceCounts, got PreferenceTable"):
        bandit_from_preferences(table)  # type: ignore[arg-type]
    sparse = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=2, num_responses=2)
    with pytest.raises(InvalidArgument, match=r"counts: expected data at every prompt, got none at prompt 1"):
        bandit_from_preferences(sparse)
