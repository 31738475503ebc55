"""Parts `trl` and `long` of benchmarks/gpu.py: a training step against TRL's, as benchmarks/vs_trl.py takes it.

One row a step: seconds, tokens, operations and memory; the tables are made from these. Tokens are useful where they are
distinct: the prompt once, and both responses. Fed is what the policy gets, repeats and padding included. Operations
are `needed_flops` of the useful tokens, with the reference's forward pass where it is live, whatever was computed.
Static memory is what is held before a step and the gradients; the peak is above that.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
import vs_trl
from gpu_paths import set_checkpointing, size_of
from gpu_record import Recorder
from vs_trl_machine import DENSE_BF16_FLOPS, gemm_rate
from vs_trl_sides import OURS, THEIRS, make_variants
from vs_trl_workload import LLAMA, Batch, make_batches, needed_flops, own_shapes

from rpo.llm.data import TokenizedGroup, TokenizedPair
from rpo.llm.data.collate import group_of

CACHED = ["TRL default", "TRL cached", "ours, padded, cached", "ours, packed, cached", "ours, shared, cached"]
VARIANTS = [*CACHED, "ours, shared, live"]
LONG = ["TRL default", "TRL cached", "ours, shared, live", "ours, shared, cached"]
# model, LoRA rank, prompt tokens, pairs a batch, gradient checkpointing. In order of worth; neighbours share a model.
SETTINGS = [
    ("llama-1b", 0, 1024, 4, False),
    ("llama-1b", 0, 8192, 1, False),
    ("llama-1b", 0, 4096, 2, False),
    ("llama-8b", 16, 8192, 1, True),
    ("llama-8b", 16, 1024, 4, True),
    ("llama-8b", 16, 4096, 2, True),
    ("llama-8b", 0, 4096, 2, True),
]
RESPONSES = (230, 270)  # tokens, from and to


def run(recorder: Recorder) -> None:
    """Take steps at UltraFeedback-like lengths."""
    transformers.logging.set_verbosity_error()
    name, pairs, count = ("tiny", 2, 2) if recorder.dry else ("llama-1b", 8, 6)
    arguments = parsed(recorder, name, lora=0, pairs=pairs, batches=count)
    with tempfile.TemporaryDirectory() as folder:
        with recorder.measured(kind="model", name=name):
            variants, (policy, tokenizer) = make_variants(arguments, VARIANTS, folder)
        take(recorder, variants, policy, make_batches(arguments, tokenizer), setting=f"{name}, UltraFeedback-like")


def run_long(recorder: Recorder) -> None:
    """Take steps at long prompts."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Any] = {}
        policy, made = None, None
        for name, lora, prompt, pairs, checkpointing in SETTINGS:
            setting = f"{name}, {f'LoRA {lora}' if lora else 'full'}, prompts of {prompt}"
            name = "tiny" if recorder.dry else name
            if recorder.left() < 25:
                recorder.row(kind="left out", setting=setting)
                continue
            if made != (name, lora):
                policy, made = None, (name, lora)
                variants.clear()
                gc.collect()
                if recorder.device == "cuda":
                    torch.cuda.empty_cache()
                with recorder.measured(kind="model", name=name, lora=lora):
                    arguments = parsed(recorder, name, lora=lora, pairs=pairs, batches=2)
                    # Adam's state of 8B parameters has no room beside them: a step without it.
                    stateless = name == "llama-8b" and not lora
                    wanted = LONG if not stateless else [which for which in LONG if "cached" in which]
                    variants, (policy, _) = make_variants(arguments, wanted, folder)
                    if stateless:
                        plain = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.0)
                        for variant in variants.values():
                            variant.optimizer = plain
            batches = long_batches(prompt, pairs, LLAMA[name]["vocab_size"], recorder)
            if policy is not None:
                take(recorder, variants, policy, batches, setting=setting, checkpointing=checkpointing)


def parsed(recorder: Recorder, name: str, *, lora: int, pairs: int, batches: int) -> Any:
    """Return the arguments of benchmarks/vs_trl.py; a full 8B model is kept in bfloat16."""
    given = ["--model", name, "--device", recorder.device, "--dtype", "bfloat16", "--lora", lora, "--pairs", pairs]
    given += ["--batches", batches, "--weights", "bfloat16" if name == "llama-8b" else "float32"]
    return vs_trl.parse(list(map(str, given)))


def long_batches(prompt: int, pairs: int, vocabulary: int, recorder: Recorder) -> list[Batch]:
    """Return four batches, the first to warm up, of random tokens."""
    rng = np.random.default_rng(prompt)
    prompt, (low, high) = (prompt // 128, (4, 9)) if recorder.dry else (prompt, RESPONSES)

    def words(size: int) -> tuple[int, ...]:
        return tuple(rng.integers(4, vocabulary, size=size).tolist())

    def pair(row: int) -> TokenizedGroup:
        sizes = rng.integers(low, high, size=2)
        return TokenizedPair(words(prompt - int(rng.integers(prompt // 8))), *map(words, map(int, sizes)), row=row)

    return [[pair(pairs * batch + k) for k in range(pairs)] for batch in range(3 if recorder.dry else 4)]


def take(
    recorder: Recorder,
    variants: dict[str, Any],
    policy: Any,
    batches: Sequence[Batch],
    *,
    setting: str,
    checkpointing: bool = False,
) -> None:
    """Let the variants take turns on every batch; what does not fit the memory is tried with checkpointing."""
    for variant in variants.values():
        set_checkpointing(variant.model, checkpointing)
        if hasattr(variant, "known"):
            variant.known = {}
    if "TRL default" in variants or "TRL cached" in variants:
        recorder.row(kind="trl", setting=setting, head=trl_head(recorder.device))
    for turn, batch in enumerate(batches):
        groups = [group_of(pair) for pair in batch]
        if turn == 1:
            with recorder.measured(kind="rate", setting=setting) as row:
                rate = gemm_rate(own_shapes(policy, groups), torch.bfloat16, recorder.device)
                row["own_shapes"] = rate
                row["peak"] = next((flops for kind, flops in DENSE_BF16_FLOPS.items() if kind in recorder.name), None)
        if turn > 1 and recorder.left() < 6:
            recorder.row(kind="left out", setting=setting, batch=turn)
            break
        order = [*variants][turn % len(variants) :] + [*variants][: turn % len(variants)]
        for name in order:
            variant = variants[name]
            with recorder.measured(kind="step", setting=setting, variant=name, batch=turn, pairs=len(batch)) as row:
                row["checkpointing"] = checkpointing
                variant.prepare([batch])
                static = size_of(variant.model)
                variant.optimizer.zero_grad(set_to_none=True)
                with recorder.memory(row, static=static):
                    row["seconds"], row["loss"] = variant(batch)
                reference = not (OURS[name][1] if name in OURS else THEIRS[name][0])
                row["useful"] = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in batch)
                row["fed"] = variant.fed(batch)
                row["flops"] = needed_flops(policy, groups, shared=True, reference=reference)
                if hasattr(variant, "path"):
                    row["taken"] = variant.path.name
            variant.optimizer.zero_grad(set_to_none=True)
            if "OutOfMemory" in row.get("error", "") and not checkpointing and turn == 0:
                take(recorder, variants, policy, batches, setting=setting, checkpointing=True)
                return


def trl_head(device: str) -> str:
    """Return what TRL computes its log-probabilities with: its Triton kernel at scored positions, or torch at all."""
    from trl.trainer import utils

    return "triton" if utils._use_triton(torch.device(device)) else "torch"
