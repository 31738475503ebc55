"""Pair losses of the log-ratio to the reference: other shapes than DPO's, label noise, length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.fields import Finite, Fraction, NonNegative, Positive, Reduction
from rpo.core.links import Link, LogRatio, WeighedReference
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import Hinge, Logistic, LogisticExponential, OnPolicy, ReverseLabels, Shape, Square


def noise_rate(name: str, value: object) -> float:
    """Return `value`, or refuse it outside [0, 1/2): the probability that a label was flipped."""
    rate = checks.nonnegative(name, value)
    if rate >= 0.5:
        raise InvalidArgument(
            name, expected="a number in [0, 1/2)", got=value, remedy="At 1/2 labels say nothing; swap them above it."
        )
    return rate


NoiseRate = Annotated[float, noise_rate]


@dataclass(frozen=True, kw_only=True)
class LogRatioMethod(Objective):
    """What the methods on beta * log(pi / pi_ref) share. beta: KL temperature, > 0. Raises InvalidArgument."""

    beta: Positive = 0.1

    @property
    def link(self) -> Link:
        """h, the log-ratio to the reference."""
        return LogRatio(beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class IPO(Objective):
    """Identity Preference Optimization: (h_w - h_l - 1 / (2 tau))^2.

    tau: > 0, weight of the KL; per_token: divide h by the response's length, as TRL does and the paper does not.
    Raises InvalidArgument. Source: Azar et al. 2023 (arXiv 2310.12036), Eq. 17.
    """

    tau: Positive = 0.1
    per_token: bool = False

    @property
    def link(self) -> Link:
        """h, or its mean over tokens."""
        return LogRatio(beta=1.0, per_token=self.per_token)

    @property
    def shape(self) -> Shape:
        """A square around the margin that an undisputed preference deserves."""
        return Square(target=0.5 / self.tau)


@dataclass(frozen=True, kw_only=True)
class SLiC(Objective):
    """Sequence likelihood calibration: max(0, delta - beta (h_w - h_l)), plus SFT where sft_weight > 0.

    reference: whether h is log(pi / pi_ref), TRL's "hinge", or log pi, the paper's with beta = 1. beta, delta: > 0.
    sft_weight: >= 0, of the chosen responses. Raises InvalidArgument. Source: Zhao et al. 2023 (arXiv 2305.10425).
    """

    beta: Positive = 0.1
    delta: Positive = 1.0
    reference: bool = True
    sft_weight: NonNegative = 0.0
    sft_reduction: Reduction = "sequence_sum"

    @property
    def link(self) -> Link:
        """The log-ratio, or the log-probability."""
        return LogRatio(beta=self.beta, reference=self.reference)

    @property
    def shape(self) -> Shape:
        """A hinge."""
        return Hinge(target=self.delta)

    @property
    def anchor(self) -> Anchor:
        """SFT on the chosen responses."""
        return Anchor(weight=self.sft_weight, reduction=self.sft_reduction)


@dataclass(frozen=True, kw_only=True)
class ConservativeDPO(LogRatioMethod):
    """DPO under the belief that a share epsilon of labels is flipped: softplus(-z) + epsilon z.

    The same as DPO on counts (1 - epsilon, epsilon) both ways. epsilon: in [0, 1/2). Raises InvalidArgument.
    Source: Mitchell 2023, "A note on DPO with noisy preferences", Eq. 3.
    """

    epsilon: NoiseRate = 0.1

    @property
    def shape(self) -> Shape:
        """The expected loss over flips."""
        return Logistic(tilt=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class RobustDPO(LogRatioMethod):
    """DPO's loss on clean labels, estimated without bias from labels flipped with probability epsilon.

    softplus(-z) - epsilon / (1 - 2 epsilon) z, unbounded below where a response never lost. epsilon: in [0, 1/2).
    Raises InvalidArgument. Source: Ray Chowdhury et al. 2024 (arXiv 2403.00409), Eq. 12.
    """

    epsilon: NoiseRate = 0.1

    @property
    def shape(self) -> Shape:
        """The unbiased estimate."""
        return Logistic(tilt=-self.epsilon / (1.0 - 2.0 * self.epsilon))


@dataclass(frozen=True, kw_only=True)
class RDPO(LogRatioMethod):
    """DPO with a reward per token taken off: softplus(-(z + alpha (length_w - length_l))).

    alpha: reward units per token; the paper's values could not be read, so there is no default. Raises
    InvalidArgument. Source: Park et al. 2024 (arXiv 2403.19159); the sign follows from the reward r - alpha |y|.
    """

    alpha: Finite

    @property
    def shape(self) -> Shape:
        """Logistic, with the difference of lengths."""
        return Logistic(length_weight=self.alpha)


@dataclass(frozen=True, kw_only=True)
class ODPO(LogRatioMethod):
    """DPO with an offset: softplus(-(z - alpha log(score_w - score_l))), z = beta (h_w - h_l).

    Reads the scores of both responses, the chosen one's the higher; a difference below 1 asks for a negative margin.
    alpha: >= 0; the default is that of the authors' code. Raises InvalidArgument.
    Source: Amini et al. 2024 (arXiv 2402.10571), as its authors' code has it; the equation's number was not verified.
    """

    alpha: NonNegative = 1.0

    @property
    def shape(self) -> Shape:
        """Logistic around what the scores say."""
        return Logistic(score_weight=self.alpha)


@dataclass(frozen=True, kw_only=True)
class GammaDPO(LogRatioMethod):
    """DPO with the reference at weight gamma: softplus(-beta (log(pi_w / pi_l) - gamma log(ref_w / ref_l))).

    gamma: >= 0; 1 is DPO, 0 leaves the reference out. Raises InvalidArgument.
    Source: Chen et al. 2024 (arXiv 2405.19534), Eq. 4.
    """

    gamma: NonNegative

    @property
    def link(self) -> Link:
        """log pi less gamma log pi_ref."""
        return WeighedReference(beta=self.beta, weight=self.gamma)

    @property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()


@dataclass(frozen=True, kw_only=True)
class WPO(LogRatioMethod):
    """Weighted preference optimization: DPO's loss times how likely the policy is to say the pair itself.

    beta: > 0. capped: weights of at most 1, as the authors' code has them and TRL's `use_weighting` has not. The weight
    has no gradient and follows the policy. Off-policy pairs then count as pairs of the policy's own would, exactly
    where they were drawn uniformly. Raises InvalidArgument. Source: Zhou et al. 2024 (arXiv 2406.11827), Eq. 2.
    """

    capped: bool = True

    @property
    def shape(self) -> Shape:
        """DPO's, weighted."""
        return OnPolicy(of=Logistic(), capped=self.capped)


@dataclass(frozen=True, kw_only=True)
class EXO(LogRatioMethod):
    """Efficient exact optimization on pairs: the KL of the policy's choice from labels (1 - epsilon, epsilon).

    epsilon: in (0, 1). Raises InvalidArgument. Source: Ji et al. 2024 (arXiv 2402.00856), Eq. 16.
    """

    epsilon: Fraction = 1e-3

    @property
    def shape(self) -> Shape:
        """The reverse KL; not convex."""
        return ReverseLabels(epsilon=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class DiscoPOP(LogRatioMethod):
    """The discovered loss: logistic and exponential, blended by sigma(z / tau). Not convex.

    tau: > 0. Raises InvalidArgument. Source: Lu et al. 2024 (arXiv 2406.08414), Eq. 5.
    """

    tau: Positive = 0.05

    @property
    def shape(self) -> Shape:
        """The blend."""
        return LogisticExponential(tau=self.tau)
