"""The enumerable language model trained by `RPOTrainer` itself, so that its policy can be held against the table."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rpo.bandit.data import PreferenceCounts
from rpo.compare.enumerable import EnumerableLM
from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective, require_objective
from rpo.core.records import Run
from rpo.core.synonyms import with_synonyms
from rpo.llm.data.collate import group_of
from rpo.llm.data.pairs import PreparedPairs, TokenizedPair
from rpo.llm.logps.scoring import PaddedPath
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.fitting import record
from rpo.llm.training.trainer import PreferenceTrainer


def as_pairs(lm: EnumerableLM, data: PreferenceCounts) -> PreparedPairs:
    """Return the distinct comparisons as tokens, each weighted by how often it occurred."""
    prompts, responses = lm.prompts.tolist(), lm.responses.tolist()
    return PreparedPairs(
        TokenizedPair(tuple(prompts[x]), tuple(responses[w]), tuple(responses[y]), row, weight=float(weight))
        for row, (x, w, y, weight) in enumerate(zip(data.prompt, data.chosen, data.rejected, data.weights, strict=True))
    )


@with_synonyms
def fit_with_trainer(
    lm: EnumerableLM,
    data: PreferenceCounts,
    objective: Objective,
    *,
    steps: int = 1500,
    learning_rate: float = 3e-3,
    label: str | None = None,
    **training: Any,
) -> Run:
    """Train a copy of `lm` by `PreferenceTrainer`: full batch, its own precision, AdamW along a cosine to zero.

    training: further fields of `RPOConfig`, which override. The run has the policy (X, A) as
    `fit_language_model`'s has, and is held against `solve` in the same way. objective.base: "chosen",
    "rejected" or "responses". Raises InvalidArgument and what `PreferenceTrainer` raises.
    """
    checks.instance("lm", lm, EnumerableLM, remedy="Pass rpo.compare.tiny_gpt2(rng=0), for example.")
    checks.instance("data", data, PreferenceCounts)
    require_objective(objective)
    if objective.anchor.role not in ("chosen", "rejected", "responses"):
        raise InvalidArgument(
            "objective.base",
            expected="'chosen', 'rejected' or 'responses'",
            got=repr(objective.anchor.role),
            remedy="Use fit_language_model, which takes expectations under any base exactly.",
        )
    total = checks.integer("steps", steps, minimum=1)
    policy = replace(lm, model=copy.deepcopy(lm.model))
    pairs = as_pairs(lm, data)
    with tempfile.TemporaryDirectory(prefix="rpo-") as folder:
        fields: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": total,
            "learning_rate": checks.positive("learning_rate", learning_rate),
            "lr_scheduler_type": "cosine",
            "adam_beta2": 0.99,
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": len(pairs),
            "logging_steps": max(1, total // 60),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "log": "none",
            "max_length": None,
            "use_cpu": True,
            "path": "padded",  # nothing is padded: all responses have one length
        }
        trainer = PreferenceTrainer(
            policy.model, args=RPOConfig(**(fields | training)), train_dataset=pairs, objective=objective
        )
        run = record(trainer, trainer.train(), label=label or "transformer, RPOTrainer")
    table = policy.policy()
    run.arrays["policy"] = table / table.sum(axis=1, keepdims=True)
    run.history.append({"step": steps, "loss": _loss(policy, lm, data, objective, trainer.carried.get("shift"))})
    run.artifact = policy
    return run


def _loss(
    policy: EnumerableLM, reference: EnumerableLM, data: PreferenceCounts, objective: Objective, shift: float | None
) -> float:
    """Return the objective of the trained policy, in its own precision: Trainer's last log is of the step before."""
    logps, anchors = policy.logps().detach(), reference.logps().detach()
    x, w, y = data.prompt, data.chosen, data.rejected
    base = {"chosen": logps[x, w], "rejected": logps[x, y], "responses": (logps[x, w] + logps[x, y]) / 2}
    length = np.full(len(x), float(policy.responses.shape[1]))
    likeness: dict[str, Any] = {}
    if "likeness" in objective.needs:
        path, collisions = PaddedPath(0), list[torch.Tensor]()
        with torch.no_grad():
            batch = path.collate([group_of(pair) for pair in as_pairs(reference, data)])
            summed = path.logps(policy.model, batch, collisions)
        both = ((summed - collisions[0]) / length[0]).numpy()
        likeness = {"chosen_likeness": both[:, 0], "rejected_likeness": both[:, 1]}
    loss, _ = objective(
        logps[x, w],
        logps[x, y],
        anchors[x, w],
        anchors[x, y],
        chosen_lengths=length,
        rejected_lengths=length,
        base_lengths=length,
        base_logps=base[objective.anchor.role],
        shift=shift,
        weights=np.asarray(data.weights),
        **likeness,
    )
    return float(loss)
