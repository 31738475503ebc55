"""The objective and what every world needs of it; free of any backend."""

import importlib
from types import ModuleType

_MODULES = (
    *("checks", "conversions", "errors", "gao", "likelihoods", "lines", "numerics", "objectives", "preferences"),
    *("progress", "records"),
)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"rpo.core.{name}")
    raise AttributeError(f"module 'rpo.core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
