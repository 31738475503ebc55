"""What is known of a table that `fit` ends at: a bound on how far its loss is from the least, or that it is flat there.

docs/theory.md, section 10, proves the bounds. S responses of a prompt, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from rpo.bandit.problem import TabularSoftmaxPolicy
from rpo.bandit.solver.certificate import RELATIVE_GAP
from rpo.bandit.solver.existence import minimizer_exists
from rpo.bandit.solver.solvable import proven_convex, sample
from rpo.bandit.table_loss import PromptSlopes, TableLoss
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.links import LogRatio, WeighedReference
from rpo.core.numerics import kl_divergence
from rpo.core.shapes import MarginShape

MAX_SPECTRUM = 2000  # parameters whose Hessian is decomposed
TRIED = 32  # flat directions, each for two values of the loss
FLAT = 1e-7  # of the largest eigenvalue, or of beta^2, which curvature is of the order of
VISIBLE, ROUNDING = 1e-13, 1e-14  # of a change of the loss
CURVED = 1e-12  # of a slope: a smaller change is rounding
SEEN = 1e-10  # of the largest squared effect of a direction on the log-probabilities


@dataclass(frozen=True)
class Evidence:
    """What a fit's answer rests on.

    word: "certified" (a bound proves the loss to be within `gap` of the least), "infimum approached" (no table of
    finite logits has the least loss), "stationary" (the gradient is zero, and no more is proved) or "none". numbers:
    behind it. message: a sentence's end.
    """

    word: str
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)


def table_evidence(loss: TableLoss, parameters: Array, *, slope: float, converged: bool) -> Evidence:
    """Return what is known of `parameters` (P,); slope: the largest entry of the gradient there."""
    value, (gap, bound) = loss.value(parameters), loss_gap(loss, parameters)
    numbers: dict[str, Any] = {"gradient": slope}
    if np.isfinite(gap):
        numbers |= {"gap": gap, "bound": bound}
    pull = loss.objective.anchor.weight
    if bound == "log-probabilities" and np.isfinite(gap) and pull and loss.objective.shape.invariant:
        numbers["tv_bound"] = min(1.0, math.sqrt(gap / (2.0 * pull)))
    proved = gap <= RELATIVE_GAP * max(1.0, abs(value))
    away = "" if proved and bound == "rewards" else _no_minimiser(loss)
    if not (proved or converged):
        return Evidence("none", away or "", numbers)
    if away is None or not proved:
        falls, least, saddle = _beyond(loss, parameters)
        away, numbers = away or falls, {**numbers, "least_eigenvalue": least}
    numbers["attained"] = not away
    if proved:
        where = f"the infimum, which is only approached: {away}" if away else "the minimum over all tables"
        return Evidence("certified", f"certified within {gap:.1e} of {where}", numbers)
    if away:
        return Evidence("infimum approached", f"infimum approached, no minimum: {away}", numbers)
    message = "stationary, at no proved distance from the minimum"
    if np.isfinite(least):
        message += f": least eigenvalue of the Hessian {least:.1e}" + ", a saddle point" * saddle
    return Evidence("stationary", message, numbers)


# --- bounds ----------------------------------------------------------------------------------------


def loss_gap(loss: TableLoss, parameters: Array) -> tuple[float, str]:
    """Return a bound on loss - infimum over all tables, never negative, and its name; (inf, "") where none is proved.

    "rewards": convex in the rewards, of which only differences matter. "log-probabilities": convex in these.
    "policy": convex in the probabilities, Frank and Wolfe's gap.
    """
    objective = loss.objective
    tabular = isinstance(loss.policy, TabularSoftmaxPolicy)
    sft = objective.anchor.weight >= 0 and isinstance(objective.anchor.divergence, KL)
    if not (tabular and sft and objective.preference_weight > 0):
        return math.inf, ""
    if objective.convex_in_policy:
        return sum(map(_policy_gap, loss.slopes(parameters))), "policy"
    link, shape, pull = objective.link, objective.shape, objective.anchor.weight
    known = type(link) in (LogRatio, WeighedReference)  # a subclass may link in another way
    differences = shape.invariant and (isinstance(shape, MarginShape) or shape.concordant)
    if not (known and (link.affine or (differences and not pull)) and proven_convex(shape)):
        return math.inf, ""
    total, of_differences = 0.0, _reward_gap if isinstance(shape, MarginShape) else _list_gap
    for prompt in loss.slopes(parameters):
        free = differences and not pull * prompt.block.d
        total += of_differences(loss, prompt) if free else _log_probability_gap(prompt)
    return total, "log-probabilities" if pull or not differences else "rewards"


def _policy_gap(prompt: PromptSlopes) -> float:
    """Return max over responses of <-gradient, e_a - pi>, the gradient taken in pi."""
    pi = np.exp(prompt.logps)
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = -prompt.slopes / pi
    return float(pi @ (fall.max() - fall)) if np.isfinite(fall).all() else math.inf


def _log_probability_gap(prompt: PromptSlopes) -> float:
    """Return C KL(-q / C || pi), q the slopes and C = -sum(q): inf where a slope is above zero."""
    q = prompt.slopes
    if q.max() > 0:
        return math.inf
    total = -float(q.sum())
    return total * float(kl_divergence(-q / total, np.exp(prompt.logps))) if total else 0.0


def _reward_gap(loss: TableLoss, prompt: PromptSlopes) -> float:
    """Return the bound for a loss of reward differences alone; inf where its slope outweighs its curvature."""
    (pairs,), shape, size = prompt.block.term.groups, loss.objective.shape, prompt.block.support.size
    (chosen, rejected), weights = pairs.entries, loss.objective.preference_weight * pairs.weights
    # Of the formula itself: a subclass may inherit the closed form of another.
    left, here, right = (MarginShape.derivatives(shape, prompt.margins + step, 1.0)[0] for step in (-1.0, 0.0, 1.0))  # type: ignore[arg-type]
    slope = np.zeros(size)
    np.add.at(slope, chosen, weights * here)
    np.add.at(slope, rejected, -weights * here)
    edges = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    bend = np.minimum(here - left, right - here)
    bend[bend <= CURVED * np.maximum(np.abs(left), np.abs(right))] = 0.0
    grip = csr_array((weights * bend, edges), shape=(size, size))
    grip.eliminate_zeros()
    count, component = connected_components(grip, directed=False)
    apart = component[chosen] != component[rejected]  # a comparison without curvature
    tree = minimum_spanning_tree(-grip).tocoo()
    weakest = np.full(count, np.inf)
    np.minimum.at(weakest, component[tree.row], -tree.data)
    steep = 0.5 * np.bincount(component, np.abs(slope), minlength=count)
    if apart.any() or (steep >= weakest).any():
        return math.inf
    return float(steep @ (np.bincount(component, minlength=count) - 1.0))


def _list_gap(loss: TableLoss, prompt: PromptSlopes) -> float:
    """Return the bound for lists' differences alone, of third derivatives held by the second; inf as above."""
    block, objective, size = prompt.block, loss.objective, prompt.block.support.size
    one = Columns(logps=(prompt.logps,), reference=(block.log_reference,), lengths=(np.ones(size),))
    (rewards,) = objective.rewards(one)
    _, slope, hessian = block.term.derivatives(rewards)
    joined = [(groups.entries[0], entry) for groups in block.term.groups for entry in groups.entries[1:]]
    first, second = (np.concatenate(side) for side in zip(*joined, strict=True))
    count, component = connected_components(csr_array((np.ones(first.size), (first, second)), shape=(size, size)))
    total = 0.0
    for mine in (np.flatnonzero(component == c) for c in range(count)):
        if mine.size == 1:
            continue
        steep = 0.5 * objective.preference_weight * float(np.abs(slope[mine]).sum())
        grip = 0.5 * objective.preference_weight * float(np.linalg.eigvalsh(hessian[np.ix_(mine, mine)])[1])
        if steep >= grip:
            return math.inf
        total += max(0.0, steep + (grip - steep) * math.log1p(-steep / grip))
    return total


# --- infima at infinity, stationarity --------------------------------------------------------------


def _no_minimiser(loss: TableLoss) -> str | None:
    """Return why no table attains the least loss, "" where one does, and None where no theorem tells."""
    objective = loss.objective
    shape, link = objective.shape, objective.link
    told = shape.convex and shape.invariant and shape.arrows(sample(shape)) is not None
    own = isinstance(link, LogRatio) and (link.divergence == objective.anchor.divergence or not objective.anchor.weight)
    if not (told and own and objective.anchor.weight >= 0 and objective.preference_weight == 1.0):
        return None
    existence = minimizer_exists(loss.saddle)
    return "" if existence.exists else f"over all tables no minimiser exists: {existence.reason}"


def _beyond(loss: TableLoss, parameters: Array) -> tuple[str, float, bool]:
    """Return a sentence where the loss falls for ever ("" elsewhere), the Hessian's least eigenvalue, and if negative.

    It falls for ever where it is lower than a quarter of the way out and does not rise a quarter further, along a flat
    direction: where logits run away, curvature dies with the slope. NaN where there are too many parameters.
    """
    if parameters.size > MAX_SPECTRUM:
        return "", math.nan, False
    seen = _seen_directions(loss, parameters.size)
    value, _, hessian = loss.derivatives(parameters)
    eigenvalues, vectors = np.linalg.eigh(seen.T @ hessian @ seen)
    flat = FLAT * max(float(np.abs(eigenvalues).max()), loss.objective.link.beta**2)
    directions = seen @ vectors[:, np.abs(eigenvalues) <= flat]
    parts = directions * (directions.T @ parameters)
    furthest = np.argsort(-np.abs(parts).max(axis=0, initial=0.0))[:TRIED]
    scale, least = max(1.0, abs(value)), float(eigenvalues[0])
    for way in (parts.sum(axis=1), *parts.T[furthest]):
        before, beyond = (loss.value(parameters + step * way) for step in (-0.75, 0.25))
        if before > value + VISIBLE * scale and beyond <= value + ROUNDING * scale:
            return "the loss keeps falling as logits part for ever", least, least < -flat
    return "", least, least < -flat


def _seen_directions(loss: TableLoss, size: int) -> Array:
    """Return an orthonormal basis (P, B) of the directions that move a log-probability: no constants of a prompt."""
    gram = np.zeros((size, size))
    for _, design in loss.parts:
        centred = design - design.mean(axis=0)
        gram += centred.T @ centred
    weights, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors[:, weights > SEEN * weights.max(initial=0.0)])
