"""Verdicts from a file as judge: people's, another program's, or those an earlier run stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.judges import JudgeFailed, Question, Verdict
from rpo.eval.verdicts import is_cost, question_key, read_row, read_rows


class Recorded:
    """Rows {"prompt", "first", "second", "verdict": "first", "second" or "tie"} of a JSONL file.

    Orders are told apart: what was recorded for one order says nothing about the other. Raises
    InvalidArgument for a row that is none and for rows that contradict each other, OutputError for a file
    that cannot be read.
    """

    at_once = 1

    def __init__(self, path: str | Path) -> None:
        self.path = checks.path("path", path)
        rows, whole = read_rows(self.path)
        self.identity: dict[str, Any] = {
            "kind": "recorded",
            "sha256": hashlib.sha256(self.path.read_bytes()[:whole]).hexdigest(),
        }
        self._verdicts: dict[str, Verdict] = {}
        for number, row in enumerate(rows, 1):
            if is_cost(row):
                continue
            question, verdict = read_row(row, f"{self.path}, line {number}")
            known = self._verdicts.setdefault(question_key(question, {}), verdict)
            if known.choice != verdict.choice:
                raise InvalidArgument(
                    f"{self.path}, line {number}",
                    expected="one verdict per question",
                    got=f"{verdict.choice!r} after {known.choice!r} for the same question",
                    remedy="Keep the verdicts of one judge in a file.",
                )

    def tokens(self, question: Question) -> tuple[int, int]:
        """Return (0, 0): nothing is paid for."""
        return 0, 0

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return the verdicts recorded. Raises JudgeFailed for a question without one."""
        return [self._recorded(question) for question in checks.instances("questions", questions, Question)]

    def _recorded(self, question: Question) -> Verdict:
        found = self._verdicts.get(question_key(question, {}))
        if found is None:
            message = f"{self.path} has no verdict for these responses in this order; swap=False asks one order only."
            raise JudgeFailed("not recorded", message, retry=False)
        return found
