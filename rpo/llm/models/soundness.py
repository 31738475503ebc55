"""What a loaded model must be before anything is computed with it: whole, finite and causal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from rpo.core.errors import InvalidArgument, RPOError, brief
from rpo.llm.logps.head import causal_model

NAMED = 4
# Of from_pretrained: what does not fit is reported, all of it at once, and refused by `require_whole`.
REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
# Of the change at the last position: what rounding may do to the positions before it.
TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.05}
TOLERANCE_ELSE = 1e-4
# Fields of a model's configuration that change no log-probability (or that the weights show).
NEUTRAL = {"transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "initializer_range"}
NEUTRAL |= {"id2label", "label2id", "problem_type", "pruned_heads", "return_dict", "name_or_path", "is_decoder"}


class ModelNotLoaded(RPOError):
    """A model or tokenizer that cannot be read; the message says from where, why, and what to do."""


@contextlib.contextmanager
def reading(source: object) -> Iterator[None]:
    """Turn what goes wrong while reading `source` into one typed error."""
    try:
        yield
    except (RPOError, ImportError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        # The parsers of three formats raise nearly every built-in exception on a damaged file.
        reason = brief(str(error)) or type(error).__name__
        raise ModelNotLoaded(
            f"name_or_path: expected a hub name, or a folder with config.json, tokenizer and safetensors, got {source} "
            f"({reason}). Check the name and the connection; weights must be safetensors, and models that bring their "
            "own code are not run."
        ) from error


def sound(source: object, model: Any, info: dict[str, Any]) -> Any:
    """Return the model, refused if it is not whole, finite and causal. Raises InvalidArgument, ModelNotLoaded."""
    require_whole(source, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    require_finite(source, model)
    require_causal(model)
    return model


def require_whole(
    source: object, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Sequence[Any]] = ()
) -> None:
    """Refuse weights that are not the model's tensors, all and no others. Raises ModelNotLoaded.

    missing, unexpected: names; what is tied, or may be missing by the model's own word, is not among them.
    mismatched: name, shape found, shape of the model.
    """
    shapes = [f"{name} {list(got)} for {list(wanted)}" for name, got, wanted in mismatched]
    found = [
        f"{len(names)} {what} ({_first(names)})"
        for names, what in (
            (sorted(missing), "missing"),
            (sorted(unexpected), "that the model does not use"),
            (sorted(shapes), "of another shape"),
        )
        if names
    ]
    if found:
        raise ModelNotLoaded(
            f"name_or_path: expected the tensors of the model and no others, got {source} with {' and '.join(found)}. "
            "What is missing would be random numbers: get the whole checkpoint, or the config.json that belongs to it."
        )


def require_finite(source: object, model: torch.nn.Module) -> None:
    """Refuse a model with NaN or infinity in a weight. Raises ModelNotLoaded."""
    bad = [
        name
        for name, value in model.named_parameters()
        if value.is_floating_point() and not value.is_meta and not _is_finite(value.detach())
    ]
    if bad:
        raise ModelNotLoaded(
            f"name_or_path: expected finite weights, got {source} with NaN or infinity in {len(bad)} tensors "
            f"({_first(bad)}). The checkpoint is damaged: get it again, or an earlier one."
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _is_finite(value: torch.Tensor) -> bool:
    # One pass without a tensor of booleans; a sum that overflows is looked at again.
    total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
    return bool(total.isfinite()) or bool(value.isfinite().all())


def require_causal(model: Any) -> None:
    """Refuse a model whose earlier positions know of later tokens, or that has an encoder. Raises InvalidArgument.

    Two rows that differ in their last token go through the model; nothing of it changes. A model that is
    sharded, not loaded yet or cannot run here is judged by its configuration alone.
    """
    base = causal_model(model)
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "get_text_config"):
        return
    if getattr(config, "is_encoder_decoder", False):
        raise _not_causal(base, "it has an encoder")
    text = config.get_text_config(decoder=True)
    width = min(5, getattr(text, "max_position_embeddings", None) or 5)
    if width < 2 or text.vocab_size < 2 or any(p.is_meta or hasattr(p, "device_mesh") for p in base.parameters()):
        return
    row = [(7919 * k) % text.vocab_size for k in range(1, width + 1)]
    rows = [torch.tensor([[*row[:-1], last]]) for last in (row[-1], (row[-1] + 1) % text.vocab_size)]
    modes = [(module, module.training) for module in base.modules()]
    base.eval()
    try:
        with torch.no_grad():
            first, second = (base(ids.to(next(base.parameters()).device), use_cache=False).logits for ids in rows)
    except Exception:  # of types that this device cannot compute with, of models that want other lengths
        return
    finally:
        for module, training in modes:
            module.training = training
    change = (first.double() - second.double()).abs().amax((0, 2))
    if float(change[:-1].max()) > TOLERANCE.get(base.dtype, TOLERANCE_ELSE) * float(change[-1]):
        raise _not_causal(base, "its logits at earlier positions change with the last token")


def _not_causal(model: Any, why: str) -> InvalidArgument:
    return InvalidArgument(
        "model",
        expected="a causal language model, which predicts each token from those before it",
        got=f"{type(model).__name__}: {why}",
        remedy="Use a decoder such as Llama, Qwen or GPT-2.",
    )


def effective_configuration(model: Any) -> dict[str, Any]:
    """Return the fields of a model's configuration that change its log-probabilities, defaults left out."""
    if not hasattr(model, "config"):
        return {}
    return {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if name not in NEUTRAL and not name.startswith(("_", "output_")) and not name.endswith("_token_id")
        # Off in evaluation, whatever they say.
        if "dropout" not in name and "pdrop" not in name
    }
