"""Tokenizers made in memory: one token a character, so that expected tokens can be read off the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
# Drops the system message once the assistant has spoken: the prompt alone reads otherwise than in the whole.
REWRITING = (
    "{% for m in messages %}{% if not (m['role'] == 'system' and messages[-1]['role'] == 'assistant') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<call>' + c['function']['name'] + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if mood is defined %}{{ mood + '\n' }}{% endif %}{% endif %}"
)

# Two tokens close an answer, as in Cohere's template; the second is the EOS, or none is.
TWO_ENDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ '<|eot|>' if m['role'] == 'assistant' else '' }}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes the EOS after the whole conversation, as Phi-3's does.
EOS_AT_THE_END = CHATML.replace(
    "{% if add_generation_prompt %}", "{{ '' if add_generation_prompt else eos_token }}{% if add_generation_prompt %}"
)
# Keeps the reasoning of the last turn alone, as Qwen3's does, and writes tools and calls.
REASONING = TOOLS.replace(
    "+ m['content'] }}",
    "+ ('<think>' + m['reasoning_content'] + '</think>' if m['reasoning_content'] and loop.last else '')"
    " + m['content'] }}",
)

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "</turn>")
PLAIN = ("<call>", "</call>")  # added to the vocabulary, but no control tokens


def characters(
    chat_template: str | None = None, *, eos: str | None = "</s>", bos: str | None = None, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters and the special tokens of the templates above."""
    base = Tokenizer(models.WordLevel({c: k for k, c in enumerate(CHARACTERS)} | {"<unk>": 96}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    base.decoder = decoders.Fuse()
    base.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    base.add_tokens(list(PLAIN))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, eos_token=eos, bos_token=bos, unk_token="<unk>")
    if adds_bos:
        mark = (bos, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[mark]
        )
    tokenizer.chat_template = chat_template
    return tokenizer


def bpe(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]], **special: str) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer that splits nothing beforehand, so that merges cross any boundary."""
    model = models.BPE({token: k for k, token in enumerate(vocabulary)}, list(merges))
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the tokens of `ids` joined: with one token a character, the text itself."""
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat_row(question: str = "Hi", chosen: str = "Yes", rejected: str = "No", **more: Any) -> dict[str, Any]:
    """Return a conversational row with an explicit prompt."""
    answers = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return {"prompt": [turn("user", question)], **answers, **more}
