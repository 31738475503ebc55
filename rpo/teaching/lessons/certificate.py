"""Notebook 02: the game between policy and reward, its saddle point, and what a certificate proves.

Shapes: A responses, one prompt. Rewards in log-odds, losses and divergences in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit import Box, ContextualBandit, PreferenceCounts, Solution, certify, solve
from rpo.bandit.bounds.ledger import likelihood_difference, worst_reward
from rpo.bandit.metrics import total_variation
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import kl_divergence
from rpo.core.objectives import DPO, RPO

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

GRID = 241
MLE, ADVERSARY, GOLD = "r_MLE, no adversary", "the adversary's reward", "r*, the truth"


def two_responses(first: int = 14, second: int = 6, *, bound: float = 2.0) -> tuple[ContextualBandit, PreferenceCounts]:
    """Return a prompt with two responses, uniform pi_ref, and the wins of each over the other."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 2), 0.5), reward_bound=bound)
    return problem, PreferenceCounts.from_wins(np.array([[[0, first], [second, 0]]]))


def newcomer() -> tuple[ContextualBandit, PreferenceCounts]:
    """Return three responses: A and B compared often (26 : 14), C twice with A, and lucky (it won both).

    r* = (2.0, 1.4, 0.5), R = 3, uniform pi_ref.
    """
    problem = ContextualBandit(
        d0=np.ones(1),
        reference=np.full((1, 3), 1.0 / 3.0),
        reward=np.array([[2.0, 1.4, 0.5]]),
        reward_bound=3.0,
        response_labels=("A", "B", "C"),
        name="newcomer",
    )
    wins = np.array([[[0, 26, 0], [14, 0, 0], [2, 0, 0]]])
    return problem, PreferenceCounts.from_wins(wins, response_labels=("A", "B", "C"))


def saddle_values(saddle: Saddle, bound: float) -> dict[str, Array]:
    """Return phi of two responses on a grid: keys share (P,), difference (T,), value (T, P), upper (T,), lower (P,).

    share: the policy's first probability. difference: r(1) - r(2) from -bound to bound. value: phi, by the Gibbs
    identity F(r) - eta beta KL(pi || pi_r). upper: its maximum over policies, F(r). lower: its minimum over rewards.
    """
    if saddle.base.shape != (1, 2):
        raise InvalidArgument(
            "saddle", expected="one prompt and two responses", got=saddle.base.shape, remedy="See two_responses."
        )
    share, difference = np.linspace(0.0, 1.0, GRID), np.linspace(-bound, bound, GRID)
    policies = np.column_stack([share, 1.0 - share])
    upper, value = np.zeros(GRID), np.zeros((GRID, GRID))
    for row, t in enumerate(difference):
        reward = np.array([[max(t, 0.0), max(-t, 0.0)]])
        upper[row] = saddle.reward_side(reward)
        value[row] = upper[row] - saddle.sft_weight * kl_divergence(policies, saddle.gibbs(reward)[0])
    return {"share": share, "difference": difference, "value": value, "upper": upper, "lower": value.min(axis=0)}


def saddle_picture(
    problem: ContextualBandit, data: PreferenceCounts, objective: RPO, *, bound: float | None = None
) -> Figure:
    """Draw phi over (policy, reward) of two responses, both players' answers, and the two programs beside it.

    bound: R of the box, default the problem's.
    """
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    top = checks.positive("bound", problem.reward_bound if bound is None else bound)
    solution = solve(problem, data, objective, reward_class=Box(top), method="newton")
    grid = saddle_values(solution.saddle, top)
    share, difference = grid["share"], grid["difference"]
    at_policy, at_reward = float(solution.policy[0, 0]), float(solution.reward[0, 0] - solution.reward[0, 1])
    gibbs = [solution.saddle.gibbs(np.array([[max(t, 0.0), max(-t, 0.0)]]))[0, 0] for t in difference]
    answer = difference[grid["value"].argmin(axis=0)]
    value = solution.certificate.reward_value
    red, blue = COLORS["DPO"], COLORS["RPO"]
    with style():
        figure, axes = new_figure(1, 3, width=10.4, height=3.7, width_ratios=[1.5, 1, 1])
        plane, reward_axis, policy_axis = axes[0]
        plane.contourf(share, difference, grid["value"], levels=12, cmap="Greys", alpha=0.55, antialiased=True)
        plane.plot(gibbs, difference, color=blue, label="policy's best answer, pi_r")
        plane.plot(share, answer, color=red, linestyle="--", label="adversary's best answer")
        plane.plot(at_policy, at_reward, "o", color="black", markersize=8, label="saddle point")
        plane.set_xlabel("pi(1), probability of the first response")
        plane.set_ylabel("r(1) - r(2), log-odds")
        plane.set_title(f"phi, beta = {objective.beta:g}, eta = {objective.eta:g}")
        reward_axis.plot(difference, grid["upper"], color=blue)
        reward_axis.set_xlabel("r(1) - r(2), log-odds")
        reward_axis.set_title("max over policies: F(r)")
        policy_axis.plot(share, grid["lower"], color=red, linestyle="--")
        policy_axis.set_xlabel("pi(1)")
        policy_axis.set_title("min over rewards")
        for axis, x in ((reward_axis, at_reward), (policy_axis, at_policy)):
            axis.axhline(value, color=CYCLE[6], linewidth=0.9)
            axis.plot(x, value, "o", color="black", markersize=7)
            axis.set_ylabel("value of phi, nats")
            axis.sharey(reward_axis)
        figure.legend(*plane.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def perturbations(
    problem: ContextualBandit,
    data: PreferenceCounts,
    objective: RPO,
    reward_class: Any,
    sizes: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    *,
    rng: Any = 0,
) -> pandas.DataFrame:
    """Push the optimal reward off its place in one random direction; return what the certificate then says.

    Columns: size (largest change of a reward, log-odds), gap, tv_bound, and distance: the true total variation between
    the pushed reward's policy and the optimal one. Rewards are projected onto the class.
    """
    import pandas

    solution = solve(problem, data, objective, reward_class=reward_class, method="newton")
    direction = checks.generator("rng", rng).normal(size=solution.reward.shape)
    direction /= np.abs(direction).max()
    rows = []
    for size in sizes:
        reward = solution.reward_class.project(solution.reward + size * direction)
        found = certify(solution.saddle, reward)
        distance = float(solution.saddle.d @ total_variation(solution.saddle.gibbs(reward), solution.policy))
        rows.append({"size": size, "gap": found.gap, "tv_bound": found.tv_bound, "distance": distance})
    return pandas.DataFrame(rows)


def perturbation_figure(frames: Mapping[str, pandas.DataFrame]) -> Figure:
    """Draw gap, bound and true distance against the size of the push, one panel a frame of `perturbations`."""
    from rpo.plotting import CYCLE, new_figure, style

    lines = (
        ("gap", "duality gap, nats", "s"),
        ("tv_bound", "tv_bound", "^"),
        ("distance", "true total variation", "o"),
    )
    with style():
        figure, axes = new_figure(1, len(frames), width=1.2 + 4.0 * len(frames), height=3.6, sharey=True)
        for axis, (title, frame) in zip(axes[0], frames.items(), strict=True):
            for (column, label, marker), color in zip(lines, (CYCLE[1], CYCLE[0], CYCLE[2]), strict=True):
                axis.plot(frame["size"], frame[column], marker=marker, color=color, label=label)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("push on the reward, log-odds")
            axis.set_title(title)
        axes[0, 0].set_ylabel("after the push")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def eta_path(problem: ContextualBandit, data: PreferenceCounts, beta: float, etas: Sequence[float]) -> pandas.DataFrame:
    """Solve the maximin along eta; return one row an eta.

    Columns: eta, policy and reward of each response (pi:<label>, r:<label>, the latter counted from the base's mean),
    nats (N times the likelihood given up, L_D(r_eta) - L_D(r_MLE)), and the advantage over the base, E_pi[r] -
    E_base[r], under r_MLE, r_eta and r*.
    """
    import pandas

    _one_prompt(problem)
    labels = problem.response_labels or tuple(str(a) for a in range(problem.num_responses))
    likely = solve(problem, data, DPO(beta=beta), method="newton").reward
    rows = []
    for eta in etas:
        solution = solve(problem, data, RPO(beta=beta, eta=eta), method="newton")
        policy, base, reward = solution.policy[0], solution.saddle.base[0], solution.reward[0]
        judges = {MLE: likely[0], ADVERSARY: reward, GOLD: problem.true_reward()[0]}
        rows.append(
            {
                "eta": eta,
                **{f"pi:{label}": float(p) for label, p in zip(labels, policy, strict=True)},
                **{f"r:{label}": float(r - base @ reward) for label, r in zip(labels, reward, strict=True)},
                "nats": data.n * likelihood_difference(data, solution.reward, likely),
                **{name: float((policy - base) @ judge) for name, judge in judges.items()},
            }
        )
    return pandas.DataFrame(rows)


def eta_figure(frame: pandas.DataFrame) -> Figure:
    """Draw policy, the adversary's reward and the advantage over the base along eta. frame: of `eta_path`."""
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    with style():
        figure, axes = new_figure(1, 3, width=10.8, height=3.6)
        labels = [str(column)[3:] for column in frame if str(column).startswith("pi:")]
        for axis, prefix, name in (
            (axes[0, 0], "pi:", "policy: probability"),
            (axes[0, 1], "r:", "adversary's reward, over the base's mean, log-odds"),
        ):
            for index, label in enumerate(labels):
                column = frame[prefix + label]
                axis.plot(frame["eta"], column, color=CYCLE[index])
                axis.annotate(
                    label, (frame["eta"].iloc[-1], column.iloc[-1]), ha="left", va="center", color=CYCLE[index],
                    xytext=(5, 0), textcoords="offset points", fontweight="bold",
                )  # fmt: skip
            axis.set_title(name.split(",")[0])
        axes[0, 0].set_ylabel("probability")
        axes[0, 1].set_ylabel("over the base's mean, log-odds")
        for name, color, line in (
            (MLE, COLORS["proxy"], "--"), (ADVERSARY, COLORS["RPO"], "-."), (GOLD, COLORS["gold"], "-"),
        ):  # fmt: skip
            axes[0, 2].plot(frame["eta"], frame[name], line, color=color, label=name)
        axes[0, 2].axhline(0.0, color="#777777", linewidth=0.8)
        axes[0, 2].set_title("advantage over the base, under")
        axes[0, 2].set_ylabel("E_pi[r] - E_base[r], log-odds")
        axes[0, 2].legend(fontsize=8.5)
        for axis in axes[0]:
            axis.set_xscale("log")
            axis.set_xlabel("eta")
    return figure


def worst_cases(
    problem: ContextualBandit,
    data: PreferenceCounts,
    policies: Mapping[str, Array],
    etas: Sequence[float] = tuple(np.geomspace(1e-3, 3.0, 40)),
) -> pandas.DataFrame:
    """Set an adversary of every strength against fixed policies.

    At strength eta it minimises eta E[<pi - base, r>] + L_D(r) over the box, so its reward is the worst for pi among
    those at least as likely as itself. Columns: policy, eta, nats (N times the likelihood it gave up), advantage
    (E_pi[r] - E_base[r] under its reward; base: the chosen responses).
    """
    import pandas

    _one_prompt(problem)
    box = Box(checks.positive("reward_bound", problem.reward_bound))
    likely = solve(problem, data, DPO(beta=1.0), method="newton").reward
    rows = []
    for name, policy in policies.items():
        table = checks.probabilities(f"policies[{name!r}]", policy, shape=problem.reference.shape)
        for eta in etas:
            saddle = build_saddle(problem, data, RPO(beta=1.0, eta=eta), box)
            reward, _ = worst_reward(saddle, table)
            nats = data.n * likelihood_difference(data, reward, likely)
            advantage = float(((table - saddle.base) * reward).sum())
            rows.append({"policy": name, "eta": eta, "nats": max(nats, 0.0), "advantage": advantage})
    return pandas.DataFrame(rows)


def worst_case_figure(frame: pandas.DataFrame, *, most: float = 8.0) -> Figure:
    """Draw each policy's advantage over the base against the likelihood its adversary gave up, at most `most` nats."""
    from rpo.plotting import COLORS, CYCLE, new_figure, style

    shades = {"DPO": [COLORS["DPO"]], "RPO": [COLORS["RPO"], CYCLE[5]], "": ["#777777", CYCLE[2], CYCLE[3]]}
    with style():
        figure, axes = new_figure(1, 1, width=7.4, height=3.9)
        axis = axes[0, 0]
        for name, rows in frame.groupby("policy", sort=False):
            left = shades.get(str(name)[:3]) or shades[""]
            color = left.pop(0) if left else "black"
            axis.plot(rows["nats"], rows["advantage"], "-o", markersize=3, color=color, label=str(name))
        axis.axhline(0.0, color="#555555", linewidth=1.0)
        axis.annotate(
            "the base itself", (most, 0.0), xytext=(-2, 4), textcoords="offset points", ha="right", fontsize=9
        )
        axis.set_xlim(-0.1, most)
        axis.set_xlabel("log-likelihood the adversary gives up against r_MLE, nats")
        axis.set_ylabel("advantage over the base\nunder its reward, log-odds")
        axis.legend()
    return figure


def describe(solution: Solution) -> str:
    """Return the solution in a line: policy, reward, status."""
    policy, reward = (", ".join(f"{x:.3f}" for x in row[0]) for row in (solution.policy, solution.reward))
    return f"policy ({policy}), reward ({reward}), {solution.status}"


def _one_prompt(problem: ContextualBandit) -> None:
    if problem.num_prompts != 1:
        raise InvalidArgument("problem", expected="one prompt", got=problem.num_prompts, remedy="Take one of them.")
