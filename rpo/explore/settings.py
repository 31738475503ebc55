"""What the explorer's page can set: ranges, the positions of each slider, and the address that restores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any
from urllib.parse import urlencode

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.methods import registry

# The registered methods of pairs that have a path from the reference to the data, but for the hinge, whose corner takes
# seconds under a slider; and two baselines.
REGISTERED = {
    name.lower(): row
    for name, row in registry.METHODS.items()
    if row.path is not None and row.home != "rpo.methods.lists" and name != "SLiC"
}
BASELINES = {"greedy": "greedy on r_MLE", "base": "imitation (pi_base)"}
METHODS = {**{key: row.name for key, row in REGISTERED.items()}, **BASELINES}
PESSIMISTIC = ("rpo", "frpo")  # those with an eta
REFERENCES = {"behavior": "where the data come from", "uniform": "uniform"}
ALONG = {"beta": "beta, or the method's knob", "eta": "eta (RPO, FRPO)"}
# What the slider of the knob says; the page changes it with the method.
KNOBS = {
    "beta": "beta, KL temperature",
    "tau": "tau of IPO",
    "alpha": "alpha of CPL",
    "weight": "weight of the preference term",
    "": "beta (no effect here)",
}
CHOICES = ("method", "reference", "along")  # the settings that are words
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # a decade of a slider


def _decades(low: int, high: int) -> tuple[float, ...]:
    """Return `STEPS` times the powers of ten from 10^low to 10^high, which ends the list."""
    inner = [float(f"{step}e{power}") for power in range(low, high) for step in STEPS]
    return (*inner, 10.0**high)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One state of the explorer; every field is a parameter of the page's address.

    method: a key of METHODS. arms: A, in [3, 12]. skew: of `instances.coverage_skew`, in [0, 4]. noise: rate of flipped
    labels, in [0, 0.45]. n: preferences, in [1, 10^6]. beta: the method's knob, in [0.02, 10]: beta, log-odds per nat,
    or tau of IPO, alpha of CPL, weight of ORPO and ASFT; its other fields are as in the atlas. eta: of RPO and FRPO, in
    [0, 10]. seed: of problem and data. reference: pi_ref, "behavior" (the distribution that responses in the data are
    drawn from) or "uniform". along: what the path through the simplex follows, "beta" (the knob) or "eta" (RPO and
    FRPO). Raises InvalidArgument.
    """

    method: str = "dpo"
    arms: int = 3
    skew: float = 2.0
    noise: float = 0.2
    n: int = 30
    beta: float = 0.1
    eta: float = 0.1
    seed: int = 143
    reference: str = "behavior"
    along: str = "beta"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, RULES[name](name, value))

    @property
    def knob(self) -> str:
        """The name of the number that `beta` is for this method; "" for a baseline, which has none."""
        return REGISTERED[self.method].knob if self.method in REGISTERED else ""

    def to_query(self) -> str:
        """Return the address's query, all fields in order: what `read_settings` reads back exactly."""
        return urlencode({name: shortest(value) for name, value in asdict(self).items()})


def _between(low: float, high: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        # NaN is outside every range.
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
        if not low <= number <= high:
            raise InvalidArgument(
                name, expected=f"a number in [{low:g}, {high:g}]", got=value, remedy="Move its slider."
            )
        return number

    return check


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    return lambda name, value: checks.integer(name, value, minimum=low, maximum=high)


def _among(options: Mapping[str, str]) -> Callable[[str, Any], str]:
    return lambda name, value: checks.one_of(name, value, options)


RULES: dict[str, Callable[[str, Any], Any]] = {
    "method": _among(METHODS),
    "arms": _whole(3, 12),
    "skew": _between(0.0, 4.0),
    "noise": _between(0.0, 0.45),
    "n": _whole(1, 10**6),
    "beta": _between(0.02, 10.0),
    "eta": _between(0.0, 10.0),
    "seed": _whole(0, 10**9),
    "reference": _among(REFERENCES),
    "along": _among(ALONG),
}


@dataclass(frozen=True)
class Slider:
    """A slider of the page: `positions` rise; a value that came by the address is put among them."""

    name: str
    label: str
    positions: tuple[float, ...]

    def with_value(self, value: float) -> tuple[float, ...]:
        """Return the positions, `value` among them."""
        return tuple(sorted({*self.positions, value}))


SLIDERS = (
    Slider("arms", "arms", tuple(range(3, 13))),
    Slider("skew", "coverage skew", tuple(k / 4 for k in range(17))),
    Slider("noise", "label noise", tuple(k / 20 for k in range(10))),
    Slider("n", "N, preferences", tuple(v for v in _decades(1, 6) if v == int(v))),
    Slider("beta", KNOBS["beta"], tuple(v for v in _decades(-2, 1) if v >= 0.02)),
    Slider("eta", "eta, pessimism (RPO, FRPO)", (0.0, *_decades(-3, 1))),
    Slider("seed", "seed of the draw", tuple(range(200))),
)


def read_settings(query: Mapping[str, Sequence[str]]) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings of an address's parameters (name -> texts), and a sentence for each that cannot be used.

    A parameter that is missing, or refused, takes its default; nothing is raised.
    """
    given: dict[str, Any] = {}
    problems = []
    for name, texts in query.items():
        try:
            given[name] = _read(name, texts)
        except InvalidArgument as error:
            problems.append(str(error))
    return Settings(**given), tuple(problems)


def _read(name: str, texts: Sequence[str]) -> Any:
    known = [field.name for field in fields(Settings)]
    if name not in known:
        raise InvalidArgument(name, expected=f"one of {', '.join(known)}", got="another name", remedy="Leave it out.")
    if len(texts) != 1:
        raise InvalidArgument(name, expected="one value", got=len(texts), remedy="Give it once.")
    value: Any = texts[0]
    if name not in CHOICES:
        try:
            value = float(value)
        except ValueError:
            raise InvalidArgument(name, expected="a number", got=repr(value), remedy="Write 0.1 or 1e3.") from None
    return RULES[name](name, value)


def shortest(value: Any) -> str:
    """Return the shortest text that reads back to the same value, as JavaScript writes it in these ranges."""
    return repr(int(value)) if isinstance(value, float) and value == int(value) else str(value)
