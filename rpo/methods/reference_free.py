"""Methods without a reference: rewards are log-probabilities, their means over tokens, or log-odds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rpo.core import checks
from rpo.core.divergences import Alpha
from rpo.core.errors import InvalidArgument
from rpo.core.fields import Fraction, NonNegative, Positive, Reduction
from rpo.core.links import Link, LogOdds, LogRatio
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import AbsoluteOdds, Logistic, Shape


@dataclass(frozen=True, kw_only=True)
class SimPO(Objective):
    """softplus(-(beta (m_w - m_l) - gamma)), m the mean log-probability per token.

    beta: > 0. gamma: >= 0, absolute: the authors' code takes its ratio to beta, 0.25 by default. Raises
    InvalidArgument. Source: Meng et al. 2024 (arXiv 2405.14734), Eq. 6.
    """

    beta: Positive = 2.0
    gamma: NonNegative = 0.5

    @property
    def link(self) -> Link:
        """Mean log-probability."""
        return LogRatio(beta=self.beta, reference=False, per_token=True)

    @property
    def shape(self) -> Shape:
        """Logistic around a target margin."""
        return Logistic(margin=self.gamma)


@dataclass(frozen=True, kw_only=True)
class AlphaPO(SimPO):
    """SimPO with the reward (1 - exp(-alpha m)) / alpha in place of m, m the mean log-probability per token.

    alpha: in (0, 1); 0 would be SimPO. Raises InvalidArgument. Source: Gupta et al. 2025 (arXiv 2501.03884), as TRL
    computes it; the paper's own equation and defaults were not read.
    """

    alpha: Fraction = 0.25

    @property
    def link(self) -> Link:
        """The alpha-divergence's link of the mean log-probability."""
        return LogRatio(beta=self.beta, divergence=Alpha(1.0 - self.alpha), reference=False, per_token=True)


def _discount(name: str, value: object) -> float:
    share = checks.positive(name, value)
    if share > 1:
        raise InvalidArgument(name, expected="a number in (0, 1]", got=value, remedy="1 weighs both alike.")
    return share


@dataclass(frozen=True, kw_only=True)
class CPL(Objective):
    """Contrastive preference learning: softplus(-alpha (log pi_w - lam log pi_l)).

    alpha: > 0. lam: in (0, 1]; below 1 responses in no pair lose all mass. Raises InvalidArgument.
    Source: Hejna et al. 2023 (arXiv 2310.13639), Eq. 5 undiscounted, as released; its state-based defaults.
    """

    alpha: Positive = 0.1
    lam: Annotated[float, _discount] = 0.5

    @property
    def link(self) -> Link:
        """Log-probability."""
        return LogRatio(beta=self.alpha, reference=False)

    @property
    def shape(self) -> Shape:
        """Logistic, the rejected response weighed by lam."""
        return Logistic(rival=self.lam)


@dataclass(frozen=True, kw_only=True)
class CPO(Objective):
    """Contrastive preference optimization: softplus(-beta (log pi_w - log pi_l)) + sft_weight * SFT.

    beta: > 0. sft_weight: >= 0. sft_reduction: of the SFT term; TRL's is the token mean. Raises InvalidArgument.
    Source: Xu et al. 2024 (arXiv 2401.08417), Eq. 3-5.
    """

    beta: Positive = 0.1
    sft_weight: NonNegative = 1.0
    sft_reduction: Reduction = "batch_token_mean"

    @property
    def link(self) -> Link:
        """Log-probability."""
        return LogRatio(beta=self.beta, reference=False)

    @property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()

    @property
    def anchor(self) -> Anchor:
        """SFT on the chosen responses."""
        return Anchor(weight=self.sft_weight, reduction=self.sft_reduction)


@dataclass(frozen=True, kw_only=True)
class OddsRatioMethod(Objective):
    """What ORPO and ASFT share: SFT on the chosen responses, and `weight` times a loss of log-odds."""

    weight: Positive
    sft_reduction: Reduction

    @property
    def link(self) -> Link:
        """Log-odds of the mean token probability."""
        return LogOdds()

    @property
    def anchor(self) -> Anchor:
        """SFT on the chosen responses, at weight one."""
        return Anchor(weight=1.0, reduction=self.sft_reduction)

    @property
    def preference_weight(self) -> float:
        """The weight of the log-odds term."""
        return self.weight


@dataclass(frozen=True, kw_only=True)
class ORPO(OddsRatioMethod):
    """Odds-ratio preference optimization: SFT + weight * softplus(-(o_w - o_l)), o the log-odds. Not convex.

    weight: > 0, the paper's lambda (TRL's beta). Raises InvalidArgument.
    Source: Hong et al. 2024 (arXiv 2403.07691), Eq. 6-7; default TRL's.
    """

    weight: Positive = 0.1
    sft_reduction: Reduction = "batch_token_mean"

    @property
    def shape(self) -> Shape:
        """Bradley-Terry on log-odds."""
        return Logistic()


@dataclass(frozen=True, kw_only=True)
class ASFT(OddsRatioMethod):
    """Aligned SFT: SFT + weight * (softplus(-o_w) + softplus(o_l)), o the log-odds: each response on its own.

    weight: > 0, lambda. Raises InvalidArgument. Source: Wang et al. 2024 (arXiv 2409.10571), as quoted by
    Gorbatovski et al. 2025 (arXiv 2502.01237), Sec. 2.4; default the best of that paper's grid.
    """

    weight: Positive = 1.0
    sft_reduction: Reduction = "sequence_mean"

    @property
    def shape(self) -> Shape:
        """Absolute log-odds."""
        return AbsoluteOdds()
