"""The comparison as a folder: one self-contained HTML page, figures with their data, a JSON record."""

from __future__ import annotations

import base64
import html
import time
from pathlib import Path
from typing import Any

import pandas

from rpo.compare import figures
from rpo.compare.equivalence import Comparison
from rpo.core.records import environment, staged_output, write_json
from rpo.plotting import save

MARKER = "report.json"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>RPO: theory against a transformer</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.4rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: left; }}
td.number {{ font-variant-numeric: tabular-nums; text-align: right; }}
img {{ max-width: 100%; }} figure {{ margin: 1.2rem 0; }} figcaption {{ color: #444; font-size: .93rem; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }}
.verdict {{ background: #eef6fb; border-left: 4px solid #0072b2; padding: .7rem 1rem; }}
</style></head><body>
<h1>One objective, three ways: convex program, table, transformer</h1>
<p class="verdict">{verdict}</p>
<h2>Agreement</h2>
{agreement}
<p>{certificate}</p>
{figures}
<h2>Configuration</h2><pre>{config}</pre>
<h2>Environment</h2><pre>{environment}</pre>
</body></html>
"""


def write_report(
    comparison: Comparison, directory: str | Path, *, overwrite: bool = False, config: str | None = None
) -> Path:
    """Write report.html, report.json, and each figure as PNG with its data as CSV. Raises OutputError.

    config: text of config.yaml, if any. Nothing appears in `directory` until all of it is written;
    report.json comes last.
    """
    with staged_output(directory, overwrite=overwrite, marker=MARKER) as stage:
        if config is not None:
            (stage / "config.yaml").write_text(config, encoding="utf-8")
        parts = []
        for name, (draw, caption) in FIGURES.items():
            save(draw(comparison), stage / f"{name}.png", _data(comparison, name))
            picture = base64.b64encode((stage / f"{name}.png").read_bytes()).decode()
            text = html.escape(caption)
            parts.append(
                f'<h2>{html.escape(TITLES[name])}</h2><figure><img alt="{text}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
        machine = environment()
        page = PAGE.format(
            verdict=html.escape(verdict(comparison)),
            agreement=_agreement_table(comparison),
            certificate=html.escape(f"Theory: {comparison.theory.message} {_programs(comparison)}"),
            figures="\n".join(parts),
            config=html.escape(_lines(comparison.config)),
            environment=html.escape(_lines(machine)),
        )
        (stage / "report.html").write_text(page, encoding="utf-8")
        write_json(
            stage / MARKER,
            {
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": comparison.config,
                "verdict": verdict(comparison),
                "agreement": comparison.agreement,
                "theory": comparison.theory.to_dict(),
                "dpo_theory": comparison.dpo_theory.to_dict(),
                "runs": [run.to_dict() for run in (comparison.table, comparison.transformer, comparison.dpo)],
                "environment": machine,
            },
        )
    return Path(directory) / "report.html"


def verdict(comparison: Comparison) -> str:
    """Return the agreement in one sentence, with its numbers."""
    found = comparison.agreement["transformer"]
    return (
        f"After {comparison.config['steps']} steps the transformer's policy is within total variation "
        f"{found['max_total_variation']:.1e} of the certified maximin policy on every prompt, "
        f"and its loss differs by {found['loss_difference']:.1e}."
    )


def agreement_rows(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Return (which, largest total variation, loss difference, status) as text, one row a run."""
    return [
        (name, f"{found['max_total_variation']:.1e}", f"{found['loss_difference']:.1e}", found["message"])
        for name, found in comparison.agreement.items()
    ]


def _agreement_table(comparison: Comparison) -> str:
    head = (
        "<tr><th>against the convex program</th><th>total variation, worst prompt</th>"
        "<th>loss difference</th><th></th></tr>"
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=number>{tv}</td><td class=number>{loss}</td>"
        f"<td>{html.escape(message)}</td></tr>"
        for name, tv, loss, message in agreement_rows(comparison)
    )
    return f"<table>{head}{rows}</table>"


def _programs(comparison: Comparison) -> str:
    values = comparison.theory.programs
    return (
        f"Reward-side program {values['reward']['value']:.12f} ({values['reward']['status']}), "
        f"policy-side program {values['policy']['value']:.12f} ({values['policy']['status']})."
    )


def _data(comparison: Comparison, name: str) -> pandas.DataFrame:
    if name == "policies":
        theory = comparison.theory.policy
        return pandas.DataFrame(
            [
                {"prompt": x, "response": a, "theory": theory[x, a]}
                | {run.label: run.policy[x, a] for run in (comparison.table, comparison.transformer)}
                for x in range(theory.shape[0])
                for a in range(theory.shape[1])
            ]
        )
    if name == "overoptimization":
        return pandas.DataFrame([*comparison.curves, *comparison.skew_curves])
    runs = (("DPO", comparison.dpo), ("RPO", comparison.transformer))
    return pandas.concat([run.to_frame().assign(objective=objective) for objective, run in runs])


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in values.items())


TITLES = {
    "policies": "Three policies, one objective",
    "likelihood": "Chosen likelihood under DPO and RPO",
    "overoptimization": "Gold and proxy reward against KL",
    "convergence": "Towards the theory's optimum",
}
FIGURES = {
    "policies": (
        figures.policies,
        "Grey bars: the policy of the convex program. Markers: the table and the transformer trained on the same "
        "loss. Below, their absolute differences on a logarithmic scale (floored at 1e-17).",
    ),
    "likelihood": (
        figures.likelihood,
        "Mean log-probability of chosen and rejected responses while the transformer trains. DPO may "
        "lower both far; the SFT term of RPO limits how far the chosen ones fall.",
    ),
    "overoptimization": (
        figures.overoptimization,
        "Gold (solid) and proxy (dashed) expected reward as beta falls from left to right. Left: this problem, "
        "exact; diamonds are the trained transformers. Right: mean and standard error over problems with skewed "
        "coverage and few preferences, reward class Box(R). Overoptimization is where the dashed line still rises and "
        "the solid one no longer does.",
    ),
    "convergence": (
        figures.convergence,
        "Duality gap and largest total variation between the transformer and the certified policy, step by step.",
    ),
}
