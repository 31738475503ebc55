"""Attention over one row of many sequences, in transformers' attention interface: no padding and no dense mask.

Shapes: T tokens in the row, cut into S segments; H query heads, D per head; softmax scores in the query's scale.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.logps.head import causal_model

ROUTED = "rpo-segments|"  # before the name of the attention the model had
ARGUMENT = "rpo_segments"  # of the model's forward, handed on to its attention
QUERY_BLOCK = 512  # rows of a mask: it is linear in a segment's keys
HALF = (torch.float16, torch.bfloat16)
KERNELS = ("varlen", "flex", "segment")  # in the order in which they are tried, if the environment names none
ENVIRONMENT = "RPO_ATTENTION"
# FlexAttention's other kernels (decoding) have none for short rows of grouped heads.
FLEX_OPTIONS = {"BACKEND": "TRITON"}
# A soft cap is read when the kernel is made: as a symbol it breaks the graph, and eager attention is T x T. Every kind
# of layer is an entry of one cache, which must not run over for the same reason.
FLEX_SETTINGS = {"specialize_float": True, "recompile_limit": 256}
# Tensors that attention may be handed by name: sinks are attended to, positions are in queries and keys already.
TAKEN = ("s_aux", "position_ids", "cache_position")


class Segments:
    """A row cut into segments: each is causal, and goes on after at most one earlier segment, all of which it sees.

    lengths: (S,), tokens, at least 1, summing to T. prefixes: (S,), the index of the segment it goes on after,
    or -1. A token's position is counted from the start of its prefix. kernel: one of KERNELS, used where it can be;
    None for that of the environment variable RPO_ATTENTION, or the fastest.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[int], kernel: str | None = None) -> None:
        self.lengths, self.prefixes = list(lengths), list(prefixes)
        self.kernel = kernel or os.environ.get(ENVIRONMENT) or None
        if self.kernel is not None:
            checks.one_of(ENVIRONMENT, self.kernel, KERNELS)
        self.windows: list[int | None] = []  # of the layers that have been here, for `misfit`
        self._made: dict[Any, Any] = {}  # masks and indices, shared by the layers

    def offset(self, segment: int) -> int:
        """Return how many tokens the segment sees before its own."""
        prefix = self.prefixes[segment]
        return 0 if prefix < 0 else self.lengths[prefix]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (1, T, H, D) of query (1, H, T, D) and of key and value, which may have fewer heads.

        window: how many tokens back a token sees, itself included, by position; None for all.
        softcap: scores become softcap * tanh(score / softcap). sinks: (H,), the score of one more key, whose
        value is zero, for every query of a head; None for no such key.
        """
        self.windows.append(window)
        if torch.is_autocast_enabled(query.device.type):  # rotations leave query and key in float32
            half = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(half), key.to(half), value.to(half)
        plain = softcap is None and sinks is None
        if self._takes("varlen", query, plain):
            return self.by_varlen(query, key, value, scaling=scaling, window=window)
        attend = self.by_flex if self._takes("flex", query, plain) else self.by_segment
        return attend(query, key, value, scaling=scaling, window=window, softcap=softcap, sinks=sinks)

    def _takes(self, kernel: str, query: torch.Tensor, plain: bool) -> bool:
        """Return whether the kernel is wanted and can attend; plain: without soft cap and sinks."""
        if not query.is_cuda or self.kernel not in (None, kernel):
            return False
        width = query.shape[-1]
        if kernel == "flex":
            return width >= 16
        return plain and query.dtype in HALF and width % 8 == 0 and width <= 256 and _is_ampere(query.device)

    # --- one call of scaled_dot_product_attention a segment: any device ------------------------------

    def by_segment(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend segment by segment, in blocks of queries where a mask is needed."""
        # split, not slices: its gradient is one concatenation, not a row of zeros for every segment.
        queries, keys, values = (tensor.split(self.lengths, dim=2) for tensor in (query, key, value))
        out = []
        for own, prefix in enumerate(self.prefixes):
            seen = [own] if prefix < 0 else [prefix, own]
            k, v = (torch.cat([pieces[i] for i in seen], 2) for pieces in (keys, values))
            plain = softcap is None and sinks is None
            if plain and self.offset(own) == 0 and (window is None or window >= self.lengths[own]):
                out.append(attention(queries[own], k, v, scaling, causal=True))
                continue
            position = self.offset(own)
            for q in queries[own].split(QUERY_BLOCK, dim=2):
                stop = position + q.shape[2]
                start = 0 if window is None else max(0, position - window + 1)
                mask = self._mask(q.shape[2], stop - start, window, q.dtype, q.device)
                out.append(attention(q, k[:, :, start:stop], v[:, :, start:stop], scaling, mask, softcap, sinks))
                position = stop
        return torch.cat(out, 2).transpose(1, 2)

    def _mask(self, rows: int, columns: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Any:
        """Return 0 where a query sees a key and -inf elsewhere, (rows, columns); the last query is the last key."""

        def make() -> torch.Tensor:
            back = torch.arange(columns - rows, columns)[:, None] - torch.arange(columns)
            hidden = (back < 0) | (back >= (columns if window is None else window))
            return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf")).to(device)

        # Of a shared type: a boolean mask would be converted, and kept for the gradient, layer by layer.
        return self._once(("mask", rows, columns, window, dtype), make)

    def _once(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    # --- one kernel a layer: CUDA --------------------------------------------------------------------

    def by_varlen(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Attend with torch's kernel for rows of many sequences; a segment's keys follow those of its prefix.

        Of fewer queries than keys its causal mask ends at the last key for the last query.
        """
        bounds, *index = self._once("varlen", functools.partial(self._varlen, query.device))
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if max(self.prefixes) >= 0:
            key, value = (_Repeated.apply(tensor, *index) for tensor in (key, value))
        back = (-1 if window is None else window - 1, 0)
        return varlen_attention()(query, key, value, *bounds, scale=scaling, window_size=back)[None]

    def _varlen(self, device: torch.device) -> tuple[Any, ...]:
        """Return both sides' bounds and longest lengths, and what `_Repeated` takes."""
        rows = torch.arange(sum(self.lengths)).split(self.lengths)
        seen = [
            own if prefix < 0 else torch.cat([rows[prefix], own])
            for own, prefix in zip(rows, self.prefixes, strict=True)
        ]
        widths = [len(each) for each in seen]
        places = torch.arange(sum(widths)).split(widths)
        once = torch.cat([each[self.offset(segment) :] for segment, each in enumerate(places)])
        again: list[list[int]] = []  # segments by how many went on after the same prefix before
        for segment, prefix in enumerate(self.prefixes):
            if prefix >= 0:
                before = self.prefixes[:segment].count(prefix)
                again += [[] for _ in range(before + 1 - len(again))]
                again[before].append(segment)
        more = []
        for segments in again:
            more.append(torch.cat([rows[self.prefixes[segment]] for segment in segments]).to(device))
            more.append(torch.cat([places[segment][: self.offset(segment)] for segment in segments]).to(device))
        bounds = [torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (self.lengths, widths)]
        longest = max(self.lengths), max(widths)
        return (*bounds, *longest), torch.cat(seen).to(device), once.to(device), *more

    def by_flex(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend with FlexAttention, which skips the blocks of the row that see nothing of each other."""
        from torch.nn.attention.flex_attention import AuxRequest

        mask = self._once(("flex", window), functools.partial(self._block_mask, window, query.device))
        made: Any = flex_attention(compiled=query.is_cuda)(
            query,
            key,
            value,
            score_mod=None if softcap is None else capped(softcap),
            block_mask=mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            return_aux=None if sinks is None else AuxRequest(lse=True),
            kernel_options=FLEX_OPTIONS if query.is_cuda else None,
        )
        if sinks is None:
            return made.transpose(1, 2)  # type: ignore[no-any-return]
        out, scores = made[0], made[1].lse
        # Of exp(lse) + exp(sink), the part that is not the sink's.
        return (out * (scores - sinks[:, None]).sigmoid()[..., None]).to(out.dtype).transpose(1, 2)

    def _block_mask(self, window: int | None, device: torch.device) -> Any:
        lengths = torch.tensor(self.lengths)
        own = torch.arange(len(lengths)).repeat_interleave(lengths).to(device)
        prefix = torch.tensor(self.prefixes).repeat_interleave(lengths).to(device)
        position = torch.cat([torch.arange(n) + self.offset(s) for s, n in enumerate(self.lengths)]).to(device)
        limit = int(lengths.sum()) if window is None else window

        def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
            back = position[query] - position[key]
            return ((own[query] == own[key]) | (prefix[query] == own[key])) & (back >= 0) & (back < limit)

        size = len(own)
        return block_mask(compiled=device.type == "cuda")(sees, None, None, size, size, device=device)


class _Repeated(torch.autograd.Function):
    """Rows taken more than once. The gradient sums a row's in a fixed order: `more` is rows and places of each time."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, index: Any, once: Any, *more: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(once, *more)
        return tensor.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        once, *more = ctx.saved_tensors
        total = gradient.index_select(0, once)
        for rows, places in zip(more[::2], more[1::2], strict=True):  # each row once: nothing is added out of order
            total.index_add_(0, rows, gradient.index_select(0, places))
        return total, *[None] * (2 + len(more))


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Return softmax(scaling * query key^T + mask) value, (1, H, Q, D); soft-capped before the mask.

    sinks: (H,), scores that count in the softmax and have no value; `causal` is not for them, nor for soft caps.
    """
    groups = query.shape[1] // key.shape[1]
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=groups > 1
        )
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT
    scores = scores * scaling if softcap is None else softcap * torch.tanh(scores * (scaling / softcap))
    scores = scores if mask is None else scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return shares[..., : key.shape[2]] @ value


@functools.cache
def _is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def varlen_attention() -> Callable[..., torch.Tensor]:
    """Return torch's attention over rows of many sequences, told of grouped heads where it asks for that."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters  # before torch 2.12 it takes them untold
    return functools.partial(varlen_attn, enable_gqa=True) if grouped else varlen_attn


@functools.cache
def flex_attention(*, compiled: bool) -> Callable[..., torch.Tensor]:
    """Return FlexAttention, compiled for rows of any length; uncompiled it holds T x T scores."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    return _compiled(flex, dynamic=True) if compiled else flex


@functools.cache
def block_mask(*, compiled: bool) -> Callable[..., Any]:
    """Return FlexAttention's maker of masks; uncompiled it holds T x T entries."""
    from torch.nn.attention.flex_attention import create_block_mask

    return _compiled(create_block_mask) if compiled else create_block_mask


def _compiled(function: Callable[..., Any], *, dynamic: bool | None = None) -> Callable[..., Any]:
    """Return the function compiled as one graph or not at all: what ran uncompiled would hold T x T entries."""
    made = torch.compile(function, dynamic=dynamic, fullgraph=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(**FLEX_SETTINGS):
            return made(*args, **kwargs)

    return call


@functools.cache
def capped(softcap: float) -> Callable[..., torch.Tensor]:
    """Return FlexAttention's score_mod of a soft cap; one function a value, as a new one would be compiled anew."""

    def score_mod(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


# --- the interface -------------------------------------------------------------------------------


def route(model: Any) -> None:
    """Let the model's attention follow the `Segments` it is passed; without any it stays what it was.

    For good, not for a call: gradient checkpointing runs layers again after the call.
    """
    config = causal_model(model).config
    name = config._attn_implementation
    if not name.startswith(ROUTED):
        if ROUTED + name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(ROUTED + name, functools.partial(_attention, name))
            if name in ALL_MASK_ATTENTION_FUNCTIONS:
                ALL_MASK_ATTENTION_FUNCTIONS.register(ROUTED + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
        config._attn_implementation = ROUTED + name


def forward_arguments(segments: Segments, device: torch.device) -> dict[str, Any]:
    """Return what the forward of a routed model takes to attend by segments.

    A mask of four dimensions is handed on as it is: none is built.
    """
    return {ARGUMENT: segments, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


def _attention(
    original: str,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do: by segments if there are any, as `original` if not."""
    segments: Segments | None = kwargs.pop(ARGUMENT, None)
    if segments is None:
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(original, eager)
        return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if dropout:
        raise InvalidArgument(
            "disable_dropout",
            expected="True: packed sequences are scored without dropout",
            got=f"attention dropout {dropout}",
            remedy='Set it, or path="padded".',
        )
    unknown = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and name not in TAKEN]
    if unknown:
        raise InvalidArgument(
            "path",
            expected='"padded" for a model whose attention takes more than queries, keys, values and sinks',
            got=", ".join(unknown),
            remedy='Set path="padded".',
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, softcap, sinks = (kwargs.get(name) for name in ("sliding_window", "softcap", "s_aux"))
    out = segments.attend(query, key, value, scaling=scaling, window=window, softcap=softcap, sinks=sinks)
    return out, None
