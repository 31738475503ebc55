"""Exercises of notebook 02."""

import math
from functools import cache
from typing import Any

from rpo.teaching.exercise import Exercise

ETAS = (0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 1.0, 3.0, 10.0)
ENDS = ("the reference", "the base", "the best response by r_MLE")


@cache
def _ratio() -> float:
    """Return the gap at a push over that at one tenth of it."""
    from rpo.bandit import Unconstrained
    from rpo.core.objectives import RPO
    from rpo.teaching.lessons.certificate import newcomer, perturbations

    objective = RPO(beta=0.3, eta=0.1, base="reference")
    frame = perturbations(*newcomer(), objective, Unconstrained(), (1e-3, 1e-4))
    return float(frame["gap"][0] / frame["gap"][1])


@cache
def _policy(eta: float) -> Any:
    from rpo.bandit import solve
    from rpo.core.objectives import RPO
    from rpo.teaching.lessons.certificate import newcomer

    return solve(*newcomer(), RPO(beta=0.3, eta=eta), method="newton").policy[0]


def _nearest_end() -> str:
    """Return what the policy at a very large eta is nearest to, in the largest difference of a probability."""
    from rpo.bandit import baselines, solve
    from rpo.teaching.lessons.certificate import newcomer

    problem, pairs = newcomer()
    made = [solve(problem, pairs, method).policy[0] for method in (baselines.BasePolicy(), baselines.Greedy())]
    rivals = [problem.reference[0], *made]
    far = [float(abs(_policy(1e3) - rival).max()) for rival in rivals]
    return ENDS[far.index(min(far))]


EXERCISES: dict[str, Exercise] = {
    "02.1": Exercise(
        question="log-sum-exp minus the base's reward for uniform pi_ref and base, r = (1, 0), beta = 1.",
        solve=lambda: math.log((math.e + 1.0) / 2.0) - 0.5,
        hint="The sum over a is (e + 1) / 2. What does the base earn under this reward?",
        because="log((e + 1) / 2) - 1/2 = 0.12. It is not negative: playing the base, here pi_ref, gains 0.",
        mistakes={
            "The sum is weighted by pi_ref: one half each.": lambda: math.log(math.e + 1.0) - 0.5,
            "Subtract what the base earns, 1/2.": lambda: math.log((math.e + 1.0) / 2.0),
        },
    ),
    "02.2": Exercise(
        question="tv_bound at gap 1e-6, beta = 0.1, eta = 0.05.",
        solve=lambda: math.sqrt(1e-6 / (2.0 * 0.05 * 0.1)),
        hint="2 eta beta = 0.01.",
        because="sqrt(1e-6 / 0.01) = 0.01: a millionth in the loss may be a percent in the policy: eta beta is small.",
        mistakes={
            "That lacks the 2 of Pinsker's inequality.": lambda: math.sqrt(1e-6 / (0.05 * 0.1)),
            "Take the square root.": lambda: 1e-6 / (2.0 * 0.05 * 0.1),
        },
    ),
    "02.3": Exercise(
        question="How many times smaller the gap is at a tenth of the push (unconstrained class).",
        solve=_ratio,
        hint="A smooth function near its minimum is a parabola.",
        because="The gap is quadratic in the push, so its square root, tv_bound, falls as the true distance does.",
        tolerance=0.03,
        mistakes={
            "That would be so if F had a kink at its minimum.": lambda: 10.0,
            "Second order, not third.": lambda: 1000.0,
        },
    ),
    "02.4": Exercise(
        question="The smallest eta of the path at which A has more probability than C (beta = 0.3).",
        solve=lambda: next(eta for eta in ETAS if _policy(eta)[0] > _policy(eta)[2]),
        hint="path[path['pi:A'] > path['pi:C']] keeps the rows.",
        because="From there on the adversary takes more from C's two wins than they are worth.",
        mistakes={
            "There C's reward is already low, but the policy prefers C still.": lambda: max(
                eta for eta in ETAS if _policy(eta)[0] < _policy(eta)[2]
            ),
        },
    ),
    "02.5": Exercise(
        question="The limit of the policy as eta grows.",
        solve=_nearest_end,
        hint="The last rows of the table. Which distribution is (0.62, 0.33, 0.05)?",
        because="At infinite eta only the penalty counts: the adversary holds every policy down to the base, and the "
        "base itself, imitation of the chosen responses, loses nothing.",
        choices=ENDS,
    ),
}
