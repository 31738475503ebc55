"""`rpo compare`: the exact policies beside what training reaches."""

from __future__ import annotations

from rpo.core.objectives import RPO, Objective


def compare_command(
    output: str,
    objective: Objective = RPO(beta=0.1, eta=0.1),  # noqa: B008 (frozen)
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
        objective: an RPO's beta and eta; its base must be "chosen". DPO is trained beside it.
        prompts: X, number of prompts.
        vocab_size: V, number of tokens.
        length: L, tokens per response; A = V^L responses.
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
