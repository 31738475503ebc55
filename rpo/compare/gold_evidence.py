"""What follows from a gold-reward experiment: tolerances, peaks, gaps, fitted laws, each for theory and transformer.

Shapes: X prompts, A responses; S seeds, P points of a curve.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
from scipy.special import entr

from rpo.bandit.bounds.intervals import clopper_pearson
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.gao import GaoFit
from rpo.plotting.overoptimization import KL, REFERENCE, REWARDS, fits

THEORY, TRAINED, ALL_DRAWS = "theory", "transformer", "theory, all draws"
BEST_OF_N = "best of n"
OUTCOMES = {"kl": KL, "gold": REWARDS[0], "proxy": REWARDS[1]}
COLUMNS = (
    *("source", "method", "beta", "n", "seed", *OUTCOMES.values(), "status", "tv", "tv/max"),
    *(f"difference/{name}" for name in OUTCOMES),
    *(f"bound/{name}" for name in OUTCOMES),
)
RESAMPLES = 1000
LEVEL = 0.95
ROUNDING = 1e-12


def outcome_bounds(variation: Array, problem: ContextualBandit, proxy: Array) -> dict[str, float]:
    r"""Return how far "kl", "gold" and "proxy" of two policies can be apart, given their total variation T, (X,).

    $|\langle p - q, f\rangle| \le T (\max f - \min f)$ for any f, hence for the rewards (proxy: (X, A)) and
    for $-\log\pi_{ref}$. Entropies differ by at most $h(T) + T \log(A - 1)$, h the binary entropy: p and q have a
    coupling that disagrees with probability T, and Fano's inequality bounds what one leaves open of the other.
    """
    apart = np.clip(variation, 0.0, 1.0)
    entropy = entr(apart) + entr(1.0 - apart) + apart * np.log(max(1, problem.num_responses - 1))
    by_prompt = {
        "kl": entropy + apart * np.ptp(problem.log_reference, axis=1),
        "gold": apart * np.ptp(problem.true_reward(), axis=1),
        "proxy": apart * np.ptp(proxy, axis=1),
    }
    return {name: float(problem.d0 @ value) for name, value in by_prompt.items()}


def by_source(frame: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Return the rows of theory and transformer on the draws trained on, and of theory on all draws."""
    theory, trained = (frame[frame["source"] == source] for source in (THEORY, TRAINED))
    return {THEORY: theory[theory["seed"].isin(trained["seed"])], TRAINED: trained, ALL_DRAWS: theory}


def methods(frame: pandas.DataFrame) -> list[str]:
    """Return the methods of a frame in their order, the reference left out."""
    return [name for name in dict.fromkeys(frame["method"]) if name != REFERENCE]


def path_of(method: str) -> str:
    """Return what a method's curve runs along, "beta" or "n"."""
    return "n" if method == BEST_OF_N else "beta"


def curve(rows: pandas.DataFrame, method: str) -> tuple[Array, Array, Array]:
    """Return (path, (P,); KL, (S, P); gold over the reference's, (S, P)) of a method, beta falling or n rising.

    rows: of one source.
    """
    along = path_of(method)
    anchor = rows[rows["method"] == REFERENCE].set_index("seed")[OUTCOMES["gold"]]
    mine = rows[rows["method"] == method]
    kl, gold = (mine.pivot(index="seed", columns=along, values=OUTCOMES[name]) for name in ("kl", "gold"))
    order = sorted(kl.columns, reverse=along == "beta")
    return np.array(order), kl[order].to_numpy(), gold[order].sub(anchor.loc[gold.index], axis=0).to_numpy()


def peak(rows: pandas.DataFrame, method: str, *, resamples: int = RESAMPLES, rng: Any) -> dict[str, Any]:
    """Return where the mean gold curve is largest on its grid, and how far it falls from there to its end.

    "at": the beta or n; "kl", "gold" (over the reference's) there; "fall"; their intervals at 95 % by bootstrap
    over seeds, the peak being picked again in every resample; "overoptimizes": whether the fall's excludes zero.
    """
    path, kl, gold = curve(rows, method)
    seeds = len(gold)
    counts = checks.generator("rng", rng).multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples) / seeds
    resampled_kl, resampled = counts @ kl, counts @ gold
    top = resampled.argmax(axis=1)
    tail = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    where = np.quantile(resampled_kl[np.arange(resamples), top], tail)
    falls = np.quantile(resampled.max(axis=1) - resampled[:, -1], tail)
    mean = gold.mean(axis=0)
    best = int(mean.argmax())
    return {
        "along": path_of(method),
        "at": float(path[best]),
        "kl": float(kl.mean(axis=0)[best]),
        "kl_interval": where.tolist(),
        "gold": float(mean[best]),
        "fall": float(mean[best] - mean[-1]),
        "fall_interval": falls.tolist(),
        "overoptimizes": bool(falls[0] > 0),
        "seeds": seeds,
    }


def gaps(rows: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return gold of every RPO minus gold of DPO at each beta: mean over seeds and its paired standard error."""
    path, _, plain = curve(rows, "DPO")
    found = []
    for method in methods(rows):
        if method in ("DPO", BEST_OF_N):
            continue
        difference = curve(rows, method)[2] - plain
        error = difference.std(axis=0, ddof=1) / np.sqrt(len(difference))
        found += [
            {"method": method, "beta": float(beta), "gap": float(mean), "standard_error": float(spread)}
            for beta, mean, spread in zip(path, difference.mean(axis=0), error, strict=True)
        ]
    return found


def agreement(frame: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """Return, a method, the largest distances of the transformers' outcomes from the exact ones, and tolerances.

    "within": whether every difference is under its own bound from the total variation (`outcome_bounds`).
    """
    found: dict[str, dict[str, Any]] = {}
    trained = frame[frame["source"] == TRAINED]
    for method in methods(frame):
        rows = trained[trained["method"] == method]
        entry: dict[str, Any] = {
            "points": len(rows),
            "converged": int((rows["status"] != "not_converged").sum()),
            "max_total_variation": float(rows["tv/max"].max()),
        }
        within = True
        for name in OUTCOMES:
            apart, bound = rows[f"difference/{name}"].abs(), rows[f"bound/{name}"]
            within = within and bool((apart <= bound + ROUNDING).all())
            entry |= {f"max_difference/{name}": float(apart.max()), f"max_bound/{name}": float(bound.max())}
        found[method] = entry | {"within": within}
    return found


def gao_laws(frame: pandas.DataFrame, *, resamples: int = RESAMPLES, rng: Any) -> dict[str, dict[str, GaoFit]]:
    """Return each method's law by source, the closer of the two on the exact curve of all draws, for all sources."""
    child = checks.generator("rng", rng).spawn(1)[0]
    key = int(child.integers(2**31))  # one stream for every source: the same seeds are resampled
    sources = by_source(frame)
    found: dict[str, dict[str, GaoFit]] = {name: {} for name in sources}
    for method in methods(frame):
        form = "closest"
        for name in (ALL_DRAWS, THEORY, TRAINED):
            rows = sources[name][sources[name]["method"].isin([method, REFERENCE])]
            fit = fits(rows, path=path_of(method), form=form, resamples=resamples, rng=key)[method]
            found[name][method], form = fit, fit.form
    return found


def sampled_coverage(sampled: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """Return, an estimator, how often its 95 % interval held the exact KL, with an exact binomial interval."""
    found = {}
    for estimator, rows in sampled.groupby("estimator", sort=False):
        share = clopper_pearson(int(rows["covered"].sum()), len(rows))
        found[str(estimator)] = {
            "covered": share.successes,
            "trials": share.trials,
            "share": share.estimate,
            "interval": [share.low, share.high],
        }
    return found


def evidence(frame: pandas.DataFrame, sampled: pandas.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Return all of the above: "agreement", "peaks", "gaps" and "gao" by source, "sampled_kl", "not_certified"."""
    sources = by_source(frame)
    return {
        "agreement": agreement(frame),
        "peaks": {
            name: {method: peak(rows, method, rng=seed) for method in methods(frame)} for name, rows in sources.items()
        },
        "gaps": {name: gaps(rows) for name, rows in sources.items()},
        "gao": {
            name: {method: fit.to_dict() for method, fit in laws.items()}
            for name, laws in gao_laws(frame, rng=seed).items()
        },
        "sampled_kl": sampled_coverage(sampled),
        "not_certified": int((frame["status"] == "inaccurate").sum()),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "bootstrap_seed": seed,
    }
