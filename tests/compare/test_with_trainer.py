"""`RPOTrainer`, the trainer of real models, reaches the certified maximin on an enumerable one."""

from __future__ import annotations

import pytest

from rpo.bandit import Unconstrained, solve
from rpo.compare import fit_with_trainer, measure
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO


def test_the_trainer_reaches_the_certified_policy(small) -> None:
    """Total variation 1e-3 and loss 1e-5 are asked; the control is the policy before training, 100 times as far."""
    lm, problem, data = small
    objective = RPO(beta=0.2, eta=0.3)
    theory = solve(problem, data, objective, reward_class=Unconstrained())
    assert theory.status == "certified"
    run = fit_with_trainer(lm, data, objective, steps=600, learning_rate=1e-2)
    found = measure(run, theory)
    print(f"total variation {found['max_total_variation']:.1e}, loss difference {found['loss_difference']:.1e}")
    assert found["max_total_variation"] <= 1e-3
    assert abs(found["loss_difference"]) <= 1e-5
    short = measure(fit_with_trainer(lm, data, objective, steps=1), theory)
    assert short["max_total_variation"] > 0.1


def test_only_bases_the_pairs_hold(small) -> None:
    lm, _, data = small
    with pytest.raises(InvalidArgument, match="objective.base: expected 'chosen', 'rejected' or 'responses'"):
        fit_with_trainer(lm, data, RPO(beta=0.2, eta=0.3, base="reference"))
