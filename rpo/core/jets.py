"""Jets: numbers that carry their exact first and second derivatives through the objective's formula.

Shapes: V variables, N groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.core.columns import Columns

Matrix = NDArray[np.float64]
AT_ONCE = 2048  # groups, whose arrays stay in a processor's cache: with eight responses each that is twice as fast


class Jet:
    """A function of V variables at N points: value (N,), gradient (V, N) and Hessian (V, V, N).

    Built by `variables` and combined by arithmetic and the functions of `rpo.core.numerics`, so that a formula
    written for arrays answers with its derivatives too. Other operands are numbers or arrays (N,), taken as constants.
    """

    # NumPy arrays on the left leave the operation to the methods below.
    __array_ufunc__ = None

    def __init__(self, value: Any, gradient: Any, hessian: Any) -> None:
        self.value, self.gradient, self.hessian = value, gradient, hessian

    @staticmethod
    def variables(columns: Sequence[Any]) -> tuple[Jet, ...]:
        """Return one jet per column (N,): the variables that derivatives are taken in."""
        size, n = len(columns), np.shape(columns[0])[0]
        flat = np.zeros((size, size, n))
        return tuple(
            Jet(np.asarray(column, dtype=np.float64), np.eye(size)[k][:, None] * np.ones(n), flat)
            for k, column in enumerate(columns)
        )

    def lift(self, value: Any, slope: Any, curvature: Any) -> Jet:
        """Return f(self) from f's value, first and second derivative at `self.value`: the chain rule."""
        outer = self.gradient[:, None] * self.gradient[None, :]
        return Jet(value, slope * self.gradient, slope * self.hessian + curvature * outer)

    def __add__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            return Jet(self.value + other.value, self.gradient + other.gradient, self.hessian + other.hessian)
        return Jet(self.value + other, self.gradient, self.hessian)

    def __mul__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value * other, self.gradient * other, self.hessian * other)
        cross = self.gradient[:, None] * other.gradient[None, :]
        return Jet(
            self.value * other.value,
            self.value * other.gradient + other.value * self.gradient,
            self.value * other.hessian + other.value * self.hessian + cross + cross.swapaxes(0, 1),
        )

    def __truediv__(self, other: Any) -> Jet:
        if isinstance(other, Jet):
            x = other.value
            return self * other.lift(1.0 / x, -1.0 / x**2, 2.0 / x**3)
        return self * (1.0 / other)

    def __pow__(self, power: int) -> Jet:
        x = self.value
        return self.lift(x**power, power * x ** (power - 1), power * (power - 1) * x ** (power - 2))

    def __neg__(self) -> Jet:
        return self * -1.0

    def __sub__(self, other: Any) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Any) -> Jet:
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def differentiated(losses: Callable[[Columns], Any], columns: Columns) -> tuple[Matrix, Matrix, Matrix]:
    """Return losses (N,) of K columns, their gradients (K, N) and Hessians (K, K, N) in what `logps` holds."""
    size, n = len(columns.logps), np.shape(columns.logps[0])[0]
    found = []
    for start in range(0, max(n, 1), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        part = columns if n <= AT_ONCE else columns.map(lambda column, rows=rows: column[rows])  # type: ignore[misc]
        jet = losses(part.with_logps(Jet.variables(part.logps)))
        found.append((jet.value, jet.gradient, np.broadcast_to(jet.hessian, (size, *jet.gradient.shape))))
    if len(found) == 1:
        return found[0]
    value, gradient, hessian = (np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
    return value, gradient, hessian
