"""`rpo.fit`: one call for every kind of policy; what it needs is imported when it is needed."""

from __future__ import annotations

import os
from typing import Any

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective, check_objective, require_objective
from rpo.core.records import Run


def fit(policy: Any, data: Any, objective: Objective | None = None, **options: Any) -> Run:
    """Minimise `objective` on preference `data` over `policy` and return its `Run`.

    policy: `problem.softmax_policy()` or `problem.linear_softmax_policy()` (options of
    `rpo.bandit.fit`), an `rpo.compare.EnumerableLM` (options of `rpo.compare.fit_language_model`), or a
    language model: a transformers model, a folder or a name (options of `rpo.llm.fit`, which also
    takes the objectives `SFT` and `BradleyTerry`). A table or an EnumerableLM is left as it was, a
    transformers model is trained in place; the trained policy is `run.artifact`. Raises InvalidArgument.
    """
    from rpo.bandit.problem import SoftmaxPolicy

    if isinstance(policy, SoftmaxPolicy):
        from rpo.bandit.fitting import fit as fit_table

        return fit_table(policy, data, require_objective(objective), **options)
    # Without torch loaded the policy cannot be one of its models: do not load it to find out.
    if type(policy).__module__.startswith("rpo.compare"):
        from rpo.compare.enumerable import EnumerableLM
        from rpo.compare.training import fit_language_model

        if isinstance(policy, EnumerableLM):
            return fit_language_model(policy, data, check_objective(objective), **options)
    if isinstance(policy, (str, os.PathLike)) or hasattr(policy, "generate"):
        from rpo.llm.training.fitting import fit as fit_llm

        checked = None if objective is None else require_objective(objective)
        return fit_llm(policy, data, checked, **options)
    raise InvalidArgument(
        "policy",
        expected="a TabularSoftmaxPolicy, a LinearSoftmaxPolicy, an EnumerableLM or a language model",
        got=type(policy).__name__,
        remedy="Pass problem.softmax_policy(), for example, or the name or folder of a model.",
    )
