"""Methods that hold each response against zero: absolute likelihood counts, not only the margin."""

from __future__ import annotations

from dataclasses import dataclass

from rpo.core import numerics
from rpo.core.shapes import ChosenDown, Pointwise, Shape
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
