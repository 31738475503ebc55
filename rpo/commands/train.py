"""`rpo train`: the command, and what it can refuse before anything is loaded."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from rpo.commands.data_source import DataSource, load
from rpo.commands.foreign_config import hint
from rpo.commands.parsing import YAML_ERRORS, config_paths, read_config
from rpo.core.errors import InvalidArgument, OutputError, RPOError
from rpo.core.objectives import DPO, RPO, Objective

if TYPE_CHECKING:
    from rpo.core.records import Run
    from rpo.llm.training.config import TrainerConfig

# Training arguments that have an option of their own here.
OWN_OPTIONS = {
    "beta": "objective.beta",
    "eta": "objective.eta",
    "sft_reduction": "objective.sft_reduction",
    "base": "objective.base",
    "center_rewards_coefficient": "objective.center_rewards_coefficient",
    "model_init_kwargs": "dtype, quantization, attn_implementation or revision",
    "resume_from_checkpoint": "resume",
    "log": "log",
}
CONFIG = "config.yaml"
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: of the adapter's input; training.disable_dropout sets it to 0 unless false.
        target_modules: module names, or all-linear.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


def train_command(
    model: str,
    dataset: str | DataSource | list[DataSource],
    training: TrainerConfig,
    objective: Objective = RPO(beta=0.1, eta=0.005),  # noqa: B008 (frozen)
    eval_dataset: str | DataSource | list[DataSource] | None = None,
    ref_model: str | None = None,
    lora: Lora | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    quantization: Literal["4bit", "8bit"] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    resume: bool | str = False,
    log: Literal["short", "full", "none"] = "short",
    label: str | None = None,
    resolved: str = "",
) -> None:
    """Train a language model on preference pairs by any method, RPO by default; SFT and reward models too.

    Args:
        model: name or folder of a causal language model.
        dataset: file or hub name; or source, split and weight; or a list of these, mixed.
        training: arguments of the trainer; training.output_dir is required.
        objective: name of a method, of your own (package.module:Name), SFT or BradleyTerry, and its fields; without a
            name RPO's: beta (KL temperature), eta (weight of the reward penalty), sft_reduction, base.
        eval_dataset: as dataset; evaluated at the end, and during training as training.eval_strategy says.
        ref_model: name or folder of another model as reference; null for the model as it is before training.
        lora: r, alpha, dropout, target_modules of an adapter; null to train every weight.
        dtype: of the weights; null for float32 where all are trained and the one stored under lora; auto keeps the one
            stored. training.bf16 computes in bfloat16 whatever they are.
        quantization: of the frozen weights under an adapter (needs CUDA and bitsandbytes); null for none.
        attn_implementation: sdpa, eager, flash_attention_2 ...; null for transformers' choice.
        revision: branch, tag or commit of a model on the hub.
        resume: true for the newest checkpoint in the output folder, auto for it if there is one, or a checkpoint.
        log: what is printed of each log: short for five numbers, full for all, none. run.json has all of them.
        label: name of the run in legends and records.
    """
    from rpo.llm.training.fitting import fit

    keywords = {
        "dtype": dtype,
        "quantization": quantization,
        "attn_implementation": attn_implementation,
        "revision": revision,
    }
    training.log = log
    training.model_init_kwargs = {key: value for key, value in keywords.items() if value is not None}
    run = fit(
        model,
        load(dataset, training.seed, on_refused=training.on_refused),
        objective,
        eval_dataset=None
        if eval_dataset is None
        else load(eval_dataset, training.seed, on_refused=training.on_refused),
        ref_model=ref_model,
        peft_config=None if lora is None else _lora_keywords(lora),
        args=training,
        resume_from_checkpoint=resume,
        callbacks=[_config_saver(resolved)],
        label=label,
        dataset_name=", ".join(
            one if isinstance(one, str) else one.source for one in (dataset if isinstance(dataset, list) else [dataset])
        ),
    )
    if training.process_index == 0:
        _print_run(run, Path(training.output_dir), short=log == "short")


def depends(objective: type) -> dict[str, type]:
    """Return the class of `training`, which the objective's trainer decides."""
    from rpo.llm.training.config import RPOConfig

    if objective.__module__.startswith("rpo.methods") or objective in (RPO, DPO):
        return {"training": RPOConfig}
    from rpo.llm.training.fitting import trainer_of

    with contextlib.suppress(RPOError, TypeError):  # a class of one's own may refuse what it is tried with
        bare = [item.name for item in fields(objective) if item.default is item.default_factory]
        return {"training": trainer_of(objective(**dict.fromkeys(bare, 0.1)))[1]}
    return {"training": RPOConfig}


def preflight(options: Namespace) -> list[RPOError]:
    """Return what can be known to be wrong before anything is loaded: files, folders, options that exclude others."""
    errors: list[RPOError] = [
        InvalidArgument(
            f"training.{name}", expected="null", got=options["training"][name], remedy=f"Set {own} instead."
        )
        for name, own in OWN_OPTIONS.items()
        if options["training"].get(name) is not None
    ]
    for name in ("model", "ref_model"):
        if options[name] is not None and _looks_local(options[name]) and not Path(options[name]).exists():
            errors.append(_not_there(name, options[name], "a model's folder or a hub name"))
    for name in ("dataset", "eval_dataset"):
        given = options[name]
        for source in given if isinstance(given, list) else [given]:
            path = source if isinstance(source, str) or source is None else source["source"]
            if path is not None and (_looks_local(path) or path.endswith(DATA_SUFFIXES)) and not Path(path).exists():
                errors.append(_not_there(name, path, "a file or a hub name"))
    if options["quantization"] is not None and options["lora"] is None:
        remedy = "Set lora.r, for example, or leave quantization out."
        errors.append(InvalidArgument("lora", expected="an adapter over quantised weights", got=None, remedy=remedy))
    return errors + _output_errors(options)


def hints(arguments: Sequence[str]) -> list[str]:
    """Return what to do about config files that are another trainer's recipes."""
    found = []
    for path in config_paths(arguments):
        with contextlib.suppress(*YAML_ERRORS):
            read = read_config(path)
            if isinstance(read, dict) and (why := hint(read)):
                found.append(
                    f"config: {why}: rpo convert-config {shlex.quote(path)} > train.yaml writes it as a recipe of rpo "
                    "train, with a comment on each key that has no counterpart"
                )
    return found


def kept(options: Namespace) -> str:
    """Return what an interrupted run left, and the command that goes on from there."""
    output = options["training"]["output_dir"] if "training" in options else None
    if output is None or not (Path(output) / CONFIG).is_file():
        return "Training had not begun; the same command starts again."
    from rpo.llm.training.checkpoints import complete_checkpoints

    found = complete_checkpoints(output)
    again = f"rpo train --config {shlex.quote(str(Path(output) / CONFIG))}"
    if not found:
        return f"No checkpoint was saved yet (training.save_steps); start again with: {again}"
    return f"The last checkpoint is {found[-1]}; continue with: {again} --resume true"


def _output_errors(options: Namespace) -> list[RPOError]:
    from rpo.core.records import RESULTS, check_output

    output, resume = options["training"]["output_dir"], options["resume"]
    if not output:
        remedy = "Pass --training.output_dir DIR."
        return [InvalidArgument("training.output_dir", expected="a folder", got=repr(output), remedy=remedy)]
    try:
        check_output(output, overwrite=True, marker="run.json")
    except OutputError as error:
        return [error]
    errors: list[RPOError] = []
    earlier = [path for name in RESULTS for path in Path(output).glob(name)]
    if earlier and not resume:
        expected = "a folder without an earlier run"
        remedy = "Choose another folder, or continue that run (--resume true)."
        errors.append(InvalidArgument("training.output_dir", expected=expected, got=earlier[0], remedy=remedy))
    if isinstance(resume, str) and resume != "auto" and not Path(resume).is_dir():
        errors.append(_not_there("resume", resume, "true, false, auto or a checkpoint's folder"))
    return errors


def _lora_keywords(lora: Lora) -> dict[str, Any]:
    fields = asdict(lora)
    return {"lora_alpha": fields.pop("alpha"), "lora_dropout": fields.pop("dropout"), **fields}


def _config_saver(resolved: str) -> Any:
    """Return a callback that writes config.yaml when training begins, so that a refused run leaves nothing."""
    from transformers import TrainerCallback

    from rpo.core.records import write_file

    class ConfigSaver(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                Path(args.output_dir).mkdir(parents=True, exist_ok=True)
                write_file(Path(args.output_dir) / CONFIG, resolved)

    return ConfigSaver()


def _print_run(run: Run, output: Path, *, short: bool) -> None:
    """Print how the run ended; the last metrics too, unless the table above ends with them."""
    print(f"{run.label}: {run.message}")
    shown = ("loss", "loss/preference", "loss/sft", "rewards/margins", "rewards/accuracies", "logps/chosen")
    last = run.last_metrics()
    for name in () if short else (*shown, *(f"eval_{name}" for name in shown)):
        if name in last:
            print(f"{name:24}{last[name]:>12.5g}")
    print(f"Written to {output}")


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~"))


def _not_there(name: str, path: str, expected: str) -> InvalidArgument:
    return InvalidArgument(name, expected=expected, got=f"{path}, which does not exist", remedy="Check the path.")
