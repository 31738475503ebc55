"""Gold and proxy reward against KL along an exact path; the figure is the one of `rpo.plotting.overoptimization`."""

from rpo.plotting.overoptimization import curves, fits, overoptimization

__all__ = ["curves", "fits", "overoptimization"]
