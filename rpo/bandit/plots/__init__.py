"""Figures of the bandit laboratory: each takes tidy data and returns a matplotlib Figure."""

import importlib
from typing import Any

# Loaded on first use: matplotlib is needed by figures alone.
_HOME = {
    "animate_run": "animation",
    "best_eta_exponent": "eta_heatmap",
    "comparison_network": "network",
    "gap_against_coverage": "coverage",
    "gap_against_n": "bounds",
    "heatmap": "eta_heatmap",
    "mass": "policies",
    "movement": "eta_heatmap",
    "overoptimization": "gold_proxy",
    "phase_diagram": "phase",
    "simplex": "policies",
    "slack_waterfall": "bounds",
}
_MODULES = tuple(sorted({*_HOME.values()}))

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"rpo.bandit.plots.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"rpo.bandit.plots.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rpo.bandit.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
