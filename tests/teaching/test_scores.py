"""Scores: what was tried is counted, saved for the teacher, and checked again when it is gathered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from rpo import teaching
from rpo.core.errors import InvalidArgument, OutputError
from rpo.teaching import exercise
from rpo.teaching.exercise import Attempt


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a kernel just started."""
    monkeypatch.setattr(exercise, "ATTEMPTS", attempts := {})
    monkeypatch.setattr(teaching.scores, "ATTEMPTS", attempts)
    monkeypatch.setattr(teaching.scores, "WRITTEN", {})


def new_kernel() -> None:
    exercise.ATTEMPTS.clear()
    teaching.scores.WRITTEN.clear()


def test_what_is_tried_is_counted_up_to_the_right_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """04.2: the factor of data that halves a bound of N^-1/2 is 4. 05.5 is a choice that is looked up first."""
    teaching.check("04.2", ...)  # no try
    for given in (2, "8/2", 3, 4, 2):  # text is none either
        teaching.check("04.2", given)
    teaching.hint("04.1")
    teaching.hint("04.1")
    right = teaching.answer("05.5")
    teaching.check("05.5", right)
    teaching.answer("04.2")  # it was right already
    table = teaching.summary()
    assert capsys.readouterr().out.endswith("2 of 10 right.\n")
    assert list(table.index) == [f"{n}.{k}" for n in ("04", "05") for k in (1, 2, 3, 4, 5)]
    assert table.loc["04.2"].to_dict() == {"right": True, "tries": 3, "hints": 0, "shown": False}
    assert table.loc["04.1"].to_dict() == {"right": False, "tries": 0, "hints": 2, "shown": False}
    assert table.loc["05.5"].to_dict() == {"right": True, "tries": 1, "hints": 0, "shown": True}
    assert len(teaching.summary("03")) == 5 and capsys.readouterr().out == "0 of 5 right.\n"
    with pytest.raises(InvalidArgument, match="notebook: expected"):
        teaching.summary("3")


@pytest.mark.parametrize("given", [np.float64(4), np.array(3.0), np.int64(5), np.float32(3.5), 4])
def test_every_answer_of_the_kind_can_be_saved(given: Any, tmp_path: Path) -> None:
    teaching.check("04.2", given)
    teaching.save(tmp_path / "ada.json", "Ada")
    saved = json.loads((tmp_path / "ada.json").read_text())["answers"]["04.2"]
    assert saved["tries"] == 1 and saved["right"] == (given == 4)


def test_one_file_takes_lessons_and_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three kernels, one after the other: what was right stays right, tries add up, a save twice adds nothing."""
    path = tmp_path / "ada.json"
    right = teaching.exercises("04")["04.1"].solve()
    teaching.check("04.2", 4)
    teaching.check("04.1", right - 100)
    for _ in range(2):
        teaching.save(path, "Ada")
        assert capsys.readouterr().out.endswith("1 of 5 right.\n")
    teaching.check("04.1", right - 200)
    teaching.save(path, "Ada")  # the same kernel: one try more
    new_kernel()
    teaching.check("04.2", 5)  # a right answer is not made wrong
    teaching.check("04.1", right)
    teaching.hint("04.1")
    teaching.save(path, " Ada ")
    new_kernel()
    teaching.check("05.5", "zz")  # no try, and so no lesson begun
    teaching.check("04.1", right - 100)
    teaching.save(path, "Ada")
    assert capsys.readouterr().out.endswith("2 of 5 right.\n")
    saved = json.loads(path.read_text())["answers"]
    assert saved["04.1"] == {"given": right, "right": True, "tries": 3, "hints": 1, "shown": False}
    assert saved["04.2"] == {"given": 4, "right": True, "tries": 1, "hints": 0, "shown": False}
    table = teaching.gather(tmp_path)
    assert table.loc[0, ["student", "right", "04.1", "04.2", "problem"]].tolist() == ["Ada", 2, 1, 1, ""]
    assert [name for name in table if name[0] == "0"] == ["04.1", "04.2", "04.3", "04.4", "04.5"]
    assert table.iloc[-1][["student", "right", "04.1", "04.3"]].tolist() == ["share right", 0.4, 1.0, 0.0]


def test_of_two_files_of_a_student_the_newer_counts(tmp_path: Path) -> None:
    """As a browser names a second download, though its name sorts first; the time of saving is in the file."""
    for name, given, when in (("bob (1).json", 4, "2026-11-02"), ("bob.json", 5, "2026-11-01")):
        new_kernel()
        teaching.check("04.2", given)
        teaching.save(tmp_path / name, "Bob" if given == 4 else "bob")
        record = json.loads((tmp_path / name).read_text()) | {"saved": when}
        (tmp_path / name).write_text(json.dumps(record))
    table = teaching.gather(tmp_path)
    assert table["file"].tolist() == ["bob (1).json", ""] and table["04.2"].tolist() == [1, 1.0]
    assert table["problem"].tolist() == ["older and not counted: bob.json", ""]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a path in a folder that exists.*Make .*answers first"):
        teaching.save(tmp_path / "answers" / "ada.json", "Ada")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"kind": "rpo exercises", "student": "Bob", "answers": {}}', "of 'Bob', not of 'Ada'"),
        ('{"kind": "notes"}', "not written by rpo.teaching.save"),
        ("diary", "no JSON object"),
        ('{"kind": "rpo exercises", "student": "Ada", "answers": {"04.2": {"right": 1}}}', "damaged"),
    ],
)
def test_a_file_of_somebody_or_something_else_is_left_as_it_is(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ada.json"
    path.write_text(content)
    with pytest.raises(OutputError, match=says):
        teaching.save(path, "Ada")
    assert path.read_text() == content
    with pytest.raises(InvalidArgument, match="student: expected a name"):
        teaching.save(tmp_path / "new.json", "  ")


def test_a_class_becomes_a_table_and_every_answer_is_checked_again(tmp_path: Path) -> None:
    """Ada 2 right of 2, Bob 0 of 1 though his file claims it, a file that is none, and a name that is a formula."""
    (tmp_path / "group").mkdir()
    for name, answers in (("Ada", {"04.2": 4.0, "05.5": None}), ("Bob", {"04.2": 5.0}), ("=1+1", {"99.1": 1})):
        record = {
            "kind": "rpo exercises",
            "student": name,
            "answers": {
                key: {"given": given, "right": True, "tries": 2, "hints": 1, "shown": False}
                for key, given in answers.items()
            },
        }
        if name == "Ada":
            record["answers"]["05.5"]["given"] = teaching.exercises("05")["05.5"].solve()  # type: ignore[index]
            record["answers"]["04.1"] = vars(Attempt(hints=1))  # type: ignore[index]
        (tmp_path / "group" / f"{len(name)}{name[0]}.json").write_text(json.dumps(record))
    (tmp_path / "zzz.json").write_text("[1]")
    table = teaching.gather(tmp_path, tmp_path / "class.csv")
    rows = {row["student"]: row for row in table.to_dict("records")}
    assert rows["Ada"]["right"] == 2 and (rows["Ada"]["04.2"], rows["Ada"]["05.5"]) == (1, 1)
    assert (rows["Ada"]["tries"], rows["Ada"]["hints"]) == (4, 3) and rows["Ada"]["problem"] == ""
    assert rows["Bob"]["right"] == 0 and rows["Bob"]["04.2"] == 0 and rows["Bob"]["05.5"] == ""
    assert rows["Bob"]["problem"] == "not right, as the file says: 04.2"
    assert rows["=1+1"]["problem"] == "no such exercise: 99.1"
    assert table["problem"].tolist()[-2].startswith("no JSON object") and len(table) == 5
    assert rows["Ada"]["04.1"] == ""  # a hint is no answer
    assert rows["share right"]["04.2"] == rows["share right"]["05.5"] == 0.33  # of three students
    assert (tmp_path / "class.csv").read_bytes().startswith(b"\xef\xbb\xbfstudent,file,right,04.1")
    written = pandas.read_csv(tmp_path / "class.csv")
    assert written["student"].tolist()[:3] == ["Ada", "Bob", "'=1+1"] and written["04.2"].tolist()[:2] == [1, 0]
    with pytest.raises(InvalidArgument, match="folder: expected a folder of files"):
        teaching.gather(tmp_path / "nowhere")
