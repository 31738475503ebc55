"""The tokenised group of responses, of which a pair is the case K = 2, and a compact sequence of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from rpo.llm.data.report import DataReport

Ids = tuple[int, ...]
TRL_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """Token ids of K responses to one prompt; every response is scored after `prompt_ids`, which is never empty.

    own: the K responses that are compared, the best first: two of a preference, chosen and rejected, or one alone, of
    which label or scores say what it is worth. Each has its one end of turn where it is complete. row: position in the
    source, for messages. base_ids: further responses to the prompt, those under pi_base first. weight: of the group, >
    0. scored: empty where every token of the responses counts; else for each response None, or 1 or 0 for each token.
    scores: of the K responses, where the objective reads them.
    """

    prompt_ids: Ids
    own: tuple[Ids, ...]
    row: int
    base_ids: tuple[Ids, ...] = ()
    weight: float = 1.0
    scored: tuple[bytes | None, ...] = ()
    label: bool | None = None
    scores: tuple[float, ...] = ()

    @classmethod
    def pair(
        cls,
        prompt_ids: Ids,
        chosen_ids: Ids,
        rejected_ids: Ids,
        row: int,
        base_ids: tuple[Ids, ...] = (),
        weight: float = 1.0,
        scored: tuple[bytes | None, ...] = (),
        label: bool | None = None,
        scores: tuple[float, ...] = (),
    ) -> TokenizedGroup:
        """Return the group of a preference, K = 2, or with an empty `rejected_ids` of a response alone, K = 1."""
        own = (chosen_ids, rejected_ids) if rejected_ids else (chosen_ids,)
        return cls(prompt_ids, own, row, base_ids, weight, scored, label, scores)

    @property
    def chosen_ids(self) -> Ids:
        """The best response."""
        return self.own[0]

    @property
    def rejected_ids(self) -> Ids:
        """The worst response; empty where there is but one."""
        return self.own[-1] if len(self.own) > 1 else ()

    def __contains__(self, name: object) -> bool:
        return name in TRL_COLUMNS

    def __getitem__(self, name: str) -> list[int]:
        """Return token ids under the name of TRL's column, as those who read a stream's items expect."""
        if name not in TRL_COLUMNS:
            raise KeyError(name)
        return list(getattr(self, name))

    @property
    def responses(self) -> tuple[Ids, ...]:
        """Its own responses, then the further ones."""
        return *self.own, *self.base_ids

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each response are scored."""
        masks = self.scored or (None,) * len(self.responses)
        return [len(ids) if mask is None else sum(mask) for ids, mask in zip(self.responses, masks, strict=True)]


TokenizedPair = TokenizedGroup.pair


class PreparedPairs(Sequence[TokenizedGroup]):
    """Groups in one flat array of 32-bit ids (a tenth of the memory of Python lists), and their `report`."""

    def __init__(self, pairs: Iterable[TokenizedGroup], report: DataReport | None = None) -> None:
        # Segments, one per token list, follow one another in `_tokens`; segment s ends at _ends[s], and group k owns
        # segments _first[k] to _first[k + 1]: the prompt, _own[k] responses that are compared, the further ones.
        self._tokens, self._ends, self._first = array("i"), array("q"), array("q", [0])
        self._own, self._rows, self._weights = array("i"), array("q"), array("d")
        self._scored: dict[int, tuple[bytes | None, ...]] = {}
        self._labels: dict[int, bool] = {}
        self._scores: dict[int, tuple[float, ...]] = {}
        for pair in pairs:
            if pair.label is not None:
                self._labels[len(self._rows)] = pair.label
            if pair.scores:
                self._scores[len(self._rows)] = pair.scores
            for ids in (pair.prompt_ids, *pair.responses):
                self._tokens.extend(ids)
                self._ends.append(len(self._tokens))
            if pair.scored:
                self._scored[len(self._rows)] = pair.scored
            self._first.append(len(self._ends))
            self._own.append(len(pair.own))
            self._rows.append(pair.row)
            self._weights.append(pair.weight)
        self.report = DataReport(rows=len(self), pairs=len(self)) if report is None else report

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenizedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedGroup]: ...
    def __getitem__(self, index: int | slice) -> TokenizedGroup | list[TokenizedGroup]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        prompt, *responses = (self._segment(s) for s in range(self._first[k], self._first[k + 1]))
        own, base = tuple(responses[: self._own[k]]), tuple(responses[self._own[k] :])
        known = (self._scored.get(k, ()), self._labels.get(k), self._scores.get(k, ()))
        return TokenizedGroup(prompt, own, self._rows[k], base, self._weights[k], *known)

    def _segment(self, s: int) -> Ids:
        return tuple(self._tokens[self._ends[s - 1] if s else 0 : self._ends[s]])
