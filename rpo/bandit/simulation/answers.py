"""What a method answers on the draws of a cell, many at once where it can be.

Shapes: S draws, X prompts, A responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline
from rpo.bandit.batched import solve_batch
from rpo.bandit.batched.fitting import TOLERANCE, fit_batch, is_fit_batchable
from rpo.bandit.batched.solution import is_batchable, is_batched_class
from rpo.bandit.data import Index
from rpo.bandit.evidence import table_evidence
from rpo.bandit.maximin import solve
from rpo.bandit.reward_class import RewardClass, Unconstrained
from rpo.bandit.simulation.draws import OWN_FAILURES, Draws
from rpo.bandit.simulation.grid import canonical
from rpo.bandit.simulation.methods import Fitted, Maximin, class_record
from rpo.bandit.solver.saddle import build_saddle
from rpo.bandit.table_loss import TableLoss
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import NoMinimizer, RPOError

NAN = float("nan")
NO_MINIMIZER = "no minimiser exists on this data"  # an answer, unlike every other failure


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


class Answers:
    """A method's policies on S draws: a column for each field of `Answer`, NaN where there is no policy or reward."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        s = shape[0]
        self.status, self.message, self.reward_class = (np.full(s, text, dtype=object) for text in ("failed", "", ""))
        self.policy, self.reward = np.full(shape, NAN), np.full(shape, NAN)
        self.gap, self.relative_gap, self.tv_bound = (np.full(s, NAN) for _ in range(3))

    def __setitem__(self, i: int, answer: Answer) -> None:
        for name in vars(self):
            value = getattr(answer, name)
            getattr(self, name)[i] = NAN if value is None else value

    def __getitem__(self, i: int) -> Answer:
        row: dict[str, Any] = {name: column[i] for name, column in vars(self).items()}
        for name in ("policy", "reward"):
            row[name] = None if np.isnan(row[name]).any() else row[name]
        return Answer(**row)


def answered(method: Maximin | Baseline, draws: Draws, stream: Callable[[int], np.random.Generator]) -> Answers:
    """Return the method's answers. stream: the random numbers of a baseline's own, by place among the draws."""
    answers = Answers(draws.wins.shape[:3])
    if isinstance(method, Maximin):
        for group, reward_class in _groups(method, draws, answers):
            _batch(method, draws, group, reward_class, answers)
    elif isinstance(method, Fitted) and is_fit_batchable(method.objective):
        for i, answer in _fitted(method, draws):
            answers[i] = answer
    else:
        for i in range(len(draws)):
            answers[i] = _baseline(method, draws, i, stream(i))
    return answers


def _groups(method: Maximin, draws: Draws, answers: Answers) -> list[tuple[Index, RewardClass]]:
    """Return the draws that share a reward class, which is what a batch must share."""
    every = np.arange(len(draws))
    named = not callable(method.reward_class) and method.reward_class != "ball"
    if draws.problems.fixed is not None or (draws.alike and named):
        return [(every, method.class_for(draws.problem(0)))]
    groups: dict[str, tuple[list[int], RewardClass]] = {}
    for i in every.tolist():
        try:
            reward_class = method.class_for(draws.problem(i))
            groups.setdefault(canonical(class_record(reward_class)), ([], reward_class))[0].append(i)
        except OWN_FAILURES as error:
            answers[i] = failed(error)
    return [(np.asarray(places), reward_class) for places, reward_class in groups.values()]


def _batch(method: Maximin, draws: Draws, group: Index, reward_class: RewardClass, answers: Answers) -> None:
    """Solve the draws of a group at once, and put down what is found."""
    shown = reward_class.describe()
    numbers = {key: value for key, value in shown.items() if isinstance(value, float | int)}
    fields = ", ".join(f"{key}={value:g}" for key, value in numbers.items())
    name = f"{shown['name']}({fields})"
    if not (is_batchable(method.objective) and is_batched_class(reward_class)):
        for i in group.tolist():
            answers[i] = _one(method, draws, i, reward_class, name)
        return
    try:
        solved = solve_batch(
            draws.wins[group],
            method.objective,
            reference=draws.problems.reference[group],
            reward_class=reward_class,
            base_policy=_bases(method, draws, group),
            d0=draws.problems.d0[group] if method.prompt_weights == "population" else None,
        )
    except Exception as error:
        if len(group) == 1:
            answers[int(group[0])] = failed(error)
            return
        for i in range(len(group)):  # one draw's trouble is not its neighbours'
            _batch(method, draws, group[i : i + 1], reward_class, answers)
        return
    answers.status[group] = np.where(solved.certified, "certified", "inaccurate")
    answers.reward_class[group] = name
    there = solved.exists[:, None, None]
    answers.policy[group], answers.reward[group] = solved.policy, np.where(there, solved.reward, NAN)
    for column, values in (("gap", solved.gap), ("relative_gap", solved.relative_gap), ("tv_bound", solved.tv_bound)):
        getattr(answers, column)[group] = np.where(solved.exists, values, NAN)
    for k in np.flatnonzero(~solved.certified).tolist():
        relative, bound = float(solved.relative_gap[k]), float(solved.tv_bound[k])
        if solved.exists[k]:
            answers.message[group[k]] = f"over tolerance: relative gap {relative:.1e}, tv_bound {bound:.1e}"
        else:
            answers.status[group[k]], answers.message[group[k]] = "failed", f"{NO_MINIMIZER} in {name}"


def _bases(method: Maximin, draws: Draws, group: Index) -> Array | None:
    """Return the custom pi_base of a group, (S, X, A) or one for all; None where the objective names its base."""
    if method.base_policy is None:
        return None
    if draws.problems.fixed is not None or not callable(method.base_policy):
        return np.asarray(method.base_for(draws.problem(0)))
    return np.stack([method.base_for(draws.problem(i)) for i in group.tolist()])


def _one(method: Maximin, draws: Draws, i: int, reward_class: RewardClass, name: str) -> Answer:
    """Solve one draw alone: what the batched solver does not take."""
    draw = draws.draw(i)
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
        return replace(failed(error), reward_class=name)
    found, message = solution.certificate, "" if solution.status == "certified" else solution.message
    gaps = found.gap, found.relative_gap, found.tv_bound
    return Answer(solution.status, message, solution.policy, solution.reward, *gaps, name)


def _fitted(method: Fitted, draws: Draws) -> Iterator[tuple[int, Answer]]:
    """Fit the draws that share reference and design at once; what is proved of each end is said one by one."""
    whole = [draws.draw(i) for i in range(len(draws))]
    groups: dict[Any, list[int]] = {}
    for i, draw in enumerate(whole):
        features = draw.problem.features.tobytes() if method.linear and draw.problem.features is not None else b""
        groups.setdefault((draw.problem.reference.tobytes(), features), []).append(i)
    for group in groups.values():
        try:
            saddles = [build_saddle(whole[i].problem, whole[i].data, method.objective, Unconstrained()) for i in group]
            policies = [method.policy_for(whole[i].problem) for i in group]
            found = fit_batch(
                draws.wins[group],
                method.objective,
                reference=policies[0].problem.reference,
                base=np.stack([saddle.base for saddle in saddles]),
                d=np.stack([saddle.d for saddle in saddles]),
                design=policies[0].design if method.linear else None,
            )
        except Exception as error:
            yield from ((i, failed(error)) for i in group)
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


def _baseline(method: Baseline, draws: Draws, i: int, rng: np.random.Generator) -> Answer:
    draw = draws.draw(i)
    try:
        made = getattr(method, "reward_class", None)
        if callable(made):  # a class made for each problem, such as a ball in its features
            method = replace(method, reward_class=made(draw.problem))  # type: ignore[type-var]
        result = method.solve(draw.problem, draw.data, rng=rng)
        policy = checks.probabilities("policy", result.policy, shape=draw.problem.reference.shape)
    except OWN_FAILURES as error:
        return failed(error)
    gap, relative, bound = (number(result.evidence.get(key, NAN)) for key in ("gap", "relative_gap", "tv_bound"))
    message = "" if result.status == "certified" else result.message
    return Answer(result.status, message, policy, None, gap, relative, bound)


def number(value: Any) -> float:
    """Return a number as a float, anything else as NaN."""
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else NAN


def failed(error: BaseException) -> Answer:
    """Return the row of what was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, NoMinimizer):
        text = f"{NO_MINIMIZER}: {text}"
    return Answer("failed", text if isinstance(error, RPOError) else f"{type(error).__name__}: {text}")
