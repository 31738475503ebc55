"""Judges by name."""

from __future__ import annotations

from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.judges import Judge
from rpo.eval.judges.endpoint import Endpoint
from rpo.eval.judges.recorded import Recorded
from rpo.eval.judges.scored import Scored
from rpo.eval.scorers import load_scorer


def load(name: str, **endpoint: Any) -> Judge:
    """Return the judge called `name`: "endpoint:MODEL", "scorer:NAME" (see `load_scorer`) or "recorded:FILE".

    endpoint: settings of `Endpoint`, of which the other judges need none. Raises InvalidArgument,
    OutputError, MissingDependency.
    """
    kind, _, rest = checks.instance("judge", name, str).partition(":")
    if rest and kind == "endpoint":
        return Endpoint(rest, **endpoint)
    if rest and kind == "scorer":
        return Scored(load_scorer(rest))
    if rest and kind == "recorded":
        return Recorded(rest)
    raise InvalidArgument(
        "judge",
        expected="endpoint:MODEL, scorer:NAME or recorded:FILE",
        got=name,
        remedy="For example endpoint:gpt-4 or scorer:model:FOLDER.",
    )
