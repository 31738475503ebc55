"""Figures of the bandit laboratory: each takes tidy data and returns a matplotlib Figure."""
