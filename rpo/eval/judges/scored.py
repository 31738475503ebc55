"""A scorer as judge: the response with the higher score is better. Reward models, lexicons, functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpo.core import checks
from rpo.core.fields import hold
from rpo.eval.judges import Choice, Question, Verdict
from rpo.eval.scorers import WRAP, Scorer


@dataclass(frozen=True)
class Scored:
    """Scores decide; those that differ by at most `margin` tie. Raises InvalidArgument for scores not finite."""

    scorer: Scorer
    margin: float = 0.0
    at_once: int = 256

    def __post_init__(self) -> None:
        checks.instance("scorer", self.scorer, Scorer, remedy=WRAP)  # type: ignore[type-abstract]
        hold(self, checks.nonnegative, "margin")
        hold(self, checks.integer, "at_once", minimum=1)

    @property
    def identity(self) -> dict[str, Any]:
        """The scorer's name and the margin."""
        return {"kind": "scorer", "scorer": self.scorer.name, "margin": self.margin}

    def tokens(self, question: Question) -> tuple[int, int]:
        """Return (0, 0): nothing is paid for."""
        return 0, 0

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict each. A response is scored once a call, so that both orders see one score."""
        questions = checks.instances("questions", questions, Question)
        shown = [(one.prompt, text) for one in questions for text in (one.first, one.second)]
        keys = [json.dumps(item) for item in shown]
        distinct = dict(zip(keys, shown, strict=True))
        values = self.scorer([prompt for prompt, _ in distinct.values()], [text for _, text in distinct.values()])
        scores = dict(zip(distinct, checks.finite("scores", values, shape=(len(distinct),)).tolist(), strict=True))
        return [self._verdict(scores[a], scores[b]) for a, b in zip(keys[::2], keys[1::2], strict=True)]

    def _verdict(self, first: float, second: float) -> Verdict:
        choice: Choice = "tie" if abs(first - second) <= self.margin else "first" if first > second else "second"
        return Verdict(choice, text=f"{first:.6g} against {second:.6g}")
