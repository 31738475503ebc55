"""`solve`: the paper's maximin, by both convex programs, polished by Newton and certified."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.data import CountedGroups, PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, RewardClass
from rpo.bandit.solver.certificate import RELATIVE_GAP, TV_BOUND, Certificate, certify, within_tolerance
from rpo.bandit.solver.data_term import has_dual
from rpo.bandit.solver.existence import Existence, minimizer_exists
from rpo.bandit.solver.reward_side import Smoothed, minimize_reward_side
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.bandit.solver.solvable import is_dpo, require_solvable
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InaccurateSolution, InvalidArgument, NoMinimizer
from rpo.core.objectives import Objective
from rpo.core.summary import Summarised

ACTIVE = 1e-8  # of the penalty's multiplier, which is of order eta
ROUNDING = 1e-14
WIDTHS = tuple(10.0 ** (-k / 2) for k in range(20))  # of a rounded corner, relative to the margin it is at
METHODS = ("programs", "newton", "auto")
# The convex programs take a few seconds at these sizes and grow faster than the data.
PROGRAM_COMPARISONS, PROGRAM_PROMPTS = 30_000, 500


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Solution(Summarised):
    """A solved maximin with its evidence.

    policy: (X, A), the best under `reward`, pi_ref at prompts without weight. reward: (X, A).
    certificate: of (reward, its own dual point). program_certificate: of the reward program's point
    (polished) against the policy program's; None where a program was not run. status: "certified" or
    "inaccurate"; message: one sentence. active: whether the class binds; multiplier: its L1 norm.
    """

    policy: Array
    reward: Array
    objective: Objective
    reward_class: RewardClass
    saddle: Saddle
    certificate: Certificate
    program_certificate: Certificate | None
    programs: dict[str, Any] = field(default_factory=dict)
    status: str
    message: str
    active: bool
    multiplier: float
    prompts_without_data: int

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """Of what, and whether it is certified; the numbers that say so."""
        x, a = self.policy.shape
        facts = {
            "loss": f"{self.loss:.6g}",
            "relative gap": f"{self.certificate.relative_gap:.1e}",
            "total variation": f"within {self.certificate.tv_bound:.1e}",
            "rewards in": str(self.reward_class.describe()["name"]),
            "policy": f"{x} x {a}",
        }
        return f"Solution of {self.label}: {self.status}", facts

    @property
    def label(self) -> str:
        """A short name for legends: the objective with its numbers."""
        return self.objective.label

    @property
    def evidence(self) -> str:
        """What the answer rests on: "certified", a gap within tolerance; else "none"."""
        return "certified" if self.status == "certified" else "none"

    @property
    def logps(self) -> Array:
        """log pi, (X, A), in nats; -inf outside the support."""
        with np.errstate(divide="ignore"):
            return np.where(self.saddle.d[:, None] > 0, self.saddle.gibbs_logps(self.reward), self.saddle.log_reference)

    @property
    def loss(self) -> float:
        """The objective's loss at the optimum, comparable with a trained policy's: reward side minus constant."""
        return self.certificate.reward_value - self.saddle.constant

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores, arrays left out."""
        return {
            "objective": self.objective.to_dict(),
            "reward_class": self.reward_class.describe(),
            "status": self.status,
            "message": self.message,
            "certificate": self.certificate.to_dict(),
            "program_certificate": None if self.program_certificate is None else self.program_certificate.to_dict(),
            "programs": self.programs,
            "active": self.active,
            "multiplier": self.multiplier,
            "prompts_without_data": self.prompts_without_data,
        }


@overload
def solve(
    problem: ContextualBandit, data: PreferenceCounts, objective: Baseline, *, rng: Any = None
) -> PolicyResult: ...
@overload
def solve(
    problem: ContextualBandit,
    data: CountedGroups,
    objective: Objective,
    *,
    reward_class: RewardClass | None = None,
    prompt_weights: str = "data",
    base_policy: Any = None,
    method: str = "auto",
    solver: str = "CLARABEL",
    start: Array | None = None,
) -> Solution: ...
def solve(
    problem: ContextualBandit, data: CountedGroups, objective: Any, *, rng: Any = None, **options: Any
) -> Solution | PolicyResult:
    """Solve argmax_pi min_{r in R} phi(pi, r) and certify the answer; or run a baseline on the same data.

    reward_class: default Box(problem.reward_bound). prompt_weights: "data" or "population".
    base_policy: (X, A), with objective.base "custom". method: "programs" (both cvxpy programs, then
    Newton) or "newton" alone, certified by the same gap; "auto" takes the programs up to 30,000
    distinct comparisons and 500 prompts. start: (X, A), warm start for Newton.
    A `Baseline` has its options as fields; rng is for those that draw at random. Raises
    InvalidArgument, NoMinimizer (unconstrained class only); warns InaccurateSolution.
    Source: paper, Algorithm 1, Eq. (3.3).
    """
    if isinstance(objective, type):
        raise InvalidArgument(
            "objective",
            expected="an objective or a baseline, such as RPO(beta=0.1, eta=0.05) or Greedy()",
            got=f"the class {objective.__name__}",
            remedy=f"Call it: {objective.__name__}(...).",
        )
    if not isinstance(objective, Baseline):
        return _solve_maximin(problem, data, objective, **options)
    if options:
        raise InvalidArgument(
            ", ".join(options),
            expected=f"no such option with {type(objective).__name__}",
            got="one",
            remedy="A baseline's options are its fields.",
        )
    checks.instance("problem", problem, ContextualBandit)
    pairs = checks.instance("data", data, PreferenceCounts)
    made = objective.solve(problem, pairs, rng=rng)
    return checks.instance(f"{type(objective).__name__}.solve", made, PolicyResult, remedy="Return a PolicyResult.")


def _solve_maximin(
    problem: ContextualBandit,
    data: CountedGroups,
    objective: Objective,
    *,
    reward_class: RewardClass | None = None,
    prompt_weights: str = "data",
    base_policy: Any = None,
    method: str = "auto",
    solver: str = "CLARABEL",
    start: Array | None = None,
) -> Solution:
    checks.one_of("method", method, METHODS)
    require_solvable(objective)
    reward_class = default_class(problem) if reward_class is None else reward_class
    saddle = build_saddle(
        problem, data, objective, reward_class, prompt_weights=prompt_weights, base_policy=base_policy
    )
    if not reward_class.bounded:
        existence = minimizer_exists(saddle)
        if not existence.exists:
            named = _labels(problem, existence)
            remedy = "Use Box(R) (--reward_class box)"
            if saddle.eta > 0:
                remedy += ", or a base of full support such as base='reference' (--objective.base reference)"
            raise NoMinimizer(f"{existence.reason}{named} {remedy}.")

    if start is not None:
        start = checks.finite("start", start, shape=problem.reference.shape)
    programs: dict[str, Any] = {}
    dual, large = None, ""
    if method == "auto":
        comparisons = sum(groups.weights.size * (len(groups.entries) - 1) for groups in saddle.groups)
        prompts = int((saddle.d > 0).sum())
        method = "programs"
        if comparisons > PROGRAM_COMPARISONS or prompts > PROGRAM_PROMPTS:
            method = "newton"
            large = (
                f"; by Newton's method alone, {comparisons} distinct comparisons at {prompts} prompt(s) being many "
                "for the convex programs"
            )
    if method == "programs":
        from rpo.bandit.solver.programs import installed_solvers, solve_policy_program, solve_reward_program

        checks.one_of("solver", solver, installed_solvers())
        primal = solve_reward_program(saddle, solver=solver)
        solved = {"reward": primal}
        if has_dual(objective.shape):
            dual = solved["policy"] = solve_policy_program(saddle, solver=solver)
        programs = {side: {"status": result.status, "value": result.value} for side, result in solved.items()}
        start = primal.reward if start is None else start
    reward, p = _minimized(saddle, start)
    certificate = certify(saddle, reward, p=p)
    program_certificate = None
    if dual is not None and dual.p is not None:
        program_certificate = certify(saddle, reward, policy=dual.policy, p=dual.p)

    gibbs = saddle.gibbs(reward)
    multiplier = float(np.abs(saddle.multiplier(gibbs, saddle.losing_probabilities(reward) if p is None else p)).sum())
    empty = int((data.prompt_frequencies == 0).sum())
    solution = Solution(
        policy=np.where(saddle.d[:, None] > 0, gibbs, problem.reference),
        reward=reward,
        objective=objective,
        reward_class=reward_class,
        saddle=saddle,
        certificate=certificate,
        program_certificate=program_certificate,
        programs=programs,
        active=reward_class.bounded and multiplier > ACTIVE * saddle.eta + ROUNDING,
        multiplier=multiplier,
        prompts_without_data=empty,
        **_verdict(certificate, objective, empty, large),
    )
    if solution.status != "certified":
        warnings.warn(solution.message, InaccurateSolution, stacklevel=3)
    return solution


def _minimized(saddle: Saddle, start: Array | None) -> tuple[Array, Array | None]:
    """Return the minimising reward (X, A) and its dual point (K,), None for that of the reward itself.

    Where the loss has a kink, of the problems whose corner is rounded ever less the one whose point, and whose slopes
    at it, certify the loss itself best.
    """
    if saddle.objective.shape.smooth:
        return minimize_reward_side(saddle, start), None
    least, reward, dual = np.inf, np.zeros(saddle.base.shape), np.zeros(saddle.weights.shape)
    for width in WIDTHS:
        rounded = replace(saddle, objective=Smoothed(saddle.objective, width))
        start = minimize_reward_side(rounded, start)
        p = rounded.losing_probabilities(start)
        gap = certify(saddle, start, p=p).relative_gap
        if gap <= least:
            least, reward, dual = gap, start, p
        if least <= ROUNDING:
            break
    return reward, dual


def _labels(problem: ContextualBandit, existence: Existence) -> str:
    """Return the labels of the indices that a reason names, where the problem has any."""
    named = []
    if problem.prompt_labels is not None and existence.prompt is not None and problem.num_prompts > 1:
        named.append(f"prompt {existence.prompt} is {problem.prompt_labels[existence.prompt]!r}")
    labels = problem.response_labels
    if problem.own_labels is not None and existence.prompt is not None:
        labels = problem.own_labels[existence.prompt]
    if labels is not None:
        named += [f"response {a} is {labels[a]!r}" for a in existence.responses]
    return f" ({', '.join(named)})" if named else ""


def default_class(problem: ContextualBandit) -> RewardClass:
    """Return Box(problem.reward_bound), or refuse where the bound is unknown."""
    checks.instance("problem", problem, ContextualBandit)
    if problem.reward_bound is None:
        raise InvalidArgument(
            "reward_class",
            expected="a reward class, since problem.reward_bound is unknown",
            got=None,
            remedy="Pass Box(R) with R the largest log-odds you believe in, LinearBall, or Unconstrained().",
        )
    return Box(problem.reward_bound)


def _verdict(certificate: Certificate, objective: Objective, empty: int, large: str) -> dict[str, str]:
    penalty = objective.anchor.weight
    sentence = f"duality gap {certificate.gap:.1e} (relative {certificate.relative_gap:.1e})"
    if penalty > 0:
        sentence += f", policy within {certificate.tv_bound:.1e} of the optimum in total variation"
    else:
        what, why = "the fit of the reward", "no SFT term"
        if is_dpo(objective):
            what, why = "the likelihood", "eta = 0: no SFT term, this is DPO"
        sentence += f", {why}; the gap certifies {what}, not the policy"
    if empty:
        sentence += f"; {empty} prompt(s) without data"
    sentence += large
    if within_tolerance(certificate.relative_gap, certificate.tv_bound, penalty):
        return {"status": "certified", "message": f"Certified optimal: {sentence}."}
    if certificate.gap < 0:
        return {
            "status": "inaccurate",
            "message": f"Not a proof: {sentence}. A gap below zero by more than rounding says that one of the two "
            "bounds is wrong: use the policy for nothing, and report the problem.",
        }
    return {
        "status": "inaccurate",
        "message": f"Over tolerance (relative gap {RELATIVE_GAP:g}, total variation {TV_BOUND:g}): {sentence}. "
        "Raise eta * beta, use a smaller reward class, or treat the policy as approximate.",
    }
