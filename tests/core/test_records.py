"""A record comes back as it was saved, and nothing half-written is ever left."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.records import (
    Run,
    check_file,
    check_output,
    environment,
    jsonable,
    staged_output,
    without_secrets,
    write_file,
    write_json,
)


def make_run() -> Run:
    return Run(
        label="table",
        objective={"name": "RPO", "beta": 0.1, "eta": 0.05},
        config={"optimizer": "newton"},
        status="converged",
        message="Converged.",
        history=[{"step": 0, "loss": 0.7}, {"step": 1, "loss": 0.6}],
        arrays={"policy": np.array([[0.25, 0.75]])},
    )


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    run = make_run()
    run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert loaded.to_dict() == run.to_dict()
    np.testing.assert_array_equal(loaded.policy, run.policy)
    assert loaded.loss == 0.6
    assert list(loaded.to_frame()["loss"]) == [0.7, 0.6]


def test_a_record_names_versions_and_commit() -> None:
    found = environment()
    assert found["numpy"] == np.__version__
    assert {"python", "torch", "cvxpy", "transformers", "commit"} <= set(found)


def test_an_earlier_result_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    make_run().save(tmp_path)
    with pytest.raises(InvalidArgument, match="output: expected a folder without an earlier result"):
        make_run().save(tmp_path)
    changed = make_run()
    changed.label = "other"
    changed.save(tmp_path, overwrite=True)
    assert Run.load(tmp_path).label == "other"


def test_a_result_of_another_command_is_kept_too(tmp_path: Path) -> None:
    """Their config.yaml have one name."""
    make_run().save(tmp_path)
    with pytest.raises(InvalidArgument, match=r"output: expected a folder without an earlier result, got .*run\.json"):
        check_output(tmp_path, overwrite=False, marker="solution.json", goes_on=True)
    assert check_output(tmp_path, overwrite=False, marker="run.json", goes_on=True) == tmp_path
    assert check_output(tmp_path, overwrite=True, marker="solution.json") == tmp_path
    (tmp_path / "begun" / "checkpoint-10").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="got .*checkpoint-10"):
        check_output(tmp_path / "begun", overwrite=False, marker="solution.json")


def test_a_failing_block_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(ZeroDivisionError),
        staged_output(target, overwrite=False, marker="done.json") as stage,
    ):
        (stage / "half.txt").write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    make_run().save(target)
    with (
        pytest.raises(ZeroDivisionError),
        staged_output(target, overwrite=True, marker="run.json") as stage,
    ):
        (stage / "run.json").write_text("broken")
        _ = 1 / 0
    assert Run.load(target).label == "table"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("after", range(4))
def test_an_earlier_result_goes_before_the_new_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped dead after 0 to 3 of the moves, the marker stands beside its own files or not at all."""
    for value in ("old", "new"):
        moves = 0
        replace = os.replace

        def counted(source: Any, target: Any, value: str = value, replace: Any = replace) -> None:
            nonlocal moves
            if value == "new" and moves == after:
                raise KeyboardInterrupt
            moves += 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", counted)
        try:
            with staged_output(tmp_path / "out", overwrite=True, marker="m.json") as stage:
                for name in ("m.json", "a.csv", "z.csv"):
                    (stage / name).write_text(value)
        except KeyboardInterrupt:
            pass
        monkeypatch.undo()
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert "m.json" not in found or set(found.values()) == {"new"}
    assert ("m.json" in found) == (after == 3)


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="^output: expected the path of a folder, got ''"):
        make_run().save("")
    with pytest.raises(OutputError, match="^thing: expected the path of a file, got ''"):
        check_file("thing", "")
    assert list(tmp_path.iterdir()) == []
    make_run().save(".")
    assert (tmp_path / "run.json").exists()


def test_special_files_are_never_replaced(tmp_path: Path) -> None:
    """A pipe of this test's own, in the place of a file of the result: refused, and an earlier result stays whole."""
    make_run().save(tmp_path / "out")
    (tmp_path / "out" / "arrays.npz").unlink()
    os.mkfifo(tmp_path / "out" / "arrays.npz")
    with pytest.raises(OutputError, match="arrays.npz, which is a device or another special file"):
        make_run().save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "arrays.npz").is_fifo() and (tmp_path / "out" / "run.json").exists()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(OutputError, match="thing: expected a file or a new name"):
            check_file("thing", path)
        with pytest.raises(OutputError):
            write_file(path, "text")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    write_file(tmp_path / "new", "text")  # control
    write_file(check_file("thing", tmp_path / "new"), "other")
    assert (tmp_path / "new").read_text() == "other"


DAMAGE = {
    "no npz": ("arrays.npz", None),
    "npz cut": ("arrays.npz", lambda data: data[:40]),
    "npz flipped": ("arrays.npz", lambda data: data[:60] + bytes(byte ^ 255 for byte in data[60:90]) + data[90:]),
    "npz empty": ("arrays.npz", lambda data: b""),
    "npz is an npy": ("arrays.npz", lambda data: b"\x93NUMPY\x01\x00v\x00" + b"x" * 118),
    "json cut": ("run.json", lambda data: data[:40]),
    "json a list": ("run.json", lambda data: b"[1]"),
    "json deep": ("run.json", lambda data: b"[" * 100_000),
    "json not UTF-8": ("run.json", lambda data: b"\xff\xfe" + data),
    "json without fields": ("run.json", lambda data: b'{"record_version": 1}'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_a_typed_error(tmp_path: Path, name: str) -> None:
    make_run().save(tmp_path)
    file, change = DAMAGE[name]
    path = tmp_path / file
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(OutputError, match=r"expected a folder with run.json and arrays.npz"):
        Run.load(tmp_path)


def test_secrets_are_found_by_their_names() -> None:
    given = {
        "hub_token": "hf_x",
        "inner": [{"api_key": "k", "OPENAI-KEY": "k", "password": "p", "client_secret": "s"}],
        "eos_token": "</s>", "max_tokens": 5, "api_key_env": "NAME", "token": None, "keys": 3, "monkey": "m",
    }  # fmt: skip
    kept, found = without_secrets(given)
    names = ["api_key", "OPENAI-KEY", "password", "client_secret"]
    assert found == ["hub_token", *(f"inner[0].{name}" for name in names)]
    assert kept == {**given, "hub_token": None, "inner": [dict.fromkeys(names)]}


def test_a_file_or_an_unwritable_place_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="expected a folder, got the file"):
        check_output(file, overwrite=True, marker="x")
    with (
        pytest.raises(OutputError, match="expected a writable folder"),
        staged_output("/proc/nowhere/out", overwrite=True, marker="x"),
    ):
        pass


def test_a_missing_or_foreign_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a folder with run.json"):
        Run.load(tmp_path)
    make_run().save(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "record_version": 99}))
    with pytest.raises(OutputError, match="expected record version"):
        Run.load(tmp_path)


def test_json_is_strict(tmp_path: Path) -> None:
    assert jsonable({"a": np.float64("nan"), "b": np.arange(2), 3: (np.inf,)}) == {
        "a": "nan",
        "b": [0, 1],
        "3": ["inf"],
    }
    write_json(tmp_path / "x.json", {"a": float("inf")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "inf"}
