"""Benchmarks by the tools people use: what they take, the commands that run them, their results in one table."""
