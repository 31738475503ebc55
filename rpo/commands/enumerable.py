"""The command of the gold-reward laboratory on an enumerable language model."""

from __future__ import annotations

from collections.abc import Sequence


def gold_command(
    output: str,
    prompts: int = 2,
    vocab_size: int = 4,
    length: int = 2,
    skew: float = 1.0,
    label_noise: float = 0.3,
    label_smoothing: float = 0.05,
    reward_bound: float = 4.0,
    num_preferences: int = 200,
    betas: Sequence[float] = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25),
    etas: Sequence[float] = (0.1,),
    ns: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    draws: int = 200,
    trained_draws: int = 3,
    steps: int = 600,
    learning_rate: float = 3e-3,
    kl_draws: int = 512,
    kl_repetitions: int = 8,
    seed: int = 2,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Train tiny transformers where the gold reward is known, and hold gold against KL beside the exact curves.

    Args:
        output: folder for gold.html, gold.json, the figure and the tables.
        prompts: X, number of prompts.
        vocab_size: V, number of tokens.
        length: L, tokens per response; the V^L responses exhaust the model's distribution.
        skew: how unevenly the preference data cover the responses; 0 for nearly even.
        label_noise: rate of flipped labels, in [0, 0.5].
        label_smoothing: share of each preference that counts the other way round, so that optima exist.
        reward_bound: R, log-odds; the gold reward is uniform on [0, R].
        num_preferences: N a draw.
        betas: KL temperatures, falling; each model starts from the weights of the one before.
        etas: weights of RPO's reward penalty, above 0; DPO is always there.
        ns: sizes of best-of-n.
        draws: data sets solved exactly.
        trained_draws: of these, how many are also trained on.
        steps: full-batch steps of AdamW a beta.
        learning_rate: first learning rate; it falls to zero along a cosine at every beta.
        kl_draws: prompts, with a response each, in a sampled estimate of the KL.
        kl_repetitions: sampled estimates of the KL of each policy of the first draw, against the exact one.
        seed: every random draw descends from it.
        overwrite: replace an earlier result in that folder.
    """
    from rpo.core.records import check_output

    check_output(output, overwrite=overwrite, marker="gold.json")
    from rpo.compare.gold import gold_experiment
    from rpo.compare.gold_report import AGREEMENT, PEAKS, agreement_rows, peak_rows, save_gold, verdict

    result = gold_experiment(
        prompts=prompts,
        vocab_size=vocab_size,
        length=length,
        skew=skew,
        label_noise=label_noise,
        label_smoothing=label_smoothing,
        reward_bound=reward_bound,
        num_preferences=num_preferences,
        betas=betas,
        etas=etas,
        ns=ns,
        draws=draws,
        trained_draws=trained_draws,
        steps=steps,
        learning_rate=learning_rate,
        kl_draws=kl_draws,
        kl_repetitions=kl_repetitions,
        seed=seed,
    )
    page = save_gold(result, output, overwrite=overwrite, config=resolved)
    import pandas

    for head, rows in ((PEAKS, peak_rows(result)), (AGREEMENT, agreement_rows(result))):
        print(pandas.DataFrame(rows, columns=list(head)).to_string(index=False))
    print(verdict(result))
    print(f"Report: {page}")
