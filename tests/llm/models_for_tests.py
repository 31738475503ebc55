"""Tiny random models of several families, and a word-level tokenizer with a chat template."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 64
PAD, EOS, UNK = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
FIRST_WORD = len(SPECIAL)  # the id of "w0"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
# As in Zephyr and Mistral, sliding windows are shorter than the sequences of the tests.
WINDOW = 5

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that margins and gradients are far from zero
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
# What a family adds: tied and untied heads, soft-capping, sliding windows, learned positions, sinks, experts all occur.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "attn_implementation": "eager",  # the only one besides FlexAttention that soft-caps
    },
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    "gpt_oss": {
        "sliding_window": WINDOW,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.0,  # TRL would add it, asked for or not
        "experts_implementation": "eager",  # the only one in float64
    },
}


def tiny_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Any:
    """Return a random causal model of the family, without dropout, in evaluation mode as from_pretrained.

    The global RNG stays where it is. `config` overrides fields of the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**COMMON, **FAMILIES[family], **config}
    if family == "gpt2":
        fields["n_inner"] = fields.pop("intermediate_size")
        fields.pop("num_key_value_heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    return model.to(dtype).eval()


def tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE, vocabulary: int = VOCABULARY) -> Any:
    """Return a tokenizer whose tokens are the words w0, w1, ... and SPECIAL, split at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{k}" for k in range(vocabulary - FIRST_WORD))]
    base = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]),
    )
    tokenizer.chat_template = chat_template
    return tokenizer
