"""The tokenised pair, and a compact sequence of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from rpo.llm.data.report import DataReport


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of one preference; every response is scored after `prompt_ids`, which is never empty.

    chosen_ids, rejected_ids: with their one end of turn where complete; of a response alone, K = 1, the second is
    empty, and label says whether it is desirable. row: position in the source, for messages. base_ids: further
    responses to the prompt, those under pi_base first. weight: of the pair, > 0. scored: empty where every token of
    the responses counts; else for each response None, or 1 or 0 for each token. scores: of chosen and rejected, where
    the objective reads them.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    row: int
    base_ids: tuple[tuple[int, ...], ...] = ()
    weight: float = 1.0
    scored: tuple[bytes | None, ...] = ()
    label: bool | None = None
    scores: tuple[float, ...] = ()

    @property
    def own(self) -> tuple[tuple[int, ...], ...]:
        """The K responses that are compared or labelled: chosen and rejected, or one alone."""
        return (self.chosen_ids, self.rejected_ids) if self.rejected_ids else (self.chosen_ids,)

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Its own responses, then the further ones."""
        return *self.own, *self.base_ids

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each response are scored."""
        masks = self.scored or (None,) * len(self.responses)
        return [len(ids) if mask is None else sum(mask) for ids, mask in zip(self.responses, masks, strict=True)]


class PreparedPairs(Sequence[TokenizedPair]):
    """Pairs in one flat array of 32-bit ids (a tenth of the memory of Python lists), and their `report`."""

    def __init__(self, pairs: Iterable[TokenizedPair], report: DataReport | None = None) -> None:
        # Segments, one per token list, follow one another in `_tokens`; segment s ends at _ends[s], and pair k owns
        # segments _first[k] to _first[k + 1].
        self._tokens, self._ends, self._first = array("i"), array("q"), array("q", [0])
        self._rows, self._weights = array("q"), array("d")
        self._scored: dict[int, tuple[bytes | None, ...]] = {}
        self._labels: dict[int, bool] = {}
        self._scores: dict[int, tuple[float, ...]] = {}
        for pair in pairs:
            if pair.label is not None:
                self._labels[len(self._rows)] = pair.label
            if pair.scores:
                self._scores[len(self._rows)] = pair.scores
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, *pair.base_ids):
                self._tokens.extend(ids)
                self._ends.append(len(self._tokens))
            if pair.scored:
                self._scored[len(self._rows)] = pair.scored
            self._first.append(len(self._ends))
            self._rows.append(pair.row)
            self._weights.append(pair.weight)
        self.report = DataReport(rows=len(self), pairs=len(self)) if report is None else report

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        prompt, chosen, rejected, *base = (self._segment(s) for s in range(self._first[k], self._first[k + 1]))
        known = (self._scored.get(k, ()), self._labels.get(k), self._scores.get(k, ()))
        return TokenizedPair(prompt, chosen, rejected, self._rows[k], tuple(base), self._weights[k], *known)

    def _segment(self, s: int) -> tuple[int, ...]:
        return tuple(self._tokens[self._ends[s - 1] if s else 0 : self._ends[s]])
