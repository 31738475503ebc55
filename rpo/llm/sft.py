"""`SFTTrainer`: the stage that makes pi_ref; and what the trainers without a reference share.

Shapes: B rows of a micro-batch, m sequences a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from transformers import PreTrainedModel

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.neighbours import SFT
from rpo.llm.base_trainer import SafeTrainer
from rpo.llm.collate import PairDataset
from rpo.llm.config import RPOConfig
from rpo.llm.data import (
    PairStream,
    PreparedPairs,
    RefusedRow,
    TokenizedPair,
    load_preferences,
    prepare_pairs,
    read_preference,
    stream_pairs,
)
from rpo.llm.data.streaming import splits_itself
from rpo.llm.generate import stop_token_ids
from rpo.llm.models import check_embeddings, disable_dropout, load_model, load_tokenizer
from rpo.llm.scoring import PaddedPath, Path, PromptGroup
from rpo.llm.selfcheck import check_data, check_gradient
from rpo.llm.trainer import data_digest, pad_token, with_adapter

RESPONSES = ("chosen", "rejected")
# What RPOConfig asks about pi_ref, pi_base and the two terms of its loss.
REFERENCE_FIELDS = (
    *("beta", "eta", "sft_reduction", "base", "base_weights", "base_column", "base_num_samples"),
    *("base_max_new_tokens", "precompute_ref_log_probs", "precompute_ref_batch_tokens", "ref_logps_cache"),
    *("gradient_diagnostics_steps", "kl_steps", "kl_prompts", "kl_max_new_tokens"),
    *("displacement_threshold", "displacement_patience"),
)


@dataclass
class NoReferenceConfig(RPOConfig):
    """Arguments that all trainers share: those of `RPOConfig`, less what needs a reference. Raises InvalidArgument."""

    def _check(self) -> None:
        super()._check()
        for name in REFERENCE_FIELDS:
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise InvalidArgument(
                    name,
                    expected=f"{default} (no reference takes part here)",
                    got=getattr(self, name),
                    remedy="Leave it out; it belongs to RPOConfig.",
                )


@dataclass
class SFTConfig(NoReferenceConfig):
    """Arguments of `SFTTrainer`. Raises InvalidArgument."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate of AdamW."})
    response: str = field(default="chosen", metadata={"help": "Which response of preference rows: chosen, rejected."})

    def _check(self) -> None:
        super()._check()
        checks.one_of("response", self.response, RESPONSES)


class NoReferenceTrainer(SafeTrainer):
    """A model, its data, and a loss that is one mean over an update's global batch.

    A subclass gives `scores`, `batch_loss` and `divisors`. objective: SFT or BradleyTerry.
    """

    def __init__(
        self,
        model: Any,
        args: NoReferenceConfig,
        objective: Any,
        collator: Any,
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
        self.objective, self.tokenizer = objective, processing_class
        self.data_reports: dict[str, dict[str, Any]] = {}
        self.self_check_results: dict[str, Any] = {}
        self._checked = not args.self_check
        train = self._prepare("train", train_dataset, args)
        if isinstance(eval_dataset, Mapping) and not hasattr(eval_dataset, "column_names"):
            evaluation: Any = {name: self._prepare(name, data, args) for name, data in eval_dataset.items()}
        else:
            evaluation = self._prepare("eval", eval_dataset, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    # --- what a subclass gives -----------------------------------------------------------------

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the loss is of, (B, m): log-probabilities or rewards."""
        raise NotImplementedError

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the loss, its terms (scalars), and metrics of the rows, (B,) each.

        weights: (B,), summing to one. totals: of the batch that the loss is normalised over, as `batch_totals`.
        """
        raise NotImplementedError

    def divisors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what each row adds to the denominator of the loss, (B,)."""
        return inputs["weights"]

    def rows_of(self, data: Any) -> Iterable[Any]:
        """Return the rows of a dataset as `prepare_pairs` takes them."""
        return load_preferences(data)

    # --- data ------------------------------------------------------------------------------------

    def _prepare(self, name: str, data: Any, args: NoReferenceConfig) -> Any:
        """Return tokenised pairs (a list, or a stream), and keep the report on them."""
        if data is None or isinstance(data, (PairStream, PairDataset)):
            return data
        if not isinstance(data, PreparedPairs):
            rows = self.rows_of(data)
            options: dict[str, Any] = {
                "max_length": args.max_length,
                "max_prompt_length": args.max_prompt_length,
                "truncation_mode": args.truncation_mode,
                "on_refused": args.on_refused,
                "weight_column": args.weight_column,
                "chat_template": args.chat_template,
            }
            if not hasattr(rows, "__len__"):
                return stream_pairs(rows, self.tokenizer, **options)
            data = prepare_pairs(rows, self.tokenizer, **options)
        self.data_reports[name] = data.report.to_dict()
        return PairDataset(data)

    def before_training(self, *, resuming: bool) -> None:
        """Check the data before the first update."""
        self._checked = self._checked or resuming
        if not self._checked and isinstance(self.train_dataset, PairDataset):
            self.self_check_results |= self.check_data(self.train_dataset.pairs, self.data_reports["train"])

    def check_data(self, pairs: Sequence[TokenizedPair], counts: dict[str, Any]) -> dict[str, Any]:
        """Return what was found about the data. Raises SelfCheckFailed."""
        return check_data(pairs, counts, ())

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset`, which may be of any kind `train_dataset` may be, or on the one given at first."""
        if eval_dataset is not None and not isinstance(eval_dataset, (str, dict)):
            eval_dataset = self._prepare("evaluate", eval_dataset, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    # --- the loss --------------------------------------------------------------------------------

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the micro-batch's total weight and total divisor: (2,)."""
        return torch.stack([batch["weights"].sum(), self.divisors(batch).sum()])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's share of the global batch's mean loss (of its own, when evaluating)."""
        scores = self.scores(model, inputs)
        self.require_finite(scores, inputs["rows"])
        own = self.batch_totals(inputs)
        totals = own if num_items_in_batch is None else num_items_in_batch
        weights = (inputs["weights"] / own[0]).to(scores)
        loss, terms, metrics = self.batch_loss(scores, inputs, weights, totals)
        meter = self.train_meter if self.model.training else self.eval_meter
        meter.add(metrics, inputs["weights"])
        if not self.model.training:
            terms["loss"] = loss  # while training, Trainer logs its own
        # A mean weighs as much as its denominator: this batch's own, or its share of the global batch's.
        meter.add(terms, self.divisors(inputs) if num_items_in_batch is None else inputs["weights"])
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

    def run_identity(self) -> dict[str, Any]:
        """Return objective and data: what a checkpoint can only be continued with."""
        return {"objective": self.objective.to_dict(), "data": data_digest(self.train_dataset)}


class SFTTrainer(NoReferenceTrainer):
    """Trains `model` on responses by minus their log-probability.

    model: a causal language model, its folder or its name. train_dataset, eval_dataset: prompt-completion
    rows or preference rows (of which args.response is learnt), from wherever `load_preferences` reads;
    what `prepare_pairs` returns is taken for its chosen or rejected responses likewise. objective: an
    SFT. peft_config: trains an adapter. Raises InvalidArgument and the errors of the data; `train` raises
    SelfCheckFailed and NonFiniteLoss too.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: SFTConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: SFT | None = None,
        peft_config: Any = None,
        path: Path | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = SFTConfig(output_dir="sft-output") if args is None else args
        objective = require_objective(objective, SFT)
        if isinstance(model, (str, FilePath)):
            processing_class = load_tokenizer(model) if processing_class is None else processing_class
            options: Any = args.model_init_kwargs or {}
            model = load_model(model, **options)
        self.response = args.response
        self.path = PaddedPath(pad_token(processing_class)) if path is None else path
        super().__init__(
            with_adapter(model, peft_config, args),
            args,
            objective,
            ResponseCollator(self.path, args.response),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def rows_of(self, data: Any) -> Iterable[Any]:
        """Return the rows as preferences of one response over itself."""
        rows = load_preferences(data)
        if iter(rows) is rows:  # a generator, which is refused as it is
            return rows
        return (SizedResponseRows if hasattr(rows, "__len__") else ResponseRows)(rows, self.response)

    def _prepare(self, name: str, data: Any, args: NoReferenceConfig) -> Any:
        prepared = super()._prepare(name, data, args)
        if name in self.data_reports and not isinstance(data, PreparedPairs):
            for count in ("identical", "rejected_truncated"):  # of a response and itself
                self.data_reports[name].pop(count, None)
        return prepared

    def check_data(self, pairs: Sequence[TokenizedPair], counts: dict[str, Any]) -> dict[str, Any]:
        """Return what was found about truncation and ends of turn. Raises SelfCheckFailed."""
        ends = () if self.tokenizer is None else stop_token_ids(self.model, self.tokenizer)
        learnt = [replace(pair, chosen_ids=learnt_ids(pair, self.response), rejected_ids=()) for pair in pairs]
        return check_data(learnt, counts, ends)

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the responses' summed log-probabilities, (B, 1), in nats."""
        return self.path.logps(model, inputs)

    def divisors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the rows' weights, times their lengths where the loss is a mean over tokens: (B,)."""
        if self.objective.reduction != "batch_token_mean":
            return inputs["weights"]
        return inputs["weights"] * inputs["lengths"][:, 0]

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the loss over `totals`, its one term, and log-probabilities, summed and a token."""
        logps, lengths = scores[:, 0], inputs["lengths"][:, 0]
        if self.objective.reduction == "batch_token_mean":
            # The mean length of the whole batch makes the tokens of every part of it count alike.
            divided = (totals[1] / totals[0]).expand_as(logps)
        else:
            divided = lengths
        loss, terms = self.objective(logps, lengths=divided, weights=weights)
        metrics = {"logps/response": logps, "logps/response_per_token": logps / lengths}
        return loss, {"loss/sft": terms.sft}, metrics

    def run_identity(self) -> dict[str, Any]:
        """Return objective, data, and which response of it is learnt."""
        return super().run_identity() | {"response": self.response}


@dataclass(frozen=True)
class ResponseCollator:
    """Turns pairs into one batch of one response each: `path`'s inputs, and weights and rows (B,)."""

    path: Path
    response: str

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        pairs = [item["pair"] if isinstance(item, dict) else item for item in items]
        # First the tensors with one entry a row: accelerate takes the batch size from the first.
        batch = {
            "weights": torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
            "rows": torch.tensor([pair.row for pair in pairs]),
        }
        groups = [PromptGroup(pair.prompt_ids, (learnt_ids(pair, self.response),)) for pair in pairs]
        return batch | self.path.collate(groups)


def learnt_ids(pair: TokenizedPair, response: str) -> tuple[int, ...]:
    """Return the tokens of the chosen or the rejected response."""
    return pair.chosen_ids if response == "chosen" else pair.rejected_ids


class ResponseRows:
    """Rows of prompts and responses, read anew at every iteration as preferences of one response over itself."""

    def __init__(self, rows: Any, response: str) -> None:
        self._rows, self._response = rows, response
        self.splits_itself = splits_itself(rows)

    def __iter__(self) -> Iterator[Any]:
        return (as_preference(row, index, self._response) for index, row in enumerate(self._rows))

    def set_epoch(self, epoch: int) -> None:
        """Tell the source which pass comes next, where it shuffles by epoch."""
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)


class SizedResponseRows(ResponseRows):
    """The same of rows whose number is known."""

    def __len__(self) -> int:
        return len(self._rows)


def as_preference(row: Any, index: int, response: str) -> Any:
    """Return a prompt-completion or preference row as the preference of its response over itself.

    All that the rules of preference data say (boundary, end of turn, truncation, templates) then holds for
    it. A row that has no such response is returned as it is, to be refused by those rules.
    """
    if not isinstance(row, Mapping):
        return row
    ids = "_ids" if any(f"{name}_ids" in row for name in ("prompt", "completion", response)) else ""
    source = f"completion{ids}" if f"completion{ids}" in row else f"{response}{ids}"
    if source not in row:
        return row
    prompt, content = row.get(f"prompt{ids}"), row[source]
    if not ids and "prompt" not in row and source == response:
        try:  # the prompt is what the two responses share
            record = read_preference(row, index)
        except RefusedRow:
            return row
        prompt, content = record.prompt, record.responses[RESPONSES.index(response)].content
        content = [content] if record.kind == "chat" else content
    finish = row.get(f"{source.removesuffix('_ids')}_finish_reason")
    read = {f"completion{ids}", "completion_finish_reason"}
    kept = {name: value for name, value in row.items() if name not in read}
    kept |= {f"prompt{ids}": prompt, f"chosen{ids}": content, f"rejected{ids}": content}
    return kept | {f"{name}_finish_reason": finish for name in RESPONSES}


def require_objective(objective: Any, kind: Any) -> Any:
    """Return the objective, or the default of its kind for None; refuse another kind. Raises InvalidArgument."""
    if objective is None or isinstance(objective, kind):
        return kind() if objective is None else objective
    raise InvalidArgument(
        "objective",
        expected=f"an {kind.__name__}" if kind is SFT else f"a {kind.__name__}",
        got=type(objective).__name__,
        remedy="RPO and DPO are trained by RPOTrainer, SFT by SFTTrainer, BradleyTerry by RewardTrainer.",
    )
