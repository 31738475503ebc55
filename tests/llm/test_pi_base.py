"""pi_base as a mixture, under every reduction, against numbers derived by hand and through the objective.

Two pairs of weight (1/4, 3/4); pi_base is 1/4 chosen, 1/4 rejected, 1/2 a column of one response.
Log-probabilities (-2, -6, -12) over (2, 3, 4) tokens, and (-4, -3, -5) over (4, 1, 5).
"""

import pytest
import torch

from rpo.core.columns import Columns
from rpo.core.objectives import RPO
from rpo.core.reduction import SFT_REDUCTIONS
from rpo.llm.data.pairs import TokenizedPair
from rpo.llm.training.pi_base import BaseSlots

LOGPS = torch.tensor([[-2.0, -6.0, -12.0], [-4.0, -3.0, -5.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[2, 3, 4], [4, 1, 5]])
WEIGHTS = torch.tensor([0.25, 0.75], dtype=torch.float64)
SLOTS = BaseSlots({"chosen": 0.25, "rejected": 0.25, "column": 0.5}, num_samples=0)
EXPECTED = {
    # 1/4 (2/4 + 6/4 + 12/2) + 3/4 (4/4 + 3/4 + 5/2) = 8/4 + 3 (17/4)/4
    "sequence_sum": 5.1875,
    # Each response by its own length: (1, 2, 3) and (1, 3, 1): 1/4 (1/4 + 2/4 + 3/2) + 3/4 (1/4 + 3/4 + 1/2)
    "sequence_mean": 1.6875,
    # By the mixture's mean length, 1/4 (2/4 + 3/4 + 4/2) + 3/4 (4/4 + 1/4 + 5/2) = 3.625 tokens
    "batch_token_mean": 5.1875 / 3.625,
}


def sft_term(reduction: str, rows: slice = slice(None)) -> float:
    weights = WEIGHTS[rows] / WEIGHTS[rows].sum()
    mean_length = sum(float(w) * SLOTS.tokens_of(pair) for w, pair in zip(WEIGHTS, pairs(), strict=True))
    base = SLOTS.reduce(LOGPS[rows], LENGTHS[rows], reduction, torch.tensor(mean_length))
    objective = RPO(beta=0.5, eta=0.2, base="custom", sft_reduction=reduction)
    logps = (LOGPS[rows, 0], LOGPS[rows, 1])
    return float(objective.loss(Columns(logps=logps, reference=logps), base, weights)[1].sft)


def pairs() -> list[TokenizedPair]:
    ids = [[tuple(range(int(n))) for n in row] for row in LENGTHS]
    return [TokenizedPair((0,), row[0], row[1], row=k, base_ids=(row[2],)) for k, row in enumerate(ids)]


def test_the_cases_cover_every_reduction() -> None:
    assert set(EXPECTED) == set(SFT_REDUCTIONS)


@pytest.mark.parametrize("reduction", EXPECTED)
def test_a_mixed_base_is_the_hand_derived_value(reduction: str) -> None:
    """Under "sequence_mean" a mean of means; the mixed sums by the mixed lengths are 1/4 (8/3.25) + 3/4 (4.25/3.75)."""
    assert sft_term(reduction) == pytest.approx(EXPECTED[reduction], rel=1e-14)
    assert abs(sft_term("sequence_mean") - (0.25 * 8 / 3.25 + 0.75 * 4.25 / 3.75)) > 0.1


@pytest.mark.parametrize("reduction", EXPECTED)
def test_a_mixed_base_does_not_depend_on_the_split(reduction: str) -> None:
    """The two pairs one by one, weighted by their share: the mean length is the whole batch's."""
    parts = 0.25 * sft_term(reduction, slice(0, 1)) + 0.75 * sft_term(reduction, slice(1, 2))
    assert parts == pytest.approx(EXPECTED[reduction], rel=1e-14)
