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
        runs: output folders of training runs.
        output: PNG, PDF or SVG file, as its name ends; its data is written beside it as CSV.
        metrics: names as logged, the first in the large panel; null for the usual ones.
        window: logs in a trailing mean.
    """
    from rpo.llm.diagnostics.plots import METRICS, plot_runs

    plot_runs(runs, metrics=METRICS if metrics is None else metrics, window=window, output=output)
    print(f"Written to {output}")
