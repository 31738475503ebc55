"""Scorers: a number for each response. Gold rewards of the laboratory, proxies, and judges by score.

A scorer is any callable `(prompts, responses) -> (N,)`; its `name` goes into records. Prompts are texts
or lists of messages, responses texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from rpo.core import checks
from rpo.core.aggregators import AGGREGATORS, combine
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.core.fields import hold

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
WRAP = "Wrap a function of your own in rpo.eval.scorers.Function."
WORD = re.compile(r"\w+(?:'\w+)?")


@runtime_checkable
class Scorer(Protocol):
    """What scores responses; larger is better."""

    @property
    def name(self) -> str:
        """What records and reports call it."""
        ...

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one score per response, (N,)."""
        ...


class Sentiment:
    """VADER's compound score of the response, in [-1, 1] (Hutto and Gilbert 2014).

    A lexicon of rated words with rules for negation, degree and emphasis: fast, deterministic, and easy
    to game by repeating happy words. Needs the extra `eval`.
    """

    name = "sentiment"

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise MissingDependency("Sentiment needs vaderSentiment: pip install 'rpo-lab[eval]'.") from error
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one score per response, (N,)."""
        return np.array(
            [self._analyzer.polarity_scores(text)["compound"] for text in _texts(responses)], dtype=np.float64
        )


class Length:
    """Words in the response: the oldest hack of a reward."""

    name = "length"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one count a response, (N,)."""
        return np.array([len(_words(text)) for text in _texts(responses)], dtype=np.float64)


@dataclass(frozen=True)
class Repetition:
    """Share of a response's n-grams of words that occurred in it before, in [0, 1]; 0 where it has none."""

    n: int = 2
    name: str = "repetition"

    def __post_init__(self) -> None:
        hold(self, checks.integer, "n", minimum=1)
        checks.instance("name", self.name, str)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one share a response, (N,)."""
        return np.array([_repeated(_words(text), self.n) for text in _texts(responses)], dtype=np.float64)


@dataclass(frozen=True)
class Weighted:
    """A weighted sum of scorers, so that a hack can have a price: `Weighted({Sentiment(): 1, Repetition(): -1})`."""

    parts: Mapping[Any, float]

    def __post_init__(self) -> None:
        if not checks.instance("parts", self.parts, Mapping):  # type: ignore[type-abstract]
            raise InvalidArgument("parts", expected="at least one scorer", got="none", remedy="Pass {Sentiment(): 1}.")
        weights = {}
        for part, weight in self.parts.items():
            checks.instance("parts", part, Scorer, remedy=WRAP)  # type: ignore[type-abstract]
            weights[part] = float(checks.finite("parts", weight, shape=()))
        object.__setattr__(self, "parts", weights)

    @property
    def name(self) -> str:
        """The sum, spelled out."""
        return " ".join(f"{weight:+g} {part.name}" for part, weight in self.parts.items())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one sum a response, (N,)."""
        total = np.zeros(len(_texts(responses)))
        for part, weight in self.parts.items():
            total += weight * part(prompts, responses)
        return total


@dataclass(frozen=True)
class Ensemble:
    """Several scorers of one thing, such as reward models of different seeds, made into one.

    members: at least one. how: "mean", "worst", "variance" (mean - penalty * variance) or "entropic", as of
    `rpo.core.aggregators.combine`. centred: each member is first measured against its mean over the responses of the
    call to the same prompt, since rewards mean nothing across prompts; a prompt with one response is then refused.
    Raises InvalidArgument. Source: Coste et al. 2024 (arXiv 2310.02743), Section 3.
    """

    members: Sequence[Any]
    how: str = "worst"
    penalty: float = 0.5
    centred: bool = True

    def __post_init__(self) -> None:
        members = tuple(checks.listed("members", self.members))
        if not members:
            raise InvalidArgument("members", expected="at least one scorer", got="none", remedy="Pass some.")
        for member in members:
            checks.instance("members", member, Scorer, remedy=WRAP)  # type: ignore[type-abstract]
        object.__setattr__(self, "members", members)
        checks.one_of("how", self.how, AGGREGATORS)
        hold(self, checks.nonnegative, "penalty")
        checks.instance("centred", self.centred, bool)

    @property
    def name(self) -> str:
        """The aggregator and the members."""
        number = f" {self.penalty:g}" if self.how in ("variance", "entropic") else ""
        return f"{self.how}{number} of ({', '.join(member.name for member in self.members)})"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one combined score a response, (N,)."""
        scores = np.stack([np.asarray(member(prompts, responses), dtype=np.float64) for member in self.members])
        if self.centred:
            if len(prompts) != scores.shape[1]:
                raise InvalidArgument(
                    "prompts", expected=f"{scores.shape[1]}, one a response", got=len(prompts), remedy="Pass one each."
                )
            places: dict[str, list[int]] = {}
            for place, prompt in enumerate(prompts):
                places.setdefault(repr(prompt), []).append(place)
            for same in places.values():
                if len(same) < 2:
                    raise InvalidArgument(
                        "responses",
                        expected="two or more to each prompt, against whose mean each member is measured",
                        got="one",
                        remedy="Score all responses to a prompt in one call, or pass centred=False.",
                    )
                scores[:, same] -= scores[:, same].mean(axis=1, keepdims=True)
        return combine(scores, self.how, self.penalty)


@dataclass(frozen=True)
class RewardModel:
    """A reward model of transformers: `AutoModelForSequenceClassification` with one output, and its tokenizer."""

    model: Any
    tokenizer: Any
    name: str = "reward_model"
    batch_size: int = 16
    max_length: int | None = None

    def __post_init__(self) -> None:
        import torch
        from transformers import PreTrainedTokenizerBase

        checks.instance("model", self.model, torch.nn.Module)
        checks.instance("tokenizer", self.tokenizer, PreTrainedTokenizerBase)
        checks.instance("name", self.name, str)
        hold(self, checks.integer, "batch_size", minimum=1)
        if self.max_length is not None:
            hold(self, checks.integer, "max_length", minimum=2)

    @classmethod
    def load(cls, name_or_path: str, *, batch_size: int = 16) -> RewardModel:
        """Return the model stored in a folder or on the hub, in its own type. Raises InvalidArgument."""
        import torch

        from rpo.llm.models import load_tokenizer
        from rpo.llm.training.reward_model import load_reward_model

        model = load_reward_model(name_or_path)
        if torch.cuda.is_available():
            model.to("cuda")
        return cls(model, load_tokenizer(name_or_path), name=f"model:{name_or_path}", batch_size=batch_size)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one reward per response, (N,)."""
        from rpo.llm.training.reward_model import score

        return score(
            self.model,
            self.tokenizer,
            prompts,
            responses,
            batch_size=self.batch_size,
            max_length=self.max_length,
            progress=False,
        )


@dataclass(frozen=True)
class Function:
    """A function of one's own, `(prompts, responses) -> (N,)`."""

    function: Callable[[Sequence[Prompt], Sequence[str]], Any]
    name: str = field(default="function")

    def __post_init__(self) -> None:
        checks.instance("function", self.function, Callable)  # type: ignore[arg-type]
        checks.instance("name", self.name, str)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Array:
        """Return one score per response, (N,). Raises InvalidArgument for another shape or a number not finite."""
        return checks.finite(self.name, self.function(prompts, responses), shape=(len(_texts(responses)),))


SCORERS: dict[str, Callable[[], Scorer]] = {"sentiment": Sentiment, "length": Length, "repetition": Repetition}


def load_scorer(name: str) -> Scorer:
    """Return the scorer called `name`: one of `SCORERS`, "model:folder-or-hub-name", or "package.module:function".

    Raises InvalidArgument, MissingDependency.
    """
    if checks.instance("scorer", name, str) in SCORERS:
        return SCORERS[name]()
    home, _, attribute = name.partition(":")
    if home == "model" and attribute:
        return RewardModel.load(attribute)
    if attribute:
        return Function(checks.imported("scorer", name), name=name)
    raise InvalidArgument(
        "scorer",
        expected=f"one of {', '.join(SCORERS)}, model:FOLDER, or package.module:function",
        got=name,
        remedy="Check the spelling.",
    )


def _texts(responses: Any) -> list[str]:
    return checks.instances("responses", responses, str)


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _repeated(words: Sequence[str], n: int) -> float:
    grams = list(zip(*(words[k:] for k in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
