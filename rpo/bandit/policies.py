"""Trainable tabular and linear-softmax policies that start at the reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import log_softmax


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy(ABC):
    """pi(a|x) proportional to pi_ref(a|x) exp(offset(x, a)), the offset linear in the parameters."""

    problem: ContextualBandit
    parameters: Array

    @property
    @abstractmethod
    def design(self) -> Array:
        """(X, A, P): the derivative of the offsets in the P flattened parameters."""

    @property
    def logps(self) -> Array:
        """(X, A), log pi in nats; -inf where the reference gives no mass."""
        offset = self.design @ self.parameters.ravel()
        return np.asarray(log_softmax(self.problem.log_reference + offset))

    def with_parameters(self, parameters: Array) -> Self:
        """Return the same policy with other parameters, of the same shape."""
        new = checks.finite("parameters", parameters)
        checks.has_shape("parameters", new, self.parameters.shape)
        return replace(self, parameters=new)


class TabularSoftmaxPolicy(SoftmaxPolicy):
    """One logit a prompt and response. parameters: (X, A), zero at the reference."""

    def __init__(self, problem: ContextualBandit, parameters: Array | None = None) -> None:
        checks.instance("problem", problem, ContextualBandit)
        start = np.zeros(problem.reference.shape) if parameters is None else parameters
        super().__init__(problem, checks.finite("parameters", start, shape=problem.reference.shape))

    @property
    def design(self) -> Array:
        """(X, A, X * A): the identity."""
        x, a = self.problem.reference.shape
        return np.eye(x * a).reshape(x, a, x * a)


class LinearSoftmaxPolicy(SoftmaxPolicy):
    """Logits linear in the features. parameters: theta (D,), zero at the reference."""

    def __init__(self, problem: ContextualBandit, parameters: Array | None = None) -> None:
        checks.instance("problem", problem, ContextualBandit)
        if problem.features is None:
            raise InvalidArgument(
                "problem.features", expected="an (X, A, D) array", got=None, remedy="Build the problem with features=."
            )
        start = np.zeros(problem.features.shape[2]) if parameters is None else parameters
        super().__init__(problem, checks.finite("parameters", start, shape=(problem.features.shape[2],)))

    @property
    def design(self) -> Array:
        """(X, A, D): the features."""
        return np.asarray(self.problem.features)
