"""What judging will ask: pairs of responses as questions in both orders, identical ones once, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.judges import Judge, Question
from rpo.eval.scorers import Prompt
from rpo.eval.spending import ROUNDING, Prices, Spent
from rpo.eval.verdicts import VerdictStore, question_key


@dataclass(frozen=True, slots=True)
class Pair:
    """Responses of two models to one prompt."""

    prompt: Prompt
    model_a: str
    model_b: str
    response_a: str
    response_b: str

    def __post_init__(self) -> None:
        for name in ("model_a", "model_b", "response_a", "response_b"):
            checks.instance(name, getattr(self, name), str)
        if not isinstance(self.prompt, str):
            checks.instances("prompt", self.prompt, Mapping)  # type: ignore[type-abstract]

    def questions(self, swap: bool) -> tuple[Question, ...]:
        """Return the pair in the order (a, b), and in the other if `swap`."""
        shown = Question(self.prompt, self.response_a, self.response_b)
        return (shown, Question(self.prompt, self.response_b, self.response_a)) if swap else (shown,)


@dataclass(frozen=True)
class Plan:
    """What a run will ask: distinct questions without a stored verdict, by key, and their tokens.

    keys: of each pair's one or two questions. stored: how many distinct questions have their verdict.
    Retries are not in the tokens; output_tokens is the most that the replies may have. spent: on these questions
    by earlier runs.
    """

    keys: tuple[tuple[str, ...], ...]
    questions: dict[str, Question]
    stored: int
    input_tokens: int
    output_tokens: int
    spent: Spent

    def sentence(self, prices: Prices | None = None) -> str:
        """Return the plan in words."""
        cost = (prices or Prices()).cost(self.input_tokens, self.output_tokens)
        price = "unknown (no price given)" if cost is None else f"up to about {cost:.2f}"
        before = f". Earlier runs took {self.spent.sentence()}" if self.spent != Spent() else ""
        return (
            f"{len(self.keys)} pairs, {self.stored + len(self.questions)} distinct questions: {self.stored} have a "
            f"verdict, {len(self.questions)} to ask. About {self.input_tokens:,} tokens in, at most "
            f"{self.output_tokens:,} out, without retries; cost: {price}{before}"
        )


def plan_questions(pairs: Sequence[Pair], judge: Judge, store: VerdictStore, *, swap: bool = True) -> Plan:
    """Return what judging these pairs takes; identical questions are one."""
    identity = checks.instance("judge", judge, Judge).identity  # type: ignore[type-abstract]
    checks.instance("store", store, VerdictStore)
    by_key: dict[str, Question] = {}
    keys = []
    for pair in checks.instances("pairs", pairs, Pair):
        asked = {question_key(question, identity): question for question in pair.questions(swap)}
        # Two equal responses make one question, whose verdict stands for both orders.
        keys.append(tuple(asked) if len(asked) > 1 or not swap else tuple(asked) * 2)
        by_key |= asked
    left = {key: question for key, question in by_key.items() if store.get(key) is None}
    spent = Spent()
    for key, question in by_key.items():
        for usage in store.usages(key):
            spent.add(usage, judge.tokens(question))
    tokens = np.array([judge.tokens(question) for question in left.values()]).reshape(-1, 2).sum(axis=0)
    return Plan(tuple(keys), left, len(by_key) - len(left), int(tokens[0]), int(tokens[1]), spent)


def check_cost(plan: Plan, prices: Prices, max_cost: float | None) -> None:
    """Refuse a plan that costs more than `max_cost` with what was spent, or an unknown sum. Raises InvalidArgument."""
    if max_cost is None:
        return
    checks.instance("prices", prices, Prices)
    limit = checks.nonnegative("max_cost", max_cost)
    cost, spent = prices.cost(plan.input_tokens, plan.output_tokens), plan.spent.cost(prices)
    if cost is None or spent is None or (plan.questions and cost + spent > limit * (1 + ROUNDING)):
        before = f", after {spent:.4g} spent by earlier runs" if spent else ""
        raise InvalidArgument(
            "max_cost",
            expected=f"questions that cost at most {limit:g}",
            got="an unknown cost" if cost is None or spent is None else f"up to {cost:.4g}{before}",
            remedy="Give the prices per million tokens."
            if cost is None or spent is None
            else "Judge fewer prompts, or raise it.",
        )
