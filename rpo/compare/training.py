"""Training an enumerable language model on the exact objective: full batch, float64, decaying rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rpo.bandit.data import CountedGroups
from rpo.bandit.fitting import maximum_likelihood_reward
from rpo.bandit.metrics import policy_metrics
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.data_term import Groups
from rpo.bandit.solver.saddle import build_saddle
from rpo.compare.enumerable import EnumerableLM
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL
from rpo.core.errors import InvalidArgument, NonFiniteLoss
from rpo.core.numerics import weighted_mean
from rpo.core.objectives import Objective, require_objective
from rpo.core.progress import track
from rpo.core.records import Run
from rpo.core.synonyms import with_synonyms


def _require_table(objective: object) -> None:
    """Refuse what a table does not have: tokens, labels, what other batches say."""
    found = require_objective(objective)
    reduction = found.anchor.reduction
    unknown = sorted(found.needs - {"reference", "lengths", "scores"}) + [reduction] * (reduction != "sequence_sum")
    if unknown:
        raise InvalidArgument(
            "objective",
            expected="one that reads log-probabilities of whole responses",
            got=f"{found.label}, which reads {', '.join(unknown)}",
            remedy="Train it by PreferenceTrainer.",
        )


@with_synonyms
def fit_language_model(
    lm: EnumerableLM,
    data: CountedGroups,
    objective: Objective,
    *,
    problem: ContextualBandit | None = None,
    start: EnumerableLM | None = None,
    steps: int = 1500,
    learning_rate: float = 3e-3,
    adam_betas: tuple[float, float] = (0.9, 0.99),
    base_policy: Any = None,
    proxy_reward: Any = "mle",
    log_every: int = 25,
    extra_metrics: Callable[[Array], dict[str, float]] | None = None,
    label: str | None = None,
    progress: bool | None = None,
) -> Run:
    """Train a copy of `lm` by AdamW on all pairs or lists at once, the reference being `lm` as it is.

    objective: any that `rpo.bandit.fit` takes on these data; a response counts as one token there and here. Means
    under pi_base and pi_ref are exact.
    The rate falls to zero along a cosine; no weight decay. Rates of 1e-2 and above can end at a
    stationary point that is not the optimum: hold the result against `solve`. problem: the bandit of `lm` (default
    `lm.bandit()`, without gold reward). start: whose weights to begin from, such as a policy trained at a
    neighbouring beta (default `lm`). proxy_reward: (X, A), None or "mle". extra_metrics: from
    log pi (X, A) to more columns of the history. Raises InvalidArgument, NonFiniteLoss.
    """
    _require_table(objective)
    total = checks.integer("steps", steps, minimum=1)
    rate = checks.positive("learning_rate", learning_rate)
    every = checks.integer("log_every", log_every, minimum=1)
    checks.instance("lm", lm, EnumerableLM, remedy="Pass rpo.compare.tiny_gpt2(rng=0), for example.")
    if start is not None:
        checks.instance("start", start, EnumerableLM)
    problem = lm.bandit() if problem is None else problem
    saddle = build_saddle(problem, data, objective, Unconstrained(), base_policy=base_policy)
    proxy_class: dict[str, Any] | None = {"name": "given"}
    if isinstance(proxy_reward, str):
        checks.one_of("proxy_reward", proxy_reward, ("mle",))
        proxy_reward, proxy_class = maximum_likelihood_reward(problem, data, objective)
    elif proxy_reward is not None:
        proxy_reward = checks.finite("proxy_reward", proxy_reward, shape=problem.reference.shape)

    policy = EnumerableLM(model=copy.deepcopy((start or lm).model), prompts=lm.prompts, length=lm.length)
    reference = lm.logps().detach()
    x, chosen = torch.as_tensor(saddle.prompt), torch.as_tensor(saddle.chosen)
    weights = torch.as_tensor(saddle.weights, dtype=reference.dtype)
    base = torch.as_tensor(saddle.base, dtype=reference.dtype)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate, betas=adam_betas, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    def columns(groups: Groups) -> Columns:
        """Of the reference's own log-probabilities, those of one size."""
        logps = tuple(reference.ravel()[torch.as_tensor(entry)] for entry in groups.entries)
        scores = groups.scores and tuple(torch.as_tensor(score, dtype=reference.dtype) for score in groups.scores)
        return Columns(logps=logps, reference=logps, lengths=tuple(map(torch.ones_like, logps)), scores=scores)

    parts = [
        (columns(groups), [torch.as_tensor(entry) for entry in groups.entries], share)
        for groups, share in zip(
            saddle.groups, weights.split([groups.weights.size for groups in saddle.groups]), strict=True
        )
    ]
    anchor = objective.anchor

    def base_logps(logps: torch.Tensor) -> torch.Tensor:
        if not isinstance(anchor.divergence, KL):
            return anchor.divergence.sampled_base_value(logps - reference, base, reference.exp())[x]
        return logps[x, chosen] if anchor.role == "chosen" else (base * logps).sum(-1)[x]

    def evaluate() -> tuple[Any, Any, torch.Tensor]:
        logps = policy.logps()
        flat, preference = logps.ravel(), 0.0
        for given, entries, share in parts:
            losses = objective.per_pair(given.with_logps(tuple(flat[entry] for entry in entries)))
            preference = preference + weighted_mean(losses, share)
        loss, terms = objective.total(preference, base_logps(logps), weights, None)
        return loss, terms, logps

    history: list[dict[str, float]] = []
    disagreement = 0.0

    def record(step: int, loss: Any, terms: Any, logps: torch.Tensor) -> None:
        nonlocal disagreement
        table = np.asarray(logps.detach().double().numpy())
        row = policy_metrics(table, saddle, problem, proxy_reward)
        optimised = loss.item()
        disagreement = max(disagreement, abs(optimised - row["loss"]))
        # The number logged is the number optimised; the table's own value is only held against it.
        row |= {"loss": optimised, "loss/preference": terms.preference.item(), "loss/sft": terms.sft.item()}
        history.append({"step": step, **row, **(extra_metrics(table) if extra_metrics else {})})

    for step in track(range(total), f"training {label or 'transformer'}", show=progress):
        loss, terms, logps = evaluate()
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"loss: expected a finite number, got {loss.item()} at step {step}. Lower learning_rate."
            )
        if step % every == 0:
            record(step, loss, terms, logps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    loss, terms, logps = evaluate()
    record(total, loss, terms, logps)
    slope = torch.autograd.grad(loss, tuple(policy.model.parameters()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in slope if g is not None)
    converged = largest <= 1e-6
    return Run(
        label=label or "transformer",
        objective=objective.to_dict(),
        config={
            "policy": type(lm.model).__name__,
            "parameters": sum(p.numel() for p in lm.model.parameters()),
            "dtype": str(reference.dtype),
            "steps": total,
            "learning_rate": rate,
            "adam_betas": list(adam_betas),
            "schedule": "cosine to zero",
            "weight_decay": 0.0,
            "prompt_weights": "data",
            "proxy_class": proxy_class,
            "num_preferences": data.n,
            "problem": problem.name,
            "start": "reference" if start is None else "given",
            "table_disagreement": disagreement,
        },
        status="converged" if converged else "not_converged",
        message=("Converged: " if converged else "Not converged: ")
        + f"largest gradient entry {largest:.1e} after {total} steps of AdamW "
        "(a network may be stationary away from the optimum)",
        history=history,
        arrays={"policy": policy.policy()},
        artifact=policy,
    )
