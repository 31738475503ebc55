"""`rpo merge`: an adapter merged into its base, or the weights of models averaged."""

from __future__ import annotations

from typing import Literal


def merge_command(
    models: list[str],
    output: str,
    weights: list[float] | None = None,
    block_weights: dict[str, list[float]] | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Merge an adapter into its base, or average several models, as a plain model that every tool loads.

    Args:
        models: folder or hub name of an adapter, as rpo train with lora writes it; or of two or more whole models.
        output: folder for the model (safetensors) and its tokenizer.
        weights: of the models averaged, of sum one; null for equal ones.
        block_weights: other weights where the name of a tensor begins so, such as {model.layers.0.: [0.3, 0.7]}.
        dtype: of the weights written; auto keeps those of the base model, or that all models have.
        overwrite: replace an earlier model in that folder.
    """
    from rpo.core.errors import InvalidArgument
    from rpo.llm.models import average_models, merge_adapter

    if len(models) > 1:
        difference = average_models(
            models, output, weights=weights, blocks=block_weights, dtype=dtype, overwrite=overwrite
        )
        print(f"Written to {output}; rounding moved log-probabilities by at most {difference:.1e} nats")
        return
    if weights is not None or block_weights is not None:
        raise InvalidArgument("weights", expected="null with one model", got=weights, remedy="Name the other models.")
    difference = merge_adapter(models[0], output, dtype=dtype, overwrite=overwrite)
    print(f"Written to {output}; merging moved log-probabilities by at most {difference:.1e} nats")
