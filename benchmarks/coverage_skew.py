"""The default of `instances.coverage_skew`, measured: `python benchmarks/coverage_skew.py [--smoke]`.

Mean suboptimality gap (greedy comparator) of the certified maximin, beta = 0.05, Box(3), pi_base =
chosen, over fresh problems; the mean proxy advantage at eta = 0; and the exponent of the best eta in N.
Every seed is a problem of its own, the same for every eta (paired). Writes results/coverage_skew.json
and coverage_skew.csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from rpo.bandit import Box, ContextualBandit, instances
from rpo.bandit.batched import solve_batch
from rpo.bandit.plots.eta_heatmap import best_eta_exponent
from rpo.core.objectives import DPO, RPO
from rpo.core.records import environment, jsonable

BETA, BOUND = 0.05, 3.0
TABLE_N, TABLE_ETA = (30, 100, 300), (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
SWEEP_N = (20, 30, 45, 70, 100, 150, 220, 330, 500)
SWEEP_ETA = tuple(np.geomspace(1e-4, 1.0, 17))


def draw(seeds: int) -> list[tuple[ContextualBandit, Any]]:
    """Return (problem, data seed) of each seed."""
    children = np.random.SeedSequence(5).spawn(seeds)
    return [(instances.coverage_skew(rng=child.spawn(1)[0]), child) for child in children]


def gaps(problems: list[tuple[ContextualBandit, Any]], n: int, etas: tuple[float, ...]) -> tuple[Any, Any, int]:
    """Return (gaps (E, S), proxy advantage at eta = 0 (S,), number not certified) on data of size n."""
    wins = np.stack(
        [problem.sample_preferences(n, rng=np.random.default_rng([n, *seed.generate_state(2)])).wins()
         for problem, seed in problems]
    )  # fmt: skip
    reference = problems[0][0].reference
    out, proxy, failed = [], np.zeros(len(problems)), 0
    for eta in etas:
        objective = RPO(beta=BETA, eta=eta) if eta > 0 else DPO(beta=BETA)
        batch = solve_batch(wins, objective, reference=reference, reward_class=Box(BOUND))
        failed += int((~batch.certified).sum())
        if eta == 0:
            base = wins.sum(axis=3) / wins.sum(axis=(2, 3))[:, :, None]
            proxy = ((batch.policy - base) * batch.reward).sum(axis=(1, 2))
        out.append([problem.suboptimality(policy) for (problem, _), policy in zip(problems, batch.policy, strict=True)])
    return np.array(out), proxy, failed


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="20 seeds; nothing is written")
    arguments = parser.parse_args()
    seeds = 20 if arguments.smoke else 1000
    problems = draw(seeds)
    table, failed = [], 0
    print(f"mean gap (standard error), {seeds} seeds, beta = {BETA}")
    print("N      " + "".join(f"eta={eta:<12g}" for eta in TABLE_ETA) + "proxy advantage at eta=0")
    for n in TABLE_N:
        found, proxy, missed = gaps(problems, n, TABLE_ETA)
        failed += missed
        error = found.std(axis=1, ddof=1) / np.sqrt(seeds)
        cells = "".join(f"{m:.3f} ({e:.3f})   " for m, e in zip(found.mean(axis=1), error, strict=True))
        print(f"{n:<7}{cells}{proxy.mean():.2f}")
        for eta, mean, e in zip(TABLE_ETA, found.mean(axis=1), error, strict=True):
            table.append({"n": n, "eta": eta, "mean_gap": mean, "standard_error": e, "seeds": seeds})
        table[-1]["proxy_advantage_eta_0"] = float(proxy.mean())
    rows = []
    for n in SWEEP_N:
        found, _, missed = gaps(problems, n, SWEEP_ETA)
        failed += missed
        for eta, line in zip(SWEEP_ETA, found, strict=True):
            rows.append(pandas.DataFrame({"n": n, "beta": BETA, "eta": eta, "seed": np.arange(seeds), "gap": line}))
    frame = pandas.concat(rows, ignore_index=True)
    exponent = best_eta_exponent(frame, rng=0)
    print(exponent.message)
    print(exponent.to_frame().to_string(index=False))
    print(f"solutions not certified: {failed}")
    if not arguments.smoke:
        folder = Path(__file__).parent / "results"
        means = frame.groupby(["n", "eta"], as_index=False)["gap"].agg(["mean", "sem"])
        means.to_csv(folder / "coverage_skew.csv", index=False)
        record = {
            "environment": environment(),
            "table": table,
            "exponent": exponent.exponent,
            "interval": exponent.interval,
            "best_eta": exponent.to_frame().to_dict(orient="list"),
            "not_certified": failed,
        }
        (folder / "coverage_skew.json").write_text(json.dumps(jsonable(record), indent=2) + "\n")


if __name__ == "__main__":
    main()
