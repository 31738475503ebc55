"""How well the data cover a comparator: the coefficient, and the electrical network behind it."""

from rpo.bandit.coverage.coefficient import Coverage, coverage_coefficient
from rpo.bandit.coverage.pair_distributions import chosen_distribution, empirical_pair_distribution
from rpo.bandit.coverage.resistance import effective_resistance

__all__ = [
    "Coverage",
    "chosen_distribution",
    "coverage_coefficient",
    "effective_resistance",
    "empirical_pair_distribution",
]
