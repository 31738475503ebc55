"""`rpo experiment sentiment`: its options are the fields of `GoldStudy`."""

from __future__ import annotations

from typing import Any

from rpo.eval.gold.settings import GoldStudy


def sentiment_command(output: str, resolved: str = "", **settings: Any) -> None:
    """Measure overoptimization on a language model, where the gold reward is known: DPO, RPO, best-of-n.

    A killed run continues when started again with the same options; more seeds and etas may be added.

    Args:
        output: folder for the stages, report.html, tables and figures.
    """
    from rpo.eval.gold.report import read_study, write_gold_report
    from rpo.eval.gold.study import run_study

    study = GoldStudy(**settings)
    folder = run_study(study, output)
    result = read_study(study, folder)
    print(result.verdict())
    print(f"Written to {write_gold_report(result, folder, config=resolved)}")
