"""Models on one scale: Bradley-Terry strengths by maximum likelihood, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, SolverFailed
from rpo.eval.logistic import clusters, fit_logistic


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Models from strong to weak.

    strengths: log-odds, with mean zero; two models' difference is the log-odds of a win of the one over the
    other. intervals: at confidence `level`, of the strengths. Where there is no finite answer both are NaN
    and models stand as they came; where errors cannot be told the intervals are. message: why, or "".
    """

    models: tuple[str, ...]
    strengths: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    level: float
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores."""
        return asdict(self)


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    results: Any,
    prompts: Sequence[Any] | None = None,
    *,
    level: float = 0.95,
) -> Ranking:
    r"""Return the strengths $s$ that make $P(i \text{ beats } j) = \sigma(s_i - s_j)$ most likely, with mean zero.

    first, second: (N,), the models' names. results: (N,) in [0, 1], 1 a win of the first; a tie counts as half
    a win of each. prompts: (N,), equal for results of the same prompt, whose errors go together; None: all
    independent. The intervals are normal, with errors clustered by prompt. Strengths are finite exactly where
    the graph of wins and ties is strongly connected; elsewhere a message says which models stand apart.
    Raises InvalidArgument. Source: Bradley and Terry 1952; existence: Ford 1957.
    """
    confidence = checks.fraction("level", level)
    first, second = checks.instances("first", first, str), checks.instances("second", second, str)
    y = checks.finite("results", results, shape=(len(first),))
    groups = clusters(prompts, y.size)
    if len(second) != y.size or not y.size or y.min() < 0 or y.max() > 1:
        raise InvalidArgument(
            "results",
            expected="a number in [0, 1] for each pair of models",
            got=f"{y.size} numbers for {len(first)} and {len(second)} names",
            remedy="1 is a win of the first, 0.5 a tie, 0 a loss.",
        )
    models = list(dict.fromkeys(name for pair in zip(first, second, strict=True) for name in pair))
    place = {name: index for index, name in enumerate(models)}
    i, j = np.array([place[name] for name in first]), np.array([place[name] for name in second])
    if (i == j).any():
        raise InvalidArgument("second", expected="another model", got=models[int(i[i == j][0])], remedy="Drop those.")
    message, fitted = _apart(models, i, j, y), None
    difference = np.zeros((y.size, len(models)))
    rows = np.arange(y.size)
    difference[rows, i], difference[rows, j] = 1.0, -1.0
    if not message:
        try:
            # The first model's strength is fixed at zero, and the mean taken off afterwards.
            fitted = fit_logistic(difference[:, 1:], y, groups)
        except SolverFailed as error:
            message = str(error)
    if fitted is None:
        none = (float("nan"),) * len(models)
        return Ranking(
            models=tuple(models),
            strengths=none,
            intervals=tuple(zip(none, none, strict=True)),
            level=confidence,
            message=message,
        )
    centre = np.eye(len(models))[:, 1:] - 1.0 / len(models)
    strengths = centre @ fitted.estimate
    half, message = fitted.half_widths(centre, confidence)
    order = np.argsort(-strengths, kind="stable")
    return Ranking(
        models=tuple(models[k] for k in order),
        strengths=tuple(float(strengths[k]) for k in order),
        intervals=tuple((float(strengths[k] - half[k]), float(strengths[k] + half[k])) for k in order),
        level=confidence,
        message=message,
    )


def _apart(models: list[str], i: Any, j: Any, y: Array) -> str:
    """Return why no finite strengths are likeliest, or "" where they exist."""
    beats = np.zeros((len(models), len(models)), dtype=bool)
    beats[i[y > 0], j[y > 0]] = True
    beats[j[y < 1], i[y < 1]] = True
    graph = csr_array(beats)
    count, part = connected_components(graph, directed=False)
    if count > 1:
        groups = [[models[k] for k in np.flatnonzero(part == number)] for number in range(count)]
        return "never compared, not even through others: " + " | ".join(", ".join(group) for group in groups)
    count, part = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return ""
    # Some group is beaten by none outside it: the parts and the wins between them form no cycle.
    top = next(n for n in range(count) if not beats[part != n][:, part == n].any())
    names = ", ".join(models[k] for k in np.flatnonzero(part == top))
    return f"{names} never lost or tied against the others, so the likelihood grows for ever with the distance"
