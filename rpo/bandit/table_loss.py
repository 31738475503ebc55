"""Any objective as a function of a softmax policy's parameters: value, slopes, gradient, Hessian."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from rpo.bandit.problem import SoftmaxPolicy
from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.newton import Derivatives
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array
from rpo.core.numerics import log_softmax
from rpo.core.shapes import MarginShape


class PromptSlopes(NamedTuple):
    """One prompt at one policy: log pi and the loss's slopes in it, each (S,), on the support of pi_ref.

    margins: of its comparisons, in reward units, NaN where the loss is none of one margin.
    """

    block: PromptBlock
    logps: Array
    slopes: Array
    margins: Array


class TableLoss:
    """An objective and its derivatives in a softmax policy's parameters, through the log-probabilities of groups."""

    def __init__(self, saddle: Saddle, policy: SoftmaxPolicy) -> None:
        self.saddle, self.objective, self.policy = saddle, saddle.objective, policy
        design = policy.design
        self.parts = [(block, design[block.prompt, block.support]) for block in blocks(saddle)]

    def logps(self, parameters: Array) -> Array:
        """Return log pi, (X, A), -inf outside the support and at prompts without weight or data; parameters: (P,)."""
        table = np.full(self.saddle.base.shape, -np.inf)
        for block, design in self.parts:
            table[block.prompt, block.support] = log_softmax(block.log_reference + design @ parameters)
        return table

    def value(self, parameters: Array) -> float:
        """Return the loss."""
        return self.derivatives(parameters, hessian=False)[0]

    def steepest(self, parameters: Array) -> float:
        """Return the largest entry of the gradient."""
        return float(np.abs(self.derivatives(parameters, hessian=False)[1]).max())

    def slopes(self, parameters: Array) -> list[PromptSlopes]:
        """Return each prompt's derivatives of the loss in its log-probabilities, as if these were free."""
        table, shape = self.logps(parameters), self.objective.shape
        columns = self.saddle.columns(table)
        slopes = [self.objective.derivatives(part)[1] for part in columns]
        margins = np.full(self.saddle.groups[0].weights.size, np.nan)
        if isinstance(shape, MarginShape):
            margins = shape.signed_margin(self.objective.link(columns[0]), self.objective.link.beta, columns[0])
        found = []
        for block, _ in self.parts:
            logps = table[block.prompt, block.support]
            q = self._slopes(block, slopes, self._anchor(block, logps)[1])
            found.append(PromptSlopes(block, logps, q, margins[block.which[0]]))
        return found

    def derivatives(self, parameters: Array, *, hessian: bool = True) -> Derivatives:
        """Return loss, gradient (P,) and Hessian (P, P).

        With slopes q in log pi, pulled back through log pi = t - logsumexp(t): q - pi sum(q), and for the Hessian H
        in log pi: (I - 1 pi')' H (I - 1 pi') - sum(q) (diag(pi) - pi pi').
        """
        table = self.logps(parameters)
        share = self.objective.preference_weight
        found = [self.objective.derivatives(columns) for columns in self.saddle.columns(table)]
        means = (float(share * groups.weights @ f[0]) for groups, f in zip(self.saddle.groups, found, strict=True))
        total, g = sum(means), np.zeros(parameters.size)
        h = np.zeros((parameters.size, parameters.size) if hessian else (0, 0))
        for block, design in self.parts:
            logps, pi = table[block.prompt, block.support], np.exp(table[block.prompt, block.support])
            anchored, pulled, bent = self._anchor(block, logps)
            total += anchored
            q = self._slopes(block, [slope for _, slope, _ in found], pulled)
            g += design.T @ (q - pi * q.sum())
            if hessian:
                inner = np.diag(bent)
                for groups, mine, (_, _, curvature) in zip(block.term.groups, block.which, found, strict=True):
                    for (j, first), (k, second) in product(tuple(enumerate(groups.entries)), repeat=2):
                        np.add.at(inner, (first, second), share * groups.weights * curvature[j, k, mine])
                centred = design - pi @ design  # (I - 1 pi') design
                h += centred.T @ inner @ centred - q.sum() * (design.T @ (pi[:, None] * centred))
        return total, g, h

    def _anchor(self, block: PromptBlock, logps: Array) -> tuple[float, Array, Array]:
        """Return the SFT term, or another divergence's penalty, and its two derivatives in each log pi, (S,)."""
        anchor = self.objective.anchor
        pull = anchor.weight * block.d
        if not pull:
            return 0.0, np.zeros(logps.size), np.zeros(logps.size)
        value, slope, curvature = anchor.divergence.base_derivatives(block.base, logps, block.log_measure)
        return -pull * value, -pull * slope, -pull * curvature

    def _slopes(self, block: PromptBlock, slopes: list[Array], pulled: Array) -> Array:
        """Return the slopes of a prompt's part in its log-probabilities, (S,); slopes: (K, G) of each size's groups."""
        q, share = pulled.copy(), self.objective.preference_weight
        for groups, mine, slope in zip(block.term.groups, block.which, slopes, strict=True):
            for k, entry in enumerate(groups.entries):
                np.add.at(q, entry, share * groups.weights * slope[k, mine])
        return q
