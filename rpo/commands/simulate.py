"""`rpo simulate`: methods over a grid of simulated problems."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpo.core.errors import InvalidArgument, RPOError
from rpo.core.synonyms import own_names

if TYPE_CHECKING:
    import pandas

MOST_CELLS = 8


def simulate_command(
    output: str,
    grid: dict[str, list[Any]],
    instance: str = "coverage_skew",
    methods: list[str | dict[str, Any]] | None = None,
    seeds: int | list[int] = 20,
    seed: int = 0,
    proxy: bool = True,
    table_format: Literal["parquet", "csv"] = "parquet",
    jobs: int = 1,
    backend: str = "loky",
    figure: Literal["overoptimization", "gap_against_n", "heatmap"] | None = None,
    format: Literal["png", "pdf", "svg"] = "png",
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Run methods over a grid of simulated problems; the same command continues a killed run.

    Args:
        output: folder for the table, timings.csv, config.yaml, the manifest and the finished chunks.
        grid: lists over n (preferences), beta, eta and the instance's parameters; all combinations are run.
        instance: a name in rpo.bandit.instances, or package.module:name of your own.
        methods: names of objectives or baselines, or package.module:Name of your own; or entries of method (such a
            name), name, reward_class (box, unconstrained, ball), bound, prompt_weights and the method's own fields;
            null for RPO and DPO.
        seeds: draws per cell, or a list of them.
        seed: every random draw descends from it.
        proxy: whether to measure reward/proxy, one more solution a cell.
        table_format: "parquet" (needs pyarrow) or "csv".
        jobs: processes; -1 for one a core. The table does not depend on it.
        backend: joblib's: "loky", "threading", or "dask" or "ray" where a cluster is connected.
        figure: what to draw from the table, with its data beside it; null for nothing.
        format: of the figure; pdf has TrueType fonts.
        overwrite: drop an earlier simulation in that folder instead of continuing it.
    """
    from rpo.bandit.simulation.engine import FailedRows, simulate
    from rpo.bandit.simulation.methods import from_dict, template
    from rpo.bandit.simulation.store import CorruptShard, MixedCode
    from rpo.core.records import write_file

    pairs = [from_dict(entry) for entry in (["RPO", "DPO"] if methods is None else methods)]
    if len({name for name, _ in pairs}) < len(pairs):
        names = ", ".join(name for name, _ in pairs)
        raise InvalidArgument("methods", expected="different names", got=names, remedy="Give each entry a name.")
    with warnings.catch_warnings(record=True) as caught:
        for kind in (CorruptShard, FailedRows, MixedCode):
            warnings.simplefilter("always", kind)
        frame = simulate(
            instance,
            dict(pairs),
            own_names(grid, {"n"}),
            seeds,
            rng=seed,
            output=output,
            overwrite=overwrite,
            table_format=table_format,
            jobs=jobs,
            backend=backend,
            proxy=proxy,
        )
    for warning in caught:
        print(f"rpo simulate: warning: {' '.join(str(warning.message).split())}", file=sys.stderr)
    write_file(Path(output) / "config.yaml", resolved)
    if figure is not None:
        from rpo.bandit.simulation.figures import draw
        from rpo.plotting import save

        drawn, data = draw(frame, figure)
        save(drawn, Path(output) / f"{figure}.{format}", data)
    settings = [key for key in ("beta", "eta") if key in grid]
    unused = {name: set(settings) - template(name, method, settings).takes for name, method in pairs}
    _print_simulation(frame, list(grid), unused)
    print(f"Written to {output}" + (f"; the figure is {Path(output) / figure}.{format}" if figure is not None else ""))
    if (frame["status"] == "failed").all():
        raise RPOError(
            f"methods: expected a row with an answer, got {len(frame)} that failed. Mend what the warning says and run "
            "the same command again."
        )


def _print_simulation(frame: pandas.DataFrame, axes: list[str], unused: Mapping[str, Collection[str]]) -> None:
    """Print the mean gaps with their standard errors, and what was not certified.

    Of each cell where these are few; else of each method's best cell and its worst. unused: the knobs of the grid that
    a method does not have: its rows are the same along them, so one is shown, and the knob left blank.
    """
    import pandas

    varied = [key for key in axes if frame[key].nunique(dropna=False) > 1]
    own = frame.astype(dict.fromkeys({key for keys in unused.values() for key in keys}, object))
    for method, keys in unused.items():
        for key in keys:
            mine = own["method"] == method
            own = own[~mine | (own[key] == frame[key].iloc[0])]
            own.loc[own["method"] == method, key] = ""
    groups = own.groupby([*varied, "method"], dropna=False, sort=False)
    shown = groups.agg(
        gap=("gap", "mean"), standard_error=("gap", "sem"), kl=("kl/reference", "mean"), seeds=("seed", "size")
    ).reset_index()
    if len(shown) > MOST_CELLS:
        print(f"{len(shown)} cells; of each method those with the lowest and the highest mean gap:")
        known = shown.dropna(subset="gap").sort_values("gap").groupby("method")
        shown = pandas.concat([known.head(1), known.tail(1)]).drop_duplicates().sort_values(["method", "gap"])
    shown = shown[["method", *(name for name in shown if name != "method")]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    counts = frame["status"].value_counts().sort_index()
    print(f"{len(frame)} rows: " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    reused = frame.attrs["rows_reused"]
    if reused:
        print(f"{reused} of them taken from an earlier run, {len(frame) - reused} computed")
