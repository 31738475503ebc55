"""RPO: the theory-to-practice laboratory for preference optimization (Liu et al., NeurIPS 2024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpo import bandit, compare, eval, explore, llm, methods, teaching
    from rpo.core.likelihoods import SFT, BradleyTerry
    from rpo.core.objectives import DPO, RPO
    from rpo.core.records import Run
    from rpo.fitting import fit

__version__ = "0.1.0"

# Loaded on first use, so that `import rpo` costs nothing and `rpo.bandit` never loads torch.
_HOME = {
    "BradleyTerry": "rpo.core.likelihoods",
    "DPO": "rpo.core.objectives",
    "RPO": "rpo.core.objectives",
    "Run": "rpo.core.records",
    "SFT": "rpo.core.likelihoods",
    "fit": "rpo.fitting",
}
_PACKAGES = ("bandit", "compare", "core", "eval", "explore", "llm", "methods", "teaching")

__all__ = [
    "DPO",
    "RPO",
    "SFT",
    "BradleyTerry",
    "Run",
    "__version__",
    "bandit",
    "compare",
    "eval",
    "explore",
    "fit",
    "llm",
    "methods",
    "teaching",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"rpo.{name}")
    else:
        value = _method(name)
    globals()[name] = value
    return value


def _method(name: str) -> Any:
    """Return a registered method's class, such as `rpo.IPO`."""
    methods = _methods() if name[:1].isupper() else {}
    if name not in methods:
        raise AttributeError(f"module 'rpo' has no attribute {name!r}" + _why_not(name))
    return methods[name].load()


def _methods() -> dict[str, Any]:
    from rpo.methods.registry import METHODS

    return METHODS


def _why_not(name: str) -> str:
    """Return a sentence on a method that is known and left out, and what to take for it."""
    if not name[:1].isupper():
        return ""
    from rpo.methods.registry import REFUSED

    return ": " + ". ".join(REFUSED[name]) if name in REFUSED else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES, *_methods()})
