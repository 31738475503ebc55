"""One run a folder: a lock that ends with its process, by whatever death, so that none is ever stale.

The lock is the system's own (flock), on a file that is written to: that works on shared file systems too, where
process numbers say nothing. Where there is no such lock (Windows, some mounts) runs do without.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from rpo.core.errors import OutputError

LOCK = "_rpo.lock"  # transformers uploads no file that begins with an underscore
STAGE = ".stage-"
ATTEMPTS = 100

_held: dict[Path, int] = {}  # folder -> the thread that has it


class InUse(OutputError):
    """A file or folder that another run has."""


def lock(file: FileIO, what: str) -> None:
    """Lock an open file until it is closed. Raises InUse, whose message begins with `what`."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"{what} is in use by another run. Wait for its end.") from None
    except OSError:
        return  # a file system without locks


@contextlib.contextmanager
def alone(directory: str | Path) -> Iterator[Path]:
    """Have `directory`, made if need be, alone during the block; a thread that has it may enter again.

    What killed runs were writing in it is removed. A folder made here goes again if it ends empty. Raises
    InUse, OutputError.
    """
    folder = Path(directory)
    try:
        key = folder.resolve()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unwritable(folder, error) from error
    if _held.get(key) == threading.get_ident():
        yield folder
        return
    file, made = _enter(folder)
    _held[key] = threading.get_ident()
    try:
        for left in folder.glob(f"{STAGE}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        yield folder
    finally:
        del _held[key]
        # Still locked: whoever has opened it already is refused, or finds below that the name is gone.
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def _enter(folder: Path) -> tuple[FileIO, list[Path]]:
    """Return the locked file, and the folders made for it, innermost first."""
    problem: OSError | None = None
    for _ in range(ATTEMPTS):
        with contextlib.ExitStack() as stack:
            try:
                made = [path for path in (folder, *folder.parents) if not path.exists()]
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(folder / LOCK, "a+b", buffering=0))
                lock(file, f"output: {folder}{_owner(file)}")
                if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                    file.truncate(0)
                    started = time.strftime("%Y-%m-%d %H:%M:%S")
                    file.write(f"process {os.getpid()} on {platform.node()} since {started}".encode())
                    stack.pop_all()
                    return file, made
            except InUse:
                raise
            except FileNotFoundError as error:
                problem = error  # the run that had the folder may have ended just now, and taken it away
            except FileExistsError as error:
                if folder.exists() and not folder.is_dir():
                    message = f"output: expected a folder, got the file {folder}. Choose another path."
                    raise OutputError(message) from error
                problem = error  # taken away between mkdir's "it is there" and its look at what is there
            except (OSError, ValueError) as error:
                raise unwritable(folder, error) from error
    raise unwritable(folder, problem)


def unwritable(folder: Path, error: object) -> OutputError:
    """Return the error for a folder that cannot be written to."""
    shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}..."
    return OutputError(f"output: expected a writable folder, got {shown!r} ({error}). Choose another.")


def _owner(file: FileIO) -> str:
    file.seek(0)
    said = file.read(200).decode(errors="replace")
    return f" ({said})" if said else ""
