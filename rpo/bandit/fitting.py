"""`fit` on a table: exact full-batch optimisation of the objective, with its history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from rpo.bandit.data import CountedGroups, require_groups
from rpo.bandit.evidence import table_evidence
from rpo.bandit.maximin import solve
from rpo.bandit.metrics import policy_metrics, total_variation
from rpo.bandit.problem import ContextualBandit, SoftmaxPolicy, TabularSoftmaxPolicy
from rpo.bandit.reward_class import Box, RewardClass, Unconstrained
from rpo.bandit.solver.certificate import RELATIVE_GAP
from rpo.bandit.solver.existence import minimizer_exists
from rpo.bandit.solver.newton import minimize_box
from rpo.bandit.solver.saddle import build_saddle
from rpo.bandit.table_loss import TableLoss
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.group_shapes import PlackettLuce
from rpo.core.objectives import DPO, Objective, require_objective
from rpo.core.records import Run
from rpo.core.shapes import Shape
from rpo.core.synonyms import with_synonyms

OPTIMIZERS = ("newton", "lbfgs", "gradient_descent")
MAX_NEWTON_PARAMETERS = 2000
LARGEST_TOLERANCE = 1e-3
FAR = 2.0  # standard deviation of the other starts, in reward units


@with_synonyms
def fit(
    policy: SoftmaxPolicy,
    data: CountedGroups,
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
    starts: int = 1,
    rng: Any = 0,
) -> Run:
    """Minimise the objective over a softmax policy's parameters, full batch, and record the path.

    objective: any that takes the data's groups; a response here is one token. optimizer: "newton" (at most 2,000
    parameters), "lbfgs" or "gradient_descent" (learning_rate is the step on the plain gradient); by default Newton
    where the loss is convex in the logits and smooth, else lbfgs and then Newton. Stops when no gradient entry exceeds
    `tolerance`, or after max_steps. proxy_reward: (X, A), None, or "mle", the maximum-likelihood reward (Unconstrained
    where it exists, else Box(reward_bound), else left out).

    The run's `evidence` and `certificate` say what is known of its end (`rpo.bandit.evidence`). Where no bound proves
    anything, the fit is repeated from starts - 1 other tables drawn from rng, each at the price of a fit, and the
    spread of the ends is recorded: pass starts=5. Raises InvalidArgument.
    """
    kind: type = SoftmaxPolicy  # abstract
    checks.instance("policy", policy, kind, remedy="Pass problem.softmax_policy(), for example.")
    convex = require_objective(objective).convex_in_logits
    small = policy.parameters.size <= MAX_NEWTON_PARAMETERS
    smooth = objective.shape.smooth
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
    more, draw = checks.integer("starts", starts, minimum=1) - 1, checks.generator("rng", rng)
    loss = TableLoss(saddle, policy)
    start = policy.parameters.ravel()
    if optimizer == "newton" and not small:
        raise InvalidArgument(
            "optimizer",
            expected=f"at most {MAX_NEWTON_PARAMETERS} parameters for 'newton'",
            got=f"{start.size}",
            remedy="Use optimizer='lbfgs'.",
        )
    descent = _Descent(loss, optimizer, rate, steps, limit, polish)
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

    record(start)
    final = descent.run(start, advance)
    record(final, last=True)

    slope = loss.steepest(final)
    trained = policy.with_parameters(final.reshape(policy.parameters.shape))
    converged = slope <= limit
    evidence = table_evidence(loss, final, slope=slope, converged=converged)
    message = f"largest gradient entry {slope:.1e} after {step} steps of {optimizer}"
    if evidence.message:
        message += f"; {evidence.message}"
    found: dict[str, Any] = {}
    if more and evidence.word in ("stationary", "infimum approached"):
        found = _other_ends(descent, final, more, draw)
        message += f"; {found['starts']} starts end within {found['loss_spread']:.1e} of one another in loss"
        if found["best_loss"] < (value := loss.value(final)) - RELATIVE_GAP * max(1.0, abs(value)):
            message += f", the best of them lower, at {found['best_loss']:.6g}: this is not the least"
    best = found.pop("best_parameters", None)
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
            **({"starts": more + 1, "rng": rng if isinstance(rng, int) else type(rng).__name__} if more else {}),
        },
        status="converged" if converged else "not_converged",
        message=("Converged: " if converged else "Not converged: ") + message,
        history=history,
        arrays={
            "policy": np.exp(trained.logps),
            "parameters": trained.parameters,
            **({} if best is None else {"best_parameters": best.reshape(policy.parameters.shape)}),
        },
        evidence=evidence.word,
        certificate={**evidence.numbers, **found},
        artifact=trained,
    )


def maximum_likelihood_reward(
    problem: ContextualBandit, data: CountedGroups, objective: Objective
) -> tuple[Array | None, dict[str, Any] | None]:
    """Return (r_MLE (X, A), its class): the proxy; unconstrained where it exists, else in Box(reward_bound).

    Of lists Plackett-Luce's, whatever the objective; None of single responses, which are compared with nothing.
    """
    sizes = {block.responses.shape[1] for block in require_groups(data).blocks}
    if 1 in sizes:
        return None, None
    kind = DPO if sizes == {2} else _Rankings
    plain = kind(beta=require_objective(objective).link.beta, base="reference")
    reward_class: RewardClass = Unconstrained()
    if not minimizer_exists(build_saddle(problem, data, plain, reward_class)).exists:
        if problem.reward_bound is None:
            return None, None
        reward_class = Box(problem.reward_bound)
    return solve(problem, data, plain, reward_class=reward_class, method="newton").reward, reward_class.describe()


class _Rankings(DPO):
    """The likelihood of rankings, with the base that DPO has."""

    @property
    def shape(self) -> Shape:
        """Plackett-Luce's."""
        return PlackettLuce()


@dataclass(frozen=True)
class _Descent:
    """One way down a loss, from any start."""

    loss: TableLoss
    optimizer: str
    rate: float
    steps: int
    limit: float
    polish: bool

    def run(self, start: Array, advance: Callable[[Array], None] = lambda _: None) -> Array:
        """Return the parameters (P,) at the end; advance sees each step's."""
        taken = 0

        def step(at: Array) -> None:
            nonlocal taken
            taken += 1
            advance(at)

        def newton(at: Array) -> Array:
            free = np.full(at.size, np.inf)
            left = self.steps - taken
            return minimize_box(self.loss.derivatives, at, -free, free, max_iterations=left, on_iterate=step).x

        if self.optimizer == "newton":
            return newton(start)
        if self.optimizer == "lbfgs":
            final = minimize(
                lambda p: self.loss.derivatives(p, hessian=False)[:2],
                start,
                jac=True,
                method="L-BFGS-B",
                callback=lambda intermediate_result: step(intermediate_result.x),
                options={
                    "maxiter": self.steps,
                    "maxfun": 20 * self.steps,
                    "gtol": self.limit,
                    "ftol": 1e-18,
                    "maxcor": 30,
                },
            ).x
            return newton(final) if self.polish and taken < self.steps else np.asarray(final)
        final = start
        for _ in range(self.steps):
            gradient = self.loss.derivatives(final, hessian=False)[1]
            if np.abs(gradient).max() <= self.limit:
                break
            final = final - self.rate * gradient
            step(final)
        return final


def _other_ends(descent: _Descent, final: Array, more: int, draw: np.random.Generator) -> dict[str, Any]:
    """Return how far the ends of `more` drawn starts lie from one another and from `final` (P,), in loss and policy."""
    loss = descent.loss
    scale = FAR / loss.objective.link.beta
    ends = [final, *(descent.run(draw.normal(scale=scale, size=final.size)) for _ in range(more))]
    values = [loss.value(end) for end in ends]
    policies = [np.exp(loss.policy.with_parameters(e.reshape(loss.policy.parameters.shape)).logps) for e in ends]
    apart = max(float(total_variation(one, policies[0]).max()) for one in policies)
    return {
        "starts": len(ends),
        "starts_converged": sum(loss.steepest(end) <= descent.limit for end in ends),
        "loss_spread": max(values) - min(values),
        "tv_spread": apart,
        "best_loss": min(values),
        "best_parameters": ends[int(np.argmin(values))],
    }
