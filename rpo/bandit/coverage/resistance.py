"""Effective resistance of a comparison graph: its Laplacian reduced node by node, without subtractions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rpo.bandit.data import Index
from rpo.core import checks
from rpo.core.checks import PROBABILITY_TOLERANCE, Array
from rpo.core.errors import InvalidArgument

SYMMETRY = 1e-12


@dataclass(frozen=True, eq=False)
class Network:
    """A weighted graph over A nodes with its nodes eliminated one after another (star-mesh transform).

    conductance: (A, A), symmetric, >= 0, zero diagonal. component: (A,), the number of each node's
    component. pivot: (A,), the node's total conductance when its turn comes, zero for the last node of
    a component. share: (A, A), the shares of pivot that lead to the nodes still there. The Laplacian is
    sum_k pivot_k s_k s_k', s_k = e_k - share_k. Only products and sums of non-negative numbers occur,
    so small conductances keep their relative accuracy.
    """

    conductance: Array
    component: Index
    pivot: Array
    share: Array

    @property
    def num_components(self) -> int:
        """Number of connected components."""
        return int(self.component.max()) + 1

    def masses(self, demand: Array) -> Array:
        """Return the total demand (A,) of each component, (components,)."""
        return np.asarray(np.bincount(self.component, demand, self.num_components), dtype=np.float64)

    def balanced(self, demand: Array) -> Array:
        """Return demand (A,) with each component's total moved off its best connected node: the total is zero."""
        settled = demand.astype(np.float64)
        degree = self.conductance.sum(axis=1)
        for number, mass in enumerate(self.masses(demand)):
            if mass != 0:
                members = np.flatnonzero(self.component == number)
                settled[members[degree[members].argmax()]] -= mass
        return settled

    def energy(self, demand: Array) -> tuple[float, Array]:
        """Return the power of the currents that meet a balanced demand (A,), and potentials (A,) driving them.

        power = demand' L^+ demand = sum_k q_k^2 / pivot_k, q the demand as the elimination meets it;
        potentials solve L v = demand, zero at the last node of each component.
        """
        met = demand.astype(np.float64)
        for k in np.flatnonzero(self.pivot > 0):
            met = met + met[k] * self.share[k]
        voltage = np.divide(met, self.pivot, out=np.zeros(met.shape), where=self.pivot > 0)
        power = float(met @ voltage)
        for k in np.flatnonzero(self.pivot > 0)[::-1]:
            voltage[k] += self.share[k] @ voltage
        return power, voltage

    def steps(self) -> Array:
        """Return the vectors s_k, (A, A), a row each, zero for last nodes: they span the range of L."""
        return np.asarray(np.where(self.pivot[:, None] > 0, np.eye(len(self.pivot)) - self.share, 0.0))

    def factor(self) -> Array:
        """Return G, (A, A), with G' G = L."""
        return np.asarray(np.sqrt(self.pivot)[:, None] * self.steps())


def reduce_network(conductance: Array) -> Network:
    """Eliminate the nodes of a symmetric conductance matrix (A, A) in their order; the diagonal is ignored."""
    size = len(conductance)
    left = conductance * (1.0 - np.eye(size))
    _, component = connected_components(csr_array(left), directed=False)
    pivot, share = np.zeros(size), np.zeros((size, size))
    remaining = left.copy()
    for k in range(size):
        pivot[k] = remaining[k].sum()
        if pivot[k] > 0:
            share[k] = remaining[k] / pivot[k]
            # A star of k and its neighbours becomes a mesh among them: c_ij + c_ik c_kj / pivot_k.
            remaining += np.outer(remaining[k], share[k])
            remaining[np.arange(size), np.arange(size)] = 0.0
            remaining[k] = remaining[:, k] = 0.0
    return Network(conductance=left, component=component.astype(np.int64), pivot=pivot, share=share)


def check_conductance(name: str, weights: Any) -> Array:
    """Return `weights` as a symmetric (A, A) array with entries >= 0 and at least one node, or refuse it."""
    table = checks.finite(name, weights, shape=(None, None))
    if table.shape[0] != table.shape[1] or not table.size:
        raise InvalidArgument(name, expected="shape (A, A)", got=f"shape {table.shape}", remedy="Pass a square matrix.")
    if table.min() < 0:
        raise InvalidArgument(name, expected="entries >= 0", got=table.min(), remedy="Weights are frequencies.")
    if not np.allclose(table, table.T, rtol=SYMMETRY, atol=0.0):
        raise InvalidArgument(
            name,
            expected="a symmetric matrix: one conductance an edge",
            got="a matrix that differs from its transpose",
            remedy=f"Pass {name} + {name}.T: an edge carries the pairs of both orders.",
        )
    return np.asarray(np.maximum(table, table.T))


def mass_tolerance(p: Array, q: Array, tolerance: float) -> float:
    """Return the mass below which a component counts as balanced: `tolerance` plus what p and q lack to one."""
    return tolerance + abs(float(p.sum()) - 1.0) + abs(float(q.sum()) - 1.0)


def effective_resistance(weights: Any, p: Any, q: Any, *, tolerance: float = PROBABILITY_TOLERANCE) -> float:
    r"""Return the effective resistance between two distributions over the nodes of a weighted graph.

    $\min_f \sum_e f_e^2 / w_e$ over the flows f that carry p to q: the least power of a unit of current
    that enters as p and leaves as q, equal to $(p - q)^\top L^+ (p - q)$. For two single nodes it is the
    resistance between them; it is infinite when p and q give some component different mass, by more
    than `tolerance`.

    weights: (A, A), symmetric, >= 0, conductance of each edge; the diagonal carries no current.
    p, q: (A,), probabilities. Raises InvalidArgument. Source: docs/theory.md, coverage.
    """
    table = check_conductance("weights", weights)
    source = checks.probabilities("p", p, shape=(len(table),))
    sink = checks.probabilities("q", q, shape=(len(table),))
    network = reduce_network(table)
    demand = source - sink
    slack = mass_tolerance(source, sink, checks.nonnegative("tolerance", tolerance))
    if np.abs(network.masses(demand)).max() > slack:
        return float("inf")
    return network.energy(network.balanced(demand))[0]
