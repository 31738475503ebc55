"""The comparison as a folder: one self-contained HTML page, figures with their data, a JSON record."""

from __future__ import annotations

import time
from pathlib import Path

import pandas

from rpo.compare import figures
from rpo.compare.equivalence import Comparison
from rpo.core import checks
from rpo.core.records import environment, staged_output, write_json
from rpo.plotting import page, save

MARKER = "report.json"
AGREEMENT = ("against the convex program", "total variation, worst prompt", "loss difference", "")


def write_report(
    comparison: Comparison, directory: str | Path, *, overwrite: bool = False, config: str | None = None
) -> Path:
    """Write report.html, report.json, and each figure as PNG with its data as CSV. Raises OutputError.

    config: text of config.yaml, if any. Nothing appears in `directory` until all of it is written;
    report.json comes last.
    """
    checks.instance("comparison", comparison, Comparison)
    with staged_output(directory, overwrite=overwrite, marker=MARKER) as stage:
        if config is not None:
            (stage / "config.yaml").write_text(config, encoding="utf-8")
        parts = []
        for name, (draw, caption) in FIGURES.items():
            save(draw(comparison), stage / f"{name}.png", _data(comparison, name))
            parts.append(page.section(TITLES[name], page.picture(stage / f"{name}.png", caption)))
        machine = environment()
        text = page.page(
            "One objective, three ways: convex program, table, transformer",
            verdict(comparison),
            [
                page.section(
                    "Agreement",
                    page.table(AGREEMENT, agreement_rows(comparison), numbers=(1, 2)),
                    page.paragraph(f"Theory: {comparison.theory.message} {_programs(comparison)}"),
                ),
                *parts,
                page.section("Configuration", page.listing(comparison.config)),
                page.section("Environment", page.listing(machine)),
            ],
        )
        (stage / "report.html").write_text(text, encoding="utf-8")
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
