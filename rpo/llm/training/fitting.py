"""`fit` for language models: load, train, save, and return the `Run`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from transformers import TrainingArguments

from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.locks import STAGE, alone
from rpo.core.objectives import Objective, require_objective
from rpo.core.records import Run, check_output, jsonable, move_in
from rpo.core.synonyms import own_names
from rpo.llm.training.arguments import own_config
from rpo.llm.training.base_trainer import SafeTrainer
from rpo.llm.training.checkpoints import complete_checkpoints
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.model_card import write_model_card
from rpo.llm.training.reward_model import RewardConfig, RewardTrainer
from rpo.llm.training.sft import SFTConfig, SFTTrainer
from rpo.llm.training.trainer import PreferenceTrainer

DEFAULT_FOLDER = "rpo-output"
MARKER = "run.json"
WEIGHTS = ("adapter_*", "model*.safetensors", "*.index.json")  # else the old would be loaded beside the new


def fit(
    model: Any,
    dataset: Any,
    objective: Objective | None = None,
    *,
    output_dir: str | Path | None = None,
    eval_dataset: Any = None,
    tokenizer: Any = None,
    peft_config: Any = None,
    ref_model: Any = None,
    ref_adapter_name: str | None = None,
    args: TrainingArguments | None = None,
    resume_from_checkpoint: str | bool | None = None,
    callbacks: list[Any] | None = None,
    label: str | None = None,
    dataset_name: str | None = None,
    overwrite: bool = False,
    **training: Any,
) -> Run:
    """Train `model` (a name, a folder or a transformers model, which is changed) and return its `Run`.

    dataset, eval_dataset: whatever `rpo.llm.data.load_preferences` takes. objective: of `rpo.methods`, or your own;
    SFT() for the stage before (pi_ref); BradleyTerry() for a reward model. The trained model, its
    tokenizer, a model card and run.json are written to `output_dir`; run.artifact is the model. args:
    the trainer's arguments, or their fields as further keywords. peft_config: a peft.LoraConfig or its
    keywords. ref_model, ref_adapter_name: as of `PreferenceTrainer`. dataset_name: for the model card. overwrite:
    replace an earlier result in output_dir.
    Raises InvalidArgument, SelfCheckFailed, NonFiniteLoss, CheckpointError, OutputError and the errors of the data.
    """
    if args is not None and (training or output_dir is not None):
        raise InvalidArgument(
            "args",
            expected="either the trainer's arguments or their fields as keywords",
            got="both (" + ", ".join([*training, *(["output_dir"] if output_dir else [])]) + ")",
            remedy="Put them all in args.",
        )
    trainer_class, config_class = trainer_of(objective)
    training = own_names(training, config_class.__dataclass_fields__)
    if args is None:
        folder = str(DEFAULT_FOLDER if output_dir is None else output_dir)
        args = config_class(output_dir=folder, **training)
    options: dict[str, Any] = {}
    if trainer_class is PreferenceTrainer:
        options = {"ref_model": ref_model, "ref_adapter_name": ref_adapter_name}
    elif ref_model is not None or ref_adapter_name is not None:
        raise InvalidArgument(
            "ref_model",
            expected=f"None with {type(objective).__name__}, which has no reference",
            got=type(ref_model).__name__ if ref_model is not None else ref_adapter_name,
            remedy="Leave it out.",
        )
    args = own_config(args, config_class, DEFAULT_FOLDER)
    for name, value in (("label", label), ("dataset_name", dataset_name)):
        if value is not None:
            checks.instance(name, value, str)
    if dataset is None:
        raise InvalidArgument("dataset", expected="preference data", got=None, remedy="Pass rows, a file or a name.")
    if resume_from_checkpoint is None:
        resume_from_checkpoint = args.resume_from_checkpoint
    with alone(args.output_dir) if args.process_index == 0 else contextlib.nullcontext():
        # A resumed run may find its own earlier result, which it replaces.
        check_output(args.output_dir, overwrite=overwrite or bool(resume_from_checkpoint), marker=MARKER)
        trainer = trainer_class(
            os.fspath(model) if isinstance(model, os.PathLike) else model,
            args=args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            objective=objective,
            peft_config=peft_config,
            callbacks=callbacks,
            **options,
        )
        try:
            output = trainer.train(resume_from_checkpoint=resume_from_checkpoint)
            if eval_dataset is not None:
                trainer.evaluate()
            run = record(trainer, output, label=label)
            name = dataset_name or (
                os.fspath(dataset) if isinstance(dataset, (str, os.PathLike)) else type(dataset).__name__
            )
            save(trainer, run, name)
        finally:
            if isinstance(trainer, PreferenceTrainer):
                trainer.reference.release()  # the adapter that was copied as reference is not part of the result
    return run


def trainer_of(objective: Objective | None) -> tuple[type[Any], type[Any]]:
    """Return the trainer of an objective and its arguments' class, by what it reads; None is the RPO of its arguments.

    A loss of a head's scores trains a reward model, one that compares nothing learns responses. Raises InvalidArgument.
    """
    if objective is None:
        return PreferenceTrainer, RPOConfig
    if "head" in require_objective(objective).needs:
        return RewardTrainer, RewardConfig
    return (PreferenceTrainer, RPOConfig) if objective.shape.compares else (SFTTrainer, SFTConfig)


def record(trainer: Any, output: Any, *, label: str | None = None) -> Run:
    """Return the `Run` of a trained trainer: every log, and everything that was resolved."""
    state, objective, model = trainer.state, trainer.objective, trainer.model
    stopped = state.global_step < state.max_steps
    history = [row for row in state.log_history if "train_runtime" not in row]
    training = trainer.args.to_dict()
    # transformers writes <HUB_TOKEN> whether there was one or not.
    training |= {name: None for name, value in training.items() if value == f"<{name.upper()}>"}
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    resolved: dict[str, Any] = {
        "model": getattr(model.config, "name_or_path", "") or type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "training": jsonable(training),
        "trainable_dtypes": sorted({str(p.dtype) for p in model.parameters() if p.requires_grad}),
        "adapter": trainer.adapter,
        "router_weight": trainer.router_weight,
        "path": trainer.path.name,
        "data": trainer.data_reports,
        "self_check": trainer.self_check_results,
        "metrics": output.metrics,
        "weights_of": None if best is None else Path(best).name,
    }
    if isinstance(trainer, PreferenceTrainer):
        resolved |= {"base": trainer.base.sources, "reference": trainer.reference.describe()}
    return Run(
        label=label or _label(objective),
        objective=objective.to_dict(),
        config=resolved,
        status="stopped_early" if stopped else "completed",
        message=f"Trained {state.global_step} of {state.max_steps} updates"
        + (", stopped by a callback." if stopped else "; completed says nothing about convergence.")
        + ("" if best is None else f" The weights are those of {Path(best).name}, the best of them."),
        history=history,
        arrays={"step": np.asarray([row["step"] for row in history])},
        artifact=model,
    )


def _label(objective: Any) -> str:
    return "DPO" if getattr(objective, "eta", None) == 0 else type(objective).__name__


def save(trainer: SafeTrainer, run: Run, dataset_name: str) -> None:
    """Write model, tokenizer, model card and run.json to the output folder, staged in it and then moved as a whole.

    Weights of an earlier result go. Raises OutputError, which says where the model is if only moving it failed.
    """
    target = Path(trainer.args.output_dir)
    main = trainer.is_world_process_zero()
    try:
        stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=target)) if main else target / STAGE
    except OSError as error:
        raise OutputError(f"output_dir: expected a writable folder, got {target} ({error}).") from error
    try:
        trainer.save_model(str(stage), _internal_call=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        if main:
            shutil.rmtree(stage, ignore_errors=True)
        kept = complete_checkpoints(target)
        where = f"The last checkpoint is {kept[-1]}." if kept else "No checkpoint was saved."
        raise OutputError(f"output_dir: writing the model to {target} failed ({error}). {where}") from error
    if not main:
        return
    try:
        write_model_card(
            stage,
            base_model=run.config["model"],
            dataset=dataset_name,
            objective=run.objective,
            config=run.config["training"],
            data_report=run.config["data"].get("train", {}),
            metrics=run.last_metrics(),
            environment=run.environment,
        )
        run.write(stage)
        move_in(stage, target, marker=MARKER, stale=WEIGHTS)
        stage.rmdir()
    except OSError as error:
        # Under another name, for the next run here clears what it takes for unfinished.
        kept_in = stage.rename(target / f"unmoved-{stage.name.removeprefix(STAGE)}")
        raise OutputError(
            f"output_dir: moving the model into {target} failed ({error}). It is in {kept_in}."
        ) from error
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
