"""A folder that a killed simulation continues from: a manifest, and one checked file a finished chunk."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpo.bandit.simulation.grid import canonical, digest
from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.locks import unwritable
from rpo.core.records import check_output, environment, jsonable, read_json, write_file

MANIFEST = "manifest.json"
SHARDS = "shards"
TABLES = {"parquet": "table.parquet", "csv": "table.csv"}
TIMINGS = "timings.csv"
COMPUTES = ("python", "rpo-lab", "numpy", "scipy", "cvxpy", "clarabel")
MAX_DIFFERENCES = 5
MAX_SHOWN = 60


class GridMismatch(InvalidArgument):
    """A folder that holds another simulation; the message says what differs."""


class CorruptShard(UserWarning):
    """A chunk on disk that is damaged or not of this grid; it is computed again."""


class MixedCode(UserWarning):
    """A run continued after this package's own code changed: earlier chunks are kept, and may differ in last digits."""


class GridStore:
    """The chunks of one simulation on disk.

    A chunk is written to a temporary name and renamed, so a killed run leaves whole files; each ends in
    its SHA-256, so what the disk loses later is seen. Nothing else is ever changed. Raises GridMismatch, OutputError.
    """

    def __init__(self, directory: str | Path, config: dict[str, Any], *, overwrite: bool = False) -> None:
        self.folder = check_output(checks.path("output", directory), overwrite=True, marker=MANIFEST)
        self.hash = hashlib.sha256(canonical(config).encode()).hexdigest()
        self._claim(config, overwrite)

    def _claim(self, config: dict[str, Any], overwrite: bool) -> None:
        """Write the manifest, or hold the one that is there against this configuration."""
        versions = {**environment(), "code": _code()}
        path = self.folder / MANIFEST
        try:
            if overwrite:
                self._clear()
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
            if not path.exists():
                record = {"hash": self.hash, "config": jsonable(config), "environment": versions}
                self.write(MANIFEST, json.dumps(record, indent=1, allow_nan=False) + "\n")
                return
        except OSError as error:
            raise unwritable(self.folder, error) from error
        try:
            found = read_json(path)
            theirs, there = found["config"], dict(found["environment"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"output: expected a simulation's manifest, got {path}, which cannot be read ({error!r}). "
                "Pass overwrite to start again, or choose another folder."
            ) from error
        differ = list(_differences(theirs, json.loads(json.dumps(jsonable(config))), ""))
        # A table computed by two versions would not be the table of either.
        differ += [
            f"version of {name}: {there.get(name)} there, {versions.get(name)} here"
            for name in COMPUTES
            if there.get(name) != versions.get(name)
        ]
        if differ:
            more = f" and {len(differ) - MAX_DIFFERENCES} more" if len(differ) > MAX_DIFFERENCES else ""
            raise GridMismatch(
                "output",
                expected=f"the simulation that {self.folder} was started with",
                got="another one: " + "; ".join(differ[:MAX_DIFFERENCES]) + more,
                remedy="Choose another folder, or pass overwrite (--overwrite true) to start again.",
            )

        if there.get("code") != versions["code"]:
            message = (
                f"{self.folder} was started with other code of rpo. Pass overwrite to compute all of it with this."
            )
            warnings.warn(MixedCode(message), stacklevel=5)

    def _clear(self) -> None:
        """Remove an earlier simulation: its own files, nothing else in the folder."""
        for name in (MANIFEST, TIMINGS, *TABLES.values()):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / SHARDS, ignore_errors=True)

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder atomically: all of it, or what was there before."""
        write_file(self.folder / name, content)

    def save(self, index: int, columns: dict[str, list[Any]], seconds: float) -> None:
        """Store the rows of chunk `index`, with the time they took."""
        body = json.dumps({"grid": self.hash, "chunk": index, "seconds": seconds, "columns": columns})
        self.write(f"{SHARDS}/{_name(index)}", f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n")

    def load(self, index: int) -> tuple[dict[str, list[Any]], float] | None:
        """Return (columns, seconds) of chunk `index`; None where it is not there, or damaged (warns CorruptShard)."""
        path = self.folder / SHARDS / _name(index)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"output: reading {path} failed ({error}).") from error
        body, _, seal = text.rstrip(b"\n").rpartition(b"\n")
        reason = "its checksum does not fit: damaged or cut short"
        if hashlib.sha256(body).hexdigest().encode() == seal:
            record = json.loads(body)
            if (record["grid"], record["chunk"]) == (self.hash, index):
                return record["columns"], record["seconds"]
            reason = "it belongs to another simulation"
        warnings.warn(CorruptShard(f"{path}: {reason}. It is computed again."), stacklevel=3)
        return None


def _code() -> str:
    """Return a digest of the modules a table's numbers come from."""
    package = Path(__file__).resolve().parents[1]
    files = [path for part in ("core", "bandit") for path in sorted((package / part).rglob("*.py"))]
    return digest(*(path.read_text(encoding="utf-8") for path in files if "plots" not in path.parts))


def _name(index: int) -> str:
    return f"{index:07d}.json"


def _differences(there: Any, here: Any, where: str) -> Iterator[str]:
    """Yield one phrase for each entry in which two plain configurations differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            path = f"{where}.{key}" if where else key
            if key not in there or key not in here:
                yield f"{path}: {'absent there' if key not in there else 'absent here'}"
            else:
                yield from _differences(there[key], here[key], path)
    elif there != here:
        yield f"{where}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
