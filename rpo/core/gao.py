r"""Gold reward against distance from the reference: the two laws of Gao, Schulman and Hilton, with intervals.

With $d = \sqrt{KL(\pi \Vert \pi_{ref})}$ and gold measured from the reference policy's gold:
$d(\alpha - \gamma d)$ for best-of-n and $d(\alpha - \gamma \log d)$ for policy optimisation.
Shapes: P points of a curve, S seeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, norm, t

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

FORMS = ("best_of_n", "policy")
MINIMUM_POINTS = 3
RANK_TOLERANCE = 1e-12
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GaoFit:
    """A fitted law with its evidence; every interval at confidence `level`.

    form: "best_of_n" or "policy". alpha, gamma: reward per sqrt(nat) and, for "best_of_n", per nat.
    peak: d at which the law is largest, sqrt(nats); inf where it never turns; peak_kl = peak^2, nats;
    peak_gold: its value there. The end of an interval may be 0 or inf: the data do not bound it on
    that side. observed: the smallest and largest d > 0 fitted. status: "peak", "peak_outside_range",
    "gamma_uncertain" (gamma's interval includes zero) or "no_peak"; message: one sentence.
    interval_method: "least squares, Fieller" (independent points) or "bootstrap over seeds".
    chi_square, p_value: lack of fit where standard errors were given (NaN otherwise).
    """

    form: str
    alpha: float
    gamma: float
    alpha_interval: Interval
    gamma_interval: Interval
    peak_interval: Interval
    level: float
    observed: Interval
    points: int
    residual: float
    chi_square: float
    p_value: float
    interval_method: str
    resamples: int = 0

    @property
    def peak(self) -> float:
        """d at the peak, sqrt(nats): alpha / (2 gamma), or exp(alpha / gamma - 1); inf where gamma <= 0."""
        return _peak(self.form, self.alpha, self.gamma)

    @property
    def peak_kl(self) -> float:
        """KL at the peak, nats."""
        return self.peak**2

    @property
    def peak_gold(self) -> float:
        """Gold over the reference's at the peak, reward units."""
        return float(self.predict(self.peak_kl)) if np.isfinite(self.peak) else float("inf")

    @property
    def status(self) -> str:
        """One word for what the fit says about a peak."""
        if self.gamma <= 0 or not np.isfinite(self.peak):
            return "no_peak"
        if self.gamma_interval[0] <= 0 <= self.gamma_interval[1]:
            return "gamma_uncertain"
        inside = self.observed[0] <= self.peak <= self.observed[1]
        return "peak" if inside else "peak_outside_range"

    @property
    def message(self) -> str:
        """One sentence for a reader."""
        low, high = self.peak_interval
        where = f"KL = {self.peak_kl:.3g} nats ({100 * self.level:g} % interval {low**2:.3g} to {high**2:.3g})"
        return {
            "peak": f"Gold peaks at {where}.",
            "peak_outside_range": f"The fitted peak, {where}, lies outside the observed KL of "
            f"{self.observed[0] ** 2:.3g} to {self.observed[1] ** 2:.3g}: an extrapolation.",
            "gamma_uncertain": f"gamma's interval includes zero: no evidence of a peak (fitted at {where}).",
            "no_peak": "gamma <= 0: the fitted gold rises without a peak.",
        }[self.status]

    def predict(self, kl: Any) -> Array:
        """Return gold over the reference's at these KL (any shape, nats), in reward units."""
        return np.asarray(_design(self.form, np.sqrt(checks.finite("kl", kl))) @ (self.alpha, self.gamma))

    def to_dict(self) -> dict[str, Any]:
        """Return every number a record stores."""
        derived = ("peak", "peak_kl", "peak_gold", "status", "message")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def fit_gao(
    kl: Any, gold: Any, *, form: str, reference_gold: float = 0.0, standard_error: Any = None, level: float = 0.95
) -> GaoFit:
    r"""Fit the law by (weighted) least squares to independent points.

    kl, gold: (P,), KL in nats and gold in reward units. reference_gold: gold at KL = 0, subtracted.
    standard_error: (P,), > 0: weights 1 / se^2 and a normal interval; None: equal weights, error
    variance from the residuals, Student's t. The peak's interval is Fieller's for alpha / gamma,
    exact for normal errors, of which both peaks are increasing functions. Points along one path share
    their seeds and are not independent: use `bootstrap_gao` there. Raises InvalidArgument.
    Source: Gao, Schulman, Hilton 2023, Section 3.1.
    """
    checks.one_of("form", form, FORMS)
    confidence = checks.fraction("level", level)
    kl = _distances(kl, shape=(None,))
    y = checks.finite("gold", gold, shape=kl.shape) - float(checks.finite("reference_gold", reference_gold, shape=()))
    errors = None
    if standard_error is not None:
        errors = checks.finite("standard_error", standard_error, shape=kl.shape)
        if (errors <= 0).any():
            raise InvalidArgument(
                "standard_error", expected="entries > 0", got=errors.min(), remedy="Drop the points known exactly."
            )
    moving = kl > 0  # both laws are 0 at d = 0, whatever alpha and gamma
    d, y = np.sqrt(kl[moving]), y[moving]
    errors = None if errors is None else errors[moving]
    _enough(form, d)
    estimate, covariance, residuals = _least_squares(_design(form, d), y, errors)
    freedom = d.size - 2
    quantile = norm.ppf(0.5 + confidence / 2) if errors is not None else t.ppf(0.5 + confidence / 2, freedom)
    half = quantile * np.sqrt(np.diag(covariance))
    square = float((residuals**2).sum()) if errors is not None else float("nan")
    ratio = _fieller(estimate, covariance, float(quantile))
    return GaoFit(
        form=form,
        alpha=float(estimate[0]),
        gamma=float(estimate[1]),
        alpha_interval=(float(estimate[0] - half[0]), float(estimate[0] + half[0])),
        gamma_interval=(float(estimate[1] - half[1]), float(estimate[1] + half[1])),
        peak_interval=(_peak_of_ratio(form, ratio[0]), _peak_of_ratio(form, ratio[1])),
        level=confidence,
        observed=(float(d.min()), float(d.max())),
        points=int(d.size),
        residual=float(np.sqrt((residuals**2).mean())) if errors is None else _unweighted(residuals, errors),
        chi_square=square,
        p_value=float(chi2.sf(square, freedom)) if errors is not None else float("nan"),
        interval_method="least squares, Fieller",
    )


def bootstrap_gao(
    kl: Any, gold: Any, *, form: str, reference_gold: Any = 0.0, level: float = 0.95, resamples: int = 1000, rng: Any
) -> GaoFit:
    """Fit the law to the mean curve over seeds, with percentile intervals from resampled seeds.

    kl, gold: (S, P): row s is the curve of seed s, so points that share a seed stay together.
    reference_gold: scalar or (S,), gold at KL = 0, subtracted. A resample whose gamma <= 0 has its
    peak at infinity. rng: Generator, SeedSequence or int. Raises InvalidArgument.
    """
    checks.one_of("form", form, FORMS)
    confidence = checks.fraction("level", level)
    count = checks.integer("resamples", resamples, minimum=20)
    kl = _distances(kl, shape=(None, None))
    seeds = kl.shape[0]
    if seeds < 2:
        raise InvalidArgument("kl", expected="at least two seeds (rows)", got=seeds, remedy="Use fit_gao for one.")
    reference = checks.finite("reference_gold", reference_gold)
    if reference.ndim:
        checks.has_shape("reference_gold", reference, (seeds,))
    reference = np.broadcast_to(reference, (seeds,))
    y = checks.finite("gold", gold, shape=kl.shape) - reference[:, None]
    draws = checks.generator("rng", rng).integers(seeds, size=(count, seeds))
    weights = np.stack([np.bincount(row, minlength=seeds) for row in draws]) / seeds
    mean_kl, mean_y = kl.mean(axis=0), y.mean(axis=0)
    plain = fit_gao(mean_kl, mean_y, form=form, level=confidence)
    fitted = np.empty((count, 2))
    for index, (k, g) in enumerate(zip(weights @ kl, weights @ y, strict=True)):
        moving = k > 0
        fitted[index] = _least_squares(_design(form, np.sqrt(k[moving])), g[moving], None)[0]
    peaks = np.array([_peak(form, a, g) for a, g in fitted])
    tail = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    intervals = np.quantile(fitted, tail, axis=0)
    # "lower" and "higher" never average a finite peak with an infinite one.
    low = np.quantile(peaks, tail[0], method="lower")
    high = np.quantile(peaks, tail[1], method="higher")
    return GaoFit(
        **{
            **asdict(plain),
            "alpha_interval": (float(intervals[0, 0]), float(intervals[1, 0])),
            "gamma_interval": (float(intervals[0, 1]), float(intervals[1, 1])),
            "peak_interval": (float(low), float(high)),
            "interval_method": "bootstrap over seeds",
            "resamples": count,
        }
    )


def _design(form: str, d: Array) -> Array:
    """Return (..., 2): the law is design @ (alpha, gamma). d log d is 0 at d = 0."""
    second = d**2 if form == "best_of_n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -second], axis=-1)


def _peak(form: str, alpha: float, gamma: float) -> float:
    """Return the d of the largest value, in closed form; inf where gamma <= 0."""
    return _peak_of_ratio(form, alpha / gamma) if gamma > 0 else float("inf")


def _peak_of_ratio(form: str, ratio: float) -> float:
    """Return d as a function of alpha / gamma, at least zero."""
    with np.errstate(over="ignore"):
        return max(0.0, ratio / 2.0) if form == "best_of_n" else float(np.exp(ratio - 1.0))


def _least_squares(design: Array, y: Array, errors: Array | None) -> tuple[Array, Array, Array]:
    """Return estimate (2,), covariance (2, 2) and residuals (P,), these divided by the errors where given."""
    scale = np.ones(y.size) if errors is None else errors
    x, target = design / scale[:, None], y / scale
    inverse = np.asarray(np.linalg.inv(x.T @ x), dtype=np.float64)
    estimate = inverse @ (x.T @ target)
    residuals = target - x @ estimate
    variance = 1.0 if errors is not None else float((residuals**2).sum() / max(1, y.size - 2))
    return estimate, variance * inverse, residuals


def _unweighted(residuals: Array, errors: Array) -> float:
    return float(np.sqrt(((residuals * errors) ** 2).mean()))


def _fieller(estimate: Array, covariance: Array, quantile: float) -> Interval:
    """Return Fieller's set for alpha / gamma; (-inf, inf) unless gamma differs from zero at this level.

    It is { rho : (alpha - rho gamma)^2 <= q^2 var(alpha - rho gamma) }, an interval exactly then.
    """
    a, g = estimate
    square = quantile**2
    lead = g**2 - square * covariance[1, 1]
    if g <= 0 or lead <= 0:
        return (-np.inf, np.inf)
    middle = a * g - square * covariance[0, 1]
    root = np.sqrt(max(0.0, middle**2 - lead * (a**2 - square * covariance[0, 0])))
    return (float((middle - root) / lead), float((middle + root) / lead))


def _distances(kl: Any, *, shape: tuple[None, ...]) -> Array:
    values = checks.finite("kl", kl, shape=shape)
    if (values < 0).any():
        raise InvalidArgument(
            "kl", expected="entries >= 0 (nats)", got=values.min(), remedy="Clip sampled estimates at zero."
        )
    return values


def _enough(form: str, d: Array) -> None:
    if np.unique(d).size < MINIMUM_POINTS:
        raise InvalidArgument(
            "kl",
            expected=f"at least {MINIMUM_POINTS} different values > 0",
            got=f"{np.unique(d).size}",
            remedy="Two parameters and their errors need more points.",
        )
    singular = np.linalg.svd(_design(form, d), compute_uv=False)
    if singular[-1] <= RANK_TOLERANCE * singular[0]:
        raise InvalidArgument(
            "kl", expected="values spread over a range", got=f"{d.min() ** 2} to {d.max() ** 2}", remedy="Widen it."
        )
