"""What a comparison's log-probabilities and gradients say of it, the same for a table and for a language model.

Shapes: K comparisons. w is the chosen response, l the rejected one, rho the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument

CASES = ("ideal", "both fall", "both rise")


@dataclass(frozen=True, eq=False)
class Entanglement:
    r"""The gradients $g_w, g_l$ of log pi of a comparison's two responses, and what a small step does to them.

    chosen: |g_w|^2, rejected: |g_l|^2, inner: <g_w, g_l>, each (K,). The step of a loss of the margin is a multiple
    of g_w - g_l: log pi_w changes as chosen - inner, log pi_l as inner - rejected, and the margin never falls.
    Source: Yuan et al. 2024 (arXiv 2410.13828), Section 3.
    """

    chosen: Array
    rejected: Array
    inner: Array

    @property
    def case(self) -> Any:
        """Of each comparison, (K,): "ideal" (chosen rises, rejected falls), "both fall" or "both rise"."""
        rises, falls = self.inner < self.chosen, self.inner < self.rejected
        return np.where(rises & falls, CASES[0], np.where(falls, CASES[1], CASES[2]))

    @property
    def cosine(self) -> Array:
        """Of the two gradients, (K,); NaN where one vanishes."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.inner / np.sqrt(self.chosen * self.rejected))

    def least_eta(self, margins: Any, beta: float) -> Array:
        r"""Return eta*, (K,), above which the SFT term of RPO makes log pi_w rise, 0 where it rises anyway.

        margins: (K,), h(chosen) - h(rejected) in nats. With $s=\sigma(-\beta\,\mathrm{margin})$ the step is
        $\beta(s(g_w-g_l)+\eta g_w)$, under which log pi_w rises iff $(s+\eta)|g_w|^2>s\langle g_w,g_l\rangle$. For one
        pair of its own, base "chosen"; inf where g_w vanishes and the other term does not.
        """
        z = checks.finite("margins", margins, shape=self.chosen.shape)
        pull = expit(-checks.positive("beta", beta) * z) * np.maximum(self.inner - self.chosen, 0.0)
        with np.errstate(divide="ignore"):
            return np.divide(pull, self.chosen, out=np.zeros(pull.shape), where=pull > 0)


def idealised_log_ratio(reference_margins: Any, beta: float, chosen_rate: Any) -> Array:
    r"""Return log(pi_w / pi_l) of DPO's optimum on each comparison on its own, (K,): log(rho_w/rho_l) + logit(a)/beta.

    reference_margins: (K,), log(rho_w / rho_l), nats. chosen_rate: a in (0, 1), a number or (K,), how often w beats l.
    Raises InvalidArgument. Source: Chen et al. 2024 (arXiv 2405.19534), Theorem 3.1.
    """
    apart = checks.numbers("reference_margins", reference_margins)
    rate = checks.finite("chosen_rate", chosen_rate)
    if rate.shape not in ((), apart.shape) or rate.min() <= 0 or rate.max() >= 1:
        raise InvalidArgument(
            "chosen_rate",
            expected=f"a number in (0, 1), or one for each of the {len(apart)} comparisons",
            got=f"shape {rate.shape} in [{rate.min():g}, {rate.max():g}]",
            remedy="Clip rates of zero and one, and pass one for each.",
        )
    return np.asarray(apart + np.log(rate / (1.0 - rate)) / checks.positive("beta", beta))


def ranking_threshold(reference_margins: Any, beta: float) -> Array:
    r"""Return DPO's loss of each comparison, (K,), at or below which, and only there, it is ranked right.

    $s(-\beta\log(\rho_l/\rho_w))$ with s the softplus: what the reference ranks wrong needs a loss well below log 2.
    Arguments as of `idealised_log_ratio`. Source: Chen et al. 2024 (arXiv 2405.19534), Theorem 4.1.
    """
    apart = checks.numbers("reference_margins", reference_margins)
    return np.asarray(numerics.softplus(checks.positive("beta", beta) * apart))
