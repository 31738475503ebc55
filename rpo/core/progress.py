"""One progress bar for long work: drawn by rich on a terminal, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_drawn: list[str] = []


def track(items: Iterable[T], description: str, *, show: bool | None = None) -> Iterator[T]:
    """Yield `items` under a bar with the time left, if they are finite.

    show: None draws only where stderr is a terminal. Within another bar nothing is drawn: a terminal has one.
    """
    if not (sys.stderr.isatty() if show is None else show) or _drawn:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = len(items) if isinstance(items, Sized) else None
        _drawn.append(description)
        try:
            yield from progress.track(items, total=total, description=description)
        finally:
            _drawn.remove(description)
