"""Likelihood displacement: the pairs whose chosen response became less likely since the start.

N: pairs. A change is a summed log-probability now less the same at the start of training, in nats.
"""

from __future__ import annotations

import torch

from rpo.core import checks
from rpo.core.errors import InvalidArgument

SIDES = ("chosen", "rejected")
# The sign of (chosen change, rejected change) in each quadrant.
QUADRANTS = {
    "chosen_up_rejected_up": (1, 1),
    "chosen_up_rejected_down": (1, -1),
    "chosen_down_rejected_up": (-1, 1),
    "chosen_down_rejected_down": (-1, -1),
}


def displacement_values(
    chosen_change: torch.Tensor,
    rejected_change: torch.Tensor,
    chosen_lengths: torch.Tensor | None = None,
    rejected_lengths: torch.Tensor | None = None,
    *,
    rounding: float = 1e-6,
) -> dict[str, torch.Tensor]:
    """Return each displacement metric pair by pair, (N,): the metric is the mean over pairs, wherever they are.

    *_change: (N,), nats. *_lengths: (N,), response tokens > 0. Means of these add up over micro-batches
    and processes as (sum, count). displacement/share: the chosen log-probability fell.
    displacement/chosen_up_rejected_down and the other three quadrants, with displacement/unchanged (either
    change is rounding, as at step 0), sum to one. displacement/chosen_change, .../rejected_change: nats a
    response; with lengths also ..._change_per_token. rounding: nats per token (a response, without lengths)
    that count as no change. Raises InvalidArgument.
    """
    changes = [chosen_change.detach(), rejected_change.detach()]
    for side, change, lengths in zip(SIDES, changes, (chosen_lengths, rejected_lengths), strict=True):
        checks.has_shape(f"{side}_change", change, (chosen_change.numel(),))
        if lengths is None:
            continue
        checks.has_shape(f"{side}_lengths", lengths, (chosen_change.numel(),))
        if not bool((lengths > 0).all()):
            raise InvalidArgument(
                f"{side}_lengths", expected="lengths > 0", got=lengths.min().item(), remedy="Drop empty responses."
            )
    signs = [
        torch.where(change.abs() <= rounding * (1 if lengths is None else lengths), 0.0, change.sign())
        for change, lengths in zip(changes, (chosen_lengths, rejected_lengths), strict=True)
    ]
    values = {"share": signs[0] < 0}
    values |= {name: (signs[0] == first) & (signs[1] == second) for name, (first, second) in QUADRANTS.items()}
    values["unchanged"] = signs[0] * signs[1] == 0
    metrics = {f"displacement/{name}": value.to(chosen_change.dtype) for name, value in values.items()}
    for side, change, lengths in zip(SIDES, changes, (chosen_lengths, rejected_lengths), strict=True):
        metrics[f"displacement/{side}_change"] = change
        if lengths is not None:
            metrics[f"displacement/{side}_change_per_token"] = change / lengths
    return metrics


def displacement(
    chosen_change: torch.Tensor,
    rejected_change: torch.Tensor,
    chosen_lengths: torch.Tensor | None = None,
    rejected_lengths: torch.Tensor | None = None,
) -> dict[str, float]:
    """Return the displacement metrics of N >= 1 pairs; arguments as for `displacement_values`."""
    if chosen_change.numel() == 0:
        raise InvalidArgument("chosen_change", expected="N >= 1 pairs", got="none", remedy="Skip empty batches.")
    values = displacement_values(chosen_change, rejected_change, chosen_lengths, rejected_lengths)
    return {name: value.mean().item() for name, value in values.items()}
