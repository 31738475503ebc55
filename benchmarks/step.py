"""Where the bytes and the time of a training step go: `python benchmarks/step.py [--model smollm2] [--pairs 8]`.

One process a variant, each with one step of the default path (prompts once, reference cached) or of TRL's trainer, on
the same batch as in vs_trl.py, after two steps that warm up. Bytes: torch's memory profiler, which tells weights,
gradients, optimizer state and activations apart, at the moment of the most; what it does not tell apart is workspace.
Time: torch's profiler, operations by kind, as shares of the operations' own time, which other work on the machine
disturbs less than times. Writes results/step.json, from which `python benchmarks/tables.py` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.profiler import ProfilerActivity, profile
from vs_trl_machine import device_name
from vs_trl_sides import make_variants
from vs_trl_workload import PAIRS, make_batches

from rpo.core.records import environment, write_json
from rpo.llm.training.recompute import keep_products

HERE = Path(__file__).parent
OURS, TRL = "ours, shared, cached", "TRL cached, patched head"
VARIANTS = {  # name: (side, dtype, checkpointing)
    "TRL cached, patched head, float32": (TRL, "float32", "none"),
    "ours, float32": (OURS, "float32", "none"),
    "ours, float32, selective checkpointing": (OURS, "float32", "selective"),
    "ours, float32, gradient checkpointing": (OURS, "float32", "whole"),
    "ours, bfloat16": (OURS, "bfloat16", "none"),
    "ours, bfloat16, selective checkpointing": (OURS, "bfloat16", "selective"),
}
KINDS = {  # of operations, by what their names begin with
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product"),
    "copies between types and layouts": (
        "aten::copy_",
        "aten::cat",
        "aten::clone",
        "aten::_to_copy",
        "aten::contiguous",
    ),
    "optimizer": ("aten::_fused_adamw",),
}
PARTS = ("PARAMETER", "OPTIMIZER_STATE", "GRADIENT", "ACTIVATION")


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return bytes by part and shares of time by kind of one variant's step."""
    side, arguments.dtype, checkpointing = VARIANTS[arguments.variant]
    arguments.gradient_checkpointing = checkpointing != "none"
    arguments.variants = [side]
    with tempfile.TemporaryDirectory() as folder:
        variants, (_, tokenizer) = make_variants(arguments, [side], folder)
        variant = variants[side]
        if checkpointing == "selective":
            keep_products(variant.model)
        batches = make_batches(arguments, tokenizer)
        variant.prepare(batches)
        variant(batches[0])
        variant(batches[1])
        began = time.process_time()
        _, loss = variant(batches[1])
        seconds = time.process_time() - began
        with profile(activities=[ProfilerActivity.CPU]) as timed:
            variant(batches[1])
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True, with_stack=True
        ) as held:
            variant(batches[1])
        fed = variant.fed(batches[1])
    return {"mib": by_part(held), "shares": by_kind(timed), "processor_seconds": seconds, "loss": loss, "fed": fed}


def by_kind(profiled: Any) -> dict[str, float]:
    """Return the share of the operations' own time by kind."""
    found = dict.fromkeys([*KINDS, "elementwise and the rest"], 0.0)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            kind = next((name for name, starts in KINDS.items() if event.key.startswith(starts)), None)
            found[kind or "elementwise and the rest"] += event.self_cpu_time_total
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def by_part(profiled: Any) -> dict[str, float]:
    """Return MiB by part when most is allocated, and the most of all."""
    from torch.profiler._memory_profiler import _CATEGORY_TO_INDEX, MemoryProfileTimeline

    _, sizes = MemoryProfileTimeline(profiled._memory_profile())._coalesce_timeline("cpu")
    most = max(sizes, key=sum)
    columns = {category.name: index + 1 for category, index in _CATEGORY_TO_INDEX.items() if category is not None}
    parts = {name.lower(): most[columns[name]] / 2**20 for name in PARTS}
    return parts | {"workspace": sum(most) / 2**20 - sum(parts.values()), "total": sum(most) / 2**20}


def markdown(record: dict[str, Any]) -> str:
    """Return the two tables of a record."""
    rows = record["variants"]
    static = {name: sum(row["mib"][part] for part in ("parameter", "optimizer_state")) for name, row in rows.items()}
    heads = ["MiB at the peak", "weights", "optimizer", "gradients", "activations", "workspace", "total"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [row["mib"][part] for part in ("parameter", "optimizer_state", "gradient", "activation", "workspace")]
        lines.append(_row([name, *(f"{cell:,.0f}" for cell in cells), f"{row['mib']['total']:,.0f}"]))
    kinds = list(next(iter(rows.values()))["shares"])
    lines += ["", _row(["share of a step's time", *kinds, "processor s"]), "|---" * (len(kinds) + 2) + "|"]
    for name, row in rows.items():
        shares = [f"{100 * row['shares'][kind]:.0f} %" for kind in kinds]
        lines.append(_row([name, *shares, f"{row['processor_seconds']:.1f}"]))
    first = next(iter(rows.values()))
    note = (
        f"{record['device']}, {record['model']}, one batch of {record['pairs']} pairs, "
        f"commit {record['environment']['commit']}: "
        f"{first['fed']:,} tokens fed by TRL, {rows['ours, float32']['fed']:,} by ours; weights and optimizer "
        f"{static['ours, float32']:,.0f} MiB on either side."
    )
    return "\n".join([*lines, "", note])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> None:
    """Measure every variant in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", "tiny"))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS, help="one of them, in this process")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step.json")
    arguments = parser.parse_args(argv)
    fixed = {"weights": "float32", "device": "cpu", "lora": 0, "batches": 1, "data": PAIRS, "max_length": 1024}
    vars(arguments).update(fixed, min_tokens=0)
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        print(json.dumps(one(arguments)))
        return
    found = {}
    for name in VARIANTS:
        print(name, file=sys.stderr, flush=True)
        options = ["--model", arguments.model, "--pairs", str(arguments.pairs), "--threads", str(arguments.threads)]
        made = subprocess.run(
            [sys.executable, __file__, *options, "--variant", name], stdout=subprocess.PIPE, check=True, text=True
        )
        found[name] = json.loads(made.stdout.splitlines()[-1])
    record = {"device": device_name("cpu"), "model": Path(arguments.model).name, "pairs": arguments.pairs}
    record |= {"variants": found, "environment": environment()}
    write_json(arguments.output, record)
    print(markdown(record))


if __name__ == "__main__":
    main()
