"""The reduction over tokens of the SFT term: what a response's summed log-probability is divided by.

Shapes: N responses, whose summed token log-probabilities are in nats. NumPy arrays or torch tensors.
"""

from __future__ import annotations

from typing import Any

from rpo.core import checks, numerics
from rpo.core.errors import InvalidArgument

SFT_REDUCTIONS = ("sequence_sum", "sequence_mean", "batch_token_mean")
WEIGHT_TOLERANCE = 1e-6


def over_tokens(logps: Any, lengths: Any, reduction: str, mean_length: Any) -> Any:
    """Return summed log-probabilities divided by nothing, by their own lengths, or by the batch's mean length.

    logps, lengths: (..., N). mean_length: a scalar, tokens, over the whole batch, of which these may be a part:
    sum(w logp) / sum(w T) = sum(w (logp / mean T)) makes the batch's token mean a mean over responses.
    """
    if reduction == "sequence_sum":
        return logps
    return logps / (lengths if reduction == "sequence_mean" else mean_length)


def reduced(logps: Any, lengths: Any, weights: Any, reduction: str, *, whose: str, setting: str) -> Any:
    """Return values (N,) whose weighted mean is the reduction of a whole batch.

    lengths: (N,), tokens > 0; None only for "sequence_sum". whose, setting: the caller's names of lengths and
    reduction. Raises InvalidArgument.
    """
    if reduction == "sequence_sum":
        return logps
    remedy = f"Pass them, or use {setting}='sequence_sum'."
    require_lengths(whose, lengths, logps, f"{setting}={reduction!r}", remedy=remedy)
    return over_tokens(logps, lengths, reduction, numerics.weighted_mean(lengths, weights))


def require_lengths(name: str, lengths: Any, like: Any, whose: str, *, remedy: str) -> None:
    """Refuse token counts that are missing, of another shape or not above zero; whose: what asks for them."""
    if lengths is None:
        raise InvalidArgument(name, expected=f"token counts for {whose}", got=None, remedy=remedy)
    checks.has_shape(name, lengths, tuple(like.shape))
    if not float(lengths.min()) > 0:
        raise InvalidArgument(name, expected="lengths > 0", got=float(lengths.min()), remedy="Drop empty responses.")


def check_weights(weights: Any, like: Any) -> None:
    """Refuse weights (None, or (N,) as `like`) that are negative or do not sum to one within 1e-6."""
    if weights is None:
        return
    checks.has_shape("weights", weights, tuple(like.shape))
    total, least = float(weights.sum()), float(weights.min())
    if not (least >= 0 and abs(total - 1.0) <= WEIGHT_TOLERANCE):
        raise InvalidArgument(
            "weights",
            expected="entries >= 0 that sum to one",
            got=f"a sum of {total!r} and a least entry of {least!r}",
            remedy="Divide by the sum.",
        )
