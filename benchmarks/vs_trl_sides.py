"""The two sides of the comparison: the paths of rpo.llm, and TRL's DPOTrainer, over one set of weights."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from vs_trl_machine import clock
from vs_trl_workload import Batch, make_model, make_reference, twin

from rpo.core.conversions import trl_batch_weight
from rpo.core.objectives import RPO
from rpo.llm.data.collate import group_of
from rpo.llm.logps.packing import choose_path
from rpo.llm.logps.scoring import ScoringPath

OBJECTIVE = RPO(beta=0.1, eta=0.05)


class Side:
    """A policy, its reference and one optimizer, and the step every variant takes with them."""

    def __init__(self, arguments: argparse.Namespace, model: Any, reference: Any, optimizer: Any) -> None:
        self.device, self.model, self.reference, self.optimizer = arguments.device, model, reference, optimizer
        self.dtype = getattr(torch, arguments.dtype)

    def autocast(self) -> Any:
        """Return the context both sides compute in."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, loss: Callable[[], torch.Tensor]) -> tuple[float, float]:
        """Return the seconds and the loss of one step: `loss()` collates and runs forward."""
        self.optimizer.zero_grad(set_to_none=True)
        start = clock(self.device)
        value = loss()
        value.backward()
        self.optimizer.step()
        return clock(self.device) - start, value.item()


class Ours(Side):
    """The paths of rpo.llm, reference live or cached."""

    def __init__(self, path: str, *rest: Any, cached: bool, pad_token_id: int) -> None:
        super().__init__(*rest)
        self.path: ScoringPath = choose_path(self.model, pad_token_id, path)
        self.cached = cached
        self.known: dict[int, torch.Tensor] = {}

    def reference_logps(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return log-probabilities under the reference, (B, 2)."""
        with torch.no_grad(), self.autocast():
            return self.path.logps(self.reference, inputs)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the batch on the device."""
        return {name: t.to(self.device) for name, t in self.path.collate([group_of(pair) for pair in batch]).items()}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Score the reference before anything is timed, if it is cached."""
        if self.cached:
            for batch in batches:
                for pair, logps in zip(batch, self.reference_logps(self.inputs(batch)), strict=True):
                    self.known[pair.row] = logps

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Take one step."""

        def loss() -> torch.Tensor:
            inputs = self.inputs(batch)
            fixed = torch.stack([self.known[p.row] for p in batch]) if self.cached else self.reference_logps(inputs)
            with self.autocast():
                logps = self.path.logps(self.model, inputs)
            return OBJECTIVE(*logps.unbind(1), *fixed.unbind(1))[0]

        return self.step(loss)

    def fed(self, batch: Batch) -> int:
        """Return the tokens the policy is fed, padding included."""
        return self.inputs(batch)["input_ids"].numel()


class TRL(Side):
    """TRL's DPOTrainer, sigmoid and sft losses; patched: its head scores completion positions on a CPU too."""

    def __init__(self, trainer: Any, *rest: Any, cached: bool, patched: bool) -> None:
        super().__init__(*rest)
        self.trainer, self.cached, self.patched = trainer, cached, patched
        self.known: dict[int, tuple[float, float]] = {}

    @contextlib.contextmanager
    def as_configured(self) -> Iterator[None]:
        """Set the trainer, shared by the variants, for this one."""
        self.trainer.precompute_ref_logps = self.cached
        with contextlib.ExitStack() as stack:
            if self.patched:
                stack.enter_context(mock.patch("trl.trainer.utils._use_triton", return_value=True))
            stack.enter_context(self.autocast())
            yield

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the batch as TRL's collator makes it, on the device."""
        rows: list[dict[str, Any]] = [
            {"prompt_ids": [*p.prompt_ids], "chosen_ids": [*p.chosen_ids], "rejected_ids": [*p.rejected_ids]}
            for p in batch
        ]
        for row, pair in zip(rows, batch, strict=True):
            if pair.row in self.known:
                row["ref_chosen_logps"], row["ref_rejected_logps"] = self.known[pair.row]
        return {name: tensor.to(self.device) for name, tensor in self.trainer.data_collator(rows).items()}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Score the reference before anything is timed, if it is cached."""
        if self.cached:
            for batch in batches:
                with self.as_configured():
                    scored = self.trainer.ref_model or self.trainer.model  # whose adapter the trainer turns off
                    logps = self.trainer.compute_ref_log_probs(scored, self.inputs(batch))
                pairs = zip(*(side.tolist() for side in logps), strict=True)
                self.known |= dict(zip((pair.row for pair in batch), pairs, strict=True))

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Take one step."""
        weight = trl_batch_weight(OBJECTIVE, [len(pair.chosen_ids) for pair in batch])
        self.trainer.loss_weights = [1.0, weight]

        def loss() -> torch.Tensor:
            inputs = self.inputs(batch)
            with self.as_configured():
                return self.trainer.compute_loss(self.model, inputs)

        return self.step(loss)

    def fed(self, batch: Batch) -> int:
        """Return the tokens the policy is fed, padding included."""
        return self.inputs(batch)["input_ids"].numel()


def make_trl(arguments: argparse.Namespace, model: Any, reference: Any, tokenizer: Any, folder: str) -> Any:
    """Return a DPOTrainer around the models, made with one row of text: batches are given as tokens."""
    import datasets
    import trl

    datasets.disable_progress_bars()
    config = trl.DPOConfig(
        output_dir=folder,
        beta=OBJECTIVE.beta,
        loss_type=["sigmoid", "sft"],
        max_length=None,
        gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=arguments.device == "cpu",
        bf16=False,  # autocast is ours, the same on both sides
        report_to=[],
    )
    row = {"prompt": "w ", "chosen": "w w", "rejected": "w"}
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=datasets.Dataset.from_list([row]),
        processing_class=tokenizer,
    )


OURS = {  # path, cached
    f"ours, {path}, {kind}": (path, kind == "cached")
    for kind in ("live", "cached")
    for path in ("padded", "packed", "shared")
}
THEIRS = {  # cached, patched, batches grouped by length
    "TRL default": (False, False, False),
    "TRL cached": (True, False, False),
    "TRL cached, grouped": (True, False, True),
    "TRL default, patched head": (False, True, False),
    "TRL cached, patched head": (True, True, False),
}


def names(arguments: argparse.Namespace) -> list[str]:
    """Return the variants; on CUDA TRL's head needs no patch."""
    possible = [name for name in (*THEIRS, *OURS) if arguments.device == "cpu" or "patched" not in name]
    return [name for name in possible if name in arguments.variants] if arguments.variants else possible


def make_variants(arguments: argparse.Namespace, wanted: Sequence[str], folder: str) -> tuple[dict[str, Side], Any]:
    """Return the variants by name, over one set of weights; and the policy with its tokenizer."""
    policy, tokenizer = make_model(arguments)
    reference = make_reference(policy)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    made: dict[str, Side] = {}
    if any(name in OURS for name in wanted):
        models = (twin(policy), twin(reference)) if len(wanted) > 1 else (policy, reference)
        for name, (path, cached) in OURS.items():
            if name in wanted:
                pad = tokenizer.pad_token_id or 0
                made[name] = Ours(path, arguments, *models, optimizer, cached=cached, pad_token_id=pad)
    if any(name in THEIRS for name in wanted):
        trainer = make_trl(arguments, policy, reference, tokenizer, folder)
        for name, (cached, patched, _) in THEIRS.items():
            if name in wanted:
                made[name] = TRL(
                    trainer, arguments, trainer.model, trainer.ref_model, optimizer, cached=cached, patched=patched
                )
    return {name: made[name] for name in wanted}, (policy, tokenizer)
