"""What is trained in the comparison with TRL: models, pairs, and the matrix products a step of them needs."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from rpo.llm.data import TokenizedGroup, TokenizedPair, load_preferences, prepare_pairs
from rpo.llm.logps.scoring import PromptGroup

PAIRS = Path(__file__).parents[1] / "examples" / "smollm2" / "pairs.jsonl"
LLAMA: dict[str, dict[str, int]] = {  # random weights, the shapes of Llama 3.2 1B and 3.1 8B, and one for tests
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 128},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128_256},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
TIED = {"llama-1b"}
# Tokens of prompts and responses as in UltraFeedback: log-normal, (median, sigma, most).
PROMPT_LENGTHS, RESPONSE_LENGTHS = (110, 0.9, 1024), (250, 0.7, 1024)

Batch = Sequence[TokenizedGroup]


def make_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the policy in training mode and its tokenizer."""
    weights = getattr(torch, arguments.dtype if arguments.lora else arguments.weights)
    if arguments.model in LLAMA:
        fields: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
        fields |= LLAMA[arguments.model] | {"tie_word_embeddings": arguments.model in TIED}
        torch.manual_seed(0)
        with torch.device(arguments.device):
            model: Any = transformers.LlamaForCausalLM._from_config(transformers.LlamaConfig(**fields), dtype=weights)
        tokenizer = word_tokenizer()
    else:
        options: dict[str, Any] = {"dtype": weights, "use_safetensors": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = model.to(arguments.device).train()
    if arguments.lora:
        import peft

        config = peft.LoraConfig(task_type="CAUSAL_LM", r=arguments.lora, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if arguments.lora:
            model.enable_input_require_grads()
    return model, tokenizer


def word_tokenizer() -> Any:
    """Return a tokenizer of a few words: TRL's trainer asks for one, though the tokens are given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "w": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_reference(policy: Any) -> Any:
    """Return a frozen copy of the policy, without its adapter (which starts at zero), its last norm moved by 2 %."""
    reference = copy.deepcopy(policy)
    reference = reference.unload() if hasattr(reference, "get_base_model") else reference
    reference.eval().requires_grad_(False)
    norms = [module for name, module in reference.named_modules() if name.endswith("model.norm")]
    norms[-1].weight.mul_(1.02)
    return reference


def twin(model: Any) -> Any:
    """Return a second model over the same parameters: neither side sees what the other does to modules or settings."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def make_batches(arguments: argparse.Namespace, tokenizer: Any) -> list[Batch]:
    """Return the batches: of the example's pairs, or random tokens of UltraFeedback-like lengths."""
    count = (arguments.batches + 1) * arguments.pairs  # the first batch warms up
    if arguments.model in LLAMA:
        vocabulary = LLAMA[arguments.model]["vocab_size"]
        scale = 0.05 if arguments.model == "tiny" else 1.0
        pairs = random_pairs(count, vocabulary, scale)
    else:
        rows = prepare_pairs(load_preferences(arguments.data), tokenizer, max_length=arguments.max_length)
        pairs = [pair for pair in rows if len(pair.prompt_ids + pair.chosen_ids) >= arguments.min_tokens]
        if len(pairs) < count:
            raise SystemExit(f"{len(pairs)} pairs of {arguments.min_tokens} tokens or more, {count} needed.")
        order = np.random.default_rng(0).permutation(len(pairs))
        pairs = [pairs[k] for k in order[:count]]
    return [pairs[k : k + arguments.pairs] for k in range(0, count, arguments.pairs)]


def random_pairs(count: int, vocabulary: int, scale: float = 1.0) -> list[TokenizedGroup]:
    """Return pairs of random tokens; scale: of the lengths."""
    rng = np.random.default_rng(0)

    def draw(lengths: tuple[int, float, int]) -> tuple[int, ...]:
        middle, sigma, most = lengths
        size = int(np.clip(scale * rng.lognormal(np.log(middle), sigma), 2, most))
        return tuple(rng.integers(4, vocabulary, size=size).tolist())

    return [
        TokenizedPair(draw(PROMPT_LENGTHS), draw(RESPONSE_LENGTHS), draw(RESPONSE_LENGTHS), row=row)
        for row in range(count)
    ]


def grouped(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Return the pairs of the batches, the first kept as it is, cut anew by length."""
    pairs = sorted((pair for batch in batches[1:] for pair in batch), key=padded_length)
    return [batches[0], *(pairs[k : k + size] for k in range(0, len(pairs), size))]


def padded_length(pair: TokenizedGroup) -> int:
    """Return the tokens of the longer of a pair's two sequences."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def needed_flops(model: Any, groups: Sequence[PromptGroup], *, shared: bool, reference: bool) -> float:
    """Return the floating-point operations of the matrix products of one step, two a multiply-add.

    shared: every prompt is fed once. reference: with a forward pass of the reference. Linear layers and the head
    forward, for inputs and, where they are trained, for weights; attention over visible pairs; no padding,
    nothing computed twice.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, head = base.config.get_text_config(), base.get_output_embeddings()
    fed = attended = predicted = 0
    for prompt, responses, _ in groups:
        p = len(prompt)
        predicted += sum(map(len, responses))
        sizes = [len(response) - 1 for response in responses]
        fed += sum(sizes) + (p if shared else p * len(sizes))
        prompts = p * (p + 1) // 2
        attended += sum(n * p + n * (n + 1) // 2 for n in sizes) + (prompts if shared else prompts * len(sizes))
    total = 0.0
    for module in base.modules():
        if isinstance(module, torch.nn.Linear):
            passes = 2 + module.weight.requires_grad + reference
            total += 2 * module.weight.numel() * passes * (predicted if module is head else fed)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    products = 2 * (3 + reference)  # queries by keys, weights by values; twice as many backward
    return total + 2 * products * attended * config.num_attention_heads * width * config.num_hidden_layers


def own_shapes(model: Any, groups: Sequence[PromptGroup]) -> list[tuple[int, int, int]]:
    """Return the products of one layer and the head for a batch: forward, for inputs, for weights."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, layer = base.get_output_embeddings(), base.get_decoder().layers[0]
    predicted = sum(len(response) for group in groups for response in group.responses)
    fed = sum(len(group.prompt_ids) - len(group.responses) for group in groups) + predicted
    weights = [(fed, module.weight.shape) for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    found = []
    for m, (outputs, inputs) in [*weights, (predicted, head.weight.shape)]:
        found += [(m, inputs, outputs), (m, outputs, inputs), (outputs, m, inputs)]
    return found
