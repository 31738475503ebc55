"""Zhu's four arms: greedy maximum likelihood stays suboptimal at every N, RPO and pessimistic MLE do not.

`python benchmarks/zhu.py` writes results/zhu.json (settings, slopes, evidence) and results/zhu.csv (one row a
method and N); `--smoke` is a small run that writes to --output only. Source: Zhu, Jordan, Jiao 2023, Theorem 3.9.

The design has one free outcome beside the number of wins of arm 1, so the data of different seeds are often
the same table: each distinct table is solved once, by the same calls a user would make, and certified.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from rpo.bandit import instances, solve
from rpo.bandit.baselines.pessimism import PessimisticMLE
from rpo.bandit.baselines.plain import Greedy
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.instances import FixedDesign
from rpo.bandit.reward_class import LinearBall
from rpo.core.objectives import RPO
from rpo.core.records import environment, write_json

RADIUS = 2.0  # of the theta ball
DELTA = 0.05
RESAMPLES = 2000
TAIL = 3e4  # beyond it arms 3 and 4, 0.1 apart, are told apart and only the lone comparison is left
METHODS = ("greedy", "rpo", "pessimistic_wald", "pessimistic_paper", "rpo_base_chosen")
ABOUT = {
    "greedy": "argmax of the maximum-likelihood reward in the theta ball",
    "rpo": "maximin in the theta ball, beta = eta = N^-1/2, pi_base = arm 3 (covered)",
    "pessimistic_wald": "v = arm 3, lambda = 1/N, radius = 2 sqrt(chi2_2(0.95) / N): 95 % ellipsoid at zero margins",
    "pessimistic_paper": "v = arm 3, lambda = 1/N, the paper's radius at C = 1, delta = 0.05",
    "rpo_base_chosen": "control: RPO as above with pi_base = chosen responses, against which arm 4 is not covered",
}
Solved = tuple[float, bool, float]


def run_method(method: str, problem: FixedDesign, data: PreferenceCounts) -> Solved:
    """Return (gap to the best arm, certified, the evidence: relative gap or tv_bound)."""
    n, ball, arm3 = data.n, LinearBall(problem.features, RADIUS), instances.zhu_base()  # type: ignore[arg-type]
    if method.startswith("rpo"):
        custom = method == "rpo"
        found = solve(
            problem,
            data,
            RPO(beta=n**-0.5, eta=n**-0.5, base="custom" if custom else "chosen"),
            reward_class=ball,
            base_policy=arm3 if custom else None,
            method="newton",
        )
        return problem.suboptimality(found.policy), found.status == "certified", found.certificate.tv_bound
    baseline: Any = Greedy(reward_class=ball)
    if method.startswith("pessimistic"):
        wald = 2.0 * float(np.sqrt(chi2.ppf(1.0 - DELTA, 2) / n))
        radius = wald if method == "pessimistic_wald" else None
        baseline = PessimisticMLE(reward_class=ball, radius=radius, delta=DELTA, base_policy=arm3)
    result = solve(problem, data, baseline)
    key = "gap" if "gap" in result.evidence else "relative_gap"
    return problem.suboptimality(result.policy), result.status == "certified", result.evidence[key]


def simulate(sizes: list[int], seeds: int, rng: np.random.SeedSequence, say: Callable[[str], None]) -> dict[str, Any]:
    """Return, for every method, gaps (len(sizes), seeds), the number not certified and the worst evidence."""
    gaps = {method: np.zeros((len(sizes), seeds)) for method in METHODS}
    uncertified, worst, distinct = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0), []
    for row, (n, seed) in enumerate(zip(sizes, rng.spawn(len(sizes)), strict=True)):
        problem = instances.zhu_four_arms(n=n, radius=RADIUS)
        cache: dict[bytes, dict[str, Solved]] = {}
        for column, child in enumerate(seed.spawn(seeds)):
            data = problem.sample_preferences(n, rng=child)
            key = data.wins().tobytes()
            if key not in cache:
                cache[key] = {method: run_method(method, problem, data) for method in METHODS}
            for method, (gap, certified, evidence) in cache[key].items():
                gaps[method][row, column] = gap
                uncertified[method] += not certified
                worst[method] = max(worst[method], evidence)
        distinct.append(len(cache))
        say(
            f"N = {n:>8}: {len(cache)} distinct tables, " + ", ".join(f"{m} {gaps[m][row].mean():.2e}" for m in METHODS)
        )
    return {"gaps": gaps, "uncertified": uncertified, "worst_evidence": worst, "distinct_tables": distinct}


def slope(sizes: list[int], gaps: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Return the log-log slope of the mean gap in N, over the N where it exceeds 3 standard errors.

    Interval: 95 %, percentile bootstrap over seeds, which is the sampling error of the fitted line; how far the
    means are from a line is told by the local slopes between neighbouring N.
    """
    mean, error = gaps.mean(axis=1), gaps.std(axis=1, ddof=1) / np.sqrt(gaps.shape[1])
    used = mean > 3.0 * error
    if used.sum() < 3:
        return {"sizes": [], "slope": None, "lower": None, "upper": None, "local_slopes": []}
    x = np.log(np.array(sizes)[used])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    kept = gaps[used]
    draws = np.empty((RESAMPLES, int(used.sum())))
    for k in range(RESAMPLES):
        index = rng.integers(gaps.shape[1], size=kept.shape)
        draws[k] = np.take_along_axis(kept, index, axis=1).mean(axis=1)
    # A resample without one bad seed has no logarithm: half of the smallest positive mean stands in.
    draws = np.maximum(draws, 0.5 * mean[used].min() / gaps.shape[1])
    lower, upper = np.quantile(np.log(draws) @ weights, [0.025, 0.975])
    line = np.log(mean[used])
    return {
        "sizes": [n for n, keep in zip(sizes, used, strict=True) if keep],
        "slope": float(weights @ line),
        "lower": float(lower),
        "upper": float(upper),
        "local_slopes": (np.diff(line) / np.diff(x)).tolist(),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print and write; return what is written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--per-decade", type=int, default=4, help="values of N per factor of ten")
    parser.add_argument("--largest", type=float, default=6.0, help="log10 of the largest N; the smallest is 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="20 seeds, N = 100 to 1e4, one a decade")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    if args.smoke:
        args.seeds, args.per_decade, args.largest = 20, 1, 4.0
        if args.output == parser.get_default("output"):
            args.output = None
    steps = round((args.largest - 2.0) * args.per_decade)
    sizes = [round(10 ** (2.0 + k / args.per_decade)) for k in range(steps + 1)]
    began = time.perf_counter()
    draw, resample = np.random.SeedSequence(args.seed).spawn(2)
    found = simulate(sizes, args.seeds, draw, print)
    generator = np.random.default_rng(resample)
    rows, slopes = [], {}
    for method in METHODS:
        gaps = found["gaps"][method]
        error = gaps.std(axis=1, ddof=1) / np.sqrt(args.seeds)
        rows += [
            {"method": method, "n": n, "seeds": args.seeds, "mean_gap": float(m), "standard_error": float(e)}
            for n, m, e in zip(sizes, gaps.mean(axis=1), error, strict=True)
        ]
        slopes[method] = slope(sizes, gaps, generator)
        tail = [k for k, n in enumerate(sizes) if n > TAIL]
        slopes[method]["tail"] = slope([sizes[k] for k in tail], gaps[tail], generator)
        s = slopes[method]
        text = "none" if s["slope"] is None else f"{s['slope']:.3f} [{s['lower']:.3f}, {s['upper']:.3f}]"
        t = s["tail"]
        tail_text = "none" if t["slope"] is None else f"{t['slope']:.3f} [{t['lower']:.3f}, {t['upper']:.3f}]"
        bad = found["uncertified"][method]
        print(f"{method:18s} slope {text} over {len(s['sizes'])} N; above {TAIL:g}: {tail_text}; not certified: {bad}")
    result = {
        "settings": {"seeds": args.seeds, "seed": args.seed, "sizes": sizes, "theta_ball": RADIUS, "delta": DELTA},
        "methods": ABOUT,
        "slopes": slopes,
        "uncertified": found["uncertified"],
        "worst_evidence": found["worst_evidence"],
        "distinct_tables": found["distinct_tables"],
        "least_greedy_gap": float(found["gaps"]["greedy"].mean(axis=1).min()),
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }
    print(f"least mean gap of greedy {result['least_greedy_gap']:.3f}; {result['seconds']:.0f} s")
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / "zhu.json", result)
        with (args.output / "zhu.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {**result, "rows": rows}


if __name__ == "__main__":
    main()
