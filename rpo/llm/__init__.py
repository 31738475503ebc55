"""The practice: the same objective on language models (torch and transformers; never cvxpy)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpo.llm.data import check_pairs, load_preferences, mix, prepare_pairs
    from rpo.llm.diagnostics.diagnosis import diagnose
    from rpo.llm.diagnostics.plots import plot_runs
    from rpo.llm.logps.logprobs import response_logps, token_logps
    from rpo.llm.models import convert_gguf, from_gguf, load_model, load_tokenizer
    from rpo.llm.sampling import generate
    from rpo.llm.training.config import RPOConfig
    from rpo.llm.training.fitting import fit
    from rpo.llm.training.reward_model import RewardConfig, RewardTrainer
    from rpo.llm.training.sft import SFTConfig, SFTTrainer
    from rpo.llm.training.trainer import PreferenceTrainer, RPOTrainer

# Loaded on first use: the comparison needs log-probabilities, not the trainer and all it imports.
_HOME = {
    "PreferenceTrainer": "training.trainer",
    "RPOConfig": "training.config",
    "RPOTrainer": "training.trainer",
    "RewardConfig": "training.reward_model",
    "RewardTrainer": "training.reward_model",
    "SFTConfig": "training.sft",
    "SFTTrainer": "training.sft",
    "check_pairs": "data",
    "convert_gguf": "models",
    "diagnose": "diagnostics.diagnosis",
    "fit": "training.fitting",
    "from_gguf": "models",
    "generate": "sampling",
    "load_model": "models",
    "load_preferences": "data",
    "load_tokenizer": "models",
    "mix": "data",
    "plot_runs": "diagnostics.plots",
    "prepare_pairs": "data",
    "response_logps": "logps.logprobs",
    "token_logps": "logps.logprobs",
}

__all__ = [
    "PreferenceTrainer",
    "RPOConfig",
    "RPOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "check_pairs",
    "convert_gguf",
    "diagnose",
    "fit",
    "from_gguf",
    "generate",
    "load_model",
    "load_preferences",
    "load_tokenizer",
    "mix",
    "plot_runs",
    "prepare_pairs",
    "response_logps",
    "token_logps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        # Submodules come by their own names: rpo.llm.models, rpo.llm.data ...
        try:
            return importlib.import_module(f"rpo.llm.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"rpo.llm.{name}":
                raise
            raise AttributeError(f"module 'rpo.llm' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"rpo.llm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
