"""Pairs tokenised while they are read, for sources too large to hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data.pairs import TokenizedGroup
from rpo.llm.data.report import DataReport, warn_of_unused_prompts
from rpo.llm.data.tokenize import PairEncoder
from rpo.llm.data.truncation import Limits


def splits_itself(rows: object) -> bool:
    """Return whether `rows` gives each data-loader worker its own share, as torch asks of an IterableDataset."""
    return isinstance(rows, IterableDataset) or bool(getattr(rows, "splits_itself", False))


class PairStream(IterableDataset[TokenizedGroup]):
    """Pairs tokenised as they are read, from rows that can be iterated again and again.

    `report` counts the current pass, in each data-loader worker its own share of the rows. A source
    that splits itself among workers, as streamed `datasets` do, numbers its rows in each on its own.
    `repeated` goes on pass after pass, as training needs: no update is then cut short, and a resumed run
    finds its place in later passes too.
    """

    endless = False

    def __init__(self, rows: Iterable[Any], encoder: PairEncoder) -> None:
        checks.rereadable("rows", rows)
        self._rows, self._encoder, self.report = rows, encoder, DataReport()

    def __iter__(self) -> Iterator[TokenizedGroup]:
        yield from self._one_pass()
        for epoch in itertools.count(1) if self.endless else ():
            self.set_epoch(epoch)
            yield from self._one_pass()

    def _one_pass(self) -> Iterator[TokenizedGroup]:
        worker = get_worker_info()
        part, parts = (0, 1) if worker is None or splits_itself(self._rows) else (worker.id, worker.num_workers)
        self.report = DataReport()
        numbered = ((index, row) for index, row in enumerate(self._rows) if index % parts == part)
        for pair in self._encoder.encode(numbered, self.report):
            if self.report.pairs == 1:
                warn_of_unused_prompts(self.report)
            yield pair
        if worker is None and not self.report.pairs:
            remedy = self.report.messages[0] if self.report.messages else "Check the split and max_length."
            got = f"{self.report.rows} rows and no pair"
            raise InvalidArgument("rows", expected="at least one usable row", got=got, remedy=remedy)

    def repeated(self) -> PairStream:
        """Return a stream of the same rows in which pass follows on pass without end."""
        stream = PairStream(self._rows, self._encoder)
        stream.endless = True
        return stream

    def set_epoch(self, epoch: int) -> None:
        """Tell the source which pass comes next, where it shuffles by epoch."""
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)


def stream_pairs(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: str = "keep_end",
    on_refused: str = "error",
    base_column: str | None = None,
    weight_column: str | None = None,
    chat_template: str | None = None,
    unpaired: bool = False,
    scores: bool = False,
    lists: bool = False,
    ranked: bool = False,
) -> PairStream:
    """Return the rows as a torch IterableDataset of pairs; arguments as of `prepare_pairs`. Raises the same."""
    limits = Limits(max_length, max_prompt_length, truncation_mode)
    read = {"unpaired": unpaired, "scores": scores, "lists": lists, "ranked": ranked}
    encoder = PairEncoder(tokenizer, limits, on_refused, base_column, weight_column, chat_template, **read)
    return PairStream(rows, encoder)
