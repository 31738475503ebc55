"""The property can fail: functions broken on purpose, each found by the fuzzing; and the budgets are large enough."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
from fuzzing import BUDGET, Hang, command, explore, limited, outcome
from hypothesis import strategies as st
from test_arrays import TARGETS, Target, call_outcome, spoilt_arrays

from rpo.core.errors import InvalidArgument


def test_the_budgets() -> None:
    """At least 500 inputs in the default tier, and 3,000 in the slow one."""
    default, slow = (sum(one[tier] for one in BUDGET.values()) for tier in (0, 1))
    assert default >= 500 and slow >= 3000
    assert "arrays and numbers" in BUDGET and TARGETS


def careless_mean(values: Any) -> float:
    """The mean as many a function would take it: a mask is lost, an imaginary part dropped, text read as numbers."""
    return float(np.real(np.asarray(values).astype(complex)).mean())


def strict_mean(values: Any) -> float:
    array = np.asarray(values) if type(values) is np.ndarray else None
    if array is None or array.dtype.kind != "f" or not np.isfinite(array).all() or not array.size:
        raise InvalidArgument("values", expected="a finite array of floats", got=values, remedy="Pass one.")
    return float(array.mean())


@pytest.mark.parametrize(("mean", "found"), [(careless_mean, True), (strict_mean, False)])
def test_an_argument_read_carelessly_is_found(mean: Any, found: bool, record_property: Any) -> None:
    """The same inputs, on a function that takes anything and on one that does not."""
    values = np.array([0.25, 0.5, 0.75])
    target = Target("mean", mean, {"values": values}, arrays=("values",))
    inputs = spoilt_arrays(values).map(lambda value: (target, "array", "values", value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGET, "control", (100, 100))
        if found:
            with pytest.raises((AssertionError, TypeError, ValueError, OverflowError, ExceptionGroup)):
                explore("control", 0, inputs, call_outcome, record_property)
        else:
            explore("control", 0, inputs, call_outcome, lambda name, value: None)


def broken(kind: str, folder: Path) -> Any:
    def main(arguments: list[str]) -> int:
        if kind == "half":
            (folder / "part").mkdir()
            (folder / "part" / "results.json").write_text("{")
        if kind == "raises":
            raise KeyError("beta")
        text = {"silent": "", "two": "rpo: error: a\nof two lines\n", "trace": "rpo: error: Traceback (most recent\n"}
        print(text.get(kind, "rpo: error: beta: expected more, got less\n"), file=sys.stderr, end="")
        return 1 if kind == "code" else 2

    return main


@pytest.mark.parametrize("kind", ["half", "raises", "silent", "two", "trace", "code"])
def test_a_broken_command_is_found(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something half-written, a traceback, no word, a message of two lines, another exit code; a good one is let by."""
    monkeypatch.setattr(fuzzing, "main", broken("good", tmp_path))
    assert command(["solve"], tmp_path) == "exit 2"
    monkeypatch.setattr(fuzzing, "main", broken(kind, tmp_path))
    with pytest.raises((AssertionError, KeyError)):
        command(["solve"], tmp_path)


def test_an_untyped_error_passes_through_and_a_hang_is_ended() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outcome(fails)
    if hasattr(fuzzing.signal, "setitimer"):
        with pytest.raises(Hang), limited(0.05):
            time.sleep(10.0)


def test_the_inputs_are_the_same_every_time(tmp_path: Path) -> None:
    """Whatever modules were loaded meanwhile."""

    def drawn() -> list[int]:
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(BUDGET, "control", (200, 200))
            explore("control", 0, st.integers(), lambda value: str(seen.append(value)), lambda name, value: None)
        return seen

    first = drawn()
    (tmp_path / "constants.py").write_text(f"MANY = {list(range(10_000, 10_400))}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "constants", raising=False)
        importlib.import_module("constants")
        assert first == drawn() and len(set(first)) > 10
    sys.modules.pop("constants")
