"""A training step on lists of K responses, every prompt once against a prompt a response.

`python benchmarks/lists.py` writes results/lists.json and prints its table; `--smoke` is a tiny model and writes
nothing. A Llama of random weights, by default six of SmolLM2's thirty layers with its head, or a folder. Random tokens:
prompts of 200, responses of 16 to 128 (log-normal around 60). A step is collate, forward and backward of Plackett-Luce
DPO with the reference's values at hand, without the update, whose cost does not depend on the layout. Padded, packed
and shared take turns on every batch in one process and thread; times are the processor's, which other work on the
machine disturbs less than the clock's, and a ratio is of two of them on one batch, whose losses must agree.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

import rpo
from rpo.core.columns import Columns
from rpo.core.records import environment, write_json
from rpo.llm.data import TokenizedGroup
from rpo.llm.data.collate import PairCollator, parted_by_size
from rpo.llm.logps.packing import PackedPath, SharedPrefixPath, choose_path
from rpo.llm.logps.scoring import PaddedPath

HERE = Path(__file__).parent
SIZES = {"2": (2,), "4": (4,), "8": (8,), "2 and 8": (2, 8)}  # responses to each prompt of a batch
LLAMA = {
    "tiny": (128, 32, 64, 2, 4, 2),
    "six layers": (49_152, 576, 1536, 6, 9, 3),  # vocabulary, hidden, inner, layers, heads, those of keys
}
PROMPT, RESPONSE = 200, (60, 0.6, 16, 128)  # tokens; median, sigma, least, most
OBJECTIVE = rpo.PlackettLuceDPO(beta=0.1)


def make_model(name: str, dtype: str) -> Any:
    """Return the model in training mode."""
    if name in LLAMA:
        vocabulary, hidden, inner, layers, heads, keys = LLAMA[name]
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=keys, pad_token_id=0, bos_token_id=None, eos_token_id=1,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).train()
    return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).train()


def make_batches(sizes: tuple[int, ...], count: int, vocabulary: int) -> list[list[TokenizedGroup]]:
    """Return batches of groups of the given sizes, random tokens."""
    rng = np.random.default_rng(0)
    middle, sigma, least, most = RESPONSE

    def response() -> tuple[int, ...]:
        length = int(np.clip(rng.lognormal(np.log(middle), sigma), least, most))
        return tuple(rng.integers(4, vocabulary, size=length).tolist())

    return [
        [
            TokenizedGroup(
                tuple(rng.integers(4, vocabulary, size=PROMPT).tolist()), tuple(response() for _ in range(k)), row
            )
            for row, k in enumerate(sizes)
        ]
        for _ in range(count)
    ]


def step(model: Any, path: Any, batch: list[TokenizedGroup]) -> tuple[float, float, int]:
    """Return processor seconds, loss and tokens fed of one step; the reference is the policy, moved a little."""
    began = time.process_time()
    inputs = PairCollator(path)(batch)
    logps = path.logps(model, inputs)
    reference = logps.detach() + 0.01 * inputs["lengths"]
    loss = logps.new_zeros(())
    for k, part in parted_by_size({"policy": logps, "reference": reference}, inputs["sizes"].tolist()):
        columns = Columns(logps=part["policy"][:, :k].unbind(1), reference=part["reference"][:, :k].unbind(1))
        loss = loss + OBJECTIVE.per_pair(columns).sum() / len(batch)
    loss.backward()
    seconds = time.process_time() - began
    model.zero_grad()
    return seconds, loss.item(), inputs["input_ids"].numel()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times, tokens and ratios by the sizes of a batch and by path."""
    model = make_model(arguments.model, arguments.dtype)
    if not isinstance(choose_path(model, 0), SharedPrefixPath):
        raise SystemExit("This model cannot share prompts.")
    paths: dict[str, Any] = {"padded": PaddedPath(0), "packed": PackedPath(), "shared": SharedPrefixPath()}
    found: dict[str, Any] = {}
    for name, sizes in SIZES.items():
        rows: dict[str, dict[str, list[float]]] = {path: {"seconds": [], "fed": [], "loss": []} for path in paths}
        for turn, batch in enumerate(make_batches(sizes, arguments.batches + 1, model.config.vocab_size)):
            order = list(paths)[turn % 3 :] + list(paths)[: turn % 3]
            for path in order:
                seconds, loss, fed = step(model, paths[path], batch)
                if turn:  # the first batch warms up
                    for key, value in (("seconds", seconds), ("fed", fed), ("loss", loss)):
                        rows[path][key].append(value)
            losses = [rows[path]["loss"][-1] for path in paths] if turn else [0.0]
            if max(losses) - min(losses) > 1e-3 * max(1.0, abs(losses[0])):
                raise SystemExit(f"{name}: losses differ between paths: {losses}")
            print(f"{name}, batch {turn} of {arguments.batches}", flush=True)
        found[name] = rows
    return found


def table(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = ["| responses a prompt | path | s a step | tokens fed | padded over it: tokens | time, median (range) |"]
    lines.append("|---" * 6 + "|")
    for name, rows in record["measured"].items():
        for path, row in rows.items():
            ratios = [a / b for a, b in zip(rows["padded"]["seconds"], row["seconds"], strict=True)]
            tokens = sum(rows["padded"]["fed"]) / sum(row["fed"])
            spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            fed = f"{np.mean(row['fed']):,.0f}"
            lines.append(f"| {name} | {path} | {median(row['seconds']):.2f} | {fed} | {tokens:.2f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="six layers", help=f"{', '.join(LLAMA)}, or a folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smoke:
        arguments.model, arguments.batches = "tiny", 2
    record = {
        "settings": {"model": Path(arguments.model).name, **{k: v for k, v in vars(arguments).items() if k != "model"}},
        "measured": measure(arguments),
        "environment": environment(),
    }
    print(table(record))
    if not arguments.smoke:
        write_json(HERE / "results" / "lists.json", record)


if __name__ == "__main__":
    main()
