"""The instance of lists: rankings with scores, read whole by methods on lists and as all their pairs by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rpo.bandit import Box, RankedLists, fit, solve
from rpo.bandit.simulation.answers import Answer
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.draws import DATA, Draw
from rpo.bandit.simulation.grid import source
from rpo.bandit.simulation.methods import is_solvable
from rpo.compare.atlas.entrants import settled
from rpo.compare.atlas.instances import AtlasInstance
from rpo.core.objectives import Objective

LIST_SEEDS = 40  # of an atlas's seeds, for all methods here: lists are solved one draw at a time


@dataclass(frozen=True, eq=False)
class ListDraw(Draw):
    """A draw whose pairs are all those of its lists."""

    ranked: RankedLists


class ListCell(Cell):
    """Draws of lists of K scored responses."""

    def __init__(self, instance: AtlasInstance, seeds: Sequence[int], root: int) -> None:
        super().__init__(source(instance.source), instance.unit, seeds, root, at_once=False)
        self.instance = instance

    def _draw(self, seed: int) -> Draw:
        problem, instance = self.problem(seed), self.instance
        generator = self.streams.generator(DATA, self.streams.data_hash, seed)
        ranked = problem.sample_rankings(self.n, size=instance.lists, score_noise=instance.score_noise, rng=generator)
        return ListDraw(problem, ranked.to_pairs("all_pairs"), ranked)

    def whole_lists(self, objective: Objective) -> list[Answer | None]:
        """Return the answers of a method on lists."""
        return [self._ranked(draw, objective) if isinstance(draw, ListDraw) else None for draw in self.draws]

    def _ranked(self, draw: ListDraw, objective: Objective) -> Answer:
        ranked = within_unit(draw.ranked) if objective.shape.unit_scores else draw.ranked
        if is_solvable(objective):
            box = Box(self.instance.bound)
            solution = solve(draw.problem, ranked, settled(objective), reward_class=box, method="newton")
            return Answer(solution.status, solution.message, solution.policy, solution.reward)
        run = fit(draw.problem.softmax_policy(), ranked, objective, proxy_reward=None)
        return Answer(run.evidence, run.message, run.policy)


def within_unit(ranked: RankedLists) -> RankedLists:
    """Return the lists with their scores moved and scaled to [0, 1], all by the same two numbers."""
    values = np.concatenate([np.asarray(block.scores).ravel() for block in ranked.blocks])
    low, span = values.min(), max(float(np.ptp(values)), 1e-12)
    return replace(
        ranked,
        by_size=tuple(replace(b, scores=np.clip((np.asarray(b.scores) - low) / span, 0.0, 1.0)) for b in ranked.blocks),
    )
