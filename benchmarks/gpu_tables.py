"""Tables of what benchmarks/gpu.py has measured, in Markdown: `python benchmarks/gpu_tables.py FOLDER/gpu.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

SUSPECT = 2.0  # a kernel's error over that of torch's own attention
Rows = list[dict[str, Any]]


def tables(record: dict[str, Any], *, brief: bool = False) -> str:
    """Return a section a part, with a line for everything that failed. brief: no kernels but those in doubt."""
    makers = {
        "kernels": kernels,
        "tests": tests,
        "paths": paths,
        "trl": steps,
        "long": steps,
        "profile": profile,
    }
    sections = []
    for part, rows in record["parts"].items():
        start = next((row for row in rows if row.get("kind") == "start"), {})
        seconds = record["seconds"].get(part)
        took = "" if seconds is None else f", {seconds:.0f} s"
        head = f"### {part}: {start.get('device')}, torch {start.get('torch')}{took}"
        failed = []
        for row in rows:
            if "error" in row:
                what = " ".join(str(row[name]) for name in ("case", "setting", "variant", "name") if name in row)
                failed.append(f"- failed: {what}: {first(row['error'])}")
        left = [row for row in rows if row.get("kind") == "left out"]
        more = [f"- left out for want of time: {len(left)}"] if left else []
        sections.append("\n".join([head, "", *makers[part](rows, brief=brief), *dict.fromkeys(failed), *more, ""]))
    return "\n".join(sections)


def first(text: str) -> str:
    """Return the first line of a message."""
    return text.strip().split("\n")[0][:200]


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table, nothing if it has no lines."""
    return ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines)] + [""] if lines else []


def kernels(rows: Rows, *, brief: bool) -> list[str]:
    """Return a line a case: errors, and those of torch's attention in the same type."""
    good = [row for row in rows if row.get("kind") == "kernel" and "error" not in row]
    shown = [row for row in good if row["ratio"] > SUSPECT] if brief else good
    lines = []
    for row in shown:
        off, usual = (" ".join(f"{value:.1e}" for value in row[name]) for name in ("off", "plain"))
        cells = [row["case"], off, usual, f"{row['ratio']:.2f}", f"{row['first_call_s']:.1f}", f"{row['ms']:.2f}"]
        lines.append([*cells, str(row["graphs"])])
    count = (
        f"{len(good)} cases, {sum(row['ratio'] <= SUSPECT for row in good)} within {SUSPECT:g}x of torch's own error."
    )
    heads = ["case", "error: output, dq, dk, dv", "plain", "ratio", "first call, s", "ms", "graphs"]
    return [count, "", *table(heads, lines)]


def tests(rows: Rows, *, brief: bool) -> list[str]:
    """Return the tests' last line, and those that failed."""
    return [
        line for row in rows if row.get("kind") == "tests" for line in (row.get("summary", ""), *row.get("failed", ()))
    ]


def paths(rows: Rows, *, brief: bool) -> list[str]:
    """Return gradients against float32, and a line a run."""
    lines = [
        [
            row["case"],
            row["taken"],
            f"{row['loss']:.5f}",
            f"{row['loss_off']:.1e}",
            f"{row['gradient_off']:.1e}",
            f"{row['first_s']:.1f}",
            f"{1e3 * row['later_s']:.0f}",
            number(row.get("peak_above_static_gib")),
        ]
        for row in rows
        if row.get("kind") == "gradient" and "gradient_off" in row
    ]
    found = table(["path", "taken", "loss", "off", "gradient off", "first, s", "ms", "peak GiB"], lines)
    updates: dict[str, Rows] = {}
    for row in rows:
        if row.get("kind") == "update":
            updates.setdefault(row["case"], []).append(row)
    lines = [
        [
            case,
            " ".join(f"{row['ms']:.0f}" for row in each),
            number(max(row.get("peak_above_static_gib", 0.0) for row in each[1:] or each)),
            f"{max(abs(row['off_ln_2']) for row in each):.1e}",
            " ".join(str(row["graphs"]) for row in each),
        ]
        for case, each in updates.items()
    ]
    return found + table(["run", "ms an update", "peak GiB", "off ln 2, at most", "graphs after each"], lines)


def steps(rows: Rows, *, brief: bool) -> list[str]:
    """Return a table a setting: every variant's time, ratios to TRL's, tokens, utilisation, memory."""
    found: list[str] = []
    rates = {row["setting"]: row for row in rows if row.get("kind") == "rate" and "own_shapes" in row}
    for setting in dict.fromkeys(row["setting"] for row in rows if row.get("kind") == "step"):
        taken = [row for row in rows if row.get("setting") == setting and row.get("kind") == "step" and "flops" in row]
        by_variant: dict[str, dict[int, dict[str, Any]]] = {row["variant"]: {} for row in taken}
        for row in taken:
            if row["batch"]:  # the first warms up
                by_variant[row["variant"]][row["batch"]] = row
        lines = [line(name, by_variant, rates.get(setting, {})) for name in by_variant if by_variant[name]]
        trl = next((row["head"] for row in rows if row.get("kind") == "trl" and row["setting"] == setting), "unknown")
        checkpointing = any(row.get("checkpointing") for row in taken)
        heads = ["variant", "ms", "x TRL default", "x TRL cached", "useful tokens/s", "fed tokens/s", "MFU %"]
        heads += ["% of own shapes' rate", "peak GiB above static", "loss off TRL's"]
        about = f"{setting}{', gradient checkpointing on both sides' if checkpointing else ''}; TRL's head: {trl}."
        found += [about, "", *table(heads, lines)]
    return found


def line(name: str, by_variant: dict[str, dict[int, dict[str, Any]]], rates: dict[str, Any]) -> list[str]:
    """Return one variant's cells."""
    rows = by_variant[name]
    seconds, flops = (sum(row[key] for row in rows.values()) for key in ("seconds", "flops"))
    path = rows[min(rows)].get("taken")
    label = name if path is None or path in name else f"{name} ({path})"
    cells = [label, f"{1e3 * median(row['seconds'] for row in rows.values()):.0f}"]
    for baseline in ("TRL default", "TRL cached"):
        theirs = by_variant.get(baseline, {})
        ratios = [theirs[k]["seconds"] / rows[k]["seconds"] for k in rows if k in theirs]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "")
    cells += [f"{sum(row[key] for row in rows.values()) / seconds:,.0f}" for key in ("useful", "fed")]
    cells += [f"{100 * flops / seconds / rates[key]:.1f}" if rates.get(key) else "" for key in ("peak", "own_shapes")]
    cells.append(number(max(row.get("peak_above_static_gib", 0.0) for row in rows.values())))
    theirs = by_variant.get("TRL default") or by_variant.get("TRL cached") or {}
    off = [abs(rows[k]["loss"] - theirs[k]["loss"]) / abs(theirs[k]["loss"]) for k in rows if k in theirs]
    return [*cells, f"{max(off):.0e}" if off else ""]


def profile(rows: Rows, *, brief: bool) -> list[str]:
    """Return shares by kind and the longest kernels."""
    found = []
    for row in rows:
        if row.get("kind") == "profile" and "shares" in row:
            shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in row["shares"].items())
            times = f"{1e3 * row['seconds']:.0f} ms a step, the GPU busy for {row['busy_ms']:.0f} of them"
            idle = f"idle {100 * row['idle_share']:.0f} % of a profiled one"
            found += [f"{row['variant']}: {times} ({idle}): {shares}.", ""]
            lines = [[f"{each['ms']:.2f}", str(each["calls"]), each["kind"], f"`{each['name'][:90]}`"]
                     for each in row["kernels"][: 8 if brief else 25]]  # fmt: skip
            found += table(["ms", "calls", "kind", "kernel"], lines)
    return found


def number(value: float | None) -> str:
    """Return two decimals, nothing for nothing."""
    return f"{value:.2f}" if value else ""


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
