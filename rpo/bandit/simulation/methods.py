"""What enters a simulation: an objective, a maximin with its reward class, or a baseline; whence beta and eta come."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.baselines.catalogue import list_baselines
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit
from rpo.bandit.maximin import default_class
from rpo.bandit.problem import ContextualBandit, SoftmaxPolicy
from rpo.bandit.reward_class import Box, LinearBall, RewardClass, Unconstrained
from rpo.bandit.simulation.grid import canonical, digest, qualified_name
from rpo.bandit.solver.saddle import PROMPT_WEIGHTS, require_on_table
from rpo.bandit.solver.solvable import require_solvable
from rpo.core import checks
from rpo.core.errors import InvalidArgument, shown
from rpo.core.fields import hold
from rpo.core.objectives import Objective
from rpo.methods import registry

CLASSES = ("box", "unconstrained", "ball")
WRAPPED = ("reward_class", "bound", "prompt_weights", "base_policy")


@dataclass(frozen=True, eq=False)
class Maximin:
    """The paper's maximin as a method of `simulate`: an objective with its reward class and prompt weights.

    objective: one that `solve` certifies; a class, or a partial of one, takes beta and eta from the grid. reward_class:
    "box" (Box(bound), by default of the problem's reward_bound), "unconstrained", "ball"
    (LinearBall(problem.features, bound)), a `RewardClass`, or a function problem -> `RewardClass`.
    base_policy: (X, A), or a function problem -> (X, A), exactly with an objective of base "custom".
    """

    objective: Any
    reward_class: str | RewardClass | Callable[[ContextualBandit], RewardClass] = "box"
    bound: float | None = None
    prompt_weights: str = "data"
    base_policy: Any = None

    def __post_init__(self) -> None:
        checks.one_of("prompt_weights", self.prompt_weights, PROMPT_WEIGHTS)
        if isinstance(self.reward_class, str):
            checks.one_of("reward_class", self.reward_class, CLASSES)
        if self.bound is not None:
            hold(self, checks.positive, "bound")
        if (self.bound is not None and self.reward_class not in ("box", "ball")) or (
            self.bound is None and self.reward_class == "ball"
        ):
            raise InvalidArgument(
                "bound",
                expected="a number with reward_class 'ball', a number or None with 'box', None otherwise",
                got=f"{self.bound} with reward_class {self.reward_class!r}",
                remedy="Pass the radius of the ball or the largest reward of the box.",
            )

    def class_for(self, problem: ContextualBandit) -> RewardClass:
        """Return the reward class on this problem."""
        if callable(self.reward_class):
            return self.reward_class(problem)
        if not isinstance(self.reward_class, str):
            return self.reward_class
        if self.reward_class == "unconstrained":
            return Unconstrained()
        if self.reward_class == "box":
            return default_class(problem) if self.bound is None else Box(self.bound)
        if problem.features is None:
            raise InvalidArgument(
                "reward_class", expected="features for 'ball'", got=problem.name, remedy="Use an instance with them."
            )
        return LinearBall(problem.features, float(self.bound or 0.0))

    def base_for(self, problem: ContextualBandit) -> Any:
        """Return the custom pi_base on this problem, (X, A); None where the objective names its base."""
        given = self.base_policy(problem) if callable(self.base_policy) else self.base_policy
        return None if given is None else checks.probabilities("base_policy", given, shape=problem.reference.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores."""
        base = self.base_policy
        if base is not None:
            base = qualified_name("base_policy", base) if callable(base) else digest(checks.finite("base_policy", base))
        described: Any = self.reward_class
        if callable(described):
            described = qualified_name("reward_class", described)
        elif not isinstance(described, str):
            described = class_record(described)
        return {
            **self.objective.to_dict(),
            "reward_class": described,
            "bound": self.bound,
            "prompt_weights": self.prompt_weights,
            "base_policy": base,
        }


def class_record(reward_class: RewardClass) -> dict[str, Any]:
    """Return what a record stores of a class, with a digest of each of its arrays: equal only for equal classes."""
    fields = dataclasses.fields(reward_class) if dataclasses.is_dataclass(reward_class) else ()
    tables = {item.name: getattr(reward_class, item.name) for item in fields}
    arrays = {name: digest(table) for name, table in tables.items() if isinstance(table, np.ndarray)}
    return {**reward_class.describe(), **arrays}


@dataclass(frozen=True, eq=False)
class Fitted(Baseline):
    """An objective minimised over policies, with the evidence that `fit` has: those that `solve` does not take.

    linear: over linear softmax policies in the problem's features, else over all. `simulate` fits all seeds at once
    where it can (`batched.fit_batch`).
    """

    objective: Objective
    linear: bool = False

    @property
    def label(self) -> str:
        """The objective's."""
        return self.objective.label

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return what `rpo.bandit.fit` ends at from the reference policy."""
        run = fit(self.policy_for(problem), data, self.objective, proxy_reward=None)
        status = "inaccurate" if run.evidence == "none" else run.evidence
        gap = run.certificate.get("gap", float("nan"))
        evidence = {"gap": gap, "relative_gap": gap / max(1.0, abs(run.loss))}
        return PolicyResult(policy=run.policy, label=self.label, status=status, message=run.message, evidence=evidence)

    def policy_for(self, problem: ContextualBandit) -> SoftmaxPolicy:
        """Return the policies it is minimised over, at the reference."""
        return problem.linear_softmax_policy() if self.linear else problem.softmax_policy()

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the objective, and where the policies are linear that they are."""
        return self.objective.to_dict() | ({"policies": "linear softmax"} if self.linear else {})


def describe(method: Maximin | Baseline) -> dict[str, Any]:
    """Return what a record stores of a method; a function among its fields by its name."""
    named = ((key, qualified_name(key, value) if callable(value) else value) for key, value in method.to_dict().items())
    described = dict(named)
    try:
        canonical(described)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"methods: fields of {type(method).__name__}",
            expected="numbers, strings, arrays, functions, and lists and dicts of plain values",
            got=str(error),
            remedy="A record must tell one method from another: keep other objects out of the fields.",
        ) from None
    return described


@dataclass(frozen=True, eq=False)
class Template:
    """A method whose beta and eta may come from the grid; `resolve` makes the method of one cell."""

    name: str
    make: Callable[..., Any]
    takes: frozenset[str]
    maximin: Maximin | None  # the reward class and prompt weights an objective is wrapped in

    def resolve(self, setting: Mapping[str, float]) -> Maximin | Baseline:
        """Return the method at this beta and eta."""
        made = self.make(**{key: value for key, value in setting.items() if key in self.takes})
        if isinstance(made, Baseline) and dataclasses.is_dataclass(made):
            return made
        if isinstance(made, Objective):
            name = f"methods: {self.name}"
            made = require_on_table(made, name)
            if self.maximin is None and not is_solvable(made):
                return Fitted(made)
            solvable = require_solvable(made, name)
            method = dataclasses.replace(self.maximin or Maximin(solvable), objective=solvable)
            base = solvable.anchor.role
            if (base == "custom") != (method.base_policy is not None):
                raise InvalidArgument(
                    f"methods: base_policy of {self.name}",
                    expected="a policy exactly with base 'custom'",
                    got=f"base={base!r} with base_policy {method.base_policy}",
                    remedy="Pass Maximin(objective, base_policy=...), or another base.",
                )
            return method
        raise _not_a_method(self.name, made)


def template(name: str | None, method: Any, settings: Iterable[str]) -> Template:
    """Read one method: an instance is taken as it is, a class or partial takes beta and eta from the grid."""
    wrapper = method if isinstance(method, Maximin) else None
    inner = method.objective if isinstance(method, Maximin) else method
    if isinstance(inner, (Objective, Baseline)) and not isinstance(inner, type):
        own: set[str] = {f.name for f in dataclasses.fields(inner)} if dataclasses.is_dataclass(inner) else set()
        clash = sorted(own & set(settings))
        if clash:
            raise InvalidArgument(
                f"methods: {clash[0]} of {inner!r}",
                expected=f"{clash[0]} either in the method or in grid",
                got="both",
                remedy=f"Pass the class {type(inner).__name__}, or functools.partial of it, to take it from grid.",
            )
        default = inner.label if isinstance(inner, Baseline) else type(inner).__name__
        return Template(name or default, lambda: inner, frozenset(), wrapper)
    made = inner.func if isinstance(inner, functools.partial) else inner
    if not (isinstance(made, type) and (issubclass(made, (Baseline, Objective)))):
        raise _not_a_method(name, inner)
    given = set(inner.keywords) if isinstance(inner, functools.partial) else set()
    fields = [f for f in dataclasses.fields(made) if f.init]  # type: ignore[arg-type]
    takes = {f.name for f in fields} & set(settings) - given
    clash = sorted(given & set(settings))
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    missing = sorted(required - given - takes)
    if missing or clash:
        raise InvalidArgument(
            f"methods: {(missing or clash)[0]} of {name or made.__name__}",
            expected="a value, in the method or in grid, not in both",
            got="both" if clash and not missing else "none",
            remedy=f"Give {(missing or clash)[0]} in one place.",
        )
    return Template(name or made.__name__, inner, frozenset(takes), wrapper)


def is_solvable(objective: Objective) -> bool:
    """Return whether `solve` takes the objective."""
    try:
        require_solvable(objective)
    except InvalidArgument:
        return False
    return True


def _not_a_method(name: str | None, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"methods[{name!r}]" if name else "methods",
        expected="an objective, a Maximin or a Baseline that is a dataclass: an instance, a class or a partial",
        got=shown(got),
        remedy="Pass for example RPO with beta and eta in grid.",
    )


def from_dict(entry: Any) -> tuple[str, Any]:
    """Return (name, method) from the entry of a recipe.

    entry: a name, or "method" with one: of a registered objective, a Baseline's class, or package.module:Name, a class
    or an instance of your own; and optionally "name" (default the method's), "reward_class", "bound",
    "prompt_weights" and "base_policy" of `Maximin`, and the method's own fields. Raises InvalidArgument.
    """
    given = {"method": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
        raise _unknown(entry)
    called = str(given["method"])
    made = _named(called)
    name = str(given.get("name", called.rpartition(":")[2]))
    fields = {str(key): value for key, value in given.items() if key not in ("method", "name")}
    of_maximin = isinstance(made, Objective) or (isinstance(made, type) and issubclass(made, Objective))
    options: dict[str, Any] = {key: fields.pop(key) for key in WRAPPED if of_maximin and key in fields}
    allowed = {f.name for f in dataclasses.fields(made) if f.init} if isinstance(made, type) else set()
    for key in fields:
        if key not in allowed:
            raise InvalidArgument(
                f"methods: {key} of {called}",
                expected="one of " + (", ".join(sorted(allowed)) or "no field"),
                got=shown(fields[key]),
                remedy="Check the spelling.",
            )
    method = functools.partial(made, **registry.with_divergences(made, fields)) if fields else made
    return name, Maximin(method, **options) if options else method


def _named(name: str) -> Any:
    """Return the class or instance that a recipe calls `name`."""
    if name in registry.METHODS or name in registry.REFUSED:
        return registry.get(name)
    baselines = {info.method.__name__: info.method for info in list_baselines().values()}
    if name in baselines:
        return baselines[name]
    if ":" not in name:
        raise _unknown(name)
    found = checks.imported("methods", name)
    kind = found if isinstance(found, type) else type(found)
    if not (issubclass(kind, (Objective, Baseline, Maximin)) and dataclasses.is_dataclass(kind)):
        raise _not_a_method(name, found)
    return found


def _unknown(got: object) -> InvalidArgument:
    baselines = [info.method.__name__ for info in list_baselines().values()]
    return InvalidArgument(
        "methods",
        expected="entries with a key 'method', one of " + ", ".join([*registry.METHODS, *baselines]),
        got=shown(got),
        remedy="Write for example {method: RPO}, or package.module:Name for your own.",
    )
