"""`state`: every number of the explorer's page, by the calls a user of `rpo.bandit` would make.

Shapes: S data sets, P points of a curve or path, A responses; one prompt.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from rpo.bandit import baselines, instances, sample_wins, solve, solve_batch
from rpo.bandit.baseline import Baseline
from rpo.bandit.coverage import Coverage, coverage_coefficient
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution, default_class
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.draws import Draw
from rpo.bandit.simulation.grid import source
from rpo.bandit.simulation.methods import Fitted, Maximin, is_solvable
from rpo.core.checks import Array
from rpo.core.errors import InaccurateSolution, SolverFailed
from rpo.core.numerics import kl_divergence
from rpo.core.objectives import DPO
from rpo.explore.settings import METHODS, PESSIMISTIC, REGISTERED, SLIDERS, Settings
from rpo.methods.registry import reward_unit

DRAWS = 16  # S
PROVED = ("certified", "exact")
# The slider's own positions: moving it moves along a curve that is there already.
KNOB = next(slider.positions for slider in SLIDERS if slider.name == "beta")
ETAS = (0.0, *(float(f"{eta:.3g}") for eta in np.geomspace(0.001, 10.0, 17)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Gold and proxy over pi_ref's against KL, means over S data sets of one problem, a point a value of the knob.

    method: its name. beta: (P,), the knob, from the most to the least held back; NaN, P = 1, for a method without one.
    kl: nats. gold, proxy: log-odds, E_pi[r] - E_pi_ref[r] with r = r* and r = r_MLE. *_error: standard errors over the
    data sets. evidence: how many of the solutions behind it are certified, stationary, ...
    """

    method: str
    beta: Array
    kl: Array
    gold: Array
    gold_error: Array
    proxy: Array
    proxy_error: Array
    evidence: Mapping[str, int]

    @property
    def solved(self) -> int:
        """Optima behind it."""
        return sum(self.evidence.values())

    @property
    def certified(self) -> int:
        """How many of them are proved."""
        return sum(self.evidence.get(word, 0) for word in PROVED)


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """What the page shows of one `Settings`.

    problem, data: the draw. policy, best, base: (A,). label: the method with its numbers. status, message, gap,
    relative_gap, tv_bound: the evidence of the solver, the fit or the baseline (gap of r_MLE's likelihood for a
    baseline; NaN where there is none). gold, gold_reference, gold_best, suboptimality: log-odds, r* from 0. kl: to
    pi_ref, nats. coverage: C of the best policy against the chosen responses under the distribution the data come from;
    coverage_data: from the pairs seen against the chosen responses counted. path: (P, A), policies on this draw, pi_ref
    first unless along eta; path_values: (P,), the knob (inf at pi_ref) or eta of each. curve: the method's; contrast:
    DPO's, or RPO's where the method is DPO, and contrast_path: (P, A), its policies along beta on this draw.
    """

    settings: Settings
    problem: ContextualBandit
    data: PreferenceCounts
    policy: Array
    best: Array
    base: Array
    label: str
    status: str
    message: str
    gap: float
    relative_gap: float
    tv_bound: float
    gold: float
    gold_reference: float
    gold_best: float
    suboptimality: float
    kl: float
    coverage: float
    coverage_data: float
    coverage_message: str
    along: str
    path: Array
    path_values: Array
    curve: Curve
    contrast: Curve
    contrast_path: Array

    @property
    def proved(self) -> bool:
        """Whether the policy is known to be the method's optimum; where it is only stationary, its mark is hollow."""
        return self.status in PROVED


class Draws(Cell):
    """One problem and its S data sets, the first the one shown.

    Problem and data descend from the seed by one spawn of its SeedSequence; nothing depends on the method.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(source("coverage_skew"), {"n": settings.n}, range(DRAWS), settings.seed, at_once=False)
        for_problem, for_data = np.random.SeedSequence(settings.seed).spawn(2)
        skewed = instances.coverage_skew(
            arms=settings.arms, skew=settings.skew, reference=settings.reference, rng=for_problem
        )
        self.one = replace(skewed, label_noise=settings.noise)
        self.wins = sample_wins(self.one, settings.n, DRAWS, rng=for_data)
        self.data = PreferenceCounts.from_wins(self.wins[0])
        self.best = self.one.greedy_policy()
        self.base = solve(self.one, self.data, baselines.BasePolicy()).policy
        box = default_class(self.one)
        likely = solve_batch(self.wins, DPO(beta=1.0), reference=self.one.reference, reward_class=box)
        self.proxy = likely.reward[:, 0]

    def _draw(self, seed: int) -> Draw:
        return Draw(self.one, PreferenceCounts.from_wins(self.wins[seed]))

    def coverage(self) -> tuple[Coverage, Coverage]:
        """Return it where the data come from, and of the pairs seen."""
        population = coverage_coefficient(self.one, self.best)
        return population, coverage_coefficient(self.one, self.best, self.base, data_distribution=self.data)

    def policies(self, methods: Sequence[Maximin | Baseline]) -> Iterator[tuple[Array, list[str]]]:
        """Yield (S, A) and the evidence of each method; a maximin starts from its neighbour's: five times as fast."""
        start = None
        for method in methods:
            if isinstance(method, Maximin):
                held = method.class_for(self.one)
                reference = self.one.reference
                solved = solve_batch(self.wins, method.objective, reference=reference, reward_class=held, start=start)
                start = solved.reward
                yield solved.policy[:, 0], [PROVED[0] if proved else "inaccurate" for proved in solved.certified]
            else:
                answers = self.answered(method)
                yield np.stack([_policy(answer) for answer in answers]), [answer.status for answer in answers]


def _policy(answer: Any) -> Array:
    if answer.policy is None:
        raise SolverFailed(answer.message)
    return np.asarray(answer.policy[0])


def method_of(settings: Settings, problem: ContextualBandit) -> Maximin | Baseline:
    """Return the baseline, or the objective as `solve` or `fit` takes it, in the box of the problem's rewards."""
    if settings.method not in REGISTERED:
        return {"greedy": baselines.Greedy(), "base": baselines.BasePolicy()}[settings.method]
    row = REGISTERED[settings.method]
    given = {**row.fixed(), row.knob: settings.beta}
    if settings.method in PESSIMISTIC:
        given["eta"] = settings.eta
    objective = row.load()(**given)
    if not is_solvable(objective):
        return Fitted(objective)
    return Maximin(objective, "box", (problem.reward_bound or 0.0) / reward_unit(row.knob, settings.beta))


def state(settings: Settings) -> View:
    """Return the view of these settings: a pure function of them."""
    draws = _draws(_of_draw(settings))
    problem, data = draws.one, draws.data
    population, seen = draws.coverage()
    curve, path = _knob_path(settings)
    contrast, contrast_path = _knob_path(replace(settings, method="rpo" if settings.method == "dpo" else "dpo"))
    values = np.array([np.inf, *curve.beta])
    along = settings.along if settings.method in PESSIMISTIC else "beta"
    if along == "eta":
        values = np.array(sorted({*ETAS, settings.eta}))
        methods = [method_of(replace(settings, eta=float(eta)), problem) for eta in values]
        path = np.stack([policies[0] for policies, _ in draws.policies(methods)])
    return View(
        settings=settings,
        problem=problem,
        data=data,
        best=draws.best[0],
        base=draws.base[0],
        gold_reference=problem.expected_reward(problem.reference),
        gold_best=problem.expected_reward(draws.best),
        coverage=population.value,
        coverage_data=seen.value,
        coverage_message=seen.message,
        along=along,
        path=path,
        path_values=values,
        curve=curve,
        contrast=contrast,
        contrast_path=contrast_path,
        **_answer(problem, data, method_of(settings, problem)),
    )


def _answer(problem: ContextualBandit, data: PreferenceCounts, method: Maximin | Baseline) -> dict[str, Any]:
    """Return the numbers of the policy shown, by the certified solver itself."""
    with _quiet():
        if isinstance(method, Baseline):
            solution: Any = solve(problem, data, method)
        else:
            box = method.class_for(problem)
            solution = solve(problem, data, method.objective, reward_class=box, method="newton")
    if isinstance(solution, Solution):
        certificate = solution.certificate
        numbers = (certificate.gap, certificate.relative_gap, certificate.tv_bound)
    else:
        evidence = solution.evidence
        gap = evidence.get("gap", evidence.get("likelihood_gap", np.nan))
        numbers = (gap, evidence.get("relative_gap", np.nan), np.nan)
    return {
        **dict(zip(("gap", "relative_gap", "tv_bound"), (float(number) for number in numbers), strict=True)),
        "policy": solution.policy[0],
        "label": solution.label,
        "status": solution.status,
        "message": solution.message,
        "gold": problem.expected_reward(solution.policy),
        "suboptimality": problem.suboptimality(solution.policy),
        "kl": float(kl_divergence(solution.policy, problem.reference)[0]),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave to the status what it says too, and what log-odds do at a probability of one."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", InaccurateSolution)
        yield


# What a moved slider leaves as it was is kept: a draw while the method changes, a curve while its knob does.


def _of_draw(settings: Settings) -> Settings:
    """Return the settings with those that have no say in the draw at their defaults."""
    kept = {name: getattr(settings, name) for name in ("arms", "skew", "noise", "n", "seed", "reference")}
    return Settings(**kept)


@lru_cache(maxsize=32)
def _draws(settings: Settings) -> Draws:
    return Draws(settings)


def _knob_path(settings: Settings) -> tuple[Curve, Array]:
    """Return the curve of a method along its knob, and pi_ref and its policies (P + 1, A) on the data set shown."""
    row = REGISTERED.get(settings.method)
    if row is None:
        values: tuple[float, ...] = (np.nan,)
    else:
        values = tuple(sorted({*KNOB, settings.beta}, reverse=row.knob != "weight"))
    eta = settings.eta if settings.method in PESSIMISTIC else 0.0
    return _solved_path(replace(_of_draw(settings), method=settings.method, eta=eta), values)


@lru_cache(maxsize=256)
def _solved_path(settings: Settings, values: tuple[float, ...]) -> tuple[Curve, Array]:
    draws = _draws(_of_draw(settings))
    problem = draws.one
    set_to = [settings if np.isnan(value) else replace(settings, beta=value) for value in values]
    with _quiet():
        found = list(draws.policies([method_of(each, problem) for each in set_to]))
    table = np.stack([policies for policies, _ in found])  # (P, S, A)
    moved = table - problem.reference[0]
    gold = moved @ problem.true_reward()[0]
    proxy = np.einsum("psa,sa->ps", moved, draws.proxy)
    root = np.sqrt(table.shape[1])
    curve = Curve(
        method=METHODS[settings.method],
        beta=np.array(values),
        kl=kl_divergence(table, problem.reference[0]).mean(axis=1),
        gold=gold.mean(axis=1),
        gold_error=gold.std(axis=1, ddof=1) / root,
        proxy=proxy.mean(axis=1),
        proxy_error=proxy.std(axis=1, ddof=1) / root,
        evidence=Counter(word for _, words in found for word in words),
    )
    return curve, np.concatenate([problem.reference, table[:, 0]])
