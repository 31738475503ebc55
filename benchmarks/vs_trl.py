"""A step of RPO against TRL's DPOTrainer: `python benchmarks/vs_trl.py [--dtype bfloat16] [--model ...]`.

Same weights, tokens, batches and optimizer (AdamW, fused, float32 state) on both sides, losses asserted
equal in float32: TRL's SFT term gets the weight that makes it RPO's on each batch. A step is everything from the
pairs' tokens to the update: collate, forward, backward, AdamW. The learning rate is 0, so that every
variant and batch starts from the same weights, and the reference is the policy with its last norm
moved by 2 %, so that the preference term is not ln 2 for everyone. Variants take turns on every batch in
one process; a ratio is of two variants' times on one batch. Peak memory is of one process a variant. Gradient
checkpointing, TRL's default, is off on both sides unless asked for.

TRL: default; cached (reference precomputed); cached, grouped (batches of similar lengths, from the
same pairs: totals are compared); patched head (its fused head scores completion positions only, as it
does on CUDA; on a CPU it scores every position). Ours: the paths of `choose_path`.

The floor is the matrix products a step needs with every prompt once (linear layers, attention, head at
response tokens; forward and backward) over the rate of the machine in the same run: on square
matrices, and on the model's own shapes. Writes results/vs_trl_<device>_<dtype>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from vs_trl_machine import DENSE_BF16_FLOPS, device_name, gemm_rate, peak_mib
from vs_trl_sides import OURS, THEIRS, TRL, Ours, make_variants, names
from vs_trl_workload import LLAMA, PAIRS, Batch, grouped, make_batches, needed_flops, own_shapes, padded_length

from rpo.core.records import environment, jsonable
from rpo.llm.data.collate import group_of

HERE = Path(__file__).parent
# Relative. bfloat16 rounds differently in every layout, TRL's and ours alike about 1e-2 from float32; there a batch is
# first held against TRL in float32, and what it comes to in bfloat16 is reported.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times, losses and counts of every variant on every batch, and the machine's rates."""
    wanted = names(arguments)
    with tempfile.TemporaryDirectory() as folder:
        variants, (policy, tokenizer) = make_variants(arguments, wanted, folder)
    batches = make_batches(arguments, tokenizer)
    by_length = grouped(batches, arguments.pairs)
    exact = None if arguments.lora else float32_error(variants, batches[0])
    for variant in variants.values():
        variant.prepare(batches)
    rows: dict[str, dict[str, Any]] = {name: {"seconds": [], "fed": [], "loss": []} for name in wanted}
    rates: dict[str, list[float]] = {"square": [], "own_shapes": []}
    floors: dict[str, list[float]] = {"cached": [], "live": []}
    side, dtype = (8192 if arguments.device == "cuda" else 2048), getattr(torch, arguments.dtype)
    if arguments.model == "tiny":
        side = 64
    for turn, (batch, similar) in enumerate(zip(batches, by_length, strict=True)):
        groups = [group_of(pair) for pair in batch]
        if turn:
            rates["square"].append(gemm_rate([(side, side, side)], dtype, arguments.device))
            rates["own_shapes"].append(gemm_rate(own_shapes(policy, groups), dtype, arguments.device))
            for kind, times in floors.items():
                times.append(needed_flops(policy, groups, shared=True, reference=kind == "live"))
        order = wanted[turn % len(wanted) :] + wanted[: turn % len(wanted)]
        for name in order:
            regrouped = name in THEIRS and THEIRS[name][2]
            seconds, loss = variants[name](similar if regrouped else batch)
            if turn:  # the first batch warms up
                row = rows[name]
                row["seconds"].append(seconds)
                row["loss"].append(loss)
                row["fed"].append(variants[name].fed(similar if regrouped else batch))
                print(f"batch {turn} {name}: {seconds:.3f} s, loss {loss:.6f}", file=sys.stderr, flush=True)
    tokens = [sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in b) for b in batches[1:]]
    for variant in variants.values():
        if isinstance(variant, Ours):
            rows[next(n for n, v in variants.items() if v is variant)]["path"] = variant.path.name
    return {"variants": rows, "rates": rates, "flops": floors, "tokens": tokens, "loss_error_float32": exact}


def float32_error(variants: dict[str, Any], batch: Batch) -> float:
    """Return the largest relative difference of a loss from TRL's default, all in float32; stop at one too large."""
    found = {}
    for name, variant in variants.items():
        dtype, variant.dtype = variant.dtype, torch.float32
        variant.prepare([batch])
        found[name] = {"loss": [variant(batch)[1]]}
        variant.dtype = dtype
    return check_losses({"variants": found}, "float32")


def check_losses(found: dict[str, Any], dtype: str) -> float:
    """Return the largest relative difference of a loss from TRL's default; stop at one beyond the tolerance."""
    expected = found["variants"]["TRL default"]["loss"]
    worst = 0.0
    for name, row in found["variants"].items():
        if name in THEIRS and THEIRS[name][2]:
            continue  # other batches
        off = max(abs(a - b) / abs(b) for a, b in zip(row["loss"], expected, strict=True))
        if not off <= LOSS_TOLERANCE[dtype]:
            raise SystemExit(
                f"{name}: its loss is not TRL's, off by {off:.1e} (tolerance {LOSS_TOLERANCE[dtype]:.0e})."
            )
        worst = max(worst, off)
    return worst


def ratio(found: dict[str, Any], baseline: str, name: str) -> list[float]:
    """Return median, least and largest quotient of the times on one batch; of totals only, where batches differ."""
    slow, fast = (found["variants"][which]["seconds"] for which in (baseline, name))
    if any(which in THEIRS and THEIRS[which][2] for which in (baseline, name)) and baseline != name:
        return [sum(slow) / sum(fast)]
    quotients = [a / b for a, b in zip(slow, fast, strict=True)]
    return [median(quotients), min(quotients), max(quotients)]


def summarise(found: dict[str, Any], memory: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one record a variant: times, ratios, share of the floor, memory, tokens a second."""
    rates = {name: median(values) for name, values in found["rates"].items()}
    baselines = [name for name in THEIRS if name in found["variants"]]
    records = {}
    for name, row in found["variants"].items():
        cached = OURS[name][1] if name in OURS else THEIRS[name][0]
        flops = found["flops"]["cached" if cached else "live"]
        record: dict[str, Any] = {
            "seconds": median(row["seconds"]),
            "fed_tokens": int(sum(row["fed"])),
            "tokens_per_second": sum(found["tokens"]) / sum(row["seconds"]),
            "peak_mib": memory.get(name),
            "ratios": {baseline: ratio(found, baseline, name) for baseline in baselines},
            "of_floor": {kind: sum(flops) / rate / sum(row["seconds"]) for kind, rate in rates.items()},
        }
        if "path" in row:
            record["path"] = row["path"]
        peak = next((f for kind, f in DENSE_BF16_FLOPS.items() if kind in device_name(arguments.device)), None)
        if peak is not None:
            record["model_flops_utilisation"] = sum(flops) / sum(row["seconds"]) / peak
        records[name] = record
    return {"rates": rates, "variants": records}


def markdown(record: dict[str, Any]) -> str:
    """Return the table of a record as written by `main`."""
    baselines = [name for name in ("TRL default", "TRL cached", "TRL cached, grouped", "TRL cached, patched head")
                 if name in record["variants"]]  # fmt: skip
    heads = ["variant", "s a step", "tokens fed", *(f"x {name}" for name in baselines), "peak MiB", "% of floor"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in record["variants"].items():
        ratios = []
        for baseline in baselines:
            middle, *ends = row["ratios"][baseline]
            ratios.append(f"{middle:.2f}" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else ""))
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
        floor = f"{100 * row['of_floor']['square']:.0f} ({100 * row['of_floor']['own_shapes']:.0f})"
        cells = [name, f"{row['seconds']:.3f}", f"{row['fed_tokens']:,}", *ratios, peak, floor]
        lines.append("| " + " | ".join(cells) + " |")
    rates = {name: rate / 1e9 for name, rate in record["rates"].items()}
    exact = record["measured"]["loss_error_float32"]
    exact = "" if exact is None or record["dtype"] == "float32" else f" ({exact:.0e} in float32)"
    lines.append("")
    lines.append(
        f"{record['device']}, {record['dtype']}, {record['model']}, {record['batches']} batches of {record['pairs']} "
        f"pairs, {record['tokens']:,} tokens. x: the baseline's time over the variant's on the same batch, median "
        f"(range). Floor: products needed at {rates['square']:,.0f} GFLOP/s (square matrices; in parentheses at "
        f"{rates['own_shapes']:,.0f}, the model's shapes); {record['tflop_cached']:.2f} TFLOP with the reference "
        f"cached, {record['tflop_live']:.2f} live. Losses equal to {record['loss_error']:.0e}{exact}."
    )
    return "\n".join(lines)


def memory_of(name: str, arguments: argparse.Namespace) -> float:
    """Return the peak of a process of its own that takes two steps with the batch of most tokens as one variant."""
    given = [item for item in sys.argv[1:] if item != "--smoke"] if arguments.argv is None else arguments.argv
    command = [sys.executable, __file__, *given, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def only(name: str, arguments: argparse.Namespace) -> None:
    """Take steps as one variant and print the peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        variants, (_, tokenizer) = make_variants(arguments, [name], folder)
    batches = make_batches(arguments, tokenizer)
    if name in THEIRS and THEIRS[name][2]:
        batches = grouped(batches, arguments.pairs)
    largest = max(batches, key=lambda batch: sum(map(padded_length, batch)))
    variant: Any = variants[name]
    variant.prepare([largest])
    if variant.cached:  # the policy alone
        variant.reference = None
        if isinstance(variant, TRL):
            variant.trainer.ref_model = None
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        variant(largest)
    print(peak_mib(arguments.device))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, those given kept for processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", ""), help=f"a folder, or one of {[*LLAMA]}")
    parser.add_argument("--data", default=str(PAIRS), help="preference pairs, for a model with a tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of matrix products")
    parser.add_argument("--weights", default="float32", choices=["float32", "bfloat16"], help="what they are kept in")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=4, help="pairs a batch")
    parser.add_argument("--min-tokens", type=int, default=0, help="of prompt and chosen response together")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--lora", type=int, default=0, help="train an adapter of this rank on weights of --dtype")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--variants", nargs="+", choices=[*THEIRS, *OURS], metavar="NAME", help="these only")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--output", default=None, help="the JSON file; by default in results/, none with --smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one batch; nothing is written")
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.argv = None if argv is None else list(argv)
    if arguments.smoke:
        arguments.model, arguments.batches = "tiny", 1
    if not arguments.model:
        parser.error("--model: expected a folder (or set RPO_SMOLLM2: rpo convert-gguf makes one) or a name")
    torch.set_num_threads(arguments.threads)
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, check, print, write; return the record."""
    arguments = parse(argv)
    transformers.logging.set_verbosity_error()
    if arguments.only is not None:
        only(arguments.only, arguments)
        return {}
    memory = {} if arguments.no_memory else {name: memory_of(name, arguments) for name in names(arguments)}
    found = measure(arguments)
    flops = found["flops"]
    record = {
        "environment": environment(),
        "load_average": os.getloadavg(),
        "device": device_name(arguments.device),
        "dtype": arguments.dtype,
        "model": Path(arguments.model).name,
        "lora": arguments.lora,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "batches": arguments.batches,
        "pairs": arguments.pairs,
        "tokens": sum(found["tokens"]),
        "tflop_cached": sum(flops["cached"]) / 1e12,
        "tflop_live": sum(flops["live"]) / 1e12,
        "loss_error": check_losses(found, arguments.dtype),
        **summarise(found, memory, arguments),
        "measured": found,
    }
    print(markdown(record))
    if not arguments.smoke or arguments.output:
        kind = f"vs_trl_{arguments.device}_{arguments.dtype}"
        if arguments.model in LLAMA:
            kind += f"_{arguments.model}"
        if arguments.pairs != 4:
            kind += f"_{arguments.pairs}pairs"
        path = Path(arguments.output or HERE / "results" / f"{kind}.json")
        path.write_text(json.dumps(jsonable(record), indent=2) + "\n")
        print(f"written to {path}")
    return record


if __name__ == "__main__":
    main()
