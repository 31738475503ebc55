"""Exercises of notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rpo.core.objectives import DPO, RPO
from rpo.teaching.exercise import Exercise

UNSEEN = 4  # response E of `five_responses`

PUSHES = ("raises it", "lowers it", "leaves it alone")
CHANGES = {
    "ten times the pairs": lambda: _distance(times=10.0),
    "a smaller beta": lambda: _distance(beta=0.2),
    "rewards confined to [0, 0.5]": lambda: _distance(bound=0.5),
    "a larger eta": lambda: _distance(eta=1.0),
}


def _unseen_probability(objective: Any) -> float:
    from rpo.bandit import Unconstrained, solve
    from rpo.teaching.lessons.shadow import five_responses

    problem, data = five_responses()
    solution = solve(problem, data, objective, reward_class=Unconstrained(), method="newton")
    return float(solution.policy[0, UNSEEN])


def _dpo_push() -> str:
    from rpo.teaching.lessons.shadow import five_responses, pushes

    problem, data = five_responses()
    change = pushes(problem, data, DPO(beta=0.5))["preference"].iloc[UNSEEN]
    return PUSHES[2] if abs(change) < 1e-12 else PUSHES[int(change < 0)]


def _distance(*, times: float = 1.0, beta: float = 0.5, eta: float = 0.3, bound: float | None = None) -> float:
    """Total variation of the maximin and of the table trained on the loss."""
    from rpo.bandit import Box, PreferenceCounts, Unconstrained, fit, solve
    from rpo.compare import total_variation
    from rpo.teaching.lessons.shadow import five_responses

    problem, pairs = five_responses()
    data = PreferenceCounts.from_wins(times * pairs.wins())
    objective = RPO(beta=beta, eta=eta, base="reference")
    reward_class = Unconstrained() if bound is None else Box(bound)
    theory = solve(problem, data, objective, reward_class=reward_class, method="newton")
    return float(total_variation(fit(problem.softmax_policy(), data, objective).policy, theory.policy)[0])


def _what_parts_them() -> str:
    distances: dict[str, float] = {name: _of(change) for name, change in CHANGES.items()}
    return max(distances, key=distances.__getitem__)


def _of(change: Callable[[], float]) -> float:
    return change()


EXERCISES: dict[str, Exercise] = {
    "05.1": Exercise(
        question="pi(A) = 0.4, pi(B) = 0.1, pi_ref(A) = 0.2, pi_ref(B) = 0.3, beta = 0.5: r(A) - r(B)?",
        solve=lambda: 0.5 * (np.log(0.4 / 0.2) - np.log(0.1 / 0.3)),
        hint="r = beta log(pi / pi_ref) + a constant; the constant cancels in a difference.",
        because="beta (log 2 - log 1/3) = 0.5 log 6. Only the ratio to the reference counts.",
        mistakes={
            "Divide each probability by the reference's.": lambda: 0.5 * np.log(0.4 / 0.1),
            "Multiply by beta: the logarithm is in nats, the reward in log-odds.": lambda: np.log(6.0),
            "That is r(B) - r(A).": lambda: -0.5 * np.log(6.0),
            "The reference's ratio stands in the denominator.": lambda: 0.5 * np.log(0.4 * 0.2 / (0.1 * 0.3)),
        },
    ),
    "05.2": Exercise(
        question="What does a gradient step on DPO's loss do to the logit of a response that is in no pair (table)?",
        solve=_dpo_push,
        choices=PUSHES,
        hint="DPO's loss depends on log pi(w) - log pi(l) of compared responses. Which logits are in there?",
        because="Differences of log-probabilities are differences of logits: the others' logits do not occur.",
        mistakes={
            "Its probability may move, when the others' logits do; its logit?": lambda: PUSHES[1],
        },
    ),
    "05.3": Exercise(
        question="One gradient step of rate 1 on RPO's loss, beta = 0.2, eta = 0.5, base = chosen: by how much does "
        "the logit of E (pi = 0.25, in no pair) change?",
        solve=lambda: 0.5 * 0.2 * (0.0 - 0.25),
        hint="The preference term leaves it alone; the SFT term adds eta beta (pi_base - pi).",
        because="eta beta (0 - 0.25) = -0.025: mass where the chosen responses have none is pushed down.",
        mistakes={
            "The sign: pi_base(E) = 0 is below pi(E), so the logit falls.": lambda: 0.025,
            "The weight of the SFT term is eta times beta.": lambda: -0.5 * 0.25,
            "pi_base is the chosen responses, and E was never chosen.": lambda: 0.0,
        },
    ),
    "05.4": Exercise(
        question="base = reference, pi_ref(E) = 0.25, E in no pair: pi(E) at the optimum of beta = 0.05, eta = 2?",
        solve=lambda: _unseen_probability(RPO(beta=0.05, eta=2.0, base="reference")),
        hint="At the optimum the two pushes on E's logit add up to zero, and one of them is zero anyway.",
        because="Zero push means pi(E) = pi_base(E), at every beta and eta.",
        mistakes={
            "That would be the base of chosen responses; here pi_base = pi_ref.": lambda: 0.0,
            "eta beta weighs the term; its minimum does not move.": lambda: 2.0 * 0.05 * 0.25,
        },
    ),
    "05.5": Exercise(
        question="Which of these separates the maximin from the table trained on DPO + eta beta SFT?",
        solve=_what_parts_them,
        choices=tuple(CHANGES),
        hint="Where in the three steps was it used that the adversary may choose every reward table?",
        because="Then the adversary's best table may be out of reach, and the loss knows nothing of the wall.",
        mistakes={"The identity holds at every eta > 0.": lambda: "a larger eta"},
    ),
}
