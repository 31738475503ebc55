"""Benchmarks of lm-evaluation-harness (GSM8K, ARC, MBPP ...): its command, run in its own process, and its results.

The command printed is the command run. The authors of the paper report GSM8K and ARC by this harness and MBPP
by evalplus, whose prompts differ: compare MBPP among models of one harness only.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency, RPOError
from rpo.eval.benchmarks.files import read_json, require
from rpo.eval.benchmarks.results import BenchmarkResult, numbers

# These run programs that the model wrote. The harness itself refuses others that do, later.
CODE_TASKS = ("mbpp", "humaneval")
NO_ERROR = "N/A"  # what the harness writes where it has no standard error


class BenchmarkFailed(RPOError):
    """A benchmark's own program ended with an error; its messages are above ours."""


def arguments(
    model: str,
    tasks: Sequence[str],
    output: str | Path,
    *,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int | str = "auto",
    dtype: str = "auto",
    device: str | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
    confirm_run_unsafe_code: bool = False,
) -> list[str]:
    """Return what follows `lm_eval` on the command line.

    model: name or folder; a folder with a PEFT adapter is evaluated on the base model it names. num_fewshot: None for
    each task's own. include_path: folder with YAML files of further tasks. limit: only so many
    examples, for trying out. confirm_run_unsafe_code: programs written by the model are run on this machine, without a
    sandbox; tasks such as mbpp are refused without it. Raises InvalidArgument.
    """
    if not checks.instances("tasks", tasks, str):
        raise InvalidArgument("tasks", expected="at least one task", got="none", remedy="gsm8k, for example.")
    code = [task for task in tasks if task.startswith(CODE_TASKS)]
    if code and not confirm_run_unsafe_code:
        raise InvalidArgument(
            "confirm_run_unsafe_code",
            expected=f"true for {', '.join(code)}, which runs programs written by the model",
            got=False,
            remedy="Run it in a container or another sandbox, with --confirm_run_unsafe_code true.",
        )
    if include_path is not None and not checks.path("include_path", include_path).is_dir():
        raise InvalidArgument(
            "include_path", expected="a folder with task files", got=include_path, remedy="Check the path."
        )
    if not (isinstance(batch_size, str) and batch_size == "auto"):
        batch_size = checks.integer("batch_size", batch_size, minimum=1)
    made = [
        *("--model", "hf"),
        *("--model_args", f"{_pretrained(model)},dtype={checks.instance('dtype', dtype, str)}"),
        *("--tasks", ",".join(tasks)),
        *("--batch_size", str(batch_size)),
        *("--seed", str(checks.integer("seed", seed, minimum=0))),
        *("--output_path", str(checks.path("output", output))),
    ]
    if num_fewshot is not None:
        made += ["--num_fewshot", str(checks.integer("num_fewshot", num_fewshot, minimum=0))]
    if limit is not None:
        made += ["--limit", str(checks.integer("limit", limit, minimum=1))]
    if device is not None:
        made += ["--device", checks.instance("device", device, str)]
    if include_path is not None:
        made += ["--include_path", str(include_path)]
    if apply_chat_template:
        made.append("--apply_chat_template")
    if confirm_run_unsafe_code:
        made.append("--confirm_run_unsafe_code")
    return made


def run(options: Sequence[str], output: str | Path) -> list[BenchmarkResult]:
    """Run `lm_eval` with what `arguments` returned, and return the results it wrote under `output`.

    Its messages go to the terminal. Raises MissingDependency, BenchmarkFailed, InvalidArgument.
    """
    options, output = checks.instances("options", options, str), checks.path("output", output)
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependency("lm-eval benchmarks need lm_eval: pip install 'rpo-lab[eval]'.")
    before = set(output.rglob("results_*.json"))
    # The metric of code tasks asks for an opt-in of its own.
    unsafe = {"HF_ALLOW_CODE_EVAL": "1"} if "--confirm_run_unsafe_code" in options else {}
    ended = subprocess.run([sys.executable, "-m", "lm_eval", *options], env={**os.environ, **unsafe}, check=False)
    if ended.returncode != 0:
        raise BenchmarkFailed(f"lm_eval ended with code {ended.returncode}; its own messages say why.")
    written = sorted(set(output.rglob("results_*.json")) - before)
    if not written:
        raise BenchmarkFailed(f"lm_eval ended without writing results under {output}; its own messages say why.")
    return [result for path in written for result in read_results(path)]


def read_results(path: str | Path, models: Collection[str] | None = None) -> list[BenchmarkResult]:
    """Return every metric of every task (and group) in a results_*.json, in the harness's units.

    A metric of a filter keeps the harness's name, "exact_match,strict-match"; that of no filter is "acc". n is the
    number of examples evaluated. settings: few-shot examples, the task's version, and how it was run. A metric that
    is no number keeps its row, without a value. Raises InvalidArgument.
    """
    record = read_json("results", path)
    require("results", record, ("results", "versions", "n-shot", "config"), str(path))
    config, shots, versions = (_mapping(record[name]) for name in ("config", "n-shot", "versions"))
    samples = _mapping(record.get("n-samples"))
    model = str(record.get("model_name") or config.get("model_args") or "")
    if models is not None and model not in checks.instances("models", models, str):
        return []
    shared = {
        "lm_eval_version": record.get("lm_eval_version"),
        "model_args": config.get("model_args"),
        "limit": config.get("limit"),
        "chat_template": record.get("chat_template") is not None,
        "seed": config.get("random_seed"),
    }
    found = []
    for task, metrics in {**_mapping(record.get("groups")), **_mapping(record["results"])}.items():
        settings = {"n_shot": shots.get(task), "version": versions.get(task), **shared}
        count = _mapping(samples.get(task)).get("effective")
        for key, value in _mapping(metrics).items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            cells = {key: value, f"{key} standard error": None if error == NO_ERROR else error, "n-samples": count}
            read, bad = numbers(cells)
            score, deviation, examples = read.values()
            if score is None:
                bad = {"unreadable": bad.get("unreadable") or [f"{key}: nothing"]}
            found.append(
                BenchmarkResult(
                    model=model,
                    benchmark=task,
                    metric=metric if filtered == "none" else key,
                    value=score,
                    standard_error=deviation,
                    n=None if examples is None else int(examples),
                    source=str(path),
                    settings=settings | bad,
                )
            )
    if all(result.value is None for result in found):
        raise InvalidArgument("results", expected="at least one metric", got=f"none in {path}", remedy="Look at it.")
    return found


def _pretrained(model: str) -> str:
    """Return the part of --model_args that names the model, and the adapter on it. Raises InvalidArgument."""
    adapter = checks.path("model", checks.instance("model", model, str)) / "adapter_config.json"
    names = {"pretrained": model}
    if adapter.exists():
        config = read_json("model", adapter)
        require("model", config, ("base_model_name_or_path",), str(adapter))
        names = {"pretrained": str(config["base_model_name_or_path"]), "peft": model}
    for name in names.values():
        if "," in name:
            raise InvalidArgument(
                "model", expected="a name without a comma, which ends an option there", got=name, remedy="Rename it."
            )
    return ",".join(f"{key}={name}" for key, name in names.items())


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
