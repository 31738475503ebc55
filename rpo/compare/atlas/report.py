"""The atlas as a folder: its table as CSV and Markdown, three pictures with their data, one self-contained page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.compare.atlas.entrants import absent
from rpo.compare.atlas.figure import curves_figure, hard_pairs, map_figure, rows_figure
from rpo.compare.atlas.run import Atlas
from rpo.compare.atlas.summary import AGAINST, MATCHED, curve, summary
from rpo.core.records import write_file
from rpo.plotting import page, save

if TYPE_CHECKING:
    import pandas

SHOWN = ("method", "gold at the peak", "at KL", "gold at the end", "at KL ", "fall", "overestimate", "unseen mass")
HOW = (
    "Every method goes along its own knob from the most to the least held back, on the same problems and "
    "preferences. Gold is the true reward, proxy the maximum-likelihood reward of the same preferences, both "
    "counted from the reference policy's. Overestimate: proxy less gold at the end of the path. Fall: from the "
    "peak of mean gold to the end, the peak chosen on half of the draws and the fall measured on the other half, "
    "with a 95 % interval. Rewards of certified methods lie in the same box or ball; the others are fitted over "
    "all policies, and their marker is hollow."
)


def write_atlas(made: Atlas, output: str | Path) -> pandas.DataFrame:
    """Write atlas.csv, atlas.md, atlas.html and three pictures with their data; return the table.

    The same atlas gives the same bytes. Raises OutputError.
    """
    import pandas

    folder, frame = Path(output), summary(made)
    folder.mkdir(parents=True, exist_ok=True)
    pulls = dict(zip(frame["method"], frame["pull/found"], strict=True))
    paths = [
        pandas.DataFrame(
            {"instance": instance.name, "method": entrant.name, "knob": entrant.knob, "value": entrant.values}
            | {name: curve(made, i, e, name) for name in ("kl", "gold", "proxy")}
        )
        for i, instance in enumerate(made.instances)
        for e, entrant in enumerate(made.entrants)
    ]
    curves = pandas.concat(paths, ignore_index=True)
    save(rows_figure(frame), folder / "atlas.png", frame)
    save(map_figure(frame), folder / "atlas_map.png", frame)
    save(curves_figure(made, pulls), folder / "atlas_curves.png", curves)
    text = markdown(frame)
    write_file(folder / "atlas.md", text)
    write_file(folder / "atlas.html", _page(made, frame, folder))
    return frame


def markdown(frame: pandas.DataFrame) -> str:
    """Return the table in Markdown, an instance after the other."""
    lines = []
    for name in dict.fromkeys(frame["instance"]):
        rows = [_cells(row) for _, row in frame[frame["instance"] == name].iterrows()]
        head = (*SHOWN, *(f"gold at KL {kl:g}" for kl in MATCHED), "evidence", "pull")
        lines += [f"### {name}", "", "| " + " | ".join(h.strip() for h in head) + " |", "|" + " --- |" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def verdict(frame: pandas.DataFrame) -> str:
    """Return who overestimates most and least, and who falls, in two sentences of the table's own numbers."""
    hard = hard_pairs(frame)
    by_pull = hard.groupby("pull/found")["over"].mean()
    words = ", ".join(f"{pull} {value:.2f}" for pull, value in by_pull.sort_values(ascending=False).items())
    fell = hard[hard["drop/low"] > 0.0].groupby("method", sort=False).size()
    most = ", ".join(f"{name} ({count})" for name, count in fell.sort_values(ascending=False).head(6).items())
    instances = hard["instance"].nunique()
    return (
        f"Mean overestimate at the path's end, by what a loss does to unseen responses: {words}. "
        f"Gold falls from its peak, the 95 % interval above zero, for {most or 'no method'} "
        f"(on how many of the {instances} hard instances here)."
    )


def _cells(row: Any) -> list[str]:
    matched = [_number(row[f"gold@{kl:g}"]) for kl in MATCHED]
    against = row.get(f"gold-{AGAINST}@{MATCHED[1]:g}/low"), row.get(f"gold-{AGAINST}@{MATCHED[1]:g}/high")
    if all(np.isfinite(side) for side in against) and (against[0] > 0 or against[1] < 0):
        matched[1] += " (> DPO)" if against[0] > 0 else " (< DPO)"
    fall = f"{row['drop']:.3f} ({row['drop/low']:.3f} to {row['drop/high']:.3f})"
    evidence = f"{100 * row['certified']:.0f} % certified" + (
        f", {100 * row['stationary']:.0f} % stationary" if row["stationary"] else ""
    )
    predicted, pull = row["pull/predicted"], row["pull/found"]
    if pull != predicted:
        pull = f"{pull}, not {predicted}" if predicted else f"{pull} (found)"
    numbers = [_number(row[name]) for name in ("peak", "peak/kl", "end", "end/kl")]
    return [
        str(row["method"]),
        *numbers,
        fall,
        _number(row["over"]),
        _number(row["mass/unseen"]),
        *matched,
        evidence,
        pull,
    ]


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "not reached"


def _page(made: Atlas, frame: pandas.DataFrame, folder: Path) -> str:
    instances = "".join(
        f"<li><b>{html.escape(one.name)}</b>: {html.escape(one.sentence)}.</li>" for one in made.instances
    )
    missing = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(why)}.</li>" for name, why in absent().items())
    parts = [
        page.picture(
            folder / "atlas.png",
            "Means over the hard instances. Names are coloured by what the loss does to unseen responses.",
        ),
        page.section("How it is measured", page.paragraph(HOW), f"<ul>{instances}</ul>"),
        page.section(
            "Instance by instance",
            page.picture(
                folder / "atlas_map.png", "Overestimate at the end of the path, and the fall of gold from its peak."
            ),
            page.picture(folder / "atlas_curves.png", "Gold against KL along every method's path; dots are defaults."),
        ),
    ]
    for name in dict.fromkeys(frame["instance"]):
        rows = [_cells(row) for _, row in frame[frame["instance"] == name].iterrows()]
        head = [*SHOWN, *(f"gold at KL {kl:g}" for kl in MATCHED), "evidence", "pull"]
        parts.append(page.section(f"Table: {name}", page.table(head, rows, numbers=range(1, 11))))
    parts.append(page.section("Who is not here", f"<ul>{missing}</ul>"))
    return page.page("The atlas of overoptimization", verdict(frame), parts)
