"""Many instances at once, certified like one."""

from rpo.bandit.batched.solution import BatchSolution, sample_wins, solve_batch

__all__ = ["BatchSolution", "sample_wins", "solve_batch"]
