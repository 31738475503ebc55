"""Logistic regression of results between 0 and 1, with errors that allow for results that share a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

from rpo.core.checks import Array
from rpo.core.errors import SolverFailed

STEPS = 100
DECREMENT = 1e-14
ROUNDING = 1e-12


def fit_logistic(design: Array, results: Array, clusters: Any) -> tuple[Array, Array]:
    """Return the maximum-likelihood coefficients (D,) and their covariance (D, D).

    design: (N, D), of full rank. results: (N,) in [0, 1]; 0.5 weighs as half a win and half a loss.
    clusters: (N,), equal for rows that are not independent. The covariance is the sandwich of the clusters'
    scores, times C / (C - 1) for C clusters, NaN for one. The caller makes sure that a maximum exists.
    Raises SolverFailed. Source: Papke and Wooldridge 1996; Liang and Zeger 1986.
    """
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
        raise SolverFailed(f"The logistic regression did not converge in {STEPS} Newton steps.")
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    count = int(groups.max()) + 1
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, groups, design * (results - p)[:, None])
    if count == 1:
        return estimate, np.full_like(hessian, np.nan)
    bread = np.linalg.inv(hessian)
    return estimate, bread @ (scores.T @ scores) @ bread * (count / (count - 1))


def _loss(logits: Array, results: Array) -> float:
    return float((np.logaddexp(0.0, logits) - results * logits).sum())
