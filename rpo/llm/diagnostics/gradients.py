"""Gradients set against one another: a loss's preference and SFT parts, a pair's chosen and rejected responses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers.utils import logging

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.pair_diagnostics import Entanglement
from rpo.core.progress import track
from rpo.llm.logps.scoring import PromptGroup, ScoringPath
from rpo.llm.sampling import evaluation_mode

logger = logging.get_logger(__name__)

CHUNK = 1 << 24  # entries promoted to float32 at a time: 64 MiB


def is_sharded(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Return whether any parameter is only a shard here: FSDP 1 or 2, or DeepSpeed ZeRO-3."""
    return any(
        hasattr(p, "ds_id") or hasattr(p, "_local_tensor") or type(p).__name__ == "FlatParameter" for p in parameters
    )


def split_gradients(
    preference_loss: torch.Tensor,
    sft_loss: torch.Tensor,
    parameters: Iterable[torch.nn.Parameter],
    *,
    sft_weight: float,
    scale: float = 1.0,
) -> dict[str, float]:
    """Return gradients/preference_norm, gradients/sft_norm and gradients/cosine of a micro-batch's loss.

    preference_loss, sft_loss: `LossTerms`, scalars with their graph, which is kept for the training
    step. sft_weight: `objective.sft_weight` = eta*beta; gradients/sft_norm is the norm of
    eta*beta * grad(sft), as it enters the loss. The cosine does not depend on the weight, so it says
    at eta = 0 too where the SFT part would pull; NaN where either gradient vanishes. With a the
    preference norm and b the SFT norm, the loss's squared gradient norm is a^2 + b^2 + 2ab cosine.

    parameters: those without requires_grad are left out; one that a part does not use counts as zero.
    scale: a power of two that multiplies both parts while they are differentiated and is divided out:
    pass the loss scale of fp16, whose small gradients would vanish. `.grad`, gradient hooks of DDP and
    random states are untouched. Memory: one more copy of the gradient. Several processes: each
    sees its own micro-batch. Sharded parameters: {}, after one message. Raises InvalidArgument.
    """
    wanted = [p for p in parameters if p.requires_grad]
    if is_sharded(wanted):
        logger.warning_once("gradients/* are not measured: the parameters are sharded (FSDP or DeepSpeed ZeRO-3).")
        return {}
    if not wanted:
        raise InvalidArgument(
            "parameters", expected="a parameter with requires_grad", got="none", remedy="Pass model.parameters()."
        )
    for name, loss in (("preference_loss", preference_loss), ("sft_loss", sft_loss)):
        if not (isinstance(loss, torch.Tensor) and loss.ndim == 0 and loss.requires_grad):
            raise InvalidArgument(
                name,
                expected="a scalar tensor with its graph",
                got=type(loss).__name__ if not isinstance(loss, torch.Tensor) else f"{loss!r}",
                remedy="Pass the LossTerms of a forward pass with gradients, before backward.",
            )
    weight, scale = checks.nonnegative("sft_weight", sft_weight), checks.positive("scale", scale)
    first = torch.autograd.grad(preference_loss * scale, wanted, retain_graph=True, allow_unused=True)
    square_sft, product = _against(first, sft_loss * scale, wanted)
    norm = math.sqrt(sum(_dot(g, g) for g in first if g is not None)) / scale
    norm_sft = math.sqrt(square_sft) / scale
    length = norm * norm_sft * scale * scale
    return {
        "gradients/preference_norm": norm,
        "gradients/sft_norm": weight * norm_sft,
        # Rounding alone can carry parallel gradients past one.
        "gradients/cosine": max(-1.0, min(1.0, product / length)) if 0 < length < math.inf else math.nan,
    }


def gradient_entanglement(
    model: torch.nn.Module, path: ScoringPath, pairs: Sequence[PromptGroup], *, progress: bool | None = None
) -> Entanglement:
    """Return the inner products of the gradients of log pi of each pair's two responses, summed over their tokens.

    Of the parameters that require a gradient: an adapter's alone give other numbers than all weights would. Two
    backward passes a pair, and one more copy of the gradient in memory. The model runs in evaluation mode, which is
    restored. Raises InvalidArgument for a model that is sharded or frozen. Source: Yuan et al. 2024 (arXiv 2410.13828).
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted or is_sharded(wanted):
        raise InvalidArgument(
            "model",
            expected="a whole model with parameters that require a gradient",
            got="sharded parameters" if wanted else "a frozen one",
            remedy="Load it with is_trainable=True, on one process.",
        )
    device, found = wanted[0].device, []
    with evaluation_mode(model), torch.enable_grad():
        for pair in track(pairs, "Gradients of pairs", show=progress):
            inputs = {name: value.to(device) for name, value in path.collate([pair]).items()}
            chosen, rejected = path.logps(model, inputs)[0]
            first = torch.autograd.grad(chosen, wanted, retain_graph=True, allow_unused=True)
            square, inner = _against(first, rejected, wanted)
            found.append((sum(_dot(g, g) for g in first if g is not None), square, inner))
    return Entanglement(*np.array(found, dtype=np.float64).reshape(-1, 3).T)


def _against(
    first: Sequence[torch.Tensor | None], loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]
) -> tuple[float, float]:
    """Return ||g||^2 and <first, g>, g the gradient of `loss`, which is never held whole."""
    squares: list[float] = []
    products: list[float] = []

    def reduce(gradient: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        squares.append(_dot(gradient, gradient))
        if other is not None:
            products.append(_dot(other, gradient))
        # What autograd collects in its place is one zero, expanded: the gradient itself is freed.
        return gradient.new_zeros(()).expand_as(gradient)

    hooks = [
        p.register_hook(lambda gradient, other=other: reduce(gradient, other))
        for p, other in zip(parameters, first, strict=True)
    ]
    try:
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(squares), sum(products)


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the inner product, in at least float32 whatever the dtype."""
    dtype = torch.float64 if left.dtype == torch.float64 else torch.float32
    pieces = zip(left.reshape(-1).split(CHUNK), right.reshape(-1).split(CHUNK), strict=True)
    return sum(torch.dot(a.to(dtype), b.to(dtype)).item() for a, b in pieces)
