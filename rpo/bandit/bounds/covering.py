"""Covering numbers of the reward classes in sup norm, and the largest margin each class allows.

Shapes: X prompts, A responses, D features, N pairs. Logarithms are natural.
"""

from __future__ import annotations

import math

import numpy as np

from rpo.bandit.reward_class import Box, LinearBall, RewardClass
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


def covering_radius(n: float, margin_bound: float) -> float:
    """Return eps = 1 / (6 (1 + e^R) N), the radius at which the concentration lemma covers the class.

    n: N, > 0. margin_bound: R, log-odds. Source: paper, Theorem 5.3 and Lemma A.1.
    """
    pairs = checks.positive("n", n)
    bound = _margin(margin_bound)
    return 1.0 / (6.0 * (1.0 + math.exp(bound)) * pairs)


def log_covering_box(bound: float, *, prompts: int, arms: int, radius: float, modulo_constants: bool = True) -> float:
    r"""Return the log of a sup-norm covering number of the tables [0, R]^{X x A} at this radius.

    With modulo_constants=False the count is exact: $\lceil R/(2\epsilon)\rceil^{XA}$ cubes of side
    $2\epsilon$ suffice, and as many points at spacing above $2\epsilon$ need one each.

    Preferences and policies see rewards only up to a constant a prompt, so it is enough to cover the
    tables whose least entry is 0 at every prompt: the union of A faces of the cube, hence at most
    $(A \lceil R/(2\epsilon)\rceil^{A-1})^X$ balls. By default the smaller of the two is returned.
    bound: R > 0. Raises InvalidArgument.
    """
    top = checks.positive("bound", bound)
    x = checks.integer("prompts", prompts, minimum=1)
    a = checks.integer("arms", arms, minimum=2)
    side = 2.0 * checks.positive("radius", radius)
    # Rounding up is below the precision of a logarithm of more than 2^53, and their number may exceed every float.
    cells = math.log(math.ceil(top / side)) if top < side * 2.0**53 else math.log(top) - math.log(side)
    whole = a * cells
    faces = math.log(a) + (a - 1) * cells
    return x * (min(whole, faces) if modulo_constants else whole)


def log_covering_ball(ball: LinearBall, *, radius: float) -> float:
    r"""Return the log of a sup-norm covering number of the linear ball: $D \log(1 + 2 B \Phi_{max} / \epsilon)$.

    $|\langle\Phi(x,a), \theta-\theta'\rangle| \le \Phi_{max}\|\theta-\theta'\|$, so covering the
    parameters at $\rho = \epsilon/\Phi_{max}$ covers the rewards at $\epsilon$. A maximal set of
    parameters more than $\rho$ apart covers; balls of radius $\rho/2$ around them are disjoint and
    lie in the ball of radius $B+\rho/2$, so comparing volumes there are at most
    $((B+\rho/2)/(\rho/2))^D = (1+2B/\rho)^D$ of them.
    $\Phi_{max}$ is the largest norm of a feature, before or after the mean over each prompt's
    responses is subtracted (this moves rewards by a constant a prompt), whichever is smaller.
    """
    rho = checks.positive("radius", radius)
    features = ball.features
    centred = features - features.mean(axis=1, keepdims=True)
    largest = min(float(np.linalg.norm(phi, axis=2).max()) for phi in (features, centred))
    return features.shape[2] * math.log1p(2.0 * ball.radius * largest / rho)


def log_covering(reward_class: RewardClass, *, prompts: int, arms: int, radius: float) -> float:
    """Return the log covering number of a `Box` or a `LinearBall` at this radius; refuse other classes."""
    if isinstance(reward_class, Box):
        return log_covering_box(reward_class.bound, prompts=prompts, arms=arms, radius=radius)
    if isinstance(reward_class, LinearBall):
        return log_covering_ball(reward_class, radius=radius)
    raise _unbounded(reward_class)


def largest_margin(reward_class: RewardClass) -> float:
    """Return R, a bound on |r(x, a) - r(x, b)| over the class, log-odds; exact for `Box` and `LinearBall`.

    The proof uses rewards only through such margins, so this R serves a ball, whose rewards may be
    negative, as well as a box.
    """
    if isinstance(reward_class, Box):
        return reward_class.bound
    if isinstance(reward_class, LinearBall):
        return reward_class.radius * _widest(reward_class.features)
    raise _unbounded(reward_class)


def _widest(features: Array) -> float:
    """Return the largest distance between two feature vectors of one prompt."""
    return max(float(np.linalg.norm(phi[:, None, :] - phi[None, :, :], axis=2).max()) for phi in features)


def _margin(value: float) -> float:
    bound = checks.positive("margin_bound", value)
    if bound > 300.0:
        raise InvalidArgument(
            "margin_bound",
            expected="at most 300 log-odds",
            got=value,
            remedy="The constants of the theorem grow like exp(2 R): no bound is left at this R.",
        )
    return bound


def _unbounded(reward_class: RewardClass) -> InvalidArgument:
    return InvalidArgument(
        "reward_class",
        expected="a bounded class, Box or LinearBall",
        got=type(reward_class).__name__,
        remedy="The theorem needs a finite covering number; pass Box(R) or LinearBall(features, radius).",
    )
