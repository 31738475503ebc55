"""A step of RPO against Unsloth's on a CPU: `python benchmarks/vs_unsloth.py --peer ENVIRONMENT/bin/python`.

Unsloth asks for other versions of transformers and TRL than we are tested with, so it has an environment of its own,
and every variant is a process: this one tells each in turn which batch to take, and each answers with its seconds, its
processor seconds, its loss and its peak memory since the first step. Pairs, objective and AdamW are those of vs_trl.py;
the losses of a batch are held against each other. The learning rate is 0. The reference is the policy with its last
norm moved; with LoRA it is the model without its adapter, which starts at random. A ratio is of times on one batch.

Unsloth: its model, loaded and prepared by it, in TRL's DPOTrainer as it patches it; as it comes, with gradient
checkpointing and the reference live, and at its fastest, with neither. In bfloat16 it keeps the weights it trains,
their gradients and AdamW's state in bfloat16, under autocast; ours keeps them in float32 where it trains all weights.
Writes results/vs_unsloth.json as every setting ends, from which `python benchmarks/tables.py` writes the table.
"""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):  # first: it patches what the others import
    import unsloth

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from vs_trl_machine import device_name, peak_mib
from vs_trl_sides import TRL, Ours, Side, make_trl
from vs_trl_workload import LLAMA, PAIRS, Batch, make_batches, make_model, make_reference

from rpo.core.records import environment, write_json

HERE = Path(__file__).parent
DEFAULT = "ours"
OURS = (DEFAULT, "ours, checkpointing")
VARIANTS = {  # gradient checkpointing, reference cached
    "Unsloth": (True, False),
    "Unsloth, no checkpointing, cached": (False, True),
    DEFAULT: (False, True),
    "ours, checkpointing": (True, True),
}
LOSS_TOLERANCE = 1e-4  # relative, in float32; in bfloat16, which each side uses in its way, it is reported
PACKAGES = ("torch", "transformers", "trl", "peft")


class Setting(NamedTuple):
    """What is trained: dtype, the rank of an adapter or 0, pairs a batch, batches that are timed."""

    dtype: str
    lora: int
    pairs: int
    batches: int = 2


SETTINGS = [
    Setting("float32", 0, 8),
    Setting("bfloat16", 0, 8),
    Setting("float32", 16, 8),
    Setting("bfloat16", 16, 8),
    Setting("float32", 0, 4),
]


def load(arguments: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """Return Unsloth's policy and its tokenizer from a folder; a model of random weights is written to one first."""
    path = arguments.model
    if path in LLAMA:
        path = str(Path(folder, "model"))
        for made in make_model(argparse.Namespace(**vars(arguments) | {"lora": 0, "gradient_checkpointing": False})):
            made.save_pretrained(path)
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        path,
        max_seq_length=arguments.max_length,
        dtype=torch.float32 if arguments.dtype == "float32" else None,  # its own choice
        load_in_4bit=False,
        full_finetuning=not arguments.lora,
        use_gradient_checkpointing="unsloth" if arguments.gradient_checkpointing else False,
    )
    if arguments.lora:
        model = unsloth.FastLanguageModel.get_peft_model(model, r=arguments.lora, lora_alpha=8)  # PEFT's 8, as ours
    return model.train(), tokenizer


def make_variant(arguments: argparse.Namespace, folder: str) -> tuple[Side, list[Batch]]:
    """Return a variant and its batches, the reference scored and gone where it is cached."""
    arguments.gradient_checkpointing, cached = VARIANTS[arguments.variant]
    own = arguments.variant in OURS
    policy, tokenizer = make_model(arguments) if own else load(arguments, folder)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    reference = None if arguments.lora else make_reference(policy)
    rest = (arguments, policy, reference, torch.optim.AdamW(trained, lr=0.0, fused=True))
    batches = make_batches(arguments, tokenizer)
    batches[0] = batches[0][:1]  # it only warms up
    trainer = None if own else make_trl(arguments, policy, reference, tokenizer, folder)
    if arguments.lora:  # not before TRL's trainer has kept the adapter it is given, of zeros, as its reference
        torch.manual_seed(0)
        for parameter in trained:
            torch.nn.init.normal_(parameter, std=0.02)
    if trainer is None:
        ours = Ours("shared", *rest, cached=True, pad_token_id=tokenizer.pad_token_id or 0)
        ours.reference = reference or policy
        with contextlib.nullcontext() if reference else policy.disable_adapter():
            ours.prepare(batches)
        ours.reference = None
        return ours, batches
    peer = TRL(trainer, *rest, cached=cached, patched=False)
    peer.prepare(batches)
    if cached:
        trainer.ref_model = peer.reference = None
    return peer, batches


def serve(arguments: argparse.Namespace) -> None:
    """Take a step with every batch whose number is read, and answer with a line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        variant, batches = make_variant(arguments, folder)
    versions = {name: version(name) for name in (*PACKAGES, *(["unsloth"] if "unsloth" in globals() else []))}
    weights = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in variant.model.parameters()})
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is of what follows
    print(json.dumps({"weights": weights, "versions": versions}), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        seconds, loss = variant(batches[int(line)])
        answer = {"seconds": seconds, "processor_seconds": time.process_time() - began, "loss": loss}
        print(json.dumps(answer | {"peak_mib": peak_mib("cpu")}), flush=True)


class Process:
    """A variant in a process of its own."""

    def __init__(self, name: str, setting: Setting, arguments: argparse.Namespace) -> None:
        self.name = name
        given = {"model": arguments.model, "data": arguments.data, "threads": arguments.threads, "variant": name}
        words = [f"--{option}={value}" for option, value in (given | setting._asdict()).items()]
        self.process: Any = subprocess.Popen(
            [sys.executable if name in OURS else arguments.peer, __file__, *words],
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},  # the peer's environment has no rpo
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Return what it said; Unsloth's own words are passed over."""
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self.name}: ended with code {self.process.wait()}.")

    def ask(self, number: int) -> dict[str, Any]:
        """Return what a step with a batch came to."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what every variant needed for every batch, in turns; stop at a loss that is not the others'."""
    with contextlib.ExitStack() as stack:
        processes = []
        for name in arguments.variants:
            processes.append(Process(name, setting, arguments))
            stack.callback(processes[-1].close)
        rows: dict[str, Any] = {process.name: process.answer() | {"steps": []} for process in processes}
        for number in range(setting.batches + 1):
            turn = number % len(processes)
            for process in processes[turn:] + processes[:turn]:
                step = process.ask(number)
                print(f"{setting}, batch {number}, {process.name}: {step}", file=sys.stderr, flush=True)
                if number:  # the first warms up
                    rows[process.name]["steps"].append(step)
    return setting._asdict() | {"variants": rows, "loss_error": loss_error(setting.dtype, rows)}


def loss_error(dtype: str, rows: dict[str, Any]) -> float:
    """Return the largest relative difference of losses on one batch; in float32 stop at one beyond the tolerance."""
    worst = 0.0
    for steps in zip(*(row["steps"] for row in rows.values()), strict=True):
        losses = [step["loss"] for step in steps]
        worst = max(worst, (max(losses) - min(losses)) / min(map(abs, losses)))
    if dtype == "float32" and not worst <= LOSS_TOLERANCE:
        raise SystemExit(f"Losses of one batch are off by {worst:.1e} (tolerance {LOSS_TOLERANCE:.0e}).")
    return worst


def summary(rows: dict[str, Any], name: str) -> list[str]:
    """Return a variant's cells: times, its times over ours on the same batch, median (range), memory, ours over it."""
    row, ours = rows[name]["steps"], rows[DEFAULT]["steps"]
    middles, ratios = [], []
    for kind in ("seconds", "processor_seconds"):
        middles.append(f"{median(step[kind] for step in row):.2f}")
        quotients = [step[kind] / own[kind] for step, own in zip(row, ours, strict=True)]
        ratios.append(f"{median(quotients):.2f} ({min(quotients):.2f}-{max(quotients):.2f})")
    peak, own = (max(step["peak_mib"] for step in steps) for steps in (row, ours))
    return [*middles, *ratios, f"{peak:,.0f}", f"{100 * own / peak:.0f} %"]


def markdown(record: dict[str, Any]) -> str:
    """Return the table of a record as written by `main`."""
    heads = ["trained", "variant", "weights", "s a step", "processor s", "x ours", "x ours, processor", "peak MiB",
             "ours, of its peak"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for found in record["settings"]:
        what = f"LoRA of rank {found['lora']}" if found["lora"] else "all"
        what += f", {found['dtype']}, {found['pairs']} pairs"
        for name, row in found["variants"].items():
            cells = [what, name, ", ".join(row["weights"]), *summary(found["variants"], name)]
            lines.append("| " + " | ".join(cells) + " |")
    rows = record["settings"][0]["variants"]
    theirs, own = (
        ", ".join(f"{name} {number}" for name, number in rows[variant]["versions"].items())
        for variant in (next(iter(rows)), DEFAULT)
    )
    errors = [f"{found['loss_error']:.0e} ({found['dtype']})" for found in record["settings"]]
    lines.append("")
    lines.append(
        f"{record['device']}, {record['model']}, commit {record['environment']['commit']}, load average at the start "
        f"{record['load_average'][0]:.1f}, {record['settings'][0]['batches']} batches, median (range). Unsloth's side: "
        f"{theirs}; ours: {own}. Losses of a batch equal to {', '.join(errors)}."
    )
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments; those of one variant's process among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=os.environ.get("RPO_UNSLOTH"), help="the Python that has Unsloth")
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", ""), help="a folder")
    parser.add_argument("--data", default=str(PAIRS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], metavar="NAME")
    parser.add_argument("--settings", nargs="+", type=int, default=[*range(len(SETTINGS))], help="by number, from 0")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vs_unsloth.json")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one batch; nothing is written")
    for option, kind in {"--variant": str, "--dtype": str, "--lora": int, "--pairs": int, "--batches": int}.items():
        parser.add_argument(option, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        arguments.model = "tiny"
    if not arguments.model:
        parser.error("--model: expected a folder (or set RPO_SMOLLM2: rpo convert-gguf makes one)")
    if not (arguments.variant or arguments.peer or {*arguments.variants} <= {*OURS}):
        parser.error("--peer: expected the Python that has Unsloth (or set RPO_UNSLOTH; see benchmarks/README.md)")
    torch.set_num_threads(arguments.threads)
    return arguments


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, check, write, print; return the record."""
    arguments = parse(argv)
    if arguments.variant:
        vars(arguments).update(device="cpu", weights="float32", max_length=1024, min_tokens=0)
        serve(arguments)
        return {}
    record: dict[str, Any] = {
        "environment": environment(),
        "load_average": os.getloadavg(),
        "device": device_name("cpu"),
        "model": Path(arguments.model).name,
        "settings": [],
    }
    for number in arguments.settings:
        setting = SETTINGS[number]._replace(batches=1) if arguments.smoke else SETTINGS[number]
        record["settings"].append(measure(setting, arguments))
        if not arguments.smoke:
            write_json(arguments.output, record)
    print(markdown(record))
    return record


if __name__ == "__main__":
    main()
