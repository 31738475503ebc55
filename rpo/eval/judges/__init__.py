"""Judges: which of two responses to a prompt is better. A chat model, a scorer, or verdicts recorded in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

from rpo.core.errors import InvalidArgument, RPOError
from rpo.eval.scorers import Prompt, load_scorer

Choice: TypeAlias = Literal["first", "second", "tie"]
CHOICES: tuple[str, ...] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class Question:
    """Two responses to a prompt, in the order in which the judge is shown them."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer.

    text: its words. model: who answered, as an endpoint names it. Tokens as an endpoint counted them.
    """

    choice: Choice
    text: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class Judge(Protocol):
    """What answers questions.

    identity: what tells this judge's verdicts from others', as JSON; part of the key they are stored
    under. at_once: questions a call takes; calls that take one may run in parallel threads.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def at_once(self) -> int: ...

    def tokens(self, question: Question) -> tuple[int, int]:
        """Return an estimate of the tokens in, and the most tokens out, that a question costs."""
        ...

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict each, or raise JudgeFailed for all of them."""
        ...


class JudgeFailed(RPOError):
    """A question got no verdict.

    kind: "invalid" for an answer that is no verdict, else what went wrong, in a word or two. retry: whether
    asking again may help. fatal: whether other questions would fare no better. retry_after: seconds the
    judge asks to wait.
    """

    def __init__(
        self, kind: str, message: str, *, retry: bool = True, fatal: bool = False, retry_after: float | None = None
    ) -> None:
        self.kind, self.retry, self.fatal, self.retry_after = kind, retry, fatal, retry_after
        super().__init__(message)


def load(name: str, **endpoint: Any) -> Judge:
    """Return the judge called `name`: "endpoint:MODEL", "scorer:NAME" (see `load_scorer`) or "recorded:FILE".

    endpoint: settings of `Endpoint`, of which the other judges need none. Raises InvalidArgument,
    OutputError, MissingDependency.
    """
    kind, _, rest = name.partition(":")
    if rest and kind == "endpoint":
        from rpo.eval.judges.endpoint import Endpoint

        return Endpoint(rest, **endpoint)
    if rest and kind == "scorer":
        from rpo.eval.judges.scored import Scored

        return Scored(load_scorer(rest))
    if rest and kind == "recorded":
        from rpo.eval.judges.recorded import Recorded

        return Recorded(rest)
    raise InvalidArgument(
        "judge",
        expected="endpoint:MODEL, scorer:NAME or recorded:FILE",
        got=name,
        remedy="For example endpoint:gpt-4 or scorer:model:FOLDER.",
    )
