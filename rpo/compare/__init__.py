"""Theory against practice: the only place that imports both worlds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rpo.core.errors import NonFiniteLoss

if TYPE_CHECKING:
    from rpo.bandit.metrics import total_variation
    from rpo.compare.enumerable import EnumerableLM, tiny_gpt2
    from rpo.compare.equivalence import Comparison, compare, distance, draw_problem, measure
    from rpo.compare.figures import plot
    from rpo.compare.gold import GoldExperiment, gold_experiment
    from rpo.compare.gold_report import save_gold
    from rpo.compare.report import write_report
    from rpo.compare.sampled_kl import kl_coverage
    from rpo.compare.training import fit_language_model
    from rpo.compare.with_trainer import fit_with_trainer

# Loaded on first use: the command line names this package's commands before it knows which is asked for.
_HOME = {
    "Comparison": "rpo.compare.equivalence",
    "EnumerableLM": "rpo.compare.enumerable",
    "GoldExperiment": "rpo.compare.gold",
    "compare": "rpo.compare.equivalence",
    "distance": "rpo.compare.equivalence",
    "draw_problem": "rpo.compare.equivalence",
    "fit_language_model": "rpo.compare.training",
    "fit_with_trainer": "rpo.compare.with_trainer",
    "gold_experiment": "rpo.compare.gold",
    "kl_coverage": "rpo.compare.sampled_kl",
    "measure": "rpo.compare.equivalence",
    "plot": "rpo.compare.figures",
    "save_gold": "rpo.compare.gold_report",
    "tiny_gpt2": "rpo.compare.enumerable",
    "total_variation": "rpo.bandit.metrics",
    "write_report": "rpo.compare.report",
}

__all__ = [
    "Comparison",
    "EnumerableLM",
    "GoldExperiment",
    "NonFiniteLoss",
    "compare",
    "distance",
    "draw_problem",
    "fit_language_model",
    "fit_with_trainer",
    "gold_experiment",
    "kl_coverage",
    "measure",
    "plot",
    "save_gold",
    "tiny_gpt2",
    "total_variation",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rpo.compare' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
