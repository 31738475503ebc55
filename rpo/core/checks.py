"""Checks for the first lines of public functions: name, expected, got, remedy."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from rpo.core.errors import LONGEST, InvalidArgument, shown

Array = NDArray[np.float64]
T = TypeVar("T")

PROBABILITY_TOLERANCE = 1e-9
MAX_INTEGER = 2**63 - 1
MAX_EXACT = 2**53  # up to here float64 holds every integer
UNREADABLE = (TypeError, ValueError, OverflowError, RuntimeError)  # what NumPy and torch raise for no array of numbers
MAX_TABLE = 5 * 10**7


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
    try:
        plain = _exact(value) if isinstance(value, (int, float)) else _read(value)
        number = plain if isinstance(plain, float) else float(plain[()])
    except UNREADABLE:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgument(name, expected=expected, got=shown(value), remedy=remedy)
    return number


def integer(name: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int (1e6 is accepted, 1.5 is not), or refuse it outside [minimum, maximum].

    An integer is taken as it is, never through a float. maximum: None is the largest of 64 bits.
    """
    expected = f"an integer >= {minimum}" if maximum is None else f"an integer in [{minimum}, {maximum}]"
    maximum = MAX_INTEGER if maximum is None else maximum
    remedy = "Pass a whole number in that range."
    number = int(value) if is_whole(value) else _number(name, value, expected, remedy)
    if number != int(number) or not minimum <= number <= maximum:
        raise InvalidArgument(name, expected=expected, got=value, remedy=remedy)
    return int(number)


def is_whole(value: object) -> TypeGuard[int | np.integer[Any]]:
    """Return whether `value` is an integer by type; NumPy counts its times among its integers."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def is_listed(value: object) -> TypeGuard[Iterable[Any]]:
    """Return whether `value` holds items to go through: no text, no mapping, no array without axes."""
    plain = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    return plain and getattr(value, "ndim", 1) != 0


def listed(name: str, value: Any) -> list[Any]:
    """Return the items of `value`, or refuse what holds none to go through."""
    if not is_listed(value):
        raise InvalidArgument(name, expected="a list", got=shown(value), remedy="Write [value] for a single one.")
    return list(value)


def labels(name: str, value: Any, size: int) -> tuple[str, ...] | None:
    """Return `value` as a tuple of `size` labels, or None as it is; refuse another number of them, and one text."""
    if value is None:
        return None
    if not is_listed(value) or isinstance(value, Set):  # a set has no order
        raise InvalidArgument(
            name, expected=f"{size} labels or None", got=shown(value), remedy="Pass a tuple with one label for each."
        )
    found = tuple(value)
    if len(found) != size:
        raise InvalidArgument(name, expected=f"{size} labels", got=len(found), remedy="Pass one for each.")
    return found


def instance(name: str, value: Any, kind: type[T], *, remedy: str = "") -> T:
    """Return `value`, or refuse it unless it is an instance of `kind`."""
    # a class has what a Protocol asks of its instances
    if isinstance(value, kind) and not (isinstance(value, type) and getattr(kind, "_is_protocol", False)):
        return value
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise InvalidArgument(
        name,
        expected=f"{article} {kind.__name__}",
        got=f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__,
        remedy=remedy or f"Pass {article} {kind.__name__}.",
    )


def instances(name: str, value: Any, kind: type[T]) -> list[T]:
    """Return the items of `value`, or refuse what holds none to go through and an item that is no `kind`."""
    return [instance(f"{name}[{k}]", item, kind) for k, item in enumerate(listed(name, value))]


def rereadable(name: str, value: Any) -> None:
    """Refuse what cannot be iterated, and what can be only once."""
    if iterable(name, value) is value:
        remedy = "Pass a list, a dataset, or an object whose __iter__ starts anew."
        raise InvalidArgument(name, expected="rows that can be reread", got="a generator", remedy=remedy)


def iterable(name: str, value: Any) -> Iterator[Any]:
    """Return an iterator over `value`, or refuse what has none, a text, and a mapping, whose items are its names."""
    with contextlib.suppress(TypeError):
        if not isinstance(value, (str, bytes, Mapping)):
            return iter(value)
    remedy = "Pass a list of dicts; of a DatasetDict, choose a split."
    raise InvalidArgument(name, expected="rows", got=shown(value), remedy=remedy)


def table(name: str, value: Any, columns: Sequence[str], *, remedy: str) -> Any:
    """Return `value`, or refuse what is no pandas DataFrame of at least one row with these columns."""
    pandas = sys.modules.get("pandas")  # who holds a DataFrame has loaded it
    got = type(value).__name__
    if pandas is not None and isinstance(value, pandas.DataFrame):
        missing = [column for column in columns if column not in value.columns]
        if not missing and len(value):
            return value
        got = f"{len(value)} rows" + (f" without {', '.join(missing)}" if missing else "")
    raise InvalidArgument(
        name, expected=f"a DataFrame with rows and the columns {', '.join(columns)}", got=got, remedy=remedy
    )


def path(name: str, value: Any) -> Path:
    """Return `value` as a Path, or refuse what names no file."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise InvalidArgument(
            name, expected="the path of a file or folder", got=shown(value), remedy="Pass a string or a pathlib.Path."
        )
    return Path(value)


def one_of(name: str, value: object, options: Collection[str]) -> str:
    """Return `value`, or refuse it unless it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise InvalidArgument(
            name, expected="one of " + ", ".join(map(repr, options)), got=shown(value), remedy="Choose one of them."
        )
    return value


def imported(name: str, value: str) -> Any:
    """Return what "package.module:Name" stands for."""
    home, _, attribute = value.partition(":")
    try:
        found = importlib.import_module(home)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: .module
        raise InvalidArgument(
            name,
            expected="package.module:Name that can be imported",
            got=f"{value} ({error})",
            remedy="Check the name, and that the module is on the path (PYTHONPATH).",
        ) from error


def numbers(name: str, value: Any) -> NDArray[Any]:
    """Return `value` as an array of integers or floats: the one place where a caller's array is read.

    Takes sequences, NumPy, pandas, and torch tensors of any device, without their graph. Refuses what would lose
    something on the way: masks, imaginary parts, booleans, text, times, fields, objects that are no numbers, and
    integers that no float64 equals.
    """
    try:
        return _read(value)
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        raise InvalidArgument(
            name,
            expected="an array of numbers",
            got=f"{type(value).__name__} ({why[:LONGEST]})",
            remedy="Pass a rectangular, dense array of real numbers, without gaps.",
        ) from None


def _read(value: Any) -> NDArray[Any]:
    """Return `value` as an array of kind integer or float; raise one of UNREADABLE with what it is instead."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16; every one of its values is a float32
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif isinstance(value, (list, tuple)):
        # NumPy would turn True beside 0.5 into 1.0, and a masked array in a list into its data
        value = [item if _is_plain(item) else _read(item) for item in value]
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError("masked entries")
    array = np.asarray(value)
    kind = array.dtype.kind
    if kind == "O" or (kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > MAX_EXACT):
        array = np.array([_exact(item) for item in array.ravel()], dtype=np.float64).reshape(array.shape)
    elif kind not in "iuf":
        raise ValueError(f"an array of {array.dtype}")
    return array


def _is_plain(item: object) -> bool:
    """Return whether NumPy reads an item of a list rightly, whatever stands beside it."""
    return isinstance(item, (float, np.floating)) or (is_whole(item) and abs(int(item)) <= MAX_EXACT)


def _exact(item: Any) -> float:
    """Return a number as a float; raise one of UNREADABLE for anything else, and for an integer no float equals."""
    if isinstance(item, bool) or not isinstance(item, (Real, Decimal)):
        raise TypeError(f"an entry of type {type(item).__name__}")
    number = float(item)
    if isinstance(item, Integral) and math.isfinite(number) and int(number) != item:
        raise ValueError(f"the integer {shown(int(item))}, which no float64 equals")
    return number


def finite(name: str, value: Any, *, shape: Sequence[int | None] | None = None) -> Array:
    """Return `value` as a float64 array, or refuse NaN, infinity, or another shape (None: any length)."""
    array = numbers(name, value)
    if array.dtype != np.float64:
        with np.errstate(over="ignore"):  # a long double may be too large: it becomes inf, and is refused
            array = array.astype(np.float64)
    if shape is not None:
        has_shape(name, array, shape)
    good = np.isfinite(array)
    if not good.all():
        bad = np.flatnonzero(~good)
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


def table_size(name: str, shape: Sequence[int], *, remedy: str) -> None:
    """Refuse a table of more than 5e7 entries before it is attempted."""
    entries = math.prod(shape)
    if entries > MAX_TABLE:
        raise InvalidArgument(
            name,
            expected=f"a table of at most {MAX_TABLE:g} entries",
            got=f"{' x '.join(map(str, shape))}, {8 * entries / 1e9:.1f} GB",
            remedy=remedy,
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
    if np.abs(total - 1.0).max() > PROBABILITY_TOLERANCE:
        worst = float(np.ravel(total)[int(np.abs(total - 1.0).argmax())])
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
    if is_whole(rng) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise InvalidArgument(
        name,
        expected="a numpy Generator, a SeedSequence or an int >= 0",
        got=shown(rng),
        remedy="Pass rng=0 (or any seed) so that the result can be repeated.",
    )
