"""The two convex programs of the maximin, as cvxpy problems (docs/theory.md, section 2)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from scipy.sparse import csr_array

from rpo.bandit.solver.data_term import Groups
from rpo.bandit.solver.saddle import Saddle
from rpo.core.checks import Array

USABLE = (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


@dataclass(frozen=True, eq=False)
class ProgramResult:
    """What a solver returned: its status, its value, and the point (None where it returned none)."""

    status: str
    value: float
    reward: Array | None = None
    policy: Array | None = None
    p: Array | None = None


def solve_reward_program(saddle: Saddle, *, solver: str = "CLARABEL", **options: Any) -> ProgramResult:
    """Solve min over R of the reward side: for RPO `logistic` and `log_sum_exp` atoms, for a list its shape itself.

    Returns the reward table (X, A), clipped into the class, and the value of phi.
    """
    entries, column = _entries(saddle)
    reward_class = saddle.reward_class
    r, constraints, read = reward_class.variables(entries)
    beta = saddle.beta
    scaled = r / beta
    base_values = []
    prompts = np.flatnonzero(saddle.d > 0)
    for x in prompts:
        mine = np.flatnonzero(entries[0] == x)
        log_measure, base = saddle.log_measure[x, entries[1][mine]], saddle.base[x, entries[1][mine]]
        added, best = saddle.divergence.reply_program(scaled[mine], log_measure)
        base_values.append(base @ (scaled[mine] + added) - best)
    term = saddle.term.moved(column)
    loss, _ = saddle.objective.total(term.value(r), cp.hstack(base_values), None, saddle.d[prompts])
    problem = cp.Problem(cp.Minimize(loss), constraints)
    status = _run(problem, solver, options)
    if status not in USABLE or r.value is None:
        return ProgramResult(status, float("nan"))
    return ProgramResult(status, float(problem.value) + saddle.constant, reward=read(saddle.base.shape))


def solve_policy_program(saddle: Saddle, *, solver: str = "CLARABEL", **options: Any) -> ProgramResult:
    """Solve max over (pi, p) of the policy side: for RPO `rel_entr` and `entr` atoms; S_R as a norm or an equality.

    For shapes that have a `dual`. Returns pi (X, A), pi_ref where a prompt has no weight, p (K,) and the value of phi.
    At eta = 0 the policy does not enter: only p is returned.
    """
    reward_class = saddle.reward_class
    entries, column = _entries(saddle)
    size = len(entries[0])
    term = saddle.margin_term.moved(column)
    shape, weights = term.shape, term.pairs.weights
    p = cp.Variable(weights.size)
    g = _differences(term.pairs, size).T @ cp.multiply(weights, p)
    value = weights @ shape.dual(p)
    if term.offset is not None:
        value = value + (weights * term.offset) @ p
    constraints: list[Any] = []
    low, high = (-slope for slope in reversed(shape.slopes or (-np.inf, np.inf)))
    if not shape.smooth:  # the dual of a smooth shape ends where its slopes do
        constraints = [p >= low, p <= high]
    pi = None
    if saddle.eta > 0:
        pi = cp.Variable(size)
        d = saddle.d[entries[0]]
        if not saddle.divergence.interior:  # the others' atoms are infinite below zero
            constraints.append(pi >= 0)
        measure = np.exp(saddle.log_measure[entries])
        for x in np.flatnonzero(saddle.d > 0):
            mine = np.flatnonzero(entries[0] == x)
            kept = saddle.divergence.program(pi[mine], measure[mine])
            value = value - saddle.sft_weight * saddle.d[x] * kept
        g = g - cp.multiply(saddle.eta * d, pi - saddle.base[entries])
        if reward_class.bounded:  # g = 0 implies it for the unconstrained class
            member = csr_array((np.ones(size), (entries[0], np.arange(size))), shape=(len(saddle.d), size))
            constraints.append(member[np.unique(entries[0])] @ pi == 1)
    support, needed = reward_class.support(g, entries)
    value, constraints = value - support, constraints + needed
    problem = cp.Problem(cp.Maximize(value), constraints)
    status = _run(problem, solver, options)
    if status not in USABLE or p.value is None:
        return ProgramResult(status, float("nan"))
    policy = None
    if pi is not None and pi.value is not None:
        policy = np.exp(saddle.log_reference)
        policy[entries] = np.maximum(pi.value, 0.0)
        policy = policy / policy.sum(axis=1, keepdims=True)
    # The solver's own value: at a pi of -1e-11 the atoms of problem.value answer -inf.
    value_reached = float(problem.solution.opt_val)
    return ProgramResult(status, value_reached, policy=policy, p=np.clip(p.value, low, high))


def installed_solvers() -> list[str]:
    """Return the names cvxpy knows and finds installed."""
    return list(cp.installed_solvers())


def _entries(saddle: Saddle) -> tuple[Any, Any]:
    """Return the (x, a) index arrays of the entries that matter, and the column of each, (X A,)."""
    used = saddle.d > 0
    used[np.unique(saddle.prompt)] = True
    entries = np.nonzero(saddle.support & used[:, None])
    column = np.full(saddle.base.shape, -1)
    column[entries] = np.arange(len(entries[0]))
    return entries, column.ravel()


def _differences(pairs: Groups, size: int) -> Any:
    """Return the sparse (K, size) matrix whose row k is delta_k = e_{x,w} - e_{x,l}."""
    k = np.arange(pairs.weights.size)
    signs = np.repeat([1.0, -1.0], k.size)
    return csr_array((signs, (np.concatenate([k, k]), np.concatenate(pairs.entries))), shape=(k.size, size))


def _run(problem: cp.Problem, solver: str, options: dict[str, Any]) -> str:
    """Solve and return the status; a failing solver is a status, not an exception."""
    with warnings.catch_warnings():
        # cvxpy repeats in a warning what `status` already says; it is kept in ProgramResult.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        try:
            problem.solve(solver=solver, **options)
        except cp.error.SolverError as error:
            return f"solver_error: {error}"
    return str(problem.status)
