"""The log-softmax of the output layer as one Triton kernel on GPUs: logits are read twice and written once.

Shapes: K rows of V logits. Without Triton (CPUs, Windows) `rpo.llm.logps.head` does the same in blocks of plain torch.
"""

from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BLOCK = 4096


def takes(scores: torch.Tensor) -> bool:
    """Return whether the kernel can work on these logits."""
    return triton is not None and scores.is_cuda and scores.dtype in DTYPES and scores.stride(-1) == 1


def picked_logps_(
    scores: torch.Tensor, targets: torch.Tensor, *, scale: float, softcap: float | None, slopes: bool
) -> torch.Tensor:
    """Return the targets' log-probabilities, (K,), float32; with slopes, scores (K, V) become d logp / d scores.

    The logits are softcap * tanh(scale * scores / softcap), or scale * scores. A target outside 0..V-1 gives NaN.
    """
    logps = torch.empty(len(scores), dtype=torch.float32, device=scores.device)
    if len(scores):
        _kernel[(len(scores),)](
            scores,
            targets,
            logps,
            scores.stride(0),
            float(scale),
            float(softcap or 0.0),
            SIZE=scores.shape[1],
            CAPPED=softcap is not None,
            SLOPES=slopes,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return logps


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _logits(x, scale, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
        x = x.to(tl.float32) * scale
        if CAPPED:
            x = softcap * (2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0)  # softcap * tanh(x / softcap)
        return x

    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        scores, targets, logps, stride, scale, softcap,
        SIZE: tl.constexpr, CAPPED: tl.constexpr, SLOPES: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One row a program: the largest logit and the sum in one pass, the slopes in another."""
        row = tl.program_id(0).to(tl.int64)
        scores += row * stride
        target = tl.load(targets + row)
        inside = (target >= 0) & (target < SIZE)
        columns = tl.arange(0, BLOCK)
        # A lane each: its own largest logit and sum, joined at the end.
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, SIZE, BLOCK):
            seen = start + columns < SIZE
            x = _logits(tl.load(scores + start + columns, mask=seen, other=0.0), scale, softcap, CAPPED)
            x = tl.where(seen, x, float("-inf"))
            now = tl.where(x > largest, x, largest)
            kept = tl.where(largest == now, 1.0, tl.exp(largest - now))
            total = total * kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - now))
            largest = now
        top = tl.max(largest, axis=0)
        total = tl.sum(tl.where(total == 0.0, 0.0, total * tl.exp(largest - top)), axis=0)
        chosen = _logits(tl.load(scores + target, mask=inside, other=float("nan")), scale, softcap, CAPPED)
        tl.store(logps + row, (chosen - top) - tl.log(total))
        if SLOPES:
            for start in range(0, SIZE, BLOCK):
                seen = start + columns < SIZE
                x = _logits(tl.load(scores + start + columns, mask=seen, other=0.0), scale, softcap, CAPPED)
                slope = tl.where(start + columns == target, 1.0, 0.0) - tl.exp(x - top) / total
                if CAPPED:
                    slope *= 1.0 - (x / softcap) * (x / softcap)
                tl.store(scores + start + columns, (slope * scale).to(scores.dtype.element_ty), mask=seen)
