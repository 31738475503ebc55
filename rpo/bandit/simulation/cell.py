"""One cell: every method on its draws, what the policies are worth, and the rows that come of it.

Shapes: S seeds, X prompts, A responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpo.bandit.baseline import Baseline
from rpo.bandit.batched.solution import base_tables
from rpo.bandit.metrics import outcomes
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.simulation.answers import NAN, NO_MINIMIZER, Answer, Answers, answered, failed, number
from rpo.bandit.simulation.draws import DATA, METHOD, Draw, Draws, Streams, draw_blocks, draw_each
from rpo.bandit.simulation.grid import Source, canonical, digest
from rpo.bandit.simulation.methods import Fitted, Maximin, Template, describe
from rpo.core.checks import Array
from rpo.core.objectives import BASES, DPO, Objective

NUMBERS = ("gap", "reward/gold", "reward/proxy", "kl/reference", "duality_gap", "relative_gap", "tv_bound")
OUTCOMES: dict[str, type] = {
    **dict.fromkeys(NUMBERS, np.float64),
    "status": object,
    "message": object,
    "objective/name": object,
    "objective/beta": np.float64,
    "objective/eta": np.float64,
    "objective/base": object,
    "reward_class": object,
}
BLANK = {name: (kind, NAN if kind is np.float64 else "") for name, kind in OUTCOMES.items()}
Columns = dict[str, NDArray[Any]]


class Cell:
    """Draws of one combination of instance parameters and n, for a list of seeds, ascending.

    at_once: whether many seeds are drawn together, by default where the instance allows it; each alone is another draw.
    """

    def __init__(
        self, source: Source, unit: dict[str, Any], seeds: Sequence[int], root: int, *, at_once: bool | None = None
    ) -> None:
        self.seeds, self.n = seeds, int(unit["n"])
        self.streams = Streams(source, unit, root)
        self.at_once = source.at_once if at_once is None else at_once
        self._answers: dict[str, list[Answers]] = {}
        self._bases: dict[tuple[int, str], Array] = {}

    def problem(self, seed: int) -> ContextualBandit:
        """Return the problem of one seed."""
        if not self.at_once:
            return self.streams.problem(seed)
        size = self.streams.block
        return self.streams.problems(seed // size, size)[seed % size]

    def check(self, methods: Iterable[Maximin | Baseline]) -> None:
        """Build the first seed's problem, and each method's reward class on it; raise what is mistaken."""
        problem = self.problem(self.seeds[0])
        problem.true_reward()
        self.entries = problem.num_prompts * problem.num_responses**2
        for method in methods:
            if isinstance(method, Maximin):
                method.class_for(problem)

    @cached_property
    def drawn(self) -> tuple[list[Draws], dict[int, BaseException]]:
        """The draws, those of one shape together, and what went wrong by place."""
        return draw_blocks(self.streams, self.seeds) if self.at_once else draw_each(self._draw, self.seeds)

    def _draw(self, seed: int) -> Draw:
        problem, streams = self.problem(seed), self.streams
        return Draw(problem, problem.sample_preferences(self.n, rng=streams.generator(DATA, streams.data_hash, seed)))

    @property
    def draws(self) -> list[Draw | BaseException]:
        """One problem with its data a seed; what went wrong in its place."""
        groups, failures = self.drawn
        found: dict[int, Draw | BaseException] = {**failures}
        for group in groups:
            found |= {int(i): group.draw(k) for k, i in enumerate(group.where)}
        return [found[i] for i in range(len(self.seeds))]

    def answered(self, method: Maximin | Baseline) -> list[Answer]:
        """Return what a method answers on each draw."""
        groups, failures = self.drawn
        found = {i: failed(error) for i, error in failures.items()}
        for group, answers in zip(groups, self._answered(method), strict=True):
            found |= {int(i): answers[k] for k, i in enumerate(group.where)}
        return [found[i] for i in range(len(self.seeds))]

    def _answered(self, method: Maximin | Baseline) -> list[Answers]:
        """Return a method's answers on the draws of each shape."""
        described = describe(method)
        key = canonical(described)
        if key not in self._answers:
            content = int(digest(f"{self.streams.data_hash:x}", described), 16)

            def stream(place: int) -> np.random.Generator:
                return self.streams.generator(METHOD, content, self.seeds[place])

            self._answers[key] = [
                answered(method, group, lambda k, where=group.where: stream(int(where[k])))  # type: ignore[misc]
                for group in self.drawn[0]
            ]
        return self._answers[key]

    def rows(self, settings: Sequence[dict[str, float]], templates: Sequence[Template], proxy: bool) -> Columns:
        """Return columns of outcomes, by setting, seed and method, the last fastest."""
        measured: dict[str, Columns] = {}
        order: list[Columns] = []
        for setting in settings:
            for item in templates:
                method = item.resolve(setting)
                key = canonical(describe(method))
                if key not in measured:  # a method without eta is the same at every eta
                    measured[key] = self._measure(method, proxy)
                order.append(measured[key])
        shape = len(settings), len(templates), len(self.seeds)
        return {
            name: np.stack([columns[name] for columns in order]).reshape(shape).swapaxes(1, 2).ravel()
            for name in OUTCOMES
        }

    def _measure(self, method: Maximin | Baseline, proxy: bool) -> Columns:
        """Return what the method's policy is worth on each draw, with its evidence."""
        groups, failures = self.drawn
        inner = _inner(method)
        columns: Columns = {name: np.full(len(self.seeds), blank, kind) for name, (kind, blank) in BLANK.items()}
        columns["objective/name"][:] = type(inner).__name__
        columns["objective/beta"][:] = number(getattr(inner, "beta", NAN))
        columns["objective/eta"][:] = number(getattr(inner, "eta", NAN))
        columns["objective/base"][:] = inner.anchor.role if isinstance(inner, Objective) else getattr(inner, "base", "")
        for i, error in failures.items():
            columns["status"][i], columns["message"][i] = "failed", failed(error).message
        shadows = self._answered(_likelihood(method)) if proxy else [None] * len(groups)
        for k, (draws, answers, likely) in enumerate(zip(groups, self._answered(method), shadows, strict=True)):
            for name in ("relative_gap", "tv_bound", "status", "message", "reward_class"):
                columns[name][draws.where] = getattr(answers, name)
            columns["duality_gap"][draws.where] = answers.gap
            problems, proxy_reward, base = draws.problems, None, draws.problems.reference
            if likely is not None:
                proxy_reward = np.where((likely.status == "certified")[:, None, None], likely.reward, NAN)
                base = self._base(k, draws, method)
            worth = outcomes(answers.policy, problems.d0, problems.reference, problems.reward, base, proxy_reward)
            worth["gap"] = problems.best - worth["reward/gold"]
            for name, values in worth.items():
                columns[name][draws.where] = values
        return columns

    def _base(self, k: int, draws: Draws, method: Maximin | Baseline) -> Array:
        """Return pi_base of each draw, (S, X, A)."""
        if isinstance(method, Maximin) and method.base_policy is not None:
            return np.stack([method.base_for(draws.problem(i)) for i in range(len(draws))])
        name = _base_name(_inner(method))
        if (k, name) not in self._bases:
            self._bases[k, name] = base_tables(draws.wins, DPO(beta=1.0, base=name), draws.problems.reference, None)
        return self._bases[k, name]


def _likelihood(method: Maximin | Baseline) -> Maximin:
    """Return what finds the proxy's reward: the maximum likelihood in the method's class."""
    inner = _inner(method)
    if isinstance(method, Maximin):
        plain = DPO(beta=inner.link.beta, base=inner.anchor.role)
        return replace(method, objective=plain)
    beta = number(inner.link.beta if isinstance(inner, Objective) else getattr(inner, "beta", NAN))
    # beta only breaks ties among maximum-likelihood rewards
    plain = DPO(beta=beta if beta > 0 else 1.0, base=_base_name(inner))
    reward_class = getattr(method, "reward_class", None)
    return Maximin(plain, "box" if reward_class is None else reward_class)


def _inner(method: Maximin | Baseline) -> Any:
    """Return the objective of a method that has one, else the baseline."""
    return method.objective if isinstance(method, (Maximin, Fitted)) else method


def _base_name(inner: Any) -> str:
    name = inner.anchor.role if isinstance(inner, Objective) else getattr(inner, "base", "chosen")
    return name if isinstance(name, str) and name in BASES and name != "custom" else "chosen"


def retried(columns: dict[str, Any]) -> bool:
    """Return whether a row of a chunk failed for a reason that may be gone: anything but the data."""
    return any(
        status == "failed" and not message.startswith(NO_MINIMIZER)
        for status, message in zip(columns["status"], columns["message"], strict=True)
    )
