"""Figures and small experiments of the notebooks, one topic a module."""
