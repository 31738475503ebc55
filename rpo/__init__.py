"""RPO: the theory-to-practice laboratory for preference optimization (Liu et al., NeurIPS 2024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpo import bandit, compare, eval, explore, llm, teaching
    from rpo.core.neighbours import SFT, BradleyTerry
    from rpo.core.objectives import DPO, RPO
    from rpo.core.records import Run
    from rpo.fitting import fit

__version__ = "0.1.0"

# Loaded on first use, so that `import rpo` costs nothing and `rpo.bandit` never loads torch.
_HOME = {
    "BradleyTerry": "rpo.core.neighbours",
    "DPO": "rpo.core.objectives",
    "RPO": "rpo.core.objectives",
    "Run": "rpo.core.records",
    "SFT": "rpo.core.neighbours",
    "fit": "rpo.fitting",
}
_PACKAGES = ("bandit", "compare", "core", "eval", "explore", "llm", "teaching")

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
    "teaching",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"rpo.{name}")
    else:
        raise AttributeError(f"module 'rpo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
