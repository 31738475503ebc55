"""Tokenizers: loaded, with a pad token, within the embeddings of their model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.head import causal_model
from rpo.llm.models.gguf import gguf_file, gguf_tokenizer, is_gguf
from rpo.llm.models.soundness import reading

logger = logging.getLogger(__name__)

# Tokens that models ship with and never produce: safe as padding even where a mask is forgotten.
SPARE_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|PAD_TOKEN|>")


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Return the tokenizer of what `load_model` takes; a missing pad token is chosen by `choose_pad_token` and logged.

    Raises InvalidArgument, MissingDependency, ModelNotLoaded.
    """
    if is_gguf(name_or_path):
        with gguf_file(name_or_path) as path:
            tokenizer = gguf_tokenizer(path)
    else:
        with reading(name_or_path):
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    chosen = choose_pad_token(tokenizer)
    if chosen:
        logger.warning("%s: %s", name_or_path, chosen)
    return tokenizer


def choose_pad_token(tokenizer: Any) -> str:
    """Give a tokenizer without pad token one of its own tokens; return a sentence on it, "" if it had one.

    An unused special token if there is one, then unk, then the end-of-sequence token; nothing is added
    to the vocabulary, so no embedding is resized. Raises InvalidArgument if it has none of them.
    """
    if tokenizer.pad_token_id is not None:
        return ""
    vocabulary = tokenizer.get_vocab()
    spare = [token for token in SPARE_PADS if token in vocabulary]
    unk = [] if tokenizer.unk_token_id in (None, tokenizer.eos_token_id) else [tokenizer.unk_token]
    candidates = [*spare, *unk, *([tokenizer.eos_token] if tokenizer.eos_token else [])]
    if not candidates:
        raise InvalidArgument(
            "tokenizer",
            expected="a pad, unknown or end-of-sequence token",
            got="none of them",
            remedy="Set tokenizer.pad_token to a token of its vocabulary that texts do not use.",
        )
    tokenizer.pad_token = candidates[0]
    return f"the tokenizer has no pad token; {candidates[0]!r} (id {tokenizer.pad_token_id}) pads from now on."


def check_embeddings(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids beyond the model's embeddings. Raises InvalidArgument."""
    rows = len(causal_model(model).get_input_embeddings().weight)  # of what peft may have put around them, too
    if len(tokenizer) > rows:
        raise InvalidArgument(
            "tokenizer",
            expected=f"at most {rows} tokens, the rows of the model's embeddings",
            got=f"{len(tokenizer)}",
            remedy="Use the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) yourself.",
        )
