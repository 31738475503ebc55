"""How much pessimism: the maximin policy as eta goes from 0, DPO, to infinity, imitation of pi_base.

Shapes: X prompts, A responses. Total variations are the largest over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from rpo.bandit import ContextualBandit, PreferenceCounts
    from rpo.bandit.reward_class import RewardClass

__all__ = [
    "coverage_table",
    "eta_path",
    "eta_simplex",
    "gap_against_eta",
    "gap_figure",
    "gap_table",
    "imitation",
    "imitation_figure",
    "policies_at",
    "three_responses",
]

DPO_COLUMN = 0.0


def three_responses(*, rare: float = 0.04) -> ContextualBandit:
    """Return one prompt with a good, a poor and a rare response; the rare one is middling, and is seldom compared.

    r* = (1, 0, 0.4) log-odds; pi_ref is uniform; `rare` is the third response's share of the behaviour.
    """
    from rpo.bandit import ContextualBandit

    share = checks.fraction("rare", rare)
    return ContextualBandit(
        d0=np.ones(1),
        reference=np.full((1, 3), 1 / 3),
        reward=np.array([[1.0, 0.0, 0.4]]),
        reward_bound=2.0,
        behavior=np.array([[0.6 * (1 - share), 0.4 * (1 - share), share]]),
        response_labels=("good", "poor", "rare"),
        name=f"three_responses(rare={share:g})",
    )


def eta_path(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    betas: Sequence[float],
    etas: Sequence[float],
    reward_class: RewardClass | None = None,
) -> pandas.DataFrame:
    """Return certified optima of the first prompt along eta, from the smallest: one row a (beta, eta).

    Columns: beta, eta, p0, p1, p2, gold (of the prompt), relative_gap. Three responses. Raises InvalidArgument.
    """
    import pandas

    from rpo.bandit import solve
    from rpo.core.objectives import RPO

    if problem.num_responses != 3:
        raise InvalidArgument(
            "problem", expected="3 responses", got=problem.num_responses, remedy="Use gap_against_eta."
        )
    reward = problem.true_reward()[0]
    rows = []
    for beta in betas:
        for eta in sorted(checks.nonnegative("etas", value) for value in etas):
            found = solve(problem, data, RPO(beta=beta, eta=eta), reward_class=reward_class, method="newton")
            p = found.policy[0]
            point = {"p0": float(p[0]), "p1": float(p[1]), "p2": float(p[2])}
            gap = found.certificate.relative_gap
            rows.append({"beta": beta, "eta": eta, **point, "gold": float(p @ reward), "relative_gap": gap})
    return pandas.DataFrame(rows)


def eta_simplex(frame: pandas.DataFrame, problem: ContextualBandit, data: PreferenceCounts) -> Figure:
    """Draw the paths of `eta_path` in the triangle of three responses, over lines of equal gold.

    A square is eta = 0, the plug-in policy; along the path eta grows; the diamond is pi_base (chosen).
    """
    from rpo.bandit.plots.policies import CORNERS, draw_triangle
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 1, width=6.4, height=5.2)
        axis = axes[0, 0]
        draw_triangle(figure, axis, problem, data, decimals=1)
        for index, (beta, rows) in enumerate(frame.groupby("beta", sort=False)):
            points = rows[["p0", "p1", "p2"]].to_numpy() @ CORNERS
            color = (COLORS["RPO"], CYCLE[5], CYCLE[2])[index % 3]
            axis.plot(*points.T, "-", marker=".", markersize=5, color=color, label=f"beta = {beta:g}, along eta")
            axis.plot(*points[0], "s", color=color, markersize=8, markeredgecolor="white")
        base = data.response_frequencies("chosen")[0] @ CORNERS
        axis.plot(
            *base, "D", color="black", markersize=8, markeredgecolor="white", linewidth=0, label="pi_base (chosen)"
        )
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.set_ylim(-0.14, 1.0)
        title = f"N = {data.n:g}: eta from 0 (square) to {frame['eta'].max():g}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        handles, names = axis.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def policies_at(problem: ContextualBandit, data: PreferenceCounts, *, beta: float, eta: float) -> Figure:
    """Draw the maximin policy at this eta over the share of comparisons, beside DPO's and pi_base."""
    from rpo.bandit import baselines, plots, solve
    from rpo.bandit.plots.policies import mass_frame
    from rpo.core.objectives import DPO, RPO

    name = f"RPO eta = {eta:g}" if eta > 0 else "eta = 0"
    solved = {
        "DPO": solve(problem, data, DPO(beta=beta), method="newton").policy,
        name: solve(problem, data, RPO(beta=beta, eta=eta), method="newton").policy,
        "pi_base (chosen)": solve(problem, data, baselines.BasePolicy()).policy,
    }
    return plots.mass(mass_frame(problem, data, solved), title=f"beta = {beta:g}, eta = {eta:g}")


def gap_against_eta(
    instances: Mapping[str, tuple[str, Mapping[str, Sequence[Any]]]],
    *,
    ns: Sequence[int],
    beta: float,
    etas: Sequence[float],
    seeds: int,
    rng: int,
) -> pandas.DataFrame:
    """Return rows of `simulate` for each named instance: DPO as eta = 0, RPO along eta, and pi_base as eta = inf.

    instances: label -> (name of the instance, its parameters as lists of one). Columns: instance, n, eta, seed, gap
    (log-odds), status. Raises InvalidArgument.
    """
    import functools

    import pandas

    from rpo.bandit import baselines, simulate
    from rpo.core.objectives import DPO, RPO

    temperature = checks.positive("beta", beta)
    weights = sorted(checks.positive("etas", eta, remedy="eta = 0 is always there.") for eta in etas)
    methods = {
        "DPO": DPO(beta=temperature),
        "RPO": functools.partial(RPO, beta=temperature),
        "base": baselines.BasePolicy(),
    }
    ends = {"DPO": DPO_COLUMN, "base": np.inf}
    parts = []
    for label, (name, parameters) in instances.items():
        grid = {**parameters, "n": list(ns), "eta": weights}
        found = simulate(name, methods, grid, seeds, rng=rng, proxy=False, progress=False)
        found["eta"] = [ends.get(method, eta) for method, eta in zip(found["method"], found["eta"], strict=True)]
        kept = found.drop_duplicates(["n", "eta", "seed"])[["n", "eta", "seed", "gap", "status"]]
        parts.append(kept.assign(instance=label))
    return pandas.concat(parts, ignore_index=True)[["instance", "n", "eta", "seed", "gap", "status"]]


def gap_table(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return one row an instance and N: the gaps of DPO, of the best eta > 0 and of pi_base, and the gain.

    gain: gap of DPO minus gap of the best eta, paired over seeds, with its standard error; that eta is picked on the
    other half of the seeds.
    """
    import pandas

    rows = []
    for (label, n), part in frame.groupby(["instance", "n"], sort=False):
        wide = part.pivot(index="seed", columns="eta", values="gap")
        inner = np.array(sorted(eta for eta in part["eta"].unique() if 0 < eta < np.inf))
        between, plain, base = (wide[end].to_numpy() for end in (inner, DPO_COLUMN, np.inf))
        half = wide.index.to_numpy(dtype=int) % 2
        picked = np.array([between[half == 1 - side].mean(axis=0).argmin() for side in (0, 1)])
        best = between[np.arange(len(between)), picked[half]]
        gain = plain - best
        rows.append(
            {
                "instance": label,
                "n": n,
                "best eta": float(inner[between.mean(axis=0).argmin()]),
                "gap, DPO": plain.mean(),
                "gap, best": best.mean(),
                "gap, pi_base": base.mean(),
                "gain": gain.mean(),
                "gain/se": gain.std(ddof=1) / np.sqrt(len(gain)),
            }
        )
    return pandas.DataFrame(rows)


def gap_figure(frame: pandas.DataFrame) -> Figure:
    """Draw, from `gap_against_eta`, the mean gap against eta, a panel an instance and a line an N, with 95 % bands.

    To the left eta = 0 (DPO), to the right pi_base itself, where the lines end for eta to infinity.
    """
    from rpo.plotting import CYCLE, NORMAL_95, new_figure, style

    labels = list(dict.fromkeys(frame["instance"]))
    inner = sorted(eta for eta in frame["eta"].unique() if 0 < eta < np.inf)
    step = (inner[-1] / inner[0]) ** 0.16
    zero, infinity = inner[0] / step, inner[-1] * step
    with style():
        figure, axes = new_figure(1, len(labels), width=0.8 + 3.4 * len(labels), height=4.0, sharey=True)
        for axis, label in zip(axes[0], labels, strict=True):
            for index, (n, part) in enumerate(frame[frame["instance"] == label].groupby("n")):
                grouped = part.groupby("eta")["gap"]
                mean, error = grouped.mean(), NORMAL_95 * grouped.sem()
                color, marker = CYCLE[(5, 0, 6)[index % 3]], "os^"[index % 3]
                axis.fill_between(
                    inner, (mean - error)[inner], (mean + error)[inner], color=color, alpha=0.2, linewidth=0
                )
                axis.plot(inner, mean[inner], color=color, label=f"N = {n:g}")
                for place, eta in ((zero, DPO_COLUMN), (infinity, np.inf)):
                    axis.errorbar(place, mean[eta], yerr=error[eta], fmt=marker, color=color, markersize=5, capsize=2)
            axis.set_xscale("log")
            decades = [value for value in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0) if inner[0] <= value <= inner[-1]]
            ticks = decades[:: -(-len(decades) // 3)]
            axis.set_xticks([zero, *ticks, infinity], ["0\nDPO", *(f"{tick:g}" for tick in ticks), "inf\nbase"])
            axis.minorticks_off()
            axis.set_xlabel("eta")
            axis.set_title(label)
        axes[0, 0].set_ylim(bottom=0.0)
        axes[0, 0].set_ylabel("mean gap, log-odds")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def imitation(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    beta: float,
    etas: Sequence[float],
    reward_class: RewardClass | None = None,
) -> pandas.DataFrame:
    r"""Return how far the maximin policy is from pi_base (chosen), one row an eta, and what the theory allows.

    Columns: eta, tv, bound, active, reward_class. bound: over all reward tables the optimum satisfies
    $\pi_x = b_x + \frac{1}{\eta d_x} \sum_k w_k p_k \delta_k$ (docs/theory.md, section 3), hence
    $\mathrm{TV}(\pi_x, b_x) \le \bar p_x / \eta$, $\bar p_x$ the mean over the prompt's pairs of the modelled
    probability that the loser wins; the largest over prompts.
    """
    import pandas

    from rpo.bandit import solve
    from rpo.bandit.metrics import total_variation
    from rpo.core.objectives import RPO

    rows = []
    for eta in etas:
        weight = checks.positive("etas", eta)
        found = solve(problem, data, RPO(beta=beta, eta=weight), reward_class=reward_class, method="newton")
        saddle = found.saddle
        lost = saddle.weights * saddle.losing_probabilities(found.reward)
        mean = np.bincount(saddle.prompt, lost, problem.num_prompts) / np.maximum(data.prompt_frequencies, 1e-300)
        rows.append(
            {
                "eta": weight,
                "tv": float(total_variation(found.policy, saddle.base)[saddle.d > 0].max()),
                "bound": float(mean[saddle.d > 0].max()) / weight,
                "active": found.active,
                "reward_class": _name(found.reward_class),
            }
        )
    return pandas.DataFrame(rows)


def imitation_figure(*frames: pandas.DataFrame) -> Figure:
    """Draw, from calls of `imitation`, the distance to pi_base against eta, log-log, a line a call."""
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 1, width=6.0, height=4.0)
        axis = axes[0, 0]
        for index, rows in enumerate(frames):
            name = str(rows["reward_class"].iloc[0])
            color = COLORS["theory"] if name == "Unconstrained" else CYCLE[(index - 1) % 7]
            axis.plot(rows["eta"], rows["tv"], "-o", color=color, markersize=4, label=name)
            if name == "Unconstrained":
                axis.plot(
                    rows["eta"],
                    np.minimum(rows["bound"], 1.0),
                    ":",
                    color="#777777",
                    label="mean losing probability / eta",
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("eta")
        axis.set_ylabel("total variation to pi_base")
        axis.set_title("Towards imitation")
        axis.legend(fontsize=9)
    return figure


def _name(reward_class: RewardClass) -> str:
    described = reward_class.describe()
    size = described.get("bound", described.get("radius"))
    return str(described["name"]) + ("" if size is None else f"({size:g})")


def coverage_table(
    instances: Mapping[str, tuple[str, Mapping[str, Sequence[Any]]]], *, seeds: int, rng: int
) -> pandas.DataFrame:
    """Return one row a named instance: quartiles over fresh problems of C(best policy, pi_base = chosen).

    instances: as for `gap_against_eta`. C is the interior value, inf where data of any size leave the comparison open.
    Columns: instance, C/low, C, C/high (quartiles), uncovered (share of problems with C = inf).
    """
    import pandas

    from rpo.bandit import instances as named
    from rpo.bandit.coverage import coverage_coefficient

    count = checks.integer("seeds", seeds, minimum=1)
    rows = []
    for label, (name, parameters) in instances.items():
        make, fixed = getattr(named, name), {key: values[0] for key, values in parameters.items()}
        children = np.random.default_rng(rng).spawn(count)
        found = [coverage_coefficient(make(**fixed, rng=child), boundary=False).value for child in children]
        # "lower" never averages a finite value with an infinite one.
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75), method="lower")
        rows.append({"instance": label, "C/low": low, "C": middle, "C/high": high, "uncovered": np.isinf(found).mean()})
    return pandas.DataFrame(rows)
