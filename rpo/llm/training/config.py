"""The trainers' arguments, on top of `transformers.TrainingArguments`: `TrainerConfig` and `RPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.fields import hold
from rpo.core.objectives import RPO, Objective, require_comparison, require_objective
from rpo.core.records import check_file
from rpo.llm.training import trl_fields
from rpo.llm.training.arguments import check_arguments, check_loading, check_names, taken_by_transformers
from rpo.llm.training.console import LOGS
from rpo.llm.training.recompute import is_selective

TRUNCATION_MODES = ("keep_end", "drop")
BASE_SOURCES = ("chosen", "rejected", "reference", "column")
DEFAULT_BETA, DEFAULT_ETA = 0.1, 0.005


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class TrainerConfig(TrainingArguments):
    """What every trainer here takes besides `TrainingArguments`: data, model and checks. Lengths are in tokens.

    What is inherited keeps its meaning, or is refused where it has none here (`rpo.llm.training.arguments`). Raises
    InvalidArgument.
    """

    learning_rate: float = field(default=1e-6, metadata=_help("Peak learning rate of AdamW."))
    logging_steps: float = field(default=10, metadata=_help("Log every so many updates."))
    logging_nan_inf_filter: bool = field(
        default=False, metadata=_help("Must stay false: a non-finite loss stops the run and names its rows.")
    )
    remove_unused_columns: bool | None = field(default=False, metadata=_help("Must stay false."))
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata=_help("True only for a model with trainable parameters that its logits do not use.")
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata=_help("Pin batches in memory; by default with CUDA.")
    )

    # Data.
    max_length: int | None = field(default=1024, metadata=_help("Limit of prompt + response; None for no limit."))
    max_prompt_length: int | None = field(
        default=None, metadata=_help("A prompt is cut from the left, no shorter than this; default max_length // 2.")
    )
    truncation_mode: str = field(
        default="keep_end", metadata=_help("keep_end: cut prompts from the left, then responses; drop: drop the row.")
    )
    on_refused: str = field(default="error", metadata=_help("A row that cannot be used: error, or drop (counted)."))
    weight_column: str | None = field(default=None, metadata=_help("Column with the weight of each pair."))
    chat_template: str | None = field(
        default=None, metadata=_help("Jinja template in place of the tokenizer's; saved with the model.")
    )

    # Layout.
    path: str = field(
        default="auto",
        metadata=_help("How log-probabilities are computed: auto, shared (prompts once), packed, padded."),
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata=_help("Cut batches into parts of at most so many tokens; results do not depend on it."),
    )

    # Model.
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata=_help(
            "Keywords of rpo.llm.models.load_model, for a model given by name; without dtype, weights that are all "
            "trained are float32, and those under an adapter as stored."
        ),
    )
    disable_dropout: bool = field(default=True, metadata=_help("No dropout in policy, adapters and reference."))

    # Output.
    log: str | None = field(
        default=None,
        metadata=_help("What is printed: short (five numbers a log; the default), full (all of them), or none."),
    )

    # Checks.
    self_check: bool = field(default=True, metadata=_help("Check data, reference and gradient at step 0."))
    checkpoint_checksums: bool = field(default=True, metadata=_help("Checksum every checkpoint file."))

    _TRANSLATED: ClassVar[frozenset[str]] = frozenset()  # names of TRL's that the class reads
    _UNSET: ClassVar[frozenset[str]] = frozenset()  # other names that it takes as None
    # Objects in config files and on the command line may be JSON strings.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    def __new__(cls, *_: Any, **fields: Any) -> Any:
        """Refuse unknown names by a sentence, TRL's by the method's, where the dataclass would call them unexpected."""
        unset = {name for name in cls._UNSET if fields.get(name) is None}
        check_names(cls, [name for name in fields if name not in cls._TRANSLATED | unset])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.fp16 and not torch.cuda.is_available():
            raise InvalidArgument("fp16", expected="a CUDA device", got="none", remedy="Use bf16=True, or neither.")
        if self.bf16 and not (self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
            remedy = "Set use_cpu=True to train on the CPU in bfloat16, or leave bf16 out."
            raise InvalidArgument("bf16", expected="a GPU that has bfloat16", got="none", remedy=remedy)
        # transformers >= 5.18 deprecates the name that everyone, 5.17 included, knows: pass its value on quietly.
        given: Any = self
        for old, new in (
            ("gradient_" + name, "activation_" + name) for name in ("checkpointing", "checkpointing_kwargs")
        ):
            if hasattr(given, new) and getattr(given, new) is None and getattr(given, old) is not None:
                setattr(given, new, getattr(given, old))
                setattr(given, old, None)
        check_arguments(self)
        with taken_by_transformers():
            super().__post_init__()
        check_loading(self.accelerator_config)
        is_selective(self)
        self._check()

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What matrix products are computed in where weights are of another type; None without autocast."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else None

    def _check(self) -> None:
        checks.one_of("truncation_mode", self.truncation_mode, TRUNCATION_MODES)
        if self.log is not None:
            checks.one_of("log", self.log, LOGS)
        checks.one_of("on_refused", self.on_refused, ("error", "drop"))
        checks.one_of("path", self.path, ("auto", "shared", "packed", "padded"))
        if self.max_tokens_per_batch is not None:
            hold(self, checks.integer, "max_tokens_per_batch", minimum=1)
        if self.max_length is not None:
            hold(self, checks.integer, "max_length", minimum=2)
        if self.max_prompt_length is not None:
            limit = None if self.max_length is None else self.max_length - 1
            hold(self, checks.integer, "max_prompt_length", minimum=1, maximum=limit)


@trl_fields.takes_trl_fields
@dataclass
class RPOConfig(TrainerConfig):
    """Arguments of `RPOTrainer`: those of TRL's DPOConfig by their names, and what the objective adds.

    beta and eta build the objective (defaults 0.1 and 0.005); leave them out when `objective` is given.
    Raises InvalidArgument.
    """

    # The objective.
    beta: float | None = field(default=None, metadata=_help("KL temperature, > 0."))
    eta: float | None = field(default=None, metadata=_help("Weight of the reward penalty, >= 0; 0 is DPO."))
    sft_reduction: str | None = field(
        default=None, metadata=_help("sequence_sum (the paper), sequence_mean or batch_token_mean (global batch).")
    )
    base: str | None = field(
        default=None, metadata=_help("pi_base: chosen, rejected, responses, reference, or custom (see base_weights).")
    )
    base_weights: dict[str, float] | None = field(
        default=None,
        metadata=_help("base=custom: weights over chosen, rejected, reference, column that sum to one."),
    )
    base_column: str | None = field(default=None, metadata=_help("Column with a response (or several) under pi_base."))
    base_num_samples: int = field(default=1, metadata=_help("Responses sampled from the reference a prompt."))
    base_max_new_tokens: int = field(default=128, metadata=_help("Their length limit, in tokens."))

    ranked_lists: bool = field(
        default=False, metadata=_help("Lists of responses without scores or ranks stand best first; else refused.")
    )

    # Reference.
    precompute_ref_log_probs: bool | None = field(
        default=None,
        metadata=_help(
            "Score the data under the reference once, before training, and keep no second model; null: unless streamed."
        ),
    )
    precompute_ref_batch_tokens: int = field(default=16384, metadata=_help("Tokens in a batch of that pass."))
    ref_logps_cache: str | None = field(
        default=None, metadata=_help("File of cached values, shared by runs; default output_dir/reference_logps.*")
    )

    # Diagnostics.
    gradient_diagnostics_steps: int = field(
        default=0, metadata=_help("Log norms and cosine of the two terms' gradients every so many updates; 0: never.")
    )
    kl_steps: int = field(default=0, metadata=_help("Sample responses and log KL to the reference every so many; 0."))
    kl_prompts: int = field(default=16, metadata=_help("Prompts (of the evaluation set, or training set) for it."))
    kl_max_new_tokens: int = field(default=64, metadata=_help("Length limit of the sampled responses."))
    displacement_threshold: float | None = field(
        default=None, metadata=_help("Stop when the share of pairs whose chosen log-probability fell exceeds this.")
    )
    displacement_patience: int = field(default=3, metadata=_help("... for so many logs in a row."))
    _TRANSLATED: ClassVar[frozenset[str]] = trl_fields.NAMES
    _UNSET: ClassVar[frozenset[str]] = frozenset(trl_fields.UNSET)
    given_objective: ClassVar[Any] = None  # of an instance, where loss_type named one
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainerConfig._VALID_DICT_FIELDS, "base_weights"]

    def _check(self) -> None:
        super()._check()
        counts = {"base_num_samples": 1, "base_max_new_tokens": 1, "precompute_ref_batch_tokens": 1}
        counts |= {"gradient_diagnostics_steps": 0, "kl_steps": 0, "kl_prompts": 1, "kl_max_new_tokens": 1}
        for name, minimum in (counts | {"displacement_patience": 1}).items():
            hold(self, checks.integer, name, minimum=minimum)
        if self.displacement_threshold is not None:
            hold(self, checks.fraction, "displacement_threshold")
        if self.beta is not None or self.eta is not None or self.sft_reduction is not None or self.base is not None:
            self.build_objective()
        if self.base is not None:
            self.base_slots(self.base)
        if self.ref_logps_cache is not None:
            check_file("ref_logps_cache", self.ref_logps_cache)

    def build_objective(self) -> RPO:
        """Return the RPO of beta, eta, sft_reduction and base. Raises InvalidArgument."""
        return RPO(
            beta=DEFAULT_BETA if self.beta is None else self.beta,
            eta=DEFAULT_ETA if self.eta is None else self.eta,
            sft_reduction=self.sft_reduction or "sequence_sum",
            base=self.base or "chosen",
        )

    def resolve_objective(self, objective: Objective | None) -> Objective:
        """Return `objective`, or the one these arguments build; refuse both."""
        if objective is None:
            return self.build_objective() if self.given_objective is None else self.given_objective
        if self.given_objective is not None:
            raise InvalidArgument(
                "objective",
                expected="either an objective or loss_type",
                got="both",
                remedy="Leave one of them out.",
            )
        given = [name for name in ("beta", "eta", "sft_reduction", "base") if getattr(self, name) is not None]
        if given:
            raise InvalidArgument(
                "objective",
                expected="either an objective or " + ", ".join(given),
                got="both",
                remedy="Leave one of them out.",
            )
        return require_comparison(require_objective(objective))

    def base_slots(self, base: str) -> dict[str, float]:
        """Return the weight of each source of pi_base: {"chosen": 1.0} unless the objective says otherwise."""
        if base != "custom":
            for name in ("base_weights", "base_column"):
                if getattr(self, name) is not None:
                    expected = 'None unless base="custom"'
                    raise InvalidArgument(name, expected=expected, got=f"base={base!r}", remedy="Leave it out.")
            return {"chosen": 0.5, "rejected": 0.5} if base == "responses" else {base: 1.0}
        weights = self.base_weights or ({"column": 1.0} if self.base_column else {})
        total = 0.0
        for source, weight in weights.items():
            checks.one_of("base_weights", source, BASE_SOURCES)
            total += checks.nonnegative(f"base_weights[{source!r}]", weight)
        if not weights or abs(total - 1.0) > 1e-6:
            raise InvalidArgument(
                "base_weights",
                expected='weights that sum to one, for base="custom" (or a base_column)',
                got=self.base_weights,
                remedy='Pass {"chosen": 0.5, "reference": 0.5}, for example.',
            )
        if "column" in weights and self.base_column is None:
            raise InvalidArgument(
                "base_column", expected="a column name", got=None, remedy="Name the column with pi_base's responses."
            )
        if "column" not in weights and self.base_column is not None:
            raise InvalidArgument(
                "base_column",
                expected="None where base_weights has no column",
                got=repr(self.base_column),
                remedy='Give "column" a weight, or leave base_column out.',
            )
        return dict(weights)
