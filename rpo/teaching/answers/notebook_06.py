"""Exercises of notebook 06."""

from __future__ import annotations

import functools

import numpy as np

from rpo.core.objectives import DPO
from rpo.teaching.exercise import Exercise

STEPS = 24
DIRECTIONS = ("rises", "stays within 0.1 nats", "falls")
SOURCES = ("its own pair", "the other pairs")


@functools.cache
def _direction() -> str:
    """Train DPO for a few updates, as the notebook does for more."""
    from rpo.compare import fit_language_model
    from rpo.teaching.lessons.likelihood import near_pairs

    lm, problem, data = near_pairs()
    run = fit_language_model(
        lm, data, DPO(beta=0.1), problem=problem, steps=STEPS, log_every=STEPS, proxy_reward=None, progress=False
    )
    change = run.history[-1]["logps/chosen"] - run.history[0]["logps/chosen"]
    return DIRECTIONS[1] if abs(change) <= 0.1 else DIRECTIONS[0 if change > 0 else 2]


@functools.cache
def _source() -> str:
    """Which part of the preference term pulls the chosen responses down, on average, after a few updates of DPO."""
    from rpo.compare import fit_language_model
    from rpo.teaching.lessons.likelihood import forces, near_pairs

    lm, problem, data = near_pairs()
    goal = DPO(beta=0.1)
    run = fit_language_model(lm, data, goal, problem=problem, steps=20, proxy_reward=None, progress=False)
    frame = forces(run.artifact, data, goal, reference=lm)
    return SOURCES[int(frame["others"].mean() < frame["own"].mean())]


EXERCISES: dict[str, Exercise] = {
    "06.1": Exercise(
        question="What does the mean log-probability of chosen responses do under DPO?",
        solve=_direction,
        choices=DIRECTIONS,
        hint="DPO's loss contains the difference to the rejected response, and nothing else.",
        because="The difference grows although both fall: the rejected responses fall faster.",
        mistakes={"That is what the name promises; the loss does not ask for it.": lambda: DIRECTIONS[0]},
    ),
    "06.2": Exercise(
        question="Chosen: from -4 to -13 nats, rejected: from -5 to -38, both from pi_ref's values, beta = 0.1. "
        "The implicit reward margin?",
        solve=lambda: 0.1 * ((-13.0 + 4.0) - (-38.0 + 5.0)),
        hint="beta times (change of the chosen less change of the rejected).",
        because="0.1 (-9 + 33) = 2.4 > 0: a perfect pair for DPO, whose chosen response lost 9 nats.",
        mistakes={
            "Count both from the reference.": lambda: 0.1 * (-13.0 + 38.0),
            "Times beta.": lambda: 24.0,
            "Chosen less rejected.": lambda: -2.4,
            "That is the chosen's own implicit reward; the margin takes the difference.": lambda: -0.9,
        },
    ),
    "06.3": Exercise(
        question="Two chosen responses have probability 0.1 each; training makes them 0.5 and 0.001. "
        "Change of their mean log-probability?",
        solve=lambda: float(np.mean(np.log([0.5, 0.001]) - np.log([0.1, 0.1]))),
        hint="The mean of log 5 and log 0.01.",
        because="(1.61 - 4.61) / 2 = -1.50 nats, while their mass rose from 0.2 to 0.501. Look at both.",
        mistakes={
            "That is the sum; take the mean over the two.": lambda: float(np.log(5.0) + np.log(0.01)),
            "The logarithm of the mean is not the mean of the logarithms.": lambda: float(np.log(0.501 / 0.2)),
        },
    ),
    "06.4": Exercise(
        question="After 20 updates of DPO: what pulls the chosen responses down, on average?",
        solve=_source,
        choices=SOURCES,
        hint="Compare the columns own and others.",
        because="A pair mostly raises its own chosen response; the fall is collective.",
        mistakes={"Look at the sign of the mean of `own`.": lambda: SOURCES[0]},
    ),
    "06.5": Exercise(
        question="One pair, |g_w|^2 = 2, <g_w, g_l> = 3, at the start (s = 1/2): the eta from which on a step no "
        "longer lowers its chosen response?",
        solve=lambda: 0.5 * (3.0 / 2.0 - 1.0),
        hint="(s + eta) |g_w|^2 = s <g_w, g_l>.",
        because="eta = s (3/2 - 1) = 0.25. As s falls during training, less would do for this pair.",
        mistakes={
            "At the start s = sigmoid(0) = 1/2.": lambda: 0.5,
            "That is the inner product over the square; subtract 1 and multiply by s.": lambda: 1.5,
            "The SFT term adds to what the pair's own preference term gives: (s + eta), not eta.": lambda: 0.75,
        },
    ),
}
