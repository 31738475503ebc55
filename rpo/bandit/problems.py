"""Many problems of one shape, drawn and counted at once.

Shapes: S problems, X prompts, A responses, P = A (A - 1) / 2 pairs i < j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rpo.bandit.data import MAX_COUNT, Index
from rpo.bandit.drawing import pairs_of, recorded_wins, win_table
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Problems:
    """S problems that differ in their numbers alone; each is a `ContextualBandit`, made when it is asked for.

    d0: (S, X). reference, reward: (S, X, A). behavior: (S, X, A) or (S, X, A, A), None for the reference. features:
    (S, X, A, D) or None. fixed: the problem that all of them are, if they are one. Nothing is checked here but by the
    problems themselves.
    """

    d0: Array
    reference: Array
    reward: Array
    reward_bound: float
    behavior: Array | None = None
    features: Array | None = None
    label_noise: float = 0.0
    name: str = "bandit"
    fixed: ContextualBandit | None = None

    @classmethod
    def repeated(cls, problem: ContextualBandit, size: int) -> Problems:
        """Return one problem `size` times."""

        def many(table: Any) -> Any:
            return None if table is None else np.broadcast_to(table, (size, *table.shape))

        return cls(
            d0=many(problem.d0),
            reference=many(problem.reference),
            reward=many(problem.true_reward()),
            reward_bound=problem.reward_bound or 0.0,
            behavior=many(problem.behavior),
            features=many(problem.features),
            label_noise=problem.label_noise,
            name=problem.name,
            fixed=problem,
        )

    def __len__(self) -> int:
        return len(self.d0)

    def __getitem__(self, i: int) -> ContextualBandit:
        """Return the problem at place i."""
        if self.fixed is not None:
            return self.fixed
        return ContextualBandit(
            d0=self.d0[i],
            reference=self.reference[i],
            reward=self.reward[i],
            reward_bound=self.reward_bound,
            behavior=None if self.behavior is None else self.behavior[i],
            features=None if self.features is None else self.features[i],
            label_noise=self.label_noise,
            name=self.name,
        )

    def at(self, places: Index) -> Problems:
        """Return the problems at these places."""
        tables: dict[str, Any] = {name: table[places] for name, table in self._tables.items()}
        return replace(self, **tables)

    @classmethod
    def joined(cls, parts: Sequence[Problems]) -> Problems:
        """Return the problems of all parts, which differ in their numbers alone."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {name: np.concatenate([p._tables[name] for p in parts]) for name in parts[0]._tables}
        return replace(parts[0], **joined)

    @property
    def _tables(self) -> dict[str, Array]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def best(self) -> Array:
        """(S,), what the policy greedy on r* is worth."""
        most = np.where(self.reference > 0, self.reward, -np.inf).max(axis=-1)
        return np.asarray((self.d0 * most).sum(axis=-1))

    def sample_wins(self, n: int, generator: np.random.Generator) -> Array:
        """Return n preferences of each problem as win counts, (S, X, A, A): as `sample_preferences` draws them."""
        total = checks.integer("n", n, minimum=1, maximum=MAX_COUNT)
        s, x, a = self.reference.shape
        first, second = np.triu_indices(a, k=1)
        if getattr(self.fixed, "design", None) is not None:  # planned: nothing is drawn but the winners
            drawn = np.broadcast_to(self.fixed.draw_pairs(total, generator), (s, x, first.size))  # type: ignore[union-attr]
        else:
            mu, whole = pairs_of(self.reference if self.behavior is None else self.behavior, (s, x, a, a))
            mass = (self.d0[:, :, None] * (mu / whole)[:, :, first, second]).reshape(s, -1)
            drawn = generator.multinomial(total, mass / mass.sum(axis=1, keepdims=True)).reshape(s, x, -1)
        win = recorded_wins(self.reward, self.label_noise)[:, :, first, second]
        return win_table(drawn, generator.binomial(drawn, win), a)
