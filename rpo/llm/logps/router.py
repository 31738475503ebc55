"""The router loss of a mixture of experts, where the model's configuration asks for it by output_router_logits.

It is transformers' load-balancing term of a whole padded batch, weighted by router_aux_loss_coef.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.head import causal_model


def router_weight(model: Any) -> float:
    """Return the weight of the router loss in the training loss; 0 where the configuration does not ask for it."""
    config = _text_config(model)
    if not getattr(config, "output_router_logits", False):
        return 0.0
    return float(getattr(config, "router_aux_loss_coef", None) or getattr(config, "aux_loss_coef", None) or 0.0)


def without_router(model: Any) -> dict[str, bool]:
    """Return what a forward pass takes so that the term, which has no meaning in it, is not computed."""
    return {"output_router_logits": False} if getattr(_text_config(model), "output_router_logits", False) else {}


@contextlib.contextmanager
def router_losses(model: Any) -> Iterator[list[torch.Tensor | None]]:
    """Yield a list that gets the router loss of every forward pass made in the block, None where it has none."""
    found: list[torch.Tensor | None] = []
    hook = causal_model(model).register_forward_hook(
        lambda module, given, output: found.append(getattr(output, "aux_loss", None))
    )
    try:
        yield found
    finally:
        hook.remove()


def require_router_loss(model: Any, found: list[torch.Tensor | None]) -> torch.Tensor:
    """Return the last one found, that of the training batch. Raises InvalidArgument."""
    last = found[-1] if found else None
    if not isinstance(last, torch.Tensor):
        raise InvalidArgument(
            "model",
            expected="a router loss from the forward pass, as its configuration asks for (output_router_logits)",
            got=f"none from {type(causal_model(model)).__name__}",
            remedy='Train on path="padded", or set model.config.output_router_logits = False to train without it.',
        )
    return last


def _text_config(model: Any) -> Any:
    config: Any = getattr(causal_model(model), "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
