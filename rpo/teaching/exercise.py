"""Exercises of the notebooks: checked where they stand, their answers computed here and shown only on request."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rpo.core.errors import InvalidArgument

__all__ = ["Exercise", "answer", "check", "exercises", "hint"]

NOTEBOOKS = ("01", "02", "03", "04", "05", "06", "07", "08")


@dataclass(frozen=True)
class Exercise:
    """One question with one right answer.

    Attributes:
        question: What is asked, in a sentence.
        solve: Computes the right answer: a number, an array of numbers, True or False, or one of `choices`.
        hint: One step towards it.
        because: Why the answer is right; shown once it is given.
        tolerance: How far a number may be off, relative to the right one (absolute where that is 0).
        choices: The possible answers, where they are words.
        mistakes: What to say of a wrong answer that is easy to reach: remark -> how it is computed.
    """

    question: str
    solve: Callable[[], Any]
    hint: str
    because: str
    tolerance: float = 0.01
    choices: tuple[str, ...] = ()
    mistakes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def accepts(self, given: Any) -> bool:
        """Whether `given` is the right answer."""
        return _same(given, self.solve(), self.tolerance)

    def grade(self, given: Any) -> bool:
        """Whether anything at all, read from a file, is the right answer."""
        return not _expected_kind(given, self) and self.accepts(given)

    def remark(self, given: Any) -> str:
        """What is known of the mistake behind a wrong answer; empty if nothing."""
        return next((text for text, wrong in self.mistakes.items() if _same(given, wrong(), self.tolerance)), "")


@dataclass
class Attempt:
    """What was done about one exercise since the kernel started, or over the sessions of a file.

    given: the last answer, or the right one once there is one, as JSON has it. tries: up to the right one. shown: the
    answer was asked for before it was given.
    """

    given: Any = None
    right: bool = False
    tries: int = 0
    hints: int = 0
    shown: bool = False


ATTEMPTS: dict[str, Attempt] = {}


def _attempt(name: str) -> Attempt:
    return ATTEMPTS.setdefault(name, Attempt())


def _noted(name: str, given: Any, right: bool) -> bool:
    mine = _attempt(name)
    if not mine.right:
        plain = given.tolist() if isinstance(given, np.ndarray | np.generic) else given
        mine.given = plain if isinstance(plain, bool | int | float | str | list | tuple) else repr(plain)[:80]
        mine.right, mine.tries = right, mine.tries + 1
    return right


def check(name: str, given: Any) -> bool | None:
    """Say whether `given` answers exercise `name` ("03.2": the second of notebook 03).

    An answer that is not of the kind asked for, words for a number, is False and counts as no try.

    Returns:
        True or False; None while the answer is still `...`.

    Raises:
        InvalidArgument: no such exercise.
    """
    exercise = _find(name)
    if given is ... or given is None:
        print(f"{name}: not answered yet. rpo.teaching.hint({name!r}) helps.")
        return None
    kind = _expected_kind(given, exercise)
    if kind:
        print(f"{name}: not yet. Expected {kind}, got {given!r:.80}. This is no try.")
        return False
    if exercise.accepts(given):
        print(f"{name}: right. {exercise.because}")
        return _noted(name, given, True)
    remark = exercise.remark(given) or f"rpo.teaching.hint({name!r}) helps."
    print(f"{name}: not yet. {remark}")
    return _noted(name, given, False)


def hint(name: str) -> None:
    """Print one step towards the answer of exercise `name`."""
    print(f"{name}: {_find(name).hint}")
    _attempt(name).hints += 1


def answer(name: str) -> Any:
    """Return the right answer of exercise `name`, and print why it is right."""
    exercise = _find(name)
    print(f"{name}: {exercise.because}")
    _attempt(name).shown |= not _attempt(name).right
    return exercise.solve()


def exercises(notebook: str | None = None) -> dict[str, Exercise]:
    """Return the exercises of one notebook ("03"), or of all, by name.

    Raises:
        InvalidArgument: a notebook that has none.
    """
    if notebook is not None and notebook not in NOTEBOOKS:
        raise InvalidArgument("notebook", expected=f"one of {', '.join(NOTEBOOKS)}", got=notebook, remedy="Pick one.")
    wanted = NOTEBOOKS if notebook is None else (notebook,)
    found: dict[str, Exercise] = {}
    for number in wanted:
        found |= importlib.import_module(f"rpo.teaching.answers.notebook_{number}").EXERCISES
    return found


def _find(name: str) -> Exercise:
    number = name.partition(".")[0]
    known = exercises(number) if number in NOTEBOOKS else {}
    if name not in known:
        expected = f"one of {', '.join(known)}" if known else "a notebook's number and the exercise's, such as 03.2"
        raise InvalidArgument("name", expected=expected, got=name, remedy="The notebook's cell has the name.")
    return known[name]


def _expected_kind(given: Any, exercise: Exercise) -> str:
    """What kind of answer is expected, where `given` is not of it."""
    if exercise.choices:
        known = isinstance(given, str) and any(_same(given, choice, 0.0) for choice in exercise.choices)
        return "" if known else "one of " + ", ".join(map(repr, exercise.choices))
    right = exercise.solve()
    if isinstance(right, bool | np.bool_):
        return "" if isinstance(given, bool | np.bool_) else "True or False"
    shape = np.shape(right)
    kind = f"finite numbers in an array of shape {shape}" if shape else "a finite number"
    try:
        array = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        return kind
    # True is 1 to numpy; nobody who answers True to "how much" means that.
    usable = array.shape == shape and not isinstance(given, bool | str) and np.isfinite(array).all()
    return "" if usable else kind


def _same(given: Any, right: Any, tolerance: float) -> bool:
    if isinstance(right, str):
        return isinstance(given, str) and given.strip().casefold() == right.casefold()
    if isinstance(right, bool | np.bool_):
        return bool(given == right)
    given, right = np.asarray(given, dtype=float), np.asarray(right, dtype=float)
    if given.shape != right.shape:
        return False
    scale = np.abs(right).max(initial=0.0)
    return bool(np.abs(given - right).max(initial=0.0) <= tolerance * (scale or 1.0))
