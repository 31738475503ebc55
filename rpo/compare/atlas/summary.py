"""What the atlas says: of every entrant on every instance, who overoptimises, where and why, in one table.

Curves are means over seeds along an entrant's path; intervals are a bootstrap over the seeds, which all entrants share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.compare.atlas.entrants import Entrant
from rpo.compare.atlas.pull import found_pull
from rpo.compare.atlas.run import Atlas
from rpo.core.checks import Array

if TYPE_CHECKING:
    import pandas

DRAWS = 1000
MATCHED = (0.25, 0.5, 1.0)  # nats of KL at which methods are held against one another
AGAINST = "DPO"
NORMAL_95 = 1.96


def summary(made: Atlas) -> pandas.DataFrame:
    """Return one row per instance and entrant.

    gold at the peak, KL there, gold at the path's end and KL there; drop: the fall from a peak chosen on half of
    the seeds, measured on the other half, both ways, with a 95 % interval (`drop/low`, `drop/high`). proxy, over
    and its three parts, mass/unseen and displacement at the end. default/...: at the knob's default. gold@KL: where
    the curve passes that KL, NaN where it does not; `gold-DPO@KL` with its interval. certified, stationary: shares
    of the policies. pull: predicted and found.
    """
    import pandas

    rng = np.random.default_rng(0)
    resamples = rng.multinomial(made.seeds, np.full(made.seeds, 1.0 / made.seeds), size=DRAWS) / made.seeds
    pulls = {one.name: found_pull(one.at(one.mild)) for one in made.entrants}
    rows = []
    for i, instance in enumerate(made.instances):
        against = _matched(made, i, AGAINST, resamples)
        for e, entrant in enumerate(made.entrants):
            if np.isnan(made.table[i, e]).all():  # it does not read what this instance has
                continue
            row = {
                "instance": instance.name,
                "method": entrant.name,
                "knob": entrant.knob,
                **_path(made, i, e, resamples),
            }
            row |= _at_default(made, i, e, entrant)
            mine = _matched(made, i, entrant.name, resamples)
            for kl in MATCHED:
                row[f"gold@{kl:g}"] = mine[kl][0]
                difference = mine[kl] - against[kl] if AGAINST in _names(made) else np.full(1 + DRAWS, np.nan)
                row |= _spread(f"gold-{AGAINST}@{kl:g}", difference)
            evidence = made.measure(i, e, "evidence")
            evidence = evidence[np.isfinite(evidence)]
            row |= {"certified": float(np.mean(evidence == 2.0)), "stationary": float(np.mean(evidence == 1.0))}
            row |= {"pull/predicted": entrant.pull, "pull/found": pulls[entrant.name]}
            rows.append(row)
    return pandas.DataFrame(rows)


def curve(made: Atlas, instance: int, entrant: int, name: str, weights: Array | None = None) -> Array:
    """Return a measure's mean over seeds along the path, (K,), or (B, K) under resampling weights (B, S)."""
    values = made.measure(instance, entrant, name)
    here = np.isfinite(values)
    if weights is None:
        count = here.sum(axis=1)
        total = np.where(here, values, 0.0).sum(axis=1)
        return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return np.asarray((weights @ np.where(here, values, 0.0).T) / np.maximum(weights @ here.T, 1e-12))


def _path(made: Atlas, i: int, e: int, resamples: Array) -> dict[str, Any]:
    kl, gold = (curve(made, i, e, name) for name in ("kl", "gold"))
    peak = int(np.argmax(gold))
    again = curve(made, i, e, "gold", resamples)
    row = {"peak": gold[peak], "peak/kl": kl[peak], "end": gold[-1], "end/kl": kl[-1]}
    row |= fall(made.measure(i, e, "gold"))
    row["proxy"] = curve(made, i, e, "proxy")[-1]
    row |= _spread("over", np.r_[row["proxy"] - gold[-1], curve(made, i, e, "proxy", resamples)[:, -1] - again[:, -1]])
    ends = ("over/unseen", "over/rare", "over/often", "mass/unseen", "displacement", "binding")
    return row | {name: curve(made, i, e, name)[-1] for name in ends}


def fall(gold: Array) -> dict[str, float]:
    """Return how far gold (K, S) falls from its peak to the path's end, with its normal 95 % interval.

    The largest of K means is above its own expectation, so the peak is chosen on every other seed and the fall measured
    on the rest, and the other way round: where nothing falls the mean is zero or below.
    """
    seeds = np.arange(gold.shape[1])
    falls = []
    for half in (seeds % 2 == 0, seeds % 2 == 1):
        means = np.nanmean(gold[:, ~half], axis=1) if (~half).any() else np.full(len(gold), np.nan)
        if np.isfinite(means).any():
            falls.append(gold[int(np.nanargmax(means)), half] - gold[-1, half])
    found = np.concatenate(falls) if falls else np.zeros(0)
    found = found[np.isfinite(found)]
    mean = float(found.mean()) if found.size else float("nan")
    error = NORMAL_95 * float(found.std(ddof=1)) / np.sqrt(found.size) if found.size > 1 else float("nan")
    return {"drop": mean, "drop/low": mean - error, "drop/high": mean + error}


def _at_default(made: Atlas, i: int, e: int, entrant: Entrant) -> dict[str, float]:
    if entrant.default is None:
        return {"default": np.nan, "default/kl": np.nan, "default/gold": np.nan}
    k = entrant.values.index(entrant.default)
    found = {name: float(curve(made, i, e, name)[k]) for name in ("kl", "gold")}
    return {"default": entrant.default, "default/kl": found["kl"], "default/gold": found["gold"]}


def _matched(made: Atlas, i: int, name: str, resamples: Array) -> dict[float, Array]:
    """Return gold where the curve passes each KL, (1 + B,), of all seeds, then resamples; NaN where it does not."""
    if name not in _names(made):
        return {kl: np.full(1 + len(resamples), np.nan) for kl in MATCHED}
    e = _names(made).index(name)
    weights = np.vstack([np.full(made.seeds, 1.0 / made.seeds), resamples])
    kl, gold = (curve(made, i, e, measure, weights) for measure in ("kl", "gold"))
    return {at: np.array([_crossing(*pair, at) for pair in zip(kl, gold, strict=True)]) for at in MATCHED}


def _crossing(kl: Array, gold: Array, at: float) -> float:
    """Return gold, linear between the first two neighbours on the path on either side of a KL."""
    passes = np.flatnonzero((kl[:-1] - at) * (kl[1:] - at) <= 0)
    if not passes.size:
        return float("nan")
    k = int(passes[0])
    share = 0.0 if kl[k + 1] == kl[k] else (at - kl[k]) / (kl[k + 1] - kl[k])
    return float(gold[k] + share * (gold[k + 1] - gold[k]))


def _spread(name: str, values: Array) -> dict[str, float]:
    """Return the first value and the middle 95 % of the others, NaN where a twentieth of them is not there."""
    rest = values[1:]
    if not np.isfinite(values[0]) or np.isfinite(rest).mean() < 0.95:
        return {name: float(values[0]), f"{name}/low": float("nan"), f"{name}/high": float("nan")}
    low, high = np.nanquantile(rest, [0.025, 0.975])
    return {name: float(values[0]), f"{name}/low": float(low), f"{name}/high": float(high)}


def _names(made: Atlas) -> list[str]:
    return [one.name for one in made.entrants]
