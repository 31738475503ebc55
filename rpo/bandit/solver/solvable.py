"""Which objectives have the convex program that `solve` certifies (docs/theory.md, section 9)."""

from __future__ import annotations

from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument
from rpo.core.links import LogRatio
from rpo.core.objectives import DPO, RPO, Objective, check_objective, require_objective
from rpo.core.shapes import MarginShape


def require_solvable(value: object, name: str = "objective") -> Objective:
    """Return `value`, or refuse an objective whose maximin is not the convex program that `solve` certifies.

    What is taken: a convex loss of the margin of rewards beta * log(pi / pi_ref), of known slopes, and an SFT term of
    weight >= 0 (docs/theory.md, section 9). cvxpy must agree that the loss is convex. Raises InvalidArgument.
    """
    if type(value) in (RPO, DPO):
        return check_objective(value, name)
    objective = require_objective(value, name)
    shape, link = objective.shape, objective.link
    wrong = ""
    if not (isinstance(link, LogRatio) and isinstance(link.divergence, KL) and link.reference and not link.per_token):
        wrong = "rewards that are not beta * log(pi / pi_ref)"
    elif not (isinstance(shape, MarginShape) and shape.convex and shape.invariant):
        wrong = "a loss that is not declared a convex function of the difference of two rewards"
    elif shape.slopes is None:
        wrong = "a loss whose slopes towards infinity are not declared"
    elif not _proven_convex(shape):
        wrong = "a loss declared convex that cvxpy's rules do not find convex"
    elif not (objective.anchor.weight >= 0 and objective.preference_weight == 1.0):
        wrong = "an SFT term of negative weight, or a preference term of a weight other than one"
    if wrong:
        raise InvalidArgument(
            name,
            expected="an objective whose maximin is a convex program",
            got=f"{objective.label}: {wrong}",
            remedy="rpo.fit minimises any objective, without a certificate.",
        )
    return objective


def _proven_convex(shape: MarginShape) -> bool:
    import cvxpy  # heavy, and needed for objectives other than the package's two alone

    return bool(shape.of_margin(cvxpy.Variable(1)).is_convex())
