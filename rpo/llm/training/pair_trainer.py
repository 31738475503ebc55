"""`PairTrainer`: a model, tokenised pairs, and a loss that is one mean over each update's global batch.

Shapes: B pairs of a micro-batch; m scores per pair.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.data import PairStream, PreparedPairs, TokenizedGroup, load_preferences, prepare_pairs, stream_pairs
from rpo.llm.data.batching import BudgetCollator, TokenBudget
from rpo.llm.data.collate import PairCollator, PairDataset, batch_totals, data_digest
from rpo.llm.data.loading import SUFFIXES
from rpo.llm.data.report import warn_of_unused_prompts
from rpo.llm.logps.packing import choose_path
from rpo.llm.logps.router import require_router_loss, router_losses, router_weight
from rpo.llm.logps.scoring import ScoringPath, pad_token
from rpo.llm.models import check_embeddings, disable_dropout, positions_of
from rpo.llm.models.adapters import adapter_start
from rpo.llm.models.movement import MovedShare, warn_of_half_precision
from rpo.llm.reference.scoring_pass import on_device
from rpo.llm.sampling import stop_token_ids
from rpo.llm.training.arguments import check_fit, optimizer_settings
from rpo.llm.training.base_trainer import SafeTrainer
from rpo.llm.training.config import TrainerConfig
from rpo.llm.training.console import settle_console
from rpo.llm.training.selfcheck import check_data, check_gradient

logger = logging.getLogger(__name__)


def default_path(model: Any, args: TrainerConfig, tokenizer: Any) -> ScoringPath:
    """Return the path that `args` asks for, tried where and in what the model will be trained."""
    with on_device(model, args.device):
        return choose_path(model, pad_token(tokenizer), args.path, autocast_dtype=args.autocast_dtype)


def is_streamed(data: Any) -> bool:
    """Return whether a data set, or one of several by name, is read as it is trained on, and has no length."""
    if isinstance(data, Mapping):
        return any(map(is_streamed, data.values()))
    return not (data is None or isinstance(data, (str, Path)) or hasattr(data, "__len__"))


class PairTrainer(TokenBudget, SafeTrainer):
    """What the trainers share besides safety: data, the step-0 check, and the loop from scores to loss.

    A subclass gives `scores` and `batch_loss`. objective: kept, for the record and for resuming.
    """

    def __init__(
        self,
        model: Any,
        args: TrainerConfig,
        objective: Any,
        collator: PairCollator,
        *,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        callbacks: list[Any] | None,
        optimizers: tuple[Any, Any],
    ) -> None:
        if args.disable_dropout:
            disable_dropout(model)
        if processing_class is not None:
            check_embeddings(model, processing_class)
        if args.chat_template is not None and processing_class is not None:
            processing_class = copy.deepcopy(processing_class)  # the user's stays as it is
            processing_class.chat_template = args.chat_template  # saved with the model, for whoever samples from it
        collator = replace(collator, positions=positions_of(model))
        self._require = collator.require
        self.objective, self.tokenizer, self.path = objective, processing_class, collator.path
        self.data_reports: dict[str, dict[str, Any]] = {}
        self.self_check_results: dict[str, Any] = {}
        self.carried: dict[str, float] = {}
        self._checked = not args.self_check
        self._eval_totals: torch.Tensor | None = None
        self._digest: str | None = None
        train = self._prepare("train", train_dataset, args)
        if isinstance(eval_dataset, Mapping):  # a DatasetDict is one of evaluation sets too
            evaluation: Any = {name: self._prepare(f"eval_{name}", data, args) for name, data in eval_dataset.items()}
        else:
            evaluation = self._prepare("eval", eval_dataset, args)
        if isinstance(train, PairStream):
            train = train.repeated()
        # A batch's tensors have no common first dimension to cut along: every process reads for itself.
        args.accelerator_config.dispatch_batches = False
        self._require_trainable(model, train)
        check_fit(args, train, evaluation)
        self.adapter, self.router_weight = adapter_start(model), router_weight(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collator(collator, args),
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        settle_console(self, args.log or "short", bar=not args.disable_tqdm and sys.stderr.isatty())
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # which keep float32 weights of their own
            warn_of_half_precision(model)

    def __new__(cls, *_: Any, **given: Any) -> Any:
        """Refuse arguments that there are not by a sentence, where Python would call them unexpected."""
        parameters = inspect.signature(cls.__init__).parameters
        known = list(parameters)[1:]
        taken = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        for name in () if taken else [name for name in given if name not in known]:
            near = difflib.get_close_matches(name, known, n=3)
            kinds = (TrainerConfig, *TrainerConfig.__subclasses__())
            of_args = any(name in {*kind.__dataclass_fields__, *kind._TRANSLATED} for kind in kinds)
            raise InvalidArgument(
                name,
                expected=f"an argument of {cls.__name__} ({', '.join(near or known)})",
                got="another name",
                remedy="It is a field of args." if of_args else "Check the spelling.",
            )
        return super().__new__(cls)

    @staticmethod
    def _collator(collator: PairCollator, args: TrainerConfig) -> PairCollator:
        if args.max_tokens_per_batch is None:
            return collator
        given = {field.name: getattr(collator, field.name) for field in fields(collator)}
        return BudgetCollator(**given, max_tokens=args.max_tokens_per_batch)

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the router loss of a mixture of experts is added; TRL's name."""
        return self.router_weight > 0

    # --- what a subclass gives -----------------------------------------------------------------

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the loss is of, (B, m): log-probabilities or rewards."""
        raise NotImplementedError

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, and its terms (scalars) and metrics of the pairs, (B,), by name.

        weights: (B,), summing to one. totals: of the batch that the loss is normalised over, as `batch_totals`.
        """
        raise NotImplementedError

    def load_rows(self, data: Any) -> Iterable[Any]:
        """Return the rows of a dataset as `prepare_pairs` takes them."""
        return load_preferences(data)

    @property
    def base_column(self) -> str | None:
        """The column of responses that are scored besides chosen and rejected."""
        return None

    @property
    def takes_lists(self) -> bool:
        """Whether the loss is of any number of responses, the best first."""
        return False

    @property
    def reads(self) -> dict[str, bool]:
        """What is read of rows beside prompts and pairs of responses: options of `prepare_pairs`."""
        return {}

    def check_data(self, pairs: Sequence[TokenizedGroup], counts: dict[str, Any]) -> dict[str, Any]:
        """Return what was found about the data. Raises SelfCheckFailed."""
        return check_data(pairs, counts, self.eos_token_ids)

    # --- data ------------------------------------------------------------------------------------

    def _prepare(self, name: str, data: Any, args: TrainerConfig) -> Any:
        """Return tokenised pairs, or a stream of them, and keep the report on them."""
        if data is None or isinstance(data, PairStream):
            return data
        if isinstance(data, PairDataset):
            return self._of_sizes(data)
        if not isinstance(data, PreparedPairs):
            rows = self.load_rows(one_split(name, data))
            options: dict[str, Any] = {
                "max_length": args.max_length,
                "max_prompt_length": args.max_prompt_length,
                "truncation_mode": args.truncation_mode,
                "on_refused": args.on_refused,
                "base_column": self.base_column,
                "weight_column": args.weight_column,
                "chat_template": args.chat_template,
                **self.reads,
            }
            if not hasattr(rows, "__len__"):
                return stream_pairs(rows, self.tokenizer, **options)
            data = prepare_pairs(rows, self.tokenizer, **options)
        warn_of_unused_prompts(data.report)
        self.data_reports[name] = data.report.to_dict()
        self._require(data)
        return self._of_sizes(PairDataset(data))

    def _of_sizes(self, data: PairDataset) -> PairDataset:
        """Return the data, or refuse lists where the loss is of pairs."""
        if max(data.sizes, default=0) > 2 and not self.takes_lists:
            what, made = ("pairs", "binarize") if self.objective.shape.pairs else ("single responses", "singles")
            raise InvalidArgument(
                "train_dataset",
                expected=f"{what}, which {type(self.objective).__name__} is about",
                got=f"lists of up to {max(data.sizes)} responses",
                remedy=f"Make {what} of them by rpo.llm.data.{made}, or use a method of lists (`rpo methods`).",
            )
        return data

    @property
    def eos_token_ids(self) -> set[int]:
        """Tokens that end a turn; none without a tokenizer."""
        return set() if self.tokenizer is None else set(stop_token_ids(self.model, self.tokenizer))

    def before_training(self, *, resuming: bool) -> None:
        """Check the data before the first update."""
        self._checked = self._checked or resuming
        if not self._checked:
            self.add_callback(MovedShare(self))
        if not self._checked and isinstance(self.train_dataset, PairDataset):
            counts = self.data_reports.get("train", {})
            self.self_check_results |= self.check_data(self.train_dataset.pairs, counts)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset`, which may be of any kind `train_dataset` may be, or on the one given at first."""
        return super().evaluate(self.evaluation_data(eval_dataset), *args, **kwargs)

    def evaluation_data(self, given: Any) -> Any:
        """Return a data set to evaluate on as tokenised pairs, or the name of one given at first."""
        known = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        if given is None or isinstance(given, dict) or (isinstance(given, str) and given in known):
            return given
        return self._prepare("evaluate", given, self.args)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate; the loss is one mean over the whole set, however it is cut into batches."""
        data = getattr(dataloader, "dataset", None)
        if isinstance(data, PairDataset):
            self._eval_totals = self.data_collator.totals(data.pairs).to(self.args.device)
        try:
            return super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self._eval_totals = None

    # --- from scores to the loss -------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of one update, and the totals over them and over all processes."""
        return super().get_batch_samples(map(self.without_repeats, epoch_iterator), num_batches, device)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of one evaluation batch, (loss, None, None)."""
        return super().prediction_step(model, self.without_repeats(inputs), *args, **kwargs)

    def without_repeats(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the batch with weight 0 on pairs that accelerate repeats to fill the last round of processes."""
        state = self.accelerator.gradient_state
        if not (state.end_of_dataloader and state.remainder > 0):
            return batch
        size = self.args.train_batch_size if self.model.training else self.args.eval_batch_size
        real = state.remainder - self.accelerator.process_index * size
        counted = torch.arange(len(batch["weights"]), device=batch["weights"].device) < real
        return batch | {"weights": batch["weights"] * counted}

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the micro-batch's total weight and total weighted number of tokens: (2,)."""
        return batch_totals(batch)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's share of the global batch's mean loss (of its own, when evaluating)."""
        with contextlib.ExitStack() as stack:
            router = stack.enter_context(router_losses(self.model)) if self.router_weight else []
            scores = self.scores(model, inputs)
        self.require_finite(scores, inputs["rows"])
        own = self.batch_totals(inputs)
        totals = num_items_in_batch
        if totals is None:
            totals = own if self._eval_totals is None else self._eval_totals
        # A process may hold nothing but repeats in the last round: any weights will do, since none counts.
        weights = inputs["weights"] / own[0] if own[0] > 0 else torch.full_like(inputs["weights"], 1 / len(scores))
        loss, metrics = self.batch_loss(scores, inputs, weights.to(scores), totals)
        if self.router_weight:
            metrics["loss/router"] = require_router_loss(self.model, router).to(loss)
            loss = loss + self.router_weight * metrics["loss/router"]
        if self.model.training:
            self.train_meter.add(metrics, inputs["weights"])  # the loss itself is logged by Trainer
        else:
            self.eval_meter.add({**metrics, "loss": loss}, inputs["weights"])
        if num_items_in_batch is not None:
            # Processes average their gradients, so each one's share counts as many times as there are processes.
            loss = loss * (own[0] / totals[0] * self.accelerator.num_processes).to(loss)
        return (loss, {"scores": scores}) if return_outputs else loss

    def on_gradient_norm(self, norm: float) -> None:
        """Stop at a gradient that is not finite; before the first update, at one that is zero too."""
        if not self._checked:
            self._checked = True
            self.self_check_results |= check_gradient(norm)
        super().on_gradient_norm(norm)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._checked = True  # also where a scaler keeps gradient norms to itself
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def run_identity(self) -> dict[str, Any]:
        """Return objective, data, their order and batches, and the optimizer: what a checkpoint is continued with."""
        if self._digest is None:
            self._digest = data_digest(self.train_dataset)
        args = self.args
        return {
            "objective": self.objective.to_dict(),
            "data": self._digest,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "pairs_per_update": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "optimizer": optimizer_settings(args),
        }

    @staticmethod
    def _require_trainable(model: Any, train: Any) -> None:
        if train is not None and not any(value.requires_grad for value in model.parameters()):
            raise InvalidArgument(
                "model",
                expected="a model with parameters to train",
                got="none that requires a gradient",
                remedy="Load an adapter with is_trainable=True, or pass peft_config.",
            )


def one_split(name: str, data: Any) -> Any:
    """Return the split "train" of a data set with several, and say so. Raises InvalidArgument where there is none."""
    if isinstance(data, (str, Path)):
        if Path(data).suffix.lower() not in SUFFIXES:
            logger.warning("%s data: the split 'train' of %s. For another, pass its rows.", name, data)
        return data
    if type(data).__name__ not in ("DatasetDict", "IterableDatasetDict"):
        return data
    names = ", ".join(map(repr, data))
    if "train" not in data:
        raise InvalidArgument(
            f"{name}_dataset",
            expected="rows, or splits of which one is called 'train'",
            got=f"the splits {names}",
            remedy=f"Pass one of them, {name}_dataset=data[{next(iter(data), 'train')!r}].",
        )
    if len(data) > 1:
        logger.warning("%s data: the split 'train' of %s.", name, names)
    return data["train"]
