"""The dispatched functions: one value on every backend, exact where the naive spelling is not."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch

from rpo.core import numerics
from rpo.core.preferences import bradley_terry


def test_backend_is_that_of_the_first_value_that_is_not_plain_numbers() -> None:
    assert numerics.backend(1.0, np.ones(2)) == "numpy"
    assert numerics.backend(1.0, torch.ones(2)) == "torch"
    assert numerics.backend(np.ones(2), cp.Variable(2)) == "cvxpy"


def test_softplus_is_log_one_plus_exp_on_every_backend() -> None:
    """z = ln 3 gives ln 4, z = -ln 3 gives ln(4/3), z = 0 gives ln 2; 800 would overflow exp."""
    z = np.array([math.log(3.0), -math.log(3.0), 0.0, 800.0, -40.0])
    expected = [math.log(4.0), math.log(4.0 / 3.0), math.log(2.0), 800.0, math.exp(-40.0)]
    assert numerics.softplus(z) == pytest.approx(expected, rel=1e-14)
    assert numerics.softplus(torch.tensor(z)).numpy() == pytest.approx(expected, rel=1e-14)
    variable = cp.Variable(5)
    variable.value = z
    assert numerics.softplus(variable).value == pytest.approx(expected, rel=1e-12)


def test_sigmoid_is_the_derivative_of_softplus() -> None:
    z = torch.linspace(-20, 20, 41, dtype=torch.float64, requires_grad=True)
    numerics.softplus(z).sum().backward()
    assert z.grad is not None
    assert numerics.sigmoid(z.detach()).numpy() == pytest.approx(z.grad.numpy(), rel=1e-12)
    assert numerics.sigmoid(z.detach().numpy()) == pytest.approx(z.grad.numpy(), rel=1e-12)


def test_log_softmax_normalises_shifts_away_and_keeps_forbidden_entries() -> None:
    """Logits (0, ln 3, -inf) give probabilities (1/4, 3/4, 0); adding 1000 changes nothing."""
    logits = np.array([[0.0, math.log(3.0), -np.inf]])
    for shift in (0.0, 1000.0):
        assert np.exp(numerics.log_softmax(logits + shift)) == pytest.approx(np.array([[0.25, 0.75, 0.0]]), abs=1e-13)
        torched = numerics.log_softmax(torch.tensor(logits + shift)).exp().numpy()
        assert torched == pytest.approx(np.array([[0.25, 0.75, 0.0]]), abs=1e-13)


def test_weighted_mean_is_the_same_on_every_backend() -> None:
    """(1, 2, 6): plain 3; weights (1/2, 1/4, 1/4): 2.5."""
    values, weights = np.array([1.0, 2.0, 6.0]), np.array([0.5, 0.25, 0.25])
    variable = cp.Variable(3)
    variable.value = values
    for kind in (values, torch.tensor(values), variable):
        plain = numerics.weighted_mean(kind)
        weighted = numerics.weighted_mean(kind, torch.tensor(weights) if isinstance(kind, torch.Tensor) else weights)
        if isinstance(kind, cp.Variable):
            plain, weighted = plain.value, weighted.value
        assert float(plain) == pytest.approx(3.0) and float(weighted) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros(1, np.float16), np.float32),
        (np.zeros(1, np.float32), np.float32),
        (np.zeros(1, np.float64), np.float64),
        (np.zeros(1, np.int64), np.float64),
        ([0, 1], np.float64),
        (torch.zeros(1, dtype=torch.float16), torch.float32),
        (torch.zeros(1, dtype=torch.bfloat16), torch.float32),
        (torch.zeros(1, dtype=torch.float32), torch.float32),
        (torch.zeros(1, dtype=torch.float64), torch.float64),
    ],
)
def test_promote_raises_half_precision_and_nothing_else(value: object, dtype: object) -> None:
    assert numerics.promote(value).dtype == dtype


def test_bradley_terry_is_the_logistic_of_the_reward_difference() -> None:
    """A lead of ln 3 wins 3/4 of the time, whatever is added to both; the loser wins the rest."""
    for shift in (0.0, 50.0):
        assert bradley_terry(math.log(3.0) + shift, shift) == pytest.approx(0.75, rel=1e-12)
        assert bradley_terry(shift, math.log(3.0) + shift) == pytest.approx(0.25, rel=1e-12)
