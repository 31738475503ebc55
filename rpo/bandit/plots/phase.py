"""Phase diagram over two knobs: where DPO fails and RPO does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rpo.bandit.batched import solve_batch
from rpo.bandit.maximin import default_class
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Solvable
from rpo.core.progress import track
from rpo.plotting import COLORS, legend_below, letters, new_figure, style

if TYPE_CHECKING:
    import pandas

# Light where nothing is wrong, dark where nothing works; the two colours of the methods between.
REGIONS = (
    ("neither fails", "#f2f2f2"),
    ("DPO fails, RPO does not", COLORS["RPO"]),
    ("RPO fails, DPO does not", COLORS["DPO"]),
    ("both fail", "#555555"),
)
METHODS = ("DPO", "RPO")
Rule = float | Callable[[int], float]


def phase_frame(
    make_problem: Callable[[float, np.random.Generator], ContextualBandit],
    knobs: Sequence[float],
    ns: Sequence[int],
    *,
    seeds: int = 50,
    beta: Rule = 0.05,
    eta: Rule = 0.03,
    knob: str = "knob",
    rng: Any,
    progress: bool | None = None,
) -> pandas.DataFrame:
    """Return the gap of DPO and RPO on `seeds` fresh problems in every cell (knob, n).

    make_problem(value, generator) draws a problem; within a cell all must share pi_ref, d0's length and
    the reward bound, as they are solved at once. beta, eta: numbers, or functions of n. Columns: `knob`,
    n, seed, method, beta, eta, gap (log-odds), certified. Cells share their random numbers: seed s
    draws its problem, and then its data, from the same streams in every cell, so that neighbours differ
    by the knobs and not by luck. rng: Generator, SeedSequence or int. Raises InvalidArgument.
    """
    import pandas

    count = checks.integer("seeds", seeds, minimum=2)
    generator = checks.generator("rng", rng)
    words = generator.integers(2**63, size=(count, 2))
    streams = [tuple(np.random.SeedSequence(int(word)) for word in pair) for pair in words]
    rows: list[dict[str, Any]] = []
    for value in track(list(knobs), "phase", show=progress):
        problems = [make_problem(float(value), np.random.default_rng(stream)) for stream, _ in streams]
        first = problems[0]
        same = all(
            np.array_equal(p.reference, first.reference) and p.reward_bound == first.reward_bound for p in problems
        )
        if not same:
            raise InvalidArgument(
                "make_problem",
                expected="problems that share pi_ref and the reward bound",
                got="different ones",
                remedy="Draw r* and the behaviour at random, not the reference.",
            )
        for n in ns:
            size = checks.integer("ns", n, minimum=1)
            drawn = [p.sample_preferences(size, rng=stream) for p, (_, stream) in zip(problems, streams, strict=True)]
            wins = np.stack([counts.wins() for counts in drawn])
            b, e = (rule(size) if callable(rule) else rule for rule in (beta, eta))
            objectives: tuple[Solvable, Solvable] = (DPO(beta=b), RPO(beta=b, eta=e))
            for method, objective in zip(METHODS, objectives, strict=True):
                solved = solve_batch(wins, objective, reference=first.reference, reward_class=default_class(first))
                for seed, problem in enumerate(problems):
                    row = {
                        knob: float(value),
                        "n": size,
                        "seed": seed,
                        "method": method,
                        "beta": b,
                        "eta": objective.eta,
                    }
                    gap = problem.suboptimality(solved.policy[seed])
                    rows.append({**row, "gap": gap, "certified": bool(solved.certified[seed])})
    return pandas.DataFrame(rows)


def regions(frame: pandas.DataFrame, *, x: str, y: str, threshold: float) -> pandas.DataFrame:
    """Return one row per cell: mean gaps, standard errors, region (0 to 3, as REGIONS), and `unsure`.

    A method fails where its mean gap exceeds the threshold. unsure: within two standard errors of it.
    """
    limit = checks.positive("threshold", threshold)
    checks.table("frame", frame, (x, y, "method", "gap"), remedy="See phase_frame.")
    if set(frame["method"]) != set(METHODS):
        raise InvalidArgument(
            "frame", expected=f"columns {x}, {y}, method (DPO, RPO), gap", got=list(frame), remedy="See phase_frame."
        )
    grouped = frame.groupby([x, y, "method"])["gap"]
    mean, error = grouped.mean().unstack(), grouped.sem().unstack()
    table = mean.join(error.add_suffix("/se"))
    table["region"] = (table["DPO"] > limit).astype(int) + 2 * (table["RPO"] > limit).astype(int)
    table["unsure"] = ((mean - limit).abs() < 2 * error).any(axis=1)
    return table.reset_index()


def phase_diagram(
    frame: pandas.DataFrame, *, x: str, y: str, threshold: float, x_label: str | None = None, title: str = ""
) -> Figure:
    """Draw which method's mean gap exceeds the threshold in every cell, with both gaps beside it.

    frame: from `phase_frame`. Hatched cells are within two standard errors of the threshold. The three
    panels: regions, DPO's mean gap, RPO's, one colour scale for both. Raises InvalidArgument.
    """
    table = regions(frame, x=x, y=y, threshold=threshold)
    grids = {name: table.pivot(index=y, columns=x, values=name) for name in ("region", "unsure", *METHODS)}
    across, up = grids["region"].columns.to_numpy(), grids["region"].index.to_numpy()
    with style():
        figure, axes = new_figure(1, 3, width=12.6, height=4.6, sharex=True, sharey=True, width_ratios=[1.15, 1.0, 1.0])
        edges = (np.arange(across.size + 1), np.arange(up.size + 1))
        colors = ListedColormap([color for _, color in REGIONS])
        first = axes[0, 0]
        first.pcolormesh(*edges, grids["region"], cmap=colors, vmin=-0.5, vmax=3.5, edgecolors="white", linewidth=0.5)
        for row, column in np.argwhere(grids["unsure"].to_numpy().astype(bool)):
            first.fill(
                [column, column + 1, column + 1, column], [row, row, row + 1, row + 1], fill=False, hatch="////",
                edgecolor="#999999", linewidth=0,
            )  # fmt: skip
        first.set_title(f"mean gap above {threshold:g}", wrap=True)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=letters(10.5), wrap=True)
        top = float(max(grids[name].to_numpy().max() for name in METHODS))
        for axis, name in zip(axes[0, 1:], METHODS, strict=True):
            mesh = axis.pcolormesh(*edges, grids[name], cmap="cividis", vmin=0.0, vmax=top)
            drawn = axis.contour(
                edges[0][:-1] + 0.5, edges[1][:-1] + 0.5, grids[name], levels=[threshold], colors="white"
            )
            axis.clabel(drawn, fmt=f"{threshold:g}", fontsize=letters(9))
            axis.set_title(f"{name}: mean gap", wrap=True)
        figure.colorbar(mesh, ax=axes[0, 1:], shrink=0.85, label="mean gap, log-odds")
        for axis in axes[0]:
            axis.set_xlabel(x_label or x)
            axis.grid(False)
        _ticks(first.set_xticks, across)
        _ticks(first.set_yticks, up)
        first.set_ylabel("number of preferences N" if y == "n" else y)
        present = sorted({int(region) for region in table["region"]})
        handles = [Patch(facecolor=REGIONS[k][1], edgecolor="#999999", label=REGIONS[k][0]) for k in present]
        if table["unsure"].any():
            handles.append(Patch(facecolor="white", edgecolor="#999999", hatch="////", label="within 2 SE of it"))
        legend_below(figure, handles, columns=len(handles))
    return figure


def _ticks(set_ticks: Any, values: Any) -> None:
    shown = np.arange(0, len(values), -(-len(values) // 10))
    digits = [2 if values[index] < 10 else 3 if values[index] < 1000 else 6 for index in shown]
    set_ticks(shown + 0.5, [f"{values[index]:.{few}g}" for index, few in zip(shown, digits, strict=True)])
