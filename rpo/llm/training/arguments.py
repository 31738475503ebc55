"""Which arguments inherited from `transformers.TrainingArguments` are refused, and which values of the others.

tests/llm/test_arguments.py lists those honoured and those translated, and holds all three lists against the fields
there are, so that none is taken and not meant.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency, RPOError
from rpo.core.fields import hold
from rpo.core.synonyms import own_name
from rpo.methods.foreign import OPTIONS, refusal

# Argument -> (the one value it may have, why no other).
REFUSED: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, "It smooths a classifier's labels, which these losses do not have."),
    "auto_find_batch_size": (False, "It changes the batch behind the record; max_tokens_per_batch bounds memory."),
    "average_tokens_across_devices": (True, "The loss is always one mean over the batch of all devices."),
    "logging_nan_inf_filter": (False, "A loss that is not finite stops the run and names its rows."),
    "remove_unused_columns": (False, "Columns are chosen by their names in the data."),
    "bf16_full_eval": (False, "It would cast the weights that are trained and saved; bf16=True computes in bfloat16."),
    "fp16_full_eval": (False, "It would cast the weights that are trained and saved; fp16=True computes in float16."),
    "eval_do_concat_batches": (True, "Evaluation keeps means, not predictions."),
    "eval_use_gather_object": (False, "Evaluation keeps means, not predictions."),
    "eval_accumulation_steps": (None, "Evaluation keeps means, not predictions."),
    "include_for_metrics": ([], "Evaluation keeps means, not predictions."),
    "batch_eval_metrics": (False, "Evaluation keeps means, not predictions."),
    "label_names": (None, "Batches hold tokens and weights, no labels."),
    "length_column_name": ("length", "Lengths are counted after the tokenizer."),
}
# Names that some releases of transformers have -> what stands for them in all.
RETIRED = {"warmup_ratio": "warmup_steps=0.1, a share below 1, is the same as warmup_ratio=0.1."}
# What the optimizer and the schedule bring back from a checkpoint, whatever is asked for then.
OPTIMIZER = (
    "optim", "optim_args", "optim_target_modules", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
)  # fmt: skip
WHOLE = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
NOT_NEGATIVE = ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "eval_delay")
LARGEST_SEED = 2**32 - 1  # NumPy's global generator takes no more
SAMPLING = ("random", "sequential")


def own_config(args: Any, kind: Any, folder: str) -> Any:
    """Return `args`, or the defaults of its kind for None; refuse another trainer's. Raises InvalidArgument."""
    remedy = f"Pass a {kind.__name__}, or its fields as keywords of rpo.fit."
    return kind(output_dir=folder) if args is None else checks.instance("args", args, kind, remedy=remedy)


def check_names(kind: Any, names: Iterable[str]) -> None:
    """Refuse names that are no fields, all in one error, other trainers' by what they are here.

    Raises InvalidArgument.
    """
    refusals = [_unknown(name, kind) for name in names if name not in kind.__dataclass_fields__]
    if len(refusals) > 1:
        raise InvalidArgument(
            ", ".join(one.name for one in refusals),
            expected=f"fields of {kind.__name__}",
            got="names that are none",
            remedy=" ".join(f"[{one}]" for one in refusals),
        )
    for one in refusals:
        raise one


def _unknown(name: str, kind: Any) -> InvalidArgument:
    if name in OPTIONS:
        return refusal(name, kind.__name__)
    if name in RETIRED:
        expected = f"a field of {kind.__name__}"
        return InvalidArgument(name, expected=expected, got="a name of other releases", remedy=RETIRED[name])
    known = set(kind.__dataclass_fields__)
    near = [own_name(name, known)] if own_name(name, known) != name else []
    near += difflib.get_close_matches(name, known | kind._TRANSLATED, n=3 - len(near))
    return InvalidArgument(
        name,
        expected=f"a field of {kind.__name__}" + (f", such as {', '.join(near)}" if near else ""),
        got="an unknown name",
        remedy="Check the spelling.",
    )


def check_objects(model: Any, tokenizer: Any, peft_config: Any, callbacks: Any) -> None:
    """Refuse what is no model, tokenizer, adapter's configuration or list of callbacks. Raises InvalidArgument."""
    if not isinstance(model, (str, os.PathLike, torch.nn.Module)):
        remedy = "Pass its name, its folder or a transformers model."
        raise InvalidArgument("model", expected="a language model", got=_kind(model), remedy=remedy)
    if tokenizer is not None:
        remedy = "Pass rpo.llm.models.load_tokenizer(name)."
        checks.instance("processing_class", tokenizer, PreTrainedTokenizerBase, remedy=remedy)
    if not (peft_config is None or isinstance(peft_config, Mapping) or hasattr(peft_config, "peft_type")):
        remedy = 'Pass a peft.LoraConfig, or its keywords, as {"r": 16}.'
        raise InvalidArgument("peft_config", expected="an adapter", got=_kind(peft_config), remedy=remedy)
    for one in [] if callbacks is None else checks.instance("callbacks", callbacks, list):
        if not issubclass(one if isinstance(one, type) else type(one), TrainerCallback):
            remedy = "Derive it from transformers.TrainerCallback."
            raise InvalidArgument("callbacks", expected="TrainerCallbacks", got=_kind(one), remedy=remedy)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


@contextlib.contextmanager
def taken_by_transformers() -> Iterator[None]:
    """Turn what transformers raises about its arguments into one typed error."""
    try:
        yield
    except RPOError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError) as error:
        raise InvalidArgument(
            "args",
            expected="training arguments that transformers takes",
            got=" ".join(str(error).split()),
            remedy="Look at the argument it names.",
        ) from error


def check_arguments(args: Any) -> None:
    """Refuse values that transformers would take and not use, or fail at later. Raises InvalidArgument."""
    for name, (only, why) in REFUSED.items():
        if getattr(args, name, only) != only:
            raise InvalidArgument(
                name, expected=repr(only), got=repr(getattr(args, name)), remedy=f"{why} Leave it out."
            )
    for name, minimum in WHOLE.items():
        hold(args, checks.integer, name, minimum=minimum)
    hold(args, checks.nonnegative, *NOT_NEGATIVE, "adam_beta1", "adam_beta2")
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(args, name) >= 1:
            raise InvalidArgument(name, expected="a number in [0, 1)", got=getattr(args, name), remedy="Pass 0.9.")
    hold(args, checks.integer, "seed", minimum=0, maximum=LARGEST_SEED)
    if args.data_seed is not None:
        hold(args, checks.integer, "data_seed", minimum=0, maximum=LARGEST_SEED)
    _check_length(args)
    for name in ("logging", "eval", "save"):
        steps = getattr(args, f"{name}_steps")
        if _value(getattr(args, f"{name}_strategy")) == "steps" and steps is not None:
            checks.positive(f"{name}_steps", steps, remedy="Pass a number of updates, or a share of them below 1.")
    if args.neftune_noise_alpha is not None:
        hold(args, checks.nonnegative, "neftune_noise_alpha")
    if args.dataloader_persistent_workers and not args.dataloader_num_workers:
        remedy = "Set dataloader_num_workers, or leave dataloader_persistent_workers out."
        raise InvalidArgument("dataloader_num_workers", expected="workers that persist", got=0, remedy=remedy)
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise MissingDependency("use_liger_kernel needs liger-kernel. Install it, or leave use_liger_kernel out.")
    if args.load_best_model_at_end and _value(args.save_strategy) == "no":
        remedy = "Set save_strategy as eval_strategy, or leave load_best_model_at_end out."
        raise InvalidArgument("save_strategy", expected="checkpoints to choose from", got="'no'", remedy=remedy)
    # transformers before 5.20 had it as a flag.
    sampling = "group_by_length" if getattr(args, "group_by_length", False) else _sampling(args)
    if sampling not in SAMPLING:
        raise InvalidArgument(
            "train_sampling_strategy",
            expected=f"one of {', '.join(map(repr, SAMPLING))}",
            got=repr(sampling),
            remedy="Rows are packed without padding, so lengths need no groups; max_tokens_per_batch evens out memory.",
        )
    for name in [args.report_to] if isinstance(args.report_to, str) else args.report_to or []:
        if name not in ("none", "all", *get_available_reporting_integrations()):
            raise InvalidArgument(
                "report_to",
                expected="trackers that are installed, or none",
                got=repr(name),
                remedy=_tracker_remedy(name),
            )


def check_loading(config: Any) -> None:
    """Refuse an AcceleratorConfig that takes the batches from the processes. Raises InvalidArgument."""
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name):
            raise InvalidArgument(
                f"accelerator_config.{name}",
                expected="False",
                got=True,
                remedy="Every process reads batches of its own; per_device_train_batch_size is their size.",
            )


def _tracker_remedy(name: str) -> str:
    known = sorted(INTEGRATION_TO_CALLBACK)
    install = f"Install its package (pip install {name})" if name in known else f"Name one of {', '.join(known)}"
    return f"{install}, or set report_to to none."


def _check_length(args: Any) -> None:
    hold(args, checks.integer, "max_steps", minimum=-1)
    if args.max_steps == 0:
        raise InvalidArgument("max_steps", expected="-1 or >= 1", got=0, remedy="-1 trains for num_train_epochs.")
    if args.max_steps < 0:
        hold(args, checks.positive, "num_train_epochs", remedy="Pass 1, for example, or max_steps.")


def _sampling(args: Any) -> str:
    return str(getattr(args, "train_sampling_strategy", "random"))


def _value(option: Any) -> str:
    return str(getattr(option, "value", option))


def optimizer_settings(args: Any) -> dict[str, Any]:
    """Return the settings under which optimizer and schedule began."""
    found = {name: getattr(args, name, None) for name in OPTIMIZER}
    return {name: getattr(value, "value", value) for name, value in found.items()}


def check_fit(args: Any, train: Any, evaluation: Any) -> None:
    """Refuse arguments that do not fit the data, before anything is computed. Raises InvalidArgument."""
    if train is not None and not hasattr(train, "__len__"):
        if args.max_steps <= 0:
            raise InvalidArgument(
                "max_steps",
                expected="a number of updates for streamed data",
                got=args.max_steps,
                remedy="Pass max_steps=1000, for example.",
            )
    elif train is not None and args.dataloader_drop_last and len(train) < args.train_batch_size * args.world_size:
        raise InvalidArgument(
            "dataloader_drop_last",
            expected=f"at least {args.train_batch_size * args.world_size} pairs, one batch of all processes",
            got=f"{len(train)}, so that every pair would be dropped",
            remedy="Set it to False, or per_device_train_batch_size lower.",
        )
    for name, value, idle in (
        ("eval_strategy", _value(args.eval_strategy), "no"),
        ("eval_on_start", args.eval_on_start, False),
    ):
        if value != idle and not evaluation:
            remedy = f"Pass eval_dataset, or leave {name} out."
            raise InvalidArgument(name, expected=f"{idle!r} without an eval_dataset", got=repr(value), remedy=remedy)
