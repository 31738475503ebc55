"""`rpo.fit`: one call for every kind of policy; what it needs is imported when it is needed."""

from __future__ import annotations

from typing import Any

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective
from rpo.core.records import Run


def fit(policy: Any, data: Any, objective: Objective, **options: Any) -> Run:
    """Minimise `objective` on preference `data` over `policy` and return its `Run`.

    policy: `problem.softmax_policy()` or `problem.linear_softmax_policy()` (options of
    `rpo.bandit.fit`), or an `rpo.compare.EnumerableLM` (options of
    `rpo.compare.fit_language_model`). The policy passed in is left as it was; the trained one is
    `run.artifact`. Raises InvalidArgument for anything else.
    """
    from rpo.bandit.policies import SoftmaxPolicy

    if isinstance(policy, SoftmaxPolicy):
        from rpo.bandit.fitting import fit as fit_table

        return fit_table(policy, data, objective, **options)
    # Without torch loaded the policy cannot be one of its models: do not load it to find out.
    if type(policy).__module__.startswith("rpo.compare"):
        from rpo.compare.enumerable import EnumerableLM
        from rpo.compare.training import fit_language_model

        if isinstance(policy, EnumerableLM):
            return fit_language_model(policy, data, objective, **options)
    raise InvalidArgument(
        "policy",
        expected="a TabularSoftmaxPolicy, a LinearSoftmaxPolicy or an EnumerableLM",
        got=repr(policy) if isinstance(policy, str) else type(policy).__name__,
        remedy="Other language models (names, transformers models) cannot be trained by this version yet.",
    )
