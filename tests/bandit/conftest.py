"""Builders shared by the tests of the bandit: small problems, saddles, and the paper's value by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core.objectives import RPO


@pytest.fixture(scope="session")
def make_bandit() -> Callable[..., ContextualBandit]:
    """Return a builder of random problems: Dirichlet d0 and pi_ref, r* uniform on [0, bound]."""

    def build(seed: int, prompts: int = 2, arms: int = 4, bound: float = 2.0, dim: int = 0, **more: Any) -> Any:
        g = np.random.default_rng(seed)
        fields = {
            "d0": g.dirichlet(np.full(prompts, 5.0)),
            "reference": g.dirichlet(np.full(arms, 2.0), size=prompts),
            "reward": g.uniform(0.0, bound, size=(prompts, arms)),
            "reward_bound": bound,
            "behavior": np.full((prompts, arms), 1.0 / arms),
            "features": g.normal(size=(prompts, arms, dim)) if dim else None,
        }
        return ContextualBandit(**{**fields, **more})

    return build


@pytest.fixture(scope="session")
def make_saddle() -> Callable[..., Saddle]:
    """Return a builder of a Saddle from a table of wins (X, A, A); base is an array or a name."""

    def build(
        wins: Any, *, beta: float = 0.5, eta: float = 0.1, base: Any = "chosen", reference: Any = None, d0: Any = None,
        reward_class: Any = None, prompt_weights: str = "data",
    ) -> Saddle:  # fmt: skip
        data = PreferenceCounts.from_wins(np.asarray(wins, float))
        x, a = data.num_prompts, data.num_responses
        problem = ContextualBandit(
            d0=np.full(x, 1.0 / x) if d0 is None else d0,
            reference=np.full((x, a), 1.0 / a) if reference is None else reference,
        )
        named = isinstance(base, str)
        return build_saddle(
            problem,
            data,
            RPO(beta=beta, eta=eta, base=base if named else "custom"),
            reward_class or Unconstrained(),
            prompt_weights=prompt_weights,
            base_policy=None if named else base,
        )

    return build


@pytest.fixture(scope="session")
def upper_value() -> Callable[[Saddle, Any], float]:
    """Return max over pi of phi(pi, r), written from theory.md section 2 in loops, none of rpo's code.

    L_D(r) + eta (-E_{d, base}[r] + beta E_d[log sum_a pi_ref exp(r / beta)]).
    """

    def value(s: Saddle, r: Any) -> float:
        beta, eta = s.objective.beta, s.objective.eta
        total = 0.0
        for x, w, lost, n in zip(s.prompt, s.chosen, s.rejected, s.weights, strict=True):
            total += n * np.logaddexp(0.0, r[x, lost] - r[x, w])
        for x, weight in enumerate(s.d):
            scaled = np.where(s.support[x], s.log_reference[x] + r[x] / beta, -np.inf)
            top = scaled.max()
            total += eta * weight * (-(s.base[x] @ r[x]) + beta * (top + np.log(np.exp(scaled - top).sum())))
        return float(total)

    return value
