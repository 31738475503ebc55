"""Divergences: link, ratio and value are three views of one f, held to each other and to known numbers."""

import math

import numpy as np
import pytest
import torch

from rpo.core import divergences
from rpo.core.divergences import Divergence
from rpo.core.errors import InvalidArgument

ALL = (
    divergences.KL(),
    divergences.ForwardKL(),
    divergences.JensenShannon(),
    divergences.Alpha(0.3),
    divergences.Alpha(0.8),
    divergences.ChiSquaredKL(),
    divergences.ChiSquared(),
)
every = pytest.mark.parametrize("f", ALL, ids=repr)
U = np.array([0.05, 0.4, 1.0, 1.7, 6.0])
STEP = 1e-5


@every
def test_normalised_at_one(f: Divergence) -> None:
    assert f.value(np.ones(1)) == pytest.approx([0.0], abs=1e-15)
    assert f.link(np.zeros(1)) == pytest.approx([0.0], abs=1e-15)


@every
def test_link_is_the_slope_of_the_value(f: Divergence) -> None:
    slope = (f.value(U + STEP) - f.value(U - STEP)) / (2 * STEP)
    assert f.link(np.log(U)) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@every
def test_ratio_inverts_the_link_and_knows_its_slope(f: Divergence) -> None:
    s = f.link(np.log(U))
    u, slope = f.ratio(s)
    assert u == pytest.approx(U, rel=1e-12)
    assert slope == pytest.approx((f.ratio(s + STEP)[0] - f.ratio(s - STEP)[0]) / (2 * STEP), rel=1e-5, abs=1e-8)
    assert (s < f.top).all()


@every
def test_torch_agrees(f: Divergence) -> None:
    h = np.log(U)
    assert f.link(torch.tensor(h)).numpy() == pytest.approx(f.link(h), rel=1e-14)


@pytest.mark.parametrize(
    ("f", "by_hand"),
    [
        (divergences.KL(), math.log(2.0)),
        (divergences.ForwardKL(), 1.0 - 1.0 / 2.0),
        (divergences.JensenShannon(), math.log(4.0 / 3.0)),
        (divergences.Alpha(0.5), (2.0**-0.5 - 1.0) / -0.5),
        (divergences.ChiSquaredKL(), 2.0 - 1.0 + math.log(2.0)),
        (divergences.ChiSquared(), 2.0 - 1.0),
    ],
    ids=repr,
)
def test_link_at_two_is_the_hand_derived_value(f: Divergence, by_hand: float) -> None:
    """f'(2) for f' = log u, 1 - 1/u, log(2u/(1+u)), (u^(a-1) - 1)/(a - 1), u - 1 + log u, u - 1."""
    assert float(f.link(np.log(np.array(2.0)))) == pytest.approx(by_hand, rel=1e-14)


def test_alpha_lies_between_the_forward_and_the_reverse_kl() -> None:
    h = np.linspace(-2.0, 2.0, 9)
    assert divergences.Alpha(1 - 1e-7).link(h) == pytest.approx(divergences.KL().link(h), abs=1e-6)
    assert divergences.Alpha(1e-7).link(h) == pytest.approx(divergences.ForwardKL().link(h), abs=1e-6)
    for outside in (0.0, 1.0, -0.5, math.nan, "half"):
        with pytest.raises(InvalidArgument, match="alpha"):
            divergences.Alpha(outside)  # type: ignore[arg-type]


@every
def test_only_a_link_that_falls_without_bound_is_interior(f: Divergence) -> None:
    """f'(0) = -inf: at h = -600 the link is below -100 for all but the chi-squared, which stops at -1."""
    assert (float(f.link(np.array(-600.0))) < -100.0) == f.interior
