"""What a student answered: a summary for them, a file for their teacher, and a class of files as one table."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rpo
from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.records import check_file, json_text, read_json, write_file
from rpo.core.shown import cell
from rpo.teaching.exercise import ATTEMPTS, NOTEBOOKS, Attempt, Exercise, exercises

if TYPE_CHECKING:
    import pandas

__all__ = ["gather", "save", "summary"]

KIND = "rpo exercises"
COUNTS = ("tries", "hints", "shown")
SHARE = "share right"
# What each file has of this kernel's attempts: a second `save` adds what came since, not all of it again.
WRITTEN: dict[Path, dict[str, Attempt]] = {}


def _of_lessons(names: Iterable[str]) -> list[str]:
    """Return all exercises of every lesson that one of `names` belongs to."""
    lessons = {name.partition(".")[0] for name in names}
    return [name for lesson in NOTEBOOKS if lesson in lessons for name in exercises(lesson)]


def summary(notebook: str | None = None) -> pandas.DataFrame:
    """Return what was answered since the kernel started, a row an exercise, and print how many are right.

    notebook: "03", say; by default every notebook of which an exercise was tried. Columns: right, tries (up to the
    right one), hints, shown (the answer was asked for before it was given). Raises InvalidArgument.
    """
    import pandas

    names = _of_lessons(ATTEMPTS) if notebook is None else list(exercises(notebook))
    rows = [asdict(ATTEMPTS.get(name, Attempt())) for name in names]
    table = pandas.DataFrame(rows, index=pandas.Index(names, name="exercise"), columns=["right", *COUNTS])
    print(f"{int(table['right'].sum())} of {len(table)} right.")
    return table


def save(path: str | os.PathLike[str], student: str) -> None:
    """Add what was answered since the kernel started to a JSON file for the teacher.

    One file takes all lessons and sessions: an answer that was right stays so, tries and hints add up. Prints how many
    are right of the exercises of the lessons in the file. Raises InvalidArgument, OutputError: the file is another
    student's, or no such file.
    """
    target = check_file("path", path)
    named = checks.instance("student", student, str).strip()
    if not named:
        raise InvalidArgument("student", expected="a name", got=repr(student), remedy="Write yours.")
    if not target.parent.is_dir():
        raise OutputError(f"path: expected a path in a folder that exists, got {target}. Make {target.parent} first.")
    answers: dict[str, Any] = {}
    if target.exists():
        try:
            earlier = _read(target)
        except ValueError as error:
            raise OutputError(f"path: {target} holds something else ({error}). Choose another name.") from error
        if earlier["student"] != named:
            raise OutputError(f"path: {target} is of {earlier['student']!r}, not of {named!r}. Choose another name.")
        answers = earlier["answers"]
    written = WRITTEN.get(target.resolve(), {}) if answers else {}
    for name, attempt in ATTEMPTS.items():
        file = answers.get(name, {})
        before = Attempt(**{field: file.get(field, unset) for field, unset in asdict(Attempt()).items()})
        answers[name] = asdict(_joined(before, attempt, written.get(name, Attempt())))
    record = {
        "kind": KIND,
        "version": rpo.__version__,
        "student": named,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "answers": dict(sorted(answers.items())),
    }
    write_file(target, json_text(record))
    WRITTEN[target.resolve()] = {name: replace(attempt) for name, attempt in ATTEMPTS.items()}
    asked = _of_lessons(answers)
    right = sum(answers[name]["right"] for name in asked if name in answers)
    print(f"Written to {target}: {right} of {len(asked)} right.")


def _joined(file: Attempt, mine: Attempt, written: Attempt) -> Attempt:
    """Return a file's attempt with what this kernel added since `written`; nothing changes a right answer but hints."""
    hints, tries = file.hints + mine.hints - written.hints, mine.tries - written.tries
    if file.right or not tries:
        return replace(file, hints=hints, shown=file.shown or (mine.shown and not file.right))
    shown = file.shown or mine.shown
    return Attempt(given=mine.given, right=mine.right, tries=file.tries + tries, hints=hints, shown=shown)


def gather(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> pandas.DataFrame:
    """Return a row a student's file below `folder`, every answer checked again, and write it as CSV if asked to.

    Columns: student, file, right (how many), each exercise of a lesson that occurs (1 right, 0 wrong, empty where it
    was not answered), tries, hints, shown (sums), problem (why a file is not counted, answers that the file calls right
    and are not, or a student's older files, which are not counted). The last row is the share of the students who have
    each exercise right. Raises InvalidArgument, OutputError.
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
    rows = _newest([{"file": str(file.relative_to(root)), **dict(_row(file, known))} for file in files])
    asked = _of_lessons(name for name in known if any(name in row for row in rows))
    counted = [row for row in rows if "student" in row]
    share: dict[str, Any] = {"student": SHARE}
    if counted:
        share |= {name: round(sum(row.get(name, 0) for row in counted) / len(counted), 2) for name in asked}
    if counted and asked:
        share["right"] = round(sum(row["right"] for row in counted) / len(counted) / len(asked), 2)
    head = ["student", "file", "right", *asked, *COUNTS, "problem"]
    # Not numbers with holes: what is empty shows as nothing, on paper and on the screen.
    cells = [[row.get(name, "") for name in head] for row in (*rows, share)]
    table = pandas.DataFrame(cells, columns=head, dtype=object)
    if target is not None:
        shown = table.assign(**{name: table[name].map(cell) for name in ("student", "file", "problem")})
        write_file(target, shown.to_csv(index=False).encode("utf-8-sig"))  # the mark by which spreadsheets know UTF-8
    return table


def _newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the newest file alone of each student, whose row names the others."""
    kept: list[dict[str, Any]] = []
    by_student: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        group = by_student.setdefault(row["student"].casefold(), []) if "student" in row else []
        if not group:
            kept.append(row)
        group.append(row)
    for group in by_student.values():
        *older, newest = sorted(group, key=lambda row: row["saved"])
        if older:
            others = f"older and not counted: {', '.join(row['file'] for row in older)}"
            newest = {**newest, "problem": "; ".join(filter(None, (newest["problem"], others)))}
        kept[kept.index(group[0])] = newest
    return kept


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
    yield "saved", (str(record.get("saved", "")), file.stat().st_mtime)
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
