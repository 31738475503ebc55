"""Make the figures of overoptimization, policies and phases with their data: python benchmarks/gallery.py FOLDER.

Every figure is a PNG with the CSV it was drawn from beside it; the animation is a GIF. Under a minute. Names of figures
after the folder draw those alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo.bandit import instances
from rpo.bandit.advisor import advise
from rpo.bandit.batched import solve_batch
from rpo.bandit.bounds.covering import covering_radius, log_covering
from rpo.bandit.bounds.theorem import suboptimality_bound
from rpo.bandit.coverage import coverage_coefficient
from rpo.bandit.maximin import default_class, solve
from rpo.bandit.plots import animation, eta_heatmap, phase, policies
from rpo.bandit.plots.coverage import gap_against_coverage
from rpo.bandit.plots.network import comparison_network
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box
from rpo.core.objectives import DPO, RPO, Objective
from rpo.core.records import Run
from rpo.eval.gold.report import draw_gold, draw_steps
from rpo.llm.diagnostics.plots import METRICS, plot_runs
from rpo.plotting import save

STORED = Path(__file__).resolve().parents[1] / "docs" / "figures"  # measurements that took hours


class Draws:
    """S fresh coverage_skew problems with n preferences each, solved together."""

    def __init__(self, n: int, seeds: int, rng: Any, **options: Any) -> None:
        pairs = [child.spawn(2) for child in np.random.SeedSequence(rng).spawn(seeds)]
        self.problems: list[ContextualBandit] = [instances.coverage_skew(rng=a, **options) for a, _ in pairs]
        self.data = [p.sample_preferences(n, rng=b) for p, (_, b) in zip(self.problems, pairs, strict=True)]
        self.wins = np.stack([counts.wins() for counts in self.data])
        self.reference = self.problems[0].reference
        self.reward_class = default_class(self.problems[0])

    def solve(self, objective: Objective, start: Any = None) -> Any:
        return solve_batch(self.wins, objective, reference=self.reference, reward_class=self.reward_class, start=start)

    def gaps(self, policy: Any) -> list[float]:
        return [problem.suboptimality(table) for problem, table in zip(self.problems, policy, strict=True)]


def gap_frame(ns: Any, betas: Any, etas: Any, seeds: int) -> pd.DataFrame:
    """Return the gap in every cell (n, beta, eta, seed); the seeds' problems are the same for every n."""
    rows = []
    for n in ns:
        draws = Draws(int(n), seeds, 12)
        for beta in betas:
            for eta in etas:
                gaps = draws.gaps(draws.solve(RPO(beta=beta, eta=eta)).policy)
                rows += [{"n": n, "beta": beta, "eta": eta, "seed": s, "gap": gap} for s, gap in enumerate(gaps)]
    return pd.DataFrame(rows)


def three_responses() -> tuple[ContextualBandit, Any]:
    """Return a bandit whose best-looking response was seen twice, and its data."""
    problem = ContextualBandit(
        d0=np.ones(1),
        reference=np.full((1, 3), 1 / 3),
        reward=np.array([[1.6, 1.0, 0.2]]),
        reward_bound=3.0,
        behavior=np.array([[0.6, 0.37, 0.03]]),
    )
    for seed in range(1000):  # the sampling accident the figure is about: the worst, rare response won all its pairs
        data = problem.sample_preferences(60, rng=seed)
        wins = data.wins()[0]
        if wins[2].sum() >= 2 and wins[:, 2].sum() == 0 and wins[0, 1] > wins[1, 0] + 3:
            return problem, data
    raise RuntimeError("no such data set in 1,000 seeds")


def linear_problem(rng: np.random.Generator, arms: int = 6) -> ContextualBandit:
    """Return one prompt with standard normal features in three dimensions and r* linear in them, in [0, 3]."""
    features = rng.normal(size=(1, arms, 3))
    reward = features @ rng.normal(size=3)
    reward = np.minimum(3.0, 3.0 * (reward - reward.min()) / (reward.max() - reward.min()))
    uniform = np.full((1, arms), 1.0 / arms)
    return ContextualBandit(d0=np.ones(1), reference=uniform, reward=reward, reward_bound=3.0, features=features)


def failing_run() -> tuple[ContextualBandit, Any]:
    """Return, of 40 draws, the linear bandit on which gradient descent leaves DPO's gold farthest below RPO's."""
    worst: tuple[float, Any] = (-np.inf, None)
    for child in np.random.SeedSequence(14).spawn(40):
        a, b = child.spawn(2)
        problem = linear_problem(np.random.default_rng(a))
        data = problem.sample_preferences(12, rng=b)
        frame = animation.run_frame(
            problem, data, beta=0.1, eta=0.3, policy=problem.linear_softmax_policy(), points=[100], learning_rate=5.0
        )
        last = frame.groupby("method").last()
        lead = last.loc["RPO", "reward/gold"] - last.loc["DPO", "reward/gold"]
        if lead > worst[0]:
            worst = (lead, (problem, data))
    return worst[1]


def theorem_eta(n: int) -> float:
    """Return the eta of the paper's Theorem 5.3 for ten arms and R = 3: what a user without r* would take."""
    covering = log_covering(Box(3.0), prompts=1, arms=10, radius=covering_radius(n, 3.0))
    bound = suboptimality_bound("paper", coverage=1.0, n=n, margin_bound=3.0, log_covering=covering)
    return bound.theorem_eta


def make(folder: Path, names: Collection[str] = ()) -> None:
    """Make every figure, or those named, into `folder` and print how long each took."""
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], None]] = {}

    def step(function: Callable[[], None]) -> None:
        steps[function.__name__] = function

    @step
    def beta_eta_heatmap() -> None:
        frame = gap_frame((30, 100, 300), np.geomspace(0.01, 1.0, 7), np.geomspace(1e-3, 1.0, 10), 100)
        save(eta_heatmap.heatmap(frame, title="coverage_skew, 100 seeds"), folder / "heatmap.png", frame)

    @step
    def best_eta() -> None:
        ns = np.unique(np.geomspace(20, 600, 9).round().astype(int))
        frame = gap_frame(ns, (0.05,), np.geomspace(3e-4, 1.0, 16), 200)
        result = eta_heatmap.best_eta_exponent(frame, rng=2)
        print(f"    {result.message}")
        save(eta_heatmap.movement(result), folder / "best_eta.png", result.to_frame())

    @step
    def where_did_the_mass_go() -> None:
        draws = Draws(60, 40, 13)
        gains = np.subtract(
            draws.gaps(draws.solve(DPO(beta=0.1)).policy), draws.gaps(draws.solve(RPO(beta=0.1, eta=0.1)).policy)
        )
        worst = int(np.argmax(gains))  # chosen because it shows the failure, and said so in the title
        problem, data = draws.problems[worst], draws.data[worst]
        objectives = {"DPO": DPO(beta=0.1), "RPO": RPO(beta=0.1, eta=0.1)}
        shown = {
            name: solve(problem, data, objective, method="newton").policy for name, objective in objectives.items()
        }
        frame = policies.mass_frame(problem, data, {"reference": problem.reference, **shown})
        title = f"Where did the mass go? N = {data.n:g}, beta = 0.1, eta = 0.1; the clearest of 40 draws"
        save(policies.mass(frame, title=title), folder / "mass.png", frame)

    @step
    def gold_on_smollm2() -> None:
        measured = pd.read_csv(STORED / "gold_smollm2.csv")
        at_reference = measured.groupby("seed", as_index=False)["gold/reference"].first()
        at_reference = at_reference.assign(method="reference", step=0, gold=at_reference["gold/reference"])
        frame = pd.concat([measured, at_reference.assign(**{"kl/reference": 0.0})], ignore_index=True)
        frame = frame.assign(**{"reward/gold": frame["gold"], "reward/proxy": np.nan})  # the proxy's was not kept
        save(draw_gold(frame, unit="in its own units"), folder / "gold_smollm2.png", measured)
        save(draw_steps(frame, unit="own units"), folder / "gold_smollm2_steps.png", measured)

    @step
    def training_smollm2() -> None:
        logged = pd.read_csv(STORED / "smollm2.csv")
        known = {"config": {}, "status": "completed", "message": "", "arrays": {}}
        made = []
        for name, eta in (("RPO", 0.05), ("DPO", 0.0)):
            mine = logged[logged["run"] == f"{name} (beta = 0.1, eta = {eta:g})"]
            rows = mine.pivot(index="step", columns="metric", values="value")
            history = [{"step": step, **row.dropna()} for step, row in rows.iterrows()]
            made.append(Run(label=name, objective={"name": name, "beta": 0.1, "eta": eta}, history=history, **known))
        title = "Margins grow on training pairs and hardly on held-out ones; RPO keeps more of the chosen likelihood"
        plot_runs(made, metrics=list(METRICS[:-1]), title=title, output=folder / "smollm2.png")

    @step
    def three_response_simplex() -> None:
        problem, data = three_responses()
        title = "A draw chosen for its accident, N = 60: beta from infinity to 0.03"
        frame = policies.simplex_frame(problem, data, etas=(0.0, 0.02, 0.1), betas=np.geomspace(10, 0.03, 40))
        save(policies.simplex(frame, problem, data, title=title), folder / "simplex.png", frame)

    @step
    def coverage_as_a_network() -> None:
        problem = instances.coverage_skew(arms=6, skew=1.5, rng=16)
        conductance = 2.0 * problem.pair_distribution()[0]
        edges = [
            {"first": a, "second": b, "frequency": conductance[a, b]} for a in range(6) for b in range(a + 1, 6)
        ]  # fmt: skip
        save(comparison_network(problem), folder / "network.png", pd.DataFrame(edges))

    @step
    def gap_and_coverage() -> None:
        rows = []
        for skew in (0.0, 1.0, 2.0, 3.0):
            draws = Draws(300, 100, 17 + int(skew), skew=skew)
            # base = reference, the same for both methods and free of sampling noise
            cover = [coverage_coefficient(p, base=p.reference, boundary=False).value for p in draws.problems]
            for name, objective in (
                ("DPO", DPO(beta=0.05, base="reference")),
                ("RPO", RPO(beta=0.05, eta=0.01, base="reference")),
            ):
                gaps = draws.gaps(draws.solve(objective).policy)
                rows += [{"coverage": c, "gap": g, "method": name} for c, g in zip(cover, gaps, strict=True)]
        frame = pd.DataFrame(rows)
        save(gap_against_coverage(frame), folder / "gap_against_coverage.png", frame)

    @step
    def phases() -> None:
        frame = phase.phase_frame(
            lambda skew, rng: instances.coverage_skew(skew=skew, rng=rng),
            np.linspace(0.0, 3.0, 9), np.unique(np.geomspace(10, 3000, 10).round().astype(int)),
            seeds=150, beta=0.05, eta=theorem_eta, knob="skew", rng=3,
        )  # fmt: skip
        figure = phase.phase_diagram(
            frame,
            x="skew",
            y="n",
            threshold=0.3,
            x_label="coverage skew",
            title="Where data are skewed RPO needs fewer of them: coverage_skew, beta = 0.05, eta of the theorem",
        )
        save(figure, folder / "phase.png", phase.regions(frame, x="skew", y="n", threshold=0.3))

    @step
    def one_run() -> None:
        problem, data = failing_run()
        policy = problem.linear_softmax_policy()
        points = np.unique(np.geomspace(1, 1000, 36).round())
        frame = animation.run_frame(problem, data, beta=0.1, eta=0.3, policy=policy, learning_rate=5.0, points=points)
        title = "Linear softmax, 12 pairs, gradient descent, beta = 0.1, eta = 0.3 for RPO; clearest of 40 draws"
        path = animation.animate_run(frame, problem, data, folder / "run.gif", title=title)
        frame.to_csv(path.with_suffix(".csv"), index=False)
        print(f"    {path.name}: {path.stat().st_size / 1e3:.0f} kB")

    @step
    def advice() -> None:
        draws = Draws(100, 1, 15)
        found = advise(draws.data[0], draws.problems[0], rng=4)
        print(f"    {found.message}")
        found.to_frame().to_csv(folder / "advice.csv", index=False)

    for name, function in steps.items():
        if names and name not in names:
            continue
        began = time.perf_counter()
        function()
        print(f"{name}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    make(options.folder, options.names)
