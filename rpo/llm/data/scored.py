"""Scored lists of completions, as in UltraFeedback, made into pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.llm.data.lists import read_list
from rpo.llm.data.transforms import Derived

STRATEGIES = ("best_vs_worst", "best_vs_random", "all_pairs")


@dataclass(slots=True)
class BinarizeReport:
    """Rows read, pairs made, rows dropped for a tie or for fewer than two scores, and completions without a score.

    refused: rows left out that are not scored ones at all. tied_pairs: pairs of equal scores that all_pairs leaves out.
    """

    rows: int = 0
    pairs: int = 0
    ties: int = 0
    too_few: int = 0
    unscored: int = 0
    refused: int = 0
    tied_pairs: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return plain counts, for a record."""
        return asdict(self)


class Binarized(Derived):
    """Pairs made of scored rows, the same at every iteration; `report` counts the current pass."""

    report: BinarizeReport

    def __init__(self, rows: Iterable[Any], strategy: str, seed: int, conversational: bool, on_refused: str) -> None:
        super().__init__(rows, self._of_row, on_refused, BinarizeReport)
        self._strategy, self._seed, self._conversational = strategy, seed, conversational

    def _of_row(self, row: Any, index: int, report: BinarizeReport) -> list[dict[str, Any]]:
        listed = read_list(row, index)
        order, values = listed.best_first(), listed.values or []
        report.unscored += listed.unscored
        if len(order) < 2:
            report.too_few += 1
            return []
        if values[order[0]] == values[order[-1]]:
            report.ties += 1
            return []
        extra = {name: value for name, value in row.items() if name not in listed.used}
        made = []
        for best, other in self._pairs(order, values, index):
            pair = self._written(row[listed.prompt], listed.answers[best], listed.answers[other])
            scores = {"score_chosen": values[best], "score_rejected": values[other]} if listed.scores else {}
            places = {"chosen": best, "rejected": other}
            ended = {f"{name}_finish_reason": listed.finish[k] for name, k in places.items() if listed.finish[k]}
            made.append(extra | pair | scores | ended)
        report.pairs += len(made)
        return made

    def _pairs(self, order: list[int], values: list[Any], index: int) -> list[tuple[int, int]]:
        """Return the places of each pair's two completions; order: places, the best first."""
        best, lower = order[0], sorted(k for k in order if values[k] < values[order[0]])
        if self._strategy == "best_vs_worst":
            return [(best, next(k for k in order if values[k] == values[order[-1]]))]
        if self._strategy == "best_vs_random":  # a generator a row, so that a row's draw is its own
            return [(best, int(np.random.default_rng([self._seed, index]).choice(lower)))]
        pairs = list(combinations(order, 2))
        decided = [(i, j) for i, j in pairs if values[i] > values[j]]
        self.report.tied_pairs += len(pairs) - len(decided)
        return decided

    def _written(self, prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
        if self._conversational:
            prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            chosen, rejected = (
                [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
                for answer in (chosen, rejected)
            )
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def binarize(
    rows: Iterable[Any],
    *,
    strategy: str = "best_vs_worst",
    rng: np.random.Generator | np.random.SeedSequence | int | None = None,
    conversational: bool = False,
    on_refused: str = "error",
) -> Binarized:
    """Return pairs of a prompt's best completion and its worst, or one drawn among those with a lower score, or all.

    rows: lists with scores or ranks, as of `rpo.llm.data.lists.read_list`. strategy: "best_vs_worst"; "best_vs_random",
    which needs `rng`; or "all_pairs", of which those of equal scores are left out and counted. The first of equal
    completions is taken; rows whose scores are all equal are dropped and counted. conversational: write strings as one
    user and one assistant message. on_refused: of a row that is not scored, "error", or "drop", which counts it.
    Raises InvalidArgument; RefusedRow while iterating.
    Source: Tunstall et al. 2023 (Zephyr), section 3, for best against random.
    """
    checks.one_of("strategy", strategy, STRATEGIES)
    seed = int(checks.generator("rng", rng).integers(2**63)) if strategy == "best_vs_random" else 0
    return Binarized(rows, strategy, seed, conversational, on_refused)
