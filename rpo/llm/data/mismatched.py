"""Responses to other prompts: what KTO's estimate of the KL is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rpo.core.errors import InvalidArgument
from rpo.llm.data.pairs import TokenizedGroup


def with_mismatched(pairs: Sequence[TokenizedGroup], limit: int | None) -> list[TokenizedGroup]:
    """Return the pairs with one more response each, the last: one of the next row, in a circle, with another prompt.

    Of pairs the chosen and the rejected one in turn. limit: tokens of prompt and response together, at which it is cut.
    Which rows share a batch does not matter. Raises InvalidArgument where all prompts are the same.
    """
    following = _next_of_another_prompt(pairs)
    found = []
    for k, pair in enumerate(pairs):
        other = pairs[following[k]]
        which = k % len(other.own)
        room = None if limit is None else limit - len(pair.prompt_ids)
        ids = other.own[which][:room]
        mask = other.scored[which] if other.scored else None
        masks = (*(pair.scored or (None,) * len(pair.responses)), mask and mask[: len(ids)])
        found.append(replace(pair, base_ids=(*pair.base_ids, ids), scored=masks if any(masks) else ()))
    return found


def _next_of_another_prompt(pairs: Sequence[TokenizedGroup]) -> list[int]:
    """Return for each pair the index of the first one after it, in a circle, whose prompt is another."""
    n = len(pairs)
    last = pairs[0].prompt_ids
    differs = []  # whether the pair after k has another prompt
    for k in range(1, n + 1):
        prompt = pairs[k % n].prompt_ids
        differs.append(prompt != last)
        last = prompt
    if not any(differs):
        raise InvalidArgument(
            "train_dataset",
            expected="at least two prompts, whose responses are exchanged to estimate the KL",
            got=f"one prompt in {n} rows",
            remedy="Use an objective without that estimate, such as rpo.BCO.",
        )
    following = [0] * n
    for k in reversed(range(2 * n)):  # twice round: the first round ends where the second begins
        following[k % n] = (k + 1) % n if differs[k % n] else following[(k + 1) % n]
    return following
