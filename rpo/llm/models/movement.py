"""Weights that can move: in 16 bits a small step is rounded away, so full training keeps float32 weights.

A bfloat16 weight moves only by steps above 1/512 of itself or so; AdamW's step is about the learning rate.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback

from rpo.llm.models.loading import is_adapter, load_model

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
SAMPLED = 4096  # elements a tensor, evenly spaced
LEAST_MOVED = 0.5
METRIC = "weights/moved"


def load_to_train(source: str | Path, options: Any, peft_config: Any, *, load: Any = load_model, **more: Any) -> Any:
    """Return what `load` makes of a name or folder, to be trained: an adapter there goes on training.

    options: of `load`, `model_init_kwargs`. Where every weight is to be trained and no dtype is among them, the
    weights are float32; under an adapter they stay as stored, and the adapter is float32. Raises as `load` does.
    """
    options = dict(options or {})
    if peft_config is None and not is_adapter(source, revision=options.get("revision")):
        options.setdefault("dtype", "float32")
    return load(source, is_trainable=True, **options, **more)


def warn_of_half_precision(model: torch.nn.Module) -> None:
    """Say once, before training, that weights to be trained are in 16 bits, and what to do."""
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad and p.dtype in HALF}
    if found:
        logger.warning(
            "The weights to be trained are %s: a step below about 1/500 of a weight is rounded away. Train float32 "
            'weights (dtype="float32", or model.float()); bf16=True still computes in bfloat16.',
            " and ".join(sorted(found)),
        )


class Measured(Protocol):
    """What `MovedShare` needs of a trainer."""

    accelerator: Any
    train_meter: Any
    self_check_results: dict[str, Any]


class MovedShare(TrainerCallback):
    """Measures, once, which share of the weights that have a gradient an update changes, and warns if it is small.

    At the first update at more than half of the full learning rate, on a sample of every tensor. Logged as
    weights/moved and kept among the results of the self-check.
    """

    def __init__(self, trainer: Measured) -> None:
        self.trainer = trainer
        self._done = False
        self._before: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep a sample of the weights, and where they have a gradient."""
        if self._done or not any(
            0 < 0.5 * group.get("initial_lr", group["lr"]) <= group["lr"] for group in given["optimizer"].param_groups
        ):
            return
        for parameter in given["model"].parameters():
            if parameter.requires_grad and parameter.grad is not None and parameter.numel():
                weights, gradient = _local(parameter), _local(parameter.grad)
                stride = max(1, weights.numel() // SAMPLED) | 1  # odd, or one column might be all of it
                sample = weights.flatten()[::stride].clone()
                self._before.append((weights, stride, sample, gradient.flatten()[::stride] != 0))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Compare with it."""
        before, self._before = self._before, []
        if self._done or not before or self.trainer.accelerator.optimizer_step_was_skipped:
            return
        self._done = True
        totals = torch.zeros(2, device=before[0][0].device)
        for weights, stride, sample, has_gradient in before:
            moved = (weights.flatten()[::stride] != sample) & has_gradient
            totals += stride * torch.stack([moved.sum(), has_gradient.sum()])  # each stands for so many
        totals = self.trainer.accelerator.reduce(totals, reduction="sum")
        if not totals[1] > 0:
            return
        share = totals[0] / totals[1]
        self.trainer.self_check_results["start_moved_share"] = share.item()
        self.trainer.train_meter.add({METRIC: share[None]}, torch.ones_like(share[None]))
        if share < LEAST_MOVED and state.is_world_process_zero:
            logger.warning(
                "Only %.1f %% of the weights with a gradient changed at update %d, at learning rate %.2g: the others "
                "are where they were. Train float32 weights, or raise learning_rate.",
                100 * share.item(),
                state.global_step + 1,
                max(group["lr"] for group in given["optimizer"].param_groups),
            )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of a tensor is on this process."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()
