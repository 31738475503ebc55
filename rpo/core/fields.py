"""What a method's fields may hold, said in their annotations: `beta: Positive = 0.1` is refused below zero by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from rpo.core import checks
from rpo.core.reduction import SFT_REDUCTIONS

Check = Callable[[str, Any], Any]


def _finite(name: str, value: object) -> float:
    return float(checks.finite(name, value, shape=()))


def _reduction(name: str, value: object) -> str:
    return checks.one_of(name, value, SFT_REDUCTIONS)


Positive = Annotated[float, checks.positive]
NonNegative = Annotated[float, checks.nonnegative]
Fraction = Annotated[float, checks.fraction]
Finite = Annotated[float, _finite]
Reduction = Annotated[str, _reduction]


def check_fields(instance: object) -> None:
    """Hold every field of a frozen dataclass to the checks of its annotation, and keep what they return.

    A check takes (name, value) and returns the value, or refuses it. Raises InvalidArgument.
    """
    for name, check in _checks(type(instance)):  # type: ignore[arg-type]  # a class is hashable
        object.__setattr__(instance, name, check(name, getattr(instance, name)))


def hold(instance: object, check: Callable[..., Any], *names: str, **options: Any) -> None:
    """Hold the named fields of a dataclass to one check, and keep what it returns. Raises InvalidArgument."""
    for name in names:
        object.__setattr__(instance, name, check(name, getattr(instance, name), **options))


@functools.cache
def _checks(kind: type) -> tuple[tuple[str, Check], ...]:
    found: dict[str, tuple[Check, ...]] = {}
    for base in reversed(kind.__mro__):
        try:
            annotations = inspect.get_annotations(base, eval_str=True)
        except (NameError, AttributeError):  # a class within a function: what its annotations name is out of sight
            annotations = {}
        found |= {name: getattr(hint, "__metadata__", ()) for name, hint in annotations.items()}
    names = [item.name for item in dataclasses.fields(kind)]
    return tuple((name, check) for name in names for check in found.get(name, ()) if callable(check))
