"""`rpo solve`: the certified maximin on a table of comparisons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO, Objective

if TYPE_CHECKING:
    import pandas

    from rpo.bandit.data import PreferenceCounts
    from rpo.bandit.maximin import Solution
    from rpo.bandit.tables import PreferenceTable

MAX_ROWS = 30
MAX_LABEL = 60


def solve_command(
    pairs: str,
    objective: Objective = RPO(beta=1.0, eta=0.01),  # noqa: B008 (frozen)
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
        objective: name of a method, or of your own (package.module:Name), and its fields; without a name RPO's:
            beta (KL temperature), eta (weight of the reward penalty), base of the SFT term.
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


def _policy_rows(counts: PreferenceCounts, solution: Solution) -> pandas.DataFrame:
    """Return one row per prompt and response of the reference's support; counts: numbered prompt by prompt."""
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
