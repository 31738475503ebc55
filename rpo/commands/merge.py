"""`rpo merge`: an adapter merged into its base."""

from __future__ import annotations

from typing import Literal


def merge_command(
    adapter: str,
    output: str,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Merge an adapter into its base model, as a plain model that every tool loads.

    Args:
        adapter: folder or hub name of an adapter, as rpo train with lora writes it.
        output: folder for the model (safetensors) and its tokenizer.
        dtype: of the weights written; auto keeps the base model's.
        overwrite: replace an earlier model in that folder.
    """
    from rpo.llm.models.merging import merge_adapter

    difference = merge_adapter(adapter, output, dtype=dtype, overwrite=overwrite)
    print(f"Written to {output}; merging moved log-probabilities by at most {difference:.1e} nats")
