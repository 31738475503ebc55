"""DPO under other divergences than the KL."""

from __future__ import annotations

from dataclasses import dataclass, field

from rpo.core.divergences import ChiSquaredKL, Divergence, JensenShannon, require_interior
from rpo.core.links import Link, LogRatio
from rpo.core.shapes import Logistic, Shape
from rpo.methods.pairs import LogRatioMethod


@dataclass(frozen=True, kw_only=True)
class FDPO(LogRatioMethod):
    """DPO with the policy held by an f-divergence: softplus(-beta (f'(u_w) - f'(u_l))), u = pi / pi_ref.

    divergence: of `rpo.core.divergences`, with f'(0) = -inf. beta is not comparable across divergences: divide it by
    f''(1), which is 1 (KL, forward KL, alpha), 1/2 (Jensen-Shannon) or 2 (chi-squared + KL). Raises InvalidArgument.
    Source: Wang et al. 2024 (arXiv 2309.16240), Eq. 12.
    """

    divergence: Divergence = field(default_factory=JensenShannon)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interior(self.divergence)

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
