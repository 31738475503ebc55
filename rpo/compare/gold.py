"""The gold-reward laboratory on an enumerable language model: trained transformers beside rpo.bandit's exact curves.

The gold reward is known, every expectation is a sum over X prompts and A responses, and the same
preferences are both solved and trained on, so practice is held against theory point by point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas

from rpo.bandit import instances
from rpo.bandit.baselines.plain import best_of_n_policy
from rpo.bandit.batched import BatchSolution, solve_batch
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.metrics import policy_outcome, total_variation
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Unconstrained
from rpo.compare.enumerable import EnumerableLM, tiny_gpt2
from rpo.compare.equivalence import connected_preferences
from rpo.compare.gold_evidence import BEST_OF_N, COLUMNS, OUTCOMES, THEORY, TRAINED, evidence, outcome_bounds
from rpo.compare.sampled_kl import kl_coverage
from rpo.compare.training import fit_language_model
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Solvable
from rpo.core.progress import track
from rpo.core.records import environment
from rpo.core.synonyms import with_synonyms
from rpo.plotting.overoptimization import REFERENCE

BETAS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
NS = (1, 2, 4, 8, 16, 32, 64)
NAN = float("nan")


@dataclass(frozen=True, eq=False, kw_only=True)
class GoldExperiment:
    """Gold, proxy and KL of every policy solved and trained, with what follows from them.

    frame: one row a (source, method, beta or n, seed): kl/reference (nats), reward/gold and reward/proxy as in
    `policy_metrics` (log-odds), status; rows of source "transformer" have their total variation from the exact
    policy ("tv", the mean over prompts, and "tv/max"), "difference/..." from its outcome and "bound/..." on
    that (`outcome_bounds`). sampled_kl: rows of `kl_coverage`. evidence: see `gold_evidence.evidence`.
    """

    config: dict[str, Any]
    lm: EnumerableLM
    problem: ContextualBandit
    frame: pandas.DataFrame
    sampled_kl: pandas.DataFrame
    evidence: dict[str, Any]
    environment: dict[str, str]


def draw_instance(
    *,
    prompts: int,
    vocab_size: int,
    length: int,
    skew: float,
    label_noise: float,
    reward_bound: float,
    rng: Any,
) -> tuple[EnumerableLM, ContextualBandit]:
    """Draw a tiny GPT-2 and the bandit whose reference it is; r* and behaviour are those of `coverage_skew`.

    skew: how unevenly the data cover the responses. label_noise: rate of flipped labels, in [0, 1/2].
    reward_bound: R in log-odds, so a small one makes noisy labels too. Raises InvalidArgument.
    """
    lm_rng, reward_rng = checks.generator("rng", rng).spawn(2)
    lm = tiny_gpt2(prompts=prompts, vocab_size=vocab_size, length=length, rng=lm_rng)
    drawn = instances.coverage_skew(
        arms=lm.num_responses, prompts=prompts, skew=skew, reward_bound=reward_bound, rng=reward_rng
    )
    problem = lm.bandit(drawn.reward, reward_bound=reward_bound, behavior=drawn.behavior)
    name = f"{problem.name[:-1]}, skew={skew:g}, label_noise={label_noise:g})"
    return lm, dataclasses.replace(problem, label_noise=label_noise, name=name)


@with_synonyms
def gold_experiment(
    *,
    prompts: int = 2,
    vocab_size: int = 4,
    length: int = 2,
    skew: float = 1.0,
    label_noise: float = 0.3,
    label_smoothing: float = 0.05,
    reward_bound: float = 4.0,
    num_preferences: int = 200,
    betas: Sequence[float] = BETAS,
    etas: Sequence[float] = (0.1,),
    ns: Sequence[int] = NS,
    draws: int = 200,
    trained_draws: int = 3,
    steps: int = 600,
    learning_rate: float = 3e-3,
    kl_draws: int = 512,
    kl_repetitions: int = 8,
    seed: int = 2,
    progress: bool | None = None,
) -> GoldExperiment:
    """Solve DPO and RPO exactly on `draws` data sets of one instance; train the transformer on the first of them.

    betas: the path, trained from the largest down, each from the weights of the one before, `steps` steps each;
    the reference stays the first model. etas: of RPO, > 0; DPO is always there. ns: of best-of-n, exact on both
    sides: by r_MLE in theory, and by the implicit reward of the transformer that DPO trained at the largest beta.
    Data are as `connected_preferences` draws them, and the reward class is unconstrained, so each has one
    optimum. The default instance was selected with the solver, so that DPO overoptimises. Raises InvalidArgument.
    """
    path = [checks.positive("betas", beta) for beta in checks.listed("betas", betas)]
    if len(path) < 3 or sorted(set(path), reverse=True) != path:
        raise InvalidArgument("betas", expected="three or more, falling", got=list(betas), remedy="Sort them.")
    sizes = [checks.integer("ns", n, minimum=1) for n in checks.listed("ns", ns)]
    if sorted(set(sizes)) != sizes or sum(n > 1 for n in sizes) < 3:
        raise InvalidArgument("ns", expected="three or more above 1, rising", got=list(ns), remedy="Sort them.")
    remedy = "DPO, eta = 0, is always there."
    strengths = [checks.positive("etas", eta, remedy=remedy) for eta in checks.listed("etas", etas)]
    if not strengths or len(set(strengths)) < len(strengths):
        raise InvalidArgument("etas", expected="one or more, all different", got=list(etas), remedy="Pass each once.")
    total = checks.integer("draws", draws, minimum=2)
    trained = checks.integer("trained_draws", trained_draws, minimum=2, maximum=total)
    steps = checks.integer("steps", steps, minimum=1)
    kl_draws = checks.integer("kl_draws", kl_draws, minimum=2)
    repetitions = checks.integer("kl_repetitions", kl_repetitions, minimum=1)
    instance_rng, data_rng, kl_rng = np.random.default_rng(checks.integer("seed", seed, minimum=0)).spawn(3)
    lm, problem = draw_instance(
        prompts=prompts,
        vocab_size=vocab_size,
        length=length,
        skew=skew,
        label_noise=label_noise,
        reward_bound=reward_bound,
        rng=instance_rng,
    )
    drawn = [
        connected_preferences(problem, num_preferences, label_smoothing=label_smoothing, rng=child)
        for child in data_rng.spawn(total)
    ]
    methods: dict[str, list[Solvable]] = {"DPO": [DPO(beta=beta) for beta in path]}
    methods |= {f"RPO, eta = {eta!r}": [RPO(beta=beta, eta=eta) for beta in path] for eta in strengths}

    wins = np.stack([data.wins() for data, _ in drawn])
    theory = {name: _solve_path(problem, wins, objectives) for name, objectives in methods.items()}
    seeds = [
        _Seed(index, data, data.response_frequencies("chosen"), theory["DPO"][0].reward[index], problem)
        for index, (data, _) in enumerate(drawn)
    ]
    rows = [row for item in seeds for row in _theory_rows(item, theory, path, sizes)]
    runs = [(item, name) for item in seeds[:trained] for name in methods]
    checked = []
    for (item, name), child in zip(
        track(runs, f"training paths of {len(path)} transformers", show=progress), kl_rng.spawn(len(runs)), strict=True
    ):
        exact = [found.policy[item.seed] for found in theory[name]]
        policies, statuses = _train_path(lm, item, methods[name], steps=steps, learning_rate=learning_rate)
        for beta, policy, status, target in zip(path, policies, statuses, exact, strict=True):
            table = policy.policy()
            rows.append(item.row(TRAINED, name, table, beta=beta, status=status, exact=target))
            if item.seed == 0:
                found = kl_coverage(policy, lm, draws=kl_draws, repetitions=repetitions, rng=child)
                checked.append(found.assign(method=name, beta=beta))
        if name == "DPO":
            implicit = path[0] * (policies[0].logps() - lm.logps()).detach().double().numpy()
            rows += _best_of_n_rows(item, TRAINED, implicit, lm.policy(), sizes)
    for item in seeds[:trained]:
        rows.append(item.row(TRAINED, REFERENCE, lm.policy(), status="exact"))

    frame = pandas.DataFrame(rows, columns=list(COLUMNS))
    sampled = pandas.concat(checked, ignore_index=True)
    return GoldExperiment(
        config={
            "prompts": prompts,
            "vocab_size": vocab_size,
            "length": length,
            "skew": skew,
            "label_noise": label_noise,
            "label_smoothing": label_smoothing,
            "reward_bound": reward_bound,
            "num_preferences": num_preferences,
            "betas": path,
            "etas": strengths,
            "ns": sizes,
            "draws": total,
            "trained_draws": trained,
            "steps": steps,
            "learning_rate": learning_rate,
            "kl_draws": kl_draws,
            "kl_repetitions": repetitions,
            "seed": seed,
            "problem": problem.name,
            "draws_until_strongly_connected": float(np.mean([count for _, count in drawn])),
        },
        lm=lm,
        problem=problem,
        frame=frame,
        sampled_kl=sampled,
        evidence=evidence(frame, sampled),
        environment=environment(),
    )


class _Seed(NamedTuple):
    """One draw of the data with its pi_base = chosen and its proxy r_MLE, each (X, A)."""

    seed: int
    data: PreferenceCounts
    base: Array
    proxy: Array
    problem: ContextualBandit

    def row(
        self,
        source: str,
        method: str,
        policy: Array,
        *,
        beta: float = NAN,
        n: float = NAN,
        status: str,
        exact: Array | None = None,
    ) -> dict[str, Any]:
        """Return what a policy (X, A) is worth, and how far it is from the exact one where that is given."""
        worth = policy_outcome(policy, self.problem, self.base, self.proxy)
        row = {"source": source, "method": method, "beta": beta, "n": n, "seed": self.seed, "status": status, **worth}
        if exact is not None:
            variation = total_variation(policy, exact)
            target = policy_outcome(exact, self.problem, self.base, self.proxy)
            row |= {"tv": float(self.problem.d0 @ variation), "tv/max": float(variation.max())}
            row |= {f"difference/{name}": worth[column] - target[column] for name, column in OUTCOMES.items()}
            bounds = outcome_bounds(variation, self.problem, self.proxy)
            row |= {f"bound/{name}": bound for name, bound in bounds.items()}
        return row


def _solve_path(problem: ContextualBandit, wins: Array, objectives: Sequence[Solvable]) -> list[BatchSolution]:
    """Return every draw's certified optimum along the path, each started from the reward before."""
    found: list[BatchSolution] = []
    for objective in objectives:
        start = found[-1].reward if found else None
        found.append(
            solve_batch(wins, objective, reference=problem.reference, reward_class=Unconstrained(), start=start)
        )
    return found


def _theory_rows(
    item: _Seed, theory: dict[str, list[BatchSolution]], path: Sequence[float], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    rows = [item.row(THEORY, REFERENCE, item.problem.reference, status="exact")]
    for name, solutions in theory.items():
        for beta, found in zip(path, solutions, strict=True):
            status = "certified" if found.certified[item.seed] else "inaccurate"
            rows.append(item.row(THEORY, name, found.policy[item.seed], beta=beta, status=status))
    return rows + _best_of_n_rows(item, THEORY, item.proxy, item.problem.reference, sizes)


def _best_of_n_rows(
    item: _Seed, source: str, reward: Array, reference: Array, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Return best-of-n by this reward (X, A) from this policy (X, A), held against r_MLE's where it is another."""
    rows = []
    for n in sizes:
        exact = None if source == THEORY else best_of_n_policy(item.proxy, item.problem.reference, n)
        policy = best_of_n_policy(reward, reference, n)
        rows.append(item.row(source, BEST_OF_N, policy, n=float(n), status="exact", exact=exact))
    return rows


def _train_path(
    lm: EnumerableLM, item: _Seed, objectives: Sequence[Solvable], *, steps: int, learning_rate: float
) -> tuple[list[EnumerableLM], list[str]]:
    """Return the policies trained along the path, each from the weights of the one before, and their statuses."""
    policies: list[EnumerableLM] = []
    statuses = []
    for objective in objectives:
        run = fit_language_model(
            lm,
            item.data,
            objective,
            problem=item.problem,
            start=policies[-1] if policies else None,
            steps=steps,
            learning_rate=learning_rate,
            proxy_reward=None,
            log_every=steps,
            progress=False,
        )
        policies.append(run.artifact)
        statuses.append(run.status)
    return policies, statuses
