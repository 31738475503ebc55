"""The policy that answers a reward under a divergence: one equation in one unknown for each prompt.

Shapes: ... any leading shape (prompts, instances), A responses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rpo.core.checks import Array

MAX_STEPS = 200
EPS = float(np.finfo(np.float64).eps)


class Reply(NamedTuple):
    """A policy as the maximiser of <pi, r> - beta D_f(pi || ref).

    logps, policy: (..., A), log pi and pi. s: (..., A), r / beta - Z, which is f'(pi / ref) where pi has mass; for the
    KL r / beta. slope: (..., A), v_a = d pi_a / ds_a, total (..., 1) its sum: beta d pi / dr is diag(v) - v v' / total,
    the Laplacian of the complete graph with conductances v_i v_j / total.
    """

    logps: Array
    policy: Array
    s: Array
    slope: Array
    total: Any


def normaliser(
    link: Callable[[Any], Any], ratio: Callable[[Array], tuple[Array, Array]], scaled: Array, log_measure: Array
) -> tuple[Array, Array]:
    """Return (s (..., A), Z (...,)), s = scaled - Z, with sum_a measure_a u(s_a) = 1; s = 0 off the support.

    link: f'(exp(h)). ratio: u = (f')^{-1} and its slope; both as a divergence has them. The sum falls in Z. It is at
    least one where a single response would take all mass, at most one where all ratios are 1 / total: a bracket, which
    keeps every s below f's top. u is convex for the package's divergences, so Newton's steps from the left do not pass
    the root; a step that leaves the bracket is replaced by its middle.
    """
    shape = np.broadcast_shapes(scaled.shape, log_measure.shape)
    log_mass = np.broadcast_to(log_measure, shape).reshape(-1, shape[-1])
    inside = np.isfinite(log_mass)
    rewards = np.where(inside, np.broadcast_to(scaled, shape).reshape(-1, shape[-1]), -np.inf)
    largest = rewards.max(axis=1)
    y = np.where(inside, rewards - largest[:, None], 0.0)  # differences first: they lose nothing to a large constant
    log_mass = np.where(inside, log_mass, -np.inf)
    mass = np.exp(log_mass)
    total = mass.sum(axis=1)
    with np.errstate(over="ignore"):
        alone = link(-np.where(inside, log_mass, 0.0))
    low = np.where(inside, y - alone, -np.inf).max(axis=1)
    high = np.maximum(low, -link(-np.log(total)))
    z = np.clip((mass * y).sum(axis=1) / total - link(-np.log(total)), low, high)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for _ in range(MAX_STEPS):
            u, slope = ratio(np.where(inside, y - z[:, None], 0.0))
            excess = (mass * u).sum(axis=1) - 1.0
            low, high = np.where(excess > 0, z, low), np.where(excess < 0, z, high)
            moved = z + excess / (mass * slope).sum(axis=1)
            moved = np.where((moved >= low) & (moved <= high), moved, 0.5 * (low + high))
            moved = np.where(excess == 0, z, moved)
            near = np.abs(moved - z) <= 4.0 * EPS * np.maximum(1.0, np.abs(z))  # a step of rounding may go on for ever
            z = moved
            if near.all():
                break
    s = np.where(inside, y - z[:, None], 0.0)
    return s.reshape(shape), (z + largest).reshape(shape[:-1])
