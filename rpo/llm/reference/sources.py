"""The reference policy: a frozen model, the base under a disabled adapter, an adapter, or the policy as it starts.

Shapes: G prompts of m responses each. Whatever its kind, a reference is evaluated without gradients
and in evaluation mode, draws no random number, and leaves the policy as it found it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from accelerate.utils import fsdp2_prepare_model

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.scoring import ScoringPath
from rpo.llm.models import load_model
from rpo.llm.reference.fingerprint import adapter_containers, adapter_of, weights_fingerprint

REFERENCE_ADAPTER = "reference"
# Of linear layers A is random and B zero to start with, of embeddings the other way round.
LORA_A, LORA_B = (re.compile(rf"\.lora_(embedding_)?{matrix}(\.weight|\.bias|$)") for matrix in "AB")


class Reference:
    """What trainers, caches and diagnostics need of a reference; the subclasses say where its weights are."""

    kind: ClassVar[str]

    def __init__(self, model: Any) -> None:
        self.model = model
        self._fingerprint: str | None = None

    def logps(self, path: ScoringPath, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the responses' summed log-probabilities under the reference, (G, m), nats, without gradient."""
        with self.active() as model:
            return path.logps(model, inputs)

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """Yield a model that computes the reference, in evaluation mode and without gradients; then undo it all."""
        with unchanged(self.model), torch.no_grad(), self._selected():
            self.model.eval()
            yield self.model

    def _selected(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def fingerprint(self) -> str:
        """Return `weights_fingerprint` of the reference, computed once: these weights do not change."""
        if self._fingerprint is None:
            self._fingerprint = self._compute_fingerprint()
        return self._fingerprint

    def _compute_fingerprint(self) -> str:
        return weights_fingerprint(self.model)

    def describe(self) -> dict[str, Any]:
        """Return what a run's record stores: kind and fingerprint. Call it before the model is sharded."""
        return {"kind": self.kind, "fingerprint": self.fingerprint()}

    def prepare(self, accelerator: Any) -> None:
        """Put a separate model under the policy's device, autocast and sharding; adapters follow the policy."""

    def hidden(self) -> AbstractContextManager[Any]:
        """Return a context in which saving the policy does not save the reference."""
        return contextlib.nullcontext()

    def release(self) -> None:
        """Remove from the policy what `resolve_reference` added to it."""


class FrozenModel(Reference):
    """A model of its own, which it freezes: no parameter requires a gradient and dropout is off."""

    kind = "frozen_model"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        model.requires_grad_(False).eval()

    def prepare(self, accelerator: Any) -> None:
        """Place the model as the policy is: device, autocast, FSDP2 shards. Raises InvalidArgument under ZeRO-3."""
        plugin = getattr(accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and plugin.zero_stage == 3:
            raise InvalidArgument(
                "ref_model",
                expected="no separate reference model under DeepSpeed ZeRO-3",
                got=type(self.model).__name__,
                remedy="Set precompute_ref_log_probs=True, or train an adapter.",
            )
        if getattr(accelerator, "is_fsdp2", False):
            self.model = fsdp2_prepare_model(accelerator, self.model)
        # After FSDP2 too: this is where the forward pass gets the policy's autocast.
        self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        accelerator._models.remove(self.model)  # Trainer takes any entry for the policy


class AsGiven(Reference):
    """The policy itself, for values computed before its first update: no second copy of any weight.

    Once training has begun it is no reference any more; only what was computed before stays true.
    """

    kind = "policy_as_given"

    def _compute_fingerprint(self) -> str:
        # An adapter that does nothing yet is random inside; without it, runs of all seeds share cached values.
        untouched = adapter_is_untouched(self.model)
        return weights_fingerprint(self.model, adapters=() if untouched else None)


class NoReference(Reference):
    """No reference at all: the objective reads none, so that nothing is hashed, scored or kept."""

    kind = "none"

    def _compute_fingerprint(self) -> str:
        return "none"


class DisabledAdapter(Reference):
    """The base model under a peft policy: no second copy of any weight."""

    kind = "disabled_adapter"

    def __init__(self, peft_model: Any) -> None:
        super().__init__(_require_peft("peft_model", peft_model))

    def _selected(self) -> AbstractContextManager[Any]:
        return self.model.disable_adapter()

    def _compute_fingerprint(self) -> str:
        return weights_fingerprint(self.model, adapters=())


class NamedAdapter(Reference):
    """An adapter of the policy's peft model, frozen here; another one is being trained.

    owned: `release` deletes the adapter. Raises InvalidArgument.
    """

    kind = "named_adapter"

    def __init__(self, peft_model: Any, adapter_name: str, *, owned: bool = False) -> None:
        super().__init__(_require_peft("peft_model", peft_model))
        if adapter_name not in peft_model.peft_config or adapter_name in peft_model.active_adapters:
            raise InvalidArgument(
                "ref_adapter_name",
                expected="an adapter of the model that is not the one being trained",
                got=f"{adapter_name!r} (adapters {list(peft_model.peft_config)}, active {peft_model.active_adapters})",
                remedy="Load the reference's adapter under a second name, for example with "
                f"load_adapter(path, adapter_name={REFERENCE_ADAPTER!r}).",
            )
        self.adapter_name, self._owned = adapter_name, owned
        for parameter in _adapter_tensors(peft_model, adapter_name).values():
            parameter.requires_grad_(False)

    @contextlib.contextmanager
    def _selected(self) -> Iterator[None]:
        model = self.model
        active, several = model.active_adapter, list(model.active_adapters)
        model.set_adapter(self.adapter_name)
        try:
            yield
        finally:
            model.set_adapter(active)
            if several != [active]:
                model.base_model.set_adapter(several)

    def _compute_fingerprint(self) -> str:
        return weights_fingerprint(self.model, adapters=(self.adapter_name,))

    def describe(self) -> dict[str, Any]:
        """Return what a run's record stores: kind, fingerprint and adapter."""
        return {**super().describe(), "adapter": self.adapter_name}

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Have `save_pretrained`, which writes every adapter, write the others alone."""
        model = self.model
        kept = [name for name in model.peft_config if name != self.adapter_name]
        model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=kept)
        try:
            yield
        finally:
            del model.save_pretrained

    def release(self) -> None:
        """Delete the adapter, if it was made for this reference."""
        if self._owned:
            with unchanged(self.model):
                self.model.delete_adapter(self.adapter_name)


def resolve_reference(policy: Any, ref_model: Any = None, *, ref_adapter_name: str | None = None) -> Reference:
    """Return the reference of a run; unless the caller says otherwise, it is the policy as given.

    ref_model: a model, or what `load_model` takes. ref_adapter_name: an adapter of the policy. With
    neither, an untouched LoRA is disabled; one that already changes the model (after SFT, say) is
    copied, frozen, under the name "reference"; for anything else the whole policy is copied, at
    the cost of its weights in memory once more. Call it before the policy is sharded or resumed.
    Raises InvalidArgument, ModelNotLoaded.
    """
    if ref_model is not None:
        if ref_adapter_name is not None:
            raise InvalidArgument(
                "ref_model", expected="None beside ref_adapter_name", got="both", remedy="Leave one of them out."
            )
        return FrozenModel(_separate_model(policy, ref_model))
    if ref_adapter_name is not None:
        return NamedAdapter(_require_peft("model", policy), ref_adapter_name)
    if adapter_is_untouched(policy):
        return DisabledAdapter(policy)
    if _adapter_is_all_that_differs(policy) and _is_copyable(policy):
        return NamedAdapter(policy, _copy_adapter(policy), owned=True)
    return FrozenModel(copy.deepcopy(policy))


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Restore, afterwards, which modules train and which parameters require gradients.

    peft turns gradients on for whatever it activates, also for what the user had frozen.
    """
    training = {module: module.training for module in model.modules()}
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def rng_kept(model: Any) -> Iterator[None]:
    """Put torch's generators, of the CPU and of the model's GPUs, back afterwards."""
    devices = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def is_peft_model(model: Any) -> bool:
    """Return whether `model` is a PeftModel; without peft imported nothing is."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def _require_peft(name: str, model: Any) -> Any:
    if not is_peft_model(model):
        raise InvalidArgument(
            name, expected="a peft model", got=type(model).__name__, remedy="Wrap it with peft.get_peft_model."
        )
    return model


def _separate_model(policy: Any, ref_model: Any) -> torch.nn.Module:
    """Return ref_model, loaded where it is a name, unless it is the policy or speaks another vocabulary."""
    if isinstance(ref_model, (str, os.PathLike)):
        attention = getattr(policy.config, "_attn_implementation", None)
        with rng_kept(policy):
            ref_model = load_model(os.fspath(ref_model), dtype=policy.dtype, attn_implementation=attention)
        ref_model = ref_model.to(policy.device)
    if not isinstance(ref_model, torch.nn.Module):
        raise InvalidArgument(
            "ref_model", expected="a model, a name or a folder", got=type(ref_model).__name__, remedy="Pass one."
        )
    if not {id(parameter) for parameter in policy.parameters()}.isdisjoint(map(id, ref_model.parameters())):
        raise InvalidArgument(
            "ref_model",
            expected="a model with weights of its own",
            got="one that shares parameters with the policy and would be trained with it",
            remedy="Leave ref_model out: the reference is then the policy as given.",
        )
    sizes = [_vocabulary(model) for model in (policy, ref_model)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise InvalidArgument(
            "ref_model",
            expected=f"a vocabulary of {sizes[0]}, as the policy's",
            got=sizes[1],
            remedy="Use a reference with the policy's tokenizer; resize_token_embeddings if only padding differs.",
        )
    return ref_model


def _vocabulary(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    return config.get_text_config().vocab_size if hasattr(config, "get_text_config") else None


def adapter_is_untouched(policy: Any) -> bool:
    """Return whether the policy is, for now, the base under one adapter that does nothing yet."""
    return _adapter_is_all_that_differs(policy) and _is_untouched(policy)


def _adapter_is_all_that_differs(policy: Any) -> bool:
    """Return whether the policy is one adapter on a base of which nothing is trained."""
    if not is_peft_model(policy) or len(policy.active_adapters) != 1:
        return False
    containers = adapter_containers(policy)
    trained = (name for name, parameter in policy.named_parameters() if parameter.requires_grad)
    return all(adapter_of(name, containers)[0] is not None for name in trained)


def _is_untouched(policy: Any) -> bool:
    """Return whether the active adapter surely contributes nothing: LoRA with A or B zero, modules as in the base."""
    base, tensors = policy.state_dict(), _adapter_tensors(policy, policy.active_adapter)
    for name, tensor in tensors.items():
        if ".modules_to_save." in name:
            same = torch.equal(tensor, base[name.replace(".modules_to_save.", ".original_module.")])
        elif LORA_A.search(name):
            same = True  # judged with its B
        elif LORA_B.search(name):
            first = tensors.get(LORA_B.sub(r".lora_\1A\2", name))  # none beside the bias of B
            same = not tensor.any() or (first is not None and not first.any())
        else:
            same = False
        if not same:
            return False
    return True


def _is_copyable(policy: Any) -> bool:
    """Return whether peft can hold a second adapter like the active one beside it."""
    config = policy.peft_config[policy.active_adapter]
    unsupported = ("target_parameters", "trainable_token_indices")
    return config.peft_type == "LORA" and not any(getattr(config, name, None) for name in unsupported)


def _adapter_tensors(policy: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Return an adapter's parameters and buffers by their names without the adapter's."""
    containers = adapter_containers(policy)
    named = [*policy.named_parameters(remove_duplicate=False), *policy.named_buffers(remove_duplicate=False)]
    found = ((adapter_of(name, containers), tensor) for name, tensor in named)
    return {plain: tensor for (owner, plain), tensor in found if owner == adapter}


def _copy_adapter(policy: Any) -> str:
    """Add a frozen copy of the active adapter and return its name; random numbers and training flags stay."""
    name, config = REFERENCE_ADAPTER, copy.deepcopy(policy.peft_config[policy.active_adapter])
    if name in policy.peft_config:
        raise InvalidArgument(
            "model",
            expected=f"no adapter named {name!r}, the name of the copy to be made of the active one",
            got=f"adapters {list(policy.peft_config)}",
            remedy=f"Pass ref_adapter_name={name!r} to use that adapter, or rename it.",
        )
    # PiSSA and its kin would take their components out of the base weights a second time; replication, too.
    config.init_lora_weights, config.layer_replication, config.inference_mode = True, None, True
    with unchanged(policy), rng_kept(policy):
        policy.add_adapter(name, config)
    original, made = (_adapter_tensors(policy, adapter) for adapter in (policy.active_adapter, name))
    if original.keys() != made.keys():
        policy.delete_adapter(name)
        raise InvalidArgument(
            "model",
            expected="an adapter that can be copied",
            got=f"differing weights {sorted(original.keys() ^ made.keys())[:4]}",
            remedy="Pass the reference as ref_model.",
        )
    for plain, tensor in made.items():
        tensor.requires_grad_(False)
        tensor.data = original[plain].detach().clone()  # type and device with it
    return name
