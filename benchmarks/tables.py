"""Writes the tables of README.md and benchmarks/README.md that come from results/.

`python benchmarks/tables.py`, after a benchmark. A table stands between `<!-- vs_trl summary -->`, or
`<!-- SCRIPT NAME -->` with the script whose `markdown` makes it (bandit: those made here) and the name of a file in
results/, and `<!-- end -->`.
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
BLOCK = re.compile(r"(<!-- (vs_trl|vs_unsloth|step|bandit) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OURS, LIVE = "ours, shared, cached", "ours, shared, live"
TIMES = ("peer_s", "batched_s")
COLUMNS = ("TRL default", "TRL cached", "TRL cached, patched head")


def records() -> dict[str, dict[str, Any]]:
    """Return the records against TRL by name."""
    return {path.stem: _record(path.stem) for path in sorted((HERE / "results").glob("vs_trl_*.json"))}


def summary(found: dict[str, dict[str, Any]]) -> str:
    """Return one row a record: speed and memory of the default path over TRL's."""
    heads = ["", "TRL default", "TRL, reference cached", "and its head patched", "both live", "peak memory, of TRL's"]
    lines = _head(heads)
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
        if name == "summary":
            made = summary(found)
        else:
            made = (BANDIT[name] if script == "bandit" else _benchmark(script).markdown)(_record(name))
        return f"{match[1]}{made}\n{match[5]}"

    return BLOCK.sub(table, text)


def batched(record: dict[str, Any]) -> str:
    """Return one row a class, and what it was measured on."""
    heads = ["class", "cvxpy over batched", "range", "us an instance", "batched, worst relative gap"]
    lines = _head([*heads, "cvxpy's value above batched's, at most"])
    for row in record["classes"]:
        ends = f"{row['ratio_min']:.0f}-{row['ratio_max']:.0f}"
        ours = 1e6 * sorted(block["batched_s"] for block in row["blocks"])[len(row["blocks"]) // 2]
        gap, above = row["batched_worst_relative_gap"], row["cvxpy_value_above_batched"][1]
        lines.append(f"| {row['class']} | {row['ratio_median']:.0f} | {ends} | {ours:.0f} | {gap:.1e} | {above:.1e} |")
    scales = "; ".join(
        f"{row['microseconds_per_instance']:.0f} at {row['seeds']:,} and {row['n']:.0e}" for row in record["scaling"]
    )
    return "\n".join([*lines, "", f"Box, us an instance at so many seeds and N: {scales}. {_machine(record)}"])


def batched_peers(record: dict[str, Any]) -> str:
    """Return one row a peer and class, and what it was measured on."""
    lines = _head(
        ["peer", "class", "peer over batched", "range", "us an instance, peer and batched", "off by over 1e-6"]
    )
    for row in record["peers"]:
        peer, ours = (1e6 * sorted(block[key] for block in row["blocks"])[len(row["blocks"]) // 2] for key in TIMES)
        ends = f"{row['ratio_min']:.0f}-{row['ratio_max']:.0f}"
        lines.append(
            f"| {row['peer']} {row['version']} | {row['class']} | {row['ratio_median']:.0f} | {ends} | "
            f"{peer:,.0f} and {ours:.0f} | {100 * row['failed']:.1f} % |"
        )
    return "\n".join([*lines, "", f"{record['peers'][0]['seeds']} instances. {_machine(record)}"])


def sweep(record: dict[str, Any]) -> str:
    """Return one row a run, the profile of one, and what it was measured on."""
    lines = _head(["run", "processor s", "wall s", "peak MiB", "certified", "worst relative gap"])
    for row in record["runs"]:
        killed = f", killed and continued with {row['rows_reused']:,} rows there" if row.get("killed") else ""
        alone = f"{row['processor_s']:.1f}" if row["jobs"] == 1 else ""
        lines.append(
            f"| {row['jobs']} job{'s' * (row['jobs'] > 1)}{killed} | {alone} | {row['wall_s']:.1f} | "
            f"{row['peak_mib']:.0f} | {100 * row['certified']:.0f} % | {row['worst_relative_gap']:.1e} |"
        )
    profile = ", ".join(f"{part} {seconds:.2f}" for part, seconds in record["profile_s"].items())
    same = "The same bytes from all." if record["same_bytes"] else "**The tables differ.**"
    return "\n".join([*lines, "", f"{same} Processor seconds of one more run: {profile}. {_machine(record)}"])


BANDIT = {"batched": batched, "batched_peers": batched_peers, "sweep": sweep}


def _head(names: list[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def _machine(record: dict[str, Any]) -> str:
    made, on = record["environment"], record["machine"]
    load = ", ".join(f"{value:.1f}" for value in on["load_average"])
    versions = f"Python {made['python']}, NumPy {made['numpy']}, cvxpy {made['cvxpy']}"
    return f"{on['processor']}, {on['cores']} cores, load {load}; {versions}; commit {made.get('commit', 'unknown')}."


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
