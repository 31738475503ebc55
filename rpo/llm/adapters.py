"""A fresh adapter on a model, with initial weights that depend on the run's seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.models import require_peft
from rpo.llm.reference import rng_kept


def with_adapter(model: Any, peft_config: Any, *, seed: int, task_type: str = "CAUSAL_LM") -> Any:
    """Return the model with a fresh adapter, or as it is for None; the global random state stays.

    peft_config: a config of peft, or the keywords of a LoraConfig. A quantised model is prepared for
    training. Raises InvalidArgument, MissingDependency.
    """
    if peft_config is None:
        return model
    peft = require_peft()
    if isinstance(model, peft.PeftModel):
        raise InvalidArgument(
            "peft_config",
            expected="None for a model that already has an adapter",
            got=type(peft_config).__name__,
            remedy="Leave it out to train that adapter, or merge it first (merge_and_unload).",
        )
    if isinstance(peft_config, Mapping):
        try:
            peft_config = peft.LoraConfig(**{"task_type": task_type, **peft_config})
        except (TypeError, ValueError) as error:
            remedy = "Look at peft.LoraConfig."
            expected = "keywords of a LoraConfig"
            raise InvalidArgument("peft_config", expected=expected, got=str(error), remedy=remedy) from error
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with rng_kept(model):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft_config)
