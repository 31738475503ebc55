"""Rankings drawn from a known reward: which responses stand in a list, and in which order. Integer counts throughout.

Shapes: X prompts, A responses, G different groups of one size K.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.data import Index
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

MAX_LISTS = 10**7


def draw_sets(drawn: Any, behavior: Array, size: int, generator: np.random.Generator) -> tuple[Index, Index, Any]:
    """Return prompts (G,), sets of `size` responses (G, size), rising, and how often each is drawn, (G,) integers.

    drawn: (X,) integers, sets at each prompt. behavior: (X, A). A set S has probability proportional to the product of
    behavior over S: draws one after another, repeated until all differ. Responses are gone through in their order,
    each taken by a binomial draw from the sets that may still take it, so that the time is that of the different sets.
    """
    x, a = behavior.shape
    # mass[k][:, b]: the sum over sets of k responses from b on.
    mass = np.zeros((size + 1, x, a + 1))
    mass[0] = 1.0
    for b in range(a - 1, -1, -1):
        for k in range(1, size + 1):
            mass[k, :, b] = mass[k, :, b + 1] + behavior[:, b] * mass[k - 1, :, b + 1]
    if (mass[size, :, 0] <= 0).any():
        raise InvalidArgument(
            "size",
            expected="no more responses than every prompt gives mass to",
            got=f"{size} at prompt {int(np.argmin(mass[size, :, 0]))}",
            remedy="Draw shorter lists, or give more responses mass.",
        )
    prompt, count = np.flatnonzero(drawn), drawn[drawn > 0]
    taken, chosen = np.zeros(prompt.size, dtype=np.int64), np.zeros((prompt.size, size), dtype=np.int64)
    for b in range(a):
        left = size - taken
        ahead = behavior[prompt, b] * mass[np.maximum(left - 1, 0), prompt, b + 1]
        share = np.where(left > 0, ahead / mass[left, prompt, b], 0.0)
        with_it = generator.binomial(count, np.clip(share, 0.0, 1.0))
        yes, no = np.flatnonzero(with_it), np.flatnonzero(count - with_it)
        grown = chosen[yes]
        grown[np.arange(yes.size), taken[yes]] = b
        chosen, count = np.concatenate([chosen[no], grown]), np.concatenate([(count - with_it)[no], with_it[yes]])
        prompt, taken = np.concatenate([prompt[no], prompt[yes]]), np.concatenate([taken[no], taken[yes] + 1])
    return prompt, chosen, count


def draw_rankings(
    prompt: Index, sets: Index, count: Any, reward: Array, generator: np.random.Generator
) -> tuple[Index, Index, Any]:
    """Return prompts (G,), Plackett-Luce rankings (G, K) of the sets (S, K), best first, and their counts, integers."""
    ranked, rest = np.zeros((len(sets), 0), dtype=np.int64), sets
    while rest.shape[1] > 1:
        worth = np.exp(reward[prompt[:, None], rest] - reward[prompt[:, None], rest].max(axis=1, keepdims=True))
        times = generator.multinomial(count, worth / worth.sum(axis=1, keepdims=True))
        row, which = np.nonzero(times)
        best = rest[row, which]
        kept = np.arange(rest.shape[1])[None, :] != which[:, None]
        ranked = np.concatenate([ranked[row], best[:, None]], axis=1)
        rest = rest[row][kept].reshape(row.size, -1)
        prompt, count = prompt[row], times[row, which]
    return prompt, np.concatenate([ranked, rest], axis=1), count


def draw_scored(
    prompt: Index, sets: Index, count: Any, reward: Array, noise: float, generator: np.random.Generator
) -> tuple[Index, Index, Array, Array]:
    """Return prompts (N,), responses (N, K) by falling scores, counts and scores (N, K): reward plus normal noise.

    Equal scores stand in the order of the responses' numbers. Without noise equal sets stay together.
    """
    if noise > 0:
        if count.sum() > MAX_LISTS:
            raise InvalidArgument(
                "n",
                expected=f"at most {MAX_LISTS:g} lists, each with noise of its own",
                got=f"{count.sum():g}",
                remedy="Draw fewer, or pass score_noise=0 or None.",
            )
        prompt, sets, count = np.repeat(prompt, count), np.repeat(sets, count, axis=0), np.ones(int(count.sum()))
    scores = reward[prompt[:, None], sets] + noise * generator.normal(size=sets.shape)
    order = np.argsort(-scores, axis=1, kind="stable")
    return prompt, np.take_along_axis(sets, order, 1), count * 1.0, np.take_along_axis(scores, order, 1)
