"""Scored lists of completions, as in UltraFeedback, made into pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.llm.data.messages import plain
from rpo.llm.data.report import RefusedRow, shown, with_origin
from rpo.llm.data.streaming import splits_itself

STRATEGIES = ("best_vs_worst", "best_vs_random")
PROMPTS = ("prompt", "instruction")
ANSWERS = ("response", "completion", "text")
SCORES = ("overall_score", "score", "rating")


@dataclass(slots=True)
class BinarizeReport:
    """Rows read, pairs made, rows dropped for a tie or for fewer than two scores, and completions without a score.

    refused: rows left out that are not scored ones at all.
    """

    rows: int = 0
    pairs: int = 0
    ties: int = 0
    too_few: int = 0
    unscored: int = 0
    refused: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return plain counts, for a record."""
        return asdict(self)


class Binarized:
    """Pairs made of scored rows, the same at every iteration; `report` counts the current pass."""

    def __init__(self, rows: Iterable[Any], strategy: str, seed: int, conversational: bool, drop: bool) -> None:
        self._rows, self._strategy, self._seed, self._conversational = rows, strategy, seed, conversational
        self._drop = drop
        self.report = BinarizeReport()

    @property
    def splits_itself(self) -> bool:
        """Whether the rows beneath are shared out among data-loader workers by themselves."""
        return splits_itself(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        report = self.report = BinarizeReport()
        for index, row in enumerate(self._rows):
            report.rows += 1
            try:
                prompt, listed, extra = _read(row, index)
            except RefusedRow:
                if not self._drop:
                    raise
                report.refused += 1
                continue
            scored = [(answer, score) for answer, score in listed if score is not None]
            report.unscored += len(listed) - len(scored)
            if len(scored) < 2:
                report.too_few += 1
                continue
            scores = np.array([score for _, score in scored])
            best, lower = int(scores.argmax()), np.flatnonzero(scores < scores.max())
            if not lower.size:
                report.ties += 1
                continue
            if self._strategy == "best_vs_worst":
                other = int(scores.argmin())
            else:  # a generator a row, so that a row's draw does not depend on the rows before it
                other = int(np.random.default_rng([self._seed, index]).choice(lower))
            report.pairs += 1
            chosen, rejected = scored[best][0], scored[other][0]
            if self._conversational:
                prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
            pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            scores_of = {"score_chosen": scored[best][1], "score_rejected": scored[other][1]}
            yield with_origin(extra | pair | scores_of, row)


def binarize(
    rows: Iterable[Any],
    *,
    strategy: str = "best_vs_worst",
    rng: np.random.Generator | np.random.SeedSequence | int | None = None,
    conversational: bool = False,
    on_refused: str = "error",
) -> Binarized:
    """Return pairs of a prompt's best completion and its worst, or one drawn among those with a lower score.

    rows: a prompt (or instruction) and either completions, a list of {"response", "score"} or
    {"response", "overall_score"}, or the columns responses and scores. strategy: "best_vs_worst" or
    "best_vs_random", which needs `rng`. The first of equal completions is taken; rows whose scores
    are all equal are dropped and counted. conversational: write strings as one user and one
    assistant message. on_refused: of a row that is not scored, "error", or "drop", which counts it.
    Raises InvalidArgument; RefusedRow while iterating.
    Source: Tunstall et al. 2023 (Zephyr), section 3, for best against random.
    """
    checks.one_of("strategy", strategy, STRATEGIES)
    checks.one_of("on_refused", on_refused, ("error", "drop"))
    checks.rereadable("rows", rows)
    seed = 0 if strategy == "best_vs_worst" else int(checks.generator("rng", rng).integers(2**63))
    return Binarized(rows, strategy, seed, conversational, on_refused == "drop")


def _read(row: Any, index: int) -> tuple[Any, list[tuple[Any, float | None]], dict[str, Any]]:
    """Return the prompt, (answer, score or None) of each completion, and the other columns."""
    names = set(row) if isinstance(row, Mapping) else set()
    prompt = next((name for name in PROMPTS if name in names), None)
    if "completions" in names:
        used, listed = {"completions"}, plain(row["completions"])
        pairs = [(_pick(item, ANSWERS), _pick(item, SCORES)) for item in listed] if isinstance(listed, list) else []
    elif {"responses", "scores"} <= names:
        used, listed, scores = {"responses", "scores"}, plain(row["responses"]), plain(row["scores"])
        same = isinstance(listed, list) and isinstance(scores, list) and len(listed) == len(scores)
        pairs = list(zip(listed, scores, strict=True)) if same else []
    else:
        used, pairs = set(), []
    if prompt is None or not pairs or any(answer is None for answer, _ in pairs):
        raise RefusedRow(
            index, "completions", reason="not_scored", expected="a prompt and a list of completions with scores",
            got=shown(row),
            remedy='Write completions as [{"response": ..., "score": ...}], or columns responses, scores.',
        ).of(row)  # fmt: skip
    extra = {name: value for name, value in row.items() if name not in used | {prompt}}
    return row[prompt], [(answer, _number(score)) for answer, score in pairs], extra


def _pick(item: Any, names: tuple[str, ...]) -> Any:
    return (
        next((item[name] for name in names if item.get(name) is not None), None) if isinstance(item, Mapping) else None
    )


def _number(score: Any) -> float | None:
    """Return a score as a float, or None where there is none ("N/A" and NaN occur in UltraFeedback)."""
    try:
        number = math.nan if isinstance(score, bool) else float(score)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
