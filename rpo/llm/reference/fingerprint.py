"""A fingerprint of a model's weights: the same on every device and machine, different when any weight is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from itertools import repeat
from typing import Any

import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.models.soundness import effective_configuration

PIECE_BYTES = 1 << 23
DIGEST_CHARACTERS = 32

# Fields of an adapter's configuration that change no log-probability (or that the weights show).
ADAPTER_NEUTRAL = {"base_model_name_or_path", "revision", "inference_mode", "init_lora_weights", "layer_replication"}
ADAPTER_NEUTRAL |= {"task_type", "auto_mapping", "peft_version", "target_modules", "modules_to_save", "runtime_config"}


def weights_fingerprint(model: Any, *, adapters: Iterable[str] | None = None) -> str:
    """Return "base" or, for a peft model with adapters, "base+adapter+...": 128 bits of SHA-256 each, in hex.

    Covers names, types, shapes and bytes of parameters and persistent buffers, and the configuration.
    The base of a peft model has the fingerprint of the same model without peft. adapters: None for
    the active ones. Raises InvalidArgument for weights that are not in memory. On a sharded model
    it is collective and gathers each tensor in turn; earlier is cheaper.
    """
    containers = adapter_containers(model)
    parts: dict[str | None, dict[str, torch.Tensor]] = {None: {}}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            adapter, plain = adapter_of(name, containers)
            parts.setdefault(adapter, {})[plain] = tensor
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    digests = [_digest(parts[None], effective_configuration(base))]
    if containers:
        for adapter in sorted(model.active_adapters if adapters is None else adapters):
            digests.append(_digest(parts.get(adapter, {}), _adapter_configuration(model.peft_config[adapter])))
    return "+".join(digests)


def adapter_containers(model: Any) -> set[str]:
    """Return the names of the dictionaries, keyed by adapter, in which peft keeps adapters' weights."""
    return {
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        if hasattr(module, "adapter_layer_names")
        for attribute in (*module.adapter_layer_names, *module.other_param_names)
    }


def adapter_of(name: str, containers: set[str]) -> tuple[str | None, str]:
    """Return (adapter, name without it) of a parameter, or (None, name without peft's wrapping) for the base's."""
    at = name.find(".")
    while containers and at >= 0:
        if name[:at] in containers:
            adapter, _, tail = name[at + 1 :].partition(".")
            return adapter, f"{name[:at]}.{tail}".rstrip(".")
        at = name.find(".", at + 1)
    if containers:
        parts = name.removeprefix("base_model.model.").split(".")
        name = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
    return None, name


def _digest(tensors: dict[str, torch.Tensor], configuration: dict[str, Any]) -> str:
    """Return the digest of named tensors and a configuration; pieces of a tensor are hashed in parallel."""
    total = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=_plain).encode())
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for name, tensor in sorted(tensors.items()):
            flat = _whole(name, tensor).reshape(-1)
            total.update(f"\n{name} {flat.dtype} {tuple(tensor.shape)}".encode())
            step = PIECE_BYTES // flat.element_size()
            for piece in pool.map(_piece_digest, repeat(flat), range(0, flat.numel(), step), repeat(step)):
                total.update(piece)
    return total.hexdigest()[:DIGEST_CHARACTERS]


def _piece_digest(flat: torch.Tensor, start: int, step: int) -> bytes:
    # hashlib and copies off a GPU release the interpreter lock, so the pieces do run side by side.
    return hashlib.sha256(flat[start : start + step].cpu().view(torch.uint8).numpy()).digest()


def _whole(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values: gathered if sharded (a collective call), refused if they are not there."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if tensor.is_meta or hasattr(tensor, "ds_id"):
        raise InvalidArgument(
            "model",
            expected="weights in memory",
            got=f"{name} without values (meta device, or ZeRO-3)",
            remedy="Take the fingerprint before the model is sharded or offloaded.",
        )
    return tensor.detach()


def _adapter_configuration(config: Any) -> dict[str, Any]:
    """Return the fields of a peft configuration that change log-probabilities (scaling), defaults left out."""
    return {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in ADAPTER_NEUTRAL
        and "dropout" not in field.name
        and getattr(config, field.name)
        != (field.default if field.default_factory is MISSING else field.default_factory())
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
