"""Verdicts, and what replies without one cost, on disk: a JSON line each, so that a killed run asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.locks import lock
from rpo.core.records import check_file
from rpo.eval.judges import CHOICES, JudgeFailed, Question, Usage, Verdict, token_count


def canonical(value: Any) -> str:
    """Return JSON that is the same for equal values. Raises InvalidArgument where they are nested without end."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise InvalidArgument(
            "prompt", expected="messages nested some levels deep", got="hundreds of levels", remedy="Mend that prompt."
        ) from None


def question_key(question: Question, identity: Mapping[str, Any]) -> str:
    """Return the digest of a question, in the order shown, and of who is asked."""
    parts = {"prompt": question.prompt, "first": question.first, "second": question.second, "judge": dict(identity)}
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def read_rows(path: Path) -> tuple[list[Any], int]:
    """Return the rows of a JSONL file and the bytes they fill; a last line that was torn is left out.

    Raises OutputError for a file that cannot be read or a broken line before the last.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(f"verdicts: expected a readable file, got {path} ({error}). Check the path.") from error
    rows, whole = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                if whole + len(line) == len(data) and not line.endswith(b"\n"):
                    break
                raise OutputError(f"{path}, line {number}: expected JSON. Mend or remove that line.") from None
        whole += len(line)
    return rows, whole


def is_cost(row: Any) -> bool:
    """Return whether a row says what a reply without a verdict cost, and nothing else."""
    return isinstance(row, dict) and "failure" in row and "verdict" not in row


def read_row(row: Any, where: str) -> tuple[Question, Verdict]:
    """Return what a row says. Raises InvalidArgument."""
    fields = row if isinstance(row, dict) else {}
    prompt, first, second, choice = (fields.get(name) for name in ("prompt", "first", "second", "verdict"))
    asked = isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(item, dict) for item in prompt))
    if not asked or prompt is None or not isinstance(first, str) or not isinstance(second, str):
        expected = 'a row {"prompt": text or messages, "first": text, "second": text, "verdict": ...}'
        raise InvalidArgument(where, expected=expected, got=str(row)[:80], remedy="Mend that line.")
    if choice not in CHOICES:
        raise InvalidArgument(
            where, expected=f"a verdict among {', '.join(CHOICES)}", got=repr(choice), remedy="Mend that line."
        )
    text, model = (str(fields.get(name, "")) for name in ("text", "model"))
    return Question(prompt, first, second), Verdict(choice, text, model, *_tokens(fields))


def _tokens(row: Mapping[str, Any]) -> tuple[int, int]:
    return token_count(row.get("input_tokens")), token_count(row.get("output_tokens"))


class VerdictStore:
    """An append-only JSONL file of verdicts, by `question_key`; whoever opens it has it alone.

    Rows hold the question, the verdict and the judge, so that a file of one judge can be read by `Recorded`; or
    what a reply without a verdict cost.
    A line that a killed process tore is cut off before the next is written. Nothing is created before the
    first verdict. Thread-safe. Raises OutputError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = checks.path("path", path)
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._lost: dict[str, list[Usage]] = {}
        self._end = 0
        self._newline = b""  # what a last line without its end still needs
        if self.path.exists():
            self._open()

    def __enter__(self) -> VerdictStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._verdicts)

    def get(self, key: str) -> Verdict | None:
        """Return the verdict stored under `key`, or None."""
        return self._verdicts.get(key)

    def usages(self, key: str) -> list[Usage]:
        """Return what each paid request for the question cost, whether it brought a verdict or not."""
        verdict = self._verdicts.get(key)
        return self._lost.get(key, []) + ([] if verdict is None else [verdict.usage])

    def add_cost(self, key: str, failure: JudgeFailed) -> None:
        """Write what a request without a verdict cost, if it may have. Raises OutputError."""
        if failure.usage == Usage():
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"key": key, "failure": failure.kind, "message": str(failure), **failure.usage._asdict(), "time": now}
        with self._lock:
            self._append(self._file or self._open(), (json.dumps(row) + "\n").encode())
            self._lost.setdefault(key, []).append(failure.usage)

    def add(self, questions: Sequence[Question], verdicts: Sequence[Verdict], identity: Mapping[str, Any]) -> None:
        """Write verdicts, all on disk when this returns. Raises OutputError, and the file stays whole."""
        found = {question_key(one, identity): (one, verdict) for one, verdict in zip(questions, verdicts, strict=True)}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = "".join(json.dumps(_row(key, *item, identity, now)) + "\n" for key, item in found.items())
        with self._lock:
            self._append(self._file or self._open(), lines.encode())
            self._verdicts |= {key: verdict for key, (_, verdict) in found.items()}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> FileIO:
        try:
            check_file("verdicts", self.path).parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"verdicts: expected a writable file, got {self.path} ({error}).") from error
        try:
            lock(file, f"verdicts: {self.path}")
            rows, self._end = read_rows(self.path)
            kept = self.path.read_bytes()[: self._end]
            self._newline = b"\n" if kept and not kept.endswith(b"\n") else b""
            for number, row in enumerate(rows, 1):
                where = f"{self.path}, line {number}"
                if is_cost(row):
                    self._lost.setdefault(str(row.get("key")), []).append(Usage(*_tokens(row), row.get("told") is True))
                    continue
                question, verdict = read_row(row, where)
                judge = row.get("judge")
                key = question_key(question, judge if isinstance(judge, dict) else {})
                if key != row.get("key"):
                    raise OutputError(f"{where}: its key is not the digest of its question. It was changed by hand.")
                self._verdicts[key] = verdict
        except Exception:
            file.close()
            raise
        self._file = file
        return file

    def _append(self, file: FileIO, data: bytes) -> None:
        data = self._newline + data
        try:
            file.truncate(self._end)  # whatever a kill or a full disk tore
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"verdicts: writing {self.path} failed ({error}). What was stored is kept.") from error
        self._end += len(data)
        self._newline = b""


def _row(key: str, question: Question, verdict: Verdict, identity: Mapping[str, Any], time: str) -> dict[str, Any]:
    return {
        "key": key,
        "prompt": question.prompt,
        "first": question.first,
        "second": question.second,
        "verdict": verdict.choice,
        "text": verdict.text,
        "model": verdict.model,
        "input_tokens": verdict.input_tokens,
        "output_tokens": verdict.output_tokens,
        "judge": dict(identity),
        "time": time,
    }
