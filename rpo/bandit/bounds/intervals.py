"""Intervals that go with a simulation of a bound: proportions, and slopes on a log-log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


@dataclass(frozen=True)
class Proportion:
    """successes out of trials, with an exact interval [low, high] at `level`."""

    successes: int
    trials: int
    level: float
    low: float
    high: float

    @property
    def estimate(self) -> float:
        """successes / trials."""
        return self.successes / self.trials


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Proportion:
    """Return a two-sided interval for a proportion that covers with at least `level`, whatever the truth.

    Source: Clopper and Pearson 1934, by quantiles of the beta distribution. Raises InvalidArgument.
    """
    total = checks.integer("trials", trials, minimum=1)
    hits = checks.integer("successes", successes, minimum=0, maximum=total)
    tail = (1.0 - checks.fraction("level", level)) / 2.0
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, total - hits + 1))
    high = 1.0 if hits == total else float(stats.beta.isf(tail, hits + 1, total - hits))
    return Proportion(hits, total, float(level), low, high)


@dataclass(frozen=True)
class Slope:
    """A straight line in log-log: slope in [low, high] at `level`, exp(intercept) n^slope.

    used, omitted: points in the fit, and points whose mean was under `min_ratio` standard errors.
    misfit: chi-squared over its degrees of freedom, about 1 for a straight line. scatter: standard
    deviation of log mean about the line, beyond the standard errors, that explains a larger misfit.
    """

    slope: float
    low: float
    high: float
    intercept: float
    level: float
    used: int
    omitted: int
    misfit: float
    scatter: float

    def predict(self, n: Any) -> Array:
        """Return the fitted line at n."""
        return np.exp(self.intercept) * checks.finite("n", n) ** self.slope


def loglog_slope(
    n: Sequence[float] | Array, means: Any, standard_errors: Any, *, level: float = 0.95, min_ratio: float = 3.0
) -> Slope:
    """Regress log mean on log n, weighted by the delta method: sd(log mean) = standard error / mean.

    n, means, standard_errors: (P,); the points must be independent draws. Points with mean below
    min_ratio standard errors carry no logarithm worth having: they are left out and counted. Where the
    points are further from the line than their errors (a bent curve), a common variance is added to
    all of them until chi-squared is P - 2, so that no point outweighs the bend by being precise
    (Paule and Mandel 1982). Interval: Student's t, P - 2 degrees of freedom. Raises InvalidArgument.
    """
    x = checks.finite("n", n, shape=(None,))
    y = checks.finite("means", means, shape=x.shape)
    se = checks.finite("standard_errors", standard_errors, shape=x.shape)
    level = checks.fraction("level", level)
    if (x <= 0).any() or (se <= 0).any():
        raise InvalidArgument(
            "n, standard_errors", expected="numbers > 0", got=min(x.min(), se.min()), remedy="Drop the points without."
        )
    keep = y > checks.nonnegative("min_ratio", min_ratio) * se
    if len(np.unique(x[keep])) < 3:
        raise InvalidArgument(
            "means",
            expected=f"at least 3 values of n whose mean exceeds {min_ratio:g} standard errors",
            got=len(np.unique(x[keep])),
            remedy="Use more seeds or smaller n.",
        )
    u, v, sd = np.log(x[keep]), np.log(y[keep]), se[keep] / y[keep]
    freedom = int(keep.sum()) - 2

    def fit(extra: float) -> tuple[float, float, float, float]:
        """Return slope, intercept, spread of u, chi-squared, with variance `extra` added."""
        w = 1.0 / (sd**2 + extra)
        centre = float(w @ u / w.sum())
        spread = float(w @ (u - centre) ** 2)
        slope = float(w @ ((u - centre) * v) / spread)
        intercept = float(w @ v / w.sum()) - slope * centre
        return slope, intercept, spread, float(w @ (v - intercept - slope * u) ** 2)

    misfit, extra = fit(0.0)[3] / freedom, 0.0
    if misfit > 1.0:
        most = max(float(np.var(v)) * v.size, 1e-300)
        # Errors far below the misfit make a steep function of it, on which a hundred steps are too few.
        extra = float(brentq(lambda t: fit(t)[3] - freedom, 0.0, most, xtol=1e-300, maxiter=10_000))
    slope, intercept, spread, _ = fit(extra)
    half = float(stats.t.isf((1.0 - level) / 2.0, freedom)) / math.sqrt(spread)
    return Slope(
        slope=slope,
        low=slope - half,
        high=slope + half,
        intercept=intercept,
        level=level,
        used=int(keep.sum()),
        omitted=int((~keep).sum()),
        misfit=misfit,
        scatter=math.sqrt(extra),
    )
