"""Selective activation checkpointing: what is cheap is computed again in the backward pass, products are kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import TrainerCallback

from rpo.core import checks
from rpo.core.errors import InvalidArgument

# Keywords that activation checkpointing takes: of transformers, of torch.utils.checkpoint, and one of ours.
KEYWORDS = (
    "use_reentrant", "every_n_layers", "offload", "selective", "context_fn", "determinism_check", "debug",
    "preserve_rng_state", "early_stop",
)  # fmt: skip
# What is kept: matrix products by weights, and attention. Of a layer they are all but a few percent of the
# operations and half of the bytes; the other half is norms, rotations, activations and sums.
KEPT = ("mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")  # fmt: skip


class Selective(TrainerCallback):
    """Turns the checkpointing that the trainer has switched on into a selective one, as training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Give every module that recomputes what it keeps."""
        keep_products(model)


def keep_products(model: Any) -> None:
    """Let a model with activation checkpointing keep its matrix products and compute the rest again."""
    kept = kept_operations()

    def contexts() -> tuple[Any, Any]:
        forward, again = create_selective_checkpoint_contexts(kept)
        return _cast_anew(forward), _cast_anew(again)

    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(function, functools.partial):
            options = {name: value for name, value in function.keywords.items() if name != "selective"}
            options |= {"use_reentrant": False, "context_fn": contexts}
            module._gradient_checkpointing_func = functools.partial(function.func, **options)


@contextlib.contextmanager
def _cast_anew(context: Any) -> Iterator[None]:
    """Cast weights at every use under autocast: with some of them cast already, fewer operations run than run again."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with context:
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


def kept_operations() -> list[Any]:
    """Return the operations whose results are kept, those of them that this torch has."""
    named = [getattr(torch.ops.aten, name, None) for name in KEPT]
    return [operation.default for operation in named if operation is not None]


def is_selective(args: Any) -> bool:
    """Return whether training arguments ask for it. Raises InvalidArgument for keywords nothing would come of."""
    name = "gradient_checkpointing_kwargs"
    on, given = (_either(args, each) for each in ("checkpointing", "checkpointing_kwargs"))
    for key in checks.instance(name, given or {}, dict, remedy='Pass a mapping, as {"selective": True}.'):
        checks.one_of(name, key, KEYWORDS)
    wanted = (given or {}).get("selective", False)
    if not isinstance(wanted, bool):
        raise InvalidArgument(f"{name}.selective", expected="true or false", got=repr(wanted), remedy="Pass True.")
    if wanted and not on:
        remedy = "Set gradient_checkpointing=True too."
        raise InvalidArgument("gradient_checkpointing", expected="True, with selective", got=False, remedy=remedy)
    if wanted and (given.get("use_reentrant") or "context_fn" in given):
        remedy = "Leave use_reentrant and context_fn out."
        raise InvalidArgument(name, expected="selective by itself", got=repr(given), remedy=remedy)
    if wanted and getattr(args, "gradient_diagnostics_steps", None):
        remedy = "Leave one of them out: what is computed selectively can be differentiated once only."
        raise InvalidArgument("gradient_diagnostics_steps", expected="0, with selective", got="a number", remedy=remedy)
    return wanted


def _either(args: Any, name: str) -> Any:
    """Return an argument under its name of today, or under the one before transformers 5.18."""
    return getattr(args, "activation_" + name, None) or getattr(args, "gradient_" + name, None)
