"""A cell's draws: problems and data from their seeds, many at once where the instance allows it.

Shapes: S draws, X prompts, A responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.data import Index, PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.problems import Problems
from rpo.bandit.simulation.grid import NOISE, Source, digest
from rpo.core.checks import Array

BLOCK_SEEDS = 100
BLOCK_ENTRIES = 1_000_000  # win counts, X A^2 a draw: 8 MB, and the solver some ten times that
PROBLEM, DATA, METHOD = 0, 1, 2  # streams of one seed
PROBLEMS, DATA_SETS = 3, 4  # streams of a block of seeds
OWN_FAILURES = (Exception, SystemExit)  # what a user's function may raise: it becomes a row


@dataclass(frozen=True, eq=False)
class Draw:
    problem: ContextualBandit
    data: PreferenceCounts


@dataclass(frozen=True, eq=False)
class Draws:
    """S draws of one shape. where: (S,), the places of their seeds in the cell's list. wins: (S, X, A, A).

    problems: as one table a field, or one by one. held: the draws themselves, where they were made one by one.
    """

    where: Index
    problems: Problems
    wins: Array
    held: Sequence[Draw] | None = None

    def __len__(self) -> int:
        return len(self.where)

    @property
    def alike(self) -> bool:
        """Whether the problems differ in nothing but d0, reference, r*, behaviour and features."""
        return self.held is None

    def problem(self, i: int) -> ContextualBandit:
        """Return the problem of the draw at place i of these."""
        return self.problems[i] if self.held is None else self.held[i].problem

    def draw(self, i: int) -> Draw:
        """Return the draw at place i of these."""
        if self.held is not None:
            return self.held[i]
        problem = self.problems[i]
        labels = {"prompt_labels": problem.prompt_labels, "response_labels": problem.response_labels}
        return Draw(problem, PreferenceCounts.from_wins(self.wins[i], **labels))


class Streams:
    """The random numbers of one combination of instance parameters and n: a function of root, content and seed alone.

    A block is `block` seeds from a multiple of it on, drawn whole whichever of them are asked for.
    """

    def __init__(self, source: Source, unit: dict[str, Any], root: int) -> None:
        self.source, self.root, self.n = source, root, int(unit["n"])
        self.parameters = {key: value for key, value in unit.items() if key != "n"}
        # Flipped labels change the data, not the problem.
        shown = {key: value for key, value in unit.items() if key != NOISE and (key != "n" or source.depends_on_n)}
        self.problem_hash = int(digest(source.name, shown), 16)
        self.data_hash = int(digest(source.name, unit), 16)

    def generator(self, stream: int, content: int, number: int) -> np.random.Generator:
        """Return the Generator of one seed or block."""
        return np.random.default_rng(np.random.SeedSequence([self.root, stream, content, number]))

    def problem(self, seed: int) -> ContextualBandit:
        """Return the problem of one seed, made alone."""
        return self.source.build(self.parameters, self.n, self.generator(PROBLEM, self.problem_hash, seed))

    def problems(self, number: int, size: int) -> Problems:
        """Return the problems of a block."""
        generator = self.generator(PROBLEMS, self.problem_hash, number)
        return self.source.build_many(self.parameters, self.n, size, generator)

    @property
    def block(self) -> int:
        """How many seeds are drawn at once: fewer where a problem is large."""
        _, x, a = self.problems(0, 1).reference.shape
        return max(1, min(BLOCK_SEEDS, BLOCK_ENTRIES // (x * a * a)))


def draw_blocks(streams: Streams, seeds: Sequence[int]) -> tuple[list[Draws], dict[int, BaseException]]:
    """Return the draws of these seeds, ascending, and what went wrong by place."""
    size = streams.block
    block, place = np.divmod(np.asarray(seeds, dtype=np.int64), size)
    found: list[tuple[Index, Problems, Array]] = []
    failures: dict[int, BaseException] = {}
    for number in np.unique(block):
        where = np.flatnonzero(block == number)
        try:
            problems = streams.problems(int(number), size)
            wins = problems.sample_wins(streams.n, streams.generator(DATA_SETS, streams.data_hash, int(number)))
            found.append((where, problems.at(place[where]), wins[place[where]]))
        except OWN_FAILURES as error:
            failures |= dict.fromkeys(where.tolist(), error)
    if not found:
        return [], failures
    places, parts, tables = zip(*found, strict=True)
    return [Draws(np.concatenate(places), Problems.joined(parts), np.concatenate(tables))], failures


def draw_each(draw: Callable[[int], Draw], seeds: Sequence[int]) -> tuple[list[Draws], dict[int, BaseException]]:
    """Return the draws that `draw` makes of each seed, those of one shape together, and what went wrong by place."""
    failures: dict[int, BaseException] = {}
    shapes: dict[tuple[int, ...], list[tuple[int, Draw, Array]]] = {}
    for i, seed in enumerate(seeds):
        try:
            made = draw(seed)
            made.problem.true_reward()
            shapes.setdefault(made.problem.reference.shape, []).append((i, made, made.data.wins()))
        except OWN_FAILURES as error:
            failures[i] = error
    return [_together(*zip(*group, strict=True)) for group in shapes.values()], failures


def _together(where: tuple[int, ...], held: tuple[Draw, ...], wins: tuple[Array, ...]) -> Draws:
    names = ("d0", "reference", "reward")
    tables: dict[str, Any] = {name: np.stack([getattr(draw.problem, name) for draw in held]) for name in names}
    return Draws(np.asarray(where), Problems(**tables, reward_bound=np.nan), np.stack(wins), held)
