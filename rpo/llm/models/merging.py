"""An adapter merged into its base: a plain model, which every other tool loads."""

from __future__ import annotations

from pathlib import Path

import torch

from rpo.core.errors import InvalidArgument
from rpo.core.records import staged_output
from rpo.llm.models.loading import floating_dtype, is_adapter, load_model
from rpo.llm.models.tokenizers import load_tokenizer

PROBE_TOKENS = 32


def merge_adapter(
    source: str | Path, output: str | Path, *, dtype: torch.dtype | str = "auto", overwrite: bool = False
) -> float:
    """Write the adapter of a folder or hub name, merged into its base, as a folder that `from_pretrained` loads.

    dtype: of the weights written; "auto" keeps the base's. Returns the largest difference in log-probability, in
    nats, that merging makes on one row of tokens: rounding, of the size of the type. The tokenizer goes with it.
    Raises InvalidArgument for what is no adapter, OutputError, MissingDependency, ModelNotLoaded.
    """
    chosen = floating_dtype(dtype)
    if not is_adapter(source):
        raise InvalidArgument(
            "adapter", expected="an adapter of peft", got=f"{source}, which is none", remedy="Use it as it is."
        )
    with staged_output(output, overwrite=overwrite, marker="config.json") as stage:
        model = load_model(source, dtype=chosen)
        size = int(model.config.get_text_config().vocab_size)
        probe = (torch.arange(PROBE_TOKENS)[None] * 7919) % size  # spread over the vocabulary
        before = _logps(model, probe)
        merged = model.merge_and_unload()
        difference = float((_logps(merged, probe) - before).abs().max())
        merged.save_pretrained(stage)
        load_tokenizer(source).save_pretrained(stage)
    return difference


def _logps(model: torch.nn.Module, probe: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=probe).logits
    return logits.float().log_softmax(-1)
