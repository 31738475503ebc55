"""The atlas's column for the transformer: what it reaches, against `solve`, and how it looks before it has arrived."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rpo.bandit import Unconstrained, solve
from rpo.compare import tiny_gpt2
from rpo.compare.atlas import entrants, transformer
from rpo.compare.atlas.transformer import transformers

KNOWN = {one.name: one for one in entrants()}


def test_trained_long_enough_it_is_the_tables_optimum_and_after_one_step_it_is_not() -> None:
    """Within 1e-5 of total variation by 220 steps, of losses with and without SFT; one step stays beyond .05."""
    methods = [KNOWN[name] for name in ("DPO", "CPO", "RPO, base = reference")]
    found = transformers(methods, steps=220, progress=False)
    begun = transformers(methods, steps=1, progress=False)
    print({name: f"{reached.distance:.1e}" for name, reached in found.items()})
    assert list(found) == [one.name for one in methods]
    for name, reached in found.items():
        assert reached.evidence == "certified", name
        assert reached.distance < 1e-5 < 0.05 < begun[name].distance, name


def test_the_distance_is_that_of_the_worst_prompt_from_the_certified_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of training the reference comes back: its distance from `solve`'s policy, prompt by prompt.

    A reduction by token, which a table has not, is turned into the sum that it is of one token.
    """
    seen: dict[str, Any] = {}

    def untrained(lm: Any, data: Any, objective: Any, *, problem: Any, steps: int, **_: Any) -> Any:
        seen[type(objective).__name__] = (data, objective, problem, steps)
        return SimpleNamespace(policy=problem.reference)

    monkeypatch.setattr(transformer, "fit_language_model", untrained)
    found = transformers([KNOWN["RPO"], KNOWN["CPO"], KNOWN["SLiC"]], steps=7, rng=5, progress=False)
    data, objective, problem, steps = seen["RPO"]
    exact = solve(problem, data, objective, reward_class=Unconstrained()).policy
    apart = 0.5 * np.abs(problem.reference - exact).sum(axis=1)
    assert steps == 7 and found["RPO"].distance == pytest.approx(apart.max(), abs=1e-7)
    assert apart.max() > apart.min() + 1e-3  # the mean over prompts would be another number
    assert KNOWN["CPO"].at(1.0).anchor.reduction == "batch_token_mean"
    assert seen["CPO"][1].anchor.reduction == "sequence_sum"
    model = tiny_gpt2(prompts=2, vocab_size=6, length=1, rng=5).policy()
    assert problem.reference == pytest.approx(model / model.sum(1, keepdims=True))
    assert found["SLiC"].evidence == "none"  # a hinge has a corner: nothing is proved of where a descent ends
