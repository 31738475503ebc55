"""The interactive explorer: one pure function from settings to numbers, and a page of them, served or in a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpo.explore.export import export_page
    from rpo.explore.settings import Settings, read_settings
    from rpo.explore.view import View, state

# Loaded on first use: the command line names this package's command before it knows whether it is asked for.
_HOME = {
    "Settings": "rpo.explore.settings",
    "export_page": "rpo.explore.export",
    "View": "rpo.explore.view",
    "read_settings": "rpo.explore.settings",
    "state": "rpo.explore.view",
}

__all__ = ["Settings", "View", "export_page", "read_settings", "state"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rpo.explore' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
