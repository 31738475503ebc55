"""Who enters the atlas: every registered method that a table has, along its knob, and RPO under both of its bases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np

from rpo.bandit.simulation.methods import is_solvable
from rpo.core.links import Link
from rpo.core.objectives import Anchor, Objective
from rpo.core.shapes import Shape
from rpo.methods.registry import ASSUMED, EMPTIED, METHODS, SET, reward_unit

ABSENT = {
    "RDPO": "responses of a table have one token: it is DPO",
    "ODPO": "it reads scores, of which these instances have none",
    "KTO": "its z0 follows the policy under stop-gradient: a fixed point that minimises nothing",
    "BCO": "its shift is a moving mean over batches",
    "WPO": "its weights follow the policy under stop-gradient: a fixed point that minimises nothing",
    "PRO": "it has no reference, and no number that would hold it to one",
    "ALoL": "it has no number that goes from the reference to the data",
}


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method along its knob, from the most to the least held back.

    method: the objective's class; knob: the field that moves, along `values`; fixed: its other fields. default: the
    knob's own, None where it has none. pull: what is predicted of unseen responses (`rpo.methods.registry`).
    """

    name: str
    method: type[Objective]
    knob: str
    values: tuple[float, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    default: float | None = None
    pull: str = ""

    def at(self, value: float) -> Objective:
        """Return the objective at one value of the knob."""
        return self.method(**{**self.fixed, self.knob: value})

    @property
    def mild(self) -> float:
        """A value a quarter along the path: near its end policies are so extreme that every mass looks like zero."""
        return self.values[len(self.values) // 4]

    def reward_unit(self, value: float) -> float:
        """Return the rewards that one unit of the link's stands for."""
        return reward_unit(self.knob, value)

    @property
    def certified(self) -> bool:
        """Whether its optimum is certified: `solve` takes it."""
        return is_solvable(self.at(self.values[0]))


def entrants(steps: int = 9) -> list[Entrant]:
    """Return the entrants in the registry's order; steps: values along each path, besides the default."""
    found = []
    for name, row in METHODS.items():
        if row.path is None:
            continue
        kind, fixed = row.load(), row.fixed()
        default = next(f.default for f in fields(kind) if f.name == row.knob)  # type: ignore[arg-type]
        default = ASSUMED[row.knob] if default is MISSING else float(default)
        path = np.geomspace(*row.path, steps)
        values = tuple(sorted({*map(float, path), default}, reverse=row.path[0] > row.path[1]))
        entrant: dict[str, Any] = {"method": kind, "knob": row.knob, "values": values, "default": default}
        if name == "RPO":
            # Its base decides what becomes of unseen responses: the two of the paper's reading.
            found.append(Entrant(name="RPO", fixed=fixed, pull=EMPTIED, **entrant))
            full = {**fixed, "base": "reference"}
            found.append(Entrant(name="RPO, base = reference", fixed=full, pull=SET, **entrant))
        else:
            found.append(Entrant(name=name, fixed=fixed, pull=row.pull, **entrant))
    return found


def absent() -> dict[str, str]:
    """Return the registered methods that do not enter, and why."""
    why = {name: row.evidence for name, row in METHODS.items() if row.path is None}
    return {name: ABSENT.get(name, word) for name, word in why.items()}


@dataclass(frozen=True, kw_only=True)
class FromReference(Objective):
    """An objective without an SFT term whose undetermined rewards are those nearest pi_ref.

    Where the data leave rewards free, `solve` takes the most pessimistic against pi_base, by default the chosen
    responses; no such term is in the loss of these methods, whose training starts at pi_ref and leaves what it does not
    see alone.
    """

    inner: Objective

    @property
    def link(self) -> Link:
        """The inner one's."""
        return self.inner.link

    @property
    def shape(self) -> Shape:
        """The inner one's."""
        return self.inner.shape

    @property
    def anchor(self) -> Anchor:
        """None, against pi_ref."""
        return Anchor(role="reference")

    @property
    def label(self) -> str:
        """The inner one's."""
        return self.inner.label


def settled(objective: Objective) -> Objective:
    """Return the objective with its free rewards settled by pi_ref, or as it is where an SFT term settles them."""
    return objective if objective.anchor.weight else FromReference(inner=objective)
