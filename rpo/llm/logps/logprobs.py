"""Log-probabilities of responses under a causal language model, in at least float32."""

from __future__ import annotations

import torch

from rpo.core.errors import InvalidArgument


def token_logps(logits: torch.Tensor) -> torch.Tensor:
    """Return log-softmax over the vocabulary, (..., V), in nats: half precision promoted, float64 kept."""
    # With dtype= half precision is converted inside the kernel: no copy of the logits in float32.
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def picked_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of one target a row, (K,), in nats, from logits (K, V) and targets (K,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Not log_softmax: over 49,152 tokens in float32 on a CPU it is too high by up to 1e-5, always to the same side.
    logits = logits - logits.detach().amax(-1, keepdim=True)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.exp().sum(-1).log()


def target_logps(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the summed log-probability of each row's masked targets, (B,), in nats; a row of none sums to 0.

    logits: (B, K, V), position k of which predicts targets[:, k]. targets: (B, K). mask: (B, K) bool.
    """
    chosen = picked_logps(logits[mask], targets[mask])
    # Back to rows by position: index_add would add in any order on a GPU.
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen).sum(-1)


def response_logps(logits: torch.Tensor, input_ids: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Return the summed log-probability of each row's response tokens, (B,), in nats.

    logits: (B, T, V); position t predicts token t + 1. input_ids: (B, T). response_mask: (B, T)
    bool, true at response tokens; the first column must be false. Raises InvalidArgument.
    """
    if input_ids.shape != logits.shape[:2] or response_mask.shape != input_ids.shape:
        raise InvalidArgument(
            "input_ids, response_mask",
            expected=f"shape {tuple(logits.shape[:2])}, as logits",
            got=f"{tuple(input_ids.shape)} and {tuple(response_mask.shape)}",
            remedy="Pass one id and one mask entry a position.",
        )
    if bool(response_mask[:, 0].any()):
        raise InvalidArgument(
            "response_mask",
            expected="false in the first column",
            got="a response that starts at position 0",
            remedy="A first token has no prediction; put a prompt or a BOS token before it.",
        )
    return target_logps(logits[:, :-1], input_ids[:, 1:], response_mask[:, 1:])
