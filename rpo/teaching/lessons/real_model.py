"""What the training notebook needs around `rpo.fit`: a model to train, wherever it runs, and a place for results."""

from __future__ import annotations

import atexit
import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo.core import checks

if TYPE_CHECKING:
    import pandas

    from rpo.core.records import Run

__all__ = ["answers", "find_or_make", "held_out", "quietly", "stand_in", "workspace"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 800


def find_or_make(folder: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Return `folder` if it holds a model, else a tiny one with random weights made on the spot; print which.

    rows: preference pairs in messages, whose texts the stand-in's tokenizer is made of.
    """
    path = Path(folder)
    if (path / "model.safetensors").is_file() and (path / "config.json").is_file():
        print(f"The model in {folder}.")
        return path
    print(f"No model in {folder}: a tiny one with random weights stands in. What it says means nothing.")
    return stand_in(workspace() / "stand-in", rows)


def stand_in(folder: Path, rows: Iterable[Mapping[str, Any]], *, seed: int = 0) -> Path:
    """Write a two-layer Llama with random weights, a tokenizer made of the rows' texts and a chat template.

    The global random state is left as it was.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [message["content"] for row in rows for side in ("prompt", "chosen", "rejected") for message in row[side]]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=PAD, eos_token=END, additional_special_tokens=[START]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checks.integer("seed", seed, minimum=0))
        model = LlamaForCausalLM(config)
    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def workspace() -> Path:
    """Return a new folder for results, removed when the kernel ends."""
    folder = Path(tempfile.mkdtemp(prefix="rpo-notebook-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what trainers print and the progress bars of loading out of the notebook; `Run.history` has every log."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def held_out(runs: Sequence[Run]) -> pandas.DataFrame:
    """Return the last evaluation of each run, a row each: means over the held-out pairs.

    Columns: preference (loss, nats), margin (implicit reward), chosen and rejected (change of the log-probability since
    the start, nats per response), fell (share of pairs whose chosen response became less likely).
    """
    import pandas

    columns = {
        "eval_loss/preference": "preference",
        "eval_rewards/margins": "margin",
        "eval_displacement/chosen_change": "chosen",
        "eval_displacement/rejected_change": "rejected",
        "eval_displacement/share": "fell",
    }
    rows = {run.label: next(row for row in reversed(run.history) if "eval_loss/preference" in row) for run in runs}
    return pandas.DataFrame(
        [{new: row[old] for old, new in columns.items()} for row in rows.values()], index=list(rows)
    )


def answers(
    models: Mapping[str, Any], tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = 40, seed: int = 0
) -> str:
    """Return what each model answers to each prompt, from the same random numbers, as text to print."""
    from rpo.llm.sampling import generate

    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    said = {
        name: generate(model, tokenizer, messages, max_new_tokens=max_new_tokens, seed=seed, progress=False)
        for name, model in models.items()
    }
    lines = []
    for index, prompt in enumerate(prompts):
        lines.append(f"> {prompt}")
        lines += [f"  {name}: {' '.join(samples[index][0].text.split())}" for name, samples in said.items()]
    return "\n".join(lines)
