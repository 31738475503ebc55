"""Many prompts in a row: values, gradients and Hessians of their parts of the loss; existence.

Shapes: S instances, X prompts, C = S X cells, A responses, P = A (A - 1) / 2 pairs i < j.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from rpo.bandit.batched.newton import Evaluation
from rpo.bandit.data import Index
from rpo.bandit.solver.existence import falling_pair
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import Divergence
from rpo.core.objectives import Objective, require_margin_shape
from rpo.core.shapes import MarginShape


@dataclass(frozen=True, eq=False)
class Cells:
    """C = S X prompts in a row.

    objective: None for the penalty alone, at weight one. beta, divergence: of its rewards. compared, lost: (C, P),
    shares n / N of a pair's comparisons, and of those its first response lost. d: (C,). log_measure, base: (C, A).
    """

    objective: Objective | None
    beta: float
    divergence: Divergence
    compared: Array
    lost: Array
    d: Array
    log_measure: Array
    base: Array
    _asked: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def pull(self) -> float:
        """Weight of the penalty over beta's: eta beta."""
        return 1.0 if self.objective is None else self.objective.anchor.weight

    def evaluate(self, r: Array, which: Index, *, curved: bool = True) -> Evaluation:
        """Return the prompts' parts of the loss with gradients and, if `curved`, Hessians in r (c, A)."""
        value, gradient, conductance = self.conducted(r, which, curved=curved)
        return value, gradient, laplacians(conductance, r.shape[1]) if curved else np.zeros((0, 0, 0))

    def conducted(self, r: Array, which: Index, *, curved: bool = True) -> Evaluation:
        """Return what `evaluate` does, with the conductances (c, P) whose Laplacians the Hessians are."""
        compared, lost, base, d, log_measure = self._parts(which)
        beta, pull = self.beta, self.pull
        base_value, gradient, conductance = np.zeros((len(r), 1)), np.zeros(r.shape), np.zeros(compared.shape)
        if pull > 0:
            reply = self.divergence.reply(r / beta, log_measure)
            base_value = self.divergence.base_value(base, reply.logps, log_measure, reply.s)[:, None]
        value = -d * base_value[:, 0]
        if self.objective is not None:
            value, slope, conductance = _preference(self.objective, r, compared, lost, base_value, d)
            gradient = slope @ incidence_matrix(r.shape[1])
        if pull > 0:
            weight = (pull * d / beta)[:, None]
            gradient = gradient + weight * (reply.policy - base)
            if curved:
                # diag(v) - v v' / sum v is the Laplacian of the complete graph with conductances v_i v_j / sum v.
                first, second = pair_indices(r.shape[1])
                conductance += (weight / beta / reply.total * reply.slope)[:, first] * reply.slope[:, second]
        return value, gradient, conductance

    def _parts(self, which: Index) -> tuple[Array, ...]:
        """Return what these prompts need: gathered once while the same are asked for."""
        if which is not self._asked.get("which"):
            parts = (self.compared, self.lost, self.base, self.d, self.log_measure)
            whole = which.size == len(self.d)
            self._asked.update(which=which, parts=parts if whole else tuple(part[which] for part in parts))
        return cast("tuple[Array, ...]", self._asked["parts"])

    def fenchel_young(self, r: Array, rounded: Cells) -> Array:
        """Return loss(z) + p z - c(p) at rewards r, (C,), p being minus the slopes of the rounded loss."""
        if self.objective is None or rounded.objective is None:  # the penalty alone has no slopes of a loss
            return np.zeros(len(r))
        shape, other = require_margin_shape(self.objective), require_margin_shape(rounded.objective)
        z = r @ incidence_matrix(r.shape[1]).T
        z = np.concatenate([z, -z], axis=1) - margin_asked(shape)
        weights = np.concatenate([self.compared - self.lost, self.lost], axis=1)
        return np.asarray((weights * shape.fenchel_young(-other.derivatives(z, 1.0)[0], z)).sum(axis=1))

    def pessimism(self, instances: Index, prompts: int) -> Cells:
        """Return these instances' cells with the penalty alone: what breaks ties at eta = 0."""
        return self.penalty((instances[:, None] * prompts + np.arange(prompts)).ravel())

    def penalty(self, mine: Index) -> Cells:
        """Return these cells with the penalty alone."""
        none = np.zeros((mine.size, self.lost.shape[1]))
        parts = self.d[mine], self.log_measure[mine], self.base[mine]
        return Cells(None, self.beta, self.divergence, none, none, *parts)


def _preference(
    objective: Objective, r: Array, compared: Array, lost: Array, base_value: Array, d: Array
) -> tuple[Array, Array, Array]:
    """Return the loss (c,), its preference term's slopes along the pairs' differences (c, P), and curvatures (c, P)."""
    shape, z = require_margin_shape(objective), r @ incidence_matrix(r.shape[1]).T
    offset, reversal = margin_asked(shape), shape.reversal
    if offset or reversal is None:
        both = np.concatenate([z, -z], axis=1) - offset
        weights = np.concatenate([compared - lost, lost], axis=1)
        value, _ = objective.total(_mean(weights, shape.of_margin(both)), base_value, None, d[:, None])
        slope, curvature = (np.split(weights * part, 2, axis=1) for part in shape.derivatives(both, 1.0))
        return value, slope[0] - slope[1], curvature[0] + curvature[1]
    # Both directions of a pair at once: the losses of the first response add a term linear in z.
    tilted = lost if reversal == 1.0 else reversal * lost
    preference = _mean(compared, shape.of_margin(z)) + _mean(tilted, z)
    value, _ = objective.total(preference, base_value, None, d[:, None])
    slope, curvature = shape.derivatives(z, 1.0)
    slope = compared * slope
    slope += tilted
    return value, slope, compared * curvature


def _mean(weights: Array, values: Array) -> Array:
    """Return the sums of weights * values, (C,): one pass over both."""
    return np.asarray(np.einsum("cp,cp->c", weights, values))


def margin_asked(shape: MarginShape) -> float:
    """Return what the shape asks a chosen response to win by, where every response is one token."""
    one = np.ones(1)
    asked = shape.offset(Columns(logps=(0.0 * one, 0.0 * one), reference=(0.0 * one, 0.0 * one), lengths=(one, one)))
    return 0.0 if asked is None else float(np.squeeze(asked))


def minimizers_exist(wins: Array, d: Array, base: Array, support: Any, objective: Objective) -> NDArray[np.bool_]:
    """Test existence per instance: the reachability of `existence.minimizer_exists`, by boolean closure."""
    s, x, a, _ = wins.shape
    penalised, shape = objective.anchor.weight > 0, require_margin_shape(objective)
    slopes = shape.slopes or (-1.0, 0.0)
    stands = np.ones((s, x), dtype=bool)
    if slopes[1] < 0:
        eta = objective.reward_penalty
        for i, j in np.argwhere((wins > 0).any(axis=(2, 3))):
            won = csr_array(wins[i, j] / wins[i].sum())
            stands[i, j] = falling_pair(won, base[i, j], slopes, eta * d[i, j]) is None
    if slopes[1] != 0:
        wins = wins + wins.transpose(0, 1, 3, 2)  # a loss that moves on both sides counts a comparison both ways
    if penalised and slopes[1] >= 0 and (d > 0).all() and ((base > 0) | ~np.broadcast_to(support, base.shape)).all():
        return np.ones(s, dtype=bool)  # a base of full support anchors every response
    beats = (wins > 0).reshape(s * x, a, a)
    reach, linked = closure(beats), closure(beats | beats.transpose(0, 2, 1))
    anchored = base.reshape(s * x, a) > 0
    carried = anchored | (reach & anchored[:, None, :]).any(axis=2)
    outside = ~np.broadcast_to(support, (s, x, a)).reshape(s * x, a)
    with_penalty = (carried | outside).all(axis=1)
    strong = (~linked | (reach & reach.transpose(0, 2, 1))).all(axis=(1, 2)) | shape.piecewise_linear
    if not penalised:
        # The tie-break needs pi_base mass in every component.
        mass = (linked & anchored[:, None, :]).any(axis=2) | outside
        fine = strong & (mass.all(axis=1) | (d.reshape(-1) == 0))
    else:
        fine = np.where(d.reshape(-1) > 0, with_penalty, strong)
    enters = (d.reshape(-1) > 0) | (wins.reshape(s * x, -1) > 0).any(axis=1)
    return np.asarray((stands & (fine | ~enters).reshape(s, x)).all(axis=1))


def closure(linked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which responses reach which along any number of steps, none included: (C, A, A)."""
    reach = (linked | np.eye(linked.shape[1], dtype=bool)).astype(np.float32)
    for _ in range(int(np.ceil(np.log2(max(linked.shape[1], 2))))):  # paths of up to 2^k steps
        reach = (reach @ reach > 0).astype(np.float32)
    return reach > 0


@lru_cache(maxsize=32)
def pair_indices(a: int) -> tuple[Index, Index]:
    """Return the first and the second response of each pair i < j, (A (A - 1) / 2,)."""
    first, second = np.triu_indices(a, k=1)
    return first, second


@lru_cache(maxsize=32)
def incidence_matrix(a: int) -> Array:
    """Return the (A (A - 1) / 2, A) matrix whose rows are e_i - e_j, i < j."""
    first, second = pair_indices(a)
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
