"""Named problems, each a `ContextualBandit` drawn from `rng`."""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.numerics import log_softmax


def coverage_skew(
    *, arms: int = 10, prompts: int = 1, skew: float = 1.0, reward_bound: float = 3.0, rng: Any
) -> ContextualBandit:
    """Return a bandit whose data favour some arms: r* uniform on [0, R], uniform pi_ref, skewed behaviour.

    The behaviour is softmax(skew * normal + r* / 2) a prompt: one knob, 0 for even coverage.
    """
    a = checks.integer("arms", arms, minimum=2)
    x = checks.integer("prompts", prompts, minimum=1)
    width = checks.nonnegative("skew", skew)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    reward = generator.uniform(0.0, bound, size=(x, a))
    behavior = np.exp(log_softmax(width * generator.normal(size=(x, a)) + 0.5 * reward))
    return ContextualBandit(
        d0=np.full(x, 1.0 / x),
        reference=np.full((x, a), 1.0 / a),
        reward=reward,
        reward_bound=bound,
        behavior=behavior,
        name=f"coverage_skew(arms={a}, prompts={x}, skew={width:g})",
    )


def random(
    *, prompts: int = 3, arms: int = 6, features: int | None = None, reward_bound: float = 2.0, rng: Any
) -> ContextualBandit:
    """Return a bandit with Dirichlet d0 and pi_ref, and behaviour equal to pi_ref.

    r* is uniform on [0, R]; with `features` D it is linear in standard normal features (X, A, D),
    shifted and scaled to [0, R], so only its differences within a prompt are linear.
    """
    x = checks.integer("prompts", prompts, minimum=1)
    a = checks.integer("arms", arms, minimum=2)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    phi = None
    if features is None:
        reward = generator.uniform(0.0, bound, size=(x, a))
    else:
        d = checks.integer("features", features, minimum=1)
        phi = generator.normal(size=(x, a, d))
        reward = phi @ generator.normal(size=d)
        reward = reward - reward.min(axis=1, keepdims=True)
        reward = reward * (bound / reward.max())
    return ContextualBandit(
        d0=generator.dirichlet(np.ones(x)),
        reference=generator.dirichlet(np.ones(a), size=x),
        reward=reward,
        reward_bound=bound,
        features=phi,
        name=f"random(prompts={x}, arms={a}, features={features})",
    )
