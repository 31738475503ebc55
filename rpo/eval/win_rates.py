r"""How often one model's responses are preferred to another's: the rate, its intervals, and the rate at equal length.

Shapes: N pairs of responses, whose results are 1 for a win of the first model, 0.5 for a tie, 0 for a loss,
or means of such. Pairs with the same prompt are not independent: intervals treat prompts as the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, SolverFailed
from rpo.eval.logistic import clusters, fit_logistic
from rpo.eval.planning import Pair
from rpo.eval.verdicts import canonical

Interval = tuple[float, float]
UNKNOWN = (float("nan"), float("nan"))
EQUAL = 1e-6  # a range of tanh that rounding may blur
ANYTHING = math.log(99) / 1.96  # standard error of even log-odds whose 95 % interval is 1 % to 99 %


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """The mean result with two intervals at confidence `level`; wins are results over 0.5, ties 0.5, losses under.

    message: why an interval is missing (NaN), or "".
    """

    rate: float
    wilson: Interval
    bootstrap: Interval
    wins: int
    ties: int
    losses: int
    prompts: int
    level: float
    resamples: int
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """The rate at equal length. length_effect: log-odds a unit of tanh; std: of the length difference, in characters.

    message: why there is no rate or no interval (NaN), or "".
    """

    rate: float
    interval: Interval
    length_effect: float
    std: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models. rates: of model_a against model_b; NaN where no pair has a result. undecided: pairs without one."""

    model_a: str
    model_b: str
    win: WinRate
    length_controlled: LengthControlled
    undecided: int

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores."""
        return asdict(self)


def win_rate(
    results: Any, prompts: Sequence[Any] | None = None, *, level: float = 0.95, resamples: int = 2000, rng: Any
) -> WinRate:
    """Return the mean of N results with its Wilson and bootstrap intervals.

    prompts: (N,), equal for pairs of the same prompt; None: all different. Wilson's interval is taken at the
    mean with the number of prompts as sample size. A tie counts as half a win there, as if it were drawn by a
    coin: no result between 0 and 1 varies more than a coin of its mean, so ties make it wider than it need be,
    never too narrow. The bootstrap draws prompts, with all their pairs, and takes percentiles; it uses what
    ties save, but is too narrow for few prompts. One prompt has neither interval, results that all agree no
    bootstrap. rng: Generator, SeedSequence or int. Raises InvalidArgument. Source: Wilson 1927; Efron 1979.
    """
    y = _results(results)
    confidence = checks.fraction("level", level)
    draws = checks.integer("resamples", resamples, minimum=20)
    generator = checks.generator("rng", rng)
    groups = clusters(prompts, y.size)
    counts = np.bincount(groups)
    sums = np.bincount(groups, weights=y)
    means = np.empty(draws)
    for index in range(draws):
        chosen = generator.integers(counts.size, size=counts.size)
        means[index] = sums[chosen].sum() / counts[chosen].sum()
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    rate = float(y.mean())
    alone, agree = counts.size == 1, float(np.ptp(y)) == 0
    message = f"all results are {rate:g}, so resampling them shows no spread" if agree else ""
    return WinRate(
        rate=rate,
        wilson=UNKNOWN if alone else wilson(rate, counts.size, level=confidence),
        bootstrap=UNKNOWN if alone or agree else (float(low), float(high)),
        message="one prompt cannot show how much prompts differ" if alone else message,
        wins=int((y > 0.5).sum()),
        ties=int((y == 0.5).sum()),
        losses=int((y < 0.5).sum()),
        prompts=int(counts.size),
        level=confidence,
        resamples=draws,
    )


def wilson(rate: float, n: int, *, level: float = 0.95) -> Interval:
    r"""Return Wilson's interval for a share `rate` of `n`.

    With $z$ the normal quantile, $(\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}) / (1 + z^2/n)$.
    """
    rate = float(_results([rate])[0])
    n = checks.integer("n", n, minimum=1)
    z = float(norm.ppf(0.5 + checks.fraction("level", level) / 2))
    share = z**2 / n
    middle = (rate + share / 2) / (1 + share)
    half = z * np.sqrt(rate * (1 - rate) / n + share / (4 * n)) / (1 + share)
    return (max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def length_controlled_win_rate(
    results: Any, differences: Any, prompts: Sequence[Any] | None = None, *, level: float = 0.95
) -> LengthControlled:
    r"""Return the win rate predicted at equal length: $\sigma(\theta)$ of a logistic regression.

    $P(\text{win}) = \sigma(\theta + \phi \tanh(\Delta / s))$, with $\Delta$ (N,) `differences`, the first model's
    length less the second's, and $s$ their standard deviation. The interval is normal in $\theta$, with errors
    clustered by prompt. As AlpacaEval 2's rate, except that theirs has a term for each instruction's difficulty
    (estimated from many models, which a user does not have), an L1 penalty chosen by cross-validation, and
    extra rows of a baseline made longer and shorter; so the numbers are not interchangeable. Nothing is
    predicted, and the message says why, where lengths differ equally in every pair, tell all wins from all
    losses, or lie so far from equal that a normal 95 % interval, were the results coins, would reach from
    under 1 % to over 99 %. Raises InvalidArgument. Source: Dubois et al. 2024, Section 3.
    """
    y = _results(results)
    confidence = checks.fraction("level", level)
    difference = checks.finite("differences", differences, shape=(y.size,))
    groups = clusters(prompts, y.size)
    std = float(difference.std(ddof=1)) if y.size > 1 else 0.0
    x = np.tanh(difference / std) if std > 0 else np.zeros_like(difference)
    fitted, message = None, _unpredictable(x, y)
    if not message:
        try:
            fitted = fit_logistic(np.stack([np.ones_like(x), x], axis=1), y, groups)
        except SolverFailed as error:
            message = str(error)
        else:
            if not 0 < fitted.coins[0, 0] <= ANYTHING**2:
                message = "the lengths are so far from equal, and so alike, that the rate could be anything"
    if fitted is None or message:
        return LengthControlled(rate=UNKNOWN[0], interval=UNKNOWN, length_effect=UNKNOWN[0], std=std, message=message)
    theta, effect = map(float, fitted.estimate)
    (half,), message = fitted.half_widths(np.eye(2)[:1], confidence)
    return LengthControlled(
        rate=float(expit(theta)),
        interval=(float(expit(theta - half)), float(expit(theta + half))),
        length_effect=effect,
        std=std,
        message=message,
    )


def compare_models(
    pairs: Sequence[Pair], results: Any, *, level: float = 0.95, resamples: int = 2000, rng: Any
) -> list[Comparison]:
    """Return a comparison of every two models that meet in `pairs`, in the order in which they do.

    results: (N,), NaN where a pair has none: such pairs are counted, and left out. Lengths are in characters.
    rng: Generator, SeedSequence or int. Raises InvalidArgument.
    """
    pairs = checks.instances("pairs", pairs, Pair)
    values = checks.numbers("results", results).astype(np.float64)
    checks.has_shape("results", values, (len(pairs),))
    rows: dict[tuple[str, str], list[tuple[float, int, str]]] = {}
    for pair, value in zip(pairs, values.tolist(), strict=True):
        names, difference = (pair.model_a, pair.model_b), len(pair.response_a) - len(pair.response_b)
        if names[::-1] in rows:
            names, value, difference = names[::-1], 1.0 - value, -difference
        rows.setdefault(names, []).append((value, difference, canonical(pair.prompt)))
    children = checks.generator("rng", rng).spawn(len(rows))
    found = []
    for (names, here), child in zip(rows.items(), children, strict=True):
        known = [row for row in here if row[0] == row[0]]
        if not known:
            raise InvalidArgument(
                "results",
                expected=f"a result for {names[0]} against {names[1]}",
                got=f"none in {len(here)} pairs",
                remedy="Continue the judging first.",
            )
        y, lengths, prompts = zip(*known, strict=True)
        found.append(
            Comparison(
                model_a=names[0],
                model_b=names[1],
                win=win_rate(y, prompts, level=level, resamples=resamples, rng=child),
                length_controlled=length_controlled_win_rate(y, lengths, prompts, level=level),
                undecided=len(here) - len(known),
            )
        )
    return found


def _results(results: Any) -> Array:
    y = checks.finite("results", results, shape=(None,))
    if not y.size or y.min() < 0 or y.max() > 1:
        raise InvalidArgument(
            "results",
            expected="at least one number, each in [0, 1]",
            got=f"{y.min()} to {y.max()}" if y.size else "none",
            remedy="1 is a win of the first model, 0.5 a tie, 0 a loss.",
        )
    return y


def _unpredictable(x: Array, y: Array) -> str:
    """Return why the likelihood has no single maximum, or "" where it has (Albert and Anderson 1984, one covariate)."""
    if np.ptp(x) < EQUAL:
        return "the lengths differ equally in every pair, so nothing tells length from quality"
    won, lost = x[y > 0], x[y < 1]
    if not won.size or not lost.size:
        return "one model won every pair, so the rate has no estimate inside (0, 1)"
    if won.min() >= lost.max() or lost.min() >= won.max():
        return "the lengths alone tell wins from losses, so nothing tells length from quality"
    return ""
