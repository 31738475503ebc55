"""`advise`: which beta and eta to use on these preferences, why, and what each choice does.

Shapes: X prompts, A responses, K distinct triples, F folds, N pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit.batched import solve_batch
from rpo.bandit.bounds.covering import covering_radius, largest_margin, log_covering
from rpo.bandit.bounds.theorem import suboptimality_bound
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.maximin import default_class
from rpo.bandit.metrics import policy_metrics, total_variation
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, RewardClass
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.bandit.tables import bandit_from_preferences
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO, preference_loss

if TYPE_CHECKING:
    import pandas

SPLITS = ("folds", "leave_one_out", "none")
NEGLIGIBLE_TV = 0.01
DOMINATED_TV = 0.05
GRID = tuple(float(eta) for eta in np.geomspace(1e-3, 1.0, 7))
LARGEST_HYPERGEOMETRIC = 10**9  # NumPy's limit; above it each pair is assigned to a fold on its own
CHUNK = 10**7  # counts held at once while the folds are solved


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A recommended beta and eta with the evidence.

    theory_beta, theory_eta: the theorem's. held_out_eta: largest held-out likelihood at `beta`, or None;
    reported, not followed. warnings: sentences. message: the recommendation in plain words. rows: one a
    (beta, eta), see `to_frame`. config: how everything was computed.
    """

    beta: float
    eta: float
    theory_beta: float
    theory_eta: float
    held_out_eta: float | None
    warnings: tuple[str, ...]
    message: str
    rows: tuple[dict[str, Any], ...]
    config: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """The grid's row of the recommendation."""
        return next(row for row in self.rows if row["beta"] == self.beta and row["eta"] == self.eta)

    def objective(self) -> RPO:
        """Return the recommended objective, ready for `solve`, `fit` or a trainer."""
        return RPO(beta=self.beta, eta=self.eta, base=self.config["base"])

    def to_frame(self) -> pandas.DataFrame:
        """Return the grid, one row a (beta, eta).

        loss/preference, loss/sft, loss/sft_weighted (eta beta times it): at the optimum, nats.
        gradient_share/reference: the SFT term's share of the two gradients' L1 norms at pi_ref, where
        training starts; gradient_share/optimum: at the optimum, 0.5 wherever the class does not bind,
        as the two then cancel. tv/zero: total variation from the policy of eta = 0; tv/base: from
        pi_base. regime: "zero", "negligible", "active" or "dominates". held_out: negative
        log-likelihood of pairs left out, nats; held_out/excess: over eta = 0, with standard errors.
        """
        import pandas

        return pandas.DataFrame(list(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores."""
        names = ("beta", "eta", "theory_beta", "theory_eta", "held_out_eta", "warnings", "message", "rows", "config")
        return {name: getattr(self, name) for name in names}


def advise(
    data: PreferenceCounts,
    problem: ContextualBandit | None = None,
    *,
    reward_class: RewardClass | None = None,
    bound: float | None = None,
    delta: float = 0.05,
    betas: Sequence[float] | None = None,
    etas: Sequence[float] | None = None,
    base: str = "chosen",
    base_policy: Any = None,
    split: str = "folds",
    folds: int = 5,
    rng: Any,
) -> Advice:
    r"""Recommend beta and eta for these preferences and show what each choice does.

    The recommendation is the theorem's rate, $\beta = N^{-1/2}$ and
    $\eta = (1+e^R)^{-2}\sqrt{24\log(N_\epsilon/\delta)/N}$ (paper, Theorem 5.3), or the value nearest
    to it in ratio among `betas` and `etas` where given. It uses N, R, delta and the size of the class:
    no coverage coefficient and no r*, which data cannot tell; the sharper eta of the same proof needs C.

    Held-out likelihood (split "folds": `split_counts`; "leave_one_out": exact, K solves; "none") is
    evidence beside it, not the rule. It scores the reward's fit on the pairs the behaviour draws; what
    the policy is worth depends on responses the data rarely show, where it is blind. On
    `instances.coverage_skew` (N = 30 to 1,000) the eta it prefers left the mean gap where eta = 0 has it,
    while the theorem's lowered it; its use is to show when an eta costs fit. Its standard errors treat
    left-out pairs as independent, though the folds' fits share data.

    problem: d0, reference and bound; None builds `bandit_from_preferences`, with a uniform reference.
    reward_class: default Box(bound), bound defaulting to problem.reward_bound. delta: failure
    probability. base, base_policy: pi_base, as for RPO and `solve`. rng: Generator, SeedSequence or int.
    Raises InvalidArgument.
    """
    checks.one_of("split", split, SPLITS)
    generator = checks.generator("rng", rng)
    checks.instance("data", data, PreferenceCounts)
    if problem is None:
        problem = bandit_from_preferences(data, reward_bound=bound)
    if reward_class is None:
        reward_class = default_class(problem) if bound is None else Box(bound)
    x, a = checks.instance("problem", problem, ContextualBandit).reference.shape
    margin = largest_margin(reward_class)
    covering = log_covering(reward_class, prompts=x, arms=a, radius=covering_radius(data.n, margin))
    # The paper's eta does not depend on the coverage coefficient: any value gives the same one.
    theory = suboptimality_bound(
        "paper", coverage=1.0, n=data.n, margin_bound=margin, log_covering=covering, delta=delta
    )
    beta_grid = _grid("betas", betas, (theory.theorem_beta,), checks.positive)
    eta_grid = _grid("etas", etas, (*GRID, theory.theorem_eta), checks.nonnegative)
    beta = _nearest(beta_grid, theory.theorem_beta)
    eta = _nearest([value for value in eta_grid if value > 0] or [0.0], theory.theorem_eta)

    parts = _parts(data, split, folds, generator)
    rows: list[dict[str, Any]] = []
    for temperature in beta_grid:
        zero: dict[str, Any] = {}
        for weight in sorted({0.0, *eta_grid}):
            objective = RPO(beta=temperature, eta=weight, base=base)
            saddle = build_saddle(problem, data, objective, reward_class, base_policy=base_policy)
            solved = solve_batch(
                data.wins()[None], objective, reference=problem.reference, reward_class=reward_class,
                base_policy=base_policy,
            )  # fmt: skip
            losses = None
            if parts is not None:
                losses = _held_out(data, parts[0], objective, problem, reward_class, base_policy)
            if weight == 0:
                zero = {"policy": solved.policy[0], "losses": losses}
            evidence = {
                "relative_gap": float(solved.relative_gap[0]),
                "tv_bound": float(solved.tv_bound[0]),
                "certified": bool(solved.certified[0]),
            }
            effect = _effect(saddle, problem, solved.policy[0], solved.reward[0], zero["policy"])
            rows.append(
                {**effect, **_likelihood(None if parts is None else parts[1], losses, zero["losses"]), **evidence}
            )

    mine = [row for row in rows if row["beta"] == beta]
    chosen = next(row for row in mine if row["eta"] == eta)
    held_out = None if parts is None else float(min(mine, key=lambda row: row["held_out"])["eta"])
    plain = next(row for row in mine if row["eta"] == 0.0)
    return Advice(
        beta=beta,
        eta=eta,
        theory_beta=theory.theorem_beta,
        theory_eta=theory.theorem_eta,
        held_out_eta=held_out,
        warnings=tuple(_warnings(chosen, mine)),
        message=_sentence(chosen, plain, theory.theorem_beta, theory.theorem_eta, data.n, margin, theory.delta),
        rows=tuple(rows),
        config={
            "base": base,
            "delta": theory.delta,
            "margin_bound": margin,
            "log_covering": covering,
            "reward_class": reward_class.describe(),
            "num_preferences": data.n,
            "problem": problem.name,
            "split": split,
            "folds": None if parts is None else len(parts[0]),
            "negligible_tv": NEGLIGIBLE_TV,
            "dominated_tv": DOMINATED_TV,
        },
    )


def split_counts(data: PreferenceCounts, folds: int, *, rng: Any) -> Array:
    """Deal the pairs into folds without replacement: counts (F, K) that add up to `data.count`.

    Fold sizes differ by at most one pair and are multivariate hypergeometric draws; above 1e9 pairs
    each pair picks its fold at random instead. Split ties are dealt by halves. rng: Generator,
    SeedSequence or int. Raises InvalidArgument.
    """
    count = checks.integer("folds", folds, minimum=2)
    checks.instance("data", data, PreferenceCounts)
    unit = 2.0 if (data.count % 1 != 0).any() else 1.0
    left = np.rint(data.count * unit).astype(np.int64)
    total = int(left.sum())
    if (np.abs(left - data.count * unit) > 1e-9).any() or total < count:
        raise InvalidArgument(
            "data",
            expected=f"whole or half counts and at least {count} of them, one a fold",
            got=f"N = {data.n:g}",
            remedy="Use fewer folds, more data, or split='none'.",
        )
    generator = checks.generator("rng", rng)
    if total >= LARGEST_HYPERGEOMETRIC:
        return np.asarray(generator.multinomial(left, np.full(count, 1.0 / count)).T / unit)
    parts = np.zeros((count, left.size))
    for fold in range(count):
        size = total // count + (fold < total % count)
        drawn = left.copy() if fold == count - 1 else generator.multivariate_hypergeometric(left, size)
        parts[fold] = drawn / unit
        left = left - drawn
    return parts


def _grid(name: str, values: Sequence[float] | None, default: Sequence[float], check: Any) -> list[float]:
    given = checks.finite(name, default if values is None else values, shape=(None,)).tolist()
    if not given:
        raise InvalidArgument(name, expected="at least one value", got="none", remedy="Leave it out for the default.")
    return sorted({check(name, value) for value in given})


def _nearest(grid: Sequence[float], target: float) -> float:
    """Return the value nearest to target in ratio."""
    return min(grid, key=lambda value: abs(np.log(max(value, 1e-300) / max(target, 1e-300))))


def _parts(data: PreferenceCounts, split: str, folds: int, rng: np.random.Generator) -> tuple[Array, Array] | None:
    """Return what each fold leaves out and what it is scored on, each (F, K), or None.

    Leave-one-out: fold k leaves out one pair of triple k, and stands for each of its pairs.
    """
    if split == "none":
        return None
    if split == "folds":
        dealt = split_counts(data, folds, rng=rng)
        return dealt, dealt
    if data.n < 2:
        raise InvalidArgument("data", expected="at least 2 pairs to leave one out", got=data.n, remedy="Add data.")
    return np.diag(np.minimum(data.count, 1.0)), np.diag(data.count)


def _held_out(
    data: PreferenceCounts,
    parts: Array,
    objective: RPO,
    problem: ContextualBandit,
    reward_class: RewardClass,
    base_policy: Any,
) -> Array:
    """Return (F, K): each triple's loss under the reward fitted without fold f.

    At a prompt that a fold leaves without data a table's reward is flat, which scores ln 2.
    """
    x, a = problem.reference.shape
    size = max(1, CHUNK // (x * a * a))
    losses = []
    for first in range(0, len(parts), size):
        kept = data.count - parts[first : first + size]
        wins = np.zeros((len(kept), x, a, a))
        wins[:, data.prompt, data.chosen, data.rejected] = kept
        solved = solve_batch(
            wins, objective, reference=problem.reference, reward_class=reward_class, base_policy=base_policy
        )
        r = solved.reward
        margins = r[:, data.prompt, data.chosen] - r[:, data.prompt, data.rejected]
        losses.append(preference_loss(margins, 1.0))
    return np.concatenate(losses)


def _likelihood(weights: Array | None, losses: Array | None, zero: Array | None) -> dict[str, float]:
    """Return the held-out loss a pair and its excess over eta = 0, with standard errors, nats."""
    names = ("held_out", "held_out/se", "held_out/excess", "held_out/excess_se")
    if weights is None or losses is None or zero is None:
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, (*_mean(weights, losses), *_mean(weights, losses - zero)), strict=True))


def _mean(weights: Array, values: Array) -> tuple[float, float]:
    total = weights.sum()
    mean = float((weights * values).sum() / total)
    variance = float((weights * (values - mean) ** 2).sum() / total)
    return mean, float(np.sqrt(variance / max(1.0, total - 1.0)))


def _effect(saddle: Saddle, problem: ContextualBandit, policy: Array, reward: Array, zero: Array) -> dict[str, Any]:
    """Return what one choice does at its optimum: the two terms, gradients, and distances moved."""
    # From the reward, not log(policy): a probability may underflow, its logarithm does not.
    logps = np.where(saddle.d[:, None] > 0, saddle.gibbs_logps(reward), saddle.log_reference)
    metrics = policy_metrics(logps, saddle, problem)
    to_zero, to_base = (_total_variation(saddle.d, policy, other) for other in (zero, saddle.base))
    regime = "active"
    if saddle.eta == 0:
        regime = "zero"
    elif to_base < DOMINATED_TV:
        regime = "dominates"
    elif to_zero < NEGLIGIBLE_TV:
        regime = "negligible"
    return {
        "beta": saddle.beta,
        "eta": saddle.eta,
        "eta_beta": saddle.sft_weight,
        "regime": regime,
        "loss/preference": metrics["loss/preference"],
        "loss/sft": metrics["loss/sft"],
        "loss/sft_weighted": saddle.sft_weight * metrics["loss/sft"] if saddle.eta else 0.0,
        "gradient_share/reference": _sft_share(saddle, np.zeros_like(reward), np.exp(saddle.log_reference)),
        "gradient_share/optimum": _sft_share(saddle, reward, policy),
        "tv/zero": to_zero,
        "tv/base": to_base,
        "logps/chosen": metrics["logps/chosen"],
        "kl/reference": metrics["kl/reference"],
    }


def _sft_share(saddle: Saddle, reward: Array, policy: Array) -> float:
    """Return the SFT term's share of the two gradients' L1 norms in the logits, at this policy.

    The gradients are -beta times the two parts of `Saddle.multiplier`, which at pi = pi_base is the
    preference term's alone.
    """
    p = saddle.losing_probabilities(reward)
    preference = saddle.multiplier(saddle.base, p)
    penalty = float(np.abs(saddle.multiplier(policy, p) - preference).sum())
    total = penalty + float(np.abs(preference).sum())
    return penalty / total if total > 0 else 0.0


def _total_variation(d: Array, first: Array, second: Array) -> float:
    return float(d @ total_variation(first, second))


def _warnings(row: dict[str, Any], grid: list[dict[str, Any]]) -> list[str]:
    active = [other["eta"] for other in grid if other["regime"] == "active"]
    instead = (
        f" On this grid eta from {min(active):.2g} to {max(active):.2g} is neither negligible nor dominant."
        if active
        else ""
    )
    found = []
    if row["regime"] == "negligible":
        found.append(
            f"eta = {row['eta']:.2g} is negligible here: against eta = 0 the policy moves by {row['tv/zero']:.2g} in "
            f"total variation (threshold {NEGLIGIBLE_TV:g}).{instead}"
        )
    if row["regime"] == "dominates":
        found.append(
            f"eta = {row['eta']:.2g} dominates: the policy is within {row['tv/base']:.2g} of pi_base in total "
            f"variation (threshold {DOMINATED_TV:g}), so the preferences hardly matter beyond it.{instead}"
        )
    if row["regime"] == "zero":
        found.append("eta = 0: no penalty, this is DPO.")
    if row["held_out/excess"] > 2.0 * row["held_out/excess_se"] > 0.0:
        found.append(
            f"Pairs left out are fitted worse than at eta = 0, by {row['held_out/excess']:.2g} "
            f"(standard error {row['held_out/excess_se']:.2g}) nats per pair."
        )
    if not row["certified"]:
        found.append(
            f"The policy at this choice is not certified (relative gap {row['relative_gap']:.1e}, total variation "
            f"at most {row['tv_bound']:.1e} from the optimum)."
        )
    return found


def _sentence(
    row: dict[str, Any], zero: dict[str, Any], beta: float, eta: float, n: float, margin: float, delta: float
) -> str:
    exact = row["beta"] == beta and row["eta"] == eta
    why = "the theorem's rate" if exact else f"the nearest given to the theorem's beta = {beta:.3g}, eta = {eta:.3g}"
    return (
        f"Use beta = {row['beta']:.3g} and eta = {row['eta']:.3g}, {why} for N = {n:g} pairs, margins within "
        f"{margin:.3g} log-odds and delta = {delta:g}. Against eta = 0 this moves {100 * row['tv/zero']:.2g} % of the "
        f"probability, raises the preference loss from {zero['loss/preference']:.5f} to {row['loss/preference']:.5f} "
        f"nats per pair, and moves the mean log-probability of chosen responses from {zero['logps/chosen']:.2f} to "
        f"{row['logps/chosen']:.2f}; the SFT term is {100 * row['gradient_share/reference']:.2g} % of the gradient at "
        "the reference."
    )
