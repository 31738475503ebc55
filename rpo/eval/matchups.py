"""Pairs to be judged, from the files that `rpo generate` writes: the same prompts for all models, drawn with a seed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpo.core import checks, shown
from rpo.core.errors import InvalidArgument
from rpo.eval.planning import Pair
from rpo.eval.scorers import Prompt
from rpo.eval.verdicts import canonical

ROW = '{"prompt": text or messages, "responses": [texts], "finish_reasons": [words]}'


@dataclass(frozen=True, slots=True)
class Responses:
    """One model's responses to its prompts, by the prompt's JSON. cut: those that ended at the length limit."""

    model: str
    prompts: dict[str, Prompt] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    cut: dict[str, list[bool]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Matchups:
    """Pairs of every two models on the prompts drawn, and what was left out.

    common: prompts that all models have. missing: prompts of a model that another lacks, by model. cut: of
    the responses to be judged, those that ended at the length limit, by model.
    """

    pairs: tuple[Pair, ...]
    models: tuple[str, ...]
    prompts: int
    common: int
    missing: dict[str, int]
    cut: dict[str, int]

    def sentence(self) -> str:
        """Return all of it in words."""
        parts = [f"{len(self.models)} models, {self.prompts} of {self.common} common prompts"]
        parts += [
            f"{shown.line(name)}: {count} prompts that another lacks, left out"
            for name, count in self.missing.items()
            if count
        ]
        parts += [
            f"{shown.line(name)}: {count} responses cut at the length limit"
            for name, count in self.cut.items()
            if count
        ]
        return "; ".join(parts)


def read_responses(paths: Sequence[str | Path]) -> list[Responses]:
    """Return the responses by model: a row's "model", else the file's name without its end.

    Raises InvalidArgument for a row that is none and for a prompt that a model answers twice.
    """
    models: dict[str, Responses] = {}
    for path in [checks.path("responses", one) for one in checks.listed("responses", paths)]:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:  # ValueError: other encodings, and a NUL in the path
            raise InvalidArgument(
                "responses",
                expected="files written by `rpo generate`",
                got=f"{path} ({error})",
                remedy="Check the path.",
            ) from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}, line {number}"
                row = _row(line, where)
                model = models.setdefault(name := row.get("model", path.stem), Responses(name))
                key = canonical(_bare(row["prompt"]))
                if key in model.prompts:
                    raise InvalidArgument(
                        where,
                        expected=f"one row per prompt for {name}",
                        got="a second one",
                        remedy='Give models different names in "model", or their files without it.',
                    )
                model.prompts[key], model.texts[key] = row["prompt"], row["responses"]
                reasons = row.get("finish_reasons") or [""] * len(row["responses"])
                model.cut[key] = [reason == "length" for reason in reasons]
    return list(models.values())


def draw_pairs(models: Sequence[Responses], *, prompts: int, samples: int = 1, seed: int) -> Matchups:
    """Return every two models' first `samples` responses to at most `prompts` common prompts.

    The prompts depend on the seed and on which ones are common, not on the order of models or rows. The k-th
    response of one model meets the k-th of the other. Raises InvalidArgument.
    """
    count = checks.integer("prompts", prompts, minimum=1)
    depth = checks.integer("samples", samples, minimum=1)
    if len(checks.instances("responses", models, Responses)) < 2:
        raise InvalidArgument(
            "responses",
            expected="responses of at least two models",
            got=", ".join(model.model for model in models) or "none",
            remedy='Give a file a model, or rows with "model".',
        )
    common = sorted(set.intersection(*(set(model.prompts) for model in models)))
    if not common:
        raise InvalidArgument(
            "responses", expected="a prompt that all models answer", got="none", remedy="Generate on the same prompts."
        )
    order = checks.generator("seed", seed).permutation(len(common))[:count]
    drawn = [common[place] for place in sorted(order)]
    for model, key in itertools.product(models, drawn):
        if len(model.texts[key]) < depth:
            raise InvalidArgument(
                "samples",
                expected=f"at most {len(model.texts[key])}, the responses of {model.model} to a prompt",
                got=depth,
                remedy="Generate more with --num_samples.",
            )
    # As messages where a model has it so: a scorer with a chat template scores those as they were asked.
    shown = {
        key: max((model.prompts[key] for model in models), key=lambda one: not isinstance(one, str)) for key in drawn
    }
    pairs = [
        Pair(shown[key], a.model, b.model, a.texts[key][k], b.texts[key][k])
        for a, b in itertools.combinations(models, 2)
        for key in drawn
        for k in range(depth)
    ]
    return Matchups(
        pairs=tuple(pairs),
        models=tuple(model.model for model in models),
        prompts=len(drawn),
        common=len(common),
        missing={model.model: len(model.prompts) - len(common) for model in models},
        cut={model.model: sum(sum(model.cut[key][:depth]) for key in drawn) for model in models},
    )


def _bare(prompt: Prompt) -> Prompt:
    """Return a lone user message as its text: what a model with a chat template was asked, one without was too."""
    alone = not isinstance(prompt, str) and len(prompt) == 1 and set(prompt[0]) == {"role", "content"}
    return prompt[0]["content"] if alone and prompt[0]["role"] == "user" else prompt  # type: ignore[index]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        prompt, texts, reasons = row.get("prompt"), row.get("responses"), row.get("finish_reasons")
        asked = isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(item, dict) for item in prompt))
        answered = isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)
        ended = reasons is None or (
            isinstance(reasons, list) and isinstance(texts, list) and len(reasons) == len(texts)
        )
        if asked and answered and ended and isinstance(row.get("model", ""), str):
            return row
    raise InvalidArgument(where, expected=f"a row {ROW}", got=line[:80], remedy="Mend that line.")
