"""What a simulation runs over: instance, methods, grid and seeds, checked and put in one canonical order."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit import instances
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.problems import Problems
from rpo.core import checks
from rpo.core.errors import InvalidArgument, shown
from rpo.core.records import jsonable

CLASSES = ("box", "unconstrained", "ball")
SETTINGS = ("beta", "eta")
NOISE = "label_noise"
MAX_SEED = 2**63 - 1
MAX_SEEDS = 10**7
Scalar = bool | int | float | str | None


@dataclass(frozen=True, eq=False)
class Source:
    """Where problems come from: a function of parameters and rng, or one fixed bandit."""

    name: str
    make: Callable[..., ContextualBandit] | ContextualBandit
    parameters: frozenset[str] | None  # None: any
    required: frozenset[str]

    def build(self, parameters: Mapping[str, Scalar], n: int, rng: np.random.Generator) -> ContextualBandit:
        """Return the problem of one draw."""
        noise = parameters.get(NOISE)
        if noise is not None and (self.parameters is None or NOISE not in self.parameters):
            rest = {key: value for key, value in parameters.items() if key != NOISE}
            return instances.label_noise(self.build(rest, n, rng), float(noise))
        if isinstance(self.make, ContextualBandit):
            return self.make
        extra: dict[str, Any] = {"n": n, "rng": rng}
        wanted = {key: value for key, value in extra.items() if self.parameters is None or key in self.parameters}
        problem = self.make(**parameters, **wanted)
        if not isinstance(problem, ContextualBandit):
            raise InvalidArgument(
                "instance",
                expected="a function that returns a ContextualBandit",
                got=type(problem).__name__,
                remedy="Return the bandit itself.",
            )
        return problem

    @property
    def at_once(self) -> bool:
        """Whether many problems are drawn at once: one's own instances are made one by one."""
        if isinstance(self.make, ContextualBandit):
            return type(self.make) in (ContextualBandit, instances.FixedDesign)
        return any(self.make is make for make in instances.DRAWN_AT_ONCE)

    def build_many(self, parameters: Mapping[str, Scalar], n: int, size: int, rng: np.random.Generator) -> Problems:
        """Return the problems of `size` draws; for a source that draws them at once."""
        if isinstance(self.make, ContextualBandit):
            problems = Problems.repeated(self.make, size)
        else:
            given: dict[str, Any] = {key: value for key, value in parameters.items() if key != NOISE} | {"rng": rng}
            problems = instances.many(self.make, size, **given, **({"n": n} if self.depends_on_n else {}))
        noise = parameters.get(NOISE)
        if noise is None:
            return problems
        one = instances.label_noise(problems[0], float(noise))
        fixed = None if problems.fixed is None else one
        return dataclasses.replace(problems, label_noise=one.label_noise, name=one.name, fixed=fixed)

    @property
    def depends_on_n(self) -> bool:
        """Whether the problem itself, not its data alone, depends on N."""
        return not isinstance(self.make, ContextualBandit) and (self.parameters is None or "n" in self.parameters)


def source(instance: Any) -> Source:
    """Read `instance`: a name in `rpo.bandit.instances` or package.module:name, a function, or a ContextualBandit."""
    if isinstance(instance, ContextualBandit):
        instance.true_reward()
        parts = [getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init]
        return Source(f"{instance.name}:{digest(*parts)}", instance, frozenset(), frozenset())
    if isinstance(instance, str) and ":" in instance:
        return source(checks.imported("instance", instance))
    if isinstance(instance, str):
        checks.one_of("instance", instance, named_instances())
        instance = getattr(instances, instance)
    if not callable(instance):
        raise InvalidArgument(
            "instance",
            expected="a name in rpo.bandit.instances, a function that returns a ContextualBandit, or one of those",
            got=shown(instance),
            remedy="The names are " + ", ".join(named_instances()) + ".",
        )
    signature = inspect.signature(instance).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    known = {key for key, p in signature.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    needed = {key for key in known if signature[key].default is inspect.Parameter.empty} - {"n", "rng"}
    name = qualified_name("instance", instance)
    return Source(name, instance, None if open_ended else frozenset(known), frozenset(needed))


def named_instances() -> tuple[str, ...]:
    """Return the names `instance` may be given as."""
    listed = instances.list_instances()
    return tuple(name for name, info in listed.items() if "problem" not in inspect.signature(info.make).parameters)


def axes(grid: Any, source: Source) -> dict[str, list[Any]]:
    """Check a grid and return it in canonical order: parameters by name, then n, beta, eta; values ascending."""
    if not isinstance(grid, Mapping) or "n" not in grid:
        raise InvalidArgument(
            "grid", expected="a dict of lists with 'n' among its keys", got=shown(grid), remedy="Pass {'n': [100]}."
        )
    table: dict[str, list[Any]] = {}
    for key in [*sorted(set(grid) - {"n", *SETTINGS}), "n", *(key for key in SETTINGS if key in grid)]:
        raw = grid[key]
        if not checks.is_listed(raw):
            raise InvalidArgument(f"grid.{key}", expected="a list of values", got=shown(raw), remedy="Write [value].")
        values = [_axis_value(key, value) for value in raw]
        if not values or len({canonical(value) for value in values}) < len(values):
            raise InvalidArgument(
                f"grid.{key}",
                expected="one or more different values",
                got=shown(values),
                remedy="List each value once.",
            )
        table[key] = sorted(values, key=_rank)
    parameters = set(table) - {"n", *SETTINGS}
    known = None if source.parameters is None else (source.parameters | {NOISE}) - {"n", "rng"}
    unknown = sorted(parameters - known) if known is not None else []
    missing = sorted(source.required - parameters)
    if unknown or missing:
        raise InvalidArgument(
            f"grid.{(unknown or missing)[0]}",
            expected="n, beta, eta, label_noise and the parameters of "
            f"{source.name} ({', '.join(sorted(known or source.required)) or 'none'})",
            got="no such parameter" if unknown else "nothing for a parameter without default",
            remedy="Check the spelling." if unknown else "Give it a list of values.",
        )
    return table


def _axis_value(key: str, value: object) -> Scalar:
    if key == "n":
        return checks.integer("grid.n", value, minimum=1)
    if key == "beta":
        return checks.positive("grid.beta", value)
    if key == "eta":
        return checks.nonnegative("grid.eta", value)
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, (bool, int, str)) or (isinstance(plain, float) and math.isfinite(plain)):
        return plain
    raise InvalidArgument(
        f"grid.{key}",
        expected="finite numbers, strings, booleans or None",
        got=shown(value),
        remedy="Wrap the instance in a function that takes one of those.",
    )


def _rank(value: Any) -> tuple[int, Any]:
    return (0, 0) if value is None else (2, value) if isinstance(value, str) else (1, value)


def product(table: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the axes' values, the last axis fastest."""
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def seed_list(seeds: Any) -> list[int]:
    """Return the seeds in ascending order: an int means 0, ..., seeds - 1."""
    if isinstance(seeds, (int, float, np.number)) and not isinstance(seeds, bool):
        return list(range(checks.integer("seeds", seeds, minimum=1, maximum=MAX_SEEDS)))
    if not checks.is_listed(seeds):
        raise InvalidArgument(
            "seeds", expected="a number or a list of them", got=shown(seeds), remedy="Pass seeds=100."
        )
    listed = [checks.integer("seeds", seed, minimum=0, maximum=MAX_SEED) for seed in seeds]
    if not listed or len(set(listed)) < len(listed):
        raise InvalidArgument(
            "seeds", expected="one or more different seeds", got=f"{len(listed)} seeds", remedy="List each once."
        )
    return sorted(listed)


def root_seed(rng: Any) -> int:
    """Return the integer every draw descends from: an int itself, otherwise one drawn from rng."""
    if checks.is_whole(rng) and rng >= 0:
        return int(rng)
    return int(checks.generator("rng", rng).integers(MAX_SEED))


def qualified_name(argument: str, function: Any) -> str:
    """Return module and name of a function; refuse one that a record could not tell from another."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise InvalidArgument(
            argument, expected="a function with a name", got=shown(function), remedy="Write it as a def; see grid."
        )
    return f"{function.__module__}.{name}"


def canonical(value: Any) -> str:
    """Return one spelling of a plain value: sorted keys, and 1 for both 1 and 1.0."""
    return json.dumps(_whole(jsonable(value)), sort_keys=True, separators=(",", ":"))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(*parts: Any) -> str:
    """Return 128 bits, in hexadecimal, of arrays or plain values."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(canonical(part).encode())
        state.update(b"\0")
    return state.hexdigest()[:32]
