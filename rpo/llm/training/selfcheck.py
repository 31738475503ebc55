"""Step-0 self-check: what silently ruins preference training, found before the first update."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch

from rpo.core.errors import RPOError
from rpo.llm.data.pairs import TokenizedGroup

# Nats a token by which policy and reference may differ at step 0: rounding of other batch shapes,
# far below what another model, adapter or chat template does. Keyed by "is anything in 16 bits".
TOLERANCE = {False: 1e-4, True: 5e-2}
MOST_TRUNCATED = 0.5


class SelfCheckFailed(RPOError):
    """Training would not do what was asked; the message says why and how to go on."""


def _fail(sentence: str) -> SelfCheckFailed:
    return SelfCheckFailed(f"Self-check at step 0: {sentence} (self_check=False trains regardless.)")


def check_data(
    pairs: Sequence[TokenizedGroup], counts: dict[str, Any], eos_token_ids: Collection[int]
) -> dict[str, Any]:
    """Return what was found about truncation and ends of turn. Raises SelfCheckFailed.

    counts: of the `DataReport`. eos_token_ids: tokens that end a turn; none skips that check.
    """
    total = max(1, len(pairs))
    cut = max(counts.get("chosen_truncated", 0), counts.get("rejected_truncated", 0)) / total
    if cut > MOST_TRUNCATED:
        raise _fail(f"{cut:.0%} of the pairs have a truncated response; raise max_length.")
    if all(len(set(pair.own)) == 1 < len(pair.own) for pair in pairs):
        raise _fail("chosen and rejected are the same in every pair, so there is nothing to prefer.")
    found = {"truncated_share": cut, "boundary_merges": counts.get("boundary_merges", 0)}
    if eos_token_ids:
        ended = sum(pair.chosen_ids[-1] in eos_token_ids for pair in pairs) / total
        if ended == 0:
            last, count = Counter(pair.chosen_ids[-1] for pair in pairs).most_common(1)[0]
            raise _fail(
                f"no chosen response ends with a token at which the model stops ({sorted(eos_token_ids)}), so it would "
                f"not learn to; {count} of {len(pairs)} end with {last}. Set eos_token, or eos_token_id of the "
                "generation settings, to what the chat template ends an answer with."
            )
        found["chosen_ending_with_eos"] = ended
    return found


def check_start(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    lengths: torch.Tensor,
    preference_loss: float,
    *,
    expected: float,
    slope: float,
    half_precision: bool,
) -> dict[str, float]:
    """Return how far policy and reference are apart at step 0, where they should be equal.

    All (B, 2): log-probabilities in nats, lengths in tokens; the difference is a mean over tokens. expected: the
    preference loss at pi = pi_ref. slope: how much of it a nat on every response moves, at most. Raises
    SelfCheckFailed.
    """
    apart = ((policy_logps - reference_logps).abs().sum() / lengths.sum()).item()
    tolerance = TOLERANCE[half_precision]
    if not apart <= tolerance:
        raise _fail(
            f"policy and reference differ by {apart:.2g} nats per token before any update (at most {tolerance:g} is "
            "rounding), so the reference is not the model training starts from; pass that model, or name the "
            "reference on purpose with ref_model or ref_adapter_name."
        )
    if not abs(preference_loss - expected) <= tolerance * (1 + slope * float(lengths.sum(1).max())):
        raise _fail(f"the preference loss is {preference_loss:.6f} in place of {expected:.6f}, its value at pi_ref.")
    return {"start_difference_per_token": apart, "start_preference_loss": preference_loss}


def check_gradient(norm: float) -> dict[str, float]:
    """Return the norm of the first gradient, which must be finite and not zero. Raises SelfCheckFailed."""
    if not math.isfinite(norm):
        raise _fail(f"the first gradient's norm is {norm}; train in bf16 or fp32.")
    if norm == 0:
        raise _fail("the first gradient is zero, so nothing would be learned; is any parameter trainable?")
    return {"start_gradient_norm": norm}
