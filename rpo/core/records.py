"""What every run leaves behind: resolved configuration, seed, versions, history; saved atomically."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rpo.core.errors import InvalidArgument, OutputError

if TYPE_CHECKING:
    import pandas

PACKAGES = ("numpy", "scipy", "cvxpy", "clarabel", "torch", "transformers", "accelerate", "peft", "datasets")
RECORD_VERSION = 1


@dataclass(kw_only=True)
class Run:
    """One fitted policy and its evidence, the same whichever world made it.

    label: for legends. objective, config: resolved. status: "converged" or "not_converged";
    message: one sentence. path: what the history runs along, "step" or "beta". history: one dict of
    metrics a row. arrays: named arrays, "policy" (X, A) among them. artifact: the trained policy or
    model itself, not saved.
    """

    label: str
    objective: dict[str, Any]
    config: dict[str, Any]
    status: str
    message: str
    history: list[dict[str, float]]
    arrays: dict[str, NDArray[Any]]
    path: str = "step"
    environment: dict[str, str] = field(default_factory=lambda: environment())
    artifact: Any = None

    @property
    def policy(self) -> NDArray[Any]:
        """(X, A), the policy as a table of probabilities."""
        return self.arrays["policy"]

    @property
    def loss(self) -> float:
        """The last loss logged."""
        return self.history[-1]["loss"]

    def to_frame(self) -> pandas.DataFrame:
        """Return the history as a tidy DataFrame, one row a logged step."""
        import pandas

        return pandas.DataFrame(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return all but arrays and artifact."""
        names = ("label", "objective", "config", "status", "message", "path", "history", "environment")
        return {"record_version": RECORD_VERSION, **{name: getattr(self, name) for name in names}}

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write run.json and arrays.npz into `directory`, both or neither. Raises OutputError."""
        with staged_output(directory, overwrite=overwrite, marker="run.json") as stage:
            write_json(stage / "run.json", self.to_dict())
            np.savez_compressed(stage / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Run:
        """Read what `save` wrote. Raises OutputError."""
        folder = Path(directory)
        try:
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise OutputError(
                f"directory: expected a folder with run.json and arrays.npz, got {folder} ({error}). "
                "Pass the folder that Run.save wrote."
            ) from error
        if record.pop("record_version", None) != RECORD_VERSION:
            raise OutputError(f"directory: expected record version {RECORD_VERSION} in {folder}. Save it again.")
        return cls(arrays=arrays, **record)


def environment() -> dict[str, str]:
    """Return versions of Python, this package and what it computes with, and the commit where known."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("rpo-lab", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["commit"] = _commit()
    return found


def _commit() -> str:
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return "unknown (not a git checkout)"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown (git did not answer)"


def jsonable(value: Any) -> Any:
    """Return `value` with NumPy scalars and arrays made plain, and NaN or infinity as a string."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no bare NaN), indented."""
    path.write_text(json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_output(directory: str | Path, *, overwrite: bool, marker: str) -> Path:
    """Refuse, before any work, a folder that cannot be written or already holds `marker`."""
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output: expected a folder, got the file {folder}. Choose another path.")
    if (folder / marker).exists() and not overwrite:
        raise InvalidArgument(
            "output",
            expected="a folder without an earlier result",
            got=f"{folder / marker}",
            remedy="Choose another folder, or pass overwrite (--overwrite true).",
        )
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=existing))
    except OSError as error:
        raise OutputError(f"output: expected a writable folder, got {folder} ({error}). Choose another.") from error
    return folder


@contextlib.contextmanager
def staged_output(directory: str | Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield an empty staging folder whose files move into `directory` when the block succeeds.

    Each file is moved by an atomic rename, `marker` last, so its presence says the rest is whole. A
    block that fails leaves `directory` as it was. Raises OutputError.
    """
    folder = check_output(directory, overwrite=overwrite, marker=marker)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"output: expected a writable folder, got {folder} ({error}). Choose another.") from error
    try:
        yield stage
        folder.mkdir(exist_ok=True)
        for path in sorted(stage.iterdir(), key=lambda item: item.name == marker):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise OutputError(f"output: writing {folder} failed ({error}). Nothing half-written was left.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
