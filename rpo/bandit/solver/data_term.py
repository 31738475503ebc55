"""What the data add to the loss, E_D[shape], as a function of a vector of rewards: of one margin, or of K rewards each.

A Saddle asks its data term for values, derivatives and slopes, and knows neither margins nor lists itself.

Shapes: n rewards in the vector, G groups of one size K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from rpo.bandit.data import Index
from rpo.core import numerics
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.jets import differentiated
from rpo.core.objectives import Objective, require_margin_shape
from rpo.core.shapes import MarginShape


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups of K responses, best first, by their places in a vector.

    entries: K vectors (G,). weights: (G,), shares of all groups. scores: K vectors (G,), or None.
    """

    entries: tuple[Index, ...]
    weights: Array
    scores: tuple[Array, ...] | None = None

    def columns(self, logps: Any, reference: Any = None) -> Columns:
        """Return the groups as an objective reads them, each response of one token; logps, reference: (n,)."""
        given = None if reference is None else tuple(reference[entry] for entry in self.entries)
        return self.of(tuple(logps[entry] for entry in self.entries), given)

    def of(self, logps: tuple[Any, ...], reference: tuple[Any, ...] | None = None) -> Columns:
        """Return the same of K vectors (G,)."""
        one = np.ones(self.weights.size)
        return Columns(logps=logps, reference=reference, lengths=(one,) * len(self.entries), scores=self.scores)

    def some(self, which: Any, place: Any) -> Groups:
        """Return the groups (g,) of these numbers in another vector; place: (n,), where each entry stands there."""
        return Groups(
            tuple(place[entry[which]] for entry in self.entries),
            self.weights[which],
            None if self.scores is None else tuple(score[which] for score in self.scores),
        )


@dataclass(frozen=True, eq=False)
class DataTerm(ABC):
    """E_D[shape] of an objective on groups, those of one size together."""

    objective: Objective
    groups: tuple[Groups, ...]

    @abstractmethod
    def value(self, rewards: Any) -> Any:
        """Return the term at rewards (n,), NumPy or a cvxpy expression."""

    @abstractmethod
    def derivatives(self, rewards: Array) -> tuple[Any, Array, Array]:
        """Return value, gradient (n,) and Hessian (n, n) at rewards (n,)."""

    @abstractmethod
    def slopes(self, rewards: Array) -> Array:
        """Return p, minus the shape's slopes at rewards (n,), unweighted: one of each margin, or of each reward."""

    @abstractmethod
    def pull(self, p: Array, size: int) -> Array:
        """Return minus the gradient (n,) that slopes -p make, n = `size`."""

    def fenchel_young(self, p: Array, rewards: Array) -> float:
        """Return the mean of shape(r) + <p, r> + shape*(-p) >= 0; at p = `slopes(rewards)` it vanishes."""
        return 0.0

    def some(self, which: Sequence[Any], place: Any) -> Self:
        """Return the term of some groups of each size, by their numbers, in another vector (`Groups.some`)."""
        kept = zip(self.groups, which, strict=True)
        return type(self)(self.objective, tuple(groups.some(mine, place) for groups, mine in kept))

    def moved(self, place: Any) -> Self:
        """Return the same term in another vector."""
        return self.some([slice(None)] * len(self.groups), place)

    def arrows(self, size: int) -> Any:
        """Return the sparse (n, n) bool matrix of the shape's `arrows`: from each winner to what it beat."""
        ends = []
        for groups in self.groups:
            for pair, which in (self.objective.shape.arrows(groups.of(groups.entries)) or {}).items():
                mine = slice(None) if which is True else which
                ends.append(tuple(groups.entries[rank][mine] for rank in pair))
        from_, to = (np.concatenate(side) for side in zip(*ends, strict=True)) if ends else (np.zeros(0, int),) * 2
        return csr_array((np.ones(from_.size, dtype=bool), (from_, to)), shape=(size, size))


@dataclass(frozen=True, eq=False)
class MarginTerm(DataTerm):
    """Pairs under a loss of one margin, chosen minus rejected; offset: what each must win by, (G,), if anything."""

    offset: Any = None

    @property
    def shape(self) -> MarginShape:
        """The objective's."""
        return require_margin_shape(self.objective)

    @property
    def pairs(self) -> Groups:
        """The pairs, all of one size."""
        return self.groups[0]

    def some(self, which: Sequence[Any], place: Any) -> Self:
        """Return the term of some pairs, with their offsets."""
        offset = None if self.offset is None else self.offset[which[0]]
        return type(self)(self.objective, (self.pairs.some(which[0], place),), offset)

    def margins(self, rewards: Any) -> Any:
        """Return z = r(chosen) - r(rejected) - offset, (G,)."""
        chosen, rejected = self.pairs.entries
        z = rewards[chosen] - rewards[rejected]
        return z if self.offset is None else z - self.offset

    def value(self, rewards: Any) -> Any:
        """Return the term at rewards (n,), NumPy or a cvxpy expression."""
        beta = self.objective.link.beta
        return numerics.weighted_mean(self.shape.of_margin(beta * (self.margins(rewards) / beta)), self.pairs.weights)

    def derivatives(self, rewards: Array) -> tuple[Any, Array, Array]:
        """Return value, gradient (n,) and Hessian (n, n) at rewards (n,), through the one margin."""
        shape, beta, size = self.shape, self.objective.link.beta, rewards.size
        (chosen, rejected), weights = self.pairs.entries, self.pairs.weights
        margins = self.margins(rewards) / beta
        slope, curvature = shape.derivatives(margins, beta)
        slope, curvature = weights * slope / beta, weights * curvature / beta**2
        ends, others = np.concatenate([chosen, rejected]), np.concatenate([rejected, chosen])
        gradient = _sums(ends, np.concatenate([slope, -slope]), size)
        cells = np.concatenate([ends * (size + 1), ends * size + others])
        hessian = _sums(cells, np.concatenate([curvature, curvature, -curvature, -curvature]), size * size)
        value = numerics.weighted_mean(shape.of_margin(beta * margins), weights)
        return value, gradient, hessian.reshape(size, size)

    def slopes(self, rewards: Array) -> Array:
        """Return p = -shape'(z), (G,): for Bradley-Terry sigmoid(-z), the probability that the loser wins."""
        return -self.shape.derivatives(self.margins(rewards), 1.0)[0]

    def pull(self, p: Array, size: int) -> Array:
        """Return the sum of weight * p * (e_chosen - e_rejected), (n,)."""
        table = np.zeros(size)
        for entry, sign in zip(self.pairs.entries, (1.0, -1.0), strict=True):
            np.add.at(table, entry, sign * self.pairs.weights * p)
        return table

    def fenchel_young(self, p: Array, rewards: Array) -> float:
        """Return the mean Fenchel-Young loss of the margins, for shapes with a dual; else p are the shape's slopes."""
        if not has_dual(self.shape):
            return 0.0
        return float(self.pairs.weights @ self.shape.fenchel_young(p, self.margins(rewards)))


class GroupTerm(DataTerm):
    """Groups under a loss of all K rewards, differentiated by jets."""

    def _losses(self, columns: Columns) -> Any:
        """Return the losses (G,) of groups whose `logps` are rewards over beta."""
        return self.objective.shape(columns.logps, self.objective.link.beta, columns)

    def _jets(self, groups: Groups, rewards: Array) -> tuple[Array, Array, Array]:
        """Return losses (G,), gradients (K, G) and Hessians (K, K, G) in the rewards of each group."""
        beta = self.objective.link.beta
        values, gradient, hessian = differentiated(self._losses, groups.columns(rewards / beta))
        return values, gradient / beta, hessian / beta**2

    def value(self, rewards: Any) -> Any:
        """Return the term at rewards (n,), NumPy or a cvxpy expression."""
        scaled = rewards / self.objective.link.beta
        return sum(
            numerics.weighted_mean(self._losses(groups.columns(scaled)), groups.weights) for groups in self.groups
        )

    def derivatives(self, rewards: Array) -> tuple[Any, Array, Array]:
        """Return value, gradient (n,) and Hessian (n, n) at rewards (n,)."""
        size = rewards.size
        value, gradient, hessian = 0.0, np.zeros(size), np.zeros(size * size)
        for groups in self.groups:
            losses, slopes, curvatures = self._jets(groups, rewards)
            value += float(groups.weights @ losses)
            gradient += _sums(np.concatenate(groups.entries), (groups.weights * slopes).ravel(), size)
            cells = np.concatenate([one * size + other for one, other in product(groups.entries, repeat=2)])
            hessian += _sums(cells, (groups.weights * curvatures).ravel(), size * size)
        return value, gradient, hessian.reshape(size, size)

    def slopes(self, rewards: Array) -> Array:
        """Return minus the slopes in each reward, K G of each size in a row."""
        return np.concatenate([-self._jets(groups, rewards)[1].ravel() for groups in self.groups])

    def pull(self, p: Array, size: int) -> Array:
        """Return the sum of weight * p * e over all responses of all groups, (n,)."""
        table, start = np.zeros(size), 0
        for groups in self.groups:
            for entry in groups.entries:
                np.add.at(table, entry, groups.weights * p[start : start + entry.size])
                start += entry.size
        return table


def data_term(objective: Objective, groups: tuple[Groups, ...], log_reference: Array) -> DataTerm:
    """Return the term of an objective on groups; log_reference: (n,), for what a margin's offset reads."""
    shape = objective.shape
    if not isinstance(shape, MarginShape):
        return GroupTerm(objective, groups)
    (pairs,) = groups
    asked = shape.offset(pairs.columns(log_reference, log_reference))
    return MarginTerm(objective, groups, np.broadcast_to(asked, pairs.weights.shape) if np.any(asked) else None)


def has_dual(shape: object) -> bool:
    """Return whether the shape's Fenchel-Young loss is known at every p."""
    return isinstance(shape, MarginShape) and type(shape).dual is not MarginShape.dual


def _sums(index: Index, values: Array, size: int) -> Array:
    """Return the sum of the values at each index, (size,): of none, NumPy's bincount answers in integers."""
    return np.asarray(np.bincount(index, values, size), dtype=np.float64)
