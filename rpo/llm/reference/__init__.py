"""Who pi_ref is, and its values: scored once and kept."""

from rpo.llm.reference.sources import (
    AsGiven,
    DisabledAdapter,
    FrozenModel,
    NamedAdapter,
    NoReference,
    Reference,
    adapter_is_untouched,
    is_peft_model,
    resolve_reference,
    rng_kept,
    unchanged,
)

__all__ = [
    "AsGiven",
    "DisabledAdapter",
    "FrozenModel",
    "NamedAdapter",
    "NoReference",
    "Reference",
    "adapter_is_untouched",
    "is_peft_model",
    "resolve_reference",
    "rng_kept",
    "unchanged",
]
