"""What each `rpo` subcommand does, as a typed function; the command line is made from its signature."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO

if TYPE_CHECKING:
    from rpo.bandit.maximin import Solution
    from rpo.bandit.tables import PreferenceTable

MAX_ROWS = 30


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
        pairs: CSV, JSONL or Parquet file: prompt, chosen, rejected or model_a, model_b, winner; optional count.
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
    problem = bandit_from_preferences(table.counts, reward_bound=reward_bound, name=Path(pairs).name)
    chosen_class = Unconstrained() if reward_class == "unconstrained" else Box(reward_bound)
    solution = solve(problem, table.counts, objective, reward_class=chosen_class)
    _print_solution(table, solution)
    if output is not None:
        with staged_output(output, overwrite=overwrite, marker="solution.json") as stage:
            _policy_rows(table, solution).to_csv(stage / "policy.csv", index=False)
            (stage / "config.yaml").write_text(resolved, encoding="utf-8")
            record = {"source": table.source, "dropped": table.dropped, **solution.to_dict()}
            write_json(stage / "solution.json", {**record, "environment": environment()})
        print(f"Written to {output}")


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


def _policy_rows(table: PreferenceTable, solution: Solution):  # type: ignore[no-untyped-def]
    """Return one row a prompt and response of the reference's support, as a DataFrame."""
    import pandas

    counts, saddle = table.counts, solution.saddle
    wins = counts.wins()
    if counts.prompt_labels is None or counts.response_labels is None:
        raise InvalidArgument("pairs", expected="labelled counts", got="none", remedy="Use read_preferences.")
    rows = [
        {
            "prompt": counts.prompt_labels[x],
            "response": counts.response_labels[a],
            "wins": wins[x, a].sum(),
            "losses": wins[x, :, a].sum(),
            "reward": solution.reward[x, a],
            "policy": solution.policy[x, a],
            "pi_base": saddle.base[x, a],
            "pi_ref": float(saddle.support[x, a]) / saddle.support[x].sum(),
        }
        for x in range(counts.num_prompts)
        for a in range(counts.num_responses)
        if saddle.support[x, a]
    ]
    frame = pandas.DataFrame(rows)
    return frame.sort_values(["prompt", "policy"], ascending=[True, False], kind="stable", ignore_index=True)


def _print_solution(table: PreferenceTable, solution: Solution) -> None:
    frame = _policy_rows(table, solution)
    shown = frame.head(MAX_ROWS)
    if table.counts.num_prompts == 1:
        shown = shown.drop(columns="prompt")
    print(f"{table.counts.n:g} comparisons from {table.source}")
    for reason, number in table.dropped.items():
        print(f"left out: {number} rows ({reason})")
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if len(frame) > MAX_ROWS:
        print(f"... and {len(frame) - MAX_ROWS} more rows; --output DIR writes all of them.")
    print(f"objective: {solution.objective}")
    print(f"reward class: {solution.reward_class}, {'binding' if solution.active else 'not binding'}")
    print(solution.message, file=sys.stdout if solution.status == "certified" else sys.stderr)
