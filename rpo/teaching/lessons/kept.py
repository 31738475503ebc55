"""Training on some of the samples of a prompt: what a policy-gradient step learns from those that a filter keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import erf

from rpo.bandit import filters
from rpo.core import checks
from rpo.plotting import NORMAL_95

if TYPE_CHECKING:
    import pandas

__all__ = ["NOISES", "steps"]

NOISES = ("even", "extremes unreliable", "extremes reliable")
SAMPLES, DIMENSION = 5, 20
KEPT = {"all": 5, "best_random": 2, "best_worst": 2, "best": 1}  # of a prompt's samples


def steps(
    noise: str, *, trained: int | None = 20, prompts: int = 10, draws: int = 400, rng: int = 0
) -> pandas.DataFrame:
    """Return what each filter's step learns, at an equal number of trained responses, or with None of prompts.

    Gold is linear in 20 features, of variance one; the proxy's noise, one of `NOISES`, is the same everywhere, or
    largest where gold is extreme, or smallest there. A random response beside the best is drawn, so that two of five
    are trained on. Columns: filter, prompts, R2 (of proxy and gold on what is kept), cosine (of the step, with a mean
    baseline, and the gold direction), difference (of the cosine to that of all, paired) and its 95 % half width.
    Raises InvalidArgument.
    """
    import pandas

    checks.one_of("noise", noise, NOISES)
    rows, everything = [], np.zeros(draws)
    for keep, of_five in KEPT.items():
        asked = prompts if trained is None else trained // of_five
        found = np.array([_step(np.random.default_rng(rng + draw), keep, noise, asked) for draw in range(draws)])
        everything = found[:, 1] if keep == "all" else everything
        apart = found[:, 1] - everything
        rows.append(
            {
                "filter": keep, "prompts": asked, "R2": float(found[:, 0].mean()), "cosine": float(found[:, 1].mean()),
                "difference": float(apart.mean()),
                "difference/half": NORMAL_95 * float(apart.std(ddof=1)) / math.sqrt(draws),
            }
        )  # fmt: skip
    return pandas.DataFrame(rows)


def _step(g: np.random.Generator, keep: str, noise: str, prompts: int) -> tuple[float, float]:
    """Return R^2 on what is kept and the cosine of its step with the gold direction."""
    direction = g.normal(size=DIMENSION) / math.sqrt(DIMENSION)
    phi = g.normal(size=(prompts, SAMPLES, DIMENSION))
    gold = phi @ direction
    extreme = np.abs(erf(gold / math.sqrt(2)))
    spread = {NOISES[0]: 1.5, NOISES[1]: 3 * extreme + 0.1, NOISES[2]: 3 * (1 - extreme) + 0.1}[noise]
    proxy = gold + spread * g.normal(size=gold.shape)
    weights = filters.kept_weights(proxy, keep)
    if keep == "best_random":
        best = proxy.argmax(axis=1)
        other = (best + g.integers(1, SAMPLES, prompts)) % SAMPLES
        weights = (np.eye(SAMPLES)[best] + np.eye(SAMPLES)[other]) / 2
    advantage = proxy - (weights * proxy).sum() / weights.sum()
    pull = np.einsum("sn,snd->d", weights * advantage, phi)
    cosine = float(pull @ direction / np.linalg.norm(pull) / np.linalg.norm(direction))
    return filters.proxy_agreement(proxy, gold, weights), cosine
