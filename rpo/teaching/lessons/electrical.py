"""Notebook 03: comparisons as resistors, coverage as an effective resistance, and which pair to label next.

Shapes: A responses, one prompt. A conductance is a share of the comparisons, or their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit import ContextualBandit, Unconstrained, instances, sample_wins, solve_batch
from rpo.bandit.coverage import coverage_coefficient, effective_resistance
from rpo.bandit.coverage.resistance import check_conductance, reduce_network
from rpo.bandit.maximin import default_class
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import sigmoid
from rpo.core.objectives import DPO, RPO

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

RULES = ("best pair", "weakest link", "random pair")


def compared(weights: Any, reward: Any, *, bound: float = 3.0, labels: Sequence[str] | None = None) -> ContextualBandit:
    """Return a bandit of one prompt whose pairs are drawn in proportion to symmetric weights (A, A).

    reward: (A,), r* in [0, bound]. pi_ref is uniform.
    """
    table = check_conductance("weights", weights)
    size = len(table)
    names = tuple(labels) if labels is not None else tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:size])
    return ContextualBandit(
        d0=np.ones(1),
        reference=np.full((1, size), 1.0 / size),
        reward=checks.finite("reward", reward, shape=(size,))[None],
        reward_bound=bound,
        behavior=(table / table.sum())[None],
        response_labels=names,
        name="compared",
    )


def spreads(problem: ContextualBandit, n: int, draws: int, *, rng: Any) -> pandas.DataFrame:
    """Fit the reward to `draws` data sets of n pairs; compare the spread of each difference with its resistance.

    Columns: pair, resistance (of the network whose conductances are shares of the comparisons), predicted and measured
    (standard deviation of the fitted difference, log-odds). predicted^2 = R / n in the network whose conductances are
    the shares times sigma'(r*(a) - r*(b)), which is 1/4 where the two are equal. Data sets without an estimate are
    left out.
    """
    import pandas

    shares = problem.pair_distribution()[0] * 2.0
    reward = problem.true_reward()[0]
    slope = sigmoid(reward[:, None] - reward[None, :]) * sigmoid(reward[None, :] - reward[:, None])
    fitted = solve_batch(
        sample_wins(problem, n, draws, rng=rng),
        DPO(beta=1.0),
        reference=problem.reference,
        reward_class=Unconstrained(),
    )
    estimate = fitted.reward[fitted.exists, 0]
    names = problem.response_labels or tuple(map(str, range(len(reward))))
    rows = []
    for a, b in combinations(range(len(reward)), 2):
        ends = np.eye(len(reward))[[a, b]]
        rows.append(
            {
                "pair": f"{names[a]}-{names[b]}",
                "resistance": effective_resistance(shares, *ends),
                "predicted": float(np.sqrt(effective_resistance(shares * slope, *ends) / n)),
                "measured": float((estimate[:, a] - estimate[:, b]).std(ddof=1)),
            }
        )
    return pandas.DataFrame(rows)


def spread_figure(frame: pandas.DataFrame) -> Figure:
    """Draw measured against predicted spread, a dot a pair. frame: of `spreads`."""
    from rpo.plotting import CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 1, width=5.6, height=4.0)
        axis = axes[0, 0]
        top = 1.1 * float(frame[["predicted", "measured"]].to_numpy().max())
        axis.plot([0.0, top], [0.0, top], color="#999999", linewidth=1.0)
        axis.plot(frame["predicted"], frame["measured"], "o", color=CYCLE[0])
        for index, row in enumerate(frame.sort_values("predicted").itertuples()):
            below = index % 2 == 0  # neighbours' names stand apart
            axis.annotate(
                str(row.pair), (float(row.predicted), float(row.measured)),  # type: ignore[arg-type]
                xytext=(6, -9) if below else (-6, 5), textcoords="offset points", fontsize=8.5,
                ha="left" if below else "right",
            )  # fmt: skip
        axis.set_xlim(0.0, top)
        axis.set_ylim(0.0, top)
        axis.set_xlabel("predicted by the resistance, log-odds")
        axis.set_ylabel("measured over data sets, log-odds")
        axis.set_title("Standard deviation of a fitted difference")
    return figure


def next_pairs(
    counts: Any, p: Any, q: Any, *, extra: int = 10, labels: Sequence[str] | None = None
) -> pandas.DataFrame:
    """Return what `extra` more comparisons of each pair would do, the most useful first.

    counts: symmetric numbers of comparisons (A, A). p, q: (A,), comparator and base. Columns: pair, so_far, voltage
    (the potential difference of the pair when the current p - q flows), resistance (of p against q afterwards).
    """
    import pandas

    table = check_conductance("counts", counts)
    more = checks.integer("extra", extra, minimum=1)
    names = labels if labels is not None else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(table)]
    voltage = _voltage(table, p, q)
    rows = []
    for a, b in combinations(range(len(table)), 2):
        rows.append(
            {
                "pair": f"{names[a]}-{names[b]}",
                "so_far": int(table[a, b]),
                "voltage": float(abs(voltage[a] - voltage[b])),
                "resistance": effective_resistance(_added(table, (a, b), more), p, q),
            }
        )
    return pandas.DataFrame(rows).sort_values("resistance", kind="stable").reset_index(drop=True)


def next_pair_figure(frame: pandas.DataFrame, now: float) -> Figure:
    """Draw the resistance left after labelling each pair. frame: of `next_pairs`; now: the resistance before."""
    from rpo.plotting import CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 1, width=6.8, height=0.9 + 0.28 * len(frame))
        axis = axes[0, 0]
        place = np.arange(len(frame))
        axis.barh(place, frame["resistance"], color=[CYCLE[0] if so_far else CYCLE[5] for so_far in frame["so_far"]])
        axis.axvline(now, color="black", linewidth=1.2)
        axis.annotate("now", (now, -0.9), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
        ticks = [f"{pair} ({so_far} so far)" for pair, so_far in zip(frame["pair"], frame["so_far"], strict=True)]
        axis.set_yticks(place, ticks)
        axis.set_ylim(len(frame) - 0.4, -1.4)
        axis.set_xlim(0.0, 1.12 * now)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("effective resistance afterwards (light: a pair never compared yet)")
    return figure


def labelling(
    counts: Any, p: Any, q: Any, *, batch: int = 5, rounds: int = 20, draws: int = 20, rng: Any
) -> pandas.DataFrame:
    """Label `rounds` batches by three rules; return the resistance along the way.

    Rules: "best pair" (the one whose batch lowers the resistance most), "weakest link" (the least compared of the pairs
    that carry a current now), "random pair" (mean of `draws` runs). Columns: rule, labels, resistance.
    """
    import pandas

    start = check_conductance("counts", counts)
    size = checks.integer("batch", batch, minimum=1)
    generator = checks.generator("rng", rng)
    pairs = list(combinations(range(len(start)), 2))
    linked = [(a, b) for a, b in pairs if start[a, b] > 0]

    def best(table: Array) -> tuple[int, int]:
        return min(pairs, key=lambda pair: effective_resistance(_added(table, pair, size), p, q))

    def weakest(table: Array) -> tuple[int, int]:
        return min(linked, key=lambda pair: float(table[pair]))

    def chance(table: Array) -> tuple[int, int]:
        return pairs[int(generator.integers(len(pairs)))]

    rows = []
    for rule, choose, runs in zip(RULES, (best, weakest, chance), (1, 1, draws), strict=True):
        found = np.zeros((runs, rounds + 1))
        for run in range(runs):
            table = start
            found[run, 0] = effective_resistance(table, p, q)
            for step in range(1, rounds + 1):
                table = _added(table, choose(table), size)
                found[run, step] = effective_resistance(table, p, q)
        rows += [
            {"rule": rule, "labels": step * size, "resistance": float(value)}
            for step, value in enumerate(found.mean(axis=0))
        ]
    return pandas.DataFrame(rows)


def labelling_figure(frame: pandas.DataFrame) -> Figure:
    """Draw the resistance against the labels bought, a line a rule. frame: of `labelling`."""
    from rpo.plotting import CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 1, width=6.4, height=3.6)
        axis = axes[0, 0]
        for index, (rule, rows) in enumerate(frame.groupby("rule", sort=False)):
            axis.plot(rows["labels"], rows["resistance"], "-o", markersize=3.5, color=CYCLE[index], label=str(rule))
        axis.set_ylim(bottom=0.0)
        axis.set_xlabel("further comparisons labelled")
        axis.set_ylabel("effective resistance")
        axis.legend()
    return figure


def gaps_and_coverage(
    bridges: Sequence[float], *, n: int, seeds: int, beta: float = 0.1, eta: float = 0.01, rng: Any
) -> pandas.DataFrame:
    """Solve DPO and RPO on `instances.disconnected` problems; return one row a problem and method.

    Columns: bridge, seed, method, coverage (C of the best policy against the chosen responses), gap (log-odds).
    """
    import pandas

    rows = []
    children = checks.generator("rng", rng).spawn(checks.integer("seeds", seeds, minimum=1))
    streams = [child.spawn(2) for child in children]
    for bridge in bridges:
        # The same problems at every bridge: a stream is copied, not used up.
        problems = [instances.disconnected(bridge=bridge, rng=_copy(first)) for first, _ in streams]
        wins = np.stack(
            [
                problem.sample_preferences(n, rng=_copy(second)).wins()
                for problem, (_, second) in zip(problems, streams, strict=True)
            ]
        )
        found = [coverage_coefficient(problem).value for problem in problems]
        for method, objective in (("DPO", DPO(beta=beta)), ("RPO", RPO(beta=beta, eta=eta))):
            solved = solve_batch(
                wins, objective, reference=problems[0].reference, reward_class=default_class(problems[0])
            )
            for seed, problem in enumerate(problems):
                gap = problem.suboptimality(solved.policy[seed])
                rows.append({"bridge": bridge, "seed": seed, "method": method, "coverage": found[seed], "gap": gap})
    return pandas.DataFrame(rows)


def _copy(generator: np.random.Generator) -> np.random.Generator:
    import copy

    return copy.deepcopy(generator)


def _added(table: Array, pair: tuple[int, int], extra: float) -> Array:
    a, b = pair
    more = table.copy()
    more[a, b] += extra
    more[b, a] += extra
    return more


def _voltage(table: Array, p: Any, q: Any) -> Array:
    """Return the potentials (A,) that drive the current p - q."""
    demand = checks.probabilities("p", p, shape=(len(table),)) - checks.probabilities("q", q, shape=(len(table),))
    if not np.isfinite(effective_resistance(table, p, q)):
        raise InvalidArgument(
            "counts", expected="comparisons that connect p and q", got="a gap between them", remedy="Bridge it first."
        )
    network = reduce_network(table)
    return network.energy(network.balanced(demand))[1]
