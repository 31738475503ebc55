"""What each `rpo` subcommand does, as a typed function; the command line is made from its signature."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpo.core.errors import InvalidArgument, RPOError
from rpo.core.objectives import RPO

if TYPE_CHECKING:
    import pandas

    from rpo.bandit.data import PreferenceCounts
    from rpo.bandit.maximin import Solution
    from rpo.bandit.tables import PreferenceTable

MAX_ROWS = 30
MAX_LABEL = 60


def solve_command(
    pairs: str,
    objective: RPO = RPO(beta=1.0, eta=0.01),  # noqa: B008 (frozen)
    reward_class: Literal["box", "unconstrained"] = "box",
    reward_bound: float = 5.0,
    ties: Literal["drop", "half", "error"] = "drop",
    prompt_column: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Solve the certified maximin on a table of comparisons and print each prompt's policy.

    Args:
        pairs: CSV, JSONL or Parquet file: chosen, rejected or model_a, model_b, winner; optional prompt and count.
        objective: beta (KL temperature), eta (weight of the reward penalty), base of the SFT term.
        reward_class: "box" keeps rewards in [0, reward_bound]; "unconstrained" is DPO + eta*beta*SFT exactly.
        reward_bound: R of the box, in log-odds.
        ties: drop them (they are counted), count half a win each way, or refuse.
        prompt_column: name of the prompt column, if not "prompt".
        output: folder for solution.json, policy.csv and the resolved config.yaml.
        overwrite: replace an earlier result in that folder.
    """
    from rpo.bandit import Box, Unconstrained, bandit_from_preferences, read_preferences, solve
    from rpo.core.records import check_output, environment, staged_output, write_json

    if output is not None:
        check_output(output, overwrite=overwrite, marker="solution.json")
    table = read_preferences(pairs, ties=ties, prompt_column=prompt_column)
    counts = table.counts.per_prompt()
    problem = bandit_from_preferences(counts, reward_bound=reward_bound, name=Path(pairs).name)
    chosen_class = Unconstrained() if reward_class == "unconstrained" else Box(reward_bound)
    solution = solve(problem, counts, objective, reward_class=chosen_class)
    rows = _policy_rows(counts, solution)
    _print_solution(table, solution, rows)
    if output is not None:
        with staged_output(output, overwrite=overwrite, marker="solution.json") as stage:
            rows.to_csv(stage / "policy.csv", index=False)
            (stage / "config.yaml").write_text(resolved, encoding="utf-8")
            read = {"source": table.source, "dropped": table.dropped, "look_alikes": table.look_alikes}
            write_json(stage / "solution.json", {**read, **solution.to_dict(), "environment": environment()})
        print(f"Written to {output}")


def methods_command(resolved: str = "") -> None:
    """List the preference objectives: what each reads, what is known of its optimum, its source and its test."""
    from rpo.methods.registry import table

    print(table())


def compare_command(
    output: str,
    objective: RPO = RPO(beta=0.1, eta=0.1),  # noqa: B008 (frozen)
    prompts: int = 3,
    vocab_size: int = 4,
    length: int = 3,
    num_preferences: int = 2500,
    reward_bound: float = 2.0,
    steps: int = 1500,
    learning_rate: float = 0.003,
    skew_draws: int = 40,
    seed: int = 0,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Hold theory, table and transformer against each other on one problem and write a report.

    Args:
        output: folder for report.html, the figures with their data, report.json and config.yaml.
        objective: beta and eta; its base must be "chosen".
        prompts: X, number of prompts.
        vocab_size: V, number of tokens.
        length: L, tokens a response; A = V^L responses.
        num_preferences: N, preferences drawn between samples of the reference.
        reward_bound: R; the true reward is uniform on [0, R].
        steps: full-batch training steps of the transformer.
        learning_rate: first rate of AdamW; it falls to zero along a cosine.
        skew_draws: problems averaged in the gold-and-proxy curves.
        seed: every random draw descends from it.
        overwrite: replace an earlier report in that folder.
    """
    from rpo.core.records import check_output

    check_output(output, overwrite=overwrite, marker="report.json")
    from rpo.compare.equivalence import compare
    from rpo.compare.report import agreement_rows, verdict, write_report

    result = compare(
        objective,
        prompts=prompts,
        vocab_size=vocab_size,
        length=length,
        num_preferences=num_preferences,
        reward_bound=reward_bound,
        steps=steps,
        learning_rate=learning_rate,
        skew_draws=skew_draws,
        seed=seed,
    )
    page = write_report(result, output, overwrite=overwrite, config=resolved)
    print(f"theory: {result.theory.message}")
    print(f"{'against the convex program':28}{'total variation':>18}{'loss difference':>18}")
    for name, variation, loss, _ in agreement_rows(result):
        print(f"{name:28}{variation:>18}{loss:>18}")
    print(verdict(result))
    print(f"Report: {page}")


def simulate_command(
    output: str,
    grid: dict[str, list[Any]],
    instance: str = "coverage_skew",
    methods: list[dict[str, Any]] | None = None,
    seeds: int | list[int] = 20,
    seed: int = 0,
    proxy: bool = True,
    table_format: Literal["parquet", "csv"] = "parquet",
    jobs: int = 1,
    backend: str = "loky",
    figure: Literal["overoptimization", "gap_against_n", "heatmap"] | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Run methods over a grid of simulated problems; the same command continues a killed run.

    Args:
        output: folder for the table, timings.csv, config.yaml, the manifest and the finished chunks.
        grid: lists over n (preferences), beta, eta and the instance's parameters; all combinations are run.
        instance: a name in rpo.bandit.instances.
        methods: entries of method (RPO, DPO or a baseline's class), name, reward_class (box, unconstrained,
            ball), bound, prompt_weights and the method's own fields; null for RPO and DPO.
        seeds: draws a cell, or a list of them.
        seed: every random draw descends from it.
        proxy: whether to measure reward/proxy, one more solution a cell.
        table_format: "parquet" (needs pyarrow) or "csv".
        jobs: processes; -1 for one a core. The table does not depend on it.
        backend: joblib's: "loky", "threading", or "dask" or "ray" where a cluster is connected.
        figure: what to draw from the table, as PNG with its data beside it; null for nothing.
        overwrite: drop an earlier simulation in that folder instead of continuing it.
    """
    from rpo.bandit.simulation.engine import FailedRows, simulate
    from rpo.bandit.simulation.entrants import from_dict
    from rpo.bandit.simulation.store import CorruptShard, MixedCode
    from rpo.core.records import write_file

    pairs = [from_dict(entry) for entry in ([{"method": "RPO"}, {"method": "DPO"}] if methods is None else methods)]
    if len({name for name, _ in pairs}) < len(pairs):
        names = ", ".join(name for name, _ in pairs)
        raise InvalidArgument("methods", expected="different names", got=names, remedy="Give each entry a name.")
    with warnings.catch_warnings(record=True) as caught:
        for kind in (CorruptShard, FailedRows, MixedCode):
            warnings.simplefilter("always", kind)
        frame = simulate(
            instance,
            dict(pairs),
            grid,
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
        save(drawn, Path(output) / f"{figure}.png", data)
    _print_simulation(frame, list(grid))
    print(f"Written to {output}" + (f"; the figure is {Path(output) / figure}.png" if figure is not None else ""))
    if (frame["status"] == "failed").all():
        raise RPOError(
            f"methods: expected a row with an answer, got {len(frame)} that failed. Mend what the warning says and run "
            "the same command again."
        )


def _policy_rows(counts: PreferenceCounts, solution: Solution) -> pandas.DataFrame:
    """Return one row a prompt and response of the reference's support; counts: numbered prompt by prompt."""
    import numpy as np
    import pandas

    saddle = solution.saddle
    if counts.prompt_labels is None or counts.own_labels is None:
        raise InvalidArgument("pairs", expected="labelled counts", got="none", remedy="Use read_preferences.")
    x, a = np.nonzero(saddle.support)
    order = np.lexsort((-solution.policy[x, a], x))  # stable, and prompts are numbered in the order of their labels
    x, a = x[order], a[order]
    return pandas.DataFrame(
        {
            "prompt": [counts.prompt_labels[i] for i in x],
            "response": [counts.own_labels[i][k] for i, k in zip(x, a, strict=True)],
            "wins": counts.response_counts("chosen")[x, a],
            "losses": counts.response_counts("rejected")[x, a],
            "reward": solution.reward[x, a].round(12),  # a box's rewards start at 0, up to rounding
            "policy": solution.policy[x, a],
            "pi_base": saddle.base[x, a],
            "pi_ref": 1.0 / saddle.support.sum(axis=1)[x],
        }
    )


def _printable(text: str) -> str:
    """Return a text of the user's with its control characters as escapes, which a terminal does not obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _short(label: str) -> str:
    return _printable(label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 3] + "...")


def _print_solution(table: PreferenceTable, solution: Solution, frame: pandas.DataFrame) -> None:
    from rpo.bandit.tables import look_alike_sentence

    shown = frame.head(MAX_ROWS)
    shown = shown.assign(prompt=shown["prompt"].map(_short), response=shown["response"].map(_short))
    if table.counts.num_prompts == 1:
        shown = shown.drop(columns="prompt")
    print(f"{table.counts.n:g} comparisons from {table.source}")
    if table.unused_columns:
        print(f"columns not used: {', '.join(map(_printable, table.unused_columns))}")
    for reason, number in table.dropped.items():
        print(f"left out: {number} rows ({_printable(reason)})")
    if table.look_alikes:
        print(f"warning: {look_alike_sentence(table)}")
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if len(frame) > MAX_ROWS:
        print(f"... and {len(frame) - MAX_ROWS} more rows; --output DIR writes all of them.")
    print(f"objective: {solution.objective}")
    print(f"reward class: {solution.reward_class}", end="")
    if solution.reward_class.bounded:
        print(", binding" if solution.active else ", not binding")
    else:
        print()
    print(solution.message, file=sys.stdout if solution.status == "certified" else sys.stderr)


def _print_simulation(frame: pandas.DataFrame, axes: list[str]) -> None:
    """Print the mean gap of each cell and method with its standard error, and what was not certified."""
    varied = [key for key in axes if frame[key].nunique(dropna=False) > 1]
    groups = frame.groupby([*varied, "method"], dropna=False)
    shown = groups.agg(
        gap=("gap", "mean"), standard_error=("gap", "sem"), kl=("kl/reference", "mean"), seeds=("seed", "size")
    ).reset_index()
    print(shown.head(MAX_ROWS).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if len(shown) > MAX_ROWS:
        print(f"... and {len(shown) - MAX_ROWS} more cells; the table has all of them.")
    counts = frame["status"].value_counts().sort_index()
    print(f"{len(frame)} rows: " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    reused = frame.attrs["rows_reused"]
    if reused:
        print(f"{reused} of them taken from an earlier run, {len(frame) - reused} computed")
