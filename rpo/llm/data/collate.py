"""Groups and what is known about them, put together into batches of tensors, and batches parted by K again.

Shapes: B groups; at most m responses per prompt: the K that are compared, then those under pi_base, then one to another
prompt. K may differ from group to group, and the number of the others does not. Rows of fewer than m end in zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpo.core.errors import InvalidArgument
from rpo.llm.data.pairs import TRL_COLUMNS, TokenizedGroup
from rpo.llm.logps.scoring import PromptGroup, ScoringPath

CHOSEN, REJECTED = 0, 1


def group_of(pair: TokenizedGroup) -> PromptGroup:
    """Return the prompt with its m responses: its own, then the further ones."""
    return PromptGroup(pair.prompt_ids, pair.responses, pair.scored)


def trl_columns(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an item of a `PairDataset` says of a pair under the names of TRL's columns, which callbacks read.

    Token ids as lists, and where they are known the log-probabilities under the reference, in nats; of lists the best
    and the worst response.
    """
    pair, reference = item["pair"], item.get("reference_logps")
    found: dict[str, Any] = {name: pair[name] for name in TRL_COLUMNS}
    if reference is not None and len(pair.own) > 1:
        found |= {"ref_chosen_logps": float(reference[0]), "ref_rejected_logps": float(reference[len(pair.own) - 1])}
    return found


class PairDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """N groups with the log-probabilities known before training, in nats.

    reference_logps: (N, K), of the responses that are compared under the reference, and further to the right of the
    response to another prompt; or None where it is asked batch by batch. start_logps: (N, K), under the policy as
    training began, where that is not the reference. Where K differs, K is the largest and rows end in NaN. sizes: the
    K there are.
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedGroup],
        reference_logps: NDArray[Any] | None = None,
        start_logps: NDArray[Any] | None = None,
    ) -> None:
        self.sizes, widths = set[int](), set[int]()
        for pair in pairs:
            self.sizes.add(len(pair.own))
            widths.add(len(pair.base_ids))
        if len(widths) > 1:
            raise InvalidArgument(
                "base_ids",
                expected="the same number of responses under pi_base for every pair",
                got=f"between {min(widths)} and {max(widths)}",
                remedy="Give every row of the base column as many responses.",
            )
        self.pairs, self.known = pairs, {"reference_logps": reference_logps, "start_logps": start_logps}
        self.scored = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        known = {name: values[index] for name, values in self.known.items() if values is not None}
        item = {"pair": self.pairs[index], **{name: row[~np.isnan(row)] for name, row in known.items()}}
        return item | trl_columns(item)


@dataclass(frozen=True)
class PairCollator:
    """Turns a list of items, or of bare groups, into one batch: `path`'s inputs and, one entry a group, the rest.

    group_of: the prompt and responses scored of a group. tokens_of: how many tokens of a group a token mean is taken
    over. positions: how many tokens the model has positions for, None for any number; longer groups are refused
    (InvalidArgument), as are scores outside [0, 1] where unit_scores says so. Beside the path's inputs: "weights" and
    "tokens" (B,) float64, "rows" and "sizes" (B,), the latter K, the log-probabilities a `PairDataset` knows, and where
    the data have them "labels" (B,) of responses alone and "scores" (B, K), float64.
    """

    path: ScoringPath
    group_of: Callable[[TokenizedGroup], PromptGroup] = group_of
    tokens_of: Callable[[TokenizedGroup], float] = lambda pair: 1.0
    positions: int | None = None
    unit_scores: bool = False

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        items = [item if "pair" in item else {"pair": item} for item in items]
        pairs: list[TokenizedGroup] = [item["pair"] for item in items]
        self.require(pairs)
        # First the tensors with one entry a pair: accelerate takes the batch size from the first.
        batch = {
            "weights": torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
            "tokens": torch.tensor([self.tokens_of(pair) for pair in pairs], dtype=torch.float64),
            "rows": torch.tensor([pair.row for pair in pairs]),
            "sizes": torch.tensor([len(pair.own) for pair in pairs]),
        }
        if pairs[0].label is not None:
            batch["labels"] = torch.tensor([pair.label for pair in pairs], dtype=torch.float64)
        if pairs[0].scores:
            batch["scores"] = _padded([torch.tensor(pair.scores, dtype=torch.float64) for pair in pairs])
        for name in ("reference_logps", "start_logps"):
            if name in items[0]:
                batch[name] = _padded([torch.from_numpy(item[name]) for item in items])
        return batch | self.path.collate([self.group_of(pair) for pair in pairs])

    def require(self, pairs: Iterable[TokenizedGroup]) -> None:
        """Refuse groups longer than the model has positions for, or of other scores, naming the first.

        Raises InvalidArgument.
        """
        if self.unit_scores:
            for pair in pairs:
                if not all(0.0 <= score <= 1.0 for score in pair.scores):
                    raise InvalidArgument(
                        "scores",
                        expected="numbers in [0, 1]",
                        got=f"{pair.scores} in row {pair.row}",
                        remedy="Rescale them, by the least and the largest score there can be.",
                    )
        if self.positions is None:
            return
        long = []
        for pair in pairs:
            group = self.group_of(pair)
            total = len(group.prompt_ids) + max(map(len, group.responses))
            if total > self.positions:
                long.append((pair.row, total))
        if long:
            raise InvalidArgument(
                "max_length",
                expected=f"pairs of at most {self.positions} tokens, the model's positions",
                got=f"{long[0][1]} tokens in row {long[0][0]}" + (f", and {len(long) - 1} more" if long[1:] else ""),
                remedy=f"Set max_length={self.positions} or less, or use a model with more positions "
                "(config.max_position_embeddings).",
            )

    def totals(self, pairs: Iterable[TokenizedGroup]) -> torch.Tensor:
        """Return the total weight and the total weighted number of tokens, (2,) float64, as `batch_totals` does."""
        parts = [(pair.weight, pair.weight * self.tokens_of(pair)) for pair in pairs]
        return torch.tensor(parts, dtype=torch.float64).sum(0)


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def parted_by_size(
    tensors: Mapping[str, torch.Tensor], sizes: Sequence[int]
) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Return, for each K there is, K and every tensor at the groups of K responses, without the zeros at its end.

    tensors: (B,) or (B, w), w being the largest K and as many more as every group has further responses in it.
    """
    most = max(sizes)
    if min(sizes) == most:
        return [(most, dict(tensors))]
    found = []
    for k in sorted(set(sizes)):
        places = torch.tensor([place for place, size in enumerate(sizes) if size == k])
        found.append((k, {name: _columns(each[places.to(each.device)], most - k) for name, each in tensors.items()}))
    return found


def _columns(tensor: torch.Tensor, fewer: int) -> torch.Tensor:
    return tensor if tensor.ndim == 1 else tensor[:, : tensor.shape[1] - fewer]


def batch_totals(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a batch's total weight and total weighted number of tokens, (2,)."""
    return torch.stack([batch["weights"].sum(), (batch["weights"] * batch["tokens"]).sum()])


def data_digest(data: Any) -> str:
    """Return a digest of the pairs' tokens and weights, in order; "streaming" where they are not at hand."""
    if not isinstance(data, PairDataset):
        return "streaming"
    digest = hashlib.blake2b(digest_size=16)
    for pair in data.pairs:
        parts: Sequence[Any] = (pair.prompt_ids, *pair.responses)
        if len(pair.own) > 2:
            digest.update(b"list of %d" % len(pair.own))
        digest.update(np.asarray([len(part) for part in parts] + [t for part in parts for t in part]).tobytes())
        digest.update(np.float64(pair.weight).tobytes())
        for mask in pair.scored:
            digest.update(mask or b"all")
        for known in (pair.label, *pair.scores):
            digest.update(b"" if known is None else np.float64(known).tobytes())
    return digest.hexdigest()
