"""A block of the atlas: some seeds of one instance, every entrant along its knob, and what each policy is worth.

Shapes: E entrants, K values of a knob (shorter paths end in NaN), S seeds, X prompts, A responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rpo.bandit.simulation.answers import Answer
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.draws import Draw
from rpo.bandit.simulation.grid import source
from rpo.bandit.simulation.methods import Fitted, Maximin, is_solvable
from rpo.compare.atlas.entrants import Entrant, settled
from rpo.compare.atlas.instances import AtlasInstance
from rpo.compare.atlas.lists import LIST_SEEDS, ListCell
from rpo.core.checks import Array
from rpo.core.numerics import kl_divergence
from rpo.core.objectives import DPO, Objective

MEASURES = (
    "kl",  # KL(pi || pi_ref), nats
    "gold",  # what pi earns over pi_ref, r*
    "proxy",  # the same by r_MLE
    "over/unseen",  # proxy less gold, of the responses that are in no comparison
    "over/rare",  # in fewer than half as many as the average response
    "over/often",
    "mass/unseen",  # pi's
    "displacement",  # mean of log(pi / pi_ref) over the chosen responses, nats
    "binding",  # 1 where the reward class holds the rewards back
    "evidence",  # 2 certified, 1 stationary or an infimum approached, 0 none
)
RARE = 0.5  # of the average number of comparisons
LEAST_LOG = -700.0  # of a probability that is zero
AT_WALL = 1e-9
EVIDENCE = {"certified": 2.0, "stationary": 1.0, "infimum approached": 1.0}


@dataclass(frozen=True)
class _Seen:
    """One draw's rewards, centred under pi_ref prompt by prompt, and its responses by how often they are compared."""

    draw: Draw
    gold: Array
    proxy: Array
    kinds: tuple[Array, Array, Array]


def solve_block(instance: AtlasInstance, entrants: Sequence[Entrant], seeds: Sequence[int], root: int) -> Array:
    """Return the measures, (E, K, S, len(MEASURES)), NaN where there is no policy."""
    kept = [seed for seed in seeds if not instance.lists or seed < LIST_SEEDS]
    if len(kept) < len(seeds):
        table = np.full((len(entrants), max(len(e.values) for e in entrants), len(seeds), len(MEASURES)), np.nan)
        if kept:
            table[:, :, : len(kept)] = solve_block(instance, entrants, kept, root)
        return table
    if instance.lists:
        cell: Cell = ListCell(instance, seeds, root)
    else:
        cell = Cell(source(instance.source), instance.unit, seeds, root, at_once=False)
    likely = cell.answered(_method(instance, DPO(beta=1.0, base="reference")))
    seen = [_seen(draw, answer) for draw, answer in zip(cell.draws, likely, strict=True)]
    longest = max(len(entrant.values) for entrant in entrants)
    table = np.full((len(entrants), longest, len(seeds), len(MEASURES)), np.nan)
    for e, entrant in enumerate(entrants):
        for k, value in enumerate(entrant.values):
            answers = _answers(cell, instance, entrant, value)
            for s, (one, answer) in enumerate(zip(seen, answers, strict=True)):
                if answer is not None and answer.policy is not None:
                    table[e, k, s] = _measured(one, answer, instance, instance.bound / entrant.reward_unit(value))
    return table


def _answers(cell: Cell, instance: AtlasInstance, entrant: Entrant, value: float) -> Sequence[Answer | None]:
    """Return a method's answers on each draw: on lists whole where it takes them, and none of pairs then."""
    objective = entrant.at(value)
    if not objective.takes_lists:
        return cell.answered(_method(instance, objective, entrant.reward_unit(value)))
    return cell.whole_lists(objective) if isinstance(cell, ListCell) else [None] * len(cell.seeds)


def _method(instance: AtlasInstance, objective: Objective, unit: float = 1.0) -> Maximin | Fitted:
    """Return what a simulation solves; unit: rewards of the class per reward of the objective's link."""
    if not is_solvable(objective):
        return Fitted(objective, linear=instance.ball is not None)
    kind, bound = ("box", instance.bound) if instance.ball is None else ("ball", instance.ball)
    return Maximin(settled(objective), kind, bound / unit)


def _seen(draw: Draw | BaseException, likely: Answer) -> _Seen:
    if isinstance(draw, BaseException):
        raise draw
    if likely.reward is None:
        raise RuntimeError(likely.message)
    reference, counts = draw.problem.reference, draw.data.response_counts("responses")
    gold, proxy = (
        reward - (reference * reward).sum(axis=1, keepdims=True)
        for reward in (draw.problem.true_reward(), likely.reward)
    )
    average = counts.sum(axis=1, keepdims=True) / counts.shape[1]
    unseen, rare = counts == 0, (counts > 0) & (counts < RARE * average)
    return _Seen(draw, gold, proxy, (unseen, rare, ~unseen & ~rare))


def _measured(seen: _Seen, answer: Answer, instance: AtlasInstance, limit: float) -> list[float]:
    problem, policy = seen.draw.problem, np.asarray(answer.policy)
    d0, reference, data = problem.d0, problem.reference, seen.draw.data
    moved = policy - reference
    over = moved * (seen.proxy - seen.gold)
    with np.errstate(divide="ignore"):
        ratio = np.maximum(np.log(policy[data.prompt, data.chosen]), LEAST_LOG)
    held = 0.0
    if instance.ball is None and answer.reward is not None:
        held = float(np.ptp(answer.reward, axis=1).max() >= limit * (1.0 - AT_WALL))
    return [
        float(d0 @ kl_divergence(policy, reference)),
        float(d0 @ (moved * seen.gold).sum(axis=1)),
        float(d0 @ (moved * seen.proxy).sum(axis=1)),
        *(float(d0 @ np.where(kind, over, 0.0).sum(axis=1)) for kind in seen.kinds),
        float(d0 @ np.where(seen.kinds[0], policy, 0.0).sum(axis=1)),
        float(data.weights @ (ratio - np.log(reference[data.prompt, data.chosen]))),
        held,
        EVIDENCE.get(answer.status, 0.0),
    ]
