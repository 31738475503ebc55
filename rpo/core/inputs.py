"""What a caller hands an objective, read into columns: shapes, kinds and what the objective needs.

Shapes: N groups, K responses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from rpo.core import checks, numerics
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.reduction import check_weights, require_lengths
from rpo.core.shapes import Shape


class Reader(Protocol):
    """What is asked of an objective: which columns it reads, and groups of which size its shape takes."""

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def label(self) -> str: ...


TOKENS = "Pass the number of tokens of each response."


def pair_columns(
    objective: Reader,
    given: Mapping[str, Any],
    *,
    lengths: Mapping[str, Any],
    scores: Mapping[str, Any],
    likeness: Mapping[str, Any],
    weights: Any,
    shift: Any,
) -> tuple[Columns, Any]:
    """Return pairs as columns, and their weights, from arrays (N,) by the caller's names, chosen first.

    given: log-probabilities, those of the policy first. Raises InvalidArgument.
    """
    if not objective.shape.pairs:
        raise InvalidArgument(
            "objective",
            expected="a loss of pairs",
            got=f"{objective.label}, a loss of single responses",
            remedy="Call objective.of_lists with arrays (N, 1).",
        )
    logps = {
        name: numerics.promote(value, name)
        for name, value in given.items()
        if value is not None or _asks_for(objective, name)
    }
    policy = next(iter(logps.values()))
    if policy.ndim != 1 or policy.shape[0] == 0:
        raise InvalidArgument(
            next(iter(logps)),
            expected="shape (N,) with N >= 1",
            got=f"shape {tuple(policy.shape)}",
            remedy="Pass one per pair.",
        )
    for name, value in logps.items():
        check_alike(name, value, policy)
    weights = like("weights", weights, policy)
    check_weights(weights, policy)
    tokens = {name: like(name, value, policy) for name, value in lengths.items()}
    if "lengths" in objective.needs:
        for name, value in tokens.items():
            require_lengths(name, value, policy, type(objective).__name__, remedy=TOKENS)
    read = None
    if "scores" in objective.needs:
        read = tuple(
            like(name, checks.finite(name, value, shape=tuple(policy.shape)), policy) for name, value in scores.items()
        )
        check_scores(objective, next(iter(scores)), read)
    if "shift" in objective.needs:
        checks.finite("shift", shift, shape=())
    likely = None
    if "likeness" in objective.needs:
        likely = tuple(
            like(name, checks.finite(name, value, shape=tuple(policy.shape)), policy)
            for name, value in likeness.items()
        )
    reference = tuple(value for name, value in logps.items() if not name.startswith("policy"))
    columns = Columns(
        logps=tuple(value for name, value in logps.items() if name.startswith("policy")),
        reference=reference or None,
        lengths=tuple(tokens.values()),
        scores=read,
        shift=shift,
        likeness=likely,
    )
    return columns, weights


def list_columns(
    objective: Reader,
    policy_logps: Any,
    reference_logps: Any,
    *,
    lengths: Any,
    scores: Any,
    sizes: Any,
    weights: Any,
) -> tuple[Columns, Any, Any]:
    """Return lists (N, K) as columns, how many responses each has ((N,), None for all), and their weights.

    Raises InvalidArgument.
    """
    policy = numerics.promote(policy_logps, "policy_logps")
    if policy.ndim != 2 or 0 in policy.shape:
        raise InvalidArgument(
            "policy_logps",
            expected="shape (N, K) with N, K >= 1",
            got=f"shape {tuple(policy.shape)}",
            remedy="Pass one row per list.",
        )
    n, width = policy.shape
    counts = np.full(n, width) if sizes is None else checks.numbers("sizes", sizes)
    checks.has_shape("sizes", counts, (n,))
    if counts.dtype.kind not in "iu" or counts.min() < 1 or counts.max() > width:
        raise InvalidArgument(
            "sizes",
            expected=f"whole numbers from 1 to {width}",
            got=counts,
            remedy="Pass how many responses there are.",
        )
    for size in np.unique(counts):
        require_size(objective, int(size), "policy_logps" if sizes is None else "sizes")
    there = np.arange(width) < counts[:, None]
    table: dict[str, Any] = {"policy_logps": policy}
    if "reference" in objective.needs or reference_logps is not None:
        table["reference_logps"] = numerics.promote(reference_logps, "reference_logps")
    if "lengths" in objective.needs or lengths is not None:
        table["lengths"] = like("lengths", lengths, policy)
        if lengths is None:
            require_lengths("lengths", None, policy, type(objective).__name__, remedy=TOKENS)
        require_lengths("lengths", table["lengths"][there], policy[there], type(objective).__name__, remedy=TOKENS)
    if "scores" in objective.needs:
        checks.finite("scores", scores if sizes is None else np.where(there, scores, 0.0), shape=(n, width))
        table["scores"] = like("scores", scores, policy)
    for name, value in table.items():
        check_alike(name, value, policy)
    columns = {name: tuple(value[:, k] for k in range(width)) for name, value in table.items()}
    if "scores" in table:
        check_scores(objective, "scores", columns["scores"], there.T)
    weights = like("weights", weights, policy[:, 0])
    check_weights(weights, policy[:, 0])
    read = Columns(
        logps=columns["policy_logps"],
        reference=columns.get("reference_logps"),
        lengths=columns.get("lengths"),
        scores=columns.get("scores"),
    )
    return read, None if sizes is None else counts, weights


def require_size(objective: Reader, size: int, name: str) -> None:
    """Refuse groups of a number of responses that the objective has no loss for."""
    shape = objective.shape
    if size == 1:
        taken, what = shape.unpaired, "single responses"
    else:
        taken, what = (shape.lists or (size == 2 and shape.pairs)), f"lists of {size} responses"
    if taken:
        return
    pairs = "Take pairs from each list (rules such as best against worst), or a method of rpo.methods.lists."
    raise InvalidArgument(
        name,
        expected="pairs" if shape.pairs else "single responses",
        got=f"{what}, of which {objective.label} has no loss",
        remedy=pairs if size > 2 and shape.pairs else "Take another method.",
    )


def check_alike(name: str, value: Any, first: Any) -> None:
    """Refuse a value of another shape or backend than the first of its kind."""
    kinds = numerics.backend(value), numerics.backend(first)
    if kinds[0] != kinds[1]:
        raise InvalidArgument(name, expected=f"a {kinds[1]} array", got=kinds[0], remedy="Pass all in one of them.")
    checks.has_shape(name, value, tuple(first.shape))


def like(name: str, values: Any, logps: Any) -> Any:
    """Return `values` (None, a sequence, an array) in the backend and precision of `logps`."""
    if values is None:
        return None
    if numerics.backend(logps) == "torch":
        torch = sys.modules["torch"]
        if numerics.backend(values) != "torch":
            values = checks.numbers(name, values)
        elif values.dtype == torch.bool or values.is_complex() or values.layout != torch.strided:
            got = f"{values.dtype}, {values.layout}"
            raise InvalidArgument(name, expected="a dense tensor of real numbers", got=got, remedy="Convert it first.")
        return torch.as_tensor(values, dtype=logps.dtype, device=logps.device)
    return checks.numbers(name, values).astype(logps.dtype, copy=False)


def _asks_for(objective: Reader, name: str) -> bool:
    if name == "policy_rejected_logps":
        return objective.shape.compares
    return name.startswith("policy") or "reference" in objective.needs


def check_scores(objective: Reader, name: str, scores: tuple[Any, ...], there: Any = None) -> None:
    """Refuse scores that rise along a group, of pairs also ties where their difference is read, or that leave [0, 1].

    there: (K, N) bool, which entries there are; None for all.
    """
    table = np.stack([np.asarray(score.tolist() if hasattr(score, "tolist") else score) for score in scores])
    there = np.ones(table.shape, dtype=bool) if there is None else there
    strict = not objective.shape.lists
    falls = table[:-1] > table[1:] if strict else table[:-1] >= table[1:]
    if not falls[there[1:]].all():
        raise InvalidArgument(
            name,
            expected="scores above the rejected responses'" if strict else "scores that fall along each list",
            got="a tie, or the other way round" if strict else "one above the score before it",
            remedy="Drop ties, and pairs whose scores contradict the preference." if strict else "Sort, best first.",
        )
    if objective.shape.unit_scores and not ((table[there] >= 0) & (table[there] <= 1)).all():
        raise InvalidArgument(
            name,
            expected=f"scores in [0, 1] for {objective.label}",
            got=f"between {table[there].min():g} and {table[there].max():g}",
            remedy="Rescale them, by their least and largest values for example.",
        )
