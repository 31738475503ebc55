"""`rpo plot`: training runs overlaid."""

from __future__ import annotations


def plot_command(
    runs: list[str],
    output: str = "runs.png",
    metrics: list[str] | None = None,
    window: int = 1,
    resolved: str = "",
) -> None:
    """Overlay training runs as in the paper's Figure 1.

    Args:
        runs: output folders of training runs, or of a sweep of them.
        output: PNG, PDF or SVG file, as its name ends; its data is written beside it as CSV.
        metrics: names as logged, the first in the large panel; null for the usual ones.
        window: logs in a trailing mean.
    """
    from rpo.commands.sweep import runs_of
    from rpo.llm.diagnostics.plots import METRICS, plot_runs

    found = [run for one in runs for run in runs_of(one)]
    plot_runs(found, metrics=METRICS if metrics is None else metrics, window=window, output=output)
    print(f"Written to {output}")
