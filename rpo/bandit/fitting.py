"""`fit` on a table: exact full-batch optimisation of the objective, with its history."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.metrics import policy_metrics
from rpo.bandit.problem import ContextualBandit, SoftmaxPolicy, TabularSoftmaxPolicy
from rpo.bandit.reward_class import Box, RewardClass, Unconstrained
from rpo.bandit.solver.blocks import blocks
from rpo.bandit.solver.existence import minimizer_exists
from rpo.bandit.solver.newton import Derivatives, minimize_box
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import log_softmax
from rpo.core.objectives import DPO, RPO, Objective, require_objective
from rpo.core.records import Run
from rpo.core.shapes import Hinge

OPTIMIZERS = ("newton", "lbfgs", "gradient_descent")
MAX_NEWTON_PARAMETERS = 2000
LARGEST_TOLERANCE = 1e-3


def fit(
    policy: SoftmaxPolicy,
    data: PreferenceCounts,
    objective: Objective,
    *,
    optimizer: str | None = None,
    learning_rate: float = 1.0,
    max_steps: int = 500,
    tolerance: float = 1e-10,
    prompt_weights: str = "data",
    base_policy: Any = None,
    proxy_reward: Any = "mle",
    log_every: int = 1,
    label: str | None = None,
) -> Run:
    """Minimise the objective over a softmax policy's parameters, full batch, and record the path.

    objective: any; a response here is one token. optimizer: "newton" (at most 2,000 parameters), "lbfgs" or
    "gradient_descent" (learning_rate is the step on the plain gradient); by default Newton where the loss is convex in
    the logits and smooth, else lbfgs and then Newton, whose end is a stationary point. Stops when no gradient entry
    exceeds `tolerance`, or after max_steps. proxy_reward: (X, A), None, or "mle", the maximum-likelihood reward
    (Unconstrained where it exists, else Box(reward_bound), else left out). Raises InvalidArgument.
    """
    kind: type = SoftmaxPolicy  # abstract
    checks.instance("policy", policy, kind, remedy="Pass problem.softmax_policy(), for example.")
    convex = require_objective(objective).convex_in_logits
    small = policy.parameters.size <= MAX_NEWTON_PARAMETERS
    smooth = not isinstance(objective.shape, Hinge)
    # Newton's method finishes what lbfgs leaves at a slope of about 1e-8.
    polish = optimizer is None and small and smooth
    if optimizer is None:
        optimizer = "newton" if convex and small and smooth else "lbfgs"
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    rate = checks.positive("learning_rate", learning_rate)
    steps = checks.integer("max_steps", max_steps, minimum=1)
    every = checks.integer("log_every", log_every, minimum=1)
    limit = checks.positive("tolerance", tolerance)
    problem = policy.problem
    saddle = build_saddle(
        problem, data, objective, Unconstrained(), prompt_weights=prompt_weights, base_policy=base_policy
    )
    if isinstance(proxy_reward, str):
        checks.one_of("proxy_reward", proxy_reward, ("mle",))
        proxy_reward, proxy_class = maximum_likelihood_reward(problem, data, objective)
    else:
        proxy_class = None if proxy_reward is None else {"name": "given"}
        if proxy_reward is not None:
            proxy_reward = checks.finite("proxy_reward", proxy_reward, shape=problem.reference.shape)
    # No derivative of RPO's loss in a logit exceeds beta (1 + eta); the others' scale with their beta alike.
    scale = objective.link.beta
    if limit > LARGEST_TOLERANCE * scale:
        raise InvalidArgument(
            "tolerance",
            expected=f"at most {LARGEST_TOLERANCE:g} beta = {LARGEST_TOLERANCE * scale:g}: gradients shrink with beta, "
            "and every policy would count as converged",
            got=limit,
            remedy=f"Pass tolerance={1e-9 * scale:.0e}, or use `solve`.",
        )
    pull = _Loss(saddle, policy)
    start = policy.parameters.ravel()
    history: list[dict[str, float]] = []
    step = 0

    def record(parameters: Array, *, last: bool = False) -> None:
        due = step % every == 0
        if (due and not last) or (last and history[-1]["step"] != step):
            logps = policy.with_parameters(parameters.reshape(policy.parameters.shape)).logps
            history.append({"step": step, **policy_metrics(logps, saddle, problem, proxy_reward)})

    def advance(parameters: Array) -> None:
        nonlocal step
        step += 1
        record(parameters)

    def newton(at: Array) -> Array:
        free = np.full(at.size, np.inf)
        return minimize_box(pull.derivatives, at, -free, free, max_iterations=steps - step, on_iterate=advance).x

    record(start)
    if optimizer == "newton":
        if not small:
            raise InvalidArgument(
                "optimizer",
                expected=f"at most {MAX_NEWTON_PARAMETERS} parameters for 'newton'",
                got=f"{start.size}",
                remedy="Use optimizer='lbfgs'.",
            )
        final = newton(start)
    elif optimizer == "lbfgs":
        final = minimize(
            lambda p: pull.derivatives(p, hessian=False)[:2],
            start,
            jac=True,
            method="L-BFGS-B",
            callback=lambda intermediate_result: advance(intermediate_result.x),
            options={"maxiter": steps, "maxfun": 20 * steps, "gtol": limit, "ftol": 1e-18, "maxcor": 30},
        ).x
        if polish and step < steps:
            final = newton(final)
    else:
        final = start
        for _ in range(steps):
            gradient = pull.derivatives(final, hessian=False)[1]
            if np.abs(gradient).max() <= limit:
                break
            final = final - rate * gradient
            advance(final)
    record(final, last=True)

    slope = float(np.abs(pull.derivatives(final, hessian=False)[1]).max())
    trained = policy.with_parameters(final.reshape(policy.parameters.shape))
    converged = slope <= limit
    message = f"largest gradient entry {slope:.1e} after {step} steps of {optimizer}"
    if type(objective) in (RPO, DPO) and not (existence := minimizer_exists(saddle)).exists:
        message += f"; over all tables no minimiser exists: {existence.reason}"
    if not convex:
        message += "; the loss is not convex in the logits, so this is a stationary point"
    return Run(
        label=label or ("table" if isinstance(policy, TabularSoftmaxPolicy) else "linear softmax"),
        objective=objective.to_dict(),
        config={
            "policy": type(policy).__name__,
            "optimizer": optimizer,
            "learning_rate": rate if optimizer == "gradient_descent" else None,
            "max_steps": steps,
            "tolerance": limit,
            "prompt_weights": prompt_weights,
            "proxy_class": proxy_class,
            "num_preferences": data.n,
            "problem": problem.name,
        },
        status="converged" if converged else "not_converged",
        message=("Converged: " if converged else "Not converged: ") + message,
        history=history,
        arrays={"policy": np.exp(trained.logps), "parameters": trained.parameters},
        artifact=trained,
    )


class _Loss:
    """Any objective and its derivatives in a softmax policy's parameters, through the log-probabilities of pairs."""

    def __init__(self, saddle: Saddle, policy: SoftmaxPolicy) -> None:
        self.saddle, self.objective = saddle, saddle.objective
        design = policy.design
        self.parts = [(block, design[block.prompt, block.support]) for block in blocks(saddle)]
        self.of_prompt = [np.flatnonzero(saddle.prompt == block.prompt) for block, _ in self.parts]

    def derivatives(self, parameters: Array, *, hessian: bool = True) -> Derivatives:
        """Return loss, gradient (P,) and Hessian (P, P).

        With slopes q in log pi, pulled back through log pi = t - logsumexp(t): q - pi sum(q), and for the Hessian H
        in log pi: (I - 1 pi')' H (I - 1 pi') - sum(q) (diag(pi) - pi pi').
        """
        saddle, anchor = self.saddle, self.objective.anchor
        table = np.full(saddle.base.shape, -np.inf)
        for block, design in self.parts:
            table[block.prompt, block.support] = log_softmax(block.log_reference + design @ parameters)
        value, slope, curvature = self.objective.derivatives(saddle.columns(table))
        weights = self.objective.preference_weight * saddle.weights
        total, g = float(weights @ value), np.zeros(parameters.size)
        h = np.zeros((parameters.size, parameters.size) if hessian else (0, 0))
        for (block, design), mine in zip(self.parts, self.of_prompt, strict=True):
            logps, pi = table[block.prompt, block.support], np.exp(table[block.prompt, block.support])
            pull = anchor.weight * block.d
            if pull:
                total -= pull * float(block.base @ logps)
            q = -pull * block.base
            pair = (block.chosen, block.rejected)
            for k, index in enumerate(pair):
                np.add.at(q, index, weights[mine] * slope[k, mine])
            g += design.T @ (q - pi * q.sum())
            if hessian:
                inner = np.zeros((pi.size, pi.size))
                for (j, first), (k, second) in product(enumerate(pair), repeat=2):
                    np.add.at(inner, (first, second), weights[mine] * curvature[j, k, mine])
                centred = design - pi @ design  # (I - 1 pi') design
                h += centred.T @ inner @ centred - q.sum() * (design.T @ (pi[:, None] * centred))
        return total, g, h


def maximum_likelihood_reward(
    problem: ContextualBandit, data: PreferenceCounts, objective: Objective
) -> tuple[Array | None, dict[str, Any] | None]:
    """Return (r_MLE (X, A), its class): the proxy; unconstrained where it exists, else in Box(reward_bound)."""
    plain = DPO(beta=require_objective(objective).link.beta, base="reference")
    reward_class: RewardClass = Unconstrained()
    if not minimizer_exists(build_saddle(problem, data, plain, reward_class)).exists:
        if problem.reward_bound is None:
            return None, None
        reward_class = Box(problem.reward_bound)
    return solve(problem, data, plain, reward_class=reward_class, method="newton").reward, reward_class.describe()
