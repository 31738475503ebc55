"""One small problem and one small comparison, made once."""

from pathlib import Path

import numpy as np
import pytest

from rpo.bandit import ContextualBandit, PreferenceCounts
from rpo.compare import Comparison, EnumerableLM, compare, draw_problem, write_report
from rpo.core.objectives import RPO


@pytest.fixture(scope="session")
def small() -> tuple[EnumerableLM, ContextualBandit, PreferenceCounts]:
    """Two prompts, 3^2 = 9 responses."""
    lm, problem, data, _ = draw_problem(
        prompts=2, vocab_size=3, length=2, num_preferences=400, reward_bound=1.0, rng=np.random.default_rng(0)
    )
    return lm, problem, data


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """A whole comparison on a problem small enough for tests."""
    return compare(
        RPO(beta=0.2, eta=0.3),
        prompts=2,
        vocab_size=3,
        length=2,
        num_preferences=400,
        reward_bound=1.0,
        steps=900,
        skew_draws=3,
        seed=1,
        progress=False,
    )


@pytest.fixture(scope="session")
def report(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that comparison's report."""
    folder = tmp_path_factory.mktemp("report") / "out"
    write_report(comparison, folder, config="seed: 1\n")
    return folder
