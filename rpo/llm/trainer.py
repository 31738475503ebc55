"""`RPOTrainer`: the objective of `rpo.core` on a causal language model, on transformers' Trainer.

Shapes: B pairs of a micro-batch; m responses a prompt: chosen, rejected, then those under pi_base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LossTerms, Objective
from rpo.llm.base_trainer import SafeTrainer
from rpo.llm.callbacks import DisplacementEarlyStopping, SampledKLCallback
from rpo.llm.collate import CHOSEN, REJECTED, PairCollator, PairDataset
from rpo.llm.config import RPOConfig
from rpo.llm.data import PairStream, PreparedPairs, load_preferences, prepare_pairs, stream_pairs
from rpo.llm.diagnostics import displacement_values, split_gradients
from rpo.llm.models import check_embeddings, disable_dropout, load_model, load_tokenizer
from rpo.llm.policy_base import BaseSlots, with_samples
from rpo.llm.reference import AsGiven, Reference, resolve_reference
from rpo.llm.reference_pass import CACHE_NAME, ReferencePass
from rpo.llm.scoring import PaddedPath, Path
from rpo.llm.selfcheck import check_data, check_gradient, check_start


class RPOTrainer(SafeTrainer):
    """Trains `model` on preference pairs by `objective`; the arguments are those of TRL's DPOTrainer.

    model: a causal language model, its folder or its name. ref_model: another model as reference; by
    default it is the policy as it is given, an adapter that already contributes included
    (ref_adapter_name names another of its adapters). train_dataset, eval_dataset: whatever
    `load_preferences` takes, or `prepare_pairs` returns. processing_class: the tokenizer. objective: an RPO or DPO,
    unless `args` holds beta and eta. peft_config: trains an adapter. path: how log-probabilities are
    computed. Raises InvalidArgument and the errors of the data; `train` raises SelfCheckFailed too.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        ref_model: PreTrainedModel | str | None = None,
        args: RPOConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: Objective | None = None,
        peft_config: Any = None,
        ref_adapter_name: str | None = None,
        path: Path | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = RPOConfig(output_dir="rpo-output") if args is None else args
        self.objective = args.resolve_objective(objective)
        self.base = BaseSlots(args.base_slots(self.objective.base), args.base_num_samples)
        if isinstance(model, (str, FilePath)):
            processing_class = load_tokenizer(model) if processing_class is None else processing_class
            model = load_model(model, **dict(args.model_init_kwargs or {}))
        model = with_adapter(model, peft_config, args)
        if args.disable_dropout:
            disable_dropout(model)
        if processing_class is not None:
            check_embeddings(model, processing_class)
        self.tokenizer = processing_class
        self.path = PaddedPath(pad_token(processing_class)) if path is None else path
        # Where the policy as given is the reference and its values are computed now, no second model is kept.
        live = not args.precompute_ref_log_probs or args.kl_steps > 0
        given = ref_model is None and ref_adapter_name is None
        self.reference: Reference = (
            AsGiven(model)
            if given and not live
            else resolve_reference(model, ref_model, ref_adapter_name=ref_adapter_name)
        )
        self.starts_at_reference = given
        self.data_reports: dict[str, dict[str, Any]] = {}
        self.self_check_results: dict[str, Any] = {}
        train = self._prepare("train", train_dataset, args)
        if isinstance(eval_dataset, Mapping) and not hasattr(eval_dataset, "column_names"):
            evaluation: Any = {name: self._prepare(name, data, args) for name, data in eval_dataset.items()}
        else:
            evaluation = self._prepare("eval", eval_dataset, args)
        if isinstance(train, PairStream):
            require_live_reference(args)
            # Batches hold rows and pairs, which cannot be cut by their first dimension: every process reads for itself.
            args.accelerator_config.dispatch_batches = False
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(self.path),
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._scored = False
        self._checked = not args.self_check
        self._add_diagnostics()

    # --- data and reference, before training ------------------------------------------------------

    def _prepare(self, name: str, data: Any, args: RPOConfig) -> Any:
        """Return tokenised pairs (a list, or a stream), and keep the report on them."""
        if data is None or isinstance(data, PairStream):
            return data
        options = {
            "max_length": args.max_length,
            "max_prompt_length": args.max_prompt_length,
            "truncation_mode": args.truncation_mode,
            "on_refused": args.on_refused,
            "base_column": args.base_column if "column" in self.base.sources else None,
            "weight_column": args.weight_column,
            "chat_template": args.chat_template,
        }
        if not isinstance(data, PreparedPairs):
            rows = load_preferences(data)
            if not hasattr(rows, "__len__"):
                return stream_pairs(rows, self.tokenizer, **options)
            data = prepare_pairs(rows, self.tokenizer, **options)
        self.data_reports[name] = data.report.to_dict()
        return PairDataset(data)

    def before_training(self, *, resuming: bool) -> None:
        """Sample pi_base and score the reference while the policy is as it was given; check the data."""
        if self.args.self_check and not resuming and isinstance(self.train_dataset, PairDataset):
            report = self.data_reports["train"]
            self.self_check_results |= check_data(self.train_dataset.pairs, report, self.eos_token_ids)
        self._checked = self._checked or resuming
        self._score_reference(strict=resuming)

    def _score_reference(self, *, strict: bool) -> None:
        if self._scored:
            return
        self._scored = True
        evaluations = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for data in (self.train_dataset, *evaluations):
            if isinstance(data, PairDataset):
                self._score(data, strict=strict)
        self.reference.prepare(self.accelerator)

    def _score(self, data: PairDataset, *, strict: bool) -> None:
        """Fill in what is known of a data set before training."""
        args = self.args
        given = None if args.ref_logps_cache is None else FilePath(args.ref_logps_cache)
        scorer = ReferencePass(
            self.accelerator,
            self.path,
            self.tokenizer,
            batch_tokens=args.precompute_ref_batch_tokens,
            show=False if args.disable_tqdm else None,
        )
        if "reference" in self.base.sources:
            drawn = scorer.samples(
                self.reference,
                data.pairs,
                num_samples=args.base_num_samples,
                max_new_tokens=args.base_max_new_tokens,
                seed=args.seed,
            )
            data.pairs = with_samples(data.pairs, drawn)
        if args.precompute_ref_log_probs:
            # A file of our own from an earlier run in this folder gives way; one that was named does not.
            file = FilePath(args.output_dir) / CACHE_NAME if given is None else given
            strict = strict or given is not None
            data.known["reference_logps"] = scorer.logps(self.reference, data.pairs, file=file, strict=strict)
        if not self.starts_at_reference and self.state.global_step == 0:
            data.known["start_logps"] = scorer.logps(AsGiven(self.model), data.pairs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset`, which may be of any kind `train_dataset` may be, or on the one given at first."""
        self._score_reference(strict=False)
        if eval_dataset is not None and not isinstance(eval_dataset, (str, dict, PairDataset)):
            if isinstance(self.reference, AsGiven) and self.state.global_step > 0:
                raise InvalidArgument(
                    "eval_dataset",
                    expected="data whose reference values were computed before training",
                    got="new data, and no reference model was kept",
                    remedy="Pass it to the trainer at first, or set precompute_ref_log_probs=False.",
                )
            eval_dataset = self._prepare("evaluate", eval_dataset, self.args)
            self._score(eval_dataset, strict=False)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _add_diagnostics(self) -> None:
        args, data = self.args, self.eval_dataset if isinstance(self.eval_dataset, PairDataset) else self.train_dataset
        if args.displacement_threshold is not None:
            self.add_callback(DisplacementEarlyStopping(args.displacement_threshold, args.displacement_patience))
        if args.kl_steps == 0:
            return
        if not isinstance(data, PairDataset) or not self.eos_token_ids:
            raise InvalidArgument(
                "kl_steps",
                expected="0 without a tokenizer, or with streamed data",
                got=args.kl_steps,
                remedy="Pass processing_class, and an eval_dataset that is not streamed.",
            )
        self.add_callback(
            SampledKLCallback(
                self,
                [data.pairs[k].prompt_ids for k in range(min(args.kl_prompts, len(data)))],
                every=args.kl_steps,
                eos_token_id=sorted(self.eos_token_ids),
                pad_token_id=pad_token(self.tokenizer),
                seed=args.seed,
                max_new_tokens=args.kl_max_new_tokens,
            )
        )

    @property
    def eos_token_ids(self) -> set[int]:
        """Tokens that end a turn: the tokenizer's, and those the model stops at when it generates."""
        config = getattr(self.model, "generation_config", None)
        ids = [getattr(self.tokenizer, "eos_token_id", None)]
        stop = getattr(config, "eos_token_id", None)
        ids += list(stop) if isinstance(stop, (list, tuple)) else [stop]
        return {token for token in ids if token is not None}

    # --- the loss --------------------------------------------------------------------------------

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the micro-batch's total weight, and the weighted number of pi_base's tokens: (2,)."""
        weights = batch["weights"]
        return torch.stack([weights.sum(), (weights * self.base.mean_length(batch["lengths"])).sum()])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's share of the global batch's mean loss (of its own, when evaluating)."""
        logps = self.path.logps(model, inputs)
        self.require_finite(logps, inputs["rows"])
        reference = inputs.get("reference_logps")
        reference = self._live_reference(inputs) if reference is None else reference[:, :2].to(logps)
        totals = self.batch_totals(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, terms = self._objective(logps, reference, inputs, totals)
        self._record(logps.detach(), reference, loss, terms, inputs)
        if not self._checked and self.model.training:
            self._check_start(logps, reference, inputs, terms)
        every = self.args.gradient_diagnostics_steps
        if every and self.model.training and self.state.global_step % every == 0 and len(self._rows) == 1:
            self._split_gradients(terms, inputs["weights"])
        if num_items_in_batch is not None:
            # Processes average their gradients, so each one's share counts as many times as there are processes.
            share = inputs["weights"].sum() / totals[0] * self.accelerator.num_processes
            loss = loss * share.to(loss)
        return (loss, {"logps": logps}) if return_outputs else loss

    def _objective(
        self, logps: torch.Tensor, reference: torch.Tensor, inputs: dict[str, torch.Tensor], totals: torch.Tensor
    ) -> tuple[torch.Tensor, LossTerms]:
        mean_length = totals[1] / totals[0]
        base = self.base.reduce(logps, inputs["lengths"], self.objective.sft_reduction, mean_length)
        weights = (inputs["weights"] / inputs["weights"].sum()).to(logps)
        return self.objective(  # type: ignore[operator]
            logps[:, CHOSEN],
            logps[:, REJECTED],
            reference[:, CHOSEN],
            reference[:, REJECTED],
            base_logps=base.logps,
            base_lengths=base.lengths,
            weights=weights,
        )

    def _live_reference(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            return self.reference.logps(self.path, inputs)[:, :2]

    # --- what is logged and checked ----------------------------------------------------------------

    def _record(
        self,
        logps: torch.Tensor,
        reference: torch.Tensor,
        loss: torch.Tensor,
        terms: LossTerms,
        inputs: dict[str, torch.Tensor],
    ) -> None:
        lengths = inputs["lengths"][:, :2]
        rewards = self.objective.beta * (logps[:, :2] - reference)
        start = inputs.get("start_logps", reference if self.starts_at_reference else None)
        values = {
            "loss/preference": terms.preference,
            "loss/sft": terms.sft,
            "rewards/chosen": rewards[:, CHOSEN],
            "rewards/rejected": rewards[:, REJECTED],
            "rewards/margins": rewards[:, CHOSEN] - rewards[:, REJECTED],
            "rewards/accuracies": (rewards[:, CHOSEN] > rewards[:, REJECTED]).double(),
            "logps/chosen": logps[:, CHOSEN],
            "logps/rejected": logps[:, REJECTED],
            "logps/chosen_per_token": logps[:, CHOSEN] / lengths[:, CHOSEN],
            "logps/rejected_per_token": logps[:, REJECTED] / lengths[:, REJECTED],
        }
        if start is not None:
            change = logps[:, :2] - start.to(logps)
            values |= displacement_values(*change.unbind(1), *lengths.unbind(1))
        if not self.model.training:
            values["loss"] = loss  # while training, Trainer logs its own
        meter = self.train_meter if self.model.training else self.eval_meter
        meter.add(values, inputs["weights"])

    def _check_start(
        self, logps: torch.Tensor, reference: torch.Tensor, inputs: dict[str, torch.Tensor], terms: LossTerms
    ) -> None:
        if not self.starts_at_reference:
            return
        half = self.accelerator.mixed_precision != "no" or any(p.dtype.itemsize < 4 for p in self.model.parameters())
        self.self_check_results |= check_start(
            logps.detach()[:, :2],
            reference,
            inputs["lengths"][:, :2],
            terms.preference.item(),
            half_precision=half,
        )

    def on_gradient_norm(self, norm: float) -> None:
        """Stop at a gradient that is not finite; before the first update, at one that is zero too."""
        if not self._checked:
            self._checked = True
            self.self_check_results |= check_gradient(norm)
        super().on_gradient_norm(norm)

    def _split_gradients(self, terms: LossTerms, weights: torch.Tensor) -> None:
        found = split_gradients(
            terms.preference, terms.sft, self.model.parameters(), sft_weight=self.objective.sft_weight
        )
        device = weights.device
        values = {name: torch.tensor(value, device=device) for name, value in found.items()}
        self.train_meter.add(values, torch.ones(1, device=device))

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the policy, without the reference adapter that may sit beside its own."""
        with self.reference.hidden():
            super().save_model(*args, **kwargs)

    def run_identity(self) -> dict[str, Any]:
        """Return objective, reference and data: what a checkpoint can only be continued with."""
        return {
            "objective": self.objective.to_dict(),
            "base": self.base.sources,
            "reference": self.reference.describe(),
            "data": data_digest(self.train_dataset),
        }


def with_adapter(model: Any, peft_config: Any, args: RPOConfig) -> Any:
    """Return the model with a fresh adapter of `peft_config`, or as it is for None."""
    if peft_config is None:
        return model
    from rpo.llm.models import require_peft

    peft = require_peft()
    if isinstance(model, peft.PeftModel):
        raise InvalidArgument(
            "peft_config",
            expected="None for a model that already has an adapter",
            got=type(peft_config).__name__,
            remedy="Leave it out to train that adapter, or merge it first (merge_and_unload).",
        )
    if isinstance(peft_config, Mapping):
        peft_config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", **peft_config})
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, peft_config)


def pad_token(tokenizer: Any) -> int:
    """Return the id that fills padded rows; it is masked, so any token will do where there is no tokenizer."""
    return 0 if tokenizer is None or tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def require_live_reference(args: RPOConfig) -> None:
    """Refuse to compute reference values beforehand for a stream, whose end is not known."""
    if args.precompute_ref_log_probs:
        raise InvalidArgument(
            "precompute_ref_log_probs",
            expected="False for a streaming dataset",
            got=True,
            remedy="Set it to False (a reference model is kept), or load the data without streaming.",
        )


def data_digest(data: Any) -> str:
    """Return a digest of the pairs' tokens and weights, in order; "streaming" where they are not at hand."""
    if not isinstance(data, PairDataset):
        return "streaming"
    digest = hashlib.blake2b(digest_size=16)
    for pair in data.pairs:
        parts: Sequence[Any] = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, *pair.base_ids)
        digest.update(np.asarray([len(part) for part in parts] + [t for part in parts for t in part]).tobytes())
        digest.update(np.float64(pair.weight).tobytes())
    return digest.hexdigest()

