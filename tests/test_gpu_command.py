"""benchmarks/gpu.py without a GPU: every part in small, what it writes and prints, and the arithmetic of its tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import gpu_kernels
import gpu_profile
import gpu_tables
import pytest
import torch
from gpu_record import Recorder

from rpo.llm.logps.attention import Segments

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """Return one of the part `kernels`; what torch logs is as it was afterwards."""
    yield Recorder("kernels", tmp_path / "kernels.jsonl", 60.0, dry=True)
    torch._logging.set_logs()


def rows_of(file: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, file.read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.slow
def test_every_part_runs_dry_and_leaves_its_rows(tmp_path) -> None:
    """On a CPU every part comes to its end, and nothing fails but the variable-length kernel, which has no CPU code."""
    pytest.importorskip("trl")
    done = subprocess.run([*COMMAND, "--dry", "--output", str(tmp_path)], capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == list(record["seconds"]) == list(gpu.PARTS)
    for part, rows in record["parts"].items():
        assert sum(row["kind"] == "end" for row in rows) == len(gpu.PARTS[part][1]), (part, done.stdout[-2000:])
        failed = [row for row in rows if "error" in row and row.get("kernel") != "by_varlen"]
        assert failed == [], (part, failed)
        assert f"### {part}: CPU" in done.stdout
    parts = record["parts"]
    kernels = [row for row in parts["kernels"] if row["kind"] == "kernel" and "ratio" in row]
    assert {"by_flex", "by_segment", "attend"} <= {row["kernel"] for row in kernels}
    assert max(row["ratio"] for row in kernels) < 4
    (tests,) = (row for row in parts["tests"] if row["kind"] == "tests")
    assert tests["code"] == 0 and "skipped" in tests["summary"]
    exact = {row["case"]: row["gradient_off"] for row in parts["paths"] if row["kind"] == "gradient"}
    assert exact["shared float32"] < 1e-5 < exact["shared bfloat16"] < 2 * exact["padded bfloat16"]
    updates = [row for row in parts["paths"] if row["kind"] == "update"]
    assert len(updates) == 6 * 8 and max(abs(row["off_ln_2"]) for row in updates) < 1e-4
    for part in ("trl", "long"):
        steps = [row for row in parts[part] if row["kind"] == "step"]
        for row in steps:
            same = [other for other in steps if all(row[k] == other[k] for k in ("setting", "batch"))]
            (theirs,) = (other["loss"] for other in same if other["variant"] == "TRL default")
            assert row["loss"] == pytest.approx(theirs, rel=1e-3)
            assert row["fed"] >= row["useful"] - 2 * row["pairs"]
    assert len({row["setting"] for row in parts["long"] if row["kind"] == "step"}) == 7
    shares = [row["shares"] for row in parts["profile"] if row["kind"] == "profile"]
    assert len(shares) == 2 and all(sum(each.values()) == pytest.approx(1) for each in shares)


def test_a_part_out_of_time_is_ended_and_keeps_its_rows(tmp_path, monkeypatch, capsys) -> None:
    """A process that writes a row and sleeps for a minute is ended after one second; half a line is passed over."""
    script = tmp_path / "sleeps.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "file = pathlib.Path(sys.argv[2]) / 'tests.jsonl'\n"
        """file.write_text('{"kind": "start"}\\n{"kind": "te')\n"""
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    arguments = gpu.parse(["--output", str(tmp_path), "--parts", "tests=1"])
    start = time.perf_counter()
    with (tmp_path / "log.txt").open("a") as log:
        gpu.run_part("tests", arguments, gpu.surroundings(arguments), log)
    assert time.perf_counter() - start < 20
    assert gpu.read(tmp_path) == {"tests": [{"kind": "start"}]}
    assert "[tests]  ended after its 1 s" in capsys.readouterr().out
    assert "written" in (tmp_path / "log.txt").read_text()


def test_parts_may_be_given_their_seconds(capsys) -> None:
    parts = gpu.parse(["--output", "x", "--parts", "trl=30", "kernels"]).parts
    assert parts == {"trl": 30.0, "kernels": gpu.PARTS["kernels"][0]}
    with pytest.raises(SystemExit):
        gpu.parse(["--output", "x", "--parts", "tlr"])
    assert "expected kernels, tests" in capsys.readouterr().err


def test_the_limits_of_the_parts_are_within_four_minutes_each() -> None:
    assert max(seconds for seconds, _ in gpu.PARTS.values()) <= 240


def test_without_a_gpu_a_part_says_so(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [*COMMAND, "--output", str(tmp_path), "--run", "profile:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "expected a CUDA GPU, got none" in done.stderr


# --- kernels ------------------------------------------------------------------------------------------------


def test_the_dense_mask_written_out() -> None:
    """A prompt of two, responses of two and one after it, a sequence of two; and a window of 2, by position."""
    lengths, prefixes = [2, 2, 1, 2], [-1, 0, 0, -1]
    shown = [
        ["".join("x" if seen else "." for seen in row) for row in gpu_kernels.dense_mask(lengths, prefixes, window)]
        for window in (None, 2)
    ]
    assert shown[0] == ["x......", "xx.....", "xxx....", "xxxx...", "xx..x..", ".....x.", ".....xx"]
    assert shown[1] == ["x......", "xx.....", ".xx....", "..xx...", ".x..x..", ".....x.", ".....xx"]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tokens", [14, 60, 127, 130, 4096])
def test_a_row_has_the_tokens_asked_for(tokens, shared) -> None:
    lengths, prefixes = gpu_kernels.layout(tokens, shared=shared)
    assert sum(lengths) == tokens and min(lengths) >= 1
    assert len(lengths) == len(prefixes) and (max(prefixes) >= 0) is shared


@pytest.mark.parametrize(
    "case",
    [
        gpu_kernels.Case("by_segment", "float32", (4, 2), 16, 60),
        gpu_kernels.Case("by_segment", "float32", (4, 2), 16, 60, window=9, softcap=2.0),
        gpu_kernels.Case("by_segment", "float32", (4, 2), 16, 60, window=9, sinks=True),
    ],
)
def test_a_kernel_off_by_one_key_is_seen(recorder, monkeypatch, case) -> None:
    """Errors as torch's own attention has them, of output and every gradient; not so with a window of one key less."""
    row: dict[str, Any] = {}
    gpu_kernels.measure(recorder, case, row)
    assert len(row["off"]) == len(row["plain"]) == 4 + case.sinks
    assert max(row["off"]) < 1e-6 and row["ratio"] < 4
    attend = Segments.by_segment

    def wrong(self: Any, *tensors: Any, **how: Any) -> Any:
        return attend(self, *tensors, **how | {"window": (how["window"] or 28) - 1})

    def by_segment(self: Any, query: Any, key: Any, value: Any, *, scaling, window, softcap, sinks=None) -> Any:
        return wrong(self, query, key, value, scaling=scaling, window=window, softcap=softcap, sinks=sinks)

    monkeypatch.setattr(Segments, "by_segment", by_segment)
    gpu_kernels.measure(recorder, case, row)
    assert row["ratio"] > 1000 and max(row["off_token"]) > 0.1


def test_a_case_that_fails_is_a_row_and_the_next_goes_on(recorder) -> None:
    with recorder.measured(kind="kernel", case="a"):
        raise ValueError("no kernel\nfor this")
    with recorder.measured(kind="kernel", case="b") as row:
        row["ms"] = float("nan")
    first, second = rows_of(recorder.file, "kernel")
    assert first["error"] == "ValueError: no kernel\nfor this" and "Traceback" in first["traceback"]
    assert second["ms"] == "nan" and "error" not in second


# --- profile and tables ----------------------------------------------------------------------------------------


def test_time_without_a_kernel() -> None:
    """Kernels over (0, 4), (2, 5), (3, 4) and (8, 10): busy 7 of 10."""
    assert gpu_profile.covered([(8, 10), (0, 4), (2, 5), (3, 4)]) == (7, 10)


def test_shares_of_a_step_with_the_heads_apart() -> None:
    """Of 100 us: 40 attention, 30 products of which the head's 10, 20 AdamW, 10 others of which the head's 5."""
    found = [
        ("flash_fwd_kernel", 0.0, 40.0),
        ("nvjet_hsh_128x256", 40.0, 30.0),
        ("multi_tensor_apply_kernel<FusedAdam>", 80.0, 20.0),
        ("softmax_kernel", 100.0, 10.0),
    ]
    described = gpu_profile.described(found, [("nvjet_hsh_64", 0.0, 10.0), ("softmax_kernel", 10.0, 5.0)])
    expected = {"attention": 0.4, "linear layers": 0.2, "optimizer": 0.2, "copies and casts": 0.0}
    assert described["shares"] == pytest.approx(expected | {"head": 0.15, "everything else": 0.05})
    assert described["idle_share"] == pytest.approx(10 / 110)
    assert described["kernels"][0] == pytest.approx(
        {"name": "flash_fwd_kernel", "kind": "attention", "ms": 0.04, "calls": 1, "share": 0.4}
    )


def test_the_table_of_steps_by_hand() -> None:
    """Two batches after the warm-up: 2/1 and 6/2 s; 300 and 600 useful tokens; 3 and 6 TFLOP at a peak of 12."""

    def step(variant: str, batch: int, seconds: float, **row: Any) -> dict[str, Any]:
        counts = {"useful": 300 * batch, "fed": 900 * batch, "flops": 3e12 * batch, "loss": 2.0, "setting": "1B"}
        return {"kind": "step", "variant": variant, "batch": batch, "seconds": seconds, **counts, **row}

    rows = [
        {"kind": "trl", "setting": "1B", "head": "triton"},
        {"kind": "rate", "setting": "1B", "own_shapes": 6e12, "peak": 12e12},
        step("TRL default", 0, 99.0),
        step("ours, shared, live", 0, 99.0, taken="shared"),
        step("TRL default", 1, 2.0),
        step("TRL default", 2, 6.0),
        step("ours, shared, live", 1, 1.0, taken="shared", loss=2.02, peak_above_static_gib=1.5),
        step("ours, shared, live", 2, 2.0, taken="shared", peak_above_static_gib=1.25),
    ]
    head, _, _, _, theirs, ours, _ = gpu_tables.steps(rows, brief=True)
    assert head == "1B; TRL's head: triton."
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:4] == ["ours, shared, live", "1500", "2.50 (2.00-3.00)", ""]
    assert cells[4:] == ["300", "900", "25.0", "50.0", "1.50", "1e-02"]
    assert theirs.startswith("| TRL default | 4000 | 1.00 (1.00-1.00) |")


def test_a_variant_that_was_padded_instead_is_marked() -> None:
    row = {"kind": "step", "setting": "1B", "variant": "ours, shared, live", "batch": 1, "seconds": 1.0, "loss": 1.0}
    row |= {"useful": 1, "fed": 1, "flops": 1.0, "taken": "padded"}
    assert "| ours, shared, live (padded) |" in "\n".join(gpu_tables.steps([row], brief=True))


def test_brief_tables_show_kernels_in_doubt_and_every_failure() -> None:
    good = {"kind": "kernel", "case": "good", "off": [1e-3], "plain": [1e-3], "ratio": 1.0, "first_call_s": 1.0,
            "ms": 1.0, "graphs": 1}  # fmt: skip
    rows = [good, good | {"case": "doubtful", "ratio": 2.5}, {"kind": "kernel", "case": "bad", "error": "E: x\ny"}]
    rows += [{"kind": "left out"}]
    record = {"parts": {"kernels": rows}, "seconds": {"kernels": 1.0}}
    brief, full = (gpu_tables.tables(record, brief=brief) for brief in (True, False))
    assert "doubtful" in brief and "| good" not in brief and "| good" in full
    assert "2 cases, 1 within 2x" in brief
    assert "- failed: bad: E: x\n" in brief and "left out for want of time: 1" in brief
