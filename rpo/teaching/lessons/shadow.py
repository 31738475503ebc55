"""From reward to loss: the pieces of the proof that DPO + eta beta SFT is the maximin, as tables and figures.

One prompt unless said otherwise; A responses. Rewards in log-odds, losses in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit
from rpo.bandit.maximin import Solution, solve
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.saddle import build_saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Solvable
from rpo.core.records import Run
from rpo.plotting import COLORS, new_figure, style

if TYPE_CHECKING:
    import pandas

__all__ = [
    "approach",
    "five_responses",
    "implicit_reward",
    "move_mass",
    "push_figure",
    "pushes",
    "reward_and_loss",
    "shadow",
    "unseen",
]

GREY = "#bbbbbb"
MASSES = np.linspace(0.01, 0.96, 96)


def five_responses() -> tuple[ContextualBandit, PreferenceCounts]:
    """Return one prompt with responses A to E and 33 comparisons, none of which shows E."""
    labels = ("A", "B", "C", "D", "E")
    problem = ContextualBandit(
        d0=np.ones(1),
        reference=np.array([[0.15, 0.25, 0.2, 0.15, 0.25]]),
        response_labels=labels,
        name="five responses",
    )
    wins = np.zeros((1, 5, 5))
    for winner, loser, count in (
        (0, 1, 8), (1, 0, 2), (1, 2, 6), (2, 1, 4), (0, 2, 4), (2, 0, 1), (2, 3, 5), (3, 2, 3),
    ):  # fmt: skip
        wins[0, winner, loser] = count
    return problem, PreferenceCounts.from_wins(wins, response_labels=labels)


def implicit_reward(problem: ContextualBandit, solution: Solution, *, prompt: int = 0) -> pandas.DataFrame:
    """Return the adversary's reward beside beta log(pi / pi_ref) of the policy, a row per response.

    Columns: response, pi_ref, policy, reward, implicit, difference: the same number in every row.
    """
    import pandas

    implicit = solution.saddle.beta * solution.saddle.log_ratio(solution.logps)[prompt]
    reward = solution.reward[prompt]
    return pandas.DataFrame(
        {
            "response": _labels(problem),
            "pi_ref": problem.reference[prompt],
            "policy": solution.policy[prompt],
            "reward": reward,
            "implicit": implicit,
            "difference": np.round(reward - implicit, 12) + 0.0,  # no minus zero
        }
    )


def reward_and_loss(
    problem: ContextualBandit, data: PreferenceCounts, objective: Solvable, *, tables: int = 4, rng: Any
) -> pandas.DataFrame:
    """Return max over pi of phi(pi, r) and the loss of pi_r for random reward tables r, standard normal.

    Columns: reward side, loss, difference: the same number in every row, `Saddle.constant`.
    """
    import pandas

    saddle = build_saddle(problem, data, objective, Unconstrained())
    generator = checks.generator("rng", rng)
    rows = []
    for _ in range(checks.integer("tables", tables, minimum=1)):
        reward = generator.normal(size=problem.reference.shape)
        side, loss = saddle.reward_side(reward), float(saddle.loss(saddle.gibbs_logps(reward))[0])
        rows.append({"reward side": side, "loss": loss, "difference": side - loss})
    return pandas.DataFrame(rows)


def pushes(
    problem: ContextualBandit, data: PreferenceCounts, objective: Solvable, *, policy: Array | None = None
) -> pandas.DataFrame:
    """Return what gradient descent of rate one adds to each logit of a table, term by term, first prompt.

    Columns: response, policy, base, preference, sft (weighted by eta beta), total. policy: (X, A), default
    pi_ref. The SFT push is eta beta (base - policy) on every response; the preference push is zero on one in no pair.
    """
    import pandas

    saddle = build_saddle(problem, data, objective, Unconstrained())
    table = problem.reference if policy is None else checks.probabilities("policy", policy)
    checks.has_shape("policy", table, problem.reference.shape)
    with np.errstate(divide="ignore"):
        reward = objective.beta * saddle.log_ratio(np.log(table))
    losing = saddle.losing_probabilities(reward)
    # The multiplier is the data's part less eta d (pi - base): at pi = base the data's alone is left.
    preference = objective.beta * saddle.multiplier(saddle.base, losing)[0]
    total = objective.beta * saddle.multiplier(table, losing)[0]
    return pandas.DataFrame(
        {
            "response": _labels(problem),
            "policy": table[0],
            "base": saddle.base[0],
            "preference": preference + 0.0,
            "sft": np.round(total - preference, 15) + 0.0,
            "total": np.round(total, 15) + 0.0,
        }
    )


def unseen(problem: ContextualBandit, data: PreferenceCounts) -> NDArray[np.bool_]:
    """Return which responses of the first prompt are in no pair, (A,) bool. Raises InvalidArgument if none or all."""
    hidden = np.asarray(data.response_counts("responses")[0] == 0)
    if hidden.all() or not hidden.any():
        raise InvalidArgument(
            "data", expected="responses with and without comparisons", got="one kind", remedy="Leave one out."
        )
    return hidden


def move_mass(
    problem: ContextualBandit,
    data: PreferenceCounts,
    objective: Solvable,
    policy: Array,
    masses: Sequence[float] | Array = MASSES,
) -> pandas.DataFrame:
    """Return both terms of the loss as the unseen responses get more mass and nothing else changes, first prompt.

    Within the unseen and within the compared responses the proportions of `policy` (1, A) stay. Columns:
    unseen, preference, sft (unweighted), loss.
    """
    import pandas

    saddle, hidden = build_saddle(problem, data, objective, Unconstrained()), unseen(problem, data)
    rows = []
    for mass in masses:
        total = checks.fraction("masses", float(mass))
        moved = np.where(hidden, policy * total / policy[0, hidden].sum(), 0.0)
        moved += np.where(hidden, 0.0, policy * (1.0 - total) / policy[0, ~hidden].sum())
        loss, terms = saddle.loss(np.log(moved))
        rows.append(
            {"unseen": total, "preference": float(terms.preference), "sft": float(terms.sft), "loss": float(loss)}
        )
    return pandas.DataFrame(rows)


def push_figure(frame: pandas.DataFrame) -> Figure:
    """Draw `pushes`: for each response what the preference term and the SFT term add to its logit in one step."""
    position = np.arange(len(frame))
    with style():
        figure, axes = new_figure(1, 2, width=8.6, height=3.3, sharex=True)
        left, right = axes[0]
        left.bar(position - 0.2, frame["policy"], width=0.38, color="#777777", label="policy")
        left.bar(position + 0.2, frame["base"], width=0.38, color="#009E73", label="pi_base")
        left.set_title("where the policy is, where the base is")
        left.set_ylabel("probability")
        right.bar(position - 0.2, frame["preference"], width=0.38, color=COLORS["DPO"], label="preference term (DPO)")
        right.bar(position + 0.2, frame["sft"], width=0.38, color=COLORS["RPO"], label="SFT term, times eta beta")
        right.axhline(0.0, color="#777777", linewidth=0.8)
        right.set_title("what one step adds to the logit")
        right.set_ylabel("change of the logit, nats")
        for axis in (left, right):
            axis.set_xticks(position, frame["response"])
            axis.set_xlabel("response")
            axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
            axis.legend(loc="upper right", fontsize=9)
    return figure


def shadow(problem: ContextualBandit, data: PreferenceCounts, *, beta: float, eta: float, base: str) -> Figure:
    """Draw theory and trained table at (beta, eta), and the loss along the mass of the unseen responses.

    Left: the certified policy, the table trained on the loss, pi_ref and pi_base. Right: DPO's loss is flat, RPO's
    has its minimum at the base's mass. Both losses are counted from their least value.
    """
    objective: Solvable = RPO(beta=beta, eta=eta, base=base) if eta > 0 else DPO(beta=beta, base=base)
    theory = solve(problem, data, objective, reward_class=Unconstrained(), method="newton")
    table = fit(problem.softmax_policy(), data, objective, proxy_reward=None)
    position, base_mass = np.arange(problem.num_responses), theory.saddle.base[0]
    frames = {"DPO": move_mass(problem, data, DPO(beta=beta, base=base), theory.policy)}
    if eta > 0:
        frames["RPO"] = move_mass(problem, data, objective, theory.policy)
    with style():
        figure, axes = new_figure(1, 2, width=9.0, height=3.7)
        left, right = axes[0]
        left.bar(position, theory.policy[0], width=0.8, color=GREY, label="theory: the maximin")
        left.plot(
            position, table.policy[0], "o", color=COLORS["table"], markersize=7, label="table, trained on the loss"
        )
        same = np.array_equal(base_mass, problem.reference[0])
        left.plot(
            position,
            problem.reference[0],
            "_",
            color="black",
            markersize=14,
            label="pi_ref = pi_base" if same else "pi_ref",
        )
        if not same:
            left.plot(position, base_mass, "x", color="black", markersize=5, label="pi_base")
        left.set_xticks(position, _labels(problem))
        left.set_xlabel("response")
        left.set_ylabel("probability")
        left.set_ylim(0.0, 1.0)
        left.legend(loc="upper right", fontsize=9)
        left.set_title(f"beta = {beta:g}, eta = {eta:g}")
        for name, frame in frames.items():
            right.plot(frame["unseen"], frame["loss"] - frame["loss"].min(), color=COLORS[name])
        unseen_mass = float(base_mass[unseen(problem, data)].sum())
        right.axvline(unseen_mass, color="#777777", linewidth=0.9, linestyle=":")
        for text, place, color in (
            ("mass under pi_base", (unseen_mass + 0.02, 0.56), "black"),
            ("DPO: any share will do", (0.55, -0.04), COLORS["DPO"]),
            *([(f"RPO: eta beta = {objective.sft_weight:.3g}", (0.55, 0.45), COLORS["RPO"])] if eta > 0 else []),
        ):
            right.annotate(text, place, color=color, fontsize=9)
        right.set_xlabel("probability of the unseen response")
        right.set_ylabel("loss above its least value, nats")
        right.set_xlim(0.0, 1.0)
        right.set_ylim(-0.06, 0.6)  # the same at every setting of the sliders
        right.set_title("what the loss says of the unseen")
    return figure


def approach(runs: Sequence[Run]) -> Figure:
    """Draw how runs come near the theory's policy: duality gap and largest total variation along training.

    Their histories need "gap" and "tv", as `rpo.compare.distance` returns them.
    """
    with style():
        figure, axes = new_figure(1, 2, width=8.6, height=3.2)
        panels = (("gap", "duality gap", "loss units"), ("tv", "distance to the maximin policy", "total variation"))
        for axis, (key, title, unit) in zip(axes[0], panels, strict=True):
            for run in runs:
                steps = [row["step"] for row in run.history if key in row]
                values = np.maximum([row[key] for row in run.history if key in row], 1e-17)
                axis.semilogy(steps, values, color=COLORS.get(run.label), label=run.label)
            axis.set_title(title)
            axis.set_ylabel(unit)
            axis.set_xlabel("training step")
        axes[0, 0].legend(loc="best")
    return figure


def _labels(problem: ContextualBandit) -> tuple[str, ...]:
    return problem.response_labels or tuple(str(index) for index in range(problem.num_responses))
