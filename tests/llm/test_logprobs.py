"""Log-probabilities against numbers worked out by hand."""

import math

import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.logprobs import response_logps, target_logps, token_logps


def test_response_logps_sums_the_response_tokens_only() -> None:
    """Two tokens, logits (0, ln 3) everywhere: P(token 1) = 3/4.

    Row 0 = [1, 1, 0], response = the last two tokens: ln(3/4) + ln(1/4). Row 1 = [0, 1, 1], response
    = the last token: ln(3/4).
    """
    logits = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64).expand(2, 3, 2)
    ids = torch.tensor([[1, 1, 0], [0, 1, 1]])
    mask = torch.tensor([[False, True, True], [False, False, True]])
    expected = torch.tensor([math.log(3 / 4) + math.log(1 / 4), math.log(3 / 4)], dtype=torch.float64)
    torch.testing.assert_close(response_logps(logits, ids, mask), expected)


def test_position_t_predicts_token_t_plus_one() -> None:
    """Only position 0 prefers token 1 (logit 5), so only the token at index 1 profits from it."""
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 1] = 5.0
    ids = torch.tensor([[0, 1, 1]])
    first = response_logps(logits, ids, torch.tensor([[False, True, False]]))
    second = response_logps(logits, ids, torch.tensor([[False, False, True]]))
    assert first.item() == pytest.approx(-math.log1p(math.exp(-5.0)), rel=1e-6)
    assert second.item() == pytest.approx(-math.log(2.0), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "answered"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_promoted_and_float64_kept(given: torch.dtype, answered: torch.dtype) -> None:
    assert token_logps(torch.zeros(1, 4, dtype=given)).dtype == answered


def test_half_precision_logits_are_summed_in_float32() -> None:
    """512 tokens at ln(1/2) sum to -354.89; bfloat16 has spacing 2 there and would miss by far."""
    logits = torch.zeros(1, 513, 2, dtype=torch.bfloat16)
    mask = torch.ones(1, 513, dtype=torch.bool)
    mask[0, 0] = False
    total = response_logps(logits, torch.zeros(1, 513, dtype=torch.long), mask).item()
    assert total == pytest.approx(-512 * math.log(2.0), rel=1e-6)


def test_a_large_vocabulary_does_not_bias_the_sum() -> None:
    """One logit 0 and 49,151 of -18: log p = -ln(1 + 49151 e^-18) = -7.4828e-4, to 1e-6 in float32.

    The control is log_softmax on a CPU, which adds 1.5e-8 to a partial sum of 1 three thousand times
    and loses it each time: a twentieth of it, too high, at every token of every response.
    """
    logits = torch.full((1, 1, 49_152), -18.0)
    logits[..., 0] = 0.0
    expected = -math.log1p(49_151 * math.exp(-18.0))
    mask = torch.ones(1, 1, dtype=torch.bool)
    targets = torch.zeros(1, 1, dtype=torch.long)
    assert abs(target_logps(logits, targets, mask).item() - expected) < 1e-6
    assert token_logps(logits)[0, 0, 0].item() - expected > 1e-5


def test_wrong_shapes_and_a_response_without_context_are_refused() -> None:
    logits, ids = torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(InvalidArgument, match="response_mask: expected false in the first column"):
        response_logps(logits, ids, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(InvalidArgument, match=r"expected shape \(1, 3\)"):
        response_logps(logits, ids[:, :2], torch.zeros(1, 2, dtype=torch.bool))
