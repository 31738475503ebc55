"""A diagnosis as files: its numbers as JSON, a page, and a figure with a dot per pair."""

from __future__ import annotations

from pathlib import Path

import pandas

from rpo.core.records import environment, write_json
from rpo.llm.diagnostics.diagnosis import Diagnosis
from rpo.plotting import COLORS, new_figure, page, save, style


def write_diagnosis(result: Diagnosis, folder: str | Path, *, model: str, reference: str) -> None:
    """Write diagnosis.json, diagnosis.png and diagnosis.html into a folder that is there."""
    home = Path(folder)
    write_json(
        home / "diagnosis.json",
        {"model": model, "reference": reference, **result.to_dict(), "environment": environment()},
    )
    _draw(result, home / "diagnosis.png")
    caption = (
        "Each dot is a pair. Above the horizontal line the model ranks it right, right of the vertical one the "
        "reference did; above the dotted diagonal the margin has grown, which is what the implicit reward measures."
    )
    verdict = f"{result.pairs} pairs, beta {result.beta:g}; reference: {reference}."
    rows = [[name.strip(), number, meaning] for name, number, meaning in result.rows()]
    parts = [page.table(["", "number", "what it means"], rows), page.picture(home / "diagnosis.png", caption)]
    (home / "diagnosis.html").write_text(page.page(f"Diagnosis of {model}", verdict, parts), encoding="utf-8")


def _draw(result: Diagnosis, path: Path) -> None:
    """Draw every pair's log pi(chosen) / pi(rejected), in nats, against the same of the reference."""
    margins = {name: getattr(result, name) @ [1.0, -1.0] for name in ("reference", "policy")}
    title = f"{100 * result.numbers['ranking/accuracy']:.0f}% of the pairs are ranked right"
    if not result.untrained:
        title += f", {100 * result.numbers['ranking/reference']:.0f}% under the reference"
    with style():
        figure, ((axes,),) = new_figure(1, 1, width=5.2, height=4.8)
        for line in (axes.axhline, axes.axvline):
            line(0.0, color="#777777", linewidth=0.8)
        axes.axline((0.0, 0.0), slope=1.0, color="#777777", linewidth=0.8, linestyle=":")
        axes.plot(margins["reference"], margins["policy"], "o", markersize=3, alpha=0.6, color=COLORS["transformer"])
        axes.set_title(title)
        axes.set(xlabel="reference: log-probability of chosen less rejected, nats", ylabel="model: the same, nats")
    save(figure, path, pandas.DataFrame(margins))
