"""`rpo chat`: a conversation with a model, on the terminal or from a pipe."""

from __future__ import annotations

import sys
from typing import Any, Literal

from rpo.core import shown
from rpo.core.errors import InvalidArgument

AGAIN = "/new"
HINT = f"An empty line or Ctrl-D ends it, {AGAIN} forgets what was said."


def chat_command(
    model: str,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    resolved: str = "",
) -> None:
    """Talk to a model: each line is answered with all that was said before it.

    Args:
        model: name or folder of a causal language model or an adapter.
        system: text of a system message that comes first.
        max_new_tokens: length limit of an answer, in tokens.
        temperature: 1 samples the model's distribution, 0 takes the likeliest token.
        top_p: sample among the likeliest tokens of this total probability.
        top_k: sample among so many likeliest tokens; 0 for all.
        seed: the same seed and the same lines give the same answers.
        dtype: of the weights; auto keeps the one stored.
    """
    import torch

    from rpo.llm.models import load_model, load_tokenizer
    from rpo.llm.sampling import generate

    tokenizer = load_tokenizer(model)
    if getattr(tokenizer, "chat_template", None) is None:
        raise InvalidArgument(
            "model",
            expected="a model with a chat template",
            got=f"{model}, which has none",
            remedy="It continues texts: use rpo generate --prompts TEXT.",
        )
    network = load_model(model, dtype=dtype)
    if torch.cuda.is_available():
        network.to("cuda")
    begin: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    said = list(begin)
    terminal = sys.stdin.isatty()
    if terminal:
        print(HINT)
    while line := _line("> " if terminal else ""):
        if line == AGAIN:
            said = list(begin)
            continue
        said.append({"role": "user", "content": line})
        (samples,) = generate(
            network,
            tokenizer,
            [said],
            num_samples=1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed + len(said),
        )
        answer = samples[0]
        said.append({"role": "assistant", "content": answer.text})
        print(shown.text(answer.text) + (" [...]" if answer.finish_reason == "length" else ""), flush=True)


def _line(mark: str) -> str:
    """Return the next line without its ends, "" where there is none."""
    try:
        return input(mark).strip()
    except EOFError:
        return ""
