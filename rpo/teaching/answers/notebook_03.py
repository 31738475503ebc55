"""Exercises of notebook 03."""

from functools import cache
from typing import Any

from rpo.teaching.exercise import Exercise

FIVE = ((0, 4, 1, 0, 0), (4, 0, 3, 0, 0), (1, 3, 0, 1.5, 0), (0, 0, 1.5, 0, 0.5), (0, 0, 0, 0.5, 0))
CHAIN = ((0, 40, 0, 0, 0), (40, 0, 30, 0, 0), (0, 30, 0, 6, 0), (0, 0, 6, 0, 3), (0, 0, 0, 3, 0))
PAIRS = ("A-B", "C-D", "D-E", "A-E")


def _resistance(weights: Any, p: Any, q: Any) -> float:
    from rpo.bandit.coverage import effective_resistance

    return effective_resistance(weights, p, q)


def _needed(deviation_power: int = 2) -> float:
    """Return N with 4 R / N = 0.1^2, R of D-E with the shares of the five kinds of comparisons as conductances."""
    total = sum(map(sum, FIVE)) / 2.0
    shares = [[weight / total for weight in row] for row in FIVE]
    return 4.0 * _resistance(shares, (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)) / 0.1**deviation_power


@cache
def _next() -> str:
    from rpo.teaching.lessons.electrical import next_pairs

    frame = next_pairs(CHAIN, (0, 0, 0, 0, 1), (0.7, 0.2, 0.1, 0, 0), extra=10)
    return next(pair for pair in frame["pair"] if pair in PAIRS)


EXERCISES: dict[str, Exercise] = {
    "03.1": Exercise(
        question="The resistance between the ends of two wires in series, conductances 2 and 4.",
        solve=lambda: _resistance(((0, 2, 0), (2, 0, 4), (0, 4, 0)), (1, 0, 0), (0, 0, 1)),
        hint="Resistances are 1/2 and 1/4.",
        because="1/2 + 1/4 = 3/4: uncertainties along a chain add up.",
        mistakes={
            "Conductances add in parallel; in series the resistances do.": lambda: 6.0,
            "That is the conductance; the resistance is one over it.": lambda: 4.0 / 3.0,
        },
    ),
    "03.2": Exercise(
        question="The resistance between two corners of a triangle of unit conductances.",
        solve=lambda: _resistance(((0, 1, 1), (1, 0, 1), (1, 1, 0)), (1, 0, 0), (0, 0, 1)),
        hint="The direct wire has conductance 1. The way through B has resistance 2, so conductance 1/2.",
        because="1 / (1 + 1/2) = 2/3: the detour through B helps, by a third.",
        mistakes={
            "That is the conductance; the resistance is one over it.": lambda: 1.5,
            "That leaves out the detour through B.": lambda: 1.0,
            "Side by side, conductances add, not resistances.": lambda: 3.0,
        },
    ),
    "03.3": Exercise(
        question="N for a standard deviation of 0.1 on r(D) - r(E).",
        solve=_needed,
        hint="Solve 4 R / N = 0.1^2 for N.",
        because="4 x 20 / 0.01 = 8,000, of which only one in twenty compares D with E.",
        mistakes={
            "The variance is the square of the standard deviation.": lambda: _needed(1),
            "That lacks the 4, which is one over sigma'(0).": lambda: _needed() / 4.0,
        },
    ),
    "03.4": Exercise(
        question="The power on a star of unit wires: everything at A, from one half each at B and C.",
        solve=lambda: _resistance(
            ((0, 1, 1, 1), (1, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)), (0, 1, 0, 0), (0, 0, 0.5, 0.5)
        ),
        hint="The flows on the three wires are 1, 1/2 and 1/2. Square them.",
        because="1 + 1/4 + 1/4 = 1.5, less than the 2 between A and B alone: a spread base is easier to compare with.",
        mistakes={
            "That is the sum of the flows; power takes their squares.": lambda: 2.0,
            "The wire of A carries current as well.": lambda: 0.5,
        },
    ),
    "03.5": Exercise(
        question="Of four pairs, the one whose ten further comparisons lower the resistance most.",
        solve=_next,
        hint="Which pair has the largest voltage while the current flows from the base to E?",
        because="The whole voltage lies between A and E; a direct wire bypasses every weak one. D-E, the weakest, is "
        "second among these.",
        choices=PAIRS,
    ),
}
