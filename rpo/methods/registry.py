"""Every method once: its paper, where it lives, what is known of its optimum, and what its tests hold it to.

Only strings: naming the methods imports none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from rpo.core import checks, divergences
from rpo.core.divergences import Divergence
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective

CERTIFIED, STATIONARY, ABSENT = "certified", "stationary", "none on a table"
FREE, EMPTIED, SET, FLOODED = "free", "emptied", "set", "flooded"
# Fields without a default of their own: the paper's beta, RPO's eta of the lessons, half of a reference.
ASSUMED: dict[str, Any] = {"beta": 0.1, "eta": 0.1, "gamma": 0.5}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One registered method.

    name: of its class. home: module. paper, arxiv, equation: source. oracle: what its values are held to by tests.
    evidence: of its optimum on a table, where there is one: "certified" where `rpo.bandit.solve` or `rpo.fit` bounds
    how far its answer is from it whatever the data, else "stationary"; "none on a table" where it reads what a table
    does not have. knob, path: the field that trades the data against the reference, and its values from the most to the
    least held back, which the atlas goes along; no path where a table would show nothing. pull: what the loss does to
    the mass of a response in no group: "free" (nothing: what it had stays), "emptied" (it goes to zero), "set" (to a
    number of its own) or "flooded" (it takes the rest).
    """

    name: str
    home: str
    paper: str
    arxiv: str
    equation: str
    oracle: str
    evidence: str = STATIONARY
    knob: str = "beta"
    path: tuple[float, float] | None = (4.0, 0.03)
    pull: str = FREE

    def load(self) -> type[Objective]:
        """Return the class."""
        return getattr(importlib.import_module(self.home), self.name)

    def fixed(self) -> dict[str, Any]:
        """Return values of the fields, besides the knob, that have no default of their own."""
        values = {name: ASSUMED[name] for name in _without_default(self.load()) if name != self.knob}
        # Under the KL it is RPO.
        return values | ({"divergence": divergences.ChiSquaredKL()} if self.name == "FRPO" else {})


def reward_unit(knob: str, value: float) -> float:
    """Return the rewards that one unit of the link's stands for at a knob's value: IPO's link leaves out its tau."""
    return value if knob == "tau" else 1.0


_CORE, _PAIRS, _DIVERGENCE = "rpo.core.objectives", "rpo.methods.pairs", "rpo.methods.divergence"
_FREE, _POINTWISE = "rpo.methods.reference_free", "rpo.methods.pointwise"
_LISTS = "rpo.methods.lists"


def _row(
    home: str, name: str, paper: str, arxiv: str, equation: str, oracle: str, evidence: str = STATIONARY, **more: Any
) -> Method:
    if evidence == ABSENT:
        more = {"path": None} | more
    return Method(
        name=name, home=home, paper=paper, arxiv=arxiv, equation=equation, oracle=oracle, evidence=evidence, **more
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _row(_CORE, "RPO", "Liu et al. 2024", "2405.16436", "4.8", "TRL [sigmoid, sft]", CERTIFIED, pull=EMPTIED),
        _row(_CORE, "DPO", "Rafailov et al. 2023", "2305.18290", "7", "TRL sigmoid", CERTIFIED),
        _row(
            _PAIRS, "IPO", "Azar et al. 2023", "2310.12036", "17", "TRL ipo", CERTIFIED, knob="tau", path=(4.0, 0.003)
        ),
        _row(_PAIRS, "SLiC", "Zhao et al. 2023", "2305.10425", "not verified", "TRL hinge", CERTIFIED),
        _row(_PAIRS, "ConservativeDPO", "Mitchell 2023", "none", "3", "DPO on counts (1 - eps, eps)", CERTIFIED),
        _row(_PAIRS, "RobustDPO", "Ray Chowdhury et al. 2024", "2403.00409", "12", "TRL robust", CERTIFIED),
        _row(
            _PAIRS,
            "RDPO",
            "Park et al. 2024",
            "2403.19159",
            "derived",
            "DPO at alpha = 0; by hand",
            CERTIFIED,
            path=None,
        ),
        _row(
            _PAIRS,
            "ODPO",
            "Amini et al. 2024",
            "2402.10571",
            "not verified",
            "DPO at alpha = 0; by hand",
            CERTIFIED,
            path=None,
        ),
        _row(_PAIRS, "GammaDPO", "Chen et al. 2024", "2405.19534", "4", "DPO at a scaled reference", CERTIFIED),
        _row(_PAIRS, "WPO", "Zhou et al. 2024", "2406.11827", "2", "TRL use_weighting", ABSENT),
        _row(_PAIRS, "EXO", "Ji et al. 2024", "2402.00856", "16", "TRL exo_pair"),
        _row(_PAIRS, "DiscoPOP", "Lu et al. 2024", "2406.08414", "5", "TRL discopop"),
        _row(_DIVERGENCE, "FDPO", "Wang et al. 2024", "2309.16240", "12", "TRL f_divergence_type", CERTIFIED),
        _row(
            _DIVERGENCE,
            "ChiPO",
            "Huang et al. 2024",
            "2407.13399",
            "Algorithm 1",
            "plug-in of the fitted reward",
            CERTIFIED,
        ),
        _row(
            _DIVERGENCE,
            "FRPO",
            "this package",
            "none",
            "theory, 11",
            "RPO at the KL; the policy program",
            CERTIFIED,
            pull=EMPTIED,
        ),
        _row(_FREE, "SimPO", "Meng et al. 2024", "2405.14734", "6", "TRL cpo simpo", CERTIFIED),
        _row(_FREE, "AlphaPO", "Gupta et al. 2025", "2501.03884", "not verified", "TRL cpo alpha", CERTIFIED),
        _row(
            _FREE,
            "CPL",
            "Hejna et al. 2023",
            "2310.13639",
            "5",
            "DPO with a uniform reference at lam = 1",
            CERTIFIED,
            knob="alpha",
            pull=EMPTIED,
        ),
        _row(_FREE, "CPO", "Xu et al. 2024", "2401.08417", "3-5", "TRL cpo sigmoid", CERTIFIED, pull=EMPTIED),
        _row(
            _FREE,
            "ORPO",
            "Hong et al. 2024",
            "2403.07691",
            "6-7",
            "TRL orpo",
            knob="weight",
            path=(0.03, 10.0),
            pull=EMPTIED,
        ),
        _row(
            _FREE,
            "ASFT",
            "Wang et al. 2024",
            "2409.10571",
            "quoted",
            "-(1 + lam) log p_w - lam log(1 - p_l)",
            CERTIFIED,
            knob="weight",
            path=(0.03, 10.0),
            pull=EMPTIED,
        ),
        _row(_POINTWISE, "NCA", "Chen et al. 2024", "2402.05369", "not verified", "TRL nca_pair", pull=SET),
        _row(_POINTWISE, "APOZero", "D'Oosterlinck et al. 2024", "2408.06266", "7", "TRL apo_zero", pull=EMPTIED),
        _row(_POINTWISE, "APODown", "D'Oosterlinck et al. 2024", "2408.06266", "8", "TRL apo_down", pull=FLOODED),
        _row(_POINTWISE, "KTO", "Ethayarajh et al. 2024", "2402.01306", "7-8", "TRL kto, z0 given", ABSENT),
        _row(
            _POINTWISE,
            "BCO",
            "Jung et al. 2024",
            "2404.04656",
            "quoted",
            "TRL bco_pair at a shift of 0; by hand",
            ABSENT,
        ),
        _row(_LISTS, "PlackettLuceDPO", "Rafailov et al. 2023", "2305.18290", "A.3", "DPO at K = 2", CERTIFIED),
        _row(_LISTS, "PRO", "Song et al. 2023", "2306.17492", "from its code", "a loop; by hand", CERTIFIED, path=None),
        _row(_LISTS, "LiPO", "Liu et al. 2024", "2402.01878", "5-11", "DCG changes of swaps"),
        _row(_LISTS, "InfoNCA", "Chen et al. 2024", "2402.05369", "not verified", "its fixed point", CERTIFIED),
        _row(
            _LISTS,
            "ListNCA",
            "Chen et al. 2024",
            "2402.05369",
            "not verified",
            "NCA at K = 2; its fixed point",
            pull=SET,
        ),
        _row(_LISTS, "ListEXO", "Ji et al. 2024", "2402.00856", "16", "EXO at K = 2"),
        _row(
            _LISTS,
            "CoPG",
            "Flet-Berliac et al. 2024",
            "2406.19185",
            "7-19",
            "IPO; its fixed point",
            CERTIFIED,
        ),
        _row(_LISTS, "ALoL", "Baheti et al. 2023", "2305.14718", "from its code", "mu max(A, 0) / Z", path=None),
    )
}


# Losses that are no mean over groups, and what to take in their place.
REFUSED = {
    "AOT": (
        "AOT, which sorts the margins of a whole batch (arXiv 2406.05882), so that its loss would depend on the "
        "batch's size and on how it is cut into micro-batches and processes",
        "With one pair in the batch it is rpo.ConservativeDPO",
    ),
}


def table(solved: Callable[[Objective], bool]) -> str:
    """Return the registered methods as a Markdown table, sorted as registered.

    solved: whether `rpo.bandit.solve` takes an objective.
    """
    head = ("method", "groups", "needs", "runs in", "evidence", "source", "equation", "held to")
    rows: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for method in METHODS.values():
        kind = method.load()
        made = kind(**dict.fromkeys(_without_default(kind), 0.1))
        needs = ", ".join(sorted(made.needs)) or "nothing"
        where = "fit, train" if "scores" in made.needs else "fit, simulate, train"
        where = "train" if method.evidence == ABSENT else where
        where = f"solve, {where}" if solved(made) else where
        source = method.paper if method.arxiv == "none" else f"{method.paper}, arXiv {method.arxiv}"
        rows.append(
            (f"`{method.name}`", _groups(made), needs, where, method.evidence, source, method.equation, method.oracle)
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _groups(objective: Objective) -> str:
    """Return which groups a method takes, in words."""
    shape = objective.shape
    taken = ["pairs"] * (shape.pairs and shape.compares) + ["lists"] * shape.lists + ["responses"] * shape.unpaired
    return ", ".join(taken)


def _without_default(kind: type[Objective]) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]


# Every divergence by its name, for files and command lines.
DIVERGENCES: dict[str, type[Divergence]] = {
    name: value
    for name, value in vars(divergences).items()
    if isinstance(value, type) and issubclass(value, Divergence) and value is not Divergence
}


def with_divergences(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a method as its class takes them: a divergence by its name, or name and fields, as itself.

    Raises InvalidArgument.
    """
    hints = get_type_hints(kind)
    return {
        name: _divergence(name, value) if hints.get(name) is Divergence and isinstance(value, (str, Mapping)) else value
        for name, value in given.items()
    }


def _divergence(name: str, value: str | Mapping[str, Any]) -> Divergence:
    fields_ = {} if isinstance(value, str) else {str(key): item for key, item in value.items() if key != "name"}
    chosen = value if isinstance(value, str) else value.get("name")
    kind = DIVERGENCES[checks.one_of(name, chosen, tuple(DIVERGENCES))]
    known = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    for unknown in fields_.keys() - set(known):
        expected = f"a field of {chosen} ({', '.join(known) or 'it has none'})"
        raise InvalidArgument(f"{name}.{unknown}", expected=expected, got="another", remedy="Check the spelling.")
    return kind(**fields_)


def get(name: str) -> type[Objective]:
    """Return the class of a registered method. Raises InvalidArgument, also for those of `REFUSED`."""
    if name in REFUSED:
        why, remedy = REFUSED[name]
        raise InvalidArgument("objective", expected="a method that is a mean over groups", got=why, remedy=f"{remedy}.")
    return METHODS[checks.one_of("objective", name, tuple(METHODS))].load()
