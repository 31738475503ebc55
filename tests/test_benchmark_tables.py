"""The tables against TRL say what the records say."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables() -> Any:
    spec: Any = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_as_generated(tables: Any) -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.BLOCK.search(text), page
        assert tables.filled(text) == text, f"{page}: run python benchmarks/tables.py"


def test_a_number_changed_by_hand_is_seen(tables: Any) -> None:
    text = tables.PAGES[0].read_text(encoding="utf-8")
    block = tables.BLOCK.search(text)[0]
    changed = text.replace(block, block.replace("x (", "1x (", 1))
    assert changed != text and tables.filled(changed) == text


def test_every_record_has_its_table(tables: Any) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in tables.records():
        assert f"<!-- vs_trl {name} -->" in text
