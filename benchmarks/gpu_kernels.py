"""Part `kernels` of benchmarks/gpu.py: every attention kernel against a dense mask in float64, output and gradients.

`off`: the norm of the difference over the norm of what is exact, for inputs already rounded; `off_token`: the largest
error of one head of one token over the mean norm of these, which a mask wrong in one place cannot hide from. Beside
each stands what torch's own attention with the dense mask comes to in the same type (`plain`); `ratio` is the largest
quotient of the two. The groups run at the same time, so that compilation does not take its turn.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_record import Recorder

from rpo.llm.logps.attention import Segments, attention

REPEATS = 5


class Case(NamedTuple):
    """One kernel on one row of `tokens`. shared: with prefixes, so that there are fewer queries than keys."""

    kernel: str
    dtype: str
    heads: tuple[int, int]  # of queries, of keys
    width: int
    tokens: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    shared: bool = True

    @property
    def name(self) -> str:
        """The case in a few words."""
        words = [self.kernel, self.dtype, "{}/{}".format(*self.heads), f"D {self.width}", f"T {self.tokens}"]
        words += [] if self.window is None else [f"window {self.window}"]
        words += [] if self.softcap is None else [f"cap {self.softcap:g}"]
        words += ["sinks"] if self.sinks else []
        return " ".join(words + ([] if self.shared else ["no prefixes"]))


BF16, FP32, FP16 = "bfloat16", "float32", "float16"
LLAMA, GEMMA = (32, 8), (8, 4)
# Most dangerous first: the part has seconds, and a shape that is new to FlexAttention is compiled for some of them.
GROUPS: dict[str, list[Case]] = {
    "flex": [
        *(Case("by_flex", BF16, LLAMA, 64, tokens) for tokens in (100, 1000, 14, 60, 127, 130, 4096)),
        Case("by_flex", BF16, LLAMA, 64, 1000, window=130),
        Case("by_flex", BF16, LLAMA, 64, 130, window=32),
        *(Case("by_flex", BF16, (4, 2), 64, tokens) for tokens in (127, 1000)),
        *(Case("by_flex", BF16, (9, 3), 64, tokens) for tokens in (100, 1000)),
        *(Case("by_flex", BF16, LLAMA, 128, tokens) for tokens in (127, 4096)),
        *(Case("by_flex", BF16, (4, 4), 64, tokens) for tokens in (100, 1000)),
        Case("by_flex", FP16, LLAMA, 64, 1000),
    ],
    "capped": [
        *(Case("by_flex", BF16, GEMMA, 256, tokens, softcap=50.0) for tokens in (100, 1000)),
        Case("by_flex", BF16, GEMMA, 256, 4096, window=1024, softcap=50.0),
        *(Case("by_flex", FP32, (4, 2), 64, tokens) for tokens in (100, 1000)),
        Case("by_flex", FP32, (4, 2), 64, 1000, window=130, softcap=2.0),
        Case("by_flex", BF16, LLAMA, 64, 1000, window=128, sinks=True),
        Case("by_flex", BF16, GEMMA, 256, 1000),
        Case("by_flex", FP32, LLAMA, 128, 127),
        Case("attend", FP32, (4, 2), 8, 100),
        Case("attend", BF16, (4, 2), 8, 100, softcap=2.0),
    ],
    "plain": [
        *(Case("by_varlen", BF16, LLAMA, 64, tokens) for tokens in (100, 1000, 14, 127, 4096)),
        Case("by_varlen", BF16, LLAMA, 64, 1000, shared=False),
        Case("by_varlen", BF16, LLAMA, 64, 1000, window=130),
        Case("by_varlen", BF16, LLAMA, 64, 100, window=7),
        *(Case("by_varlen", BF16, heads, 64, 1000) for heads in ((4, 4), (4, 2), (9, 3))),
        *(Case("by_varlen", BF16, LLAMA, width, 4096) for width in (128, 256)),
        Case("by_varlen", FP16, LLAMA, 64, 130),
        Case("attend", BF16, LLAMA, 64, 1000),
        *(Case("by_segment", BF16, LLAMA, 64, tokens) for tokens in (100, 1000, 4096)),
        Case("by_segment", BF16, LLAMA, 64, 1000, window=130),
        Case("by_segment", BF16, GEMMA, 256, 1000, softcap=50.0),
        Case("by_segment", BF16, LLAMA, 64, 1000, window=128, sinks=True),
        Case("by_segment", FP32, LLAMA, 64, 1000),
        Case("by_segment", BF16, (9, 3), 64, 127),
    ],
}


def run(recorder: Recorder, group: str) -> None:
    """Measure the cases of a group, as many as there is time for."""
    for case in GROUPS[group]:
        if recorder.dry:
            heads = (4, 4 * case.heads[1] // case.heads[0]) if case.heads[0] % 4 == 0 else (3, 1)
            case = case._replace(heads=heads, width=8, tokens=min(case.tokens, 140))
        if recorder.left() < 3:
            recorder.row(kind="left out", group=group, case=str(case))
            continue
        with recorder.measured(kind="kernel", case=case.name, group=group, **case._asdict()) as row:
            measure(recorder, case, row)


def layout(tokens: int, *, shared: bool) -> tuple[list[int], list[int]]:
    """Return lengths and prefixes of a row: a prompt, three responses to it, a prompt, a response, a lone token."""
    parts = [max(1, int(share * tokens)) for share in (0.3, 0.17, 0.13, 0.01, 0.21, 0.1)]
    lengths = [*parts, max(1, tokens - sum(parts) - 1), 1]
    prefixes = [-1, 0, 0, 0, -1, 4, 4, -1] if shared else [-1] * 8
    return lengths, prefixes


def dense_mask(lengths: Sequence[int], prefixes: Sequence[int], window: int | None) -> torch.Tensor:
    """Return (T, T), whether a token sees another."""
    sizes = torch.tensor(lengths)
    own = torch.arange(len(sizes)).repeat_interleave(sizes)
    after = torch.tensor(prefixes).repeat_interleave(sizes)
    starts = [0 if prefix < 0 else lengths[prefix] for prefix in prefixes]
    at = torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)])
    back = at[:, None] - at
    near = (back >= 0) & (back < (len(at) if window is None else window))
    return near & ((own[:, None] == own) | (after[:, None] == own))


def measure(recorder: Recorder, case: Case, row: dict[str, Any]) -> None:
    """Fill the row of a case."""
    lengths, prefixes = layout(case.tokens, shared=case.shared)
    total, dtype, device = sum(lengths), getattr(torch, case.dtype), recorder.device
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    # As models make them: heads beside one another in a token.
    tensors = [drawn(1, total, heads, case.width).transpose(1, 2) for heads in (case.heads[0], *[case.heads[1]] * 2)]
    inputs = [tensor.requires_grad_() for tensor in tensors]
    sinks = drawn(case.heads[0]).requires_grad_() if case.sinks else None
    direction = drawn(1, total, case.heads[0], case.width)
    seen = dense_mask(lengths, prefixes, case.window).to(device)
    how: dict[str, Any] = {"scaling": case.width**-0.5, "window": case.window, "softcap": case.softcap}
    wanted = [*inputs, *([] if sinks is None else [sinks])]
    segments = Segments(lengths, prefixes)
    kernel = getattr(segments, case.kernel)
    given = {name: value for name, value in how.items() if name in inspect.signature(kernel).parameters}
    given |= {} if sinks is None else {"sinks": sinks}
    gradients = case.kernel != "by_flex" or device == "cuda"  # FlexAttention has none on a CPU

    def call() -> list[torch.Tensor]:
        if not gradients:
            with torch.no_grad():
                return [kernel(*(tensor.detach() for tensor in inputs), **given)]
        out = kernel(*inputs, **given)
        return [out, *torch.autograd.grad(out, wanted, direction)]

    start = time.perf_counter()
    found = call()
    recorder.synchronize()
    row["first_call_s"] = time.perf_counter() - start
    expected = exact(inputs, sinks, seen, how, direction)
    plain_out = plain(inputs, sinks, seen, how)
    usual = [plain_out, *torch.autograd.grad(plain_out, wanted, direction)]
    del plain_out
    ours, theirs = ([errors(*pair) for pair in zip(side, expected, strict=False)] for side in (found, usual))
    row["off"], row["off_token"] = ([each[k] for each in ours] for k in (0, 1))
    row["plain"], row["plain_token"] = ([each[k] for each in theirs] for k in (0, 1))
    least = torch.finfo(dtype).eps / 8  # where the plain one is exact by luck
    row["ratio"] = max(
        a / max(b, least) for pair in zip(ours, theirs, strict=False) for a, b in zip(*pair, strict=True)
    )
    del usual, expected, found
    times = []
    with recorder.memory(row):
        call()
    for _ in range(REPEATS):
        recorder.synchronize()
        start = time.perf_counter()
        call()
        recorder.synchronize()
        times.append(time.perf_counter() - start)
    row["ms"] = 1e3 * min(times)


def errors(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the relative error in norm, and the largest of one head of one token over the mean norm of these."""
    off = found.detach().double() - expected
    norms, sizes = (off.norm(dim=-1), expected.norm(dim=-1)) if off.ndim > 1 else (off.abs(), expected.abs())
    return float(off.norm() / expected.norm()), float(norms.max() / sizes.mean())


def exact(
    inputs: Sequence[torch.Tensor], sinks: torch.Tensor | None, seen: torch.Tensor, how: dict[str, Any], direction: Any
) -> list[torch.Tensor]:
    """Return output (1, T, H, D) and gradients in float64, one head of keys at a time."""
    query, key, value = (tensor.detach().double() for tensor in inputs)
    groups, softcap = query.shape[1] // key.shape[1], how["softcap"]
    out, gradients, sink_gradients = [], [], []
    for head in range(key.shape[1]):
        mine = slice(head * groups, (head + 1) * groups)
        q, k, v = (tensor.requires_grad_() for tensor in (query[0, mine], key[0, head], value[0, head]))
        scores = how["scaling"] * q @ k.mT
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        leaves = [q, k, v]
        if sinks is not None:
            leaves.append(sinks[mine].detach().double().requires_grad_())
            scores = torch.cat([scores, leaves[3][:, None, None].expand(*scores.shape[:2], 1)], -1)
        made = scores.softmax(-1)[..., : len(k)] @ v
        found = torch.autograd.grad(made, leaves, direction[0, :, mine].transpose(0, 1).double())
        out.append(made.detach())
        gradients.append(found[:3])
        sink_gradients += found[3:]
    d_query = torch.cat([each[0] for each in gradients])[None]
    d_key, d_value = (torch.stack([each[k] for each in gradients])[None] for k in (1, 2))
    made = [torch.cat(out).transpose(0, 1)[None], d_query, d_key, d_value]
    return made if sinks is None else [*made, torch.cat(sink_gradients)]


def plain(inputs: Sequence[torch.Tensor], sinks: Any, seen: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
    """Return what torch's attention makes of the dense mask, (1, T, H, D); written out where it has no such kind."""
    query, key, value = inputs
    if sinks is None and how["softcap"] is None:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
        made = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=how["scaling"])
    else:
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, float("-inf"))
        made = attention(query, key, value, how["scaling"], mask, how["softcap"], sinks)
    return made.transpose(1, 2)
