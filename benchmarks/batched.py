"""Batched Newton against one cvxpy solve an instance: `python benchmarks/batched.py [--smoke]`.

10 arms x 4 prompts x 1,000 seeds, N = 1,000. cvxpy is compiled once a class (parameters only, DPP)
and solves a fresh sample of the same instances in every block; the batched solver solves all of them
in the same block. A block's ratio is the quotient of the processor times per instance. Both reach a relative
gap of 1e-8, cvxpy's point certified by the package's own certificate. Writes results/batched.json;
`python benchmarks/tables.py` the table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
from machine import describe_machine

from rpo.bandit import Box, ContextualBandit, LinearBall, PreferenceCounts, Unconstrained, build_saddle, certify
from rpo.bandit.batched import sample_wins, solve_batch
from rpo.core.objectives import RPO
from rpo.core.records import environment, jsonable

BETA, ETA, BOUND, RADIUS, DIMENSION = 0.1, 0.05, 3.0, 3.0, 6


class Compiled:
    """The reward-side program with the data as parameters."""

    def __init__(self, problem: ContextualBandit, reward_class: Any) -> None:
        x, a = problem.reference.shape
        self.first, self.second = np.triu_indices(a, k=1)
        half = self.first.size
        self.weights = cp.Parameter((x, 2 * half), nonneg=True)
        self.linear = cp.Parameter((x, a))
        self.d = cp.Parameter(x, nonneg=True)
        constraints: list[Any] = []
        if isinstance(reward_class, LinearBall):
            self.theta = cp.Variable(DIMENSION)
            self.r = cp.vstack([reward_class.features[i] @ self.theta for i in range(x)])
            constraints = [cp.norm(self.theta, 2) <= reward_class.radius]
        else:
            self.r = cp.Variable((x, a))
            if isinstance(reward_class, Box):
                constraints = [self.r >= 0, self.r <= reward_class.bound]
            else:
                constraints = [self.r[:, 0] == 0]
        z = self.r[:, self.first] - self.r[:, self.second]
        loss = cp.sum(cp.multiply(self.weights, cp.logistic(cp.hstack([-z, z]))))
        lse = cp.log_sum_exp(problem.log_reference + self.r / BETA, axis=1)
        loss = loss + ETA * (BETA * (self.d @ lse) - cp.sum(cp.multiply(self.linear, self.r)))
        self.problem = cp.Problem(cp.Minimize(loss), constraints)

    def set(self, wins: Any, base: Any) -> None:
        """Set the data of one instance."""
        weights = wins / wins.sum()
        self.weights.value = np.concatenate(
            [weights[:, self.first, self.second], weights[:, self.second, self.first]], axis=1
        )
        self.d.value = weights.sum(axis=(1, 2))
        self.linear.value = self.d.value[:, None] * base

    def solve(self, wins: Any, base: Any) -> Any:
        """Return the rewards of one instance, (X, A)."""
        self.set(wins, base)
        self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        return self.r.value


def instances(seeds: int) -> tuple[ContextualBandit, dict[str, Any], Any]:
    """Return the problem, its reward classes by name, and win counts (S, X, A, A)."""
    rng = np.random.default_rng(0)
    problem = ContextualBandit(
        d0=np.full(4, 0.25),
        reference=rng.dirichlet(np.full(10, 2.0), size=4),
        reward=rng.uniform(0, BOUND, size=(4, 10)),
        reward_bound=BOUND,
        features=rng.normal(size=(4, 10, DIMENSION)),
    )
    classes = {
        "unconstrained": Unconstrained(),
        "box": Box(BOUND),
        "ball": LinearBall(problem.features, RADIUS),
    }
    return problem, classes, sample_wins(problem, 1000, seeds, rng=rng)


def measure(name: str, seeds: int, sample: int, blocks: int) -> dict[str, Any]:
    """Return paired timings of one reward class."""
    problem, classes, wins = instances(seeds)
    reward_class, rng = classes[name], np.random.default_rng(1)
    # A base of full support: a minimiser of the unconstrained objective exists on every instance.
    objective = RPO(beta=BETA, eta=ETA, base="reference")
    compiled = Compiled(problem, reward_class)
    compiled.solve(wins[0], problem.reference)
    solve_batch(wins[:10], objective, reference=problem.reference, reward_class=reward_class)
    rows, gaps, differences = [], [], []
    for block in range(blocks):
        chosen = rng.choice(seeds, size=sample, replace=False)
        start = time.process_time()
        rewards = [compiled.solve(wins[i], problem.reference) for i in chosen]
        slow = (time.process_time() - start) / sample
        start = time.process_time()
        batch = solve_batch(wins, objective, reference=problem.reference, reward_class=reward_class)
        fast = (time.process_time() - start) / seeds
        rows.append({"block": block, "cvxpy_s": slow, "batched_s": fast, "ratio": slow / fast})
        for i, reward in zip(chosen, rewards, strict=True):
            saddle = build_saddle(problem, PreferenceCounts.from_wins(wins[i]), objective, reward_class)
            inside = np.clip(reward, 0.0, BOUND) if name == "box" else reward
            gaps.append(certify(saddle, inside).relative_gap if name != "unconstrained" else float("nan"))
            differences.append(saddle.reward_side(inside) - batch.value[i])
    ratios = np.array([row["ratio"] for row in rows])
    return {
        "class": name,
        "ratio_median": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "batched_worst_relative_gap": float(batch.relative_gap.max()),
        "batched_certified": float(batch.certified.mean()),
        "cvxpy_worst_relative_gap": float(np.nanmax(gaps)) if name != "unconstrained" else None,
        "cvxpy_value_above_batched": [float(np.min(differences)), float(np.max(differences))],
        "blocks": rows,
    }


def scaling() -> list[dict[str, float]]:
    """Return the batched box time against seeds (linear) and against N (flat)."""
    rng = np.random.default_rng(1)
    problem = ContextualBandit(
        d0=np.full(4, 0.25),
        reference=np.full((4, 10), 0.1),
        reward=rng.uniform(0, BOUND, size=(4, 10)),
        reward_bound=BOUND,
    )
    objective = RPO(beta=BETA, eta=ETA)
    rows = []
    for seeds, n in ((250, 1000), (500, 1000), (1000, 1000), (2000, 1000), (1000, 10**6), (1000, 10**9)):
        wins = sample_wins(problem, n, seeds, rng=rng)
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            solve_batch(wins, objective, reference=problem.reference, reward_class=Box(BOUND))
            best = min(best, time.process_time() - start)
        rows.append({"seeds": seeds, "n": n, "seconds": best, "microseconds_per_instance": 1e6 * best / seeds})
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; nothing is written")
    arguments = parser.parse_args()
    seeds, sample, blocks = (40, 3, 2) if arguments.smoke else (1000, 30, 11)
    found = [measure(name, seeds, sample, blocks) for name in ("unconstrained", "box", "ball")]
    for row in found:
        spread = f"[{row['ratio_min']:.0f}, {row['ratio_max']:.0f}]"
        above = row["cvxpy_value_above_batched"][1]
        print(
            f"{row['class']:14} median of paired ratios {row['ratio_median']:7.0f}x {spread}, "
            f"worst relative gap {row['batched_worst_relative_gap']:.1e}, cvxpy above batched by {above:.1e}"
        )
    scales = [] if arguments.smoke else scaling()
    for row in scales:
        print(f"seeds {row['seeds']:5} N {row['n']:.0e}: {row['microseconds_per_instance']:.0f} us an instance")
    if not arguments.smoke:
        path = Path(__file__).parent / "results" / "batched.json"
        record = {"environment": environment(), "machine": describe_machine(), "classes": found, "scaling": scales}
        path.write_text(json.dumps(jsonable(record), indent=2) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
