"""Theory against practice: the only place that imports both worlds."""

from rpo.bandit.metrics import total_variation
from rpo.compare.enumerable import EnumerableLM, tiny_gpt2
from rpo.compare.equivalence import Comparison, compare, distance, draw_problem, measure
from rpo.compare.figures import plot
from rpo.compare.report import write_report
from rpo.compare.training import fit_language_model
from rpo.compare.with_trainer import fit_with_trainer
from rpo.core.errors import NonFiniteLoss

__all__ = [
    "Comparison",
    "EnumerableLM",
    "NonFiniteLoss",
    "compare",
    "distance",
    "draw_problem",
    "fit_language_model",
    "fit_with_trainer",
    "measure",
    "plot",
    "tiny_gpt2",
    "total_variation",
    "write_report",
]
