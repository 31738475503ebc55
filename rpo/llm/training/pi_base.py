"""pi_base on a batch: which responses the SFT term is taken on, and with what weight.

Shapes: B groups of K responses, chosen and rejected of a pair; m responses per prompt: those K, those of a column,
those sampled from the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rpo.core.divergences import KL, Divergence
from rpo.core.reduction import over_tokens
from rpo.llm.data.pairs import TokenizedGroup


@dataclass(frozen=True)
class BaseSlots:
    """Weights over the sources "chosen", "rejected", "column" and "reference", summing to one.

    Of a list "chosen" is its best response and "rejected" all the others alike; a response alone is its own pi_base.

    num_samples: how many responses are sampled from the reference where any are. others: how many come after them,
    under no pi_base. divergence: of the penalty; by any but the KL's, samples stand for the mean under the reference.
    Source: paper, Remark 5.4.
    """

    sources: dict[str, float]
    num_samples: int
    others: int = 0
    divergence: Divergence = field(default_factory=KL)

    @property
    def penalised(self) -> bool:
        """Whether the term is a divergence's penalty, not an SFT term."""
        return not isinstance(self.divergence, KL)

    @property
    def sampled(self) -> int:
        """How many of the m responses are samples of the reference."""
        return self.num_samples if self.penalised or "reference" in self.sources else 0

    def weights(self, m: int, k: int = 2) -> list[float]:
        """Return the weight of each of a prompt's m responses, k of them compared."""
        if k == 1:
            return [1.0] + [0.0] * (m - 1)
        sampled = self.sampled
        given = m - k - sampled - self.others
        share = [self.sources.get("chosen", 0.0)] + [self.sources.get("rejected", 0.0) / (k - 1)] * (k - 1)
        share += [self.sources.get("column", 0.0) / given] * given if given else []
        share += [self.sources.get("reference", 0.0) / sampled] * sampled if sampled else []
        return share + [0.0] * self.others

    def penalty(self, logps: torch.Tensor, reference: torch.Tensor, k: int = 2) -> torch.Tensor:
        """Return the divergence's `base_value`, (B,), from samples; logps, reference: (B, m), nats; k compared."""
        m = logps.shape[1]
        samples = [0.0] * (m - self.sampled - self.others) + [1.0 / self.sampled] * self.sampled + [0.0] * self.others
        weights = [logps.new_tensor(each) for each in (self.weights(m, k), samples)]
        return self.divergence.sampled_base_value(logps - reference, *weights)

    def tokens_of(self, pair: TokenizedGroup) -> float:
        """Return pi_base's mean length at a group's prompt, in tokens; of a response alone its own."""
        if len(pair.own) == 1:
            return pair.lengths[0]
        weights = self.weights(len(pair.responses), len(pair.own))
        return sum(weight * length for weight, length in zip(weights, pair.lengths, strict=True))

    def reduce(
        self, logps: torch.Tensor, lengths: torch.Tensor, sft_reduction: str, mean_length: torch.Tensor, k: int = 2
    ) -> torch.Tensor:
        """Return what the SFT term is minus the mean of, (B,): log-probabilities under pi_base, reduced over tokens.

        logps, lengths: (B, m), nats and tokens, k of them compared. mean_length: tokens, over the global batch, so that
        "batch_token_mean" does not depend on how it is split.
        """
        weights = torch.tensor(self.weights(logps.shape[1], k), dtype=logps.dtype, device=logps.device)
        # Each response by its own length before they are mixed: a mean of means, not the mixed sum by a mixed length.
        return (over_tokens(logps, lengths, sft_reduction, mean_length) * weights).sum(1)


def with_samples(pairs: Sequence[TokenizedGroup], samples: Sequence[Sequence[Any]]) -> list[TokenizedGroup]:
    """Return the pairs with sampled responses (token ids) added to those scored under pi_base."""
    return [
        replace(
            pair,
            base_ids=(*pair.base_ids, *(tuple(ids) for ids in drawn)),
            scored=(*pair.scored, *[None] * len(drawn)) if pair.scored else (),
        )
        for pair, drawn in zip(pairs, samples, strict=True)
    ]
