"""Log-probabilities of responses under a causal language model, in at least float32."""

from __future__ import annotations

import torch

from rpo.core.errors import InvalidArgument


def token_logps(logits: torch.Tensor) -> torch.Tensor:
    """Return log-softmax over the vocabulary, (..., V), in nats: half precision promoted, float64 kept."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits.log_softmax(-1)


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
    chosen = token_logps(logits[:, :-1]).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return torch.where(response_mask[:, 1:], chosen, chosen.new_zeros(())).sum(-1)
