"""What a student answered: a summary for them, a file for their teacher, and a class of files as one table."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rpo
from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.records import check_file, json_text, read_json, write_file
from rpo.core.shown import cell
from rpo.teaching.exercise import ATTEMPTS, Attempt, Exercise, exercises

if TYPE_CHECKING:
    import pandas

__all__ = ["gather", "save", "summary"]

KIND = "rpo exercises"
COUNTS = ("tries", "hints", "shown")


def summary(notebook: str | None = None) -> pandas.DataFrame:
    """Return what was answered since the kernel started, a row an exercise, and print how many are right.

    notebook: "03", say; by default every notebook of which an exercise was tried. Columns: right, tries (up to the
    right one), hints, shown (the answer was asked for before it was given). Raises InvalidArgument.
    """
    import pandas

    tried = sorted({name.partition(".")[0] for name in ATTEMPTS})
    names = [name for number in (tried if notebook is None else [notebook]) for name in exercises(number)]
    rows = [asdict(ATTEMPTS.get(name, Attempt())) for name in names]
    table = pandas.DataFrame(rows, index=pandas.Index(names, name="exercise"), columns=["right", *COUNTS])
    print(f"{int(table['right'].sum())} of {len(table)} right.")
    return table


def save(path: str | os.PathLike[str], student: str) -> None:
    """Write what was answered since the kernel started to a JSON file for the teacher.

    Answers of other notebooks that the file has already are kept, so that one file takes all lessons. Raises
    InvalidArgument, OutputError: the file is another student's, or no such file.
    """
    target = check_file("path", path)
    named = checks.instance("student", student, str).strip()
    if not named:
        raise InvalidArgument("student", expected="a name", got=repr(student), remedy="Write yours.")
    answers: dict[str, Any] = {}
    if target.exists():
        try:
            earlier = _read(target)
        except ValueError as error:
            raise OutputError(f"path: {target} holds something else ({error}). Choose another name.") from error
        if earlier["student"] != named:
            raise OutputError(f"path: {target} is of {earlier['student']!r}, not of {named!r}. Choose another name.")
        answers = earlier["answers"]
    answers |= {name: asdict(attempt) for name, attempt in ATTEMPTS.items()}
    record = {"kind": KIND, "version": rpo.__version__, "student": named, "answers": dict(sorted(answers.items()))}
    write_file(target, json_text(record))
    print(f"Written to {target}: {sum(bool(one['right']) for one in answers.values())} of {len(answers)} right.")


def gather(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pandas.DataFrame:
    """Return a row a student's file below `folder`, every answer checked again, and write it as CSV if asked to.

    Columns: student, file, right (how many), an exercise each (1 right, 0 wrong, empty where it was not answered),
    tries, hints, shown (sums), problem (why a file is not counted, or answers that the file calls right and are not).
    Raises InvalidArgument, OutputError.
    """
    import pandas

    root = Path(folder)
    files = sorted(root.rglob("*.json"))
    if not files:
        raise InvalidArgument(
            "folder",
            expected="a folder of files written by rpo.teaching.save",
            got=str(folder),
            remedy="Put the students' files there.",
        )
    target = None if output is None else check_file("output", output)
    known = {name: replace(one, solve=functools.cache(one.solve)) for name, one in exercises().items()}
    rows = [{"file": str(file.relative_to(root)), **dict(_row(file, known))} for file in files]
    asked = [name for name in known if any(name in row for row in rows)]
    head = ["student", "file", "right", *asked, *COUNTS, "problem"]
    table = pandas.DataFrame(rows, columns=head)
    numbers = ["right", *asked, *COUNTS]
    table[numbers] = table[numbers].astype("Int64")
    if target is not None:
        shown = table.assign(**{name: table[name].map(cell) for name in ("student", "file", "problem")})
        write_file(target, shown.to_csv(index=False))
    return table


def _row(file: Path, known: Mapping[str, Exercise]) -> Iterator[tuple[str, Any]]:
    try:
        record = _read(file)
    except ValueError as error:
        yield "problem", str(error)
        return
    answers = {name: one for name, one in record["answers"].items() if name in known}
    right = {name: known[name].grade(one["given"]) for name, one in answers.items() if one["tries"]}
    claimed = sorted(name for name, found in right.items() if answers[name]["right"] and not found)
    unknown = sorted(set(record["answers"]) - set(known))
    problems = [f"not right, as the file says: {', '.join(claimed)}"] * bool(claimed)
    problems += [f"no such exercise: {', '.join(unknown)}"] * bool(unknown)
    yield "student", record["student"]
    yield "right", sum(right.values())
    yield from ((name, int(found)) for name, found in right.items())
    yield from ((name, sum(int(one[name]) for one in answers.values())) for name in COUNTS)
    yield "problem", "; ".join(problems)


def _read(file: Path) -> dict[str, Any]:
    """Return a saved record. Raises ValueError with what is wrong of it."""
    try:
        record = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"no JSON object: {error}") from error
    if record.get("kind") != KIND or not isinstance(record.get("student"), str):
        raise ValueError("not written by rpo.teaching.save")
    answers = record.get("answers")
    fields = {"right": bool, "tries": int, "hints": int, "shown": bool}
    whole = isinstance(answers, dict) and all(
        isinstance(one, dict) and "given" in one and all(type(one.get(k)) is kind for k, kind in fields.items())
        for one in answers.values()
    )
    if not whole:
        raise ValueError("its answers are damaged")
    return record
