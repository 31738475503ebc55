"""Calls that succeed, and what comes back when one of their arguments is an object of another kind."""

import datetime
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from rpo.core.errors import RPOError

HUGE = 10**400
OBJECTS = (object(), "text", 3.5, {}, [1.5], lambda: None, b"bytes", datetime.date(2020, 1, 1), HUGE, np.ma.masked)
NUMBERS = (
    object(),
    "0.5",
    b"1",
    1j,
    True,
    np.True_,
    np.ma.masked,
    np.timedelta64(1, "s"),
    [0.5],
    {},
    np.nan,
    -np.inf,
    HUGE,
)


Call = tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]


def call(function: Callable[..., Any], /, *needed: str, **arguments: Any) -> Call:
    """A call that succeeds. needed: those of its arguments for which None is as wrong as any other object."""
    return function, arguments, needed


def wrong_arrays(right: Any) -> list[Any]:
    """Arrays of the same shape that would lose something as floats, and things that are no arrays."""
    plain = np.asarray(right, dtype=np.float64)
    holed = plain.astype(object)
    holed.flat[0] = None
    return [
        np.ma.array(plain, mask=np.arange(plain.size).reshape(plain.shape) == 0),
        [np.ma.array(plain, mask=True)],
        plain + 0j,
        plain.astype(str),
        plain > 0,
        plain.astype(int).astype("m8[s]"),
        plain.astype(int).astype("M8[s]"),
        np.zeros(plain.shape, dtype=[("field", float)]),
        holed,
        np.full(plain.shape, HUGE, dtype=object),
        np.full(plain.shape, 2**53 + 1),
        scipy.sparse.csr_array(plain.reshape(1, -1)),
        torch.as_tensor(plain) > 0,
        torch.as_tensor(plain).to(torch.complex64),
        torch.as_tensor(plain).to_sparse(),
        np.full(plain.shape, np.nan),
        *(object(), "text", {}, HUGE, iter([1.0]), type(right)),
    ]


def wrong(argument: str, right: Any, needed: bool, accepted: tuple[Any, ...]) -> list[Any]:
    """Return what is refused in the place of `right`."""
    if isinstance(right, np.ndarray) or (isinstance(right, list) and isinstance(right[0], float)):
        found = wrong_arrays(right)
        if "logps" in argument or "rewards" in argument:  # a NaN there shows: the loss is NaN
            found = [item for item in found if not (isinstance(item, np.ndarray) and item.dtype == float)]
    elif isinstance(right, (int, float)):
        found = [*NUMBERS, type(right)]
    elif isinstance(right, (str, Path)):
        found = [item for item in OBJECTS if not isinstance(item, str)] + ["no such name"]
    else:
        found = [*OBJECTS, type(right)]
    if argument in ("rng", "seed"):  # an integer of any size seeds
        found = [item for item in found if item is not HUGE] + [1.5, -1]
    return [item for item in found if not isinstance(item, accepted)] + ([None] if needed else [])


def answered(checked: Call, accepted: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Return each wrong argument of a call that got something else than a typed error. accepted: kinds, by argument."""
    function, arguments, needed = checked
    function(**arguments)
    assert set(needed) <= set(arguments)
    found = []
    for argument, right in arguments.items():
        for item in wrong(argument, right, argument in needed, accepted.get(argument, ())):
            outcome = "an answer"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function(**{**arguments, argument: item})
            except RPOError as error:
                if len(str(error)) < 1500 and "\n" not in str(error):
                    continue
                outcome = f"a message of {len(str(error))} characters"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"[:100]
            given = type(item).__name__ if isinstance(item, int) else f"{item!r:.60}"
            found.append(f"{argument} = {given}: {outcome}")
    return found
