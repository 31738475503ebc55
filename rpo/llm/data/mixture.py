"""Several sources drawn from at random, with weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.loading import load_preferences
from rpo.llm.data.report import SourceRow
from rpo.llm.data.streaming import splits_itself

STRATEGIES = ("all_exhausted", "first_exhausted")


class Mixture:
    """Rows of several sources in a random order that is the same at every iteration.

    drawn: rows taken from each source in the current pass.
    """

    def __init__(
        self, sources: Sequence[Iterable[Any]], weights: Sequence[float], seed: int, strategy: str, names: Sequence[str]
    ) -> None:
        self._names = names
        self._sources, self._seed, self._strategy = sources, seed, strategy
        self._shares = np.asarray(weights) / np.sum(weights)
        self.drawn = [0] * len(sources)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1 and any(map(splits_itself, self._sources)):
            raise InvalidArgument(
                "dataloader_num_workers",
                expected="0 or 1 for a mixture with streamed datasets, which split themselves among workers",
                got=worker.num_workers,
                remedy="Set it to 1, or load the datasets without streaming.",
            )
        rng = np.random.default_rng(self._seed)
        # Each source is read one row ahead, so that its end is known as its last row goes out.
        readers = [_Reader(source, name) for source, name in zip(self._sources, self._names, strict=True)]
        self.drawn = [0] * len(readers)
        while True:
            k = int(rng.choice(len(readers), p=self._shares))
            self.drawn[k] += 1
            yield readers[k].take()
            ended = [reader.ended for reader in readers]
            if all(ended) or (any(ended) and self._strategy == "first_exhausted"):
                return


class _Reader:
    """A source read in a circle, whose rows say where they are from; `ended` once its last row has been taken."""

    def __init__(self, source: Iterable[Any], name: str) -> None:
        self._source, self._name, self.ended = source, name, False
        self._next: Any = None
        self._restart()

    def take(self) -> Any:
        row = self._next
        try:
            self._next = self._following()
        except StopIteration:
            self.ended = True
            self._restart()
        return row

    def _following(self) -> Any:
        number, row = next(self._rows)
        known = hasattr(row, "origin") or not isinstance(row, Mapping)
        return row if known else SourceRow(row, f"{self._name}, row {number}")

    def _restart(self) -> None:
        self._rows = enumerate(self._source)
        try:
            self._next = self._following()
        except StopIteration:
            raise InvalidArgument(self._name, expected="at least one row", got="none", remedy="Leave it out.") from None


def mix(
    sources: Sequence[tuple[Any, float]],
    rng: np.random.Generator | np.random.SeedSequence | int,
    *,
    strategy: str = "all_exhausted",
    split: str = "train",
    streaming: bool = False,
) -> Mixture:
    """Return rows drawn from each (source, weight) in proportion to the weights, each source in its own order.

    sources: as of `load_preferences`. strategy: "all_exhausted" stops when every source has been
    read once, rereading those that end before; "first_exhausted" when one of them ends. rng: drawn
    from once. Raises InvalidArgument.
    """
    checks.one_of("strategy", strategy, STRATEGIES)
    sources = [tuple(checks.listed(f"sources[{k}]", one)) for k, one in enumerate(checks.listed("sources", sources))]
    for k, one in enumerate(sources):
        if len(one) != 2:
            raise InvalidArgument(
                f"sources[{k}]", expected="(source, weight)", got=f"{len(one)} items", remedy="Name both."
            )
    if not sources:
        raise InvalidArgument("sources", expected="at least one (source, weight)", got="none", remedy="Name one.")
    weights = [checks.positive(f"sources[{k}] weight", weight) for k, (_, weight) in enumerate(sources)]
    loaded = [load_preferences(source, split=split, streaming=streaming) for source, _ in sources]
    for k, rows in enumerate(loaded):
        if iter(rows) is rows:
            remedy = "Pass a list, or an object whose __iter__ starts anew."
            raise InvalidArgument(f"sources[{k}]", expected="rows that can be reread", got="a generator", remedy=remedy)
    seed = int(checks.generator("rng", rng).integers(2**63))
    names = [
        str(source) if isinstance(source, (str, Path)) else f"sources[{k}]" for k, (source, _) in enumerate(sources)
    ]
    return Mixture(loaded, weights, seed, strategy, names)
