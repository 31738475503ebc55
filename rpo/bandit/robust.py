"""The robust policy of a reward class, without comparisons: the best policy against its worst reward.

Shapes: X prompts, A responses. docs/theory.md, section 12.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from rpo.bandit.baseline import PolicyResult
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass, check_reward_class
from rpo.bandit.solver.certificate import Certificate, least_modulus, within_tolerance
from rpo.bandit.solver.newton import Derivatives
from rpo.bandit.solver.saddle import check_support
from rpo.bandit.solver.solvable import inherits_another
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument

BASES = ("reference", "none")
SMOOTH = 10.0  # of a margin over beta


def robust_policy(
    problem: ContextualBandit,
    reward_class: RewardClass,
    *,
    beta: float,
    divergence: Divergence | None = None,
    base: Any = "reference",
) -> PolicyResult:
    r"""Return the policy of the best worst case, $\min_r E_{d_0}[\langle\pi-b,r\rangle]-\beta E_{d_0}[D_f(\pi\|\rho)]$.

    One reward counts for all prompts. reward_class: bounded; `Hull` is the worst case policy by policy, `Intervals`
    response by response. beta: > 0, reward units per nat. divergence: D_f, default the KL. base: b, "reference", a
    policy (X, A), or "none" for b = 0, without which a constant that a member adds to a prompt's rewards makes it
    better or worse. evidence: the certificate, as `solve` has it. Raises InvalidArgument. Source: docs/theory.md, 12.
    """
    checks.instance("problem", problem, ContextualBandit)
    check_reward_class(reward_class).check_shape(problem.reference.shape)
    beta = checks.positive("beta", beta)
    kept: Divergence = KL() if divergence is None else divergence
    checks.instance("divergence", kept, Divergence)  # type: ignore[type-abstract]
    if inherits_another(kept, "link"):
        raise InvalidArgument(
            "divergence",
            expected="one that inherits no inverse or conjugate of another",
            got=type(kept).__name__,
            remedy="Subclass Divergence itself.",
        )
    if isinstance(base, str):
        checks.one_of("base", base, BASES)
        held = problem.reference if base == "reference" else np.zeros(problem.reference.shape)
    else:
        held = checks.probabilities("base", base, shape=problem.reference.shape)
        check_support("base", held, problem.reference > 0)
    d, log_reference = problem.d0, problem.log_reference

    def part(x: int, beta: float, r: Array) -> Derivatives:
        support = supports[x]
        reply = kept.reply(r / beta, log_reference[x, support])
        pull = reply.policy - held[x, support]
        value = float(pull @ r - beta * kept.from_reference(reply.policy, log_reference[x, support]))
        hessian = np.diag(reply.slope) - np.outer(reply.slope, reply.slope) / reply.total
        return d[x] * value, d[x] * pull, (d[x] / beta) * hessian

    supports = {int(x): np.flatnonzero(problem.reference[x] > 0) for x in np.flatnonzero(d > 0)}
    # Where beta is far below the rewards the function is all but piecewise linear: larger ones lead to its minimum.
    far = reward_class.largest_margin() / (SMOOTH * beta)
    reward: Any = None
    for power in range(math.ceil(math.log10(max(far, 1.0))), -1, -1):
        parts = [(x, support, partial(part, x, beta * 10.0**power)) for x, support in supports.items()]
        reward, _ = reward_class.minimize(parts, (problem.num_prompts, problem.num_responses), start=reward)
    policy = kept.reply(reward / beta, log_reference).policy
    certificate = Certificate(
        reward_value=sum((part(x, beta, reward[x, support])[0] for x, support in supports.items()), 0.0),
        kl_term=0.0,
        likelihood_term=0.0,
        support_term=reward_class.support_gap(-d[:, None] * (policy - held), reward),
        eta_beta=beta,
        modulus=float(least_modulus(kept, log_reference, d)),
    )
    good = bool(within_tolerance(certificate.relative_gap, certificate.tv_bound, beta))
    name = type(kept).__name__
    return PolicyResult(
        policy=np.where(d[:, None] > 0, policy, problem.reference),
        label=f"robust to {reward_class.describe()['name']} (beta = {beta:g}{'' if name == 'KL' else ', ' + name})",
        status="certified" if good else "inaccurate",
        message=f"Worst-case value {certificate.policy_value:.4g}, within {certificate.gap:.1e}; policy within "
        f"{certificate.tv_bound:.1e} of the optimum in total variation.",
        reward=reward,
        evidence={"reward_class": reward_class.describe(), "beta": beta, "divergence": name, **certificate.to_dict()},
    )
