"""What a loss does to responses that no comparison sees: found by fitting it from two places."""

from __future__ import annotations

import numpy as np

from rpo.bandit import ContextualBandit, PreferenceCounts, RankedLists, fit
from rpo.core.objectives import Objective
from rpo.methods.registry import EMPTIED, FLOODED, FREE, SET

NOTHING, SAME = 1e-4, 1e-6  # of a mass; of a difference between two ends
SCORES = (0.7, 0.4)  # of the better and the worse of a pair, where scores are read
RAISED = 1.0  # logits of the unseen responses at the second start


def found_pull(objective: Objective) -> str:
    """Return "free", "emptied", "set" or "flooded", from where a table ends that was fitted from two starts.

    Five responses under a uniform pi_ref, three of them compared with wins both ways so that the data themselves leave
    nothing open, two in no comparison. Free: their mass at the end depends on where it began. Emptied: it goes to zero;
    flooded: to one; set: it goes to the same number from both.
    """
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 5), 0.2), reward=np.arange(5.0)[None] / 4.0)
    wins = np.zeros((1, 5, 5))
    wins[0, 0, 1], wins[0, 1, 0], wins[0, 0, 2], wins[0, 2, 0], wins[0, 1, 2], wins[0, 2, 1] = 3, 2, 4, 2, 3, 2
    data: PreferenceCounts | RankedLists = PreferenceCounts.from_wins(wins)
    if "scores" in objective.needs:
        _, first, second = np.nonzero(wins)
        both = np.stack([first, second], axis=1)
        data = RankedLists.from_lists(
            np.zeros(len(first), dtype=int), both, num_prompts=1, num_responses=5, count=wins[0, first, second],
            scores=np.tile(SCORES, (len(first), 1)),
        )  # fmt: skip
    ends = []
    for lift in (0.0, RAISED):
        policy = problem.softmax_policy()
        start = policy.with_parameters(np.array([[0.0, 0.0, 0.0, lift, lift]]))
        run = fit(start, data, objective, proxy_reward=None, max_steps=2000)
        ends.append(float(run.policy[0, 3:].sum()))
    if max(ends) <= NOTHING:
        return EMPTIED
    if min(ends) >= 1.0 - NOTHING:
        return FLOODED
    return SET if abs(ends[0] - ends[1]) <= SAME else FREE
