r"""Upper bounds on Gap = J(comparator) - J(pi-hat), and the statistics that test them.

Symbols: C coverage, N pairs, L = log(N_eps / delta), R the largest margin (log-odds), beta and eta as
in the objective. With probability at least 1 - delta, for every eta, beta > 0 (docs/theory.md,
section 7; the constant 3 is 2 from Chernoff's bound plus what the cover costs),

$$\mathrm{Gap} \le C z - \frac{m z^2}{\eta} + \frac{3 L}{\eta N} + \beta E[KL(\pi\|\pi_{ref})]
\le \frac{C^2\eta}{4m} + \frac{3 L}{\eta N} + \beta E[KL(\pi\|\pi_{ref})],$$

where $m$ is any number with $2 H^2 \ge m D^2$ for margins in [-R, R] whose difference is D. The three
bounds are three choices of m and eta:

* paper: $m = \kappa^2$, $\kappa = (1+e^R)^{-2}$, by $H^2 \ge TV^2/2$ and $TV \ge \kappa |D|$;
* sharper: the same with the largest valid $\kappa = \sigma(R)\sigma(-R)$, and the eta that balances;
* hellinger: $m = \kappa/4$, $\kappa = \sigma(R)\sigma(-R)$, by Lemma 7 ($H^2 \ge \kappa D^2/8$).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rpo.bandit.bounds.covering import covering_radius, largest_margin, log_covering
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.metrics import policy_outcome
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass, check_reward_class
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import sigmoid
from rpo.core.summary import Summarised

ROUTES = ("paper", "sharper", "hellinger")
CONSTANTS = ("derived", "printed")
LIKELIHOOD_CONSTANT = 3.0
LEAST_CONFIDENCE = 0.26
FORMULAS = {
    "paper": "C^2 eta / (4 kappa^2) + 3 L / (eta N) + beta KL, kappa = (1 + e^R)^-2",
    "sharper": "C^2 eta / (4 kappa^2) + 3 L / (eta N) + beta KL, kappa = s(R) s(-R)",
    "hellinger": "C^2 eta / kappa + 3 L / (eta N) + beta KL, kappa = s(R) s(-R)",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Bound(Summarised):
    """An upper bound on the gap, with everything it was computed from.

    value = statistical + kl + optimization, reward units. kl: beta times a divergence (nats).
    optimization: duality gap over eta. eta, beta: used; theorem_eta, theorem_beta: prescribed. kappa,
    curvature (m above), log_covering, confidence (L), coverage, n, delta, margin_bound: constants.
    vacuous: value >= R, which every policy meets.
    """

    route: str
    value: float
    statistical: float
    kl: float
    optimization: float
    eta: float
    beta: float
    theorem_eta: float
    theorem_beta: float
    kappa: float
    curvature: float
    coverage: float
    log_covering: float
    confidence: float
    n: float
    delta: float
    margin_bound: float
    formula: str

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: no gap exceeds R."""
        return not self.value < self.margin_bound

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """What it promises, or that it promises nothing; its terms and constants."""
        said = f"{self.value:.4g}, vacuous: no gap exceeds R = {self.margin_bound:.4g}"
        if not self.vacuous:
            said = f"gap <= {self.value:.4g} with probability {1 - self.delta:.4g}"
        terms = ("statistical", "kl", "optimization", "coverage", "eta", "beta", "n")
        return f"Bound ({self.route}): {said}", {name: f"{getattr(self, name):.4g}" for name in terms}

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores."""
        return {**asdict(self), "vacuous": self.vacuous}


def slope_constant(route: str, margin_bound: float) -> float:
    """Return kappa: (1 + e^R)^-2 for "paper" (Lemma A.2), else sigma(R) sigma(-R), the largest valid."""
    checks.one_of("route", route, ROUTES)
    bound = checks.positive("margin_bound", margin_bound)
    if route == "paper":
        return float(sigmoid(-bound)) ** 2
    return float(sigmoid(bound) * sigmoid(-bound))


def curvature_constant(route: str, margin_bound: float) -> float:
    """Return m with 2 H^2 >= m D^2: kappa^2 through total variation, kappa / 4 by Lemma 7."""
    kappa = slope_constant(route, margin_bound)
    return kappa / 4.0 if route == "hellinger" else kappa**2


def suboptimality_bound(
    route: str,
    *,
    coverage: float,
    n: float,
    margin_bound: float,
    log_covering: float,
    delta: float = 0.05,
    kl: float = 0.0,
    kl_learned: float = 0.0,
    gap: float = 0.0,
    eta: float | None = None,
    beta: float | None = None,
) -> Bound:
    """Return the bound of one route at any eta and beta; None takes what its theorem prescribes.

    coverage: C >= 0, inf allowed (the bound is then inf). kl: E_{d0}[KL(comparator || pi_ref)], nats.
    kl_learned: E_{d0}[KL(pi-hat || pi_ref)]; known once solved, and subtracting it is the step the
    theorem drops. gap: duality gap of an inexact solution; it adds gap / eta. Raises InvalidArgument.
    """
    m, kappa = curvature_constant(route, margin_bound), slope_constant(route, margin_bound)
    c = _coverage(coverage)
    pairs = checks.positive("n", n)
    level = checks.fraction("delta", delta)
    log_n = checks.nonnegative("log_covering", log_covering)
    divergence, learned = checks.nonnegative("kl", kl), checks.nonnegative("kl_learned", kl_learned)
    inexact = checks.nonnegative("gap", gap)
    confidence = log_n - math.log(level)
    if confidence < LEAST_CONFIDENCE:
        raise InvalidArgument(
            "delta",
            expected=f"log(N_eps / delta) >= {LEAST_CONFIDENCE}",
            got=f"{confidence:g}",
            remedy="Below it the constant 3 does not pay for the cover's error; pass a smaller delta.",
        )
    if route == "paper":
        prescribed = kappa * math.sqrt(24.0 * confidence / pairs)
    else:  # balances the two terms; uses C, hence r*: an oracle
        prescribed = math.inf if c == 0 else math.sqrt(12.0 * m * confidence / pairs) / c
    used = prescribed if eta is None else checks.positive("eta", eta)
    temperature = pairs**-0.5 if beta is None else checks.positive("beta", beta)
    if used in (0.0, math.inf):  # no coverage, or nothing to cover
        statistical = math.inf if used == 0.0 else 0.0
    else:
        statistical = c**2 * used / (4.0 * m) + LIKELIHOOD_CONSTANT * confidence / (used * pairs)
    optimization = 0.0 if inexact == 0.0 else inexact / used if used > 0 else math.inf
    kl_term = temperature * (divergence - learned)
    return Bound(
        route=route,
        value=statistical + kl_term + optimization,
        statistical=statistical,
        kl=kl_term,
        optimization=optimization,
        eta=used,
        beta=temperature,
        theorem_eta=prescribed,
        theorem_beta=pairs**-0.5,
        kappa=kappa,
        curvature=m,
        coverage=c,
        log_covering=log_n,
        confidence=confidence,
        n=pairs,
        delta=level,
        margin_bound=float(margin_bound),
        formula=FORMULAS[route],
    )


def paper_bound(*, constant: str = "derived", **arguments: Any) -> Bound:
    r"""Return Theorem 5.3's bound at its own eta and beta = N^{-1/2}; arguments of `suboptimality_bound`.

    "derived": what the proof gives. With $\kappa=(1+e^R)^{-2}$, $\iota=\sqrt{24L}$ and
    $\eta=\kappa\iota/\sqrt N$, the terms $C^2\eta/(4\kappa^2) = C^2\iota/(4\kappa\sqrt N)$ and
    $3L/(\eta N) = \iota/(8\kappa\sqrt N)$ add up to $\frac14(1+e^R)^2(C^2+\frac12)\,\iota/\sqrt N$.
    "printed": Eq. (5.3), which has $C^2+1$ where that is $2C^2+1$, so half the first term. Its step
    (A.31), $H^2\ge TV^2$, fails; what the step is used for, $H^2\ge\kappa^2D^2$, follows from Lemma 7
    only if $e^R(1+e^R)^2\ge8$, R >= 0.333 (docs/paper_index.md); below that it is refused, as
    is another eta than the theorem's.
    """
    checks.one_of("constant", constant, CONSTANTS)
    bound = suboptimality_bound("paper", **arguments)
    if constant == "derived":
        return bound
    growth = math.exp(bound.margin_bound)
    if growth * (1.0 + growth) ** 2 < 8.0 or bound.eta != bound.theorem_eta:
        raise InvalidArgument(
            "constant",
            expected="'derived', since 'printed' holds for R >= 0.333 and the theorem's eta only",
            got=f"'printed' at R = {bound.margin_bound:g} and eta = {bound.eta:g}",
            remedy="Use constant='derived'.",
        )
    first = bound.coverage**2 * bound.eta / (8.0 * bound.curvature)
    statistical = first + LIKELIHOOD_CONSTANT * bound.confidence / (bound.eta * bound.n)
    fields = {
        **asdict(bound),
        "statistical": statistical,
        "value": statistical + bound.kl + bound.optimization,
        "curvature": 2.0 * bound.curvature,
        "formula": "C^2 eta / (8 kappa^2) + 3 L / (eta N) + beta KL, kappa = (1 + e^R)^-2",
    }
    return Bound(**fields)


def sharper_bound(**arguments: Any) -> Bound:
    r"""Return $\frac{C}{\kappa}\sqrt{3L/N} + \beta E[KL]$, $\kappa=\sigma(R)\sigma(-R)$.

    The paper's proof with the largest valid slope of the sigmoid and $\eta=(\kappa/C)\sqrt{12L/N}$,
    which makes the two statistical terms equal. Arguments of `suboptimality_bound`.
    """
    return suboptimality_bound("sharper", **arguments)


def hellinger_bound(**arguments: Any) -> Bound:
    r"""Return $2C\sqrt{3L/(\kappa N)} + \beta E[KL]$, $\kappa=\sigma(R)\sigma(-R)$.

    Lemma 7 in place of total variation; $\eta=C^{-1}\sqrt{3\kappa L/N}$. Below `sharper_bound` for every
    R > 0: the ratio is $2\sqrt\kappa\le1$. Arguments of `suboptimality_bound`.
    """
    return suboptimality_bound("hellinger", **arguments)


def bound_arguments(
    problem: ContextualBandit,
    n: float | None = None,
    *,
    base: Array,
    reward_class: RewardClass,
    comparator: Array | None = None,
    data: PreferenceCounts | None = None,
    coverage: float | None = None,
) -> dict[str, float]:
    r"""Return what a problem says of a bound: n, coverage, margin_bound, log_covering, kl.

    Pass the result to `paper_bound`, `sharper_bound` or `hellinger_bound`. base: (X, A), pi_base.
    comparator: (X, A), default greedy on r*. coverage: computed when None. log_covering is at the
    radius of `covering_radius`. Exactly one of n and data.

    data: makes the bound data-dependent: N from it, and C from the pairs it compared, at the interior
    value, which needs neither mu nor r*. The bounds hold with this C and any eta chosen from it: given
    the pairs, the winners are independent and Chernoff's bound becomes
    $\prod_i (1-H_i^2) \le e^{-\sum_i H_i^2}$, so the concentration step holds, with the same constant,
    with the pairs compared in place of mu.
    """
    from rpo.bandit.coverage.coefficient import coverage_coefficient

    shape = checks.instance("problem", problem, ContextualBandit).reference.shape
    check_reward_class(reward_class)
    base = checks.probabilities("base", base, shape=shape)
    if data is not None:
        checks.instance("data", data, PreferenceCounts)
    if (n is None) == (data is None):
        raise InvalidArgument(
            "n, data",
            expected="exactly one of them",
            got="neither" if n is None else "both",
            remedy="Pass n for the population's bound, data for the data-dependent one.",
        )
    pairs = checks.positive("n", n if data is None else data.n)
    policy = problem.greedy_policy() if comparator is None else comparator
    policy = checks.probabilities("comparator", policy, shape=shape)
    bound = largest_margin(reward_class)
    if coverage is None:
        coverage = coverage_coefficient(
            problem,
            policy,
            base,
            reward_class=reward_class,
            data_distribution=data,
            boundary=None if data is None else False,
        ).value
    x, a = shape
    return {
        "n": pairs,
        "coverage": _coverage(coverage),
        "margin_bound": bound,
        "log_covering": log_covering(reward_class, prompts=x, arms=a, radius=covering_radius(pairs, bound)),
        "kl": policy_outcome(policy, problem, problem.reference)["kl/reference"],
    }


def _coverage(value: object) -> float:
    if isinstance(value, (float, np.floating)) and math.isinf(value) and value > 0:
        return math.inf
    return checks.nonnegative("coverage", value, remedy="Pass C >= 0, or inf where the comparator is not covered.")
