"""What a measurement on CPUs ran on, for its record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Return the processor, how many cores are at hand, and the load average as the record is made."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"processor": model, "cores": os.cpu_count(), "load_average": list(os.getloadavg())}
