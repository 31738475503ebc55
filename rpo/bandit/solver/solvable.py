"""Which objectives have the convex program that `solve` certifies (docs/theory.md, section 9)."""

from __future__ import annotations

import numpy as np

from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument
from rpo.core.links import LogRatio
from rpo.core.objectives import Objective, require_objective
from rpo.core.shapes import Hinge, Logistic, MarginShape, Shape, SmoothHinge, Square


def require_solvable(value: object, name: str = "objective") -> Objective:
    """Return `value`, or refuse an objective whose maximin is not the convex program that `solve` certifies.

    What is taken: a convex loss of the margin of rewards beta * f'(pi / pi_ref), of known slopes, or of all rewards of
    a list up to a constant, of known arrows, and a penalty of weight >= 0 by the same divergence (docs/theory.md,
    sections 9, 11 and 13). cvxpy must agree that the loss is convex. Scores are taken where data have them. Raises
    InvalidArgument.
    """
    objective = require_objective(value, name)
    shape, link, anchor = objective.shape, objective.link, objective.anchor
    wrong = ""
    of_margin = isinstance(shape, MarginShape)
    if unknown := objective.needs - {"reference", "lengths", "scores"}:
        wrong = f"{', '.join(sorted(unknown))}, which a table does not have"
    elif type(link) is not LogRatio:
        wrong = "rewards that are not beta * f'(pi / pi_ref)"
    elif inherits_another(link.divergence, "link"):
        wrong = "a divergence of its own with the inverse, value or conjugate of another (subclass Divergence)"
    elif not ((of_margin or shape.lists) and shape.convex and shape.invariant):
        wrong = "a loss that is not declared a convex function of the difference of two rewards"
        if shape.lists:
            wrong = "a loss that is not declared a convex function of the differences of a list's rewards"
    elif inherits_another(shape, "of_margin" if of_margin else "__call__"):
        wrong = "a loss of its own with the derivatives, slopes or dual of another (subclass MarginShape)"
        if not of_margin:
            wrong = "a loss of its own with the arrows of another (subclass Shape)"
    elif shape.arrows(sample(shape)) is None:
        wrong = f"a loss whose {'slopes' if of_margin else 'arrows'} towards infinity are not declared"
    elif not (of_margin or shape.smooth):
        wrong = "a loss of lists with a corner"
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


def proven_convex(shape: Shape, columns: Columns | None = None) -> bool:
    """Return whether a shape that is declared convex is one of the package's, or convex by cvxpy's rules.

    columns: whose scores it reads; of one group (`sample`) by default.
    """
    if not shape.convex or type(shape) in (Logistic, Square, Hinge, SmoothHinge):
        return shape.convex
    import cvxpy  # heavy, and needed for the shapes of others alone

    columns = sample(shape) if columns is None else columns
    variables = tuple(cvxpy.Variable(logps.size) for logps in columns.logps)
    try:
        if isinstance(shape, MarginShape):
            return bool(shape.of_margin(variables[0]).is_convex())
        return bool(shape(variables, 1.0, columns.with_logps(variables)).is_convex())
    except Exception:  # a formula that cvxpy cannot read proves nothing, whatever it raises
        return False


def sample(shape: Shape) -> Columns:
    """Return one group of zeros, of three responses where a shape takes lists, with falling scores."""
    size, one = 3 if shape.lists else 2 if shape.pairs else 1, np.ones(1)
    scores = tuple(score * one for score in (0.9, 0.4, 0.1)[:size])
    return Columns(logps=(0.0 * one,) * size, reference=(0.0 * one,) * size, lengths=(one,) * size, scores=scores)
