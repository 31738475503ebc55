r"""The slack ledger: both sides of every step of the suboptimality proof, evaluated on one simulation.

At r = argmin over R of phi(pi, r), the adversary of the comparator pi, each step replaces one upper
bound on Gap = J(pi) - J(pi-hat) by the next, so the slacks in reward units add up to bound - Gap:

0. $\mathrm{Gap}$
1. $E[D] + \Delta L/\eta + \beta(KL - \widehat{KL}) + gap/\eta$ (optimality of pi-hat), $\Delta L = L_D(r^*) - L_D(r)$
2. $C z + \Delta L/\eta + \dots$ (coverage), $z^2 = E_\mu[D^2]$, $D = (r^*(a_1)-r^*(a_0)) - (r(a_1)-r(a_0))$
3. $C z - 2E_\mu[H^2]/\eta + 3L/(\eta N) + \dots$ (concentration of the likelihood)
4. $C z - E_\mu[TV^2]/\eta + \dots$ (Hellinger to total variation)
5. $C z - m z^2/\eta + \dots$ (total variation to reward difference)
6. $C^2\eta/(4m) + \dots$ (the largest value over z)
7. the same without $-\beta\widehat{KL}$: the bound.

The Hellinger chain goes from 3 to 5 in one step, by Lemma 7 of docs/theory.md. Only step 3 is random:
it holds with probability 1 - delta; the others always.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rpo.bandit.bounds.theorem import LIKELIHOOD_CONSTANT, ROUTES, Bound, bound_arguments, suboptimality_bound
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import Solution
from rpo.bandit.metrics import policy_outcome
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.solver.blocks import PromptBlock, blocks
from rpo.bandit.solver.newton import Derivatives
from rpo.bandit.solver.reward_side import derivatives
from rpo.bandit.solver.saddle import Saddle
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, check_objective, preference_loss

if TYPE_CHECKING:
    import pandas

ROUNDING = 1e-12
# Where the reward is the variable, the preference loss is the objective's at beta = 1, eta = 0.
LIKELIHOOD = DPO(beta=1.0)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One inequality lhs <= rhs of the proof, in its own units.

    number: as in the module's list; the Hellinger chain has no 5. unit: reward units per unit of
    the inequality (1 / eta for a difference of losses). rounding: what the sides may be off by.
    """

    number: int
    name: str
    formula: str
    lhs: float
    rhs: float
    unit: float
    rounding: float

    @property
    def slack(self) -> float:
        """rhs - lhs, in the inequality's own units."""
        return self.rhs - self.lhs

    @property
    def slack_reward(self) -> float:
        """What the step adds to the bound, reward units."""
        return self.slack * self.unit

    @property
    def holds(self) -> bool:
        """Whether lhs <= rhs, up to rounding."""
        return bool(self.slack >= -self.rounding)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ledger:
    """The proof chain on one data set.

    suboptimality: Gap, reward units. bound: at the eta and beta of the solution. adversary: (X, A),
    argmin over R of phi(comparator, r). adversary_residual: how far it is from minimal at most, loss
    units; it is counted with the duality gap. distance: z, reward units.
    """

    chain: str
    suboptimality: float
    bound: Bound
    entries: tuple[LedgerEntry, ...]
    adversary: Array
    adversary_residual: float
    distance: float

    @property
    def holds(self) -> bool:
        """Whether every step holds; False with probability at most delta, through step 3."""
        return all(entry.holds for entry in self.entries)

    def to_frame(self) -> pandas.DataFrame:
        """Return one row per step: sides, slack, slack in reward units, share of bound - Gap, running bound."""
        import pandas

        slacks = np.array([entry.slack_reward for entry in self.entries])
        return pandas.DataFrame(
            {
                "chain": self.chain,
                "number": [entry.number for entry in self.entries],
                "name": [entry.name for entry in self.entries],
                "formula": [entry.formula for entry in self.entries],
                "lhs": [entry.lhs for entry in self.entries],
                "rhs": [entry.rhs for entry in self.entries],
                "slack": [entry.slack for entry in self.entries],
                "slack_reward": slacks,
                "share": slacks / slacks.sum(),
                "upper_bound": self.suboptimality + np.cumsum(slacks),
                "holds": [entry.holds for entry in self.entries],
            }
        )


def worst_reward(saddle: Saddle, policy: Array) -> tuple[Array, float]:
    """Return argmin over R of phi(policy, r), (X, A), and how far above the minimum it may be (loss units).

    policy: (X, A), held fixed, so that the problem is the likelihood plus a linear term. The class must
    be bounded; prompts without weight or data have reward 0. Source: paper, Eq. (3.1).
    """
    pull = saddle.eta * saddle.d[:, None] * (policy - saddle.base)

    def part(block: PromptBlock, r: Array) -> Derivatives:
        value, gradient, hessian = derivatives(block, r)
        mine = pull[block.prompt, block.support]
        return value + float(mine @ r), gradient + mine, hessian

    likelihood = replace(saddle, objective=LIKELIHOOD)
    parts = [(block.prompt, block.support, lambda r, b=block: part(b, r)) for block in blocks(likelihood)]
    return saddle.reward_class.minimize(parts, saddle.base.shape)


def pair_distances(problem: ContextualBandit, reward: Array) -> dict[str, float]:
    """Return E_mu of D^2, TV^2 and H^2 between the preferences of r* and of `reward`, exactly.

    reward: (X, A). Keys "reward", "total_variation", "hellinger". TV and H^2 = 1 - sum sqrt(p q) are
    those of one Bernoulli comparison; D in log-odds. Without cancellation where the two are close.
    """
    weight = problem.d0[:, None, None] * problem.pair_distribution()
    truth, other = (r[:, :, None] - r[:, None, :] for r in (problem.true_reward(), reward))
    difference = truth - other
    # sigma(s) - sigma(t) = sinh((s - t) / 2) / (2 cosh(s / 2) cosh(t / 2))
    tv = np.sinh(difference / 2.0) / (2.0 * np.cosh(truth / 2.0) * np.cosh(other / 2.0))
    hellinger = np.zeros_like(tv)
    for sign in (1.0, -1.0):  # the two outcomes: sqrt p - sqrt q = (p - q) / (sqrt p + sqrt q)
        roots = [np.exp(-0.5 * preference_loss(sign * z, 1.0)) for z in (truth, other)]
        hellinger += 0.5 * (tv / (roots[0] + roots[1])) ** 2
    return {
        "reward": float((weight * difference**2).sum()),
        "total_variation": float((weight * tv**2).sum()),
        "hellinger": float((weight * hellinger).sum()),
    }


def likelihood_difference(data: PreferenceCounts, first: Array, second: Array) -> float:
    """Return L_D(first) - L_D(second), nats per pair. first, second: rewards (X, A)."""
    losses = [
        preference_loss(r[data.prompt, data.chosen] - r[data.prompt, data.rejected], 1.0) for r in (first, second)
    ]
    return float(data.weights @ (losses[0] - losses[1]))


def slack_ledger(
    problem: ContextualBandit,
    data: PreferenceCounts,
    solution: Solution,
    *,
    coverage: float | None = None,
    comparator: Array | None = None,
    delta: float = 0.05,
    chain: str = "paper",
) -> Ledger:
    """Evaluate the proof's steps for `solution`, at its own eta and beta.

    solution: of `solve(..., prompt_weights="population")` on this data, eta > 0, class Box or LinearBall
    with r* in it. comparator: (X, A), default greedy on r*. coverage: C of the comparator against the
    solution's base; computed when None. chain: "paper", "sharper"
    or "hellinger". Raises InvalidArgument; also outside coverage, where the theorem is silent.
    """
    checks.one_of("chain", chain, ROUTES)
    checks.instance("problem", problem, ContextualBandit)
    checks.instance("data", data, PreferenceCounts)
    checks.instance("solution", solution, Solution)
    saddle, truth = solution.saddle, problem.true_reward()
    policy = problem.greedy_policy() if comparator is None else comparator
    policy = checks.probabilities("comparator", policy, shape=problem.reference.shape)
    _check(problem, data, solution, policy)
    arguments = bound_arguments(
        problem,
        data.n,
        base=saddle.base,
        reward_class=solution.reward_class,
        comparator=policy,
        coverage=coverage,
    )
    coverage = arguments["coverage"]
    if not np.isfinite(coverage):
        raise InvalidArgument(
            "coverage",
            expected="a finite coefficient",
            got=coverage,
            remedy="Choose a comparator that the data cover from pi_base: outside, the theorem says nothing.",
        )
    eta, beta = saddle.eta, saddle.beta
    reward, residual = worst_reward(saddle, policy)
    distances = pair_distances(problem, reward)
    z = float(np.sqrt(distances["reward"]))
    loss = likelihood_difference(data, truth, reward)
    kl_learned = policy_outcome(solution.policy, problem, problem.reference)["kl/reference"]
    inexact = solution.certificate.gap + residual
    bound = suboptimality_bound(chain, **arguments, delta=delta, gap=inexact, eta=eta, beta=beta)
    advantage = float(problem.d0 @ ((policy - saddle.base) * (truth - reward)).sum(axis=1))
    regularizer = beta * (arguments["kl"] - kl_learned)
    m, h2, tv2 = bound.curvature, distances["hellinger"], distances["total_variation"]
    concentration = LIKELIHOOD_CONSTANT * bound.confidence / data.n
    gap = problem.suboptimality(solution.policy, policy)
    first = advantage + loss / eta + regularizer + bound.optimization
    linear, quadratic = coverage * z, m * z**2 / eta
    peak = coverage**2 * eta / (4.0 * m)
    # What rounding leaves of sums whose terms are of the size of R or of a loss.
    reward_floor, loss_floor = 1e-3 * bound.margin_bound, 1e-3 * (1.0 + bound.margin_bound)
    rows: list[tuple[int, str, str, float, float, float, float]] = [
        (1, "optimality", "Gap <= E[D] + dL/eta + beta (KL - KL_hat) + gap/eta", gap, first, 1.0,
         reward_floor + loss_floor / eta),
        (2, "coverage", "E[D] <= C z", advantage, linear, 1.0, reward_floor),
        (3, "concentration", "dL <= -2 E[H^2] + 3 L / N", loss, concentration - 2.0 * h2, 1.0 / eta, loss_floor),
    ]  # fmt: skip
    if chain == "hellinger":
        rows.append((4, "Hellinger to reward", "m z^2 <= 2 E[H^2]", m * z**2, 2.0 * h2, 1.0 / eta, 0.0))
    else:
        rows.append((4, "Hellinger to TV", "E[TV^2] <= 2 E[H^2]", tv2, 2.0 * h2, 1.0 / eta, 0.0))
        rows.append((5, "TV to reward", "m z^2 <= E[TV^2]", m * z**2, tv2, 1.0 / eta, 0.0))
    rows += [
        (6, "maximum over z", "C z - m z^2/eta <= C^2 eta / (4 m)", linear - quadratic, peak, 1.0, linear + quadratic),
        (7, "dropped KL", "B - beta KL_hat <= B", bound.value - beta * kl_learned, bound.value, 1.0, bound.value),
    ]
    entries = tuple(
        LedgerEntry(
            number=number,
            name=name,
            formula=formula,
            lhs=lhs,
            rhs=rhs,
            unit=unit,
            rounding=ROUNDING * max(abs(lhs), abs(rhs), size),
        )
        for number, name, formula, lhs, rhs, unit, size in rows
    )
    return Ledger(
        chain=chain,
        suboptimality=gap,
        bound=bound,
        entries=entries,
        adversary=reward,
        adversary_residual=residual,
        distance=z,
    )


def _check(problem: ContextualBandit, data: PreferenceCounts, solution: Solution, comparator: Array) -> None:
    saddle = solution.saddle
    if not np.array_equal(saddle.d, problem.d0):
        raise InvalidArgument(
            "solution",
            expected="prompt weights equal to problem.d0",
            got="the data's",
            remedy="Solve with prompt_weights='population': the theorem is about d0.",
        )
    if check_objective(solution.objective, "solution.objective").eta == 0:
        raise InvalidArgument(
            "solution", expected="eta > 0", got=0.0, remedy="At eta = 0 the theorem's bound is infinite."
        )
    if data.weights.shape != saddle.weights.shape or not np.array_equal(data.weights, saddle.weights):
        raise InvalidArgument(
            "data", expected="the data the solution was made from", got="other counts", remedy="Pass the same counts."
        )
    if (comparator[~saddle.support] > 0).any():
        raise InvalidArgument(
            "comparator",
            expected="no mass where problem.reference has none",
            got=f"mass {comparator[~saddle.support].max():g}",
            remedy="Its divergence from the reference is infinite; choose one within the support.",
        )
    if not solution.reward_class.contains_differences(problem.true_reward()):
        raise InvalidArgument(
            "solution.reward_class",
            expected="a class that contains r* up to a constant a prompt",
            got=f"{solution.reward_class.describe()}",
            remedy="The theorem assumes it (Assumption 5.1); enlarge the class.",
        )
