"""Judges: which of two responses to a prompt is better. A chat model, a scorer, or verdicts recorded in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

from rpo.core.errors import RPOError
from rpo.eval.scorers import Prompt

Choice: TypeAlias = Literal["first", "second", "tie"]
CHOICES: tuple[str, ...] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class Question:
    """Two responses to a prompt, in the order in which the judge is shown them.

    again: whether the judge's reply to it held no verdict before; a judge may then ask in other words.
    """

    prompt: Prompt
    first: str
    second: str
    again: bool = False


class Usage(NamedTuple):
    """Tokens that a request took; told: whether the judge counted them. It may charge for one that it did not."""

    input_tokens: int = 0
    output_tokens: int = 0
    told: bool = True


UNTOLD = Usage(told=False)


def token_count(value: Any) -> int:
    """Return a count of tokens that somebody else wrote; 0 for what is none."""
    return value if isinstance(value, int) and 0 <= value <= 10**9 else 0


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

    @property
    def usage(self) -> Usage:
        """Its tokens; none is a count that was not told."""
        return Usage(self.input_tokens, self.output_tokens, self.input_tokens + self.output_tokens > 0)


@runtime_checkable
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

    kind: "invalid" for an answer that is no verdict, "cut" for one without its end, else what went wrong, in a
    word or two. retry: whether asking again may help. fatal: whether other questions would fare no better;
    common: whether they may. retry_after: seconds the judge asks to wait. usage: what the request took.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry: bool = True,
        fatal: bool = False,
        common: bool = False,
        retry_after: float | None = None,
        usage: Usage = Usage(),  # noqa: B008 (never changed)
    ) -> None:
        self.kind, self.retry, self.fatal, self.common = kind, retry, fatal, common
        self.retry_after, self.usage = retry_after, usage
        super().__init__(message)

    @property
    def answered(self) -> bool:
        """Whether the judge answered, without a verdict."""
        return self.kind in ("invalid", "cut")
