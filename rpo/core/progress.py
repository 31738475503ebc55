"""One progress bar for long work: drawn by rich on a terminal, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

T = TypeVar("T")
_drawn: list[str] = []


def track(
    items: Iterable[T], description: str, *, show: bool | None = None, sizes: Sequence[int] | None = None
) -> Iterator[T]:
    """Yield `items` under a bar with the time left, if they are finite.

    show: None draws only where stderr is a terminal. Within another bar nothing is drawn: a terminal has one. sizes:
    how much of the whole each item is, for a bar of tokens; by default they are alike.
    """
    if not (sys.stderr.isatty() if show is None else show) or _drawn:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = sum(sizes) if sizes is not None else len(items) if isinstance(items, Sized) else None
        task = progress.add_task(description, total=total)
        _drawn.append(description)
        try:
            for place, item in enumerate(items):
                yield item
                progress.advance(task, 1 if sizes is None else sizes[place])
        finally:
            _drawn.remove(description)
