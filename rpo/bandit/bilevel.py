"""A reward judged by what its own policy does: an outer loss and its gradient, the policy's answer included.

Shapes: X prompts, A responses. Source: Chakraborty et al. 2024 (arXiv 2308.02585), whose inner problem is here solved
exactly; the equations were derived, since the paper was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.divergences import KL, Divergence
from rpo.core.replies import Reply


@dataclass(frozen=True, eq=False, kw_only=True)
class OuterLoss:
    """An outer loss G(r, pi_r) and its two derivatives in r.

    value: nats. policy: (X, A), pi_r. direct: (X, A), with the policy held. answer: (X, A), by way of the policy.
    """

    value: float
    policy: Array
    direct: Array
    answer: Array

    @property
    def gradient(self) -> Array:
        """(X, A), dG/dr: the sum of both."""
        return self.direct + self.answer


def policy_answer(
    problem: ContextualBandit, reward: Any, slope: Any, *, beta: float, divergence: Divergence | None = None
) -> Array:
    r"""Return d<slope, pi_r>/dr, (X, A), for the policy pi_r that maximises <pi, r> - beta D_f(pi || pi_ref).

    reward: (X, A). slope: (X, A), dG/dpi of any G. Under the KL, the default, it is
    $\pi_a(g_a-E_\pi g)/\beta$, the covariance with each response's indicator over beta. Raises InvalidArgument.
    """
    checks.instance("problem", problem, ContextualBandit)
    g = checks.finite("slope", slope, shape=problem.reference.shape)
    return _answer(_reply(problem, reward, beta, divergence), g, beta)


def label_loss(
    problem: ContextualBandit, reward: Any, *, beta: float, divergence: Divergence | None = None
) -> OuterLoss:
    """Return the mean loss of the true labels of pairs that the reward's own policy draws, two independent responses.

    reward: (X, A), the log-odds that predict the labels; a response against itself costs log 2. The labels are those of
    the problem's r* and label_noise. Raises InvalidArgument.
    """
    checks.instance("problem", problem, ContextualBandit)
    reply = _reply(problem, reward, beta, divergence)
    r = np.asarray(reward, dtype=np.float64)
    margins, right = r[:, :, None] - r[:, None, :], problem.preference_probability()
    pi, d0 = reply.policy, problem.d0[:, None]
    losses = numerics.softplus(margins) - right * margins
    slope = 2.0 * d0 * np.einsum("xab,xb->xa", losses, pi)  # the losses are symmetric
    direct = 2.0 * d0 * pi * np.einsum("xab,xb->xa", numerics.sigmoid(margins) - right, pi)
    value = float((slope * pi).sum() / 2.0)
    return OuterLoss(value=value, policy=pi, direct=direct, answer=_answer(reply, slope, beta))


def _reply(problem: ContextualBandit, reward: Any, beta: float, divergence: Divergence | None) -> Reply:
    table = checks.finite("reward", reward, shape=problem.reference.shape)
    used = KL() if divergence is None else checks.instance("divergence", divergence, Divergence)  # type: ignore[type-abstract]
    return used.reply(table / checks.positive("beta", beta), problem.log_reference)


def _answer(reply: Reply, slope: Array, beta: float) -> Array:
    mean = (reply.slope * slope).sum(axis=-1, keepdims=True) / reply.total
    return np.asarray(reply.slope * (slope - mean) / beta)
