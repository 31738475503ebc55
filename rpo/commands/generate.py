"""`rpo generate`: responses of models to prompts; torch and transformers are imported when it is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rpo.core import shown
from rpo.core.errors import InvalidArgument
from rpo.core.lines import read_lines
from rpo.core.locks import unwritable
from rpo.core.records import check_file, write_file

PROMPT_SUFFIXES = (".jsonl", ".txt")


def generate_command(
    model: str | list[str],
    prompts: str,
    num_samples: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    output: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Sample responses of one or several models to prompts.

    Args:
        model: name or folder of a causal language model, or a list of them.
        prompts: a text; or a .txt file, a prompt a line; or a .jsonl file whose rows have a prompt (text or messages).
        num_samples: responses per prompt.
        max_new_tokens: length limit, in tokens.
        temperature: 1 samples the model's distribution, 0 takes the likeliest token.
        top_p: sample among the likeliest tokens of this total probability.
        top_k: sample among so many likeliest tokens; 0 for all.
        batch_size: responses at a time.
        seed: the same seed gives the same samples.
        dtype: of the weights; auto keeps the one stored.
        output: JSONL file, a row per prompt and model; without it they are printed.
        overwrite: replace an earlier file.
    """
    target = None if output is None else check_file("output", output)
    if target is not None and target.exists() and not overwrite:
        remedy = "Choose another name, or pass --overwrite true."
        raise InvalidArgument("output", expected="a new file", got=output, remedy=remedy)
    asked = _read_prompts(prompts)
    models = [model] if isinstance(model, str) else model
    if not models or len(set(models)) < len(models):
        raise InvalidArgument("model", expected="different names", got=models, remedy="Name each model once.")
    rows: list[dict[str, Any]] = []
    for name in models:
        answers = _responses(
            name,
            asked,
            dtype,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            batch_size=batch_size,
            seed=seed,
        )
        rows += [{"model": name, **row} for row in answers]
    if target is None:
        for row in rows:
            print(shown.text(f"{row['model'] if len(models) > 1 else ''}> {_prompt_text(row['prompt'])}"))
            for text, reason in zip(row["responses"], row["finish_reasons"], strict=True):
                print(shown.text(text) + (" [...]" if reason == "length" else ""))
        return
    _write_lines(target, rows)
    write_file(target.with_suffix(".config.yaml"), resolved)
    each = f"{num_samples} responses each" + (f" of {len(models)} models" if len(models) > 1 else "")
    print(f"{len(asked)} prompts, {each}, written to {target}")


def _responses(name: str, prompts: Sequence[Any], dtype: str, **sampling: Any) -> list[dict[str, Any]]:
    """Return a row per prompt: prompt as the model was asked, responses, finish_reasons."""
    import torch

    from rpo.llm.models import load_model, load_tokenizer
    from rpo.llm.sampling import generate

    tokenizer, network = load_tokenizer(name), load_model(name, dtype=dtype)
    if torch.cuda.is_available():
        network.to("cuda")
    # A model with a chat template is asked as in training; one without continues the text.
    chat = getattr(tokenizer, "chat_template", None) is not None
    asked = [[{"role": "user", "content": text}] if chat and isinstance(text, str) else text for text in prompts]
    return [
        {
            "prompt": prompt,
            "responses": [sample.text for sample in samples],
            "finish_reasons": [sample.finish_reason for sample in samples],
        }
        for prompt, samples in zip(asked, generate(network, tokenizer, asked, **sampling), strict=True)
    ]


def _read_prompts(prompts: str) -> list[Any]:
    """Return texts and lists of messages."""
    path = Path(prompts)
    if not prompts.endswith(PROMPT_SUFFIXES):
        return [prompts]
    read = read_lines("prompts", path, expected="a readable UTF-8 file, or a text")
    numbered = [(number, line) for number, line in enumerate(read, 1) if line.strip()]
    lines = [_prompt_of(line, number) if path.suffix == ".jsonl" else line for number, line in numbered]
    if not lines:
        raise InvalidArgument("prompts", expected="at least one prompt", got="none", remedy=f"Look at {prompts}.")
    return lines


def _prompt_of(line: str, number: int) -> Any:
    try:
        prompt = json.loads(line)["prompt"]
        json.dumps(prompt, ensure_ascii=False).encode()  # no tokenizer takes half a surrogate pair
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = None
    if isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(item, dict) for item in prompt)):
        return prompt
    expected = 'a row {"prompt": a text or a list of messages}, without half a surrogate pair'
    raise InvalidArgument(f"prompts, line {number}", expected=expected, got=line[:80], remedy="Mend that line.")


def _prompt_text(prompt: str | Sequence[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))


def _write_lines(target: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSONL whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(target.parent, error) from error
    write_file(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
