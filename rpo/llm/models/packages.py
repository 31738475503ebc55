"""Packages that loading needs for some models only."""

from __future__ import annotations

import importlib
from typing import Any

from rpo.core.errors import MissingDependency


def require_peft() -> Any:
    """Return the module `peft`. Raises MissingDependency."""
    return require_package("peft", "peft")


def require_package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"{name} is needed for this. Install it with: pip install 'rpo-lab[{extra}]'"
        ) from error
