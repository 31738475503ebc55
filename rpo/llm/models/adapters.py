"""The adapter that is trained: a fresh one, whose initial weights depend on the run's seed alone, or a stored one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from rpo.core.errors import InvalidArgument
from rpo.core.synonyms import own_names
from rpo.llm.models.packages import require_peft
from rpo.llm.reference import adapter_is_untouched, is_peft_model, rng_kept


def with_adapter(model: Any, peft_config: Any, *, seed: int, task_type: str = "CAUSAL_LM") -> Any:
    """Return the model with a fresh adapter, or as it is for None; the global random state stays.

    peft_config: a config of peft, or the keywords of a LoraConfig. A quantised model is prepared for
    training. Raises InvalidArgument, MissingDependency.
    """
    if peft_config is None:
        return model
    peft = require_peft()
    if isinstance(model, peft.PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidArgument(
            "peft_config",
            expected="None for a model that already has an adapter",
            got=type(peft_config).__name__,
            remedy="Leave it out to go on training that adapter, or merge it first: "
            "load_model(folder).merge_and_unload().save_pretrained(new_folder).",
        )
    if isinstance(peft_config, Mapping):
        try:
            keywords = own_names(peft_config, inspect.signature(peft.LoraConfig).parameters)
            peft_config = peft.LoraConfig(**{"task_type": task_type, **keywords})
        except (TypeError, ValueError) as error:
            remedy = "Look at peft.LoraConfig."
            expected = "keywords of a LoraConfig"
            raise InvalidArgument("peft_config", expected=expected, got=str(error), remedy=remedy) from error
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with rng_kept(model):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft_config)


def adapter_start(model: Any) -> str | None:
    """Return how the adapter that is trained begins, for a run's record: "new", or "continued"; None without one."""
    if not is_peft_model(model):
        return None
    return "new" if adapter_is_untouched(model) else "continued"
