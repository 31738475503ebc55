"""Sampling from a causal language model: exact samples of pi unless asked otherwise; the global RNG stays put."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.progress import track
from rpo.core.synonyms import with_synonyms
from rpo.llm.logps.head import causal_model, takes_logits_to_keep
from rpo.llm.logps.logprobs import token_logps
from rpo.llm.logps.router import without_router
from rpo.llm.models import positions_of

Message: TypeAlias = Mapping[str, Any]
SampledIds: TypeAlias = tuple[int, ...]  # a response, with the stop token where one was reached


@dataclass(frozen=True, slots=True)
class Sample:
    """A sampled response. text: without special tokens. token_ids: with the stop token if finish_reason is "stop"."""

    text: str
    token_ids: SampledIds
    finish_reason: str  # "stop", or "length": cut at max_new_tokens


@with_synonyms
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Message]],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool | None = None,
) -> list[list[Sample]]:
    """Return `num_samples` responses to each prompt: a text as it stands, or messages through the chat template.

    Decoding is as in `sample_ids`; the model's own generation settings give nothing but its stop tokens.
    Raises InvalidArgument.
    """
    if isinstance(prompts, (str, Mapping)):
        raise InvalidArgument(
            "prompts", expected="a list of prompts", got=type(prompts).__name__, remedy="Put the prompt in a list."
        )
    stops = stop_token_ids(model, tokenizer)
    sampled = sample_ids(
        model,
        [prompt_token_ids(tokenizer, prompt) for prompt in prompts],
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id or 0,  # padding is masked: any token will do
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        batch_size=batch_size,
        progress=progress,
    )

    def sample(ids: SampledIds) -> Sample:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(text, ids, "stop" if ids[-1] in stops else "length")

    return [[sample(ids) for ids in responses] for responses in sampled]


def prompt_token_ids(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """Return the tokens that a response to `prompt` is conditioned on, as in training. Raises InvalidArgument."""
    if isinstance(prompt, str):
        # With the start that the tokenizer gives a text, once, and without the end: the text goes on.
        marked = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
        ids = list(tokenizer(prompt, add_special_tokens=not marked).input_ids)
        ended = bool(ids) and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token)
        return ids[:-1] if ended else ids
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidArgument(
            "tokenizer",
            expected="a chat template, since a prompt is a list of messages",
            got="a tokenizer without one",
            remedy="Set tokenizer.chat_template, or pass the prompts as texts.",
        )
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def stop_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return every token that ends a turn: the tokenizer's end of sequence and those of the generation settings."""
    settings = getattr(_unwrapped(model), "generation_config", None)
    listed = getattr(settings, "eos_token_id", None)
    listed = listed if isinstance(listed, (list, tuple)) else [listed]
    return tuple(sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None}))


def sample_ids(
    model: Any,
    prompt_ids_list: Sequence[Sequence[int]],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 64,
    seed: int = 0,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
    stop_early: bool = True,
    progress: bool | None = None,
) -> list[list[SampledIds]]:
    """Return `num_samples` responses to each prompt, the stop token included where one was reached.

    With temperature 1, top_p 1 and top_k 0 (off) these are independent exact samples of the model; at
    temperature 0 each token is the most likely one. The same arguments and seed give the same
    responses; another batch_size gives others. The model runs in evaluation mode, which is restored.
    stop_early=False makes max_new_tokens forward passes in any case, as models sharded over processes
    need. Raises InvalidArgument.
    """
    num_samples = checks.integer("num_samples", num_samples, minimum=1)
    max_new_tokens = checks.integer("max_new_tokens", max_new_tokens, minimum=1)
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    decoding = _Decoding(temperature, top_p, top_k)
    _check_prompts(model, prompt_ids_list, max_new_tokens)
    stops = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    # Prompts of like length share a batch; the order is a function of the prompts alone.
    order = sorted(range(len(prompt_ids_list)), key=lambda place: len(prompt_ids_list[place]))
    rows = [place for place in order for _ in range(num_samples)]
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(
        checks.integer("seed", seed, minimum=0)
    )
    results: list[list[SampledIds]] = [[] for _ in prompt_ids_list]
    with evaluation_mode(model), torch.no_grad():
        for first in track(range(0, len(rows), batch_size), "generating", show=progress):
            batch = rows[first : first + batch_size]
            tokens = _sample_batch(
                model,
                [prompt_ids_list[place] for place in batch],
                max_new_tokens,
                torch.tensor(stops, dtype=torch.long, device=generator.device),
                pad_token_id,
                decoding,
                generator,
                stop_early,
            )
            for place, ids in zip(batch, tokens.tolist(), strict=True):
                end = next((k for k, token in enumerate(ids, start=1) if token in stops), max_new_tokens)
                results[place].append(tuple(ids[:end]))
    return results


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode; give every module back the mode it had, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Decoding:
    """From log-probabilities to the next token."""

    def __init__(self, temperature: float, top_p: float, top_k: int) -> None:
        self.temperature = checks.nonnegative("temperature", temperature)
        self.top_k = checks.integer("top_k", top_k, minimum=0)
        self.top_p = checks.positive("top_p", top_p)
        if self.top_p > 1:
            raise InvalidArgument("top_p", expected="a number in (0, 1]", got=top_p, remedy="1 keeps every token.")

    def __call__(self, logps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one token a row, (B,), of logps (B, V)."""
        if logps.isnan().any():
            raise InvalidArgument(
                "model",
                expected="finite logits",
                got="NaN",
                remedy="float16 overflows on many models: load it in bfloat16 or float32.",
            )
        if self.temperature == 0:
            return logps.argmax(-1)
        probabilities = (logps / self.temperature).softmax(-1)
        if self.top_k:
            smallest = probabilities.topk(min(self.top_k, logps.shape[-1])).values[:, -1:]
            probabilities = probabilities.where(probabilities >= smallest, 0.0)
            probabilities /= probabilities.sum(-1, keepdim=True)
        if self.top_p < 1:
            ranked, tokens = probabilities.sort(-1, descending=True)
            likelier = ranked.cumsum(-1) - ranked  # the mass of the tokens before each
            probabilities = torch.zeros_like(ranked).scatter(-1, tokens, ranked.where(likelier < self.top_p, 0.0))
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def _sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: torch.Tensor,
    pad_token_id: int,
    decoding: _Decoding,
    generator: torch.Generator,
    stop_early: bool,
) -> torch.Tensor:
    """Return (B, at most max_new_tokens) tokens; what follows a row's stop token is meaningless."""
    device = generator.device
    longest = max(map(len, prompts))
    step = torch.tensor([[pad_token_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    more = without_router(model) | ({"logits_to_keep": 1} if takes_logits_to_keep(model) else {})
    keyword = _cache_keyword(model)
    cache, tokens = None, []
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        fed = {"input_ids": step, keyword: cache, "use_cache": True}
        if keyword == "past_key_values":
            fed |= {"attention_mask": mask, "position_ids": positions}
        elif cache is None:  # a state holds no padding to be masked later
            fed["attention_mask"] = mask
        output = model(**fed, **more)
        cache = getattr(output, keyword)
        token = decoding(token_logps(output.logits[:, -1]), generator)
        tokens.append(token)
        finished |= torch.isin(token, stops)
        if stop_early and finished.all():
            break
        step, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat((mask, torch.ones_like(step)), dim=1)
    return torch.stack(tokens, dim=1)


def _cache_keyword(model: Any) -> str:
    """Return under what name the model keeps what it has read: attention's keys and values, or a state."""
    known = inspect.signature(type(causal_model(model)).forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise InvalidArgument(
        "model",
        expected="a model that goes on from past_key_values or cache_params",
        got=type(causal_model(model)).__name__,
        remedy="Use transformers' own generate for it.",
    )


def _check_prompts(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that are empty or leave too few positions, and prompt-learning adapters."""
    wrapped = _unwrapped(model)
    adapter = getattr(wrapped, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise InvalidArgument(
            "model",
            expected="a model without prompt-learning adapters",
            got=type(adapter).__name__,
            remedy="Use transformers' own generate for it; LoRA adapters work here.",
        )
    limit = positions_of(model)
    for place, ids in enumerate(prompts):
        if not len(ids):
            raise InvalidArgument(
                f"prompts[{place}]",
                expected="at least one token",
                got="an empty prompt",
                remedy="Put a BOS token in it; the first token needs something to follow.",
            )
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise InvalidArgument(
                f"prompts[{place}]",
                expected=f"prompt + max_new_tokens <= {limit}, the model's positions",
                got=f"{len(ids)} + {max_new_tokens}",
                remedy="Shorten the prompt or lower max_new_tokens.",
            )


def _unwrapped(model: Any) -> Any:
    return extract_model_from_parallel(model, keep_torch_compile=False)
