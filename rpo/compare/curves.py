"""Gold and proxy reward against KL as beta falls: exact curves, certified point by point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rpo.bandit import instances
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import default_class, solve
from rpo.bandit.metrics import policy_metrics
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.objectives import DPO, RPO
from rpo.core.progress import track

SKEW, NOISE = 2.0, 0.3


def beta_path(
    problem: ContextualBandit,
    data: PreferenceCounts,
    etas: Sequence[float],
    betas: Array,
    *,
    reward_class: RewardClass,
) -> list[dict[str, float]]:
    """Return one row a (beta, eta): metrics of the certified maximin policy, its relative gap and tv_bound.

    reward/*/reference are pi_ref's own, which rewards can be counted from. The proxy is the maximum-likelihood reward
    of the same class on the same data, for every eta.
    """
    rows = []
    start: dict[float, Array] = {}
    for beta in betas:
        plain = solve(
            problem, data, DPO(beta=float(beta)), reward_class=reward_class, method="newton", start=start.get(0.0)
        )
        at_reference = policy_metrics(plain.saddle.log_reference, plain.saddle, problem, plain.reward)
        for eta in etas:
            solution = plain
            if eta > 0:
                objective = RPO(beta=float(beta), eta=eta)
                solution = solve(
                    problem, data, objective, reward_class=reward_class, method="newton", start=start.get(eta)
                )
            start[eta] = solution.reward
            rows.append(
                {
                    "beta": float(beta),
                    "eta": eta,
                    "relative_gap": solution.certificate.relative_gap,
                    "tv_bound": solution.certificate.tv_bound,
                    "certified": float(solution.status == "certified"),
                    **policy_metrics(solution.logps, solution.saddle, problem, plain.reward),
                    **{f"{name}/reference": at_reference[name] for name in ("reward/gold", "reward/proxy")},
                }
            )
    return rows


def coverage_skew_curves(
    *, etas: Sequence[float], betas: Array, n: int, draws: int, rng: Any, progress: bool | None = None
) -> list[dict[str, float]]:
    """Return beta paths on `draws` fresh `instances.coverage_skew` problems with n preferences each.

    Skew 2, three labels in ten flipped, pi_ref the behaviour: selected because the mean gold of DPO falls there. The
    class is Box(reward_bound), which has a minimiser whatever the data. Draws spawn from rng.
    """
    generator = checks.generator("rng", rng)
    rows = []
    for draw, child in enumerate(track(generator.spawn(draws), "coverage-skew curves", show=progress)):
        skewed = instances.coverage_skew(skew=SKEW, reference="behavior", rng=child)
        problem = instances.label_noise(skewed, NOISE)
        data = problem.sample_preferences(n, rng=child)
        reward_class = default_class(problem)
        rows += [{"draw": draw, **row} for row in beta_path(problem, data, etas, betas, reward_class=reward_class)]
    return rows


def mean_and_error(rows: list[dict[str, float]], column: str, *, eta: float) -> tuple[Array, Array]:
    """Return the mean over draws and its standard error, each (number of betas,)."""
    betas = sorted({row["beta"] for row in rows}, reverse=True)
    table = np.array(
        [[row[column] for row in rows if row["beta"] == beta and row["eta"] == eta] for beta in betas], dtype=np.float64
    )
    return table.mean(axis=1), table.std(axis=1, ddof=1) / np.sqrt(table.shape[1])
