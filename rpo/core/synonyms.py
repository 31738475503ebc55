"""One thing, one name: names that stand for one another in Python, in YAML and on the command line.

docs/notation.md lists them; the first of each group is the one that is documented.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from rpo.core.errors import InvalidArgument

GROUPS = (
    ("num_preferences", "n"),
    ("max_steps", "steps"),
    ("num_samples", "samples"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("seed", "rng"),
)
F = TypeVar("F", bound=Callable[..., Any])


def own_name(name: str, known: Collection[str]) -> str:
    """Return the name of the same thing that is among `known`, dotted names by their end; `name` itself without one."""
    home, _, end = name.rpartition(".")
    if name in known:
        return name
    for group in GROUPS:
        for one in group if end in group else ():
            own = f"{home}.{one}" if home else one
            if own in known:
                return own
    return name


def own_names(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return what is given by the names among `known`. Raises InvalidArgument where one thing has two of its names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        own = own_name(name, known)
        if own in found or (own != name and own in given):
            remedy = "They are one thing; leave one of them out."
            raise InvalidArgument(name, expected=f"nothing beside {own}", got=repr(value), remedy=remedy)
        found[own] = value
    return found


def with_synonyms(function: F) -> F:
    """Have a function take the other names of its parameters as keywords; its signature stays."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        return function(*args, **own_names(keywords, known))

    return call  # type: ignore[return-value]
