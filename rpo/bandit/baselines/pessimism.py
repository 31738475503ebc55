"""Pessimistic maximum likelihood: the policy with the best worst case over an ellipsoid of rewards.

Shapes: X prompts, A responses, D features. theta in reward units per feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.baselines.plain import check_fields, likelihood_evidence, likelihood_sentence, maximum_likelihood
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution, default_class
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import LinearBall, RewardClass, RewardSet
from rpo.bandit.solver.saddle import PROMPT_WEIGHTS
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, SolverFailed

GAP = 1e-7  # of max(1, radius): what counts as certified
ROUNDING = 1e-12
SMALL_MASS = 1e-7  # an interior-point solver never says zero
MAX_FEATURES = 1000


@dataclass(frozen=True, eq=False)
class PessimisticMLE(Baseline):
    r"""The policy with the best worst-case value over an elliptic confidence set around the likelihood's maximum.

    $\arg\max_\pi\ \langle E_{d,\pi}[\phi] - v, \hat\theta\rangle
    - \rho\,\lVert E_{d,\pi}[\phi] - v\rVert_{(\Sigma_D + \lambda I)^{-1}}$, with
    $\Sigma_D = (1/N)\sum_i \delta_i\delta_i'$, $\delta_i$ the difference of the features of pair i, and
    $v = E_{d,\pi_v}[\phi]$: only differences from v are ever judged, so pi_v must be covered by the data.
    The set is the whole ellipsoid (its cut with the ball only shrinks it). Policies may mix responses.

    reward_class: where theta-hat lives; a LinearBall gives the features and B, any other class means
    indicator features (D = X A) and B the norm of its centred table. Default: Box(problem.reward_bound).
    radius: $\rho$; default scale * sqrt((D + log(1/delta)) / (gamma^2 N) + lambda B^2), the paper's, with
    gamma = 1 / (2 + exp(m) + exp(-m)), m = B * the largest feature norm (R for a box). scale: the paper's
    absolute constant C, not stated there. ridge: lambda > 0, default 1/N. base: names pi_v; or
    base_policy (X, A). prompt_weights: d, "data" or "population".
    Source: Zhu, Jordan, Jiao 2023, Algorithm 1, Lemma 3.1.
    """

    reward_class: RewardClass | None = None
    radius: float | None = None
    delta: float = 0.05
    scale: float = 1.0
    ridge: float | None = None
    base: str = "chosen"
    base_policy: Any = None
    prompt_weights: str = "data"
    solver: str = "CLARABEL"

    def __post_init__(self) -> None:
        check_fields(1.0, self.base, self.reward_class)
        checks.one_of("prompt_weights", self.prompt_weights, PROMPT_WEIGHTS)
        if self.radius is not None:
            object.__setattr__(self, "radius", checks.nonnegative("radius", self.radius))
        if self.ridge is not None:
            object.__setattr__(self, "ridge", checks.positive("ridge", self.ridge))
        object.__setattr__(self, "scale", checks.positive("scale", self.scale))
        object.__setattr__(self, "delta", checks.fraction("delta", self.delta))
        if self.radius is None and isinstance(self.reward_class, RewardSet) and not self.reward_class.bounded:
            raise InvalidArgument(
                "radius",
                expected="a radius, since the class has no bound to compute the paper's from",
                got=None,
                remedy="Pass radius=, or use Box(R) or LinearBall.",
            )

    @property
    def label(self) -> str:
        """A short name for legends and tables."""
        return "pessimistic MLE" if self.radius is None else f"pessimistic MLE (radius={self.radius:.3g})"

    def solve(self, problem: ContextualBandit, data: PreferenceCounts, *, rng: Any = None) -> PolicyResult:
        """Return the policy; nothing is drawn. Raises SolverFailed."""
        found = maximum_likelihood(problem, data, reward_class=self.reward_class, base=self.base)
        phi, theta, norm_bound, margin_bound = _parametrise(problem, self.reward_class, found)
        ridge = 1.0 / data.n if self.ridge is None else self.ridge
        gram = covariance(phi, data) + ridge * np.eye(phi.shape[2])
        gamma = 1.0 / (2.0 + math.exp(margin_bound) + math.exp(-margin_bound))
        radius = self.radius
        if radius is None:
            spread = (phi.shape[2] - math.log(self.delta)) / (gamma**2 * data.n)
            radius = self.scale * math.sqrt(spread + ridge * norm_bound**2)
        anchor = found.saddle.base
        if self.base_policy is not None:
            anchor = checks.probabilities("base_policy", self.base_policy, shape=problem.reference.shape)
        d = data.prompt_frequencies if self.prompt_weights == "data" else problem.d0
        game = EllipticGame(phi=phi, theta=theta, gram=gram, radius=radius, d=d, anchor=anchor)
        policy, value, gap, how = game.maximise(problem.reference > 0, self.solver)
        policy = np.where(d[:, None] > 0, policy, problem.reference)
        good = found.status == "certified" and -ROUNDING <= gap / max(1.0, radius) <= GAP
        return PolicyResult(
            policy=policy,
            label=self.label,
            status="certified" if good else "inaccurate",
            message=f"Worst-case value {value:.4g} over pi_v, within {gap:.1e} ({how}). {likelihood_sentence(found)}",
            reward=found.reward,
            evidence={
                **likelihood_evidence(found),
                "worst_case_value": value,
                "gap": gap,
                "radius": radius,
                "ridge": ridge,
                "gamma": gamma,
                "dimension": int(phi.shape[2]),
                "solved_by": how,
            },
        )


def covariance(phi: Array, data: PreferenceCounts) -> Array:
    """Return Sigma_D = (1/N) sum_k n_k delta_k delta_k', (D, D), from features (X, A, D)."""
    seen = phi[data.prompt, data.chosen] - phi[data.prompt, data.rejected]
    return np.asarray((data.weights[:, None] * seen).T @ seen)


def _parametrise(
    problem: ContextualBandit, reward_class: RewardClass | None, found: Solution
) -> tuple[Array, Array, float, float]:
    """Return (features, theta-hat, B, bound m on |<theta, phi>|)."""
    if isinstance(reward_class, LinearBall):
        longest = reward_class.longest()
        largest = float(np.linalg.norm(reward_class.features, axis=2).max())
        return reward_class.features, reward_class.parameters(found.reward), longest, longest * largest
    x, a = problem.reference.shape
    if x * a > MAX_FEATURES:
        raise InvalidArgument(
            "reward_class",
            expected=f"at most {MAX_FEATURES} indicator features",
            got=f"{x} x {a}",
            remedy="Use LinearBall with features.",
        )
    used: RewardSet = default_class(problem) if reward_class is None else reward_class
    bound = used.largest_margin() if used.bounded else 0.0
    # Only differences count, so the table may be centred: entries within R / 2 of zero.
    return np.eye(x * a).reshape(x, a, x * a), found.reward.ravel(), 0.5 * bound * math.sqrt(x * a), bound


@dataclass(frozen=True, eq=False, kw_only=True)
class EllipticGame:
    """max over policies, min over ||theta - theta-hat||_gram <= radius, of <E_{d, pi}[phi] - v, theta>.

    phi: (X, A, D). theta: (D,). gram: (D, D), positive definite. d: (X,). anchor: (X, A), pi_v.
    """

    phi: Array
    theta: Array
    gram: Array
    radius: float
    d: Array
    anchor: Array

    def direction(self, policy: Array) -> Array:
        """Return u = E_{d, pi}[phi] - v, (D,)."""
        return np.asarray(np.einsum("x,xa,xad->d", self.d, policy - self.anchor, self.phi))

    def lower(self, policy: Array) -> tuple[float, Array]:
        """Return the worst-case value of a policy (X, A) and the theta (D,) that attains it."""
        u = self.direction(policy)
        pulled = np.linalg.solve(self.gram, u)
        norm = math.sqrt(max(0.0, float(u @ pulled)))
        worst = self.theta - self.radius * pulled / norm if norm > 0 else self.theta
        return float(u @ self.theta) - self.radius * norm, worst

    def upper(self, theta: Array, support: Any) -> float:
        """Return the best value any policy has at theta (D,), moved into the ellipsoid first: it bounds the game."""
        step = theta - self.theta
        length = math.sqrt(float(step @ self.gram @ step))
        if length > self.radius:
            step = step * (self.radius / length)
        reward = self.phi @ (self.theta + step)
        best = np.where(support, reward, -np.inf).max(axis=1)
        return float(self.d @ (best - (self.anchor * reward).sum(axis=1)))

    def maximise(self, support: Any, solver: str) -> tuple[Array, float, float, str]:
        """Return (policy, worst-case value, duality gap, "closed form" or the solver's status).

        A single response per prompt that is best against its own worst theta is optimal, in closed form;
        otherwise the adversary's cone program is solved and the policy read off its multipliers. Every
        candidate is judged by `lower`, every theta by `upper`: the gap trusts no solver.
        """
        policies = [] if len(self.d) > 1 else [row[None] for row in np.eye(support.shape[1])[support[0]]]
        policy, value, theta = self._best(policies) if policies else (self.anchor, -math.inf, self.theta)
        ceiling = min(self.upper(theta, support), self.upper(self.theta, support))
        if ceiling - value <= ROUNDING * max(1.0, self.radius):
            return policy, value, ceiling - value, "closed form"
        solved, theta, status = self._program(support, solver)
        sparse = np.where(solved > SMALL_MASS, solved, 0.0)
        sparse = sparse / sparse.sum(axis=1, keepdims=True)
        policy, value, worst = self._best([*policies, sparse, solved])
        ceiling = min(ceiling, self.upper(theta, support), self.upper(worst, support))
        return policy, value, ceiling - value, status

    def _best(self, policies: list[Array]) -> tuple[Array, float, Array]:
        values = [self.lower(policy) for policy in policies]
        first = max(range(len(policies)), key=lambda i: values[i][0])
        return policies[first], *values[first]

    def _program(self, support: Any, solver: str) -> tuple[Array, Array, str]:
        """Solve min over the ellipsoid of E_d[max_a <phi, theta>] - <v, theta>; its multipliers are d pi."""
        import cvxpy as cp

        from rpo.bandit.solver.programs import installed_solvers

        checks.one_of("solver", solver, installed_solvers())
        root = np.linalg.cholesky(self.gram)
        active = self.d > 0
        size = self.phi.shape[2]
        # theta = theta-hat + radius root'^{-1} s with ||s|| <= 1 keeps the program's numbers of order one.
        spread = self.radius * np.linalg.solve(root, np.eye(size)).T
        s, best = cp.Variable(size), cp.Variable(len(self.d))
        constraints = [cp.norm(s) <= 1]
        rows = []
        for x in np.flatnonzero(active):
            phi = self.phi[x, support[x]]
            rows.append((x, phi @ self.theta + (phi @ spread) @ s <= best[x]))
        constraints += [row for _, row in rows]
        v = np.einsum("x,xa,xad->d", self.d, self.anchor, self.phi)
        objective = cp.Minimize(self.d[active] @ best[active] - v @ self.theta - (v @ spread) @ s)
        program = cp.Problem(objective, constraints)
        try:
            program.solve(solver=solver)
        except cp.error.SolverError as error:
            raise SolverFailed(f"solver: {solver} failed on the pessimistic program ({error}). Try another.") from error
        if s.value is None:
            raise SolverFailed(f"solver: {solver} says {program.status} of the pessimistic program. Try another.")
        policy = np.zeros(support.shape)
        policy[~active] = self.anchor[~active]
        for x, row in rows:
            multiplier = np.maximum(np.ravel(row.dual_value), 0.0)
            total = multiplier.sum()
            policy[x, support[x]] = multiplier / total if total > 0 else 1.0 / multiplier.size
        return policy, np.asarray(self.theta + spread @ s.value), str(program.status)
