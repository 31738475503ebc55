"""Preferences as win counts, the sufficient statistic of the likelihood."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.summary import Summarised, counted

MAX_COUNT = 10**12
MAX_EXPLICIT_PAIRS = 10**7
MAX_KEY = 2**62
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RankedBlock:
    """G different groups of K responses of a prompt, best first, and how often each occurred.

    prompt: (G,). responses: (G, K). count: (G,), > 0. scores: (G, K) or None.
    """

    prompt: Index
    responses: Index
    count: Array
    scores: Array | None = None


class CountedGroups:
    """What every data set says of its groups: how many, at which prompts, of which responses."""

    num_prompts: int
    num_responses: int

    @property
    def blocks(self) -> tuple[RankedBlock, ...]:
        """The groups, those of one size K together."""
        raise NotImplementedError

    @property
    def scored(self) -> bool:
        """Whether every response of every group has a score."""
        return all(block.scores is not None for block in self.blocks)

    @property
    def n(self) -> float:
        """N, the number of groups."""
        return float(sum(block.count.sum() for block in self.blocks))

    @property
    def prompt_frequencies(self) -> Array:
        """(X,), N_x / N: the prompt weights "data"."""
        counts = (np.bincount(b.prompt, b.count / self.n, self.num_prompts) for b in self.blocks)
        return np.asarray(sum(counts), dtype=np.float64)

    def response_frequencies(self, which: str) -> Array:
        """Return (X, A): how often each response is "chosen", "rejected" or either ("responses").

        Each row sums to one, or is zero for a prompt without data.
        """
        table = self.response_counts(which)
        total = table.sum(axis=1, keepdims=True)
        return np.divide(table, total, out=np.zeros(table.shape), where=total > 0)

    def response_counts(self, which: str) -> Array:
        """Return (X, A): how many times each response is "chosen", "rejected" or either ("responses").

        Of a list the first is chosen, and every other rejected.
        """
        checks.one_of("which", which, ("chosen", "rejected", "responses"))
        table = _zeros(self.num_prompts, self.num_responses)
        for block in self.blocks:
            ranks = range(block.responses.shape[1])
            for k in {"chosen": ranks[:1], "rejected": ranks[1:], "responses": ranks}[which]:
                np.add.at(table, (block.prompt, block.responses[:, k]), block.count)
        return table


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PreferenceCounts(Summarised, CountedGroups):
    """Win counts n[x, w, l], stored sparsely over the K distinct (prompt, chosen, rejected) triples.

    prompt, chosen, rejected: (K,) indices. count: (K,), > 0; whole numbers, or halves where ties
    were split. num_prompts X, num_responses A. own_labels: the labels of each prompt's responses where
    they are numbered prompt by prompt (`per_prompt`). Build it with `from_pairs`, `from_wins` or
    `rpo.bandit.read_preferences`, which check and aggregate; the constructor itself does not.
    """

    prompt: Index
    chosen: Index
    rejected: Index
    count: Array
    num_prompts: int
    num_responses: int
    prompt_labels: tuple[str, ...] | None = None
    response_labels: tuple[str, ...] | None = None
    own_labels: tuple[tuple[str, ...], ...] | None = None

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """How many comparisons, of how many different ones, over what."""
        headline = f"PreferenceCounts: {counted(float(self.count.sum()), 'comparison')}"
        compared = len(np.unique(self.prompt))
        return headline, {
            "distinct": f"{len(self.count):,}",
            "prompts": f"{self.num_prompts:,}" + ("" if compared == self.num_prompts else f" ({compared:,} with data)"),
            "responses": f"{self.num_responses:,}",
        }

    @classmethod
    def from_pairs(
        cls,
        prompt: Any,
        chosen: Any,
        rejected: Any,
        *,
        num_prompts: int,
        num_responses: int,
        count: Any = None,
        prompt_labels: tuple[str, ...] | None = None,
        response_labels: tuple[str, ...] | None = None,
    ) -> PreferenceCounts:
        """Count explicit pairs. prompt, chosen, rejected: (N,) indices; count: (N,), > 0, or None for ones."""
        size, arms = table_shape(num_prompts, num_responses)
        prompt_labels = checks.labels("prompt_labels", prompt_labels, size)
        response_labels = checks.labels("response_labels", response_labels, arms)
        x = indices("prompt", prompt, size)
        w = indices("chosen", chosen, arms)
        lost = indices("rejected", rejected, arms)
        for name, index in (("chosen", w), ("rejected", lost)):
            checks.has_shape(name, index, x.shape)
        if not x.size:
            raise InvalidArgument("pairs", expected="at least one preference", got="none", remedy="Pass some data.")
        same = np.flatnonzero(w == lost)
        if same.size:
            raise InvalidArgument(
                "rejected",
                expected="a response other than chosen",
                got=f"response {int(w[same[0]])} against itself at pair {int(same[0])} ({same.size} such pairs)",
                remedy="Remove the pairs whose two responses are the same.",
            )
        n = counts(count, x.size)
        key = (x * arms + w) * arms + lost
        distinct, position = np.unique(key, return_inverse=True)
        return cls(
            prompt=distinct // arms**2,
            chosen=distinct // arms % arms,
            rejected=distinct % arms,
            count=np.asarray(np.bincount(position, weights=n, minlength=distinct.size), dtype=np.float64),
            num_prompts=size,
            num_responses=arms,
            prompt_labels=prompt_labels,
            response_labels=response_labels,
        )

    @classmethod
    def from_wins(
        cls,
        wins: Any,
        *,
        prompt_labels: tuple[str, ...] | None = None,
        response_labels: tuple[str, ...] | None = None,
    ) -> PreferenceCounts:
        """Read the dense table wins[x, w, l], (X, A, A), >= 0 with a zero diagonal."""
        table = checks.finite("wins", wins, shape=(None, None, None))
        if table.shape[1] != table.shape[2]:
            raise InvalidArgument("wins", expected="shape (X, A, A)", got=f"shape {table.shape}", remedy="Reshape it.")
        if (table < 0).any():
            raise InvalidArgument("wins", expected="counts >= 0", got=table.min(), remedy="Counts are not negative.")
        x, w, lost = np.nonzero(table)
        return cls.from_pairs(
            x,
            w,
            lost,
            count=table[x, w, lost],
            num_prompts=table.shape[0],
            num_responses=table.shape[1],
            prompt_labels=prompt_labels,
            response_labels=response_labels,
        )

    def per_prompt(self) -> PreferenceCounts:
        """Return the same counts with each prompt's responses numbered on their own, in their old order.

        A becomes the largest number of responses that occur at one prompt. For free text, where every
        prompt has responses of its own, this is a table of X times a few entries, and not X times all.
        """
        if self.own_labels is not None:
            return self
        occurs, position = np.unique(
            np.concatenate([self.prompt, self.prompt]) * self.num_responses
            + np.concatenate([self.chosen, self.rejected]),
            return_inverse=True,
        )
        prompt, response = np.divmod(occurs, self.num_responses)
        first = np.searchsorted(prompt, np.arange(self.num_prompts + 1))
        own = (np.arange(occurs.size) - first[prompt])[position]
        labels = None
        if self.response_labels is not None:
            named = [self.response_labels[a] for a in response.tolist()]
            labels = tuple(tuple(named[a:b]) for a, b in itertools.pairwise(first.tolist()))
        return replace(
            self,
            chosen=own[: self.chosen.size],
            rejected=own[self.chosen.size :],
            num_responses=max(2, int(np.diff(first).max())),
            response_labels=None,
            own_labels=labels,
        )

    @property
    def blocks(self) -> tuple[RankedBlock, ...]:
        """The preferences as groups of two, chosen first."""
        return (RankedBlock(self.prompt, np.stack([self.chosen, self.rejected], axis=1), self.count),)

    @property
    def weights(self) -> Array:
        """(K,), count / N."""
        return np.asarray(self.count / self.n)

    def wins(self) -> Array:
        """Return the dense table n[x, w, l], (X, A, A)."""
        table = _zeros(self.num_prompts, self.num_responses, self.num_responses)
        table[self.prompt, self.chosen, self.rejected] = self.count
        return table

    def to_pairs(self) -> tuple[Index, Index, Index]:
        """Return (prompt, chosen, rejected), each (N,), sorted; refuse above 1e7 pairs or for split ties."""
        if self.n > MAX_EXPLICIT_PAIRS or (self.count % 1 != 0).any():
            raise InvalidArgument(
                "counts",
                expected=f"whole counts and at most {MAX_EXPLICIT_PAIRS:g} pairs",
                got=f"N = {self.n:g}",
                remedy="Use the counts themselves: they hold the same information.",
            )
        times = self.count.astype(np.int64)
        return np.repeat(self.prompt, times), np.repeat(self.chosen, times), np.repeat(self.rejected, times)


def require_groups(value: object) -> CountedGroups:
    """Return `value`, or refuse what is neither pairs nor lists."""
    if isinstance(value, CountedGroups):
        return value
    got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    remedy = "Draw or read some, or build them with from_pairs or from_lists."
    raise InvalidArgument("data", expected="PreferenceCounts or RankedLists", got=got, remedy=remedy)


def _zeros(*shape: int) -> Array:
    remedy = "Call counts.per_prompt(), thin the prompts, or merge responses into fewer labels."
    checks.table_size("counts", shape, remedy=remedy)
    return np.zeros(shape)


def table_shape(num_prompts: object, num_responses: object) -> tuple[int, int]:
    """Return (X, A), or refuse fewer than one prompt or two responses, and too many to number pairs by."""
    size = checks.integer("num_prompts", num_prompts, minimum=1)
    arms = checks.integer("num_responses", num_responses, minimum=2)
    if size > checks.MAX_TABLE or size * arms**2 > MAX_KEY:
        raise InvalidArgument(
            "num_prompts, num_responses",
            expected=f"at most {checks.MAX_TABLE:g} prompts, and X A^2 at most {MAX_KEY:.0e}",
            got=f"X = {size}, A = {arms}",
            remedy="Thin the prompts, or merge responses into fewer labels.",
        )
    return size, arms


def counts(count: Any, size: int, what: str = "pairs") -> Array:
    """Return how often each of `size` groups occurred, ones for None; refuse what is not above zero, or too much."""
    n = np.ones(size) if count is None else checks.finite("count", count, shape=(size,))
    if (n <= 0).any():
        raise InvalidArgument(
            "count", expected="counts > 0", got=n.min(), remedy=f"Leave out the {what} that never happened."
        )
    if n.sum() > MAX_COUNT:
        raise InvalidArgument("count", expected=f"a total <= {MAX_COUNT:g}", got=n.sum(), remedy="Thin the data.")
    return n


def indices(name: str, values: Any, size: int) -> Index:
    """Return `values` (N,) as integers in [0, size), or refuse them."""
    array = checks.numbers(name, values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidArgument(
            name,
            expected="a one-dimensional array of integers",
            got=f"{array.dtype} of shape {array.shape}",
            remedy="Pass indices; read_preferences turns string labels into them.",
        )
    if array.size and (array.min() < 0 or array.max() >= size):
        raise InvalidArgument(
            name,
            expected=f"indices in [0, {size - 1}]",
            got=f"[{array.min()}, {array.max()}]",
            remedy="Check the index, or raise num_prompts / num_responses.",
        )
    return array.astype(np.int64)
