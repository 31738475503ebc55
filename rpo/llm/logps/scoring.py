"""Paths from prompts and responses to summed log-probabilities, behind one protocol.

Shapes: G prompts of at most m responses each (a batch), B responses in all, T tokens, V vocabulary. Where a prompt has
fewer than m, nothing stands for those it lacks but a length and a log-probability of 0 at the end of its row. All paths
give the same numbers within the tolerances of tests/llm/test_parity.py; they differ in cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.logps.head import plain_token_logps, token_logps_of


class PromptGroup(NamedTuple):
    """One prompt (at least one token) and the responses (at least one token each) scored after it.

    scored: for each response None, or 1 or 0 for each of its tokens, of which those with 0 are read and not
    scored; empty where all are. Log-probabilities and lengths are of the scored tokens.
    """

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]
    scored: Sequence[bytes | None] = ()

    @property
    def masks(self) -> list[bytes]:
        """1 or 0 for each token of each response."""
        given = self.scored or (None,) * len(self.responses)
        return [b"\1" * len(ids) if mask is None else mask for ids, mask in zip(self.responses, given, strict=True)]


@runtime_checkable
class ScoringPath(Protocol):
    """How a batch is laid out for the model, and how its log-probabilities are read back."""

    name: str

    def collate(self, groups: Sequence[PromptGroup]) -> dict[str, torch.Tensor]:
        """Return the batch as CPU tensors, among them "lengths": (G, m), response tokens scored, 0 for no response."""
        ...

    def logps(
        self, model: Any, inputs: Mapping[str, torch.Tensor], collisions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the responses' summed log-probabilities, (G, m), nats, float32 or more, differentiable.

        collisions: gets the sums of log sum_v p_v^2 over the same tokens, (G, m), without gradient.
        """
        ...


class PaddedPath:
    """One row a response, prompt repeated, padded to the longest: plain, and any causal model can take it.

    pad_token_id: what fills the rows; never scored and never attended to. padding_side: "right" or
    "left". pad_to_multiple_of: rounds T up. fused_head: from hidden states straight to log-probabilities
    (`rpo.llm.logps.head`), or by the model's logits. Raises InvalidArgument.
    """

    name = "padded"

    def __init__(
        self, pad_token_id: int, padding_side: str = "right", pad_to_multiple_of: int = 1, *, fused_head: bool = True
    ) -> None:
        if pad_token_id is None:
            raise InvalidArgument(
                "pad_token_id",
                expected="the id of a token",
                got=None,
                remedy="Give the tokenizer a pad token; any token will do, since padding is masked.",
            )
        self.pad_token_id = checks.integer("pad_token_id", pad_token_id, minimum=0)
        self.padding_side = checks.one_of("padding_side", padding_side, ("right", "left"))
        self.pad_to_multiple_of = checks.integer("pad_to_multiple_of", pad_to_multiple_of, minimum=1)
        self.fused_head = fused_head

    def collate(self, groups: Sequence[PromptGroup]) -> dict[str, torch.Tensor]:
        """Return the batch; its rows are the responses in the order of groups.

        "input_ids", "attention_mask": (B, T) int64. "response_mask": (B, T) bool, true at the
        response's scored tokens. "lengths": (G, m) int64. With left padding also "position_ids": (B, T).
        Raises InvalidArgument for no groups, an empty prompt or an empty response.
        """
        check_groups(groups)
        rows = [
            (group.prompt_ids, *each) for group in groups for each in zip(group.responses, group.masks, strict=True)
        ]
        longest = max(len(prompt) + len(response) for prompt, response, _ in rows)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, (prompt, response, mask) in enumerate(rows):
            length = len(prompt) + len(response)
            start = 0 if self.padding_side == "right" else width - length
            input_ids[row, start : start + length] = torch.tensor([*prompt, *response])
            attention_mask[row, start : start + length] = 1
            response_mask[row, start + len(prompt) : start + length] = torch.tensor(list(mask), dtype=torch.bool)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "response_mask": response_mask,
            "lengths": lengths_of(groups),
        }
        if self.padding_side == "left":  # models count positions from the row's start, padding included
            inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return inputs

    def logps(
        self, model: Any, inputs: Mapping[str, torch.Tensor], collisions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return summed log-probabilities, (G, m), nats; the model may be wrapped by DDP, accelerate or peft."""
        summed = self._by_response(self.token_logps(model, inputs, collisions), inputs)
        if collisions is not None:
            collisions.append(self._by_response(collisions.pop(), inputs))
        return summed

    def _by_response(self, values: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sums over each response, (G, m), of values of every token, (K,)."""
        mask, lengths = inputs["response_mask"][:, 1:], inputs["lengths"]
        # Back to rows by position: index_add would add in any order on a GPU.
        sums = values.new_zeros(mask.shape).masked_scatter(mask, values).sum(-1)
        if sums.numel() == lengths.numel():
            return sums.view(lengths.shape)
        return sums.new_zeros(lengths.shape).masked_scatter(lengths > 0, sums)

    def token_logps(
        self, model: Any, inputs: Mapping[str, torch.Tensor], collisions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the log-probability of every response token, (K,), row by row; collisions as of `token_logps_of`."""
        mask = inputs["response_mask"][:, 1:]
        rows, columns = mask.nonzero(as_tuple=True)  # a response token at columns + 1, predicted at columns
        ids = inputs["input_ids"]
        passed = {key: inputs[key] for key in ("input_ids", "attention_mask", "position_ids") if key in inputs}
        logps_of = token_logps_of if self.fused_head else plain_token_logps
        return logps_of(model, rows * ids.shape[1] + columns, ids[rows, columns + 1], collisions, **passed)


PATHS: dict[str, type[ScoringPath]] = {PaddedPath.name: PaddedPath}


def pad_token(tokenizer: Any) -> int:
    """Return the id that fills padded rows; it is masked, so any token will do where there is none."""
    known = getattr(tokenizer, "pad_token_id", None)
    return 0 if known is None else int(known)


def lengths_of(groups: Sequence[PromptGroup]) -> torch.Tensor:
    """Return how many tokens of each response are scored, (G, m) int64, 0 where a prompt has fewer than m."""
    rows = [[sum(mask) for mask in group.masks] for group in groups]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def check_groups(groups: Sequence[PromptGroup]) -> None:
    """Refuse a batch that no path can score: no groups, a group without responses, an empty prompt or response."""
    if not groups or not all(group.responses for group in groups):
        raise InvalidArgument(
            "groups",
            expected="at least one prompt, each with at least one response",
            got="none",
            remedy="Drop empty batches.",
        )
    for place, (prompt, responses, scored) in enumerate(groups):
        if not len(prompt):
            raise InvalidArgument(
                f"groups[{place}].prompt_ids",
                expected="at least one token",
                got="an empty prompt",
                remedy="A first token has no prediction; put a prompt or a BOS token before it.",
            )
        for k, response in enumerate(responses):
            if not len(response):
                raise InvalidArgument(
                    f"groups[{place}].responses[{k}]",
                    expected="at least one token",
                    got="an empty response",
                    remedy="Drop the pair, or end every response with its end-of-turn token.",
                )
        if scored and [len(mask) for mask in groups[place].masks if any(mask)] != list(map(len, responses)):
            raise InvalidArgument(
                f"groups[{place}].scored",
                expected="1 or 0 for each token of each response, a 1 in each",
                got=list(scored),
                remedy="Drop responses of which nothing is scored.",
            )
