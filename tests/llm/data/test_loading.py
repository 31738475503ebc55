"""The same two rows from every kind of source, and what is said of sources that cannot be read."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import turn

from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.llm.data import load_preferences, read_preference

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
        ("a.parquet", b"PAR?", "a Parquet file"),
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
