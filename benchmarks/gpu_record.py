"""What the parts of benchmarks/gpu.py share: rows written as they are measured, time left, memory, graphs compiled."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rpo.core.records import jsonable

GIB = 2**30
# In the file, not on the screen: what is long, and what a case's name says.
WIDE = ("part", "at", "kind", "traceback", "recompiles", "kernels")
WIDE += ("group", "kernel", "dtype", "heads", "width", "tokens", "window", "softcap", "sinks", "shared", "plain_token")
WIDE += ("path", "checkpointing", "precomputed", "checks")


class Recorder:
    """One part's rows: a line of JSON each in `file`, and a compact one on the screen. seconds: what the part has."""

    def __init__(self, part: str, file: Path, seconds: float, *, dry: bool) -> None:
        self.part, self.file, self.dry = part, file, dry
        self.device = "cpu" if dry or not torch.cuda.is_available() else "cuda"
        self._start, self._seconds = time.perf_counter(), seconds
        self._recompiled = _Recompiled()
        self.row(kind="start", torch=torch.__version__, device=self.name, seconds=seconds)

    @property
    def name(self) -> str:
        """The GPU's name, or "CPU"."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    def left(self) -> float:
        """Return the seconds the part still has."""
        return self._seconds - (time.perf_counter() - self._start)

    def row(self, **row: Any) -> None:
        """Write one row."""
        row = {"part": self.part, "at": round(time.perf_counter() - self._start, 2), **row}
        with self.file.open("a", encoding="utf-8") as file:  # processes of one part write to one file
            file.write(json.dumps(jsonable(row)) + "\n")
        shown = (f"{name} {_short(value)}" for name, value in row.items() if name not in WIDE)
        print(f"[{self.part} {row['at']:6.1f} s] {row.get('kind', '')}: " + ", ".join(shown), flush=True)

    @contextlib.contextmanager
    def measured(self, **case: Any) -> Iterator[dict[str, Any]]:
        """Yield a row to fill; write it, with what went wrong if something did, and with the graphs compiled so far."""
        row, start = dict(case), time.perf_counter()
        try:
            yield row
        except Exception as error:  # a kernel that fails is a result, and the next case may work
            row["error"] = f"{type(error).__name__}: {error}"
            row["traceback"] = traceback.format_exc()
        if "error" in row:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
        row |= {"took": time.perf_counter() - start, "graphs": graphs()}
        if self._recompiled.lines:
            row |= {"recompiled": len(self._recompiled.lines), "recompiles": list(self._recompiled.lines)}
            self._recompiled.lines.clear()
        self.row(**row)

    def synchronize(self) -> None:
        """Wait for all that was asked of the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def memory(self, row: dict[str, Any], *, static: int = 0) -> Iterator[None]:
        """Put into the row what is held before (with `static` bytes more), and the peak above that, in GiB."""
        if self.device != "cuda":
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() + static
        yield
        torch.cuda.synchronize()
        row["static_gib"] = held / GIB
        row["peak_above_static_gib"] = (torch.cuda.max_memory_allocated() - held) / GIB


class _Recompiled(logging.Handler):
    """The lines torch logs when it compiles something again."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        if "TORCH_LOGS" not in os.environ:
            torch._logging.set_logs(recompiles=True)
        logging.getLogger("torch._dynamo.guards.__recompiles").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "(" + " ".join(map(_short, value)) + ")"
    return str(value).strip().split("\n")[0][:160]
