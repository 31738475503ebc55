"""Many prompts in a row: values, gradients and Hessians of their parts of the loss; existence.

Shapes: S instances, X prompts, C = S X cells, A responses, P = A (A - 1) / 2 pairs i < j.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.bandit.batched.newton import Evaluation
from rpo.bandit.data import Index
from rpo.bandit.solver.reward_side import PenaltyAlone
from rpo.core.checks import Array
from rpo.core.numerics import log_softmax
from rpo.core.objectives import Solvable, preference_derivatives


@dataclass(frozen=True, eq=False)
class Cells:
    """C = S X prompts in a row.

    compared, lost: (C, P), shares n / N of a pair's comparisons, and of those its first response lost.
    d: (C,). log_reference, base: (C, A).
    """

    objective: Any
    compared: Array
    lost: Array
    d: Array
    log_reference: Array
    base: Array

    def evaluate(self, r: Array, which: Index, *, curved: bool = True) -> Evaluation:
        """Return the prompts' parts of the loss with gradients and, if `curved`, Hessians in r (c, A)."""
        whole = which.size == len(self.d)
        compared, lost, base, d, log_reference = (
            part if whole else part[which] for part in (self.compared, self.lost, self.base, self.d, self.log_reference)
        )
        objective = self.objective
        beta, incidence = objective.beta, incidence_matrix(r.shape[1])
        margins = r @ incidence.T / beta
        logps = log_softmax(log_reference + r / beta)
        base_logps = np.where(base > 0, base * np.where(base > 0, logps, 0.0), 0.0).sum(axis=1, keepdims=True)
        # Both directions of a pair at once: softplus(z) = softplus(-z) + z, so the losses of the first
        # response add a term linear in z = beta * margins.
        value, _ = objective.terms(margins, base_logps, compared, d[:, None])
        value = value + beta * np.einsum("cp,cp->c", lost, margins)

        slope, curvature = preference_derivatives(margins, beta)
        gradient = (compared * (slope / beta) + lost) @ incidence
        weight, policy = (objective.sft_weight * d / beta)[:, None], np.exp(logps)
        if objective.eta > 0:
            gradient = gradient + weight * (policy - base)
        if not curved:
            return value, gradient, np.zeros((0, 0, 0))
        conductance = compared * (curvature / beta**2)
        if objective.eta > 0:
            # diag(pi) - pi pi' is the Laplacian of the complete graph with conductances pi_i pi_j.
            first, second = np.triu_indices(r.shape[1], k=1)
            conductance += weight / beta * (policy[:, first] * policy[:, second])
        return value, gradient, laplacians(conductance, r.shape[1])

    def pessimism(self, instances: Index, prompts: int) -> Cells:
        """Return these instances' cells with the penalty alone: what breaks ties at eta = 0."""
        mine = (instances[:, None] * prompts + np.arange(prompts)).ravel()
        none = np.zeros((mine.size, self.lost.shape[1]))
        return Cells(
            PenaltyAlone(self.objective.beta), none, none, self.d[mine], self.log_reference[mine], self.base[mine]
        )


def minimizers_exist(wins: Array, d: Array, base: Array, support: Any, objective: Solvable) -> NDArray[np.bool_]:
    """Test existence per instance: the reachability of `existence.minimizer_exists`, by boolean closure."""
    s, x, a, _ = wins.shape
    if objective.eta > 0 and (d > 0).all() and ((base > 0) | ~np.broadcast_to(support, base.shape)).all():
        return np.ones(s, dtype=bool)  # a base of full support anchors every response
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


@lru_cache(maxsize=32)
def _laplacian_basis(a: int) -> Array:
    """Return the (A (A - 1) / 2, A^2) matrix whose rows are the flattened Laplacians of single edges."""
    rows = incidence_matrix(a)
    return np.asarray((rows[:, :, None] * rows[:, None, :]).reshape(len(rows), a * a))


def laplacians(conductance: Array, a: int) -> Array:
    """Return the Laplacians, (C, A, A), of graphs with edge weights (C, A (A - 1) / 2)."""
    return np.asarray((conductance @ _laplacian_basis(a)).reshape(-1, a, a))
