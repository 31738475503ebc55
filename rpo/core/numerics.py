"""The few functions of the objective that every backend spells differently.

Each takes NumPy arrays, torch tensors, cvxpy expressions or jets and answers in kind. Neither torch nor
cvxpy is imported here: an argument of their type proves that the caller already has.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, kl_div

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.jets import Jet

LN2 = math.log(2.0)


def backend(*values: Any) -> str:
    """Return "jet", "cvxpy", "torch" or "numpy": the kind of the first value that is not plain numbers."""
    torch, cvxpy = sys.modules.get("torch"), sys.modules.get("cvxpy")
    for value in values:
        if isinstance(value, Jet):
            return "jet"
        if cvxpy is not None and isinstance(value, cvxpy.Expression):
            return "cvxpy"
        if torch is not None and isinstance(value, torch.Tensor):
            return "torch"
    return "numpy"


def softplus(z: Any) -> Any:
    """Return log(1 + exp(z)) elementwise, without overflow."""
    kind = backend(z)
    if kind == "jet":
        p = expit(z.value)
        return z.lift(softplus(z.value), p, p * (1.0 - p))
    if kind == "cvxpy":
        return sys.modules["cvxpy"].logistic(z)
    if kind == "torch":
        # torch's softplus switches to the identity above a threshold; logaddexp is exact everywhere.
        return sys.modules["torch"].logaddexp(z, z.new_zeros(()))
    # The same to rounding as logaddexp(0, z), and eight times as fast: sweeps spend their time here.
    rest = np.asarray(np.exp(-np.abs(z)))
    np.log1p(rest, out=rest)
    rest += np.maximum(z, 0.0)
    return rest[()]


def sigmoid(z: Any) -> Any:
    """Return 1 / (1 + exp(-z)) elementwise, the derivative of softplus; not for cvxpy."""
    kind = backend(z)
    if kind == "jet":
        p = expit(z.value)
        return z.lift(p, p * (1.0 - p), p * (1.0 - p) * (1.0 - 2.0 * p))
    if kind == "torch":
        return sys.modules["torch"].sigmoid(z)
    with np.errstate(over="ignore"):  # three times as fast as expit: sweeps spend their time here too
        return 1.0 / (1.0 + np.exp(-np.asarray(z)))


def exp(z: Any) -> Any:
    """Return exp(z) elementwise."""
    kind = backend(z)
    if kind == "jet":
        e = np.exp(z.value)
        return z.lift(e, e, e)
    return sys.modules["cvxpy"].exp(z) if kind == "cvxpy" else z.exp() if kind == "torch" else np.exp(z)


def log(values: Any) -> Any:
    """Return log(values) elementwise, of numbers > 0; not for cvxpy."""
    kind = backend(values)
    if kind == "jet":
        x = values.value
        return values.lift(np.log(x), 1.0 / x, -1.0 / (x * x))
    return values.log() if kind == "torch" else np.log(values)


def constant(values: Any) -> Any:
    """Return the values as numbers that no derivative is taken in (stop-gradient); not for cvxpy."""
    kind = backend(values)
    return values.value if kind == "jet" else values.detach() if kind == "torch" else values


def times(weights: Any, values: Any) -> Any:
    """Return weights * values elementwise, (N,); weights: numbers of the values' backend, or NumPy's for cvxpy."""
    return sys.modules["cvxpy"].multiply(weights, values) if backend(values) == "cvxpy" else weights * values


def indicator(holds: Any, like: Any) -> Any:
    """Return one where a condition holds and zero elsewhere, in the precision of `like`; NumPy and torch."""
    return holds.to(like.dtype) if backend(holds) == "torch" else np.asarray(holds, dtype=np.asarray(like).dtype)


def logsumexp(values: Sequence[Any]) -> Any:
    """Return log of the sum of exp over K vectors (N,), elementwise, without overflow."""
    kind = backend(*values)
    if kind == "cvxpy":
        cvxpy = sys.modules["cvxpy"]
        return cvxpy.log_sum_exp(cvxpy.vstack(values), axis=0)
    if kind == "torch":
        return sys.modules["torch"].stack(tuple(values)).logsumexp(0)
    most = constant(values[0])
    for value in values[1:]:
        most = np.maximum(most, constant(value))
    total = exp(values[0] - most)
    for value in values[1:]:
        total = total + exp(value - most)
    return log(total) + most


def relu(z: Any) -> Any:
    """Return max(z, 0) elementwise; its derivative at 0 is taken as 0."""
    kind = backend(z)
    if kind == "jet":
        return z.lift(np.maximum(z.value, 0.0), (z.value > 0).astype(float), 0.0)
    return sys.modules["cvxpy"].pos(z) if kind == "cvxpy" else z.relu() if kind == "torch" else np.maximum(z, 0.0)


def clip(values: Any, low: float, high: float) -> Any:
    """Return the values, no less than low and no more than high; NumPy and torch."""
    return values.clip(low, high)


def square(z: Any) -> Any:
    """Return z**2 elementwise."""
    return sys.modules["cvxpy"].square(z) if backend(z) == "cvxpy" else z * z


def log1mexp(z: Any) -> Any:
    """Return log(1 - exp(z)) elementwise for z < 0, without cancellation; not for cvxpy."""
    kind = backend(z)
    if kind == "jet":
        odds = np.exp(z.value) / -np.expm1(z.value)
        return z.lift(log1mexp(z.value), -odds, -odds * (1.0 + odds))
    # Each branch is evaluated everywhere: kept away from its pole, so that the gradient of the other is not NaN.
    if kind == "torch":
        torch = sys.modules["torch"]
        near = z > -LN2
        far = torch.log1p(-torch.exp(z.where(~near, z.new_tensor(-1.0))))
        return torch.where(near, torch.log(-torch.expm1(z.where(near, z.new_tensor(-LN2)))), far)
    z = np.asarray(z)
    with np.errstate(divide="ignore"):  # -inf at z = 0 is the value
        return np.where(z > -LN2, np.log(-np.expm1(z)), np.log1p(-np.exp(np.minimum(z, -LN2))))


def log_softmax(logits: Any) -> Any:
    """Return logits - logsumexp(logits) over the last axis; -inf entries stay -inf (one must be finite)."""
    if backend(logits) == "torch":
        return logits.log_softmax(-1)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(p: Any, q: Any) -> Any:
    """Return KL(p || q) over the last axis, in nats, NumPy; rounding never makes it negative."""
    return np.maximum(kl_div(p, q), 0.0).sum(axis=-1)


def mean_under(weights: Any, values: Any) -> Any:
    """Return sum(weights * values) over the last axis, NumPy; a weight of zero counts zero where the value is -inf."""
    held = weights > 0
    return np.where(held, weights * np.where(held, values, 0.0), 0.0).sum(axis=-1)


def weighted_mean(values: Any, weights: Any = None) -> Any:
    """Return sum(weights * values), weights summing to one; the plain mean when weights is None.

    values, weights: (N,), or (..., N) for a batch, NumPy and torch only. The caller checks that
    weights sum to one.
    """
    kind = backend(values)
    if weights is None:
        return sys.modules["cvxpy"].sum(values) / values.size if kind == "cvxpy" else values.mean(-1)
    if kind == "cvxpy":
        return weights @ values
    return (weights * values).sum(-1)


def promote(value: Any, name: str = "logps") -> Any:
    """Return log-probabilities in at least float32: half precision is promoted, float64 stays float64.

    Raises InvalidArgument, by `name`, for what is no array of numbers.
    """
    kind = backend(value)
    if kind in ("cvxpy", "jet"):
        return value
    if kind == "torch":
        torch = sys.modules["torch"]
        if not value.is_floating_point() or value.layout != torch.strided:
            raise InvalidArgument(
                name,
                expected="a dense floating-point tensor",
                got=f"{value.dtype}, {value.layout}",
                remedy="Convert it first.",
            )
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    array = checks.numbers(name, value)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
