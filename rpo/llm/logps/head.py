"""Log-probabilities of tokens straight from hidden states: no logits at other positions, none kept without bound.

Shapes: B rows of T tokens; K positions that predict a token; D hidden size; V vocabulary.

`token_logps_of` runs the model with its output layer's forward replaced for the one call, so that
whatever wraps the model (DDP, FSDP2, autocast, peft) does its part. What the model does to its
logits afterwards (a factor, soft-capping) is observed once and done inside. A model where that
cannot be told falls back to its own logits, with one message.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rpo.llm.logps import head_kernel
from rpo.llm.logps.logprobs import picked_logps

logger = logging.getLogger(__name__)

# Logits up to this size are kept as probabilities for the backward pass; above it they are computed twice.
CHUNK_BYTES = {"cpu": 2**28}
CHUNK_BYTES_ELSEWHERE = 2**30  # a product more is worth more there than memory that layers need anyway
# Rows worked on at a time between two matrix products: what a CPU's cache holds.
BLOCK_BYTES = {"cpu": 2**22}
BLOCK_BYTES_ELSEWHERE = 2**27


class Epilogue(NamedTuple):
    """What a model does to the output layer's logits: softcap * tanh(scale * logits / softcap), or scale * logits."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the model's logits from the output layer's."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def token_logps_of(
    model: Any,
    positions: torch.Tensor,
    targets: torch.Tensor,
    collisions: list[torch.Tensor] | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """Return log-probabilities of `targets` at `positions`, (K,), nats, float32 or more, differentiable.

    positions: (K,), into the B*T positions of inputs["input_ids"], each predicting the target beside
    it; one may occur again. collisions: gets log sum_v p_v^2 at the positions, (K,), without gradient: one more product
    with the output layer. inputs: what the model's forward takes.
    """
    base = causal_model(model)
    epilogue = _epilogue_of(model, base, inputs)
    if epilogue is None:
        return plain_token_logps(model, positions, targets, collisions, **inputs)
    head, width = base.get_output_embeddings(), inputs["input_ids"].shape[1]
    found: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        # Counted from the end: prompt tuning prepends positions of its own.
        kept = hidden[:, -width:].reshape(-1, hidden.shape[-1])[positions]
        if getattr(original, "__func__", None) is torch.nn.Linear.forward and not hasattr(head.weight, "device_mesh"):
            found.append(head_logps(kept, head.weight, head.bias, targets, **epilogue._asdict()))
        else:  # with an adapter, quantised, sharded (DTensor)
            vocabulary = getattr(head, "out_features", 2**17)
            found.append(_called_in_chunks(original, vocabulary, kept, targets, epilogue))
        if collisions is not None:
            with torch.no_grad():  # last: what autocast keeps of a weight cast here has no gradient
                rows = max(1, _chunk_bytes(kept) // (4 * getattr(head, "out_features", 2**17)))
                collisions.append(
                    torch.cat([_collisions(epilogue(_promoted(original(part)))) for part in kept.split(rows)])
                )
        return found[0].view(1, -1, 1).clone()  # FSDP2 hooks into the output, and warns about views

    with _forward_replaced(head, forward) as original:
        output = model(**inputs, use_cache=False).logits
    return _Carried.apply(found[0], output)


def plain_token_logps(
    model: Any,
    positions: torch.Tensor,
    targets: torch.Tensor,
    collisions: list[torch.Tensor] | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """Return what `token_logps_of` does, from the model's own logits: plain, and any causal model can do it."""
    width = inputs["input_ids"].shape[1]
    rows, columns = positions // width, positions % width
    wanted, columns = columns.unique(return_inverse=True)
    wanted = wanted - width  # counted from the end, as above
    if takes_logits_to_keep(model):
        inputs["logits_to_keep"] = wanted
    logits = model(**inputs, use_cache=False).logits
    if logits.shape[1] != len(wanted):
        logits = logits[:, wanted]
    if collisions is not None:
        collisions.append(_collisions(_promoted(logits[rows, columns].detach())))
    return picked_logps(logits[rows, columns], targets)


def _collisions(logits: torch.Tensor) -> torch.Tensor:
    """Return log sum_v p_v^2 of logits (K, V), (K,): how likely two draws are the same."""
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


def _promoted(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def causal_model(model: Any) -> Any:
    """Return the transformers model under the wrappers of DDP, accelerate, torch.compile and peft."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def takes_logits_to_keep(model: Any) -> bool:
    """Return whether the model under its wrappers computes logits at chosen positions only."""
    return "logits_to_keep" in inspect.signature(type(causal_model(model)).forward).parameters


# --- the output layer in the model's own forward ------------------------------------------------------


class _Carried(torch.autograd.Function):
    """The log-probabilities as they are, with the model's output still in the graph: FSDP2 starts backward there."""

    @staticmethod
    def forward(ctx: Any, logps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(output)
        return logps.view_as(logps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, torch.zeros_like(ctx.saved_tensors[0])


@contextlib.contextmanager
def _forward_replaced(module: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Any]:
    """Give the module another forward for a while; yield its own. Its hooks run as ever."""
    own = module.__dict__.get("forward")  # an instance's, put there by whoever wraps it
    original = module.forward
    module.forward = forward
    try:
        yield original
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


_epilogues: weakref.WeakKeyDictionary[Any, Epilogue | None] = weakref.WeakKeyDictionary()


def _epilogue_of(model: Any, base: Any, inputs: dict[str, Any]) -> Epilogue | None:
    if base not in _epilogues:
        head = getattr(base, "get_output_embeddings", lambda: None)()
        try:
            _epilogues[base] = None if head is None or model_is_compiled(model) else _observe(model, base, head, inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            logger.debug("%s", error)
            _epilogues[base] = None
        if _epilogues[base] is None:
            logger.warning(
                "%s: log-probabilities are read from its logits, since its output layer cannot be replaced for a call.",
                type(base).__name__,
            )
    return _epilogues[base]


def model_is_compiled(model: Any) -> bool:
    """Return whether torch.compile, which reads forward once and for all, has had the model."""
    return extract_model_from_parallel(model) is not extract_model_from_parallel(model, keep_torch_compile=False)


def _observe(model: Any, base: Any, head: Any, inputs: dict[str, Any]) -> Epilogue | None:
    """Put known numbers in place of the output layer's logits and tell from the model's what is done to them."""
    given: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(-1, 1, original(hidden[:1, -1:]).shape[-1], device=hidden.device)
        given.append(1e4 * ramp**3)  # from where a cap changes nothing to where it is all that is left
        return given[-1].clone().view(1, 1, -1)

    training = [module for module in base.modules() if module.training]
    base.eval()  # no dropout: the random numbers of training stay where they are
    try:
        with torch.no_grad(), _forward_replaced(head, forward) as original:
            seen = model(**inputs, use_cache=False).logits
    finally:
        for module in training:
            module.training = True
    if len(given) != 1 or seen.shape != (1, 1, len(given[0])):
        return None
    largest = float(seen[0, 0, -1])
    for epilogue in (Epilogue(scale=largest / float(given[0][-1])), Epilogue(softcap=largest)):
        if torch.allclose(epilogue(given[0]), seen[0, 0].to(given[0]), rtol=1e-5, atol=1e-6):
            return epilogue
    return None


# --- from hidden states to log-probabilities ------------------------------------------------------------


def _called_in_chunks(
    forward: Callable[[torch.Tensor], torch.Tensor],
    vocabulary: int,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    epilogue: Epilogue,
) -> torch.Tensor:
    """Return log-probabilities, (K,), through the forward of any output layer, called again in the backward pass."""
    rows = max(1, _chunk_bytes(hidden) // (4 * vocabulary))

    def chunk(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = forward(hidden)
        return picked_logps(epilogue(_promoted(logits)), targets)

    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])


def head_logps(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Return log softmax(epilogue(hidden @ weight.T + bias)) at the targets, (K,), nats, float32 or more.

    hidden: (K, D). weight: (V, D). bias: (V,) or None. targets: (K,). Matrix products are in the
    autocast type, or that of `weight`; sums in at least float32. At most `chunk_bytes` of logits exist
    at a time: if these are all, they serve the backward pass too, three matrix products together;
    otherwise they are computed again, four. Weights that are not trained cost two and keep nothing.
    """
    epilogue = Epilogue(scale, softcap)
    chunk_bytes = _chunk_bytes(hidden) if chunk_bytes is None else chunk_bytes
    return _HeadLogps.apply(hidden, weight, bias, targets, epilogue, chunk_bytes, torch.is_grad_enabled())


def _chunk_bytes(hidden: torch.Tensor) -> int:
    return CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES_ELSEWHERE)


class _HeadLogps(torch.autograd.Function):
    """In `slopes`, d logp / d logits (K, V), the gradients are g * (slopes @ weight) and slopes.T @ (g * hidden)."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, *options: Any) -> torch.Tensor:
        epilogue, chunk_bytes, with_grad = options
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.epilogue, ctx.rows = epilogue, max(1, chunk_bytes // (ctx.dtype.itemsize * len(weight)))
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        ctx.frozen = not (for_weight or for_bias)
        slopes = with_grad and (for_hidden if ctx.frozen else len(hidden) <= ctx.rows)
        logps, kept = [], []
        with torch.autocast(device, enabled=False):
            x, w, b = _cast(ctx.dtype, hidden, weight, bias)
            for part in _parts(len(x), ctx.rows):
                scores = functional.linear(x[part], w, b)
                logps.append(_picked_(scores, targets[part], epilogue, slopes=slopes))
                if slopes:
                    kept.append(scores @ w if ctx.frozen else scores)
        ctx.save_for_backward(hidden, weight, bias, targets, *kept)
        return torch.cat(logps)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, *kept = ctx.saved_tensors
        for_hidden, for_weight, for_bias, *others = ctx.needs_input_grad
        g = gradient[:, None]
        if ctx.frozen:
            return (g * torch.cat(kept)).to(hidden.dtype), *[None] * (2 + len(others))
        exact = torch.promote_types(weight.dtype, torch.float32)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = d_bias = None
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = _cast(ctx.dtype, hidden, weight, bias)
            for part in _parts(len(x), ctx.rows):
                if kept:
                    slopes = kept[0]
                else:
                    slopes = functional.linear(x[part], w, b)
                    _picked_(slopes, targets[part], ctx.epilogue, slopes=True)
                if d_hidden is not None:
                    d_hidden[part] = g[part] * (slopes @ w)
                if for_weight:
                    d_weight = _sum(d_weight, slopes.T @ (g[part] * x[part]).to(ctx.dtype), exact)
                if for_bias:
                    d_bias = _sum(d_bias, slopes.T @ gradient[part].to(ctx.dtype), exact)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, *[None] * len(others)


def _picked_(scores: torch.Tensor, targets: torch.Tensor, epilogue: Epilogue, *, slopes: bool) -> torch.Tensor:
    """Return the targets' log-probabilities, (K,); `scores` (K, V) becomes d logp / d scores, or is left as waste."""
    if head_kernel.takes(scores):
        return head_kernel.picked_logps_(scores, targets, slopes=slopes, **epilogue._asdict())
    block_bytes = BLOCK_BYTES.get(scores.device.type, BLOCK_BYTES_ELSEWHERE)
    logps = []
    for block in _parts(len(scores), max(1, block_bytes // (4 * scores.shape[1]))):
        target = targets[block, None]
        p = scores[block].to(torch.promote_types(scores.dtype, torch.float32))  # in place where it is of this type
        if epilogue.scale != 1.0:
            p.mul_(epilogue.scale)
        if epilogue.softcap is not None:
            p.div_(epilogue.softcap).tanh_()
            factor = 1 - p * p
            p.mul_(epilogue.softcap)
        p.sub_(p.amax(-1, keepdim=True))
        chosen = p.gather(-1, target)
        total = p.exp_().sum(-1, keepdim=True)  # not logsumexp: see picked_logps
        logps.append(chosen - total.log())
        if slopes:
            p.div_(-total).scatter_add_(-1, target, torch.ones_like(chosen))
            if epilogue.softcap is not None:
                p.mul_(factor)
            scores[block] = p if epilogue.scale == 1.0 else p.mul_(epilogue.scale)
    return torch.cat(logps).squeeze(-1)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _cast(dtype: torch.dtype, *tensors: Any) -> list[Any]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _sum(total: torch.Tensor | None, share: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return total + share, over chunks in `dtype`; the only chunk as it is."""
    return share if total is None else total.to(dtype).add_(share)
