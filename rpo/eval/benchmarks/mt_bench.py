"""MT-Bench: two-turn questions answered as FastChat's judge wants them, and its scores read back.

Formats and temperatures are FastChat's (fastchat/llm_judge, Zheng et al. 2023). Questions are not shipped: they are
its data/mt_bench/question.jsonl. Judging is FastChat's own; it asks GPT-4, so it needs OPENAI_API_KEY and costs money.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.benchmarks.files import read_lines, require
from rpo.eval.benchmarks.results import BenchmarkResult, mean_and_error, numbers

BENCHMARK = "MT-Bench"
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7  # FastChat's for a category it does not know
FAILED = -1  # FastChat's score where the judge's answer held none


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question: what the user says, turn by turn."""

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """Sampling temperature of its category."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


def read_questions(path: str | Path) -> list[Question]:
    """Return the questions of a question.jsonl, by id. Raises InvalidArgument."""
    rows, torn = read_lines("questions", path)
    if torn:
        raise InvalidArgument(
            "questions", expected="a whole JSONL file", got=f"{path}, cut short", remedy="Fetch it again."
        )
    questions: dict[int, Question] = {}
    for number, row in enumerate(rows, start=1):
        where = f"line {number} of {path}"
        require("questions", row, ("question_id", "category", "turns"), where)
        turns = row["turns"]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise InvalidArgument(
                "questions", expected="turns: a list of texts", got=f"{str(turns)[:60]} in {where}", remedy="Mend it."
            )
        key = checks.integer("question_id", row["question_id"], minimum=0)
        if key in questions:
            raise InvalidArgument(
                "questions", expected="different ids", got=f"{key} again in {where}", remedy="Give it another."
            )
        questions[key] = Question(question_id=key, category=str(row["category"]), turns=tuple(turns))
    return [questions[key] for key in sorted(questions)]


def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    model_id: str,
    num_choices: int = 1,
    max_new_tokens: int = 1024,
    top_p: float = 1.0,
    top_k: int = 50,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Return one row of FastChat's model_answer JSONL a question, in the order of `questions`.

    Each turn sees the turns before it and the model's own answers to them, through the tokenizer's chat template
    (FastChat has templates of its own, some with a system message). Temperature follows the category. top_k: 50
    is what FastChat's answers have by the default of transformers 4; 0 is none. num_choices: conversations per
    question; the judge reads the first. seed: a child for each turn and temperature. Beside FastChat's fields a row
    has "finish_reasons" in its choices ("stop", or "length" where cut) and "generate_params". Raises InvalidArgument.
    """
    import torch
    from transformers import PreTrainedTokenizerBase

    from rpo.llm.sampling import generate

    choices = checks.integer("num_choices", num_choices, minimum=1)
    checks.instance("model", model, torch.nn.Module)
    checks.instance("tokenizer", tokenizer, PreTrainedTokenizerBase)
    checks.instance("model_id", model_id, str)
    if not checks.instances("questions", questions, Question):
        raise InvalidArgument("questions", expected="at least one", got="none", remedy="Look at the file.")
    _check_lengths(model, tokenizer, questions, checks.integer("max_new_tokens", max_new_tokens, minimum=1))
    asked = [question for question in questions for _ in range(choices)]
    conversations: list[list[dict[str, str]]] = [[] for _ in asked]
    reasons: list[list[str]] = [[] for _ in asked]
    temperatures = sorted({question.temperature for question in questions})
    turns = max(len(question.turns) for question in questions)
    root = np.random.SeedSequence(checks.integer("seed", seed, minimum=0))
    children = iter(root.spawn(turns * len(temperatures)))
    for turn in range(turns):
        for temperature in temperatures:
            child = int(next(children).generate_state(1)[0])
            places = [k for k, q in enumerate(asked) if q.temperature == temperature and turn < len(q.turns)]
            if not places:
                continue
            for k in places:
                conversations[k].append({"role": "user", "content": asked[k].turns[turn]})
            samples = generate(
                model,
                tokenizer,
                [conversations[k] for k in places],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                batch_size=batch_size,
                seed=child,
                progress=progress,
            )
            for k, (sample,) in zip(places, samples, strict=True):
                conversations[k].append({"role": "assistant", "content": sample.text.strip()})
                reasons[k].append(sample.finish_reason)
    parameters = {"max_new_tokens": max_new_tokens, "top_p": top_p, "top_k": top_k, "seed": seed}
    rows = []
    for place, question in enumerate(questions):
        own = range(place * choices, (place + 1) * choices)
        answers = [
            {
                "index": index,
                "turns": [message["content"] for message in conversations[k] if message["role"] == "assistant"],
                "finish_reasons": reasons[k],
            }
            for index, k in enumerate(own)
        ]
        rows.append(
            {
                "question_id": question.question_id,
                "answer_id": _answer_id(model_id, question.question_id, answers),
                "model_id": model_id,
                "choices": answers,
                "tstamp": time.time(),
                "generate_params": {**parameters, "temperature": question.temperature},
            }
        )
    return rows


def count_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many questions and answers there are, and how many of these are truncated or empty."""
    for row in checks.listed("rows", rows):
        require("rows", row, ("choices",), "a row")
    choices = [choice for row in rows for choice in row["choices"]]
    return {
        "questions": len(rows),
        "answers": sum(len(choice["turns"]) for choice in choices),
        "truncated": sum(choice["finish_reasons"].count("length") for choice in choices),
        "empty": sum(not text for choice in choices for text in choice["turns"]),
    }


def commands(
    answers: str | Path, *, model_id: str, fastchat: str | Path, judge: str = "gpt-4", parallel: int = 2
) -> list[list[str]]:
    """Return the commands of the judging step, to be run from `fastchat`/fastchat/llm_judge.

    answers: the model's JSONL; copied to data/mt_bench/model_answer first unless it lies there. fastchat: a checkout
    of FastChat installed with its extra llm_judge.
    """
    for name, text in (("model_id", model_id), ("judge", judge)):
        checks.instance(name, text, str)
    home = checks.path("fastchat", fastchat) / "fastchat" / "llm_judge"
    place = home / "data" / "mt_bench" / "model_answer" / f"{model_id}.jsonl"
    source = checks.path("answers", answers).absolute()
    copy = [] if source == place.absolute() else [["cp", str(source), str(place.absolute())]]
    judging = ["python", "gen_judgment.py", "--model-list", model_id, "--judge-model", judge]
    return [*copy, ["cd", str(home)], [*judging, "--parallel", str(checks.integer("parallel", parallel, minimum=1))]]


def read_judgments(path: str | Path, models: Collection[str] | None = None) -> list[BenchmarkResult]:
    """Return "turn_1", "turn_2" ... and "score" (all turns) of each model and judge, points of ten.

    path: model_judgment/*_single.jsonl. Scores of -1 (the judge gave none), and what is no number from 0 to 10, are
    counted as missing, and in no mean; of a question judged again, the last judgment counts. "score" is the mean
    over judgments, as FastChat's show_result; its standard error takes the turns of a question together. Rows
    without a question or turn that could be read are left out, and named under settings. Raises InvalidArgument.
    """
    rows, torn = read_lines("judgments", path)
    models = None if models is None else checks.instances("models", models, str)
    groups: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    given: dict[tuple[str, str], int] = {}
    bad: dict[tuple[str, str], list[str]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"line {number} of {path}"
        require("judgments", row, ("question_id", "model", "judge", "score", "turn"), where)
        if models is not None and str(row["model"]) not in models:
            continue
        judge = row["judge"][0] if isinstance(row["judge"], list) and row["judge"] else row["judge"]
        group = (str(row["model"]), str(judge))
        scores = groups.setdefault(group, {})
        try:
            turn = checks.integer("turn", row["turn"], minimum=1)
            question = checks.integer("question_id", row["question_id"], minimum=0)
        except InvalidArgument as error:
            bad.setdefault(group, []).append(f"{error.name} in line {number}: {error.got[:40]}")
            continue
        score = numbers({"": row["score"]})[0][""]
        if score is None or not (score == FAILED or 0 <= score <= 10):
            bad.setdefault(group, []).append(f"score in line {number}: {str(row['score'])[:40]!r}")
            score = FAILED
        scores[question, turn] = score
        given[group] = given.get(group, 0) + 1
    found = []
    for group, scores in groups.items():
        settings = {"judge": group[1], "repeated": given.get(group, 0) - len(scores), "torn_lines": torn}
        subsets = {"score": scores}
        for turn in sorted({turn for _, turn in scores}):
            subsets[f"turn_{turn}"] = {key: score for key, score in scores.items() if key[1] == turn}
        for metric, subset in subsets.items():
            more = {"unreadable": bad[group]} if metric == "score" and group in bad else {}
            found.append(_result(group[0], metric, subset, str(path), settings | more))
    return found


def _result(
    model: str, metric: str, scores: Mapping[tuple[int, int], float], source: str, settings: dict[str, Any]
) -> BenchmarkResult:
    valid = {key: score for key, score in scores.items() if score != FAILED}
    if not valid:
        raise InvalidArgument(
            "judgments",
            expected="at least one score",
            got=f"{len(scores)} failed ones ({metric} of {model} in {source})",
            remedy="Judge again: every answer of the judge was without a rating.",
        )
    value, error = _clustered_mean(valid)
    return BenchmarkResult(
        model=model,
        benchmark=BENCHMARK,
        metric=metric,
        value=value,
        standard_error=error,
        n=len(valid),
        missing=len(scores) - len(valid),
        source=source,
        settings=settings,
    )


def _clustered_mean(scores: Mapping[tuple[int, int], float]) -> tuple[float, float | None]:
    """Return the mean over judgments and its standard error, with questions as the independent units.

    With c_q judgments of question q, of sum s_q: the error of the ratio of the means of s and c.
    """
    sums: dict[int, list[float]] = {}
    for (question, _), score in scores.items():
        sums.setdefault(question, []).append(score)
    mean = math.fsum(scores.values()) / len(scores)
    _, error = mean_and_error([math.fsum(of) - mean * len(of) for of in sums.values()])
    return mean, None if error is None else error * len(sums) / len(scores)


def _check_lengths(model: Any, tokenizer: Any, questions: Sequence[Question], max_new_tokens: int) -> None:
    """Refuse, before anything is generated, a conversation that could outgrow the model's positions at its end."""
    from rpo.llm.sampling import prompt_token_ids

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    for question in questions:
        said = [{"role": "user", "content": turn} for turn in question.turns]
        between = [{"role": "assistant", "content": ""} for _ in said[1:]]
        messages = [message for pair in zip(said, [*between, None], strict=True) for message in pair if message]
        most = len(prompt_token_ids(tokenizer, messages)) + len(said) * max_new_tokens
        if most > limit:
            raise InvalidArgument(
                "max_new_tokens",
                expected=f"conversations of at most {limit} tokens, the model's positions",
                got=f"up to {most} in question {question.question_id}",
                remedy="Lower max_new_tokens.",
            )


def _answer_id(model_id: str, question_id: int, answers: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(repr((model_id, question_id, answers)).encode()).hexdigest()[:22]
