"""Bradley-Terry preferences: the model both worlds share."""

from __future__ import annotations

from typing import Any

from rpo.core.numerics import sigmoid


def bradley_terry(reward_first: Any, reward_second: Any) -> Any:
    """Return P(first beats second) = sigmoid(r(x, first) - r(x, second)).

    Rewards are in nats of log-odds; NumPy or torch, any shape. Source: paper, Eq. (2.1).
    """
    return sigmoid(reward_first - reward_second)
