"""Evaluation: scorers, gold-reward experiments, pairwise win rates, and the benchmarks people use."""
