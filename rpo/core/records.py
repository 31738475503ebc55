"""What every run leaves behind: resolved configuration, seed, versions, history; saved atomically."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rpo.core.errors import InvalidArgument, OutputError, RPOError
from rpo.core.locks import STAGE, alone, unwritable
from rpo.core.summary import Summarised

if TYPE_CHECKING:
    import pandas

PACKAGES = ("numpy", "scipy", "cvxpy", "clarabel", "torch", "transformers", "accelerate", "peft", "datasets")
RECORD_VERSION = 1
# What says that a folder has a command's result, or a training's on the way; beside it each keeps its config.yaml.
RESULTS = ("run.json", "solution.json", "results.json", "report.json", "gold.json", "manifest.json", "checkpoint-*")
SECRET = re.compile(r"(^|[_-])(token|key|password|passwd|secret|credential)s?$", re.IGNORECASE)
VOCABULARY = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token$")
NOT_KEPT = "Not kept here, for it is secret"


@dataclass(kw_only=True, repr=False)
class Run(Summarised):
    """One fitted policy and its evidence, the same whichever world made it.

    label: for legends. objective, config: resolved. status: "converged" or "not_converged";
    message: one sentence. path: what the history runs along, "step" or "beta". history: one dict of
    metrics a row. arrays: named arrays, "policy" (X, A) among them. evidence: what is known of the
    end ("certified", "infimum approached", "stationary"; "none" where nothing is, as for a language
    model), certificate: the numbers behind it. artifact: the trained policy or model itself, not saved.
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
    evidence: str = "none"
    certificate: dict[str, Any] = field(default_factory=dict)
    artifact: Any = None

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """Of what and how it ended; the last of the numbers that a run is read by."""
        last = self.last_metrics()
        names = ("loss", "rewards/margins", "rewards/accuracies", "displacement/share", "eval_loss")
        facts = {name: f"{last[name]:.4g}" for name in names if name in last}
        return f"Run of {self.label}: {self.status}. {self.message}", facts | {"evidence": self.evidence}

    @property
    def policy(self) -> NDArray[Any]:
        """(X, A), the policy as a table of probabilities."""
        return self.arrays["policy"]

    @property
    def loss(self) -> float:
        """The last loss logged."""
        return self.last_metrics()["loss"]

    def last_metrics(self) -> dict[str, float]:
        """Return the last value of every metric logged: rows of training and of evaluation hold different ones."""
        last: dict[str, float] = {}
        for row in self.history:
            last |= row
        return last

    def to_frame(self) -> pandas.DataFrame:
        """Return the history as a tidy DataFrame, one row a logged step."""
        import pandas

        return pandas.DataFrame(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return all but arrays and artifact."""
        left_out = ("arrays", "artifact")
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return {"record_version": RECORD_VERSION, **kept}

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write run.json and arrays.npz into `directory`, both or neither. Raises OutputError."""
        with staged_output(directory, overwrite=overwrite, marker="run.json") as stage:
            self.write(stage)
        return Path(directory)

    def write(self, stage: Path) -> None:
        """Write the files of `save` into a staging folder. Raises OSError."""
        write_json(stage / "run.json", self.to_dict())
        np.savez_compressed(stage / "arrays.npz", **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, directory: str | Path) -> Run:
        """Read what `save` wrote. Raises OutputError."""
        folder = Path(directory)
        try:
            record = read_json(folder / "run.json")
            with open(folder / "arrays.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            missing = {"label", "objective", "config", "status", "message", "history"} - record.keys()
            if missing:
                raise ValueError(f"run.json lacks {', '.join(sorted(missing))}")
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise OutputError(
                f"directory: expected a folder with run.json and arrays.npz, got {folder} ({error}). "
                "Pass the folder that Run.save wrote."
            ) from error
        if record.pop("record_version", None) != RECORD_VERSION:
            raise OutputError(f"directory: expected record version {RECORD_VERSION} in {folder}. Save it again.")
        names = {field.name for field in fields(cls)}
        return cls(arrays=arrays, **{name: value for name, value in record.items() if name in names})


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


def without_secrets(value: Any, where: str = "") -> tuple[Any, list[str]]:
    """Return plain data with null for every secret's text, and where those stood ("training.hub_token").

    A secret is what a name says it is: a token, key, password or secret; the names of tokens of a vocabulary
    (eos_token) are none.
    """
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        removed: list[str] = []
        for name, item in value.items():
            path = f"{where}.{name}" if where else str(name)
            if isinstance(item, str) and SECRET.search(str(name)) and not VOCABULARY.search(str(name)):
                found[name] = None
                removed.append(path)
            else:
                found[name], inner = without_secrets(item, path)
                removed += inner
        return found, removed
    if isinstance(value, (list, tuple)):
        parts = [without_secrets(item, f"{where}[{place}]") for place, item in enumerate(value)]
        return [part for part, _ in parts], [path for _, inner in parts for path in inner]
    return value, []


def json_text(value: Any) -> str:
    """Return strict JSON (no bare NaN), indented."""
    return json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds. Raises OSError, ValueError, whatever the file is."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object expected, got {type(found).__name__}")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write `json_text`."""
    path.write_text(json_text(value), encoding="utf-8")


def check_output(directory: str | Path, *, overwrite: bool, marker: str, goes_on: bool = False) -> Path:
    """Refuse, before any work, a folder that cannot be written or already holds `marker`, or another's result.

    goes_on: whether what has `marker` is continued rather than replaced.
    """
    if directory == "":  # the working directory to pathlib, and an unset variable to a shell
        raise OutputError("output: expected the path of a folder, got ''. Pass '.' for this one.")
    folder = Path(directory)
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"output: expected a folder, got the file {folder}. Choose another path.")
        found = next((path.name for name in (marker, *RESULTS) for path in folder.glob(name)), None)
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unwritable(folder, error) from error
    if found is not None and not overwrite and not (goes_on and found == marker):
        raise InvalidArgument(
            "output",
            expected="a folder without an earlier result",
            got=f"{folder / found}",
            remedy="Choose another folder, or pass overwrite (--overwrite true).",
        )
    return folder


def check_file(name: str, path: str | os.PathLike[str]) -> Path:
    """Refuse a path that cannot become a file: a folder, a device or another special file. Raises OutputError."""
    if path == "":
        raise OutputError(f"{name}: expected the path of a file, got ''. Pass one.")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Path(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name}: expected a path that can be written, got {str(path)[:200]!r} ({error}).") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or another special file"
        raise OutputError(f"{name}: expected a file or a new name, got {path}, which is {kind}. Choose another path.")
    return Path(path)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, over an earlier one, in a folder that `alone` has. Raises OutputError."""
    check_file("output", path)
    part = path.with_name(f"{STAGE}{path.name}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"output: writing {path} failed ({error}). What is finished is kept.") from error


@contextlib.contextmanager
def staged_output(directory: str | Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield an empty staging folder whose files move into `directory` when the block succeeds.

    The folder is had alone meanwhile. A block that fails leaves it as it was. Raises OutputError.
    """
    check_output(directory, overwrite=overwrite, marker=marker)
    with alone(directory) as folder:
        check_output(directory, overwrite=overwrite, marker=marker)  # another run may have ended in between
        stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=folder))
        try:
            yield stage
            move_in(stage, folder, marker=marker)
        except RPOError:
            raise
        except OSError as error:
            raise OutputError(f"output: writing {folder} failed ({error}). Nothing half-written was left.") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def move_in(stage: Path, folder: Path, *, marker: str, stale: Sequence[str] = ()) -> None:
    """Move all of `stage` into `folder`: an earlier result's marker goes first, the new one comes last.

    So a marker says that what stands beside it is whole and its own, whenever a run is killed. stale: patterns of
    files of an earlier result that must not stand beside the new one. Raises OutputError before anything is moved.
    """
    moved = sorted(stage.iterdir(), key=lambda item: item.name == marker)
    for path in moved:
        if not (path.is_dir() and (folder / path.name).is_dir()):
            check_file("output", folder / path.name)
    (folder / marker).unlink(missing_ok=True)
    for pattern in stale:
        for path in folder.glob(pattern):
            path.unlink()
    for path in moved:
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        os.replace(path, folder / path.name)
