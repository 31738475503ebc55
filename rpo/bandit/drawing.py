"""The formulas of drawn preferences, for one problem or for many: arrays may have axes before those named.

Shapes: X prompts, A responses, P = A (A - 1) / 2 pairs i < j.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.core.checks import Array
from rpo.core.preferences import bradley_terry


def pairs_of(behavior: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mu(a1, a0 | x) up to its normalisation, `shape` (..., X, A, A), and that, (..., X, 1, 1).

    behavior: a response distribution (..., X, A), or one of pairs, of that shape.
    """
    mu = behavior if behavior.ndim == len(shape) else behavior[..., :, None] * behavior[..., None, :]
    mu = 0.5 * (mu + mu.swapaxes(-1, -2))
    mu = mu * (1.0 - np.eye(shape[-1]))
    return mu, mu.sum(axis=(-2, -1), keepdims=True)


def recorded_wins(reward: Array, label_noise: float) -> Array:
    """Return P(a1 is recorded as beating a0), (..., A, A), for rewards (..., A)."""
    win = bradley_terry(reward[..., :, None], reward[..., None, :])
    return np.asarray((1.0 - label_noise) * win + label_noise * (1.0 - win))


def win_table(drawn: Any, first_wins: Any, arms: int) -> Array:
    """Return the counts n[w, l], (..., A, A), from how often each pair i < j was drawn, and i won: (..., P)."""
    first, second = np.triu_indices(arms, k=1)
    wins = np.zeros((*np.shape(drawn)[:-1], arms, arms))
    wins[..., first, second] = first_wins
    wins[..., second, first] = drawn - first_wins
    return wins
