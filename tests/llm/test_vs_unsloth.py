"""The bookkeeping of benchmarks/vs_unsloth.py on a tiny model: processes in turns, equal losses, the table."""

from __future__ import annotations

import copy
import importlib
import os
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark() -> Any:
    for package in ("trl", "datasets", "peft"):
        pytest.importorskip(package)
    return importlib.import_module("vs_unsloth")


def step(seconds: float, loss: float = 2.0, peak: float = 100.0) -> dict[str, float]:
    return {"seconds": seconds, "processor_seconds": 2 * seconds, "loss": loss, "peak_mib": peak}


@pytest.mark.slow
def test_our_variants_take_turns(benchmark: Any) -> None:
    """With an adapter of rank 16; the reference is the model without it, so the first loss is not the policy's own."""
    record = benchmark.main(["--smoke", "--threads", "1", "--settings", "2", "--variants", *benchmark.OURS])
    (found,) = record["settings"]
    assert (found["lora"], found["loss_error"] < 1e-6) == (16, True)
    for row in found["variants"].values():
        assert row["weights"] == ["float32"] and [taken["peak_mib"] > 100 for taken in row["steps"]] == [True]
    rows = [line for line in benchmark.markdown(record).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(benchmark.OURS) and len({row.count("|") for row in rows}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RPO_UNSLOTH"), reason="RPO_UNSLOTH is not a Python that has Unsloth")
def test_unsloth_takes_our_step(benchmark: Any) -> None:
    record = benchmark.main(["--smoke", "--threads", "1"])
    assert [set(found["variants"]) for found in record["settings"]] == [{*benchmark.VARIANTS}] * len(benchmark.SETTINGS)
    # What each side keeps in bfloat16 is said in the table.
    weights = {name: row["weights"] for name, row in record["settings"][1]["variants"].items()}
    assert weights["Unsloth"] == ["bfloat16"] and weights["ours"] == ["float32"]


def test_a_loss_that_is_not_the_others_stops_it(benchmark: Any) -> None:
    rows = {"Unsloth": {"steps": [step(1.0), step(1.0)]}, "ours": {"steps": [step(1.0), step(1.0, loss=2.0001)]}}
    assert benchmark.loss_error("float32", rows) == pytest.approx(5e-5)
    wrong = copy.deepcopy(rows)
    wrong["ours"]["steps"][0]["loss"] *= 1.01
    assert benchmark.loss_error("bfloat16", wrong) == pytest.approx(1e-2)
    with pytest.raises(SystemExit, match="off by 1.0e-02"):
        benchmark.loss_error("float32", wrong)


def test_ratios_are_of_one_batch_and_memory_is_the_most(benchmark: Any) -> None:
    """6/2 and 4/4: median 2 of (3, 1); 150 of 200 MiB."""
    rows = {
        "Unsloth": {"steps": [step(6.0, peak=120.0), step(4.0, peak=200.0)]},
        "ours": {"steps": [step(2.0, peak=150.0), step(4.0, peak=140.0)]},
    }
    times = "2.00 (1.00-3.00)"
    assert benchmark.summary(rows, "Unsloth") == ["5.00", "10.00", times, times, "200", "75 %"]


def test_what_is_missing_is_named(benchmark: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("RPO_UNSLOTH", raising=False)
    for given, named in ((["--model", ""], "expected a folder"), (["--model", "m"], "expected the Python that has")):
        with pytest.raises(SystemExit):
            benchmark.parse(given)
        assert named in capsys.readouterr().err
