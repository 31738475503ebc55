"""Models and tokenizers: loading them, what a loaded model must be, the adapter on it, and what of it can move."""

from rpo.llm.models.loading import (
    adapter_config,
    convert_gguf,
    disable_dropout,
    from_gguf,
    is_adapter,
    load_model,
    positions_of,
    with_stored_adapter,
)
from rpo.llm.models.merging import average_models, block_ratios, merge_adapter
from rpo.llm.models.packages import require_peft
from rpo.llm.models.tokenizers import check_embeddings, choose_pad_token, load_tokenizer

__all__ = [
    "adapter_config",
    "average_models",
    "block_ratios",
    "check_embeddings",
    "choose_pad_token",
    "convert_gguf",
    "disable_dropout",
    "from_gguf",
    "is_adapter",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "positions_of",
    "require_peft",
    "with_stored_adapter",
]
