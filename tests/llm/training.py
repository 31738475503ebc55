"""Pairs and trainers shared by the trainer tests; also run as a program, by tests that kill or distribute it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import models_for_tests
import numpy as np
import torch
from safetensors.torch import save_file

from rpo.core.objectives import RPO
from rpo.llm.data.pairs import PreparedPairs, TokenizedGroup, TokenizedPair
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.trainer import RPOTrainer
from rpo.methods.lists import PlackettLuceDPO

OBJECTIVE = RPO(beta=0.1, eta=0.05)
EOS = models_for_tests.EOS


def masked_pairs(n: int) -> PreparedPairs:
    """Return `tiny_pairs` of which the second token of every longer chosen response is not scored."""
    return PreparedPairs(
        replace(pair, scored=(bytes(k != 1 for k in range(len(pair.chosen_ids))), None)) for pair in tiny_pairs(n)
    )


def tiny_pairs(n: int, *, seed: int = 0, weights: bool = False, base: int = 0) -> PreparedPairs:
    """Return n pairs with prompts of 1-5 and responses of 1-9 tokens and an end of turn, and `base` more each."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> tuple[int, ...]:
        ids = rng.integers(models_for_tests.FIRST_WORD, models_for_tests.VOCABULARY, size=rng.integers(low, high + 1))
        return tuple(int(k) for k in ids)

    return PreparedPairs(
        TokenizedPair(
            prompt_ids=words(1, 5),
            chosen_ids=(*words(0, 8), EOS),
            rejected_ids=(*words(1, 8), EOS),
            row=row,
            base_ids=tuple((*words(0, 8), EOS) for _ in range(base)),
            weight=float(rng.uniform(0.2, 2.0)) if weights else 1.0,
        )
        for row in range(n)
    )


def tiny_lists(
    sizes: Sequence[int] = (3, 2, 5, 4, 2, 3, 8, 4), *, seed: int = 0, weights: bool = True, scores: bool = True
) -> PreparedPairs:
    """Return groups of the given sizes with prompts of 1-5 and responses of 1-9 tokens; scores fall or tie."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> tuple[int, ...]:
        ids = rng.integers(models_for_tests.FIRST_WORD, models_for_tests.VOCABULARY, size=rng.integers(low, high + 1))
        return tuple(int(k) for k in ids)

    return PreparedPairs(
        TokenizedGroup(
            words(1, 5),
            tuple((*words(k % 2, 8), EOS) for k in range(size)),
            row,
            weight=float(rng.uniform(0.2, 2.0)) if weights else 1.0,
            scores=tuple(max(0.1, 1.0 - 0.2 * k) for k in range(size)) if scores else (),
        )
        for row, size in enumerate(sizes)
    )


def config(folder: Any, **options: Any) -> RPOConfig:
    """Return the arguments of a short run on the CPU: plain SGD, so that updates are gradients."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 3,
        # transformers works in float32 inside float64 models here and there: only the same layout rounds alike.
        "path": "padded",
    }
    return RPOConfig(**(defaults | options))


def trainer(folder: Any, pairs: Any, *, model: Any = None, objective: Any = OBJECTIVE, **options: Any) -> RPOTrainer:
    """Return a trainer of a tiny float64 Llama on `pairs`; options of `RPOTrainer` or of `RPOConfig`."""
    mine = {
        name: options.pop(name)
        for name in ("eval_dataset", "ref_model", "peft_config", "ref_adapter_name", "callbacks", "processing_class")
        if name in options
    }
    model = models_for_tests.tiny_model("llama", dtype=torch.float64) if model is None else model
    return RPOTrainer(model, args=config(folder, **options), train_dataset=pairs, objective=objective, **mine)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the parameters by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def allow_fsdp_on_cpu() -> None:
    """Make accelerate shard models over gloo processes too; it offers FSDP on accelerators only."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    original = AcceleratorState.__init__

    def patched(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        if keywords.get("fsdp_plugin") is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, keywords["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched


FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "cpu_ram_efficient_loading": False,
    },
}


def main() -> None:
    """Train, saving every two updates unless sharded: FOLDER OPTION=VALUE ..., where resume=auto continues."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    options: dict[str, Any] = dict(part.split("=", 1) for part in sys.argv[2:])
    resume = options.pop("resume", None)
    number = int(options.pop("pairs", 24))
    dtype = getattr(torch, options.pop("dtype", "float32"))
    sharded = options.pop("sharded", "no")
    known = {"per_device_train_batch_size": int, "gradient_accumulation_steps": int, "max_steps": int}
    known |= {"max_tokens_per_batch": int}
    typed: dict[str, Any] = {name: known.get(name, str)(value) for name, value in options.items()}
    typed |= {"optim": "adamw_torch", "learning_rate": 1e-2}
    typed |= {"save_strategy": "steps", "save_steps": 2} if sharded == "no" else FSDP2
    if sharded == "cpu":
        allow_fsdp_on_cpu()
    elif sharded == "cuda":
        typed |= {"use_cpu": False}
    evaluated = int(options.pop("evaluated", 0))
    typed.pop("evaluated", None)
    typed |= {"eval_dataset": tiny_pairs(evaluated, seed=1, weights=True)} if evaluated else {}
    data = tiny_pairs(number)
    if options.pop("lists", None):
        data, typed["objective"] = tiny_lists([3, 2, 5, 4] * (number // 4)), PlackettLuceDPO(beta=0.5)
        typed.pop("lists")
    run = trainer(folder, data, model=models_for_tests.tiny_model("llama", dtype=dtype), **typed)
    run.train(resume_from_checkpoint=resume)
    metrics = run.evaluate() if evaluated else {}
    if run.is_world_process_zero():
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if sharded == "no":
        run.save_model(str(folder / "final"))
        return
    whole = {name: value.full_tensor().clone().cpu() for name, value in run.model.named_parameters()}
    if run.is_world_process_zero():
        (folder / "final").mkdir(parents=True)
        save_file(whole, folder / "final" / "model.safetensors")


if __name__ == "__main__":
    main()
