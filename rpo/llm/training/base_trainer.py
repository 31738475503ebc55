"""`SafeTrainer`: transformers' Trainer with whole checkpoints, exact means and a stop at non-finite numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import TrainOutput

from rpo.core.errors import InvalidArgument, NonFiniteLoss
from rpo.core.locks import alone
from rpo.core.records import jsonable
from rpo.llm.training.alerts import Alerts
from rpo.llm.training.arguments import taken_by_transformers
from rpo.llm.training.checkpoints import (
    CheckpointError,
    complete_checkpoints,
    discard,
    read_manifest,
    rotate,
    save_failed,
    write_manifest,
)
from rpo.llm.training.process_means import Meter
from rpo.llm.training.recompute import Selective, is_selective

# A scaler halves its factor at every overflow: after so many in a row it is not looking for one any more.
MOST_SKIPPED_UPDATES = 20
MOST_ROWS_NAMED = 16


class SafeTrainer(Trainer):
    """What every trainer here shares; a subclass gives `batch_totals`, `compute_loss` and `run_identity`.

    The loss of an update is one mean over its global batch: micro-batches are weighted by what they
    hold, whatever gradient accumulation and the number of processes.
    """

    self_check_results: dict[str, Any]
    carried: dict[str, float]  # numbers that an update hands to the next, in checkpoints too

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with taken_by_transformers():
            super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise InvalidArgument(
                "args",
                expected="one GPU a process",
                got=f"{self.args.n_gpu} GPUs in one process (DataParallel)",
                remedy="Start with `accelerate launch` or torchrun, or set CUDA_VISIBLE_DEVICES.",
            )
        # compute_loss normalises over the whole accumulated batch (said twice, for transformers before 5.18 and since).
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        if is_selective(self.args):
            self.add_callback(Selective())
        self.train_meter, self.eval_meter = Meter(), Meter()
        self._rows: list[torch.Tensor] = []
        self._skipped = 0

    # --- what a subclass gives -----------------------------------------------------------------

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the loss of an update is divided by, as additive totals of one micro-batch, (k,)."""
        raise NotImplementedError

    def run_identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be continued."""
        raise NotImplementedError

    # --- exact means over the global batch -----------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of one update, and the totals over them and over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        totals = torch.stack([self.batch_totals(batch) for batch in batches]).sum(0).to(device)
        return batches, self.accelerator.reduce(totals, reduction="sum")

    # --- logging: means of what was seen since the last log --------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the metrics gathered since the last training log."""
        if "loss" in logs:
            logs |= self.summary(self.train_meter.drain(self.accelerator))
        super().log(logs, start_time)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Return what is logged of the means over a logging interval or an evaluation."""
        return means

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate; every metric gathered on the way is in the result, under the prefix."""
        self.eval_meter = Meter()
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        gathered = self.summary(self.eval_meter.drain(self.accelerator))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in gathered.items()})
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of one evaluation batch."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    # --- non-finite numbers stop the run -----------------------------------------------------------

    def require_finite(self, values: torch.Tensor, rows: torch.Tensor) -> None:
        """Stop before the update if values, one or more a row, are not finite. Raises NonFiniteLoss."""
        if self.model.training:
            self._rows.append(rows)
        finite = torch.isfinite(values).flatten(1).all(1) if values.ndim else torch.isfinite(values)
        if not bool(finite.all()):
            named = rows[~finite].tolist() if values.ndim else rows.tolist()
            raise NonFiniteLoss(self._non_finite("log-probabilities", named))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With a scaler an infinite gradient is part of the search for the factor, and the update is skipped.
        if norm is not None and getattr(self.accelerator, "scaler", None) is None:
            self.on_gradient_norm(float(norm))
        return norm

    def on_gradient_norm(self, norm: float) -> None:
        """Stop before the update if the gradient is not finite. Raises NonFiniteLoss."""
        if not math.isfinite(norm):
            rows = torch.cat(self._rows).tolist() if self._rows else []
            raise NonFiniteLoss(self._non_finite("a gradient", rows))

    def _non_finite(self, what: str, rows: list[int]) -> str:
        shown = ", ".join(map(str, rows[:MOST_ROWS_NAMED])) + (", ..." if len(rows) > MOST_ROWS_NAMED else "")
        kept = complete_checkpoints(self.args.output_dir)
        return (
            f"loss: expected finite {what}, got NaN or infinity at step {self.state.global_step} in row(s) {shown} "
            f"of the data. Lower learning_rate, train in bf16 or fp32, or look at these rows. "
            + (f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint had been saved yet.")
        )

    def _prepare_input(self, data: Any) -> Any:
        # Trainer casts floats to DeepSpeed's type; no float here is an input of the model.
        if not isinstance(data, torch.Tensor):
            return super()._prepare_input(data)
        wide = data.is_floating_point() and self.args.device.type == "mps"  # Apple's GPUs have no float64
        return data.to(self.args.device, torch.float32) if wide else data.to(self.args.device)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keep the card there is: `fit` writes one that holds the objective."""

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._rows.clear()
        if self.state.global_step >= self.state.max_steps:
            self.control.should_log = True  # the last update, whatever logging_steps
        self._skipped = self._skipped + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self._skipped >= MOST_SKIPPED_UPDATES:
            raise NonFiniteLoss(
                f"fp16: {self._skipped} updates in a row overflowed up to step {self.state.global_step}, so nothing is "
                "being learned. Use bf16=True, or load the model in float32."
            )
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # --- checkpoints -------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # Trainer pickles its arguments beside the weights; nothing reads them, and run.json has them in plain text.
        (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        keep = self.args.save_total_limit
        if self.args.should_save:
            discard(folder)  # half-written by a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            # Older checkpoints go only once this one is known to be whole.
            self.args.save_total_limit = None
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                run = self.run_identity() | {
                    "resumable": not self.args.save_only_model,
                    "self_check": self.self_check_results,  # made once, at step 0: later records show it too
                    "carried": self.carried,
                }
                write_manifest(folder, jsonable(run), checksums=self.checksums)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:
            # torch and safetensors have exceptions of their own for a full disk.
            if self.args.should_save:
                discard(folder)
            raise save_failed(folder, error) from error
        finally:
            self.args.save_total_limit = keep
        if self.args.should_save:
            rotate(folder, keep, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    @property
    def checksums(self) -> bool:
        """Whether checkpoint files get a checksum."""
        return bool(getattr(self.args, "checkpoint_checksums", True))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimiser that the arguments name. Raises InvalidArgument for what transformers refuses."""
        with taken_by_transformers():
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the learning rate's schedule. Raises InvalidArgument for what transformers refuses."""
        with taken_by_transformers():
            return super().create_scheduler(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; resume_from_checkpoint: a folder, True for the newest whole one, "auto" for it if there is one.

        Raises CheckpointError for a checkpoint that is incomplete, damaged or another run's; NonFiniteLoss, InUse.
        """
        if self.train_dataset is None:
            raise InvalidArgument("train_dataset", expected="data to train on", got=None, remedy="Pass it at first.")
        # Two runs would write the same checkpoints, and the last one would be a mixture.
        writes = self.args.should_save and self.args.save_strategy != "no"
        with alone(self.args.output_dir) if writes else contextlib.nullcontext():
            try:
                return self._train(self._checkpoint_to_resume(resume_from_checkpoint), **kwargs)
            except NonFiniteLoss as error:
                for one in self.callback_handler.callbacks if self.is_world_process_zero() else ():
                    if isinstance(one, Alerts):
                        one.broken_off(error)
                raise

    def _train(self, checkpoint: Path | None, **kwargs: Any) -> Any:
        if checkpoint is None:
            self._require_fresh_folder()
        stored = None if checkpoint is None else read_manifest(checkpoint)
        self.train_meter, self._skipped = Meter(), 0
        self._rows.clear()
        if checkpoint is None or stored is None:
            self.before_training(resuming=False)
            return super().train(**kwargs)
        # The data may still get samples of pi_base; all else is held against the checkpoint before hours of scoring.
        self._require_same_run(checkpoint, stored, but=("data",))
        self.before_training(resuming=True)
        self._require_same_run(checkpoint, stored)
        self.self_check_results = dict(stored.get("self_check", {}))
        self.carried = dict(stored.get("carried", {}))
        finished = self._finished(checkpoint)
        if finished is not None:
            return finished
        best = _BestAtHome(best_at_home(checkpoint, self.args.output_dir))
        self.add_callback(best)
        try:
            return super().train(resume_from_checkpoint=str(checkpoint), **kwargs)
        finally:
            self.remove_callback(best)

    def before_training(self, *, resuming: bool) -> None:
        """Do what needs the policy as it was given: score the reference, check the data."""

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> Path | None:
        wanted = self.args.resume_from_checkpoint if wanted is None else wanted
        if not wanted:
            return None
        if wanted is not True and wanted != "auto":
            return Path(str(wanted))
        found = complete_checkpoints(self.args.output_dir)
        if not found and wanted is True:
            raise CheckpointError(
                f"resume_from_checkpoint: expected a complete checkpoint in {self.args.output_dir}, got none. "
                'Start without it, or pass "auto" to start afresh where there is none.'
            )
        return found[-1] if found else None

    def _require_fresh_folder(self) -> None:
        found = complete_checkpoints(self.args.output_dir)
        if found and self.args.save_strategy != "no" and self.state.global_step == 0:
            raise CheckpointError(
                f"output_dir: expected a folder without checkpoints of an earlier run, got {found[-1]}. "
                'Continue that run with resume_from_checkpoint=True, or "auto", or choose another folder.'
            )

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        """Load a checkpoint made at the last planned update, and return its result: nothing is left to train."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if not 0 < self.args.max_steps <= state.global_step:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise CheckpointError(f"resume_from_checkpoint: {checkpoint} is the end of its run. Raise max_steps.")
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        state.best_model_checkpoint = best_at_home(checkpoint, self.args.output_dir)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        if self.args.should_save and checkpoint.resolve().parent == Path(self.args.output_dir).resolve():
            # The run may have been killed between its last checkpoint and the removal of the oldest.
            rotate(checkpoint, self.args.save_total_limit, state.best_model_checkpoint)
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        return TrainOutput(state.global_step, losses[-1] if losses else math.nan, {})

    def _require_same_run(self, checkpoint: Path, stored: dict[str, Any], but: Sequence[str] = ()) -> None:
        now = {name: value for name, value in jsonable(self.run_identity()).items() if name not in but}
        if not stored.get("resumable", True):
            raise CheckpointError(
                f"resume_from_checkpoint: expected optimizer and scheduler states, but {checkpoint} was saved with "
                "save_only_model=True. Start a new run from its weights."
            )
        changed = [name for name in now if stored.get(name) != now[name]]
        if changed:
            name, there, here = changed[0], stored.get(changed[0]), now[changed[0]]
            if isinstance(there, dict) and isinstance(here, dict):  # name what differs, not all of it
                there, here = (
                    {key: one.get(key) for key in here if there.get(key) != here[key]} for one in (there, here)
                )
            raise CheckpointError(
                f"resume_from_checkpoint: expected {name} {there}, as in {checkpoint}, got {here}. "
                "Pass what the run began with, or start a new run in another folder."
            )


class _BestAtHome(TrainerCallback):
    """Tells a run that goes on in a folder that was moved where its best checkpoint lies now."""

    def __init__(self, best: str | None) -> None:
        self.best = best

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.best_model_checkpoint = self.best


def best_at_home(checkpoint: Path, output_dir: str) -> str | None:
    """Return the best checkpoint that `checkpoint` names, in `output_dir` if it is there, None if it is nowhere."""
    recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
    places = () if recorded is None else (Path(output_dir) / Path(recorded).name, Path(recorded))
    return next((str(place) for place in places if place.is_dir()), None)
