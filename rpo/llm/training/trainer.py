"""`PreferenceTrainer`: an objective of `rpo.core` on a causal language model, on transformers' Trainer.

Shapes: B groups of a micro-batch: pairs, lists or responses alone; m responses per prompt: the K that the objective
compares, then those under pi_base, then one to another prompt where the objective asks for it. Groups of several sizes
are parted by K, n of each; the formula sees one K at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LossTerms, Objective
from rpo.llm.data import PreparedPairs
from rpo.llm.data.collate import PairCollator, PairDataset, parted_by_size
from rpo.llm.data.mismatched import with_mismatched
from rpo.llm.diagnostics import displacement_values, split_gradients
from rpo.llm.logps.scoring import ScoringPath, pad_token
from rpo.llm.models import positions_of
from rpo.llm.models.adapters import with_adapter
from rpo.llm.models.soundness import require_causal
from rpo.llm.reference import AsGiven, FrozenModel, NoReference, Reference, resolve_reference
from rpo.llm.reference.scoring_pass import CACHE_NAME, ReferencePass
from rpo.llm.training.alerts import Alerts
from rpo.llm.training.arguments import check_objects, own_config
from rpo.llm.training.callbacks import DisplacementEarlyStopping, SampledKLCallback
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.pair_trainer import PairTrainer, default_path, is_streamed
from rpo.llm.training.pi_base import BaseSlots, with_samples
from rpo.llm.training.selfcheck import check_start
from rpo.llm.training.starting_model import same_tokenizer, starting_model
from rpo.llm.training.trl_fields import refuse_arguments

OF_THE_BEST = tuple(f"displacement/{name}" for name in ("share", "chosen_change", "chosen_change_per_token"))


class PreferenceTrainer(PairTrainer):
    """Trains `model` on preference pairs or lists by `objective`; the arguments are TRL's DPOTrainer's, in its order.

    model: a causal language model, its folder or its name. ref_model: another model as reference; by
    default it is the policy as it is given, an adapter that already contributes included
    (ref_adapter_name names another of its adapters). train_dataset, eval_dataset: whatever
    `load_preferences` takes, or `prepare_pairs` returns. processing_class (or tokenizer): by default the one that lies
    where the model is from. quantization_config: for a model given by name. data_collator, compute_metrics: None only;
    the error says what there is instead. objective: any method of
    `rpo.methods` or one of your own; by default the RPO that `args` describes. Where it needs no reference, none is
    scored or kept; where its losses are of single responses, such as KTO's, rows of a prompt, a completion and its
    label will do; where they are of lists, rows of several responses with scores or ranks. peft_config: trains an
    adapter. path: how log-probabilities are computed. Raises InvalidArgument and the errors of the data; `train` raises
    SelfCheckFailed too.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        ref_model: PreTrainedModel | str | None = None,
        args: RPOConfig | None = None,
        data_collator: None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        objective: Objective | None = None,
        ref_adapter_name: str | None = None,
        path: ScoringPath | None = None,
        tokenizer: Any = None,
    ) -> None:
        refuse_arguments(data_collator=data_collator, compute_metrics=compute_metrics)
        args = own_config(args, RPOConfig, "rpo-output")
        processing_class = same_tokenizer(processing_class, tokenizer)
        check_objects(model, processing_class, peft_config, callbacks)
        resolved = args.resolve_objective(objective)
        self.needs_reference = "reference" in resolved.needs
        self.needs_mismatched = "mismatched" in resolved.needs
        anchor = resolved.anchor
        self.base = BaseSlots(
            args.base_slots(anchor.role),
            args.base_num_samples,
            others=int(self.needs_mismatched),
            divergence=anchor.divergence if anchor.weight else KL(),
        )
        self._base_column = args.base_column if "column" in self.base.sources else None
        self._ranked = args.ranked_lists
        if args.ranked_lists and not resolved.takes_lists:
            raise InvalidArgument(
                "ranked_lists",
                expected=f"False with {type(resolved).__name__}, which is about pairs",
                got=True,
                remedy="Leave it out, or use a method of lists (`rpo methods`).",
            )
        model, processing_class = starting_model(
            model, processing_class, args.model_init_kwargs, peft_config, quantization_config=quantization_config
        )
        require_causal(model)
        model = with_adapter(model, peft_config, seed=args.seed)
        streams = any(map(is_streamed, (train_dataset, eval_dataset)))
        self.precomputes = not streams if args.precompute_ref_log_probs is None else args.precompute_ref_log_probs
        # Where the policy as given is the reference and its values are computed now, no second model is kept.
        kept = not self.precomputes or args.kl_steps > 0
        self.starts_at_reference = ref_model is None and ref_adapter_name is None
        used = self.needs_reference or args.kl_steps > 0 or self.base.sampled > 0
        if not used and not self.starts_at_reference:
            raise InvalidArgument(
                "ref_model",
                expected=f"None with {type(resolved).__name__}, which has no reference",
                got=ref_adapter_name if ref_model is None else type(ref_model).__name__,
                remedy="Leave ref_model and ref_adapter_name out.",
            )
        self.reference: Reference
        if not used:
            self.reference = NoReference(model)
        elif self.starts_at_reference and not kept:
            self.reference = AsGiven(model)
        else:
            self.reference = resolve_reference(model, ref_model, ref_adapter_name=ref_adapter_name)
        self._prepared = False
        path = default_path(model, args, processing_class) if path is None else path
        super().__init__(
            model,
            args,
            resolved,
            PairCollator(path, tokens_of=self.base.tokens_of, unit_scores=resolved.shape.unit_scores),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if streams and (self.needs_mismatched or self.base.sampled):
            doing = (
                "exchanges their responses" if self.needs_mismatched else "samples responses to them before training"
            )
            raise InvalidArgument(
                "train_dataset",
                expected=f"data that are not streamed with {resolved.label}, which {doing}",
                got="a stream",
                remedy="Load the data without streaming.",
            )
        self._shift_totals: torch.Tensor | None = None
        if resolved.shape.shift is not None:
            self.carried["shift"] = 0.0  # as at pi = pi_ref
        self._require_no_stream(train_dataset, eval_dataset)
        self._add_diagnostics()

    # --- data and reference, before training ------------------------------------------------------

    @property
    def ref_model(self) -> Any:
        """The model that is the reference, where it is one of its own; else None."""
        return self.reference.model if isinstance(self.reference, FrozenModel) else None

    def _require_no_stream(self, *data: Any) -> None:
        if self.args.precompute_ref_log_probs and self.needs_reference and any(map(is_streamed, data)):
            raise InvalidArgument(
                "precompute_ref_log_probs",
                expected="False for a streaming dataset",
                got="True, which is not supported with IterableDataset",
                remedy="Set it to False (a reference model is kept), or load the data without streaming.",
            )

    @property
    def base_column(self) -> str | None:
        """The column of responses under pi_base, where the objective asks for one."""
        return self._base_column

    @property
    def reads(self) -> dict[str, bool]:
        """Responses alone and lists, where the objective takes them; scores, where it asks for them."""
        taken = {"unpaired": self.objective.takes_unpaired, "lists": self.takes_lists}
        return taken | {"scores": "scores" in self.objective.needs, "ranked": self._ranked}

    @property
    def takes_lists(self) -> bool:
        """Whether the objective compares any number of responses."""
        return bool(self.objective.takes_lists)

    def _prepare(self, name: str, data: Any, args: Any) -> Any:
        prepared = super()._prepare(name, data, args)
        if isinstance(prepared, PairDataset) and len(prepared):
            self._require_fields(prepared, args)
        return prepared

    def _require_fields(self, data: PairDataset, args: Any) -> None:
        """Refuse groups without what the objective reads, and settings that responses alone give no sense to."""
        name, first = type(self.objective).__name__, data.pairs[0]
        if "scores" in self.objective.needs and not first.scores:
            remedy = "Pass rows with score_chosen and score_rejected, or prepare_pairs(..., scores=True)."
            raise InvalidArgument("train_dataset", expected=f"scores, which {name} reads", got="none", remedy=remedy)
        if first.scores and not self.takes_lists and any(len({*pair.scores}) < len(pair.own) for pair in data.pairs):
            remedy = "Make pairs of them by rpo.llm.data.binarize, which leaves ties out."
            raise InvalidArgument("train_dataset", expected=f"no ties with {name}", got="tied scores", remedy=remedy)
        if 1 not in data.sizes:
            if not self.objective.shape.pairs:
                raise InvalidArgument(
                    "train_dataset", expected=f"single responses with a score, which {name} is about", got="pairs",
                    remedy="Pass rows of prompt, completion and score; rpo.llm.data.singles makes them of lists.",
                )  # fmt: skip
            return
        if not self.objective.takes_unpaired:
            remedy = "Pass rows of prompt, chosen and rejected, or use rpo.KTO or rpo.BCO."
            raise InvalidArgument(
                "train_dataset", expected=f"pairs, which {name} compares", got="responses alone", remedy=remedy
            )
        for setting in ("displacement_threshold", "gradient_diagnostics_steps"):
            if getattr(args, setting):
                raise InvalidArgument(
                    setting, expected="none with responses alone", got=getattr(args, setting),
                    remedy="It is about pairs; leave it out.",
                )  # fmt: skip

    def _evaluations(self) -> list[Any]:
        return list(self.eval_dataset.values()) if isinstance(self.eval_dataset, dict) else [self.eval_dataset]

    def before_training(self, *, resuming: bool) -> None:
        """Check the data; sample pi_base and score the reference while the policy is as it was given."""
        super().before_training(resuming=resuming)
        self.reference.fingerprint()  # before anything is sharded: checkpoints name it
        for data in (self.train_dataset, *self._evaluations()):
            self._score(data)
        self._prepare_reference()
        self._digest = None  # samples of pi_base may have joined

    def _prepare_reference(self) -> None:
        if not self._prepared:
            self.reference.prepare(self.accelerator)
            self._prepared = True

    def _score(self, data: Any) -> None:
        """Fill in, once, what is known of a data set before training."""
        args = self.args
        if not isinstance(data, PairDataset) or data.scored:
            return
        if self._reference_is_gone:
            raise InvalidArgument(
                "eval_dataset",
                expected="data whose reference values were computed before training",
                got="new data, and no reference model was kept",
                remedy="Pass it to the trainer at first, or set precompute_ref_log_probs=False.",
            )
        data.scored = True
        given = None if args.ref_logps_cache is None else Path(args.ref_logps_cache)
        scorer = ReferencePass(
            self.accelerator,
            self.path,
            self.tokenizer,
            batch_tokens=args.precompute_ref_batch_tokens,
            show=False if args.disable_tqdm else None,
            say=print if args.log != "none" and self.is_world_process_zero() else len,
        )
        if self.base.sampled:
            drawn = scorer.samples(
                self.reference,
                data.pairs,
                num_samples=args.base_num_samples,
                max_new_tokens=args.base_max_new_tokens,
                seed=args.seed,
            )
            data.pairs = PreparedPairs(with_samples(data.pairs, drawn))
        if self.needs_mismatched:
            limits = [limit for limit in (args.max_length, positions_of(self.model)) if limit is not None]
            data.pairs = PreparedPairs(with_mismatched(data.pairs, min(limits, default=None)))
        if self.precomputes and self.needs_reference:
            # A file of our own from an earlier run in this folder gives way; one that was named does not.
            file = Path(args.output_dir) / CACHE_NAME if given is None else given
            strict = given is not None
            data.known["reference_logps"] = scorer.logps(
                self.reference,
                data.pairs,
                file=file,
                strict=strict,
                mismatched=self.needs_mismatched,
                whole=self.base.penalised,
            )
        # Where the policy started is known from the reference, or scored where displacement is to be measured.
        separate = self.needs_reference and not self.starts_at_reference
        watched = not self.needs_reference and args.displacement_threshold is not None
        if (separate or watched) and self.state.global_step == 0:
            data.known["start_logps"] = scorer.logps(AsGiven(self.model), data.pairs)

    @property
    def _reference_is_gone(self) -> bool:
        """Whether the reference was the policy itself, which training has changed since."""
        return isinstance(self.reference, AsGiven) and self.state.global_step > 0

    def evaluation_data(self, given: Any) -> Any:
        """Return a data set to evaluate on, scored under the reference."""
        self._require_no_stream(given)
        data = super().evaluation_data(given)
        for one in self._evaluations() if data is None or isinstance(data, (str, dict)) else [data]:
            self._score(one)
        self._prepare_reference()
        return data

    def _add_diagnostics(self) -> None:
        args, data = self.args, self.eval_dataset if isinstance(self.eval_dataset, PairDataset) else self.train_dataset
        if args.displacement_threshold is not None:
            self.add_callback(DisplacementEarlyStopping(args.displacement_threshold, args.displacement_patience))
        if "trackio" in args.report_to:
            limit = args.displacement_threshold
            self.add_callback(Alerts() if limit is None else Alerts(displacement=limit))
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

    # --- the loss --------------------------------------------------------------------------------

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the responses' summed log-probabilities, (B, m), nats; their likeness, if read, joins the inputs."""
        if "likeness" not in self.objective.needs:
            return self.path.logps(model, inputs)
        collisions: list[torch.Tensor] = []
        logps = self.path.logps(model, inputs, collisions)
        inputs["likeness"] = (logps.detach() - collisions[0]) / inputs["lengths"].clamp(min=1)
        return logps

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the objective's value and its terms; what is known of each group goes to the meter (`_meter`)."""
        fields = {"policy": scores, "weights": weights, "counted": inputs["weights"]}
        fields |= {
            name: inputs[name] for name in ("lengths", "labels", "scores", "start_logps", "likeness") if name in inputs
        }
        if self.needs_reference:
            cached = inputs.get("reference_logps")
            fields["reference"] = self._live_reference(inputs) if cached is None else cached.to(scores)
        found: list[tuple[torch.Tensor, LossTerms, Columns, torch.Tensor]] = []
        # The weights of all parts sum to one, so that their losses add up to the mean over the groups.
        for k, part in parted_by_size(fields, inputs["sizes"].tolist()):
            columns = self._columns(part, k)
            loss, terms = self.objective.loss(columns, self._base_logps(part, k, totals), part["weights"])
            detached = columns.with_logps(tuple(column.detach() for column in columns.logps))
            found.append((loss, terms, detached, part["weights"]))
            if self.model.training:
                self._add_to_shift(detached, part)
            self._meter(detached, part)
        terms = LossTerms(*map(sum, zip(*(each for _, each, _, _ in found), strict=True)))
        if self.model.training:
            self._at_training_step(terms, found)
        metrics = {"loss/preference": terms.preference}
        if "labels" not in inputs:
            metrics["loss/sft"] = terms.sft
        if "shift" in self.carried:
            shift = self.objective.link.beta * self.carried["shift"]
            metrics["rewards/shift"] = terms.preference.new_tensor(shift)
        return sum(loss for loss, *_ in found), metrics

    def _columns(self, part: dict[str, torch.Tensor], k: int) -> Columns:
        """Return what the objective reads of groups of k responses: k columns of each field, each (n,)."""
        reference, given, labels, likely = (part.get(name) for name in ("reference", "scores", "labels", "likeness"))
        return Columns(
            logps=part["policy"][:, :k].unbind(1),
            reference=None if reference is None else reference[:, :k].unbind(1),
            lengths=part["lengths"][:, :k].unbind(1),
            scores=None if given is None else given.to(part["policy"]).unbind(1),
            labels=None if labels is None else labels.to(part["policy"]),
            shift=self.carried.get("shift"),
            likeness=None if likely is None else likely[:, :k].unbind(1),
        )

    def _base_logps(self, part: dict[str, torch.Tensor], k: int, totals: torch.Tensor) -> torch.Tensor | None:
        """Return what the objective's anchor is of, (n,); None of responses alone with a label."""
        if "labels" in part:
            return None
        if "reference" in part and self.base.penalised:
            return self.base.penalty(part["policy"], part["reference"], k)
        mean_length = totals[1] / totals[0]
        return self.base.reduce(part["policy"], part["lengths"], self.objective.anchor.reduction, mean_length, k)

    # --- what one update hands to the next -----------------------------------------------------------

    def _add_to_shift(self, columns: Columns, part: dict[str, torch.Tensor]) -> None:
        """Add a part of a micro-batch to the sums that the next update's shift is made of."""
        shift, link = self.objective.shape.shift, self.objective.link
        if shift is None:
            return
        mismatched = None
        if self.needs_mismatched:
            last = [None if field is None else (field[:, -1],) for field in (part.get("reference"), part["lengths"])]
            (mismatched,) = link(Columns(logps=(part["policy"][:, -1].detach(),), reference=last[0], lengths=last[1]))
        totals = torch.stack(shift.totals(link(columns), columns.labels, mismatched, part["counted"]))
        self._shift_totals = totals if self._shift_totals is None else self._shift_totals + totals

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        shift = self.objective.shape.shift
        if shift is not None and self._shift_totals is not None:
            totals = self.accelerator.reduce(self._shift_totals, reduction="sum").tolist()
            self.carried["shift"], self._shift_totals = shift.updated(self.carried["shift"], totals), None
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _live_reference(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self._reference_is_gone:
            raise InvalidArgument(
                "eval_dataset",
                expected="data whose reference values were computed before training",
                got="data without, and no reference model was kept",
                remedy="Pass it to the trainer at first, or set precompute_ref_log_probs=False.",
            )
        with torch.no_grad(), self.accelerator.autocast():
            return self.reference.logps(self.path, inputs)

    # --- what is logged and checked ----------------------------------------------------------------

    def _meter(self, columns: Columns, part: dict[str, torch.Tensor]) -> None:
        """Add what TRL logs of n groups, with displacement since the start, to the meter.

        Of a list chosen is the best response and rejected the worst; margins are the mean between neighbours, and
        accuracies the share of its ordered pairs that the rewards order alike, those of equal scores left out.
        """
        meter = self.train_meter if self.model.training else self.eval_meter
        rewards, counted = self.objective.rewards(columns), part["counted"]
        if columns.labels is not None:
            for side, weights in (("chosen", columns.labels), ("rejected", 1.0 - columns.labels)):
                meter.add(_of_response(side, columns, rewards, 0), counted * weights)
            return
        if len(rewards) == 1:
            meter.add(_of_response("response", columns, rewards, 0), counted)
            return
        metrics = _of_response("chosen", columns, rewards, 0) | _of_response("rejected", columns, rewards, -1)
        metrics["rewards/margins"] = (rewards[0] - rewards[-1]) / (len(rewards) - 1)
        right, ordered = _ordered_alike(rewards, columns.scores)
        meter.add({"rewards/accuracies": right / ordered.clamp(min=1)}, counted * (ordered > 0))
        start = part["start_logps"].to(columns.logps[0]).unbind(1) if "start_logps" in part else None
        if start is None and self.starts_at_reference:
            start = columns.reference
        if start is not None:
            ends = [(columns.logps[k] - start[k], (columns.lengths or ())[k]) for k in (0, len(rewards) - 1)]
            # In 16 bits the same model gives other values in another batch.
            rounding = 5e-3 if self._half_precision else 1e-6
            (chosen, lengths), (rejected, others) = ends
            moved = displacement_values(chosen, rejected, lengths, others, rounding=rounding)
            # Quadrants are of two. With lists what is said of the best response, whatever sizes a process holds.
            metrics |= {name: moved[name] for name in OF_THE_BEST} if self.takes_lists else moved
        meter.add(metrics, counted)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Return what is logged: of responses alone also the difference between the two means of rewards."""
        if {"rewards/chosen", "rewards/rejected"} <= set(means) and "rewards/margins" not in means:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def _at_training_step(
        self, terms: LossTerms, parts: list[tuple[torch.Tensor, LossTerms, Columns, torch.Tensor]]
    ) -> None:
        """Check the start, before the first update; measure the two gradients, where it is their turn."""
        random = not self.args.disable_dropout or self.args.neftune_noise_alpha is not None
        if not self._checked and self.needs_reference and self.starts_at_reference and not random:
            checked = [self._check_start(columns, part, weights) for _, part, columns, weights in parts]
            for name, add in (("start_difference_per_token", max), ("start_preference_loss", sum)):
                self.self_check_results[name] = add(one[name] for one in checked)
        every = self.args.gradient_diagnostics_steps
        if every and self.state.global_step % every == 0 and len(self._rows) == 1:
            scaler = getattr(self.accelerator, "scaler", None)
            found = split_gradients(
                self.objective.preference_weight * terms.preference,
                terms.sft,
                self.model.parameters(),
                sft_weight=self.objective.anchor.weight,
                scale=1.0 if scaler is None else scaler.get_scale(),
            )
            one = torch.ones(1, device=terms.preference.device)
            self.train_meter.add({name: value * one for name, value in found.items()}, one)

    def _check_start(self, columns: Columns, terms: LossTerms, weights: torch.Tensor) -> dict[str, float]:
        """Hold the first loss to the objective's own value at pi = pi_ref, within what rounding can move it."""
        reference: tuple[torch.Tensor, ...] = columns.reference or ()
        expected = (weights * self.objective.at_reference(columns)).sum().item()
        at_reference = columns.with_logps(reference).map(lambda column: column.double().cpu().numpy())
        _, slope, _ = self.objective.derivatives(at_reference)
        return check_start(
            torch.stack(columns.logps, 1),
            torch.stack(reference, 1),
            torch.stack(tuple(columns.lengths or ()), 1),
            terms.preference.item(),
            expected=expected,
            slope=float(np.abs(slope).sum(0).max()),
            half_precision=self._half_precision,
        )

    @property
    def _half_precision(self) -> bool:
        return self.accelerator.mixed_precision != "no" or self.model.dtype.itemsize < 4

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the policy, without the reference adapter that may sit beside its own."""
        with self.reference.hidden():
            super().save_model(*args, **kwargs)

    def run_identity(self) -> dict[str, Any]:
        """Return objective, data, reference and pi_base: what a checkpoint can only be continued with."""
        return super().run_identity() | {"reference": self.reference.fingerprint(), "base": self.base.sources}


def _of_response(name: str, columns: Columns, rewards: tuple[torch.Tensor, ...], k: int) -> dict[str, torch.Tensor]:
    """Return the reward of each group's response k, and its log-probability as a sum and a token."""
    logps = columns.logps[k]
    per_token = logps / (columns.lengths or ())[k]
    return {f"rewards/{name}": rewards[k], f"logps/{name}": logps, f"logps/{name}_per_token": per_token}


def _ordered_alike(
    rewards: tuple[torch.Tensor, ...], scores: tuple[torch.Tensor, ...] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many pairs of each group the rewards order as it does, (n,) float64, and how many are no ties."""
    better, worse = torch.triu_indices(len(rewards), len(rewards), 1, device=rewards[0].device)
    values = torch.stack(rewards, 1)
    right = values[:, better] > values[:, worse]
    ordered = torch.ones_like(right)
    if scores is not None:
        known = torch.stack(tuple(scores), 1)
        ordered = known[:, better] > known[:, worse]
    return (right & ordered).sum(1).double(), ordered.sum(1)


class RPOTrainer(PreferenceTrainer):
    """`PreferenceTrainer` by the name of its default objective: the RPO of `args.beta` and `args.eta`."""
