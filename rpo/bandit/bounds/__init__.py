"""The finite-sample bound, with several constants, and where each step of its proof loses."""

from rpo.bandit.bounds.covering import log_covering
from rpo.bandit.bounds.intervals import Proportion, Slope, clopper_pearson, loglog_slope
from rpo.bandit.bounds.ledger import Ledger, LedgerEntry, slack_ledger
from rpo.bandit.bounds.theorem import (
    Bound,
    bound_arguments,
    hellinger_bound,
    paper_bound,
    sharper_bound,
    suboptimality_bound,
)

__all__ = [
    "Bound",
    "Ledger",
    "LedgerEntry",
    "Proportion",
    "Slope",
    "bound_arguments",
    "clopper_pearson",
    "hellinger_bound",
    "log_covering",
    "loglog_slope",
    "paper_bound",
    "sharper_bound",
    "slack_ledger",
    "suboptimality_bound",
]
