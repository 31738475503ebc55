"""A small atlas for a lesson: a handful of methods, one instance of noisy labels and one of bad chosen responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from rpo.compare.atlas import INSTANCES, Atlas, Entrant, atlas, entrants
from rpo.compare.atlas.figure import curves_figure, rows_figure
from rpo.compare.atlas.summary import summary
from rpo.core.fields import NonNegative, Positive
from rpo.core.links import Link, LogRatio
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import Shape, Square

if TYPE_CHECKING:
    import pandas

METHODS = ("DPO", "RPO", "RPO, base = reference", "IPO", "ChiPO", "CPL", "NCA")
SEEDS = 60

__all__ = ["AnchoredIPO", "curves", "measured", "pulls", "rows", "small", "with_own"]


@dataclass(frozen=True, kw_only=True)
class AnchoredIPO(Objective):
    """IPO's square around its target, and RPO's SFT term on the chosen responses beside it: a method of nobody's.

    tau: > 0. weight: >= 0, of the SFT term. Raises InvalidArgument.
    """

    tau: Positive = 0.1
    weight: NonNegative = 0.1

    @property
    def link(self) -> Link:
        """h, the log-ratio."""
        return LogRatio(beta=1.0)

    @property
    def shape(self) -> Shape:
        """IPO's."""
        return Square(target=0.5 / self.tau)

    @property
    def anchor(self) -> Anchor:
        """RPO's."""
        return Anchor(weight=self.weight)


def small(names: Sequence[str] = METHODS, *, own: Sequence[Entrant] = (), seeds: int = SEEDS) -> Atlas:
    """Return the atlas of these methods on the instances "noisy" and "zhu"."""
    chosen = [one for one in entrants(steps=7) if one.name in names]
    places = [one for one in INSTANCES if one.name in ("noisy", "zhu")]
    return atlas(seeds=seeds, methods=[*chosen, *own], instances=places, progress=False)


def with_own(weight: float) -> Entrant:
    """Return `AnchoredIPO` along IPO's path of tau, at this weight of the SFT term."""
    path = next(one for one in entrants(steps=7) if one.name == "IPO")
    return Entrant(
        name=f"IPO + {weight:g} SFT",
        method=AnchoredIPO,
        knob="tau",
        values=path.values,
        fixed={"weight": weight},
        default=path.default,
        pull="emptied" if weight else "free",
    )


def measured(made: Atlas) -> pandas.DataFrame:
    """Return the columns of the summary that the lesson reads, a row an instance and method."""
    columns = ["instance", "method", "peak", "end", "drop", "drop/low", "drop/high", "over", "pull/found"]
    return summary(made)[columns]


def pulls(made: Atlas) -> pandas.DataFrame:
    """Return what is predicted of unseen responses and what is found, a row a method."""
    frame = summary(made).drop_duplicates("method")
    return frame[["method", "pull/predicted", "pull/found"]].reset_index(drop=True)


def curves(made: Atlas) -> Figure:
    """Draw gold against KL, an instance a panel."""
    frame = summary(made)
    return curves_figure(made, dict(zip(frame["method"], frame["pull/found"], strict=True)))


def rows(made: Atlas, instance: str) -> Figure:
    """Draw what each method believes to have gained on one instance, and what it has."""
    frame = summary(made)
    return rows_figure(frame[frame["instance"] == instance])
