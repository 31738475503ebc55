"""Part `profile` of benchmarks/gpu.py: one step of the shared path at 1B, kernel by kernel.

Kernels are told apart by their names. The head's matrix products have the names of the layers': the head is profiled
once more on its own, at the step's shapes, and what it takes is subtracted from the kind its kernels are of. A live
reference's head stays among the layers.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from gpu_record import Recorder
from gpu_trl import parsed
from torch.profiler import ProfilerActivity, profile
from vs_trl_sides import make_variants
from vs_trl_workload import make_batches

from rpo.llm.data.collate import group_of
from rpo.llm.logps.head import head_logps

# The first kind of which a kernel's name has a word, in lower case.
KINDS = {
    "attention": ("flex", "flash", "fmha", "attention", "varlen", "triton_tem"),
    "optimizer": ("adam", "multi_tensor"),
    "linear layers": ("gemm", "nvjet", "cublas", "cutlass", "xmma", "splitk", "::mm", "::addmm", "aten::linear"),
    "copies and casts": ("copy", "memcpy", "memset", "::to", "cast", "fill"),
}
REST = "everything else"
VARIANTS = ["ours, shared, live", "ours, shared, cached"]


def run(recorder: Recorder) -> None:
    """Profile a step with the reference cached and one with it live."""
    transformers.logging.set_verbosity_error()
    name = "tiny" if recorder.dry else "llama-1b"
    arguments = parsed(recorder, name, lora=0, pairs=2 if recorder.dry else 8, batches=1)
    with tempfile.TemporaryDirectory() as folder:
        variants, (policy, tokenizer) = make_variants(arguments, VARIANTS, folder)
    _, batch = make_batches(arguments, tokenizer)
    for which in reversed(VARIANTS):
        variant = variants[which]
        with recorder.measured(kind="profile", variant=which) as row:
            variant.prepare([batch])
            for _ in range(3):
                row["seconds"] = variant(batch)[0]  # the last: without the profiler, compiled
            found = kernels_of(recorder, lambda variant=variant: variant(batch))
            tokens = sum(len(response) for pair in batch for response in group_of(pair).responses)
            head = kernels_of(recorder, lambda tokens=tokens: head_alone(policy, tokens, recorder.device))
            row |= described(found, head)


def head_alone(policy: Any, tokens: int, device: str) -> None:
    """Run the output layer at so many tokens, forward and backward, as a step does."""
    weight = policy.get_output_embeddings().weight
    hidden = torch.randn(tokens, weight.shape[1], device=device, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)
    with torch.autocast(device, torch.bfloat16):
        logps = head_logps(hidden, weight, None, targets)
    torch.autograd.grad(logps.sum(), [hidden, weight])


def kernels_of(recorder: Recorder, step: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return name, start and duration (us) of every kernel of a step; on a CPU, of operators without what they call."""
    activities = [ProfilerActivity.CUDA if recorder.device == "cuda" else ProfilerActivity.CPU]
    step()
    recorder.synchronize()
    with profile(activities=activities) as profiler:
        step()
        recorder.synchronize()
    events: Any = [event for event in profiler.events() if not getattr(event, "is_user_annotation", False)]
    if recorder.device == "cpu":
        return [(event.name, event.time_range.start, event.self_cpu_time_total) for event in events]
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return [(event.name, event.time_range.start, event.time_range.elapsed_us()) for event in kernels]


def kind_of(name: str) -> str:
    """Return what a kernel is for."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), REST)


def described(found: list[tuple[str, float, float]], head: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Return shares of the kernels' time by kind, with the head's apart; the share without a kernel; the 25 longest."""
    total = sum(took for *_, took in found)
    by_kind, of_head, by_name, calls = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for name, _, took in found:
        by_kind[kind_of(name)] += took
        by_name[name] += took
        calls[name] += 1
    for name, _, took in head:
        of_head[kind_of(name)] += took
    shares = {kind: (by_kind[kind] - of_head[kind]) / total for kind in (*KINDS, REST)}
    busy, span = covered((start, start + took) for _, start, took in found)
    return {
        "kernel_ms": total / 1e3,
        "busy_ms": busy / 1e3,
        "span_ms": span / 1e3,
        "idle_share": 1 - busy / span,
        "shares": {"head": sum(of_head.values()) / total} | shares,
        "kernels": [
            {"name": name, "kind": kind_of(name), "ms": took / 1e3, "calls": calls[name], "share": took / total}
            for name, took in by_name.most_common(25)
        ],
    }


def covered(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return how much the ranges cover together, and from the first start to the last stop."""
    busy, first, last = 0.0, None, 0.0
    for start, stop in sorted(ranges):
        first, last = (start, start) if first is None else (first, last)
        busy += max(0.0, stop - max(start, last))
        last = max(last, stop)
    return busy, last - (first or 0.0)
