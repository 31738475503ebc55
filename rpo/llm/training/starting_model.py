"""The model a trainer starts from and its tokenizer: loaded where it is a name, by from_pretrained's keywords too."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig

from rpo.core.errors import InvalidArgument, RPOError, shown
from rpo.llm.models import load_model, load_tokenizer
from rpo.llm.models.movement import load_to_train
from rpo.llm.training.arguments import taken_by_transformers

logger = logging.getLogger(__name__)

OWN = ("name_or_path", "is_trainable", "new_head_seed")  # keywords of `load_model` that a trainer sets
# Keywords of from_pretrained -> (values that ask for what is done here, what to do about others).
SAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((False, None), "Code from a model's repository is never run; load the model yourself."),
    "use_cache": ((False, True, None), "Training keeps no cache, sampling one of its own."),
    "low_cpu_mem_usage": ((False, True, None), "Weights are read one by one."),
    "use_safetensors": ((True, None), "Pickled weights can run any code; convert them once, where you trust them."),
    "load_in_4bit": ((False, None), 'Pass quantization="4bit".'),
    "load_in_8bit": ((False, None), 'Pass quantization="8bit".'),
}
ELSEWHERE = {
    "token": "Set the environment variable HF_TOKEN.",
    "cache_dir": "Set the environment variable HF_HOME.",
    "local_files_only": "Set the environment variable HF_HUB_OFFLINE=1.",
    "max_memory": "Shard a model that does not fit by FSDP2 (recipes/accelerate/fsdp2.yaml).",
}


def starting_model(
    model: Any,
    tokenizer: Any,
    options: Any,
    peft_config: Any,
    *,
    quantization_config: Any = None,
    load: Callable[..., Any] = load_model,
    **more: Any,
) -> tuple[Any, Any]:
    """Return the model to be trained and its tokenizer, which is found by the model's name where it is None.

    options: `model_init_kwargs`, as `load_keywords` reads them. load, more: as of `load_to_train`. Raises
    InvalidArgument and what loading raises.
    """
    if not isinstance(model, (str, os.PathLike)):
        for name, value in (("quantization_config", quantization_config), ("model_init_kwargs", options)):
            if value:
                remedy = "Load the model with it, or pass its name."
                raise InvalidArgument(name, expected="None for a model that is loaded", got=shown(value), remedy=remedy)
        return model, tokenizer_of(model) if tokenizer is None else tokenizer
    keywords = load_keywords(options, quantization_config, load)
    name = os.fspath(model)
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision=keywords.get("revision"))
    return load_to_train(name, keywords, peft_config, load=load, **more), tokenizer


def load_keywords(given: Any, quantization_config: Any, load: Callable[..., Any]) -> dict[str, Any]:
    """Return keywords of from_pretrained as `load` takes them. Raises InvalidArgument for what it has not."""
    options = dict(given or {})
    known = [name for name in inspect.signature(load).parameters if name not in OWN]
    for other, own in (("torch_dtype", "dtype"), ("quantization_config", "quantization")):
        if other in options:
            _put(options, own, options.pop(other), other)
    for other, own in (("load_in_4bit", "4bit"), ("load_in_8bit", "8bit")):
        if options.get(other) is True:
            del options[other]
            _put(options, "quantization", own, other)
    if quantization_config is not None:
        _put(options, "quantization", quantization_config, "quantization_config")
    if isinstance(options.get("quantization"), Mapping):
        with taken_by_transformers():
            options["quantization"] = BitsAndBytesConfig(**options["quantization"])
    _check_placement(options.pop("device_map", None))
    for name in [name for name in options if name not in known]:
        value = options.pop(name)
        same, remedy = SAME.get(name, ((), ELSEWHERE.get(name, "Load the model with it and pass the model.")))
        if not any(value is one for one in same):
            expected = " or ".join(map(repr, same)) or f"a keyword of load_model ({', '.join(known)})"
            got = shown(value) if same else "another name"
            raise InvalidArgument(f"model_init_kwargs.{name}", expected=expected, got=got, remedy=remedy)
    return options


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer at the place a model was loaded from; None where none is there, with a warning if named."""
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    if not name:
        return None
    try:
        return load_tokenizer(name)
    except RPOError as error:
        logger.warning("processing_class: none is given, and none was found where the model is from. %s", error)
        return None


def same_tokenizer(processing_class: Any, tokenizer: Any) -> Any:
    """Return the tokenizer by either of its names. Raises InvalidArgument for both."""
    if processing_class is not None and tokenizer is not None:
        remedy = "It is the same by an older name; leave it out."
        raise InvalidArgument("tokenizer", expected="None beside processing_class", got="both", remedy=remedy)
    return tokenizer if processing_class is None else processing_class


def _put(options: dict[str, Any], own: str, value: Any, other: str) -> None:
    if value is not None and options.get(own, value) != value:
        raise InvalidArgument(other, expected=f"the same as {own}", got=shown(value), remedy="Leave one of them out.")
    if value is not None:
        options[own] = value


def _check_placement(device_map: Any) -> None:
    """Refuse a placement other than the trainer's: each process has the whole model on its own device."""
    own = PartialState().local_process_index
    one_device = device_map == "auto" and torch.cuda.device_count() <= 1
    if device_map is None or one_device or device_map == {"": own}:
        return
    raise InvalidArgument(
        "model_init_kwargs.device_map",
        expected="None: each process puts the model on its own device",
        got=shown(device_map),
        remedy="Leave it out; a model that does not fit is sharded by FSDP2 (recipes/accelerate/fsdp2.yaml).",
    )
