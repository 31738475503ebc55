"""A sweep of 100,000 cells from its arguments to its table: `python benchmarks/sweep.py [--smoke]`.

Each run is a process of its own, with one BLAS thread: one job three times, two jobs, and one job that is killed
(SIGKILL) halfway and continued. Seconds are processor time where there is one process, so that other load on the
machine counts little, and the memory is the process's peak. The profile says whose seconds they are: wrapped calls,
each without the wrapped calls inside it. Tables are compared as bytes. Writes results/sweep.json;
`python benchmarks/tables.py` the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow.parquet  # noqa: F401 - the table's writer, loaded before the clock starts
from machine import describe_machine

from rpo.bandit.batched import solution
from rpo.bandit.simulation import answers, cell, engine
from rpo.core.objectives import RPO
from rpo.core.records import environment, jsonable

GRID = {"n": [100], "beta": [0.05], "eta": [0.1], "arms": [10], "prompts": [1], "reward_bound": [3.0]}
PARTS: dict[str, tuple[Any, str]] = {
    "draw and count": (cell, "draw_blocks"),
    "solve": (solution, "_minimized"),
    "certify": (solution, "_certified"),
    "the solver's input": (answers, "solve_batch"),
    "measure": (cell.Cell, "_measure"),
    "rows": (engine.Plan, "solve"),
    "chunks on disk": (engine.GridStore, "save"),
    "read back": (engine.GridStore, "load"),
    "table": (engine, "_frame"),
}


@contextmanager
def profiled() -> Iterator[dict[str, float]]:
    """Add up the processor seconds of the parts, each without the parts inside it."""
    spent = dict.fromkeys(PARTS, 0.0)
    inside: list[float] = []

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            inside.append(0.0)
            start = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                whole = time.process_time() - start
                spent[name] += whole - inside.pop()
                if inside:
                    inside[-1] += whole

        return timed

    originals = {name: getattr(*place) for name, place in PARTS.items()}
    for name, place in PARTS.items():
        setattr(*place, wrapped(name, originals[name]))
    try:
        yield spent
    finally:
        for name, place in PARTS.items():
            setattr(*place, originals[name])


def run(cells: int, jobs: int, folder: Path, profile: bool) -> dict[str, Any]:
    """Simulate in this process, and return what it took."""
    began, wall = time.process_time(), time.perf_counter()
    with profiled() if profile else nullcontext() as spent:
        frame = engine.simulate("coverage_skew", [RPO], GRID, cells, rng=0, output=folder, proxy=False, jobs=jobs)
    processor, wall = time.process_time() - began, time.perf_counter() - wall
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "jobs": jobs,
        "processor_s": processor + others.ru_utime + others.ru_stime,
        "wall_s": wall,
        "peak_mib": peak / 1024,
        "rows": len(frame),
        "certified": float((frame["status"] == "certified").mean()),
        "worst_relative_gap": float(frame["relative_gap"].max()),
        "rows_reused": frame.attrs["rows_reused"],
        "sha256": hashlib.sha256((folder / "table.parquet").read_bytes()).hexdigest(),
        "profile_s": spent,
    }


def started(cells: int, jobs: int, folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Start `run` in a process of its own."""
    command = [sys.executable, __file__, "--run", str(cells), str(jobs), str(folder), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a process printed last."""
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the run ended with {child.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def killed(cells: int, folder: Path) -> None:
    """Run one job until half of its chunks are there, and kill it."""
    child, chunks = started(cells, 1, folder), -(-cells // engine.CHUNK_SEEDS)
    while len(list((folder / "shards").glob("[!.]*.json"))) < chunks // 2:
        if child.poll() is not None:
            raise RuntimeError("the run ended before it was killed: more cells are needed")
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; nothing is written")
    parser.add_argument("--run", nargs=3, metavar=("CELLS", "JOBS", "FOLDER"), help="one run in this process")
    parser.add_argument("--profile", action="store_true", help="with --run: whose seconds they are")
    arguments = parser.parse_args()
    if arguments.run:
        size, jobs, folder = int(arguments.run[0]), int(arguments.run[1]), Path(arguments.run[2])
        print(json.dumps(jsonable(run(size, jobs, folder, arguments.profile))))
        return
    cells = 10_000 if arguments.smoke else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [finished(started(cells, 1, folder / f"one-{k}")) for k in range(1 if arguments.smoke else 3)]
        runs.append(finished(started(cells, 2, folder / "two")))
        killed(cells, folder / "killed")
        runs.append({**finished(started(cells, 1, folder / "killed")), "killed": True})
        profile = finished(started(cells, 1, folder / "profile", "--profile"))["profile_s"]
    same = len({one["sha256"] for one in runs}) == 1
    frame = pandas.DataFrame(runs)[["jobs", "processor_s", "wall_s", "peak_mib", "certified", "rows_reused"]]
    print(frame.round(2).to_string(index=False))
    print(f"tables byte-identical: {same}; " + ", ".join(f"{part} {spent:.2f} s" for part, spent in profile.items()))
    if not arguments.smoke:
        record = {
            "environment": environment(),
            "machine": describe_machine(),
            "cells": cells,
            "median_processor_s": float(np.median([one["processor_s"] for one in runs[:3]])),
            "same_bytes": same,
            "runs": runs,
            "profile_s": profile,
        }
        path = Path(__file__).parent / "results" / "sweep.json"
        path.write_text(json.dumps(jsonable(record), indent=2) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
