"""Trainers on the objective, what they are configured by, and what a run leaves."""
