"""The same two rows from every kind of source, and what is said of sources that cannot be read."""

from __future__ import annotations

import csv
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers_for_tests import CHATML, characters, chat_row, turn

from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.llm.data import RefusedRow, load_preferences, mix, read_preference, stream_pairs
from rpo.llm.data.responses import response_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "é\n")], "rejected": [turn("assistant", "n")], "w": 1},
    {"prompt": [turn("user", "r")], "chosen": [turn("assistant", "[1]")], "rejected": [turn("assistant", "m")], "w": 2},
]  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def no_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `datasets` is not installed."""
    monkeypatch.setitem(sys.modules, "datasets", None)


def write_lines(path: Path) -> Any:
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    return path


def write_array(path: Path) -> Any:
    path.write_text("\n " + json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def write_csv(path: Path) -> Any:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        for row in ROWS:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return path


def write_parquet(path: Path) -> Any:
    pytest.importorskip("pyarrow")
    import pandas

    pandas.DataFrame(ROWS).to_parquet(path)
    return path


FILES: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": write_lines, "b.json": write_array, "c.json": write_lines, "d.csv": write_csv, "e.parquet": write_parquet
}  # fmt: skip


def same(rows: Any) -> None:
    """Two rows that mean the same; numbers in a CSV are still text, which weights accept."""
    found = [read_preference(row, k, weight_column="w") for k, row in enumerate(rows)]
    assert found == [read_preference(row, k, weight_column="w") for k, row in enumerate(ROWS)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_files_need_no_datasets(no_datasets: None, tmp_path: Path, name: str, streaming: bool) -> None:
    rows = load_preferences(FILES[name](tmp_path / name), streaming=streaming)
    same(rows)
    same(rows)  # again, streamed or not
    assert hasattr(rows, "__len__") is not streaming


def test_lists_and_data_frames_need_no_datasets(no_datasets: None, tmp_path: Path) -> None:
    import pandas

    assert load_preferences(ROWS) is ROWS
    same(load_preferences(pandas.DataFrame(ROWS)))
    same(load_preferences(pandas.read_parquet(write_parquet(tmp_path / "f.parquet"))))  # NumPy arrays in its cells


def test_datasets_in_memory_on_disk_and_streamed(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict({"train_prefs": dataset})
    dataset.save_to_disk(str(tmp_path / "one"))
    splits.save_to_disk(str(tmp_path / "many"))
    same(load_preferences(dataset))
    same(load_preferences(dataset.with_format("numpy")))
    same(load_preferences(dataset.to_iterable_dataset()))
    same(load_preferences(splits, split="train_prefs"))
    same(load_preferences(tmp_path / "one"))
    same(load_preferences(tmp_path / "many", split="train_prefs"))
    with pytest.raises(InvalidArgument, match="split: expected one of 'train_prefs', got 'train'"):
        load_preferences(splits)
    with pytest.raises(InvalidArgument, match="split: expected one of 'train_prefs'"):
        load_preferences(tmp_path / "many")


def test_the_hub_is_asked_for_data_and_never_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.update(options, args=args)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    same(load_preferences("owner/pairs", split="test", streaming=True, name="clean", revision="abc"))
    assert asked == {"args": ("owner/pairs", "clean"), "split": "test", "streaming": True, "revision": "abc"}

    def fail(*args: Any, **options: Any) -> Any:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InvalidArgument, match="got 'owner/pairs' .ConnectionError: offline"):
        load_preferences("owner/pairs")


def test_what_is_missing_is_named(no_datasets: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="rpo-lab"):
        load_preferences("owner/pairs")
    path = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="rpo-lab.parquet"):
        load_preferences(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: "),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl, line 2: a list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, line 2: .*utf-8"),
        ("a.jsonl", b"\n", "expected at least one row"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json, line 2: "),
        ("a.json", b"[1]", "int at position 0"),
        ("a.json", b'["\xff"]', "UTF-8"),
        ("a.json", b"[]", "expected at least one row"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv, line 3: .* header's 2"),
        ("a.csv", b"a,b\n1,2,3\n", "a.csv, line 2: "),
        ("a.csv", b"a,b\n", "expected at least one row"),
        ("a.parquet", b"PAR?", "a.parquet"),
        ("a.parquet", b"", "a.parquet"),
        ("a.jsonl", b'{"a": 1}\n{"a": "x\x00"}\n', "a.jsonl, line 2: "),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000, "a.jsonl, line 2: .*recursion"),
        ("a.json", b"[" * 100_000, "a.json: .*recursion"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "a.jsonl, line 1: .*digits"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "a.json: .*digits"),
        ("a.csv", b"a,b\n1,2\n\xff,3\n", "a.csv, line .*utf-8"),
        ("a.csv", b'a,b\n1,"2\n', "a.csv, line "),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=words):
        load_preferences(tmp_path / name)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="source: expected an existing file, got .*absent.jsonl"):
        load_preferences(tmp_path / "absent.jsonl")
    for source in ([], (), 3, {"prompt": ["p"]}):
        with pytest.raises(InvalidArgument, match="^source: "):
            load_preferences(source)


def test_prose_in_a_csv_stays_prose(tmp_path: Path) -> None:
    """Only messages, and columns that are never prose, are read as JSON: an answer may well be a list."""
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected,scores\np,"[1, 2]",[x,"[1, 2]"\n', encoding="utf-8")
    assert list(load_preferences(path)) == [{"prompt": "p", "chosen": "[1, 2]", "rejected": "[x", "scores": [1, 2]}]


def test_a_generator_is_passed_on() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ROWS

    same(load_preferences(rows()))


def test_a_damaged_parquet_file_is_refused_or_read(tmp_path: Path) -> None:
    """Bytes changed one by one, all over the file: rows or a refusal that names it, and nothing else."""
    whole = write_parquet(tmp_path / "a.parquet").read_bytes()
    refused = 0
    for place in range(0, len(whole), 97):
        (tmp_path / "b.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(load_preferences(tmp_path / "b.parquet"))
        except InvalidArgument as error:
            refused += "b.parquet" in str(error)
    assert refused > 5
    (tmp_path / "c.parquet").write_bytes(whole[:-20])
    with pytest.raises(InvalidArgument, match="c.parquet"):
        load_preferences(tmp_path / "c.parquet")


@pytest.mark.parametrize("source", ["a\0b", "a\0b.jsonl", "x" * 5000, "x" * 5000 + ".jsonl", "text", "json"])
def test_paths_that_are_none(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of readers of datasets too, which would take every file of the current folder for rows."""
    (tmp_path / "notes.txt").write_text("not preferences")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="^source: expected a path or a hub name"):
        load_preferences(source)


@pytest.mark.parametrize("option", ["split", "name", "revision"])
def test_a_file_has_no_splits(tmp_path: Path, option: str) -> None:
    path: Any = write_lines(tmp_path / "a.jsonl")
    with pytest.raises(InvalidArgument, match=f"^{option}: expected .* for a file, got 'test'"):
        load_preferences(path, **{option: "test"})


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """JSON strings, CSV cells and the package's own writer hold what `str.splitlines` cuts at."""
    text = "a\u2028b\u2029c\x85d"
    row = {"prompt": "p", "chosen": text, "rejected": "b"}
    (tmp_path / "a.jsonl").write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 2)
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected\np,{text},b\n" + f"p,{text},b\n", encoding="utf-8")
    for name in ("a.jsonl", "a.csv"):
        assert list(load_preferences(tmp_path / name)) == [row, row]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_refusal_names_the_file_and_the_place(
    tmp_path: Path, name: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through mixtures, lists of them, and the rows of `SFTTrainer`."""
    monkeypatch.setitem(ROWS[1], "w", -1)
    path = FILES[name](tmp_path / name)
    place = {"a.jsonl": "line 3", "b.json": "position 1", "c.json": "line 3", "d.csv": "line 3", "e.parquet": "row 1"}
    said = f"^row 1 .{re.escape(str(path))}, {place[name]}., w: expected a finite"
    rows = load_preferences(path, streaming=streaming)
    first = next(iter(rows))
    for source in (rows, list(rows), mix([(rows, 1.0)], 0), list(mix([(rows, 1.0)], 0)), response_rows(rows, "chosen")):
        with pytest.raises(RefusedRow, match=said):
            list(stream_pairs(source, characters(CHATML), weight_column="w"))
    assert pickle.loads(pickle.dumps(first)).origin == first.origin  # type: ignore[attr-defined]


def test_columns_of_one_name_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["p", "a", "b", "c"]], columns=["prompt", "chosen", "rejected", "chosen"])
    with pytest.raises(InvalidArgument, match="source: expected a DataFrame with distinct columns"):
        load_preferences(frame)


def test_a_frame_with_tools_in_some_rows() -> None:
    """pandas writes NaN where a row has none, and arrays for lists."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([chat_row(tools=[{"name": "f"}]), chat_row()])
    found = [read_preference(row, k).tools for k, row in enumerate(load_preferences(frame))]
    assert found == [[{"name": "f"}], None]
    frame["prompt"] = [np.array(prompt) for prompt in frame["prompt"]]
    assert [read_preference(row, k).prompt for k, row in enumerate(load_preferences(frame))] == [
        [turn("user", "Hi")]
    ] * 2
