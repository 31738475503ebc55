"""Where the probability went: policies over the data's counts, and paths in the simplex of three responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, shown
from rpo.core.objectives import DPO, RPO
from rpo.plotting import COLORS, CYCLE, NARROW, legend_below, letters, new_figure, style
from rpo.plotting.colors import colors_of, method_of

if TYPE_CHECKING:
    import pandas

SHARE = "#cccccc"
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def mass_frame(
    problem: ContextualBandit, data: PreferenceCounts, policies: Mapping[str, Any], *, prompt: int = 0
) -> pandas.DataFrame:
    """Return one row per response of one prompt, most compared first: what `mass` draws.

    Columns: response, wins, losses, share (of the appearances in comparisons), reward (r*, NaN where
    unknown), and one a policy. policies: label -> (X, A). Raises InvalidArgument.
    """
    import pandas

    checks.instance("problem", problem, ContextualBandit)
    checks.instance("data", data, PreferenceCounts)
    x = checks.integer("prompt", prompt, minimum=0, maximum=problem.num_prompts - 1)
    if not isinstance(policies, Mapping) or not policies:
        raise InvalidArgument(
            "policies", expected="policies by name", got=shown(policies), remedy="Pass {label: (X, A)}."
        )
    wins = data.wins()[x]
    won, lost = wins.sum(axis=1), wins.sum(axis=0)
    total = max(1.0, float((won + lost).sum()))
    labels = problem.response_labels or tuple(str(index) for index in range(problem.num_responses))
    frame = pandas.DataFrame(
        {
            "response": labels,
            "wins": won,
            "losses": lost,
            "share": (won + lost) / total,
            "reward": np.nan if problem.reward is None else problem.reward[x],
            **{
                name: checks.probabilities(f"policies[{name!r}]", table, shape=problem.reference.shape)[x]
                for name, table in policies.items()
            },
        }
    )
    return frame.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def mass(frame: pandas.DataFrame, *, title: str = "") -> Figure:
    """Draw r* above, and below it the policies as bars over the share of comparisons (light).

    frame: from `mass_frame`. Responses that no comparison shows are marked "unseen".
    """
    fixed = ("response", "wins", "losses", "share", "reward")
    checks.table("frame", frame, fixed, remedy="Pass what mass_frame returns.")
    names = [str(column) for column in frame if column not in fixed]
    position = np.arange(len(frame))
    width = 0.84 / len(names)
    with style():
        figure, axes = new_figure(2, 1, width=8.2, height=5.0, sharex=True, height_ratios=[1, 2.3])
        top, bottom = axes[:, 0]
        if frame["reward"].notna().all():
            top.vlines(position, 0.0, frame["reward"], color=COLORS["gold"], alpha=0.35, linewidth=2)
            top.plot(position, frame["reward"], "*", color=COLORS["gold"], markersize=letters(10), clip_on=False)
            best = int(frame["reward"].to_numpy().argmax())
            # Below the star: above it there may be no room.
            top.annotate(
                "best", (best, frame["reward"][best]), xytext=(9, -4), textcoords="offset points", fontsize=letters(9)
            )
            top.set_ylim(0.0, 1.12 * float(frame["reward"].max()))
        top.set_ylabel("r*, log-odds")
        top.set_title(title or "Where did the mass go?", wrap=True)
        bottom.bar(position, frame["share"], width=0.94, color=SHARE, label="share of comparisons", zorder=1)
        for index, name in enumerate(names):
            offset = (index - (len(names) - 1) / 2) * width
            color = COLORS.get(method_of(name), CYCLE[(index + 2) % len(CYCLE)])
            bottom.bar(position + offset, frame[name], width=0.9 * width, color=color, label=name, zorder=2)
        height = 1.12 * float(frame[["share", *names]].to_numpy().max())
        bottom.set_ylim(0.0, height)
        for index in np.flatnonzero(frame["share"].to_numpy() == 0).tolist():
            over = float(frame[names].to_numpy()[index].max())
            bottom.annotate(
                "unseen", (index, over), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=letters(8.5)
            )
        record = ":\n" if figure.get_figwidth() < NARROW else ":"
        counted = zip(frame["response"], frame["wins"], frame["losses"], strict=True)
        ticks = [f"{r}\n{w:g}{record}{n:g}" for r, w, n in counted]
        bottom.set_xticks(position, ticks)
        bottom.set_xlabel("response, most compared first (wins : losses)")
        bottom.set_ylabel("probability")
        handles, labels = bottom.get_legend_handles_labels()
        legend_below(figure, handles, labels, columns=len(labels))
    return figure


def simplex_frame(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    etas: Sequence[float],
    betas: Sequence[float],
    prompt: int = 0,
    reward_class: RewardClass | None = None,
) -> pandas.DataFrame:
    """Return certified optima of one prompt along beta, from the largest to the smallest: the path.

    Columns: method ("DPO" at eta = 0, else "RPO eta = ..."), eta, beta, p0, p1, p2, gold (of the prompt),
    relative_gap. Every path starts at pi_ref, the limit beta -> inf. Three responses. Raises InvalidArgument.
    """
    import pandas

    if checks.instance("problem", problem, ContextualBandit).num_responses != 3:
        raise InvalidArgument("problem", expected="3 responses", got=problem.num_responses, remedy="Use `mass`.")
    x = checks.integer("prompt", prompt, minimum=0, maximum=problem.num_prompts - 1)
    reward = problem.true_reward()[x]
    temperatures = checks.finite("betas", betas, shape=(None,)).tolist()
    rows = []
    for eta in checks.finite("etas", etas, shape=(None,)).tolist():
        method = f"RPO eta = {eta:g}" if eta else "DPO"
        start = None
        path: list[tuple[float, Array, float]] = [(np.inf, problem.reference[x], 0.0)]
        for beta in sorted(temperatures, reverse=True):
            objective = RPO(beta=beta, eta=eta) if eta else DPO(beta=beta)
            solution = solve(problem, data, objective, reward_class=reward_class, method="newton", start=start)
            start = solution.reward
            path.append((beta, solution.policy[x], solution.certificate.relative_gap))
        for beta, p, gap in path:
            point = {f"p{index}": float(p[index]) for index in range(3)}
            row = {"method": method, "eta": eta, "beta": beta, **point, "gold": float(p @ reward)}
            rows.append({**row, "relative_gap": gap})
    return pandas.DataFrame(rows)


def draw_triangle(
    figure: Figure,
    axis: Any,
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    prompt: int = 0,
    decimals: int = 2,
) -> None:
    """Draw the triangle of three responses: lines of equal gold; at its corners r*, wins and losses."""
    reward, wins = problem.true_reward()[prompt], data.wins()[prompt]
    labels = problem.response_labels or ("a0", "a1", "a2")
    triangle = Triangulation(*CORNERS.T, triangles=[[0, 1, 2]])
    levels = np.linspace(reward.min(), reward.max(), 9)
    shade = axis.tricontourf(triangle, reward, levels=levels, cmap="Greys", alpha=0.45)
    figure.colorbar(shade, ax=axis, shrink=0.7, label="gold E[r*], log-odds", format="%.2f")
    axis.plot(*CORNERS[[0, 1, 2, 0]].T, color="#555555", linewidth=1)
    narrow = figure.get_figwidth() < NARROW
    head, between = ("\n", "\n") if narrow else (": ", ", ")
    for index, (ha, va, shift) in enumerate(
        (("left", "top", -0.04), ("right", "top", -0.04), ("center", "bottom", 0.03))
    ):
        name, record = labels[index], (f"won {wins[index].sum():g}", f"lost {wins[:, index].sum():g}")
        note = f"{name}{head}r* = {reward[index]:.{decimals}f}\n{between.join(record)}"
        axis.text(
            CORNERS[index, 0],
            CORNERS[index, 1] + shift,
            note,
            ha="center" if narrow else ha,
            va=va,
            fontsize=letters(9),
        )


def simplex(
    frame: pandas.DataFrame, problem: ContextualBandit, data: PreferenceCounts, *, prompt: int = 0, title: str = ""
) -> Figure:
    """Draw the paths of `simplex_frame` in the triangle of three responses, over lines of equal gold.

    Corners carry each response's r* and its wins and losses. Arrows point to smaller beta.
    """
    checks.table("frame", frame, ("method", "p0", "p1", "p2"), remedy="Pass what simplex_frame returns.")
    checks.instance("problem", problem, ContextualBandit)
    base = checks.instance("data", data, PreferenceCounts).response_frequencies("chosen")[prompt]
    with style():
        figure, axes = new_figure(1, 1, width=6.6, height=5.4)
        axis = axes[0, 0]
        draw_triangle(figure, axis, problem, data, prompt=prompt)
        colors = colors_of(map(str, dict.fromkeys(frame["method"])))
        for index, (method, rows) in enumerate(frame.groupby("method", sort=False)):
            points = rows[["p0", "p1", "p2"]].to_numpy() @ CORNERS
            color = colors[index]
            axis.plot(*points.T, "-", marker=".", markersize=4, color=color, label=f"{method} along beta")
            middle = int(
                np.searchsorted(np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)), 0.5 * _length(points))
            )
            if _length(points) > 0.05:
                axis.annotate(
                    "", points[middle + 1], points[middle], arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2}
                )
            axis.plot(*points[-1], "s", color=color, markersize=7, markeredgecolor="white")
        axis.plot([], [], "s", color="#777777", markersize=7, markeredgecolor="white", label="smallest beta")
        for name, p, marker in (("pi_ref", problem.reference[prompt], "o"), ("pi_base (chosen)", base, "D")):
            axis.plot(
                *(p @ CORNERS), marker, color="black", markersize=7, markeredgecolor="white", label=name, linewidth=0
            )
        axis.set_aspect("equal")
        axis.set_axis_off()
        axis.set_ylim(-0.14, 1.0)
        smallest = frame["beta"].min()
        sentence = title or f"Three responses, N = {data.n:g}: beta from infinity to {smallest:g} (square)"
        figure.suptitle(sentence, x=0.01, ha="left", fontsize=letters(10.5), fontweight="bold", wrap=True)
        handles, names = axis.get_legend_handles_labels()
        legend_below(figure, handles, names, columns=3)
    return figure


def _length(points: Array) -> float:
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
