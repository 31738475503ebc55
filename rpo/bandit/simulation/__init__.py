"""Many cells and seeds at once: resumable, parallel, one tidy table."""

from rpo.bandit.simulation.engine import FailedRows, simulate
from rpo.bandit.simulation.methods import Maximin
from rpo.bandit.simulation.store import CorruptShard, GridMismatch, MixedCode

__all__ = ["CorruptShard", "FailedRows", "GridMismatch", "Maximin", "MixedCode", "simulate"]
