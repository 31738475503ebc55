"""Rewards on pairs in RewardBench's format (prompt, chosen, rejected, subset): how often the chosen one scores higher.

Shapes: N pairs. A tie counts as half. Source: Lambert et al. 2024, RewardBench, Sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, shown
from rpo.eval.benchmarks.results import BenchmarkResult
from rpo.eval.scorers import Scorer
from rpo.eval.win_rates import wilson

NAME = "reward-bench"
# Its four sections: the mean over their pairs each, but for math-prm, which counts as many as all code together.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
COUNTS_AS = {"math-prm": 984}
NEEDED = ("prompt", "chosen", "rejected")


def read_pairs(source: Any) -> list[dict[str, Any]]:
    """Return rows with prompt, chosen, rejected and subset ("all" without one), of whatever `load_preferences` reads.

    Responses are texts, or a last message after the prompt's. Raises InvalidArgument and what reading raises.
    """
    from rpo.llm.data import load_preferences

    rows = []
    for place, row in enumerate(load_preferences(source)):
        found = {name: row.get(name) for name in NEEDED}
        for name in ("chosen", "rejected"):
            text = found[name]
            if isinstance(text, list) and text and isinstance(text[-1], Mapping):
                found[name] = text[-1].get("content")
        bad = [name for name in NEEDED if not isinstance(found[name], (str, list) if name == "prompt" else str)]
        if bad:
            raise InvalidArgument(
                f"row {place}",
                expected="a prompt and the texts chosen and rejected",
                got=f"{bad[0]} = {shown(row.get(bad[0]))}",
                remedy="Make one row of each pair; of several rejected responses, one row each.",
            )
        rows.append(found | {"subset": str(row.get("subset", "all"))})
    return rows


def scored_results(rows: Sequence[Mapping[str, Any]], scorer: Scorer) -> Array:
    """Return 1, 0.5 or 0 a pair, (N,): whether `scorer` scores chosen higher, as much, or lower.

    A prompt that is a text is a user's message to a reward model whose tokenizer has a chat template.
    """
    tokenizer = getattr(scorer, "tokenizer", None)
    prompts = [conversation(row, tokenizer)["prompt"] for row in rows]
    chosen, rejected = (
        checks.finite(name, scorer(prompts, [row[name] for row in rows]), shape=(len(rows),))
        for name in ("chosen", "rejected")
    )
    return _results(chosen - rejected)


def implicit_results(
    rows: Sequence[Mapping[str, Any]],
    policy: Any,
    tokenizer: Any,
    reference: Any = None,
    *,
    per_token: bool = False,
    batch_tokens: int = 16384,
    progress: bool | None = None,
) -> Array:
    r"""Return the results of the implicit reward $\log\pi(y|x) - \log\pi_{ref}(y|x)$, (N,), whatever beta is.

    policy, reference: causal models; None for rewards without a reference. per_token: divided by the tokens of the
    response, as SimPO's. A prompt that is a text is a user's message where the tokenizer has a chat template. The
    models stay where they are. Raises InvalidArgument, RefusedRow.
    """
    from accelerate import Accelerator

    from rpo.llm.data import prepare_pairs
    from rpo.llm.logps.packing import choose_path
    from rpo.llm.logps.scoring import pad_token
    from rpo.llm.models import positions_of
    from rpo.llm.reference import FrozenModel
    from rpo.llm.reference.scoring_pass import ReferencePass

    positions = positions_of(policy)
    pairs = prepare_pairs(
        [conversation(row, tokenizer) for row in rows],
        tokenizer,
        max_length=positions,
        truncation_mode="drop",
        progress=False,
    )
    if len(pairs) != len(rows):
        expected = f"{len(rows)} pairs within the model's {positions} positions"
        raise InvalidArgument("rows", expected=expected, got=len(pairs), remedy="Take the longer ones out.")
    accelerator = Accelerator(cpu=next(policy.parameters()).device.type == "cpu")
    values = np.zeros((len(pairs), 2))
    for model, sign in ((policy, 1.0), (reference, -1.0)):
        if model is not None:
            path = choose_path(model, pad_token(tokenizer))
            scorer = ReferencePass(accelerator, path, tokenizer, batch_tokens=batch_tokens, show=progress)
            values += sign * scorer.logps(FrozenModel(model), pairs)
    if per_token:
        values /= np.array([pair.lengths[:2] for pair in pairs])
    return _results(values[:, 0] - values[:, 1])


def conversation(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a pair of texts as messages, where the tokenizer has a chat template."""
    if not getattr(tokenizer, "chat_template", None) and isinstance(row["prompt"], str):
        return {name: row[name] for name in NEEDED}
    prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else list(row["prompt"])
    answers = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


def accuracies(
    results: Any, subsets: Sequence[str], model: str, *, source: str | Path = "", level: float = 0.95
) -> list[BenchmarkResult]:
    """Return the accuracy of each subset, of each section that is whole, and of all: fractions, with Wilson intervals.

    Sections and their mean are RewardBench's, where all of their subsets are there; they have no interval, for math-prm
    counts more than once. level: of the intervals. Raises InvalidArgument.
    """
    values = checks.finite("results", results, shape=(len(subsets),))
    names = np.asarray(subsets)
    means: dict[str, float] = {}
    found = []

    def add(name: str, mean: float, n: int, *, ties: int | None = None) -> None:
        found.append(
            BenchmarkResult(
                model=model, benchmark=f"{NAME}:{name}", metric="accuracy", value=mean, standard_error=None, n=n,
                bounds=None if ties is None else wilson(mean, n, level=level), source=str(source),
                settings={} if ties is None else {"ties": ties},
            )
        )  # fmt: skip

    for name in dict.fromkeys(subsets):
        own = values[names == name]
        means[name] = float(own.mean())
        add(name, means[name], own.size, ties=int((own == 0.5).sum()))
    sections = []
    for section, parts in SECTIONS.items():
        if set(parts) <= set(means):
            counts = {part: int((names == part).sum()) for part in parts}
            weights = [COUNTS_AS.get(part, counts[part]) for part in parts]
            sections.append(float(np.average([means[part] for part in parts], weights=weights)))
            add(section, sections[-1], sum(counts.values()))
    if len(sections) == len(SECTIONS):
        add("mean of sections", float(np.mean(sections)), len(values))
    add("all", float(values.mean()), len(values), ties=int((values == 0.5).sum()))
    return found


def _results(margins: Array) -> Array:
    return 0.5 + 0.5 * np.sign(margins)
