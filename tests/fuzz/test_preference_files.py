"""Preference files for `rpo solve`: any text as labels, bad cells, damaged bytes; CSV, JSON lines and Parquet.

The independent reading: of a file left whole, every row is counted once, in the wins or among what was left out.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import TIERS, command, damaged, explore, outcome
from hypothesis import strategies as st

from rpo.bandit import read_preferences

# Few labels, so that rows meet; those of `STRANGE` look alike, are cut by careless readers, or mean more to others.
PLAIN = ["a", "b", "c"]
STRANGE = ["a ", "A", "é", "é", "1", "1.0", "01", "NA", "None", "nan", "x\u2028y", "x\u0085y", "x\ny", '"', ",", "=1+1",
           "\x1b[31m", "<script>", "\u202e", "tie", "a" * 300, "\x00", "🦉", "'"]  # fmt: skip
labels = st.sampled_from(PLAIN) | st.sampled_from(STRANGE) | st.text(min_size=1, max_size=6)
cells = labels | st.sampled_from(
    ["", None, float("nan"), float("inf"), True, 0, -1, 1.5, 10**400, {}, {"a": 1}, [], ["a"], [[]], "N/A", "null"]
)
winners = st.sampled_from(["model_a", "model_b", "tie", "tie (bothbad)"])
counts = st.sampled_from([1, 2, 0.5, "3"]) | cells


@st.composite
def tables(draw: Any) -> tuple[list[str], list[list[Any]], bool]:
    """Column names, rows, and whether every cell is a label of its kind."""
    columns = draw(
        st.sampled_from([["chosen", "rejected"], ["prompt", "chosen", "rejected"], ["model_a", "model_b", "winner"],
                         ["chosen", "rejected", "count"], ["prompt", "model_a", "model_b", "winner", "other"]])
    )  # fmt: skip
    clean = draw(st.integers(0, 3)) > 0
    size = draw(st.integers(0 if not clean else 1, 8))
    kinds = {"winner": winners if clean else winners | cells, "count": st.integers(1, 3) if clean else counts}
    rows = [[draw(kinds.get(name, labels if clean else cells)) for name in columns] for _ in range(size)]
    if not clean and draw(st.booleans()):
        columns = [*columns[:-1], draw(st.text(max_size=4))]
    return columns, rows, clean


def written(folder: Path, name: str, columns: list[str], rows: list[list[Any]]) -> Path:
    """Write the table as the name's end says."""
    path = folder / name
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *rows])
        path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
    else:
        values = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
        try:
            made = pyarrow.table(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, ValueError):  # no column holds such values
            made = pyarrow.table({name: [repr(value) for value in given] for name, given in values.items()})
        pyarrow.parquet.write_table(made, path)
    return path


@st.composite
def files(draw: Any) -> tuple[str, list[str], list[list[Any]], bool, Any]:
    """The file's name, its table, whether it is left whole, and how it is damaged."""
    columns, rows, clean = draw(tables())
    name = draw(st.sampled_from(["pairs.csv", "pairs.jsonl", "pairs.parquet"]))
    damage = draw(st.none() | st.none() | st.integers(0, 2**32)) if clean else None
    return name, columns, rows, clean, damage


def made(folder: Path, drawn: tuple[str, list[str], list[list[Any]], bool, Any]) -> tuple[Path, bool]:
    """Return the file and whether each of its rows can be told from the table."""
    name, columns, rows, clean, damage = drawn
    path = written(folder, name, columns, rows)
    if damage is not None:
        path.write_bytes(damaged(path.read_bytes(), damage))
    return path, clean and damage is None


def expected(columns: list[str], rows: list[list[Any]]) -> tuple[float, int]:
    """Return the comparisons that count, and the rows left out: ties and battles of a response against itself."""
    first = columns.index("chosen" if "chosen" in columns else "model_a")
    kept = [row for row in rows if row[first] != row[first + 1]]
    kept = [row for row in kept if "winner" not in columns or not row[columns.index("winner")].startswith("tie")]
    counted = sum(row[columns.index("count")] for row in kept) if "count" in columns else len(kept)
    return float(counted), len(rows) - len(kept)


@pytest.mark.parametrize("tier", TIERS)
def test_read_preferences(tier: int, record_property: Any) -> None:
    def read(drawn: Any) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path, whole = made(Path(folder), drawn)

            def check(table: Any) -> None:
                assert (table.counts.count > 0).all() and np.isfinite(table.counts.count).all()
                assert all(isinstance(label, str) and label for label in table.counts.response_labels)
                if whole:
                    assert (table.counts.n, sum(table.dropped.values())) == expected(drawn[1], drawn[2])

            return outcome(lambda: read_preferences(path), check)

    explore("preference tables", tier, files(), read, record_property)


@pytest.mark.parametrize("tier", TIERS)
def test_rpo_solve(tier: int, record_property: Any) -> None:
    def solve(drawn: Any) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path, whole = made(Path(folder), drawn)
            out = Path(folder) / "out"

            def check(printed: str) -> None:
                names = sorted(file.name for file in out.iterdir())
                assert names == ["config.yaml", "policy.csv", "solution.json"]
                record = json.loads((out / "solution.json").read_text(encoding="utf-8"))
                frame = pandas.read_csv(out / "policy.csv", keep_default_na=False, lineterminator="\n")
                assert np.allclose(frame.groupby("prompt")["policy"].sum(), 1.0)
                assert frame["wins"].sum() == pytest.approx(frame["losses"].sum())
                if "Certified optimal" in printed:
                    assert abs(record["certificate"]["relative_gap"]) <= 1e-6
                if whole:
                    assert frame["wins"].sum() == pytest.approx(expected(drawn[1], drawn[2])[0])

            return command(["solve", str(path), "--output", str(out)], Path(folder), check)

    explore("preference files", tier, files(), solve, record_property)
