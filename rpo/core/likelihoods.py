"""The two likelihoods beside the objectives: of responses, for pi_ref (SFT), and of preferences, for a reward model.

Both are the same formula: SFT is an anchor without a comparison, Bradley-Terry a logistic loss of the scores of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from rpo.core.fields import NonNegative, Reduction
from rpo.core.links import HeadScores, Link, LogRatio
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import CenteredLogistic, NoComparison, Shape


@dataclass(frozen=True, kw_only=True)
class SFT(Objective):
    r"""Supervised fine-tuning: minus the log-probability of responses; the SFT term of `RPO`, alone.

    Called with policy_chosen_logps alone, and chosen_lengths where the reduction needs them. reduction:
    "batch_token_mean" (sum over tokens divided by their number), "sequence_mean" or "sequence_sum", as
    `RPO.sft_reduction`. Raises InvalidArgument. Source: paper, Eq. (4.8), second term.
    """

    reduction: Reduction = "batch_token_mean"

    @property
    def link(self) -> Link:
        """Log-probability, of which nothing is asked."""
        return LogRatio(beta=1.0, reference=False)

    @property
    def shape(self) -> Shape:
        """Zero."""
        return NoComparison()

    @property
    def anchor(self) -> Anchor:
        """The responses, at weight one."""
        return Anchor(weight=1.0, reduction=self.reduction)


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(Objective):
    r"""Maximum likelihood of a reward under Bradley-Terry: $E_D[\mathrm{softplus}(-(r_w - r_l))]$.

    Called with the rewards of a head in place of log-probabilities. center_rewards_coefficient: weight, >= 0, of
    $E_D[(r_w + r_l)^2]$, which keeps rewards around zero; 0 leaves it out. Rewards have the scale at which beta = 1.
    Raises InvalidArgument. Source: paper, Eq. (3.2); centering: Eisenstein et al. 2023, Eq. 2.
    """

    center_rewards_coefficient: NonNegative = 0.0

    @property
    def link(self) -> Link:
        """The rewards themselves."""
        return HeadScores()

    @property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood, with centering."""
        return CenteredLogistic(coefficient=self.center_rewards_coefficient)

    @property
    def anchor(self) -> Anchor:
        """None: a head says nothing of log-probabilities."""
        return Anchor(role="custom")
