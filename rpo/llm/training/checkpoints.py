"""Checkpoints that are whole or absent: written, listed with checksums, and only then counted as made."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from rpo.core.errors import OutputError, RPOError
from rpo.core.locks import STAGE
from rpo.core.records import read_json, write_json

MANIFEST = "manifest.json"
BLOCK = 1 << 22
_FOLDER = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RPOError):
    """A checkpoint is incomplete, damaged, or belongs to another run; the message says which and how."""


def write_manifest(folder: Path, run: dict[str, Any], *, checksums: bool) -> None:
    """List every file with its size (bytes) and CRC-32 in manifest.json: its presence says the rest is whole.

    run: what must be the same when the run goes on, kept with the list.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "crc32": _crc32(path) if checksums else None,
        }
    pending = folder / f"{MANIFEST}.tmp"
    write_json(pending, {"files": files, "run": run})
    os.replace(pending, folder / MANIFEST)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the `run` part of a checkpoint's manifest after checking every file against it.

    Raises CheckpointError naming the file that is missing, shorter or altered.
    """
    folder = Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
        files, run = manifest["files"], dict(manifest["run"])
        listed = {str(name): (int(entry["bytes"]), entry["crc32"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"resume_from_checkpoint: expected a complete checkpoint with {MANIFEST}, got {folder} ({error}). "
            f"{_others(folder)}"
        ) from error
    for name, (size, crc32) in listed.items():
        path = folder / name
        if not path.is_file():
            found = "is missing"
        elif path.stat().st_size != size:
            found = f"has {path.stat().st_size} bytes in place of {size}"
        elif crc32 is not None and _crc32(path) != crc32:
            found = "was altered (its checksum differs)"
        else:
            continue
        raise CheckpointError(
            f"resume_from_checkpoint: expected {folder} as it was written, but {name} {found}. {_others(folder)}"
        )
    return run


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoints in `output_dir` that have a manifest, oldest first."""
    folder = Path(output_dir)
    found = [
        (int(match.group(1)), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _FOLDER.fullmatch(path.name)) and (path / MANIFEST).is_file()
    ]
    return [path for _, path in sorted(found)]


def discard(folder: Path) -> None:
    """Remove a checkpoint, under another name first: what a removal cut short leaves looks like none, and goes at the
    next start.
    """
    gone = folder.with_name(f"{STAGE}{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def rotate(newest: Path, keep: int | None, best: str | None) -> None:
    """Keep `keep` complete checkpoints, the one just written and the best among them; None or 0 keeps all."""
    found = complete_checkpoints(newest.parent)
    if not keep or keep < 0:
        return
    protected = {newest.resolve(), *({Path(best).resolve()} if best else ())}
    spare = [path for path in found if path.resolve() not in protected]
    for path in spare[: max(0, len(found) - max(keep, len(protected)))]:
        discard(path)


def save_failed(folder: Path, error: Exception) -> OutputError:
    """Return the error that says which checkpoint remains; without a manifest, `folder` is none."""
    return OutputError(f"output_dir: writing {folder} failed ({error}). Free space and resume. {_others(folder)}")


def _others(folder: Path) -> str:
    others = [path for path in complete_checkpoints(folder.parent) if path != folder]
    return f"The last complete checkpoint is {others[-1]}." if others else "There is no complete checkpoint beside it."


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
