"""Methods on lists: K responses to a prompt with an order or with scores, in place of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rpo.core import checks
from rpo.core.fields import Fraction, NonNegative, Positive
from rpo.core.group_shapes import (
    Advantage,
    GroupShape,
    LambdaPairs,
    NoiseContrast,
    PlackettLuce,
    PointwiseScores,
    ReverseTargets,
    ScoredPairs,
    ScoreGaps,
    SoftTargets,
    SquaredGaps,
)
from rpo.core.links import Link, LogRatio
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import Hinge, Shape
from rpo.methods.pairs import LogRatioMethod

LIPO_LOSSES: dict[str, GroupShape] = {
    "lambda": LambdaPairs(),
    "pair_logistic": ScoredPairs(),
    "pair_hinge": ScoredPairs(pair=Hinge()),
    "list_mle": PlackettLuce(),
    "softmax": SoftTargets(normalised=False),
    "point_mse": PointwiseScores(),
    "point_sigmoid": PointwiseScores(logistic=True),
}


def _lipo(name: str, value: object) -> str:
    return checks.one_of(name, value, tuple(LIPO_LOSSES))


@dataclass(frozen=True, kw_only=True)
class PlackettLuceDPO(LogRatioMethod):
    """DPO on rankings: the negative log-likelihood of the order under Plackett-Luce with rewards beta h.

    At K = 2 this is DPO. Raises InvalidArgument. Source: Rafailov et al. 2023 (arXiv 2305.18290), Appendix A.3.
    """

    @property
    def shape(self) -> Shape:
        """The likelihood of an order."""
        return PlackettLuce()


@dataclass(frozen=True, kw_only=True)
class PRO(Objective):
    """Preference ranking optimization: each response against all later ones, by mean log-probability, plus SFT.

    Softmax temperatures are gaps of scores. sft_weight: >= 0, of the summed log-probability of the best response; the
    authors' code multiplies its own 0.05 by (K - 1)^2, which is 1 for pairs. Raises InvalidArgument.
    Source: Song et al. 2023 (arXiv 2306.17492), as its code computes it.
    """

    sft_weight: NonNegative = 0.05

    @property
    def link(self) -> Link:
        """Mean log-probability."""
        return LogRatio(beta=1.0, reference=False, per_token=True)

    @property
    def shape(self) -> Shape:
        """A chain of softmaxes."""
        return ScoreGaps()

    @property
    def anchor(self) -> Anchor:
        """SFT on the best response."""
        return Anchor(weight=self.sft_weight)


@dataclass(frozen=True, kw_only=True)
class LiPO(LogRatioMethod):
    """Listwise preference optimization: a loss of learning to rank on rewards beta h.

    variant: "lambda", LambdaRank's pairs and the paper's choice; "pair_logistic", "pair_hinge", "list_mle", "softmax",
    "point_mse" or "point_sigmoid". Scores are in [0, 1]; "list_mle" reads the order alone. Raises InvalidArgument.
    Source: Liu et al. 2024 (arXiv 2402.01878), Eq. 5-11.
    """

    beta: Positive = 0.05
    variant: Annotated[str, _lipo] = "lambda"

    @property
    def shape(self) -> Shape:
        """The loss of that name."""
        return LIPO_LOSSES[self.variant]

    @property
    def label(self) -> str:
        """A short name for legends, with the variant."""
        return f"LiPO {self.variant.replace('_', ' ')} (beta = {self.beta:g})"


@dataclass(frozen=True, kw_only=True)
class ScoreTargets(LogRatioMethod):
    """What methods with targets softmax(score / alpha) share. alpha: > 0, scores per nat. Raises InvalidArgument."""

    alpha: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class InfoNCA(ScoreTargets):
    """Cross-entropy of softmax(beta h) from softmax(score / alpha).

    With all responses in every list beta h = score / alpha at the optimum. Raises InvalidArgument.
    Source: Chen et al. 2024 (arXiv 2402.05369); equation not verified.
    """

    @property
    def shape(self) -> Shape:
        """Soft labels."""
        return SoftTargets(temperature=self.alpha)


@dataclass(frozen=True, kw_only=True)
class ListNCA(ScoreTargets):
    """Noise-contrastive alignment on lists: sum of q softplus(-beta h) + softplus(beta h) / K.

    q = softmax(score / alpha). Of one list it sets beta h = log(K q), not differences alone; `NCA` is K = 2 as alpha
    goes to 0. Raises InvalidArgument. Source: Chen et al. 2024 (arXiv 2402.05369); equation not verified.
    """

    @property
    def shape(self) -> Shape:
        """Classification of data against noise."""
        return NoiseContrast(temperature=self.alpha)


@dataclass(frozen=True, kw_only=True)
class ListEXO(ScoreTargets):
    """Exact optimization on lists: KL of softmax(beta h) from softmax(score / alpha). Not convex.

    Raises InvalidArgument. Source: Ji et al. 2024 (arXiv 2402.00856).
    """

    @property
    def shape(self) -> Shape:
        """The reverse KL of InfoNCA's targets."""
        return ReverseTargets(temperature=self.alpha)


@dataclass(frozen=True, kw_only=True)
class CoPG(LogRatioMethod):
    """Contrastive policy gradient: ((beta h_i - beta h_j) - (score_i - score_j))^2 / (2 beta), over pairs of a list.

    Scores are rewards in beta's units. Its optimum is the Gibbs policy of the scores whatever responses were drawn, and
    `IPO` is the case of scores a half apart. For K > 2 the sum over pairs is divided by K - 1. Raises InvalidArgument.
    Source: Flet-Berliac et al. 2024 (arXiv 2406.19185), Eq. 7-19.
    """

    beta: Positive = 0.06

    @property
    def shape(self) -> Shape:
        """A square around the difference of scores."""
        return SquaredGaps()


@dataclass(frozen=True, kw_only=True)
class ALoL(Objective):
    """Advantage-leftover-lunch: -max(A, 0) * ratio * log pi of single responses, A their scores: advantages.

    A is a response's reward minus what the reference earns at its prompt. ratio: pi / pi_ref of the response under
    stop-gradient, within [1 - clip, 1 + clip]; without it, ratio=False, the optimum on a table is mu max(A, 0) / Z, mu
    the data's own distribution. kl_weight: >= 0, of log(pi / pi_ref). With a reference the loss is given for
    log(pi / pi_ref), the same up to what has no gradient. Raises InvalidArgument.
    Source: Baheti et al. 2023 (arXiv 2305.14718), as its code computes it.
    """

    clip: Fraction = 0.9
    ratio: bool = True
    kl_weight: NonNegative = 0.0

    @property
    def link(self) -> Link:
        """The log-ratio, or where nothing reads it the log-probability."""
        return LogRatio(beta=1.0, reference=self.ratio or self.kl_weight > 0)

    @property
    def shape(self) -> Shape:
        """A linear loss with the advantage as weight."""
        return Advantage(clip=self.clip if self.ratio else None, kl_weight=self.kl_weight)
