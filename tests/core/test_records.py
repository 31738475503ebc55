"""A record comes back as it was saved, and nothing half-written is ever left."""

import json
from pathlib import Path

import numpy as np
import pytest

from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.records import Run, check_output, environment, jsonable, staged_output, write_json


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
