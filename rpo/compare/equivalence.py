"""The same problem, the same data, three ways: convex program, table, transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit as fit_table
from rpo.bandit.maximin import Solution, solve
from rpo.bandit.metrics import total_variation
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.certificate import certify
from rpo.compare.curves import beta_path, coverage_skew_curves
from rpo.compare.enumerable import EnumerableLM, tiny_gpt2
from rpo.compare.training import fit_language_model
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, NoMinimizer
from rpo.core.objectives import DPO, RPO, Objective, check_objective
from rpo.core.records import Run
from rpo.core.synonyms import with_synonyms

MAX_DRAWS = 2000
BETAS = np.geomspace(2.0, 0.02, 13)
SKEW_PREFERENCES = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Theory, table and transformer on one problem, with how far apart they ended.

    theory, dpo_theory: Solutions. table, transformer, dpo: Runs. agreement: numbers, see `measure`.
    curves: rows of the exact beta path; skew_curves: rows over fresh coverage-skew problems.
    """

    config: dict[str, Any]
    problem: ContextualBandit
    data: PreferenceCounts
    theory: Solution
    table: Run
    transformer: Run
    dpo_theory: Solution
    dpo: Run
    agreement: dict[str, Any]
    curves: list[dict[str, float]]
    skew_curves: list[dict[str, float]]


def draw_problem(
    *, prompts: int, vocab_size: int, length: int, num_preferences: int, reward_bound: float, rng: Any
) -> tuple[EnumerableLM, ContextualBandit, PreferenceCounts, int]:
    """Draw a tiny GPT-2, r* uniform on [0, R] and preferences between its own samples.

    Preferences are as `connected_preferences` draws them; the number of draws is returned. Raises
    InvalidArgument.
    """
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    lm_rng, reward_rng, data_rng = generator.spawn(3)
    lm = tiny_gpt2(prompts=prompts, vocab_size=vocab_size, length=length, rng=lm_rng)
    reward = reward_rng.uniform(0.0, bound, size=(len(lm.prompts), lm.num_responses))
    problem = lm.bandit(reward, reward_bound=bound)
    data, draws = connected_preferences(problem, num_preferences, rng=data_rng)
    return lm, problem, data, draws


def connected_preferences(
    problem: ContextualBandit, n: int, *, label_smoothing: float = 0.0, rng: Any
) -> tuple[PreferenceCounts, int]:
    """Draw n preferences until the wins connect all responses of every prompt strongly; return the draws it took.

    Then one minimiser exists over all reward tables at eta = 0 (Ford) and, each response having won, at every
    eta > 0 with pi_base = chosen. So the data are conditioned on that event. label_smoothing: in [0, 1/2), the
    share of each preference that counts the other way round, as in conservative DPO; above 0, connected
    comparisons are enough. Raises InvalidArgument, also when 2,000 draws do not suffice.
    """
    generator = checks.generator("rng", rng)
    share = checks.nonnegative("label_smoothing", label_smoothing)
    if share >= 0.5:
        raise InvalidArgument("label_smoothing", expected="a share in [0, 1/2)", got=share, remedy="Lower it.")
    for draw in range(1, MAX_DRAWS + 1):
        data = problem.sample_preferences(n, rng=generator)
        if share > 0:
            wins = data.wins()
            data = PreferenceCounts.from_wins((1.0 - share) * wins + share * wins.transpose(0, 2, 1))
        if all(connected_components(csr_array(wins), connection="strong")[0] == 1 for wins in data.wins()):
            return data, draw
    raise InvalidArgument(
        "num_preferences",
        expected=f"enough for a strongly connected comparison graph within {MAX_DRAWS} draws",
        got=n,
        remedy="Raise num_preferences, or lower reward_bound, vocab_size or length.",
    )


@with_synonyms
def compare(
    objective: Objective | None = None,
    *,
    prompts: int = 3,
    vocab_size: int = 4,
    length: int = 3,
    num_preferences: int = 2500,
    reward_bound: float = 2.0,
    steps: int = 1500,
    learning_rate: float = 3e-3,
    skew_draws: int = 40,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Solve, fit and train one problem three ways and measure the distance between them.

    objective: default RPO(beta=0.1, eta=0.1); its base must be "chosen" and eta > 0. seed: every
    random draw descends from it. skew_draws: problems in the averaged curves, at least 2.
    Raises InvalidArgument, NoMinimizer.
    """
    objective = RPO(beta=0.1, eta=0.1) if objective is None else objective
    check_objective(objective)
    if not (isinstance(objective, RPO) and objective.base == "chosen" and objective.eta > 0):
        raise InvalidArgument(
            "objective",
            expected="an RPO with eta > 0 and base 'chosen'",
            got=objective,
            remedy="The drawn data guarantee a minimiser for that base; DPO is trained beside it anyway.",
        )
    skew_draws = checks.integer("skew_draws", skew_draws, minimum=2)
    total = checks.integer("steps", steps, minimum=1)
    problem_rng, skew_rng = np.random.default_rng(checks.integer("seed", seed, minimum=0)).spawn(2)
    lm, problem, data, draws = draw_problem(
        prompts=prompts,
        vocab_size=vocab_size,
        length=length,
        num_preferences=num_preferences,
        reward_bound=reward_bound,
        rng=problem_rng,
    )
    plain = DPO(beta=objective.beta)
    theory = solve(problem, data, objective, reward_class=Unconstrained())
    dpo_theory = solve(problem, data, plain, reward_class=Unconstrained())
    if not theory.status == dpo_theory.status == "certified":
        raise NoMinimizer(f"the theory could not be certified: {theory.message} {dpo_theory.message}")
    proxy = dpo_theory.reward
    table = fit_table(problem.softmax_policy(), data, objective, proxy_reward=proxy)
    runs = {}
    for name, goal, truth in (("RPO", objective, theory), ("DPO", plain, dpo_theory)):
        runs[name] = fit_language_model(
            lm,
            data,
            goal,
            problem=problem,
            steps=total,
            learning_rate=checks.positive("learning_rate", learning_rate),
            proxy_reward=proxy,
            log_every=max(1, total // 60),
            extra_metrics=lambda logps, truth=truth: distance(logps, truth),  # type: ignore[misc]
            label="transformer" if name == "RPO" else "transformer, DPO",
            progress=progress,
        )
    etas = (0.0, objective.eta)
    curves = beta_path(problem, data, etas, BETAS, reward_class=Unconstrained())
    return Comparison(
        config={
            "objective": objective.to_dict(),
            "prompts": prompts,
            "vocab_size": vocab_size,
            "length": length,
            "num_preferences": num_preferences,
            "reward_bound": reward_bound,
            "steps": steps,
            "learning_rate": learning_rate,
            "skew_draws": skew_draws,
            "seed": seed,
            "draws_until_strongly_connected": draws,
        },
        problem=problem,
        data=data,
        theory=theory,
        table=table,
        transformer=runs["RPO"],
        dpo_theory=dpo_theory,
        dpo=runs["DPO"],
        agreement={
            "table": measure(table, theory),
            "transformer": measure(runs["RPO"], theory),
            "transformer, DPO": measure(runs["DPO"], dpo_theory),
        },
        curves=curves,
        skew_curves=coverage_skew_curves(
            etas=etas,
            betas=BETAS,
            n=SKEW_PREFERENCES,
            draws=skew_draws,
            rng=skew_rng,
            progress=progress,
        ),
    )


def distance(logps: Array, theory: Solution) -> dict[str, float]:
    """Return "gap" and "tv" of a policy log pi (X, A) from a solved unconstrained maximin.

    gap: reward side at r = beta log(pi / pi_ref) minus the value `theory` certifies, in closed form
    (docs/theory.md, section 3); at eta = 0, where that form has no policy term, loss minus optimal
    loss. tv: the largest total variation over prompts.
    """
    saddle = checks.instance("theory", theory, Solution, remedy="Pass what rpo.bandit.solve returns.").saddle
    logps = checks.numbers("logps", logps)
    checks.has_shape("logps", logps, theory.policy.shape)
    if saddle.eta > 0:
        reward = saddle.beta * saddle.log_ratio(logps)
        gap = certify(saddle, reward, p=saddle.losing_probabilities(theory.reward)).gap
    else:
        gap = float(saddle.loss(logps)[0]) - theory.loss
    return {"gap": gap, "tv": float(total_variation(np.exp(logps), theory.policy).max())}


def measure(run: Run, theory: Solution) -> dict[str, Any]:
    """Return total variation per prompt, its maximum, and loss minus the theory's optimal loss."""
    checks.instance("run", run, Run)
    checks.instance("theory", theory, Solution, remedy="Pass what rpo.bandit.solve returns.")
    variation = total_variation(run.policy, theory.policy)
    return {
        "total_variation": variation.tolist(),
        "max_total_variation": float(variation.max()),
        "loss": run.loss,
        "loss_difference": run.loss - theory.loss,
        "status": run.status,
        "message": run.message,
    }
