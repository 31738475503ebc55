"""Responses kept by the rank of their proxy's score, and how far the proxy is right on what is kept.

Shapes: ... prompts, N samples of each; X prompts, A responses. Source: Shen and Zhang 2024 (arXiv 2409.06957), the
weights as in its code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.baselines.plain import best_of_n_policy
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

# What the best, each of those between and the worst of a prompt's samples weighs, before the weights are divided by
# their sum.
FILTERS = {
    "all": (1.0, 1.0, 1.0),
    "best": (1.0, 0.0, 0.0),
    "best_random": (0.4, 0.1, 0.1),
    "best_worst": (1.0, 0.0, 1.0),
}


def kept_weights(scores: Any, keep: str) -> Array:
    """Return the weights of a prompt's samples, (..., N), of sum one; equal scores share theirs.

    scores: (..., N), N >= 2. keep: one of `FILTERS`. Raises InvalidArgument.
    """
    best, between, worst = FILTERS[checks.one_of("keep", keep, FILTERS)]
    s = checks.finite("scores", scores)
    if s.ndim < 1 or s.shape[-1] < 2:
        raise InvalidArgument("scores", expected="at least two a prompt", got=s.shape, remedy="Draw more samples.")
    first, last = (s == end(axis=-1, keepdims=True) for end in (s.max, s.min))
    w = between + (best - between) * first / first.sum(axis=-1, keepdims=True)
    w = w + (worst - between) * last / last.sum(axis=-1, keepdims=True)
    return np.asarray(w / w.sum(axis=-1, keepdims=True))


def kept_policy(reference: Any, scores: Any, keep: str, *, n: int) -> Array:
    """Return the law of one kept response, (X, A), of n samples of the reference: the mean of `kept_weights`, exactly.

    reference, scores: (X, A), pi_ref and the proxy. Raises InvalidArgument.
    """
    best, between, worst = FILTERS[checks.one_of("keep", keep, FILTERS)]
    rho = checks.probabilities("reference", reference, shape=(None, None))
    s, size = checks.finite("scores", scores, shape=rho.shape), checks.integer("n", n, minimum=2)
    kept = size * between * rho + (best - between) * best_of_n_policy(s, rho, size)
    kept = kept + (worst - between) * best_of_n_policy(-s, rho, size)
    return np.asarray(kept / kept.sum(axis=-1, keepdims=True))


def proxy_agreement(proxy: Any, gold: Any, weights: Any) -> float:
    """Return R^2, the squared correlation of proxy and gold under weights; NaN where one of them does not vary.

    All of one shape. Raises InvalidArgument.
    """
    w = checks.finite("weights", weights)
    if w.size == 0 or w.min() < 0 or w.sum() <= 0:
        raise InvalidArgument("weights", expected="numbers >= 0, not all zero", got=w.shape, remedy="Weigh some.")
    w = w / w.sum()
    p, g = (checks.finite(name, value, shape=w.shape) for name, value in (("proxy", proxy), ("gold", gold)))
    p, g = p - (w * p).sum(), g - (w * g).sum()
    with np.errstate(invalid="ignore"):
        return float(np.divide((w * p * g).sum() ** 2, (w * p * p).sum() * (w * g * g).sum()))
