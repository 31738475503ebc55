"""A column of the atlas for the transformer: trained on each method, how far it ends from the table's own optimum."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rpo.bandit import fit
from rpo.bandit.metrics import total_variation
from rpo.compare.atlas.entrants import Entrant
from rpo.compare.enumerable import tiny_gpt2
from rpo.compare.equivalence import connected_preferences
from rpo.compare.training import fit_language_model
from rpo.core.progress import track

PROMPTS, RESPONSES, PREFERENCES, STEPS = 2, 6, 400, 800


class Reached(NamedTuple):
    """How far a transformer ends from its table's optimum: the largest total variation, and the table's evidence."""

    distance: float
    evidence: str


def transformers(
    methods: Sequence[Entrant], *, steps: int = STEPS, rng: int = 0, progress: bool | None = None
) -> dict[str, Reached]:
    """Train the enumerable GPT-2 on every method, full batch; return its distance from `rpo.bandit.fit`.

    One problem, two prompts of six responses of one token each, with preferences that connect all responses, so that
    most methods have a minimum; where the infimum is only approached the distance says how far each got.
    """
    lm = tiny_gpt2(prompts=PROMPTS, vocab_size=RESPONSES, length=1, rng=rng)
    reward = np.random.default_rng(rng + 1).uniform(0, 2, (PROMPTS, RESPONSES))
    problem = lm.bandit(reward, reward_bound=2.0)
    data, _ = connected_preferences(problem, PREFERENCES, rng=rng + 2)
    found = {}
    for entrant in track(methods, "transformers", show=progress):
        objective = entrant.at(entrant.mild)
        if "sft_reduction" in {item.name for item in dataclasses.fields(entrant.method)}:  # type: ignore[arg-type]
            # Of one token, all reductions are the same.
            objective = dataclasses.replace(objective, sft_reduction="sequence_sum")  # type: ignore[type-var]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = fit(problem.softmax_policy(), data, objective, proxy_reward=None, max_steps=5_000)
            run = fit_language_model(
                lm, data, objective, problem=problem, steps=steps, proxy_reward=None, progress=False
            )
        found[entrant.name] = Reached(float(total_variation(run.policy, exact.policy).max()), exact.evidence)
    return found
