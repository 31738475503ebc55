"""One cell's draws: problems and data from their seeds, every method on them, and the rows that come of it.

Shapes: S seeds, X prompts, A responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline
from rpo.bandit.batched import solve_batch
from rpo.bandit.batched.fitting import TOLERANCE, fit_batch, is_fit_batchable
from rpo.bandit.batched.solution import is_batchable, is_batched_class
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.evidence import table_evidence
from rpo.bandit.maximin import solve
from rpo.bandit.metrics import outcome_unchecked
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass, Unconstrained
from rpo.bandit.simulation.grid import NOISE, Source, canonical, digest
from rpo.bandit.simulation.methods import Fitted, Maximin, Template, class_record, describe
from rpo.bandit.solver.saddle import build_saddle
from rpo.bandit.table_loss import TableLoss
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import NoMinimizer, RPOError
from rpo.core.objectives import BASES, DPO, Objective

NUMBERS = ("gap", "reward/gold", "reward/proxy", "kl/reference", "duality_gap", "relative_gap", "tv_bound")
OBJECTIVE = ("objective/name", "objective/beta", "objective/eta", "objective/base", "reward_class")
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
NAN = float("nan")
OWN_FAILURES = (Exception, SystemExit)  # what a user's function may raise: it becomes a row
NO_MINIMIZER = "no minimiser exists on this data"  # an answer, unlike every other failure
PROBLEM, DATA, METHOD = 0, 1, 2  # streams of one seed


@dataclass(frozen=True, eq=False)
class Draw:
    problem: ContextualBandit
    data: PreferenceCounts
    wins: Array
    best: float  # what the policy greedy on r* is worth


@dataclass(frozen=True, eq=False)
class Answer:
    """A method's policy on one draw, or why there is none."""

    status: str
    message: str
    policy: Array | None = None
    reward: Array | None = None
    gap: float = NAN
    relative_gap: float = NAN
    tv_bound: float = NAN
    reward_class: str = ""


class Cell:
    """Draws of one combination of instance parameters and n, for a list of seeds."""

    def __init__(self, source: Source, unit: dict[str, Any], seeds: Sequence[int], root: int) -> None:
        self.source, self.seeds, self.root = source, seeds, root
        self.n = int(unit["n"])
        self.parameters = {key: value for key, value in unit.items() if key != "n"}
        # Flipped labels change the data, not the problem.
        shown = {key: value for key, value in unit.items() if key != NOISE and (key != "n" or source.depends_on_n)}
        self._problem_hash = int(digest(source.name, shown), 16)
        self._data_hash = int(digest(source.name, unit), 16)
        self._draws: list[Draw | BaseException] | None = None
        self._answers: dict[str, list[Answer]] = {}
        self._bases: dict[tuple[int, str], Array] = {}

    def generator(self, stream: int, content: int, seed: int) -> np.random.Generator:
        """Return the Generator of one seed: a function of root, stream, the cell's content and seed alone."""
        return np.random.default_rng(np.random.SeedSequence([self.root, stream, content, seed]))

    def problem(self, seed: int) -> ContextualBandit:
        """Return the problem of one seed."""
        return self.source.build(self.parameters, self.n, self.generator(PROBLEM, self._problem_hash, seed))

    def check(self, methods: Iterable[Maximin | Baseline]) -> None:
        """Build the first seed's problem, and each method's reward class on it; raise what is mistaken."""
        problem = self.problem(self.seeds[0])
        problem.true_reward()
        self.entries = problem.num_prompts * problem.num_responses**2
        for method in methods:
            if isinstance(method, Maximin):
                method.class_for(problem)

    @property
    def draws(self) -> list[Draw | BaseException]:
        """One problem with its data a seed; what went wrong in its place."""
        if self._draws is None:
            self._draws = [self._draw(seed) for seed in self.seeds]
        return self._draws

    def _draw(self, seed: int) -> Draw | BaseException:
        try:
            problem = self.problem(seed)
            data = problem.sample_preferences(self.n, rng=self.generator(DATA, self._data_hash, seed))
            return Draw(problem, data, data.wins(), problem.expected_reward(problem.greedy_policy()))
        except OWN_FAILURES as error:
            return error

    def rows(
        self, settings: Sequence[dict[str, float]], templates: Sequence[Template], proxy: bool
    ) -> dict[str, list[Any]]:
        """Return columns of outcomes, by setting, seed and method, the last fastest."""
        columns: dict[str, list[Any]] = {name: [] for name in OUTCOMES}
        measured: dict[str, list[dict[str, Any]]] = {}
        for setting in settings:
            resolved = [item.resolve(setting) for item in templates]
            for method in resolved:
                key = canonical(describe(method))
                if key not in measured:  # a method without eta is the same at every eta
                    measured[key] = self._measure(method, proxy)
            lists = [measured[canonical(describe(method))] for method in resolved]
            for i in range(len(self.seeds)):
                for outcomes in lists:
                    for name in OUTCOMES:
                        columns[name].append(outcomes[i][name])
        return columns

    def _measure(self, method: Maximin | Baseline, proxy: bool) -> list[dict[str, Any]]:
        """Return what the method's policy is worth on each draw, with its evidence."""
        answers = self.answered(method)
        shadow = self.answered(_likelihood(method)) if proxy else [None] * len(answers)
        inner = _inner(method)
        fixed = {
            "objective/name": type(inner).__name__,
            "objective/beta": _number(getattr(inner, "beta", NAN)),
            "objective/eta": _number(getattr(inner, "eta", NAN)),
            "objective/base": inner.anchor.role if isinstance(inner, Objective) else getattr(inner, "base", ""),
        }
        rows = []
        for i, (draw, answer, likely) in enumerate(zip(self.draws, answers, shadow, strict=True)):
            row = dict.fromkeys(NUMBERS, NAN) | {"duality_gap": answer.gap, **fixed}
            row |= {"relative_gap": answer.relative_gap, "tv_bound": answer.tv_bound}
            row |= {"status": answer.status, "message": answer.message, "reward_class": answer.reward_class}
            if isinstance(draw, Draw) and answer.policy is not None:
                proxy_reward = likely.reward if likely is not None and likely.status == "certified" else None
                base = self._base(i, draw, method)
                worth = outcome_unchecked(answer.policy, draw.problem, base, proxy_reward)
                row |= {**worth, "gap": draw.best - worth["reward/gold"]}
            rows.append(row)
        return rows

    def _base(self, i: int, draw: Draw, method: Maximin | Baseline) -> Array:
        if isinstance(method, Maximin) and method.base_policy is not None:
            return np.asarray(method.base_for(draw.problem))
        name = _base_name(_inner(method))
        if (i, name) not in self._bases:
            saddle = build_saddle(draw.problem, draw.data, DPO(beta=1.0, base=name), Unconstrained())
            self._bases[i, name] = saddle.base
        return self._bases[i, name]

    def answered(self, method: Maximin | Baseline) -> list[Answer]:
        key = canonical(describe(method))
        if key not in self._answers:
            answers: list[Answer | None] = [_failed(d) if isinstance(d, BaseException) else None for d in self.draws]
            whole = [i for i, answer in enumerate(answers) if answer is None]
            if isinstance(method, Maximin):
                for group, reward_class in self._groups(method, whole, answers):
                    for i, answer in zip(group, self._batch(method, group, reward_class), strict=True):
                        answers[i] = answer
            elif isinstance(method, Fitted) and is_fit_batchable(method.objective):
                for i, answer in self._fitted(method, whole):
                    answers[i] = answer
            else:
                content = int(digest(f"{self._data_hash:x}", describe(method)), 16)
                for i in whole:
                    answers[i] = self._baseline(method, i, self.generator(METHOD, content, self.seeds[i]))
            self._answers[key] = [answer or _failed(RPOError("no answer")) for answer in answers]
        return self._answers[key]

    def _groups(
        self, method: Maximin, whole: list[int], answers: list[Answer | None]
    ) -> list[tuple[list[int], RewardClass]]:
        """Return the draws that share what a batch must share: reference, reward class, prompt weights."""
        groups: dict[Any, tuple[list[int], RewardClass]] = {}
        for i in whole:
            problem = self._whole(i).problem
            try:
                reward_class = method.class_for(problem)
            except OWN_FAILURES as error:
                answers[i] = _failed(error)
                continue
            key = (
                problem.reference.shape,
                problem.reference.tobytes(),
                canonical(class_record(reward_class)),
                problem.d0.tobytes() if method.prompt_weights == "population" else b"",
            )
            groups.setdefault(key, ([], reward_class))[0].append(i)
        return list(groups.values())

    def _whole(self, i: int) -> Draw:
        draw = self.draws[i]
        if isinstance(draw, BaseException):
            raise draw
        return draw

    def _batch(self, method: Maximin, group: list[int], reward_class: RewardClass) -> list[Answer]:
        problems = [self._whole(i).problem for i in group]
        problem = problems[0]
        shown = reward_class.describe()
        numbers = {key: value for key, value in shown.items() if isinstance(value, float | int)}
        fields = ", ".join(f"{key}={value:g}" for key, value in numbers.items())
        name = f"{shown['name']}({fields})"
        if not (is_batchable(method.objective) and is_batched_class(reward_class)):
            return [self._one(method, i, reward_class, name) for i in group]
        try:
            solved = solve_batch(
                np.stack([self._whole(i).wins for i in group]),
                method.objective,
                reference=problem.reference,
                reward_class=reward_class,
                base_policy=None if method.base_policy is None else np.stack([method.base_for(p) for p in problems]),
                d0=problem.d0 if method.prompt_weights == "population" else None,
            )
        except Exception as error:
            if len(group) == 1:
                return [_failed(error)]
            # one draw's trouble is not its neighbours'
            return [answer for i in group for answer in self._batch(method, [i], reward_class)]
        answers = []
        for k in range(len(group)):
            gap, relative, bound = (float(v[k]) for v in (solved.gap, solved.relative_gap, solved.tv_bound))
            status, message = "certified", ""
            if not solved.exists[k]:
                answers.append(Answer("failed", f"{NO_MINIMIZER} in {name}", reward_class=name))
                continue
            if not solved.certified[k]:
                status = "inaccurate"
                message = f"over tolerance: relative gap {relative:.1e}, tv_bound {bound:.1e}"
            answer = Answer(status, message, solved.policy[k], solved.reward[k], gap, relative, bound, name)
            answers.append(answer)
        return answers

    def _one(self, method: Maximin, i: int, reward_class: RewardClass, name: str) -> Answer:
        """Solve one draw alone: what the batched solver does not take."""
        draw = self._whole(i)
        try:
            solution = solve(
                draw.problem,
                draw.data,
                method.objective,
                reward_class=reward_class,
                prompt_weights=method.prompt_weights,
                base_policy=method.base_for(draw.problem),
                method="newton",
            )
        except Exception as error:
            return replace(_failed(error), reward_class=name)
        found, message = solution.certificate, "" if solution.status == "certified" else solution.message
        gaps = found.gap, found.relative_gap, found.tv_bound
        return Answer(solution.status, message, solution.policy, solution.reward, *gaps, name)

    def _fitted(self, method: Fitted, whole: list[int]) -> Iterator[tuple[int, Answer]]:
        """Fit the draws that share reference and design at once; what is proved of each end is said one by one."""
        groups: dict[Any, list[int]] = {}
        for i in whole:
            problem = self._whole(i).problem
            features = problem.features.tobytes() if method.linear and problem.features is not None else b""
            groups.setdefault((problem.reference.tobytes(), features), []).append(i)
        for group in groups.values():
            try:
                saddles = [
                    build_saddle(draw.problem, draw.data, method.objective, Unconstrained())
                    for draw in map(self._whole, group)
                ]
                policies = [method.policy_for(self._whole(i).problem) for i in group]
                found = fit_batch(
                    np.stack([self._whole(i).wins for i in group]),
                    method.objective,
                    reference=policies[0].problem.reference,
                    base=np.stack([saddle.base for saddle in saddles]),
                    d=np.stack([saddle.d for saddle in saddles]),
                    design=policies[0].design if method.linear else None,
                )
            except Exception as error:
                yield from ((i, _failed(error)) for i in group)
                continue
            for k, i in enumerate(group):
                trained = policies[k].with_parameters(found.parameters[k])
                slope = float(found.gradient[k])
                evidence = table_evidence(
                    TableLoss(saddles[k], trained),
                    trained.parameters.ravel(),
                    slope=slope,
                    converged=slope <= TOLERANCE,
                )
                status = "inaccurate" if evidence.word == "none" else evidence.word
                gap = evidence.numbers.get("gap", NAN)
                relative = gap / max(1.0, abs(float(found.loss[k])))
                message = "" if status == "certified" else f"largest gradient entry {slope:.1e}; {evidence.message}"
                yield i, Answer(status, message, np.exp(trained.logps), None, gap, relative)

    def _baseline(self, method: Baseline, i: int, rng: np.random.Generator) -> Answer:
        draw = self._whole(i)
        try:
            made = getattr(method, "reward_class", None)
            if callable(made):  # a class made for each problem, such as a ball in its features
                method = replace(method, reward_class=made(draw.problem))  # type: ignore[type-var]
            result = method.solve(draw.problem, draw.data, rng=rng)
            policy = checks.probabilities("policy", result.policy, shape=draw.problem.reference.shape)
        except OWN_FAILURES as error:
            return _failed(error)
        evidence = [_number(result.evidence.get(key, NAN)) for key in ("gap", "relative_gap", "tv_bound")]
        message = "" if result.status == "certified" else result.message
        gap, relative, bound = evidence
        return Answer(result.status, message, policy, result.reward, gap, relative, bound)


def _likelihood(method: Maximin | Baseline) -> Maximin:
    """Return what finds the proxy's reward: the maximum likelihood in the method's class."""
    inner = _inner(method)
    if isinstance(method, Maximin):
        plain = DPO(beta=inner.link.beta, base=inner.anchor.role)
        return replace(method, objective=plain)
    beta = _number(inner.link.beta if isinstance(inner, Objective) else getattr(inner, "beta", NAN))
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


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else NAN


def _failed(error: BaseException) -> Answer:
    text = " ".join(str(error).split())
    if isinstance(error, NoMinimizer):
        text = f"{NO_MINIMIZER}: {text}"
    return Answer("failed", text if isinstance(error, RPOError) else f"{type(error).__name__}: {text}")


def retried(columns: dict[str, list[Any]]) -> bool:
    """Return whether a row of a chunk failed for a reason that may be gone: anything but the data."""
    return any(
        status == "failed" and not message.startswith(NO_MINIMIZER)
        for status, message in zip(columns["status"], columns["message"], strict=True)
    )
