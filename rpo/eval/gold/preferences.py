"""Preference pairs with a known gold reward: sampled from pi_ref, labelled by Bradley-Terry with noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.core.errors import InvalidArgument
from rpo.core.numerics import sigmoid
from rpo.eval.scorers import Scorer
from rpo.llm.data.pairs import PreparedPairs, TokenizedPair
from rpo.llm.sampling import Sample, generate, prompt_token_ids

MAX_ROUNDS = 4


@dataclass(frozen=True)
class LabelledPairs:
    """Rows {prompt, chosen, rejected, and of each response *_ids and *_gold}, and what was drawn.

    refused: pairs drawn again, by reason. flipped: share of labels against gold. margin: mean |gold
    difference| of a pair, in gold's units.
    """

    rows: list[dict[str, Any]]
    refused: dict[str, int]
    missing: int
    flipped: float
    margin: float


def label_pairs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    gold: Scorer,
    *,
    pairs_per_prompt: int = 1,
    max_new_tokens: int,
    coverage: float = 1.0,
    label_temperature: float,
    noise: float = 0.0,
    seed: int,
    batch_size: int = 32,
) -> LabelledPairs:
    """Sample pairs_per_prompt pairs for each prompt and label them. Raises InvalidArgument where none could be made.

    A pair whose responses are empty or identical is drawn again, up to four times, and then left out
    (missing counts them). Ties in gold are labelled by the coin that Bradley-Terry says they are.
    """
    sample_seed, label_seed = np.random.SeedSequence([seed, 1]).spawn(2)
    rng = np.random.default_rng(label_seed)
    wanted = [place for place in range(len(prompts)) for _ in range(pairs_per_prompt)]
    refused: Counter[str] = Counter()
    drawn: list[tuple[int, tuple[Sample, Sample]]] = []
    for child in sample_seed.spawn(MAX_ROUNDS):
        if not wanted:
            break
        sampled = generate(
            model,
            tokenizer,
            [prompts[place] for place in wanted],
            num_samples=2,
            max_new_tokens=max_new_tokens,
            top_p=coverage,
            batch_size=batch_size,
            seed=int(child.generate_state(1)[0]),
            progress=False,
        )
        again = []
        for place, (first, second) in zip(wanted, sampled, strict=True):
            reason = _refusal(first, second)
            if reason is None:
                drawn.append((place, (first, second)))
            else:
                refused[reason] += 1
                again.append(place)
        wanted = again
    if not drawn:
        raise InvalidArgument(
            "coverage", expected="pairs of different responses", got=dict(refused), remedy="Raise coverage or length."
        )
    drawn.sort(key=lambda item: item[0])
    asked = [prompts[place] for place, _ in drawn]
    scores = np.stack([gold(asked, [samples[k].text for _, samples in drawn]) for k in (0, 1)])
    difference = scores[0] - scores[1]
    by_gold = rng.random(len(drawn)) < sigmoid(difference / label_temperature)
    by_coin = rng.random(len(drawn)) < 0.5
    first_wins = np.where(rng.random(len(drawn)) < noise, by_coin, by_gold)
    rows = []
    for row, (place, samples) in enumerate(drawn):
        order = (0, 1) if first_wins[row] else (1, 0)
        found: dict[str, Any] = {"prompt": prompts[place]}
        for name, k in zip(("chosen", "rejected"), order, strict=True):
            found |= {name: samples[k].text, f"{name}_ids": list(samples[k].token_ids)}
            found[f"{name}_gold"] = float(scores[k, row])
        rows.append(found)
    decided = difference != 0
    against = (first_wins != (difference > 0))[decided]
    return LabelledPairs(
        rows,
        dict(refused),
        len(wanted),
        float(against.mean()) if decided.any() else float("nan"),
        float(np.abs(difference).mean()),
    )


def tokenized(rows: Sequence[dict[str, Any]], tokenizer: Any) -> PreparedPairs:
    """Return the pairs with the very tokens that were sampled: a response cut at the limit gets no end."""
    return PreparedPairs(
        TokenizedPair(
            tuple(prompt_token_ids(tokenizer, row["prompt"])), tuple(row["chosen_ids"]), tuple(row["rejected_ids"]), k
        )
        for k, row in enumerate(rows)
    )


def _refusal(first: Sample, second: Sample) -> str | None:
    if not first.text.strip() or not second.text.strip():
        return "empty response"
    return "identical responses" if first.token_ids == second.token_ids else None
