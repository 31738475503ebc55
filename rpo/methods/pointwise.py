"""Methods that hold each response against zero: absolute likelihood counts, not only the margin."""

from __future__ import annotations

from dataclasses import dataclass

from rpo.core import numerics
from rpo.core.fields import Fraction, Positive
from rpo.core.shapes import ChosenDown, Pointwise, Shape, Shifted
from rpo.core.shifts import MismatchedKL, MovingMean
from rpo.methods.pairs import LogRatioMethod


@dataclass(frozen=True, kw_only=True)
class NCA(LogRatioMethod):
    """Noise-contrastive alignment on pairs: softplus(-r_w) + softplus(r_w) / 2 + softplus(r_l) / 2, r = beta h.

    Raises InvalidArgument. Source: Chen et al. 2024 (arXiv 2402.05369), with its targets for a clear preference.
    """

    @property
    def shape(self) -> Shape:
        """Classification of data against noise."""
        return Pointwise(
            lambda r: numerics.softplus(-r) + 0.5 * numerics.softplus(r),
            lambda r: 0.5 * numerics.softplus(r),
            both_convex=True,
        )


@dataclass(frozen=True, kw_only=True)
class APOZero(LogRatioMethod):
    """Anchored preference optimization, zero: sigma(-r_w) + sigma(r_l), r = beta h. Bounded, not convex.

    For chosen responses better than the model's own. Raises InvalidArgument.
    Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266), Eq. 7.
    """

    @property
    def shape(self) -> Shape:
        """The chosen response up, the rejected one down."""
        return Pointwise(lambda r: numerics.sigmoid(-r), numerics.sigmoid)


@dataclass(frozen=True, kw_only=True)
class APODown(LogRatioMethod):
    """Anchored preference optimization, down: sigma(r_w) + sigma(r_l - r_w), r = beta h. Bounded, not convex.

    For chosen responses worse than the model's own. Raises InvalidArgument.
    Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266), Eq. 8.
    """

    @property
    def shape(self) -> Shape:
        """Both down, the rejected one further."""
        return ChosenDown()


@dataclass(frozen=True, kw_only=True)
class KTO(LogRatioMethod):
    """Kahneman-Tversky optimization: w_D sigma(-(r - z)) of desirable responses, w_U sigma(r - z) of the others.

    r = beta h, z = beta z0, z0 = max(0, E[h(x, y')]) under stop-gradient, y' a response to another prompt. TRL takes
    z0 of the batch at hand; here it is that of the update before, over its global batch (`rpo.core.shifts`). Takes
    responses with labels, and pairs, of which the loss is the mean over the two. desirable_weight, undesirable_weight:
    > 0. Bounded, not convex. On a table z0 would be the KL itself, under stop-gradient: a fixed point, which minimises
    nothing. Raises InvalidArgument. Source: Ethayarajh et al. 2024 (arXiv 2402.01306), Eq. 7-8, as TRL computes it.
    """

    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0

    @property
    def shape(self) -> Shape:
        """A sigmoid around the shift, up or down."""
        return Shifted(
            lambda r: self.desirable_weight * numerics.sigmoid(-r),
            lambda r: self.undesirable_weight * numerics.sigmoid(r),
            shift=MismatchedKL(),
        )


@dataclass(frozen=True, kw_only=True)
class BCO(LogRatioMethod):
    """Binary classifier optimization: softplus(-(r - d)) of desirable responses, softplus(r - d) of the others.

    r = beta h; d a moving mean of (E[r | desirable] + E[r | undesirable]) / 2 over the updates before, under
    stop-gradient (`rpo.core.shifts`). Takes responses with labels, and pairs, of which the loss is the mean over the
    two. decay: in (0, 1), of the moving mean; the default is ours. Raises InvalidArgument.
    Source: Jung et al. 2024 (arXiv 2404.04656), as quoted by a later paper; the paper itself was not read.
    """

    decay: Fraction = 0.9

    @property
    def shape(self) -> Shape:
        """Logistic regression of the label on the reward."""
        return Shifted(
            lambda r: numerics.softplus(-r), numerics.softplus, both_convex=True, shift=MovingMean(decay=self.decay)
        )
