"""Which objectives have the convex program that `solve` certifies (docs/theory.md, section 9)."""

from __future__ import annotations

from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument
from rpo.core.links import LogRatio
from rpo.core.objectives import Objective, require_objective
from rpo.core.shapes import Hinge, Logistic, MarginShape, Pointwise, Shape, SmoothHinge, Square


def require_solvable(value: object, name: str = "objective") -> Objective:
    """Return `value`, or refuse an objective whose maximin is not the convex program that `solve` certifies.

    What is taken: a convex loss of the margin of rewards beta * f'(pi / pi_ref), of known slopes, and a penalty of
    weight >= 0 by the same divergence (docs/theory.md, sections 9 and 11). cvxpy must agree that the loss is convex.
    Raises InvalidArgument.
    """
    objective = require_objective(value, name)
    shape, link, anchor = objective.shape, objective.link, objective.anchor
    wrong = ""
    if unknown := objective.needs - {"reference", "lengths"}:
        wrong = f"{', '.join(sorted(unknown))}, which a table does not have"
    elif type(link) is not LogRatio:
        wrong = "rewards that are not beta * f'(pi / pi_ref)"
    elif inherits_another(link.divergence, "link"):
        wrong = "a divergence of its own with the inverse, value or conjugate of another (subclass Divergence)"
    elif not (isinstance(shape, MarginShape) and shape.convex and shape.invariant):
        wrong = "a loss that is not declared a convex function of the difference of two rewards"
    elif inherits_another(shape, "of_margin"):
        wrong = "a loss of its own with the derivatives, slopes or dual of another (subclass MarginShape)"
    elif shape.slopes is None:
        wrong = "a loss whose slopes towards infinity are not declared"
    elif not proven_convex(shape):
        wrong = "a loss declared convex that cvxpy's rules do not find convex"
    elif not (anchor.weight >= 0 and objective.preference_weight == 1.0):
        wrong = "an SFT term of negative weight, or a preference term of a weight other than one"
    elif anchor.weight and anchor.divergence != link.divergence:
        wrong = "an SFT term that is not the penalty of its divergence (rpo.FRPO has that)"
    if wrong:
        raise InvalidArgument(
            name,
            expected="an objective whose maximin is a convex program",
            got=f"{objective.label}: {wrong}",
            remedy="Train it on a language model."
            if unknown
            else "rpo.fit minimises any objective, and says what is known of where it ends.",
        )
    return objective


def inherits_another(part: object, formula: str) -> bool:
    """Return whether a class writes its `formula` anew and inherits the rest from one with another formula.

    The solver would use derivatives, slopes and conjugates that are not the formula's.
    """
    written = [kind for kind in type(part).__mro__ if formula in vars(kind)]
    return len([kind for kind in written if not getattr(vars(kind)[formula], "__isabstractmethod__", False)]) > 1


def is_dpo(objective: Objective) -> bool:
    """Whether the preference term is DPO's: the likelihood of rewards beta * log(pi / pi_ref)."""
    link, shape = objective.link, objective.shape
    kl = isinstance(link, LogRatio) and isinstance(link.divergence, KL) and link.reference
    return kl and isinstance(shape, Logistic) and shape.is_likelihood


def proven_convex(shape: Shape) -> bool:
    """Return whether a shape that is declared convex is one of the package's, or convex by cvxpy's rules."""
    if not shape.convex or type(shape) in (Logistic, Square, Hinge, SmoothHinge):
        return shape.convex
    import cvxpy  # heavy, and needed for the shapes of others alone

    variable = cvxpy.Variable(1)
    try:
        if isinstance(shape, MarginShape):
            return bool(shape.of_margin(variable).is_convex())
        if type(shape) is Pointwise:
            return bool(shape.chosen(variable).is_convex() and shape.rejected(variable).is_convex())
    except Exception:  # a formula that cvxpy cannot read proves nothing, whatever it raises
        return False
    return False
