"""Exercises of notebook 04."""

import math
from functools import cache

from rpo.teaching.exercise import Exercise

SIZES = (1000, 2000, 5000, 10_000, 20_000)
STEPS = ("optimality", "coverage", "concentration", "maximum over z")
METHODS = ("greedy", "DPO", "RPO")


@cache
def _first_useful(route: str) -> float:
    """Return the first of the sizes at which the bound is below R; imports here keep `rpo.teaching` light."""
    from rpo.teaching.lessons.bound import bound_of, covered_problem

    problem = covered_problem()
    return float(next(n for n in SIZES if not bound_of(problem, n, route).vacuous))


@cache
def _largest_step() -> str:
    from rpo.teaching.lessons.bound import covered_problem, ledger_frame

    problem = covered_problem()
    frame = ledger_frame(problem, problem.sample_preferences(30_000, rng=0), ["hellinger"])
    frame = frame[frame["name"].isin(STEPS)]
    return str(frame.sort_values("slack_reward")["name"].iloc[-1])


@cache
def _vanishing() -> str:
    """Return whose gap at N = 10^5 is under a tenth of what it is at N = 10."""
    from rpo.teaching.lessons.bound import partial_coverage

    frame = partial_coverage([10, 100_000], "bad", draws=100, rng=0).pivot(index="n", columns="series", values="mean")
    found = [name for name in METHODS if frame[name][100_000] < 0.1 * frame[name][10]]
    return found[0] if len(found) == 1 else "all" if found else "none"


EXERCISES: dict[str, Exercise] = {
    "04.1": Exercise(
        question="The ratio of sigma(R) sigma(-R) to (1 + e^R)^-2 at R = 1.",
        solve=lambda: (1.0 / (1.0 + math.exp(-1.0))) * (1.0 / (1.0 + math.e)) / (1.0 + math.e) ** -2,
        hint="sigma(R) = e^R / (1 + e^R) and sigma(-R) = 1 / (1 + e^R).",
        because="sigma(R) sigma(-R) = e^R / (1 + e^R)^2, so the ratio is e^R: at R = 3 already 20.",
        mistakes={
            "That is sigma(R) sigma(-R) itself; divide by (1 + e^R)^-2.": lambda: math.e / (1.0 + math.e) ** 2,
            "That is the ratio of their squares, which is what enters m.": lambda: math.e**2,
        },
    ),
    "04.2": Exercise(
        question="The factor of data that halves a bound proportional to N^-1/2.",
        solve=lambda: 0.5**-2.0,
        hint="Solve (k N)^-1/2 = N^-1/2 / 2 for k.",
        because="(4 N)^-1/2 = N^-1/2 / 2; another decimal costs a hundred times the data.",
        mistakes={
            "That would be so if it fell like 1 / N.": lambda: 2.0,
            "That is the square root of 2; invert the power instead.": lambda: math.sqrt(2.0),
        },
    ),
    "04.3": Exercise(
        question="The smallest of five N at which the Hellinger bound is below R = 1 on the notebook's problem.",
        solve=lambda: _first_useful("hellinger"),
        hint="A for loop over the five, printing hellinger_bound(...).value.",
        because="Below it the theorem is true and silent: no gap exceeds R anyway.",
        mistakes={"There the bound is above R still.": lambda: 1000.0},
    ),
    "04.4": Exercise(
        question="The step of the Hellinger chain with the largest slack on the notebook's data.",
        solve=_largest_step,
        hint="One of the four has to hold for every reward in the class at once.",
        because="It guards all rewards of the class at once, with probability 95 %; a draw meets only one of them.",
        choices=STEPS,
    ),
    "04.5": Exercise(
        question="Whose gap goes to zero when the rare response is the worst one.",
        solve=_vanishing,
        hint="Greedy and small-beta DPO trust the fit. How much does one comparison weigh against eta = N^-1/2?",
        because="One comparison weighs 1 / N in the likelihood, less than eta = N^-1/2: doubting it is cheap.",
        choices=(*METHODS, "all", "none"),
    ),
}
