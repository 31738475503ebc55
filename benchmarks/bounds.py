"""The suboptimality bounds against simulation: `python benchmarks/bounds.py [--smoke] [--figures DIR]`.

Five tables, printed and written to results/bounds*.csv with results/bounds.json:
1. validity: fraction of seeds with Gap <= bound (Clopper-Pearson), at each theorem's own eta and beta,
   and the median of bound / Gap; `data` is the Hellinger bound with the coverage of the pairs seen.
2. concentration: step 3 alone at a fixed reward (N_eps = 1), and with its constant divided by 20.
3. slopes: mean gap for N from 1e2 to 1e10 on a fixed problem and on one whose reward differences
   shrink like N^-1/2 (the hardest at each N), with the log-log slope.
4. control: a disconnected comparison graph, where the premise fails, beside the same arms connected.
5. ledger: mean slack of each step of the proof.
A seed whose duality gap over eta exceeds 1 % of the bound is left out of 1 and 3, and counted.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo.bandit import Box, ContextualBandit, PreferenceCounts, instances, solve
from rpo.bandit.batched import sample_wins, solve_batch
from rpo.bandit.bounds import Bound, bound_arguments, clopper_pearson, loglog_slope, suboptimality_bound
from rpo.bandit.bounds.ledger import likelihood_difference, pair_distances, slack_ledger
from rpo.bandit.bounds.theorem import ROUTES
from rpo.core.objectives import DPO, RPO
from rpo.core.records import environment, write_json

DELTA = 0.05
NEGLIGIBLE = 0.01  # of the bound: the error in J that an inexact solution may cost
RESULTS = Path(__file__).parent / "results"
SEED = 20_240


def covered() -> dict[str, ContextualBandit]:
    """Return the covered instances of the study, R = 1."""
    return {
        "skew 6x2": instances.coverage_skew(arms=6, prompts=2, skew=0.5, reward_bound=1.0, rng=1),
        "random 4x3": instances.random(arms=4, prompts=3, reward_bound=1.0, rng=2),
        "skew 6x4": instances.coverage_skew(arms=6, prompts=4, skew=1.0, reward_bound=1.0, rng=3),
    }


def theorem(route: str, problem: ContextualBandit, n: float) -> Bound:
    """Return the bound at the route's own eta and beta; base = reference, so C does not depend on the data."""
    found = bound_arguments(problem, n, base=problem.reference, reward_class=Box(1.0))
    return suboptimality_bound(route, delta=DELTA, **found)


def gaps(problem: ContextualBandit, wins: Any, objective: Any) -> tuple[Any, Any]:
    """Return Gap (S,) against the greedy comparator, and the duality gaps (S,)."""
    found = solve_batch(
        wins, objective, reference=problem.reference, reward_class=Box(1.0), d0=problem.d0
    )  # fmt: skip
    best = problem.expected_reward(problem.greedy_policy())
    return best - np.einsum("x,sxa,xa->s", problem.d0, found.policy, problem.true_reward()), found.gap


def validity(seeds: int, sizes: tuple[int, ...], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for name, problem in covered().items():
        for n in sizes:
            wins = sample_wins(problem, n, seeds, rng=rng.spawn(1)[0])
            for route in ROUTES:
                bound = theorem(route, problem, n)
                gap, duality = gaps(problem, wins, RPO(beta=bound.beta, eta=bound.eta, base="reference"))
                families = {route: [bound] * seeds}
                if route == "hellinger":
                    families["data"] = data_bounds(problem, wins[: max(50, seeds // 4)], bound)
                for label, family in families.items():
                    value = np.array([b.value for b in family])
                    part, error = gap[: value.size], duality[: value.size] / bound.eta
                    kept = error <= NEGLIGIBLE * value
                    held = clopper_pearson(int((part <= value + error)[kept].sum()), int(kept.sum()))
                    rows.append(
                        {
                            "instance": name, "n": n, "bound": label,
                            "C": float(np.median([b.coverage for b in family])), "eta": bound.eta,
                            "value": float(np.median(value)), "vacuous": bool(np.median(value) >= 1.0),
                            "mean_gap": float(part[kept].mean()), "held": held.estimate, "low": held.low,
                            "high": held.high, "seeds": held.trials, "omitted": int((~kept).sum()),
                            "median_ratio": float(np.median(value[kept] / np.maximum(part[kept], 1e-300))),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def data_bounds(problem: ContextualBandit, wins: Any, bound: Bound) -> list[Bound]:
    """Return the Hellinger bound of each data set with the coverage of its own pairs, at the same eta."""
    found = []
    for table in wins:
        arguments = bound_arguments(
            problem, base=problem.reference, reward_class=Box(1.0), data=PreferenceCounts.from_wins(table)
        )
        found.append(suboptimality_bound("hellinger", delta=DELTA, eta=bound.eta, **arguments))
    return found


def concentration(seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """Step 3 at one reward whose likelihood ratio has variance 1.8, near the worst for a small constant."""
    rows = []
    for name, problem in covered().items():
        for n in (1_000, 1_000_000):
            direction = rng.normal(size=problem.reference.shape)
            small = pair_distances(problem, problem.true_reward() + 1e-4 * direction)["hellinger"]
            step = 1e-4 * math.sqrt(1.8 / (8.0 * n * small))  # the variance is 8 N E[H^2], to first order
            other = problem.true_reward() + step * direction
            h2 = pair_distances(problem, other)["hellinger"]
            excess = np.array(
                [
                    likelihood_difference(problem.sample_preferences(n, rng=child), problem.true_reward(), other)
                    for child in rng.spawn(seeds)
                ]
            )
            for divisor in (1, 20):
                limit = 3.0 / divisor * math.log(1.0 / DELTA) / n
                held = clopper_pearson(int((excess + 2.0 * h2 <= limit).sum()), seeds)
                rows.append({"instance": name, "n": n, "constant": 3.0 / divisor, "held": held.estimate,
                             "low": held.low, "high": held.high, "seeds": seeds})  # fmt: skip
    return pd.DataFrame(rows)


def shrinking(n: float) -> ContextualBandit:
    """Return `skew 6x2` with the spread of its rewards, at most 1, shrunk by 10 N^-1/2."""
    problem = covered()["skew 6x2"]
    reward = problem.true_reward()
    spread = min(1.0, 10.0 / math.sqrt(n))
    fields = {field: getattr(problem, field) for field in ("d0", "reference", "behavior")}
    return ContextualBandit(**fields, reward=0.5 + spread * (reward - 0.5), reward_bound=1.0)


def curves(seeds: int, sizes: tuple[int, ...], rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean gaps (series, n) and their slopes; fresh data at every N."""
    rows: list[dict[str, Any]] = []
    fixed = covered()["skew 6x2"]
    apart = instances.disconnected(arms=6, bridge=0.0, reward_bound=1.0, rng=5)
    joined = instances.disconnected(arms=6, bridge=0.2, reward_bound=1.0, rng=5)
    for n in sizes:
        for family, problem in (("fixed", fixed), ("shrinking", shrinking(n)), ("disconnected", apart),
                                ("bridged", joined)):  # fmt: skip
            wins = sample_wins(problem, n, seeds, rng=rng.spawn(1)[0])
            routes = ("paper", "hellinger") if family in ("fixed", "shrinking") else ("paper", "eta = 0")
            for route in routes:
                if route == "eta = 0":
                    value, objective = math.inf, DPO(beta=n**-0.5, base="reference")
                else:
                    bound = theorem(route, problem, n)
                    value, objective = bound.value, RPO(beta=bound.beta, eta=bound.eta, base="reference")
                gap, duality = gaps(problem, wins, objective)
                error = duality / objective.eta if objective.eta > 0 else np.zeros(seeds)
                kept = error <= NEGLIGIBLE * value
                mean = float(gap[kept].mean()) if kept.any() else math.nan
                # Rounding in J is 1e-16: below it the mean is no number, and must not look certain.
                spread = max(float(gap[kept].std(ddof=1) / math.sqrt(kept.sum())), 1e-16) if kept.any() else math.inf
                rows.append({"series": f"{family}, {route}", "n": n, "mean": mean, "standard_error": spread,
                             "bound": value, "worst_error": float(error.max()), "seeds": int(kept.sum()),
                             "omitted": int((~kept).sum())})  # fmt: skip
    frame = pd.DataFrame(rows)
    slopes = []
    for series, part in frame.groupby("series", sort=False):
        usable = part[part["seeds"] > 1]
        try:
            line = loglog_slope(usable["n"], usable["mean"], usable["standard_error"])
        except ValueError as error:
            slopes.append({"series": series, "note": str(error)})
            continue
        slopes.append({"series": series, **asdict(line), "note": ""})
    return frame, pd.DataFrame(slopes)


def ledgers(seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return the mean over data sets of every step's slack, at N = 1e6 on `skew 6x2`."""
    problem, n = covered()["skew 6x2"], 1_000_000
    frames = []
    for seed, child in enumerate(rng.spawn(seeds)):
        data = problem.sample_preferences(n, rng=child)
        for route in ROUTES:
            bound = theorem(route, problem, n)
            solution = solve(
                problem, data, RPO(beta=bound.beta, eta=bound.eta, base="reference"), reward_class=Box(1.0),
                prompt_weights="population", method="newton",
            )  # fmt: skip
            frames.append(slack_ledger(problem, data, solution, chain=route, delta=DELTA).to_frame().assign(seed=seed))
    rows = pd.concat(frames)
    steps = rows.groupby(["chain", "number", "name"], sort=False)
    table = steps[["slack_reward", "share", "upper_bound"]].mean()
    return table.assign(held=steps["holds"].mean()).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds: few seeds, few N")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--figures", type=Path, help="folder for the two figures")
    options = parser.parse_args()
    seeds, curve_seeds, ledger_seeds = (60, 40, 3) if options.smoke else (2000, 400, 20)
    sizes = tuple(10**k for k in ((2, 3, 4, 5) if options.smoke else range(2, 11)))
    began, times = time.perf_counter(), {}
    streams = np.random.default_rng(SEED).spawn(4)
    tables: dict[str, pd.DataFrame] = {}

    def stage(name: str, *frames: tuple[str, pd.DataFrame]) -> None:
        times[name] = time.perf_counter() - began - sum(times.values())
        tables.update(frames)
        for title, frame in frames:
            print(f"\n{title}  ({times[name]:.1f} s)\n{frame.to_string(index=False, float_format='%.4g')}", flush=True)

    stage("validity", ("validity", validity(seeds, (1_000, 1_000_000), streams[0])))
    stage("concentration", ("concentration", concentration(seeds, streams[1])))
    curve, slope = curves(curve_seeds, sizes, streams[2])
    stage("curves", ("curves", curve), ("slopes", slope))
    stage("ledger", ("ledger", ledgers(ledger_seeds, streams[3])))
    options.output.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_csv(options.output / f"bounds_{name}.csv", index=False)
    settings = {"smoke": options.smoke, "seed": SEED, "delta": DELTA, "seeds": seeds, "curve_seeds": curve_seeds,
                "ledger_seeds": ledger_seeds, "sizes": sizes, "seconds": times}  # fmt: skip
    tidy = {name: frame.to_dict(orient="records") for name, frame in tables.items()}
    write_json(options.output / "bounds.json", {**settings, "environment": environment(), **tidy})
    if options.figures:
        figures(tables, options.figures)


def figures(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    from rpo.bandit.bounds.theorem import Slope
    from rpo.bandit.plots.bounds import gap_against_n, slack_waterfall
    from rpo.plotting import save

    folder.mkdir(parents=True, exist_ok=True)
    save(slack_waterfall(tables["ledger"]), folder / "slack_waterfall.png", tables["ledger"])
    curve = tables["curves"]
    fields = list(Slope.__dataclass_fields__)
    slopes = {
        row["series"]: Slope(**{field: row[field] for field in fields})
        for row in tables["slopes"].to_dict(orient="records")
        if not row["note"]
    }
    problem = covered()["skew 6x2"]
    lines = pd.DataFrame(
        [
            {"route": route, "n": n, "value": theorem(route, problem, n).value}
            for route in ROUTES
            for n in sorted(set(curve["n"]))
        ]
    )
    shown = curve[curve["series"].isin(["fixed, hellinger", "shrinking, hellinger", "disconnected, eta = 0"])]
    figure = gap_against_n(shown, slopes=slopes, bounds=lines, reward_bound=1.0)
    save(figure, folder / "gap_against_n.png", shown)


if __name__ == "__main__":
    main()
