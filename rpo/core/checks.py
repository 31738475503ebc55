"""Checks for the first lines of public functions: name, expected, got, remedy."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rpo.core.errors import InvalidArgument

Array = NDArray[np.float64]
T = TypeVar("T")

PROBABILITY_TOLERANCE = 1e-9


def positive(name: str, value: object, *, remedy: str = "Pass a finite number above zero.") -> float:
    """Return `value` as a float, or refuse it unless it is finite and above zero."""
    number = _number(name, value, "a finite number > 0", remedy)
    if not number > 0:
        raise InvalidArgument(name, expected="a finite number > 0", got=value, remedy=remedy)
    return number


def nonnegative(name: str, value: object, *, remedy: str = "Pass zero or a finite number above it.") -> float:
    """Return `value` as a float, or refuse it unless it is finite and at least zero."""
    number = _number(name, value, "a finite number >= 0", remedy)
    if number < 0:
        raise InvalidArgument(name, expected="a finite number >= 0", got=value, remedy=remedy)
    return number


def fraction(name: str, value: object) -> float:
    """Return `value` as a float, or refuse it unless it lies strictly between zero and one."""
    number = positive(name, value)
    if number >= 1:
        raise InvalidArgument(name, expected="a number in (0, 1)", got=value, remedy="Pass 0.05 or 0.95, for example.")
    return number


def _number(name: str, value: object, expected: str, remedy: str) -> float:
    if isinstance(value, (bool, str, bytes)):
        raise InvalidArgument(name, expected=expected, got=repr(value), remedy=remedy)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(name, expected=expected, got=repr(value), remedy=remedy) from None
    if not math.isfinite(number):
        raise InvalidArgument(name, expected=expected, got=value, remedy=remedy)
    return number


def integer(name: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int (1e6 is accepted, 1.5 is not), or refuse it outside [minimum, maximum]."""
    expected = f"an integer >= {minimum}" if maximum is None else f"an integer in [{minimum}, {maximum}]"
    remedy = "Pass a whole number in that range."
    number = _number(name, value, expected, remedy)
    if number != int(number) or number < minimum or (maximum is not None and number > maximum):
        raise InvalidArgument(name, expected=expected, got=value, remedy=remedy)
    return int(number)


def instance(name: str, value: Any, kind: type[T], *, remedy: str = "") -> T:
    """Return `value`, or refuse it unless it is an instance of `kind`."""
    if isinstance(value, kind):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise InvalidArgument(
        name,
        expected=f"{article} {kind.__name__}",
        got=f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__,
        remedy=remedy or f"Pass {article} {kind.__name__}.",
    )


def one_of(name: str, value: object, options: Collection[str]) -> str:
    """Return `value`, or refuse it unless it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise InvalidArgument(
            name, expected="one of " + ", ".join(map(repr, options)), got=repr(value), remedy="Choose one of them."
        )
    return value


def finite(name: str, value: Any, *, shape: Sequence[int | None] | None = None) -> Array:
    """Return `value` as a float64 array, or refuse NaN, infinity, or another shape (None: any length)."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(
            name, expected="an array of numbers", got=type(value).__name__, remedy="Pass a rectangular numeric array."
        ) from None
    if shape is not None:
        has_shape(name, array, shape)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        where = tuple(int(i) for i in np.unravel_index(int(bad[0]), array.shape))
        raise InvalidArgument(
            name,
            expected="finite numbers",
            got=f"{array[where]} at index {where} ({bad.size} such entries)",
            remedy="Remove or replace the NaN and infinite entries.",
        )
    return array


def has_shape(name: str, array: Any, shape: Sequence[int | None]) -> None:
    """Refuse an array whose shape differs from `shape` (None stands for any length)."""
    actual = tuple(array.shape)
    if len(actual) != len(shape) or any(want not in (None, have) for want, have in zip(shape, actual, strict=False)):
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InvalidArgument(
            name, expected=f"shape {wanted}", got=f"shape {actual}", remedy="Reshape or transpose it."
        )


def probabilities(name: str, value: Any, *, shape: Sequence[int | None] | None = None) -> Array:
    """Return `value` as a float64 array whose last axis is a probability distribution.

    Sums within 1e-9 of one are accepted as they are; nothing is renormalised.
    """
    array = finite(name, value, shape=shape)
    if array.size == 0:
        raise InvalidArgument(name, expected="at least one entry", got="an empty array", remedy="Pass a distribution.")
    if array.min() < 0:
        where = tuple(int(i) for i in np.unravel_index(int(array.argmin()), array.shape))
        raise InvalidArgument(
            name,
            expected="entries >= 0",
            got=f"{array.min()} at index {where}",
            remedy="Probabilities are not negative.",
        )
    total = array.sum(axis=-1)
    off = np.abs(total - 1.0)
    if off.max() > PROBABILITY_TOLERANCE:
        worst = float(np.ravel(total)[int(np.ravel(off).argmax())])
        raise InvalidArgument(
            name,
            expected="probabilities that sum to one over the last axis",
            got=f"a sum of {worst!r}",
            remedy=f"Divide by the sum, for example {name} / {name}.sum(-1, keepdims=True).",
        )
    return array


def generator(name: str, rng: object) -> np.random.Generator:
    """Return a Generator from a Generator, SeedSequence or non-negative int; refuse None.

    Source: design rule that randomness enters at the border and is spawned inside.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, np.random.SeedSequence):
        return np.random.default_rng(rng)
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise InvalidArgument(
        name,
        expected="a numpy Generator, a SeedSequence or an int >= 0",
        got=repr(rng),
        remedy="Pass rng=0 (or any seed) so that the result can be repeated.",
    )
