"""Ranked lists: groups of K responses of a prompt, best first, counted, with scores where there are any.

Shapes: X prompts, A responses, G different groups of one size K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rpo.bandit.data import CountedGroups, Index, PreferenceCounts, RankedBlock, counts, indices, table_shape
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

RULES = ("all_pairs", "best_worst", "best_random", "adjacent")


@dataclass(frozen=True, eq=False, kw_only=True)
class RankedLists(CountedGroups):
    """Ranked lists n[x, (a_1, ..., a_K)], best first, stored sparsely: one block for each size K that occurs.

    by_size: the blocks. num_prompts X, num_responses A. Build it with `from_lists` or
    `ContextualBandit.sample_rankings`, which check and count; the constructor itself does not.
    """

    by_size: tuple[RankedBlock, ...]
    num_prompts: int
    num_responses: int
    prompt_labels: tuple[str, ...] | None = None
    response_labels: tuple[str, ...] | None = None
    own_labels: None = field(default=None, init=False)  # responses are numbered alike at every prompt

    @classmethod
    def from_lists(
        cls,
        prompt: Any,
        responses: Any,
        *,
        num_prompts: int,
        num_responses: int,
        count: Any = None,
        scores: Any = None,
        prompt_labels: tuple[str, ...] | None = None,
        response_labels: tuple[str, ...] | None = None,
    ) -> RankedLists:
        """Count explicit lists. prompt: (N,) indices. responses: (N, K) indices, or N lists of two or more, best first.

        count: (N,), > 0, or None for ones. scores: one for each response, in units of their own, none above the one
        before it; with them a response may stand alone. Equal lists of equal scores are added up. Raises
        InvalidArgument.
        """
        size, arms = table_shape(num_prompts, num_responses)
        prompt_labels = checks.labels("prompt_labels", prompt_labels, size)
        response_labels = checks.labels("response_labels", response_labels, arms)
        x = indices("prompt", prompt, size)
        if not x.size:
            raise InvalidArgument("lists", expected="at least one list", got="none", remedy="Pass some data.")
        n = counts(count, x.size, "lists")
        ranked, lengths = _rows("responses", responses, x.size)
        if lengths.min() < (2 if scores is None else 1):
            raise InvalidArgument(
                "responses",
                expected="lists of at least two responses, or of one with a score",
                got=f"{lengths.min()} in list {int(lengths.argmin())}",
                remedy="Leave out lists that say nothing.",
            )
        scored = None
        if scores is not None:
            scored, of_scores = _rows("scores", scores, x.size)
            if not np.array_equal(of_scores, lengths):
                g = int(np.flatnonzero(of_scores != lengths)[0])
                got = f"{of_scores[g]} for the {lengths[g]} responses of list {g}"
                raise InvalidArgument("scores", expected="one for each response", got=got, remedy="Pass one for each.")
        blocks = []
        for k in np.unique(lengths).tolist():
            mine = np.flatnonzero(lengths == k)
            table = indices("responses", _some(ranked, mine).ravel(), arms).reshape(mine.size, k)
            values = None if scored is None else checks.finite("scores", _some(scored, mine))
            _check_ranked(table, values, mine)
            blocks.append(counted(x[mine], table, n[mine], values))
        return cls(
            by_size=tuple(blocks),
            num_prompts=size,
            num_responses=arms,
            prompt_labels=prompt_labels,
            response_labels=response_labels,
        )

    @property
    def blocks(self) -> tuple[RankedBlock, ...]:
        """The groups, those of one size K together."""
        return self.by_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes K that occur, rising."""
        return tuple(block.responses.shape[1] for block in self.blocks)

    def to_pairs(self, rule: str, *, rng: Any = None) -> PreferenceCounts:
        """Return preferences made of the lists, counted, by a stated rule; K - 1 or more of a list are left out by it.

        rule: "all_pairs", K (K - 1) / 2 of a list; "best_worst", the first against the last; "best_random", the first
        against one of the others drawn evenly for each list, which needs rng; "adjacent", each against the next, K - 1
        of a list. Raises InvalidArgument.
        """
        checks.one_of("rule", rule, RULES)
        if 1 in self.sizes:
            raise InvalidArgument(
                "lists",
                expected="at least two responses in each",
                got="responses that stand alone",
                remedy="Pairs need another response to the prompt.",
            )
        generator = checks.generator("rng", rng) if rule == "best_random" else None
        found = [
            (block.prompt, block.responses[:, i], block.responses[:, j], count)
            for block in self.blocks
            for i, j, count in _chosen_pairs(block, rule, generator)
        ]
        prompt, chosen, rejected, count = (np.concatenate(part) for part in zip(*found, strict=True))
        kept = count > 0
        return PreferenceCounts.from_pairs(
            prompt[kept],
            chosen[kept],
            rejected[kept],
            count=count[kept],
            num_prompts=self.num_prompts,
            num_responses=self.num_responses,
            prompt_labels=self.prompt_labels,
            response_labels=self.response_labels,
        )


def _chosen_pairs(
    block: RankedBlock, rule: str, generator: np.random.Generator | None
) -> Iterator[tuple[int, int, Array]]:
    """Yield the ranks (i, j), i above j, of a block's pairs by a rule, and how often each list gives them, (G,)."""
    k = block.responses.shape[1]
    if generator is None:
        ranks = {
            "all_pairs": list(combinations(range(k), 2)),
            "best_worst": [(0, k - 1)],
            "adjacent": [(i, i + 1) for i in range(k - 1)],
        }[rule]
        for i, j in ranks:
            yield i, j, block.count
        return
    if (block.count % 1 != 0).any():
        raise InvalidArgument(
            "rule",
            expected="another rule for lists whose counts are not whole numbers",
            got="'best_random'",
            remedy="Use 'all_pairs', 'best_worst' or 'adjacent', or round the counts.",
        )
    drawn = generator.multinomial(block.count.astype(np.int64), np.full(k - 1, 1.0 / (k - 1)))
    for j in range(1, k):
        yield 0, j, drawn[:, j - 1].astype(np.float64)


def _rows(name: str, values: Any, size: int) -> tuple[Any, Index]:
    """Return `size` rows, an array (N, K) or a list of arrays, and how many entries each has, (N,)."""
    if isinstance(values, np.ndarray) or not checks.is_listed(values):
        table = checks.numbers(name, values)
        checks.has_shape(name, table, (size, None))
        return table, np.full(size, table.shape[1])
    rows = [checks.numbers(f"{name}[{g}]", row) for g, row in enumerate(values)]
    if len(rows) != size:
        raise InvalidArgument(name, expected=f"{size} lists", got=len(rows), remedy="Pass one for each prompt.")
    for g, row in enumerate(rows):
        checks.has_shape(f"{name}[{g}]", row, (None,))
    return rows, np.array([row.size for row in rows])


def _some(rows: Any, which: Index) -> Any:
    """Return the rows (g, K) of these numbers, all of one length."""
    return rows[which] if isinstance(rows, np.ndarray) else np.asarray([rows[g] for g in which])


def _check_ranked(table: Index, scores: Array | None, which: Index) -> None:
    """Refuse lists (G, K) that name a response twice or whose scores rise; which: (G,), their numbers."""
    ordered = np.sort(table, axis=1)
    for g in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))[:1]:
        raise InvalidArgument(
            "responses",
            expected="different responses in a list",
            got=f"list {which[g]}: {table[g].tolist()}",
            remedy="Leave out what is there twice.",
        )
    if scores is None:
        return
    for g in np.flatnonzero((scores[:, 1:] > scores[:, :-1]).any(axis=1))[:1]:
        raise InvalidArgument(
            "scores",
            expected="scores that never rise along a list, whose responses stand best first",
            got=f"list {which[g]}: {scores[g].tolist()}",
            remedy="Sort each list by its scores; say how ties are ordered.",
        )


def counted(prompt: Index, responses: Index, count: Array, scores: Array | None = None) -> RankedBlock:
    """Return the block of lists (N, K) of one size, equal ones of equal scores added up."""
    k = responses.shape[1]
    parts = [prompt[:, None], responses] + ([] if scores is None else [scores])
    distinct, position = np.unique(np.concatenate(parts, axis=1), axis=0, return_inverse=True)
    return RankedBlock(
        prompt=distinct[:, 0].astype(np.int64),
        responses=distinct[:, 1 : k + 1].astype(np.int64),
        count=np.asarray(np.bincount(position.ravel(), weights=count, minlength=len(distinct)), dtype=np.float64),
        scores=None if scores is None else np.asarray(distinct[:, k + 1 :], dtype=np.float64),
    )
