"""Logistic regression of results between 0 and 1, with errors that allow for results that share a prompt."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, SolverFailed, shown

STEPS = 100
DECREMENT = 1e-14
ROUNDING = 1e-12
NO_SPREAD = 1e-9


class Fit(NamedTuple):
    """Coefficients (D,) and two covariances (D, D): that of clustered errors, and that of N independent coins."""

    estimate: Array
    covariance: Array
    coins: Array
    clusters: int

    def half_widths(self, contrasts: Array, level: float) -> tuple[Array, str]:
        """Return (K,), z standard errors of the K sums that the rows of `contrasts` (K, D) make of the coefficients.

        NaN where the clusters show no spread, and then why, else "".
        """
        few = "one prompt" if self.clusters == 1 else f"{self.clusters} prompts"
        if self.clusters <= len(self.estimate):
            # The clusters' scores sum to zero, so their products have no full rank.
            return np.full(len(contrasts), np.nan), f"{few} cannot show how much prompts differ"
        errors = np.sqrt(np.maximum(0.0, np.einsum("kd,de,ke->k", contrasts, self.covariance, contrasts)))
        spread = errors > NO_SPREAD
        message = "" if spread.all() else "results that decide it are all alike, so they show no spread"
        return np.where(spread, float(norm.ppf(0.5 + level / 2)) * errors, np.nan), message


def clusters(prompts: Any, size: int) -> Any:
    """Return (N,), the number of each of N results' prompt; None: all different. Raises InvalidArgument."""
    given = checks.labels("prompts", prompts, size)
    if given is None:
        return np.arange(size)
    try:
        return np.unique(np.asarray(given), return_inverse=True)[1].reshape(size)
    except (TypeError, ValueError):
        raise InvalidArgument(
            "prompts", expected="texts or numbers, one for each result", got=shown(given), remedy="Pass texts."
        ) from None


def fit_logistic(design: Array, results: Array, clusters: Any) -> Fit:
    """Return the maximum-likelihood coefficients and their covariances.

    design: (N, D), of full rank. results: (N,) in [0, 1]; 0.5 weighs as half a win and half a loss.
    clusters: (N,), equal for rows that are not independent. The covariance is the sandwich of the clusters'
    scores, times C / (C - 1) for C clusters. The caller makes sure that a maximum exists. Raises SolverFailed
    where rounding finds none. Source: Papke and Wooldridge 1996; Liang and Zeger 1986.
    """
    try:
        return _fit(design, results, clusters)
    except (np.linalg.LinAlgError, ArithmeticError, MemoryError) as error:
        raise SolverFailed(f"the logistic regression failed ({type(error).__name__}: {error})") from error


def _fit(design: Array, results: Array, clusters: Any) -> Fit:
    estimate = np.zeros(design.shape[1])
    loss = _loss(design @ estimate, results)
    for _ in range(STEPS):
        p = expit(design @ estimate)
        hessian = design.T @ (design * (p * (1 - p))[:, None])
        score = design.T @ (results - p)
        step = np.linalg.solve(hessian, score)
        decrement = float(score @ step)
        if decrement <= DECREMENT * max(1.0, loss):
            break
        size = 1.0
        slack = ROUNDING * (1.0 + loss)
        while (new := _loss(design @ (estimate + size * step), results)) > loss + slack and size > 1e-6:
            size /= 2
        estimate, loss = estimate + size * step, new
    else:
        raise SolverFailed(f"the logistic regression did not converge in {STEPS} Newton steps")
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(groups.max()) + 1
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, groups, design * (results - p)[:, None])
    bread = np.linalg.inv(hessian)
    return Fit(estimate, bread @ (scores.T @ scores) @ bread * (count / max(1, count - 1)), bread, count)


def _loss(logits: Array, results: Array) -> float:
    return float((np.logaddexp(0.0, logits) - results * logits).sum())
