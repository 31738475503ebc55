"""Models and tokenizers: loading them, what a loaded model must be, the adapter on it, and what of it can move."""

from rpo.llm.models.loading import (
    adapter_config,
    check_embeddings,
    choose_pad_token,
    convert_gguf,
    disable_dropout,
    from_gguf,
    is_adapter,
    load_model,
    load_tokenizer,
    positions_of,
    require_peft,
    with_stored_adapter,
)

__all__ = [
    "adapter_config",
    "check_embeddings",
    "choose_pad_token",
    "convert_gguf",
    "disable_dropout",
    "from_gguf",
    "is_adapter",
    "load_model",
    "load_tokenizer",
    "positions_of",
    "require_peft",
    "with_stored_adapter",
]
