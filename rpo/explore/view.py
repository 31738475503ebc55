"""`state`: every number of the explorer's page, by the calls a user of `rpo.bandit` would make.

Shapes: S data sets, P points of a curve or path, A responses; one prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo.bandit import BatchSolution, baselines, instances, sample_wins, solve, solve_batch
from rpo.bandit.baseline import Baseline
from rpo.bandit.coverage import coverage_coefficient
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution, default_class
from rpo.bandit.problem import ContextualBandit
from rpo.core.checks import Array
from rpo.core.errors import InaccurateSolution
from rpo.core.numerics import kl_divergence
from rpo.core.objectives import DPO, RPO, Objective
from rpo.explore.settings import Settings
from rpo.methods.divergence import ChiPO

DRAWS = 16  # S
BETAS = tuple(float(f"{beta:.3g}") for beta in np.geomspace(10.0, 0.02, 16))
ETAS = (0.0, *(float(f"{eta:.3g}") for eta in np.geomspace(0.001, 10.0, 17)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Gold and proxy over pi_ref's against KL, means over S data sets of one problem, a point a beta.

    beta: (P,), falling; NaN, P = 1, for a method without one. kl: nats. gold, proxy: log-odds,
    E_pi[r] - E_pi_ref[r] with r = r* and r = r_MLE. *_error: standard errors over the data sets.
    solved: optima behind it; certified: how many are.
    """

    beta: Array
    kl: Array
    gold: Array
    gold_error: Array
    proxy: Array
    proxy_error: Array
    solved: int
    certified: int


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """What the page shows of one `Settings`.

    problem, data: the draw. policy, best, base: (A,). status, message, gap, relative_gap, tv_bound: the solver's or
    the baseline's evidence (gap of r_MLE's likelihood for a baseline; NaN where there is none). gold, gold_reference,
    gold_best, suboptimality: log-odds, r* from 0. kl: to pi_ref, nats. coverage: C of the best policy against the
    chosen responses under the distribution the data come from; coverage_data: from the pairs seen against
    the chosen responses counted. path: (P, A), policies on this draw, pi_ref first unless along eta;
    path_values: (P,), the beta (inf at pi_ref) or eta of each. curve: the method's; contrast: DPO's where
    the method is another, and contrast_path: (P, A), its policies along beta on this draw.
    """

    settings: Settings
    problem: ContextualBandit
    data: PreferenceCounts
    policy: Array
    best: Array
    base: Array
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
    contrast: Curve | None
    contrast_path: Array | None


def draw(settings: Settings) -> tuple[ContextualBandit, Array]:
    """Return the problem and the win counts (S, 1, A, A) of its S data sets, the first the one shown.

    Problem and data descend from `seed` by one spawn of its SeedSequence.
    """
    for_problem, for_data = np.random.SeedSequence(settings.seed).spawn(2)
    problem = instances.coverage_skew(arms=settings.arms, skew=settings.skew, rng=for_problem)
    reference = np.asarray(problem.behavior) if settings.reference == "behavior" else problem.reference
    problem = replace(problem, reference=reference, label_noise=settings.noise)
    return problem, sample_wins(problem, settings.n, DRAWS, rng=for_data)


def method_of(settings: Settings) -> Any:
    """Return the objective or baseline that `bandit.solve` takes."""
    makers: dict[str, Callable[[], Any]] = {
        "rpo": lambda: RPO(beta=settings.beta, eta=settings.eta),
        "dpo": lambda: DPO(beta=settings.beta),
        "chi_squared_po": lambda: baselines.ChiSquaredPO(beta=settings.beta),
        "greedy": lambda: baselines.Greedy(),
        "base": lambda: baselines.BasePolicy(),
    }
    return makers[settings.method]()


def state(settings: Settings) -> View:
    """Return the view of these settings: a pure function of them."""
    problem, wins = draw(settings)
    data = PreferenceCounts.from_wins(wins[0])
    best = problem.greedy_policy()
    base = solve(problem, data, baselines.BasePolicy()).policy
    population = coverage_coefficient(problem, best)
    seen = coverage_coefficient(problem, best, base, data_distribution=data)
    likely = _solve(problem, wins, [DPO(beta=beta) for beta in _betas(settings)])
    plain = _curve(problem, _betas(settings), [s.policy for s in likely], likely, likely)
    plain_policies = [s.policy[0, 0] for s in likely]
    curve, policies = plain, plain_policies
    if settings.method != "dpo":
        curve, policies = _other(settings, problem, wins, likely)
    along = settings.along if settings.method == "rpo" else "beta"
    path = np.stack([problem.reference[0], *policies])
    values = np.array([np.inf, *curve.beta])
    if along == "eta":
        etas = sorted({*ETAS, settings.eta})
        solved = _solve(problem, wins[:1], [RPO(beta=settings.beta, eta=eta) for eta in etas])
        path, values = np.stack([s.policy[0, 0] for s in solved]), np.array(etas)
    return View(
        settings=settings,
        problem=problem,
        data=data,
        best=best[0],
        base=base[0],
        gold_reference=problem.expected_reward(problem.reference),
        gold_best=problem.expected_reward(best),
        coverage=population.value,
        coverage_data=seen.value,
        coverage_message=seen.message,
        along=along,
        path=path,
        path_values=values,
        curve=curve,
        contrast=None if settings.method == "dpo" else plain,
        contrast_path=None if settings.method == "dpo" else np.stack([problem.reference[0], *plain_policies]),
        **_answer(problem, data, method_of(settings)),
    )


def _answer(problem: ContextualBandit, data: PreferenceCounts, method: Any) -> dict[str, Any]:
    """Return the numbers of the policy shown, by the certified solver itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateSolution)  # the status says the same
        if isinstance(method, Baseline):
            solution: Any = solve(problem, data, method)
        else:
            solution = solve(problem, data, method, method="newton")
    if isinstance(solution, Solution):
        certificate = solution.certificate
        numbers = (certificate.gap, certificate.relative_gap, certificate.tv_bound)
    else:
        evidence = solution.evidence
        numbers = (evidence.get("likelihood_gap", np.nan), evidence.get("relative_gap", np.nan), np.nan)
    return {
        **dict(zip(("gap", "relative_gap", "tv_bound"), (float(number) for number in numbers), strict=True)),
        "policy": solution.policy[0],
        "status": solution.status,
        "message": solution.message,
        "gold": problem.expected_reward(solution.policy),
        "suboptimality": problem.suboptimality(solution.policy),
        "kl": float(kl_divergence(solution.policy, problem.reference)[0]),
    }


def _betas(settings: Settings) -> tuple[float, ...]:
    return tuple(sorted({*BETAS, settings.beta}, reverse=True))


def _solve(problem: ContextualBandit, wins: Array, objectives: Sequence[Any]) -> list[BatchSolution]:
    """Return the certified optima of each objective, every one started from its neighbour's: five times as fast."""
    solved: list[BatchSolution] = []
    for objective in objectives:
        start = solved[-1].reward if solved else None
        box = default_class(problem)
        solved.append(solve_batch(wins, objective, reference=problem.reference, reward_class=box, start=start))
    return solved


def _objective(settings: Settings, beta: float) -> Objective:
    if settings.method == "rpo":
        return RPO(beta=beta, eta=settings.eta)
    return ChiPO(beta=beta)


def _other(
    settings: Settings, problem: ContextualBandit, wins: Array, likely: Sequence[BatchSolution]
) -> tuple[Curve, list[Array]]:
    """Return the curve of a method that is not DPO, and its policies (A,) on the data set shown."""
    betas = _betas(settings)
    if settings.method in ("rpo", "chi_squared_po"):
        solved = _solve(problem, wins, [_objective(settings, beta) for beta in betas])
        return _curve(problem, betas, [s.policy for s in solved], likely, solved), [s.policy[0, 0] for s in solved]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateSolution)
        found = [solve(problem, PreferenceCounts.from_wins(w), method_of(settings)) for w in wins]
    one = _solve(problem, wins, [DPO(beta=1.0)])
    policies = np.stack([result.policy for result in found])
    certified = sum(result.status in ("certified", "exact") for result in found)
    curve = _curve(problem, (np.nan,), [policies], one, one)
    return replace(curve, solved=len(found), certified=certified), [policies[0, 0]]


def _curve(
    problem: ContextualBandit,
    betas: Sequence[float],
    policies: Sequence[Array],
    likely: Sequence[BatchSolution],
    solved: Sequence[BatchSolution],
) -> Curve:
    """Return the curve of policies, (S, 1, A) a beta. likely: the solutions whose reward is the proxy."""
    table = np.stack([p[:, 0] for p in policies])  # (P, S, A)
    moved = table - problem.reference[0]
    gold = moved @ problem.true_reward()[0]
    proxy = np.einsum("psa,psa->ps", moved, np.stack([s.reward[:, 0] for s in likely]))
    root = np.sqrt(table.shape[1])
    return Curve(
        beta=np.array(betas),
        kl=kl_divergence(table, problem.reference[0]).mean(axis=1),
        gold=gold.mean(axis=1),
        gold_error=gold.std(axis=1, ddof=1) / root,
        proxy=proxy.mean(axis=1),
        proxy_error=proxy.std(axis=1, ddof=1) / root,
        solved=sum(s.certified.size for s in solved),
        certified=int(sum(s.certified.sum() for s in solved)),
    )
