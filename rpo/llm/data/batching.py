"""Batches cut into parts by tokens: how much memory an update takes no longer depends on how long its pairs are.

Batches keep a fixed number of pairs, so samplers, epochs, resuming and gradient accumulation are
transformers' own. Each batch is cut, just before it is used, into parts of at most so many tokens;
the loss of a part is its share of the update's one mean, so results do not depend on the cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from transformers import Trainer

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.collate import PairCollator
from rpo.llm.logps.scoring import PromptGroup, ScoringPath

# Their processes meet in every forward pass, so all of them must take as many.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def cut(
    sizes: Sequence[int], max_tokens: int, *, at_least: int = 1, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the indices of `sizes` in parts of at most max_tokens; what is larger than that stands alone.

    First fit, longest first: few parts, the same ones every time. at_least: how many parts to make,
    as far as there are items. rows: of each item where rows are padded: a part counts as its longest row times its
    number of rows, not as the sum of its items.
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        for part in parts:
            joined = [*part, index]
            if rows is None:
                counted = sum(sizes[k] for k in joined)
            else:
                counted = max(sizes[k] // rows[k] for k in joined) * sum(rows[k] for k in joined)
            if counted <= max_tokens:
                part.append(index)
                break
        else:
            parts.append([index])
    while len(parts) < min(at_least, len(sizes)):
        parts.append([max(parts, key=len).pop()])
    return [sorted(part) for part in parts]


def fed_tokens(path: ScoringPath, group: PromptGroup) -> int:
    """Return how many tokens the path feeds the model for a group; padding to other groups is not counted."""
    if hasattr(path, "fed_tokens"):
        return int(path.fed_tokens(group))
    return len(group.responses) * (len(group.prompt_ids) + max(map(len, group.responses)))


@dataclass(frozen=True)
class BudgetCollator(PairCollator):
    """Leaves a batch as items, with what the totals over an update need; `parts` collates them by tokens.

    max_tokens: of a part, as the path feeds them. A pair that is longer is a part of its own.
    """

    max_tokens: int = 16384

    def __post_init__(self) -> None:
        whole = checks.integer("max_tokens_per_batch", self.max_tokens, minimum=1)
        object.__setattr__(self, "max_tokens", whole)

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        whole = super().__call__(items)
        return {name: whole[name] for name in ("weights", "tokens", "rows")} | {"items": list(items)}

    def sizes(self, batch: dict[str, Any]) -> list[int]:
        """Return how many tokens each of a batch's items takes."""
        return [fed_tokens(self.path, group) for group in self.groups(batch)]

    def groups(self, batch: dict[str, Any]) -> list[PromptGroup]:
        """Return what is scored of each of a batch's items."""
        return [self.group_of(item["pair"] if isinstance(item, dict) else item) for item in batch["items"]]

    def cut(self, batch: dict[str, Any], *, at_least: int = 1) -> list[list[int]]:
        """Return the places of a batch's items, part by part."""
        rows = None if hasattr(self.path, "fed_tokens") else [len(group.responses) for group in self.groups(batch)]
        return cut(self.sizes(batch), self.max_tokens, at_least=at_least, rows=rows)

    def parts(self, batch: dict[str, Any], places: Sequence[Sequence[int]]) -> list[dict[str, torch.Tensor]]:
        """Return the parts as `PairCollator` makes batches."""
        made = []
        for part in places:
            kept = {"weights": batch["weights"][list(part)]}  # a repeated pair's has been set to 0
            made.append(super().__call__([batch["items"][k] for k in part]) | kept)
        return made


class TokenBudget(Trainer):
    """Mixed in before a Trainer whose data_collator may be a `BudgetCollator`: forward and backward part by part."""

    def parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a batch in parts; where processes meet in every forward pass, as many on each of them."""
        if "items" not in inputs:
            return [inputs]
        places = self.data_collator.cut(inputs)
        if self.accelerator.distributed_type in SHARDED:
            most = max(gather_object([len(places)]))
            places = self.data_collator.cut(inputs, at_least=most)
            if len(places) < most:
                raise InvalidArgument(
                    "max_tokens_per_batch",
                    expected=f"a batch that can be cut into {most} parts, as on another process",
                    got=f"{len(inputs['items'])} pairs",
                    remedy="Give every process as many pairs (even_batches), or raise max_tokens_per_batch.",
                )
        return self.data_collator.parts(inputs, places)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the batch's loss, having added its gradient; processes exchange gradients at the last part only."""
        *parts, last = self.parts(inputs)
        loss = torch.zeros((), device=self.args.device)
        for part in parts:
            with self._unsynchronised(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss + super().training_step(model, last, num_items_in_batch)

    @contextlib.contextmanager
    def _unsynchronised(self, model: Any) -> Iterator[None]:
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)  # DeepSpeed would take a step
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the mean loss of an evaluation batch, weighted as its pairs are."""
        parts = self.parts(inputs)
        if len(parts) == 1:
            return super().prediction_step(model, parts[0], *args, **kwargs)
        shares = [part["weights"].sum() / inputs["weights"].sum().cpu() for part in parts]
        losses = [super(TokenBudget, self).prediction_step(model, part, *args, **kwargs)[0] for part in parts]
        return sum(loss * share.to(loss) for loss, share in zip(losses, shares, strict=True)), None, None

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return transformers' estimate for a batch."""
        if "items" not in inputs:
            return super().floating_point_ops(inputs)
        tokens = sum(self.data_collator.sizes(inputs))
        return super().floating_point_ops({"input_ids": torch.empty(1, tokens, device="meta")})
