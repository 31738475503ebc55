"""DPO and RPO under other divergences than the KL."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from rpo.core.divergences import KL, ChiSquaredKL, Divergence, JensenShannon, require_divergence, require_interior
from rpo.core.fields import NonNegative
from rpo.core.links import Link, LogRatio
from rpo.core.objectives import Anchor, Base
from rpo.core.shapes import Logistic, Shape
from rpo.methods.pairs import LogRatioMethod

AnyDivergence = Annotated[Divergence, lambda _, value: require_divergence(value)]
Interior = Annotated[Divergence, lambda _, value: require_interior(value)]


@dataclass(frozen=True, kw_only=True)
class FDPO(LogRatioMethod):
    """DPO with the policy held by an f-divergence: softplus(-beta (f'(u_w) - f'(u_l))), u = pi / pi_ref.

    divergence: of `rpo.core.divergences`, with f'(0) = -inf. beta is not comparable across divergences: divide it by
    f''(1), which is 1 (KL, forward KL, alpha), 1/2 (Jensen-Shannon) or 2 (chi-squared + KL). Raises InvalidArgument.
    Source: Wang et al. 2024 (arXiv 2309.16240), Eq. 12.
    """

    divergence: Interior = field(default_factory=JensenShannon)

    @property
    def link(self) -> Link:
        """f' of the ratio to the reference."""
        return LogRatio(beta=self.beta, divergence=self.divergence)

    @property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()


@dataclass(frozen=True, kw_only=True)
class ChiPO(LogRatioMethod):
    """Chi-squared preference optimization: FDPO with the chi-squared divergence plus KL, link u + log u.

    Without the paper's clipping of the margin to [-2R, 2R], which makes the loss flat beyond it. Raises
    InvalidArgument. Source: Huang et al. 2024 (arXiv 2407.13399), Algorithm 1.
    """

    @property
    def link(self) -> Link:
        """u + log u, up to a constant."""
        return LogRatio(beta=self.beta, divergence=ChiSquaredKL())

    @property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()


@dataclass(frozen=True, kw_only=True)
class FRPO(LogRatioMethod):
    r"""RPO under an f-divergence: the maximin of rewards beta f'(u), u = pi / pi_ref, in one loss.

    $L(\pi) = E_D[\mathrm{softplus}(-\beta \Delta f'(u))] + \eta\beta (E_{ref}[u f'(u) - f(u)] - E_{base}[f'(u)])$.
    The second term is the Bregman divergence of pi from pi_base up to a constant, for the KL, and only there, RPO's SFT
    term. beta: > 0, comparable across divergences as for FDPO. eta: >= 0. base: as RPO's. With a divergence that gives
    some responses no mass, ChiSquared(), only `rpo.bandit.solve` takes it. On a language model the mean over pi_ref is
    one over `base_num_samples` responses a prompt, drawn once before training, with log u cut at 20: a policy is held
    at these draws, and mass it moves to what was not drawn goes unseen. Raises InvalidArgument. Source: docs/theory.md,
    section 11.
    """

    eta: NonNegative
    divergence: AnyDivergence = field(default_factory=KL)
    base: Base = "chosen"

    @cached_property
    def link(self) -> Link:
        """f' of the ratio to the reference."""
        return LogRatio(beta=self.beta, divergence=self.divergence)

    @cached_property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()

    @property
    def reward_penalty(self) -> float:
        """Weight of the reward penalty, eta."""
        return self.eta

    @cached_property
    def anchor(self) -> Anchor:
        """The reward penalty."""
        return Anchor(role=self.base, weight=self.eta * self.beta, divergence=self.divergence)
