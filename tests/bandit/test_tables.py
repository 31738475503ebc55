"""Reading preference files: every format and layout, ties, labels, and every refusal."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.tables import bandit_from_preferences, read_preferences
from rpo.core.errors import InvalidArgument, MissingDependency, OutputError

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
            read_preferences(write(tmp_path / "t.csv", "chosen,rejected\na,a\n"))
        assert csv.field_size_limit() == 1234
        assert caught.value.name == "rejected"
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
    "repeated": ("chosen,rejected,chosen\na,b,c\n", "columns: expected"),
    "no header": ("", "columns: expected .*got none"),
    "no rows": ("chosen,rejected\n", "path: expected at least one preference, got no rows"),
    "only ties": (
        "model_a,model_b,winner\na,b,tie\n",
        r"path: expected at least one preference, got only dropped rows in .*\{'tie': 1\}",
    ),
    "missing label": ("chosen,rejected\na,b\n,b\n", "chosen: expected a label.*a missing value at line 3"),
    "missing prompt": ("prompt,chosen,rejected\np,a,b\n,a,b\n", "prompt: expected a label.*at line 3"),
    "itself": ("chosen,rejected\na,b\nb,a\na,a\n", "rejected: expected a response other than chosen, got 'a' .*line 4"),
    "itself, tied": ("model_a,model_b,winner\na,a,tie\n", "model_b: expected a response other than model_a.*line 2"),
    "winner": ("model_a,model_b,winner\na,b,Model_A\n", "winner: expected one of 'model_a'.*got 'Model_A' at line 2"),
    "count zero": ("chosen,rejected,count\na,b,0\n", "count: expected a finite number > 0.*'0' at line 2"),
    "count negative": ("chosen,rejected,count\na,b,1\na,b,-1\n", "count: .*'-1' at line 3"),
    "count infinite": ("chosen,rejected,count\na,b,inf\n", "count: .*'inf' at line 2"),
    "count nan": ("chosen,rejected,count\na,b,nan\n", "count: .*'nan' at line 2"),
    "count text": ("chosen,rejected,count\na,b,many\n", "count: .*'many' at line 2"),
    "count underscore": ("chosen,rejected,count\na,b,1_000\n", "count: .*'1_000' at line 2"),
    "count empty": ("chosen,rejected,count\na,b,\n", "count: .*'' at line 2"),
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


REFUSED_JSON = {
    "empty": ("", "columns: expected .*got none"),
    "malformed": (
        '{"chosen": "a", "rejected": "b"}\n{"chosen": \n',
        "path: expected a well-formed .jsonl file.*line 2",
    ),
    "not an object": ('["a", "b"]\n', "path: .*got a list and not an object at line 1"),
    "null": ('{"chosen": null, "rejected": "b"}\n', "chosen: expected a label.*missing value at line 1"),
    "nan": ('{"chosen": NaN, "rejected": "b"}\n', "chosen: expected a label.*missing value at line 1"),
    "missing key": ('{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}\n', "rejected: .*missing value at line 2"),
    "conversation": (
        '{"chosen": [{"role": "user", "content": "hi"}], "rejected": "b"}\n',
        "chosen: expected a short label.*got a list at line 1.*Conversations are not labels",
    ),
    "count true": ('{"chosen": "a", "rejected": "b", "count": true}\n', "count: .*True at line 1"),
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


def test_parquet_refusals(tmp_path):
    """Rows count from 1; a null is missing, a list is a conversation, and text is no Parquet file."""
    path = save(tmp_path / "null.parquet", ["chosen", "rejected"], [("a", "b"), (None, "b")])
    with pytest.raises(InvalidArgument, match=r"chosen: expected a label.*missing value at row 2"):
        read_preferences(path)
    path = save(tmp_path / "list.parquet", ["chosen", "rejected"], [([{"role": "user"}], [{"role": "user"}])])
    with pytest.raises(InvalidArgument, match=r"chosen: expected a short label.*got a list at row 1"):
        read_preferences(path)
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
    (tmp_path / "latin.csv").write_bytes("chosen,rejected\nné,b\n".encode("latin-1"))
    with pytest.raises(InvalidArgument, match="path: expected UTF-8 text"):
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
