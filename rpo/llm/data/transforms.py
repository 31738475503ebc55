"""Rows made of rows before they are tokenised: UltraFeedback's ratings as lists, what two rankers agree on, singles.

Every function is pure on each row and can be iterated again and again; its `report` counts the current pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpo.core import checks
from rpo.llm.data.lists import ANSWERS, Listed, number, read_list
from rpo.llm.data.messages import plain
from rpo.llm.data.report import RefusedRow, shown, with_origin
from rpo.llm.data.streaming import splits_itself

RATINGS = ("aspects", "overall_score")


@dataclass(slots=True)
class TransformReport:
    """Rows read, rows made of them, and rows left out by reason; refused: rows of another kind."""

    rows: int = 0
    made: int = 0
    refused: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return plain counts, for a record."""
        return {"rows": self.rows, "made": self.made, "refused": self.refused, "dropped": dict(self.dropped)}


class Derived:
    """Rows made of `rows` by make(row, index, report), the same at every iteration; `report` counts the current pass.

    drop: count a row that make refuses, in place of raising RefusedRow. Raises InvalidArgument for a generator.
    """

    report: Any

    def __init__(
        self,
        rows: Iterable[Any],
        make: Callable[[Any, int, Any], Iterable[Mapping[str, Any]]],
        on_refused: str = "error",
        new_report: Callable[[], Any] = TransformReport,
    ) -> None:
        checks.one_of("on_refused", on_refused, ("error", "drop"))
        checks.rereadable("rows", rows)
        self._rows, self._make, self._drop, self._new_report = rows, make, on_refused == "drop", new_report
        self.report = new_report()

    @property
    def splits_itself(self) -> bool:
        """Whether the rows beneath are shared out among data-loader workers by themselves."""
        return splits_itself(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        report = self.report = self._new_report()
        for index, row in enumerate(self._rows):
            report.rows += 1
            try:
                made = list(self._make(row, index, report))
            except RefusedRow as refusal:
                if not self._drop:
                    raise refusal.of(row) from None
                report.refused += 1
                continue
            for one in made:
                yield with_origin(dict(one), row)


def ultrafeedback(rows: Iterable[Any], *, score: str = "aspects", on_refused: str = "error") -> Derived:
    """Return rows of UltraFeedback or CodeUltraFeedback as lists: prompt, responses and scores.

    score: "aspects", the mean of the ratings there are; or "overall_score", of which 2,628 in UltraFeedback were 10
    where 1 was meant until its revision 40b4365 of 29 December 2023. Ratings may be texts and "N/A", which is none;
    CodeUltraFeedback rates one aspect a prompt. An aspect's ratings are in the column aspects, None where there is
    none. Prompts are written as one user message. Raises InvalidArgument; RefusedRow while iterating.
    Source: Cui et al. 2023 (arXiv 2310.01377); Weyssow et al. 2024 (arXiv 2403.09032).
    """
    checks.one_of("score", score, RATINGS)

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        prompt, answers, ratings, overall = _rated(row, index)
        names = dict.fromkeys(name for each in ratings for name in each)
        aspects = {name: [each.get(name) for each in ratings] for name in names}
        means = [_mean([value for value in each.values() if value is not None]) for each in ratings]
        report.made += 1
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        scores = means if score == "aspects" else overall
        return [{"prompt": messages, "responses": answers, "scores": scores, "aspects": aspects}]

    return Derived(rows, make, on_refused)


def _rated(row: Any, index: int) -> tuple[Any, list[Any], list[dict[str, float | None]], list[float | None]]:
    """Return prompt, responses, the ratings of each by aspect, and the overall scores."""
    given = plain(row) if isinstance(row, Mapping) else {}
    items = given.get("completions", given.get("responses"))
    items = items if isinstance(items, list) and items and all(isinstance(item, dict) for item in items) else []
    answers = [next((item[name] for name in ANSWERS if item.get(name) is not None), None) for item in items]
    beside = given.get("annotations")
    if isinstance(beside, list) and all(isinstance(one, dict) for one in beside):  # CodeUltraFeedback: by model
        name = str(given.get("preference", "rating"))
        by_model = {one.get("model"): {name: number(one.get("rating"))} for one in beside}
        ratings = [by_model.get(item.get("model"), {}) for item in items]
        overall = [_mean([value for value in each.values() if value is not None]) for each in ratings]
    else:
        ratings = [_aspects(item.get("annotations")) for item in items]
        overall = [number(item.get("overall_score")) for item in items]
    if not items or None in answers or "instruction" not in given or not any(ratings):
        raise RefusedRow(
            index, "completions", reason="not_rated", got=shown(row),
            expected="an instruction and completions with annotations, as in UltraFeedback or CodeUltraFeedback",
            remedy="Lists that have scores already need no ratings: pass them as they are.",
        )  # fmt: skip
    return given["instruction"], answers, ratings, overall


def _aspects(annotations: Any) -> dict[str, float | None]:
    found = annotations if isinstance(annotations, dict) else {}
    return {name: number(each.get("Rating")) for name, each in found.items() if isinstance(each, dict)}


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def singles(rows: Iterable[Any], *, centred: bool = True, on_refused: str = "error") -> Derived:
    """Return lists as single responses with a score: prompt, completion and score, as A-LoL reads them.

    centred: less the mean of the list's scores, an estimate of what a response to that prompt earns, so that scores
    are advantages. Raises InvalidArgument; RefusedRow while iterating.
    """

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        listed, scores = _scored(row, index)
        order = listed.best_first()
        if listed.unscored:
            report.dropped["unscored"] += listed.unscored
        mean = (_mean([scores[k] for k in order]) or 0.0) if centred else 0.0
        report.made += len(order)
        others = kept(row, listed)
        return [others | completed(row[listed.prompt], listed, k) | {"score": scores[k] - mean} for k in order]

    return Derived(rows, make, on_refused)


def agreed(rows: Iterable[Any], second: str, *, on_refused: str = "error") -> Derived:
    """Return lists with what two rankers agree on, best first by both: the longest such chain of responses.

    rows: lists with scores or ranks, the first ranker's. second: the column with the second's scores. Lists of which
    fewer than two responses are left are dropped and counted. If both are wrong about a pair with probability e, and
    independently, a pair that is kept is wrong with e^2 / (e^2 + (1 - e)^2). Raises InvalidArgument; RefusedRow while
    iterating. Source: Hong et al. 2023 (arXiv 2310.16271), of whose method this is the filter alone.
    """
    checks.instance("second", second, str)

    def make(row: Any, index: int, report: TransformReport) -> list[dict[str, Any]]:
        listed, scores = _scored(row, index, ranks=True)
        others = [number(value) for value in plain(row.get(second)) or []] if second in row else []
        if len(others) != len(listed.answers):
            raise RefusedRow(
                index, second, reason="not_scored", expected=f"{len(listed.answers)} scores, one a response",
                got=shown(row.get(second)), remedy="Write the second ranker's scores there.",
            )  # fmt: skip
        places = [k for k in range(len(others)) if others[k] is not None and scores[k] is not None]
        chain = [places[k] for k in agreement([scores[k] for k in places], [others[k] or 0.0 for k in places])]
        if len(chain) < 2:
            report.dropped["disagreement"] += 1
            return []
        report.made += 1
        columns = {name: value for name, value in kept(row, listed).items() if name != second}
        found = {"responses": [listed.answers[k] for k in chain], "scores": [scores[k] for k in chain]}
        if any(listed.finish):
            found["responses_finish_reason"] = [listed.finish[k] for k in chain]
        return [columns | {"prompt": row[listed.prompt]} | found]

    return Derived(rows, make, on_refused)


def agreement(first: Sequence[float], second: Sequence[float]) -> list[int]:
    """Return the places of the longest chain that falls strictly by both scores, best first; the earliest of several.

    first, second: scores of K responses by two rankers. Raises InvalidArgument where they differ in length.
    """
    first = checks.finite("first", first, shape=(None,)).tolist()
    second = checks.finite("second", second, shape=(len(first),)).tolist()
    order = sorted(range(len(first)), key=lambda k: (-first[k], k))
    best: dict[int, list[int]] = {}  # the longest chain that ends at a place
    for k in order:
        before = [best[j] for j in best if first[j] > first[k] and second[j] > second[k]]
        best[k] = [*max(before, key=len, default=[]), k]
    return max(best.values(), key=len, default=[])


def _scored(row: Any, index: int, *, ranks: bool = False) -> tuple[Listed, list[Any]]:
    """Return the responses of a list and their scores, None where there is none."""
    listed = read_list(row, index)
    if listed.values is None or not (listed.scores or ranks):
        raise RefusedRow(
            index, listed.column, reason="not_scored", expected="scores", got="ranks alone",
            remedy="Write a score for each response.",
        )  # fmt: skip
    return listed, list(listed.values)


def completed(prompt: Any, listed: Listed, k: int) -> dict[str, Any]:
    """Return a row of a prompt and one response of a list, with why it ended where that is known."""
    row = {"prompt": prompt, "completion": listed.answers[k]}
    return row | ({"completion_finish_reason": listed.finish[k]} if listed.finish[k] else {})


def kept(row: Mapping[str, Any], listed: Listed) -> dict[str, Any]:
    """Return the columns of a list that hold neither prompt nor responses nor scores."""
    return {name: value for name, value in row.items() if name not in listed.used}
