"""Everything there is to know of rpo.llm on one NVIDIA GPU: `python benchmarks/gpu.py --output FOLDER [--parts ...]`.

For a bare machine without a network: it needs torch with CUDA, transformers, accelerate, peft and pytest, and for the
parts against TRL also trl, datasets, dill and multiprocess, which --wheels takes as files. Nothing is installed: this
checkout is what is imported.

Parts, each a process of its own with a time limit (NAME=SECONDS gives another):
  kernels  every attention kernel against float64, output and gradients
  tests    the CUDA tests
  paths    steps and gradients of a 1B model on every path, memory, graphs compiled
  trl      a step against TRL's at UltraFeedback-like lengths, 1B
  long     the same at prompts of 1k, 4k and 8k tokens, 1B and 8B (LoRA, and full where memory allows)
  profile  one step of the shared path, kernel by kernel

A part writes FOLDER/<part>.jsonl line by line, so that what a killed part had measured is there; what the parts say
is in FOLDER/log.txt. At the end everything is in FOLDER/gpu.json, and tables are printed; benchmarks/gpu_tables.py
prints all of them. --dry runs the whole of it on a CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]  # nothing need be installed

# Seconds, and the groups that run at the same time. In order of worth.
PARTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "kernels": (90, ("flex", "capped", "plain")),
    "tests": (120, ("",)),
    "paths": (200, ("",)),
    "trl": (220, ("",)),
    "long": (240, ("",)),
    "profile": (60, ("",)),
}
TESTS = ["tests/llm/test_cuda.py", "tests/llm/test_attention.py", "-k", "cuda or bf16 or 1b"]
# Warnings of torch's compiler are errors under the tests' configuration.
TESTS += ["-v", "-p", "no:cacheprovider", "-W", "default::DeprecationWarning", "-W", "default::UserWarning"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; `parts` as a dict of seconds by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of results")
    parser.add_argument("--parts", nargs="+", default=[*PARTS], metavar="NAME[=SECONDS]", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--wheels", type=Path, default=None, help="a folder of wheels to put on the path")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--commit", default=None, help="recorded where this checkout knows of none")
    parser.add_argument("--run", default=None, help=argparse.SUPPRESS)  # PART:GROUP, in its own process
    arguments = parser.parse_args(argv)
    parts = {}
    for item in arguments.parts:
        name, _, seconds = item.partition("=")
        if name not in PARTS or not re.fullmatch(r"\d*", seconds):
            parser.error(f"--parts: expected {', '.join(PARTS)}, each alone or with =SECONDS, got {item}")
        parts[name] = float(seconds or PARTS[name][0])
    arguments.parts = parts
    return arguments


# --- one part, in a process of its own ------------------------------------------------------------------


def run_here(arguments: argparse.Namespace) -> None:
    """Run the part and group that --run names."""
    import torch
    import transformers
    from gpu_record import Recorder

    part, group = arguments.run.split(":")
    if not arguments.dry and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: expected a CUDA GPU, got none that torch sees. --dry runs on a CPU.")
    transformers.logging.set_verbosity_error()
    recorder = Recorder(part, arguments.output / f"{part}.jsonl", arguments.parts[part], dry=arguments.dry)
    if part == "kernels":
        import gpu_kernels

        gpu_kernels.run(recorder, group)
    elif part == "tests":
        run_tests(recorder)
    elif part == "paths":
        import gpu_paths

        gpu_paths.run(recorder)
    elif part in ("trl", "long"):
        import gpu_trl

        (gpu_trl.run if part == "trl" else gpu_trl.run_long)(recorder)
    elif part == "profile":
        import gpu_profile

        gpu_profile.run(recorder)
    recorder.row(kind="end", group=group)


def run_tests(recorder: Any) -> None:
    """Run the CUDA tests; what pytest says is in the log."""
    with recorder.measured(kind="tests") as row:
        command = [sys.executable, "-m", "pytest", *TESTS]
        if importlib.util.find_spec("xdist") and not recorder.dry:
            command += ["-n", "8"]  # compilers of kernels side by side
        output = []
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                print(line, end="", file=sys.stderr, flush=True)
                output.append(line.rstrip())
        row["summary"] = next(
            (line for line in reversed(output) if re.search(r"\d+ (passed|failed|skipped)", line)), ""
        )
        row["failed"] = [line for line in output if line.startswith(("FAILED", "ERROR"))]
        row["code"] = process.returncode


# --- all parts ------------------------------------------------------------------------------------------


def run_part(part: str, arguments: argparse.Namespace, environment: dict[str, str], log: Any) -> None:
    """Run the groups of a part side by side, and end what is not done in time."""
    (arguments.output / f"{part}.jsonl").unlink(missing_ok=True)
    seconds = arguments.parts[part]
    running = []
    for group in PARTS[part][1]:
        command = [sys.executable, __file__, "--output", str(arguments.output), "--parts", f"{part}={seconds:.0f}"]
        command += ["--run", f"{part}:{group}", *(["--dry"] if arguments.dry else [])]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # its own group: compilers and tests it started end with it
        )
        reader = threading.Thread(target=tee, args=(process.stdout, log), daemon=True)
        reader.start()
        running.append((group, process, reader))
    stop = time.perf_counter() + seconds
    for group, process, reader in running:
        try:
            process.wait(max(0.0, stop - time.perf_counter()))
        except subprocess.TimeoutExpired:
            print(f"[{part}] {group} ended after its {seconds:.0f} s", flush=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(5)
        if not reader.is_alive():
            process.stdout.close()
        if process.returncode:
            print(f"[{part}] {group} ended with {process.returncode}; see log.txt", flush=True)


def tee(lines: Any, log: Any) -> None:
    """Copy lines to the screen and the log."""
    for line in lines:
        print(line, end="", flush=True)
        log.write(line)
        log.flush()


def surroundings(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the parts: this checkout and the wheels on the path."""
    found = dict(os.environ, HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if arguments.wheels is not None:
        target = tempfile.mkdtemp(prefix="rpo-wheels-")
        wheels = sorted(map(str, arguments.wheels.glob("*.whl")))
        options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", target]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
        path.append(target)
    found["PYTHONPATH"] = os.pathsep.join(path)
    if arguments.dry:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every part that has any; the last line of a killed one may be half of one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in PARTS:
        file = folder / f"{part}.jsonl"
        if file.is_file():
            found[part] = []
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    found[part].append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print what came of them."""
    arguments = parse(argv)
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.run is not None:
        run_here(arguments)
        return 0
    from gpu_tables import tables

    from rpo.core.records import environment

    parts_environment, took = surroundings(arguments), {}
    with (arguments.output / "log.txt").open("a", encoding="utf-8") as log:
        for part in arguments.parts:
            start = time.perf_counter()
            run_part(part, arguments, parts_environment, log)
            took[part] = round(time.perf_counter() - start, 1)
    found = environment() | ({"commit": arguments.commit} if arguments.commit else {})
    record = {"environment": found, "dry": arguments.dry, "seconds": took, "parts": read(arguments.output)}
    (arguments.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n" + tables(record, brief=True), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
