"""Tables of what benchmarks/gpu.py has measured, in Markdown."""

from __future__ import annotations

from typing import Any


def tables(record: dict[str, Any]) -> str:
    """Return every table there are rows for."""
    return "\n".join(f"## {part}: {len(rows)} rows" for part, rows in record["parts"].items())
