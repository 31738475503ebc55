"""Many prompts in a row: values, gradients and Hessians of their parts of the loss; existence.

Shapes: S instances, X prompts, C = S X cells, A responses, P = A (A - 1) ordered pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.bandit.batched.newton import Evaluation
from rpo.bandit.data import Index
from rpo.bandit.reward_side import PenaltyAlone
from rpo.core.checks import Array
from rpo.core.numerics import log_softmax
from rpo.core.objectives import Objective, preference_derivatives


@dataclass(frozen=True, eq=False)
class Cells:
    """C = S X prompts in a row. weights: (C, P) of the ordered pairs. d: (C,). log_reference, base: (C, A)."""

    objective: Any
    weights: Array
    d: Array
    log_reference: Array
    base: Array

    def evaluate(self, r: Array, which: Index) -> Evaluation:
        """Return the prompts' parts of the loss with gradients and Hessians in r (c, A)."""
        objective, weights, base = self.objective, self.weights[which], self.base[which]
        beta, incidence = objective.beta, incidence_matrix(r.shape[1])
        half = incidence.shape[0]
        z = r @ incidence.T / beta
        margins = np.concatenate([z, -z], axis=1)
        logps = log_softmax(self.log_reference[which] + r / beta)
        base_logps = np.where(base > 0, base * np.where(base > 0, logps, 0.0), 0.0).sum(axis=1, keepdims=True)
        value, _ = objective.terms(margins, base_logps, weights, self.d[which][:, None])

        slope, curvature = preference_derivatives(margins, beta)
        slope, curvature = weights * slope / beta, weights * curvature / beta**2
        gradient = (slope[:, :half] - slope[:, half:]) @ incidence
        hessian = laplacians(curvature[:, :half] + curvature[:, half:], r.shape[1])
        if objective.eta > 0:
            policy = np.exp(logps)
            weight = objective.sft_weight * self.d[which] / beta
            gradient = gradient + weight[:, None] * (policy - base)
            curved = (weight / beta)[:, None] * policy
            hessian -= curved[:, :, None] * policy[:, None, :]
            np.einsum("cii->ci", hessian)[...] += curved
        return value, gradient, hessian

    def pessimism(self, instances: Index, prompts: int) -> Cells:
        """Return these instances' cells with the penalty alone: what breaks ties at eta = 0."""
        mine = (instances[:, None] * prompts + np.arange(prompts)).ravel()
        return Cells(
            PenaltyAlone(self.objective.beta),
            np.zeros((mine.size, self.weights.shape[1])),
            self.d[mine],
            self.log_reference[mine],
            self.base[mine],
        )


def minimizers_exist(wins: Array, d: Array, base: Array, support: Any, objective: Objective) -> NDArray[np.bool_]:
    """Test existence per instance: the reachability of `existence.minimizer_exists`, by boolean closure."""
    s, x, a, _ = wins.shape
    beats = (wins > 0).reshape(s * x, a, a)
    reach, linked = closure(beats), closure(beats | beats.transpose(0, 2, 1))
    anchored = base.reshape(s * x, a) > 0
    carried = anchored | (reach & anchored[:, None, :]).any(axis=2)
    outside = ~np.broadcast_to(support, (s, x, a)).reshape(s * x, a)
    with_penalty = (carried | outside).all(axis=1)
    strong = (~linked | (reach & reach.transpose(0, 2, 1))).all(axis=(1, 2))
    if objective.eta == 0:
        # The tie-break needs pi_base mass in every component.
        mass = (linked & anchored[:, None, :]).any(axis=2) | outside
        fine = strong & (mass.all(axis=1) | (d.reshape(-1) == 0))
    else:
        fine = np.where(d.reshape(-1) > 0, with_penalty, strong)
    enters = (d.reshape(-1) > 0) | (wins.reshape(s * x, -1) > 0).any(axis=1)
    return np.asarray((fine | ~enters).reshape(s, x).all(axis=1))


def closure(linked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which responses reach which along any number of steps, none included: (C, A, A)."""
    reach = (linked | np.eye(linked.shape[1], dtype=bool)).astype(np.float32)
    for _ in range(int(np.ceil(np.log2(max(linked.shape[1], 2))))):  # paths of up to 2^k steps
        reach = (reach @ reach > 0).astype(np.float32)
    return reach > 0


@lru_cache(maxsize=32)
def incidence_matrix(a: int) -> Array:
    """Return the (A (A - 1) / 2, A) matrix whose rows are e_i - e_j, i < j."""
    first, second = np.triu_indices(a, k=1)
    matrix = np.zeros((first.size, a))
    matrix[np.arange(first.size), first] = 1.0
    matrix[np.arange(first.size), second] = -1.0
    return matrix


def laplacians(conductance: Array, a: int) -> Array:
    """Return the Laplacians, (C, A, A), of graphs with edge weights (C, A (A - 1) / 2)."""
    first, second = np.triu_indices(a, k=1)
    matrix = np.zeros((len(conductance), a, a))
    matrix[:, first, second] = -conductance
    matrix[:, second, first] = -conductance
    np.einsum("cii->ci", matrix)[...] = conductance @ np.abs(incidence_matrix(a))
    return matrix
