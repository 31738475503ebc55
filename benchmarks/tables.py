"""Writes tables in README.md and benchmarks/README.md from results/: against TRL and Unsloth, and of a step's parts.

`python benchmarks/tables.py`, after `benchmarks/vs_trl.py`, `vs_unsloth.py` or `step.py`. A table stands between
`<!-- vs_trl summary -->` or `<!-- SCRIPT NAME -->`, with the name of a file in results/, and `<!-- end -->`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
BLOCK = re.compile(r"(<!-- (vs_trl|vs_unsloth|step) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OURS, LIVE = "ours, shared, cached", "ours, shared, live"
COLUMNS = ("TRL default", "TRL cached", "TRL cached, patched head")


def records() -> dict[str, dict[str, Any]]:
    """Return the records against TRL by name."""
    return {path.stem: _record(path.stem) for path in sorted((HERE / "results").glob("vs_trl_*.json"))}


def summary(found: dict[str, dict[str, Any]]) -> str:
    """Return one row a record: speed and memory of the default path over TRL's."""
    heads = ["", "TRL default", "TRL, reference cached", "and its head patched", "both live", "peak memory, of TRL's"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for record in found.values():
        variants = record["variants"]
        cells = [f"{record['model']}, {record['dtype']}, {record['device']}, {record['pairs']} pairs a batch"]
        cells += [_ratio(variants[OURS]["ratios"].get(name)) for name in COLUMNS]
        cells.append(_ratio(variants[LIVE]["ratios"]["TRL default"]))
        ours, theirs = (variants[name]["peak_mib"] for name in (OURS, "TRL default"))
        cells.append("" if ours is None else f"{100 * ours / theirs:.0f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return the page with every table made anew."""
    found = records()

    def table(match: re.Match[str]) -> str:
        script, name = match[2], match[3]
        made = summary(found) if name == "summary" else _benchmark(script).markdown(_record(name))
        return f"{match[1]}{made}\n{match[5]}"

    return BLOCK.sub(table, text)


def _ratio(values: list[float] | None) -> str:
    if values is None:
        return ""
    middle, *ends = values
    return f"{middle:.2f}x" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else "")


def _record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found


def _benchmark(name: str) -> Any:
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
