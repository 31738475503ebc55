"""What the machine does: seconds, peak memory, the rate of its matrix products."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

DENSE_BF16_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def clock(device: str) -> float:
    """Return seconds, after all that was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib(device: str) -> float:
    """Return this process's peak memory in MiB, of the GPU where there is one."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # getrusage would count the parent's pages, inherited when it forked
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def gemm_rate(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: str) -> float:
    """Return floating-point operations a second of products (M, K) x (K, N), best of three each."""
    operations = seconds = 0.0
    for m, k, n in shapes:
        left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        times = []
        for _ in range(3):
            start = clock(device)
            left @ right
            times.append(clock(device) - start)
        operations, seconds = operations + 2.0 * m * k * n, seconds + min(times)
    return operations / seconds


def device_name(device: str) -> str:
    """Return the GPU's name, or how many threads the CPU was given."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
