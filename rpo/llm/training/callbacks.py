"""Callbacks of the trainer: the KL to the reference on a schedule, and stopping on displacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback
from transformers.utils import logging

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.diagnostics.gradients import is_sharded
from rpo.llm.diagnostics.kl import measure_kl
from rpo.llm.reference import AsGiven, Reference

logger = logging.get_logger(__name__)

DISPLACEMENT = "displacement/share"


class HasReference(Protocol):
    """What `SampledKLCallback` needs of a trainer: the policy, its reference, and where numbers go."""

    model: Any
    reference: Reference
    accelerator: Any  # for its autocast: policy and reference are scored as in training

    def log(self, logs: dict[str, float]) -> None: ...


class SampledKLCallback(TrainerCallback):
    """Logs kl/reference, its standard error kl/reference_se and kl/unfinished every so many updates.

    Also before the first update and after the last one planned. prompts: token ids. every: updates.
    eos_token_id: one or several. options: num_samples, max_new_tokens, estimator, batch_size of
    `rpo.llm.diagnostics.measure_kl`. seed: each measurement draws afresh from (seed, update), so a run
    that is resumed measures what it would have. Training's random states are untouched. With several
    processes each measures the same samples. Raises InvalidArgument; for sharded models as training begins.
    """

    def __init__(
        self,
        trainer: HasReference,
        prompts: Sequence[Sequence[int]],
        *,
        every: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InvalidArgument(
                "prompts",
                expected="at least one prompt, each of at least one token",
                got="none" if not prompts else "an empty prompt",
                remedy="Pass lists of token ids.",
            )
        if isinstance(trainer.reference, AsGiven):
            raise InvalidArgument(
                "reference",
                expected="a reference that stays as it is while the policy is trained",
                got="the policy itself (its values were computed beforehand)",
                remedy="Set kl_steps, or precompute_ref_log_probs=False: a reference model is then kept.",
            )
        self.trainer, self.prompts = trainer, prompts
        self.every = checks.integer("every", every, minimum=1)
        self.seed = checks.integer("seed", seed, minimum=0)
        self.options = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id, **options}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_sharded(self.trainer.model.parameters()):
            raise InvalidArgument(
                "kl_steps",
                expected="a model that is whole on each process",
                got="sharded parameters (FSDP or DeepSpeed ZeRO-3)",
                remedy="Set kl_steps=0 and measure the KL of the saved model afterwards.",
            )
        if state.global_step == 0:
            self._measure(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = control.should_training_stop or state.global_step >= state.max_steps
        if state.global_step % self.every == 0 or last:
            self._measure(state, control)

    def _measure(self, state: Any, control: Any) -> None:
        seed = int(np.random.SeedSequence([self.seed, state.global_step]).generate_state(1)[0])
        with self.trainer.accelerator.autocast():
            found = measure_kl(self.trainer.model, self.trainer.reference, self.prompts, seed=seed, **self.options)
        # Logging clears should_log, and with it the loss that is due at this step.
        due = control.should_log
        self.trainer.log(found.metrics())
        control.should_log = due


class DisplacementEarlyStopping(TrainerCallback):
    """Stops training when too many pairs' chosen log-probability fell, for `patience` logs in a row.

    threshold: in (0, 1); exceeded is above it. metric: "displacement/share" of the training pairs, or
    "eval_displacement/share" (eval_<name>_... with several evaluation sets). The count is taken from the
    logged history, so it survives a resume. The reason is a warning and the history's last row
    ("stopped"). Raises InvalidArgument.
    """

    def __init__(self, threshold: float, patience: int = 3, metric: str = DISPLACEMENT) -> None:
        self.threshold = checks.fraction("threshold", threshold)
        self.patience = checks.integer("patience", patience, minimum=1)
        if not isinstance(metric, str) or not (metric == DISPLACEMENT or _is_evaluated(metric)):
            raise InvalidArgument(
                "metric",
                expected=f"{DISPLACEMENT!r} or 'eval_{DISPLACEMENT}'",
                got=repr(metric),
                remedy="Choose the training pairs or an evaluation set.",
            )
        self.metric = metric

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.metric not in (logs or {}) or control.should_training_stop:
            return
        shares = [row[self.metric] for row in state.log_history if self.metric in row][-self.patience :]
        if len(shares) < self.patience or not all(share > self.threshold for share in shares):
            return
        control.should_training_stop = True
        reason = (
            f"{self.metric} was {', '.join(f'{share:.3g}' for share in shares)} in the last {self.patience} log(s), "
            f"above {self.threshold:g}: chosen responses are losing probability. Raise eta, or lower the learning rate."
        )
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, "stopped": reason})
        logger.warning(f"Training stops at step {state.global_step}. {reason}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not any(self.metric in row for row in state.log_history):
            logger.warning(f"{self.metric} was never logged, so early stopping on it could not act.")


def _is_evaluated(metric: str) -> bool:
    return metric.startswith("eval_") and metric.endswith(DISPLACEMENT)
