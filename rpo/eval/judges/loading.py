"""Judges by name."""

from __future__ import annotations

from typing import Any

from rpo.core.errors import InvalidArgument, shown
from rpo.eval.judges import Judge
from rpo.eval.judges.endpoint import Endpoint
from rpo.eval.judges.recorded import Recorded
from rpo.eval.judges.scored import Scored
from rpo.eval.scorers import Scorer, load_scorer


def load(judge: Judge | Scorer | str, **endpoint: Any) -> Judge:
    """Return a judge as it is, a scorer as one, or the one of a name.

    Names are "endpoint:MODEL", "scorer:NAME" (see `load_scorer`) and "recorded:FILE". endpoint: settings of `Endpoint`,
    of which the other judges need none. A function has no name that tells its verdicts from others', and does not say
    whether it scores or compares: it is refused. Raises InvalidArgument, OutputError, MissingDependency.
    """
    if not isinstance(judge, (str, type)):
        if isinstance(judge, Judge):
            return judge
        if isinstance(judge, Scorer):
            return Scored(judge)
    kind, _, rest = judge.partition(":") if isinstance(judge, str) else ("", "", "")
    if rest and kind == "endpoint":
        return Endpoint(rest, **endpoint)
    if rest and kind == "scorer":
        return Scored(load_scorer(rest))
    if rest and kind == "recorded":
        return Recorded(rest)
    raise InvalidArgument(
        "judge",
        expected="endpoint:MODEL, scorer:NAME or recorded:FILE, a scorer or a Judge",
        got=judge if isinstance(judge, str) else shown(judge),
        remedy="For example endpoint:gpt-4 or scorer:model:FOLDER. Wrap a function (prompts, responses) -> scores as "
        'rpo.eval.scorers.Function(function, name="..."); one that compares two responses, as a judge of TRL, in a '
        "class with what rpo.eval.judges.Judge names.",
    )
