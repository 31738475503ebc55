"""The same as test_border.py, for the public functions of eval and of llm.data: a wrong argument, one typed refusal."""

import json
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_for_tests import tiny_model, tiny_tokenizer
from wrong_arguments import answered, call

from rpo.core.errors import InvalidArgument
from rpo.core.links import LogRatio, WeighedReference
from rpo.eval import judges, judging, matchups, matrix, planning, ranking, scorers, win_rates
from rpo.eval.benchmarks import alpaca_eval, lm_eval, mt_bench, reading, results
from rpo.eval.gold import measure, prompts, report, study
from rpo.eval.gold.settings import GoldStudy
from rpo.eval.judges.endpoint import Endpoint
from rpo.eval.judges.loading import load
from rpo.eval.judges.recorded import Recorded
from rpo.eval.judges.scored import Scored
from rpo.eval.pacing import Calls
from rpo.eval.spending import Prices
from rpo.eval.verdicts import VerdictStore
from rpo.llm import RPOConfig, data

FOLDER = tempfile.TemporaryDirectory()
HOME = Path(FOLDER.name)


def file(name: str, *rows: Any) -> Path:
    path = HOME / name
    whole = json.dumps(rows if name.endswith("s.json") else rows[0])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if name.endswith(".jsonl") else whole)
    return path


LENGTH = scorers.Length()
TEXTS = {"prompts": ["p"], "responses": ["a b"]}
PAIRS = [planning.Pair(f"p{k}", "a", "b", "x" * (k % 3 + 1), "y" * (k % 2 + 1)) for k in range(6)]
RESULTS = np.array([1.0, 0.0, 0.5, 1.0, 0.0, 1.0])
SIX = list("uvwxyz")
FOUND = win_rates.compare_models(PAIRS, RESULTS, resamples=20, rng=0)
MADE = [matchups.Responses(name, {"p": "p"}, {"p": ["x"]}, {"p": [False]}) for name in "ab"]
RECORDED = file("recorded.jsonl", {"prompt": "p", "first": "x", "second": "y", "verdict": "tie"})
ANSWERS = [{"choices": [{"turns": ["x"], "finish_reasons": ["stop"]}]}]
GENERATED = file("generated.jsonl", {"prompt": "p", "responses": ["x"], "finish_reasons": ["stop"], "model": "m"})
EVALUATION = file("instructions.json", {"instruction": "p"})
ANNOTATED = file("annotations.json", {"generator_1": "g", "generator_2": "m", "preference": 1.5})
QUESTIONS = file("questions.jsonl", {"question_id": 1, "category": "math", "turns": ["w1"]})
JUDGED = file("m_single.jsonl", {"question_id": 1, "model": "m", "judge": "j", "score": 5, "turn": 1})
LEADERBOARD = HOME / "leaderboard.csv"
LEADERBOARD.write_text("model_name,win_rate,standard_error,n_total\nm,50,1,9\n")
HARNESS = {"results": {"t": {"acc,none": 0.5}}, "versions": {}, "n-shot": {}, "config": {}, "model_name": "m"}
HARNESS_FILE = file("results_1.json", HARNESS)
ROW = results.BenchmarkResult(model="m", benchmark="b", metric="acc", value=0.5, standard_error=0.1, n=9)
MODEL, TOKENIZER = tiny_model("llama"), tiny_tokenizer()
SAMPLED = measure.Sampled([["a", "b"]], [[(1,), (2,)]], np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
PREFERENCES = [{"prompt": "w1", "chosen": " w2", "rejected": " w3"}]
SCORES = [{"prompt": "w1", "responses": [" w2", " w3"], "scores": [1.0, 0.0]}]
PREPARED = data.prepare_pairs(PREFERENCES, TOKENIZER, progress=False)
RATED = [
    {"instruction": "p", "completions": [{"response": "a", "annotations": {"x": {"Rating": "1"}}, "overall_score": 1}]}
]
COLUMNS = [{**row, "other": " w4", "weight": 1.0} for row in PREFERENCES]


def judged(**arguments: Any) -> Any:
    with VerdictStore(HOME / "absent" / "verdicts.jsonl") as store:
        return judging.judge_pairs(**{"store": store, "progress": False} | arguments)


CALLS = {
    "Length()": call(LENGTH, "responses", **TEXTS),
    "Repetition": call(scorers.Repetition, "n", "name", n=2, name="repetition"),
    "Repetition()": call(scorers.Repetition(), "responses", **TEXTS),
    "Weighted": call(scorers.Weighted, "parts", parts={LENGTH: 1.0}),
    "Weighted()": call(scorers.Weighted({LENGTH: 1.0}), "responses", **TEXTS),
    "Ensemble": call(
        scorers.Ensemble, "members", "how", "penalty", members=[LENGTH], how="mean", penalty=0.5, centred=False,
    ),
    "Ensemble()": call(scorers.Ensemble([LENGTH], centred=False), "responses", **TEXTS),
    "RewardModel": call(
        scorers.RewardModel, "model", "tokenizer", "name", "batch_size", model=MODEL, tokenizer=TOKENIZER, name="m",
        batch_size=1, max_length=9,
    ),
    "Function": call(scorers.Function, "function", "name", function=LENGTH, name="f"),
    "Function()": call(scorers.Function(LENGTH), "responses", **TEXTS),
    "load_scorer": call(scorers.load_scorer, "name", name="length"),
    "load": call(load, "judge", judge="scorer:length"),
    "Endpoint": call(
        Endpoint, "model", "base_url", "api_key_env", "timeout", model="m", base_url="http://localhost:1/v1",
        api_key_env="KEY", temperature=0.5, max_tokens=9, timeout=1.0, options={"seed": 1},
    ),
    "Recorded": call(Recorded, "path", path=RECORDED),
    "Scored": call(Scored, "scorer", "margin", "at_once", scorer=LENGTH, margin=0.5, at_once=9),
    "Recorded()": call(Recorded(RECORDED), "questions", questions=[judges.Question("p", "x", "y")]),
    "Scored()": call(Scored(LENGTH), "questions", questions=[judges.Question("p", "x", "y")]),
    "VerdictStore": call(VerdictStore, "path", path=HOME / "none.jsonl"),
    "Pair": call(
        planning.Pair, "prompt", "model_a", "model_b", "response_a", "response_b", prompt=[{"content": "p"}],
        model_a="a", model_b="b", response_a="x", response_b="y",
    ),
    "judge_pairs": call(
        judged, "pairs", "judge", pairs=PAIRS, judge=Scored(LENGTH), calls=Calls(),
        prices=Prices(input=1.0, output=1.0), max_cost=1.0,
    ),
    "judge_pairs in": call(judged, "store", pairs=PAIRS, judge=Scored(LENGTH), store=VerdictStore(HOME / "v.jsonl")),
    "plan_questions": call(
        planning.plan_questions, "pairs", "judge", "store", pairs=PAIRS, judge=Scored(LENGTH),
        store=VerdictStore(HOME / "w.jsonl"),
    ),
    "Calls": call(
        Calls, "concurrency", "attempts", "first_wait", "max_wait", "give_up_after", "seed", concurrency=1,
        per_minute=9.0, attempts=2, first_wait=1.0, max_wait=2.0, give_up_after=3, seed=0,
    ),
    "Prices": call(Prices, input=1.0, output=1.0),
    "win_rate": call(
        win_rates.win_rate, "results", "level", "resamples", "rng", results=RESULTS, prompts=SIX, level=0.9,
        resamples=20, rng=0,
    ),
    "wilson": call(win_rates.wilson, "rate", "n", "level", rate=0.5, n=9, level=0.9),
    "length_controlled_win_rate": call(
        win_rates.length_controlled_win_rate, "results", "differences", "level", results=RESULTS,
        differences=np.array([1.0, 2.0, -1.0, -2.0, 3.0, 0.0]), prompts=SIX, level=0.9,
    ),
    "compare_models": call(
        win_rates.compare_models, "pairs", "results", "level", "resamples", "rng", pairs=PAIRS, results=RESULTS,
        level=0.9, resamples=20, rng=0,
    ),
    "bradley_terry": call(
        ranking.bradley_terry, "first", "second", "results", "level", first=list("abc"), second=list("bca"),
        results=np.array([1.0, 0.5, 1.0]), prompts=list("xyz"), level=0.9,
    ),
    **{
        function.__name__: call(function, "comparisons", comparisons=FOUND)
        for function in (matrix.to_markdown, matrix.to_text, matrix.to_csv)
    },
    "sentence": call(matrix.sentence, "comparison", comparison=FOUND[0]),
    "ranking_text": call(
        matrix.ranking_text, "ranking", ranking=ranking.bradley_terry(["a", "b"], ["b", "a"], [1.0, 1.0])
    ),
    "read_responses": call(matchups.read_responses, "paths", paths=[GENERATED]),
    "draw_pairs": call(
        matchups.draw_pairs, "models", "prompts", "samples", "seed", models=MADE, prompts=1, samples=1, seed=0
    ),
    "prompt_rows": call(alpaca_eval.prompt_rows, "instructions", instructions=EVALUATION),
    "model_outputs": call(
        alpaca_eval.model_outputs, "generations", "sample", generations=GENERATED, model="m", generator="g",
        instructions=EVALUATION, sample=0,
    ),
    "command": call(
        alpaca_eval.command, "outputs", "output", outputs=GENERATED, output=HOME, reference_outputs=EVALUATION
    ),
    "read_leaderboard": call(alpaca_eval.read_leaderboard, "path", path=LEADERBOARD, models=["m"]),
    "read_annotations": call(alpaca_eval.read_annotations, "path", path=ANNOTATED),
    "arguments": call(
        lm_eval.arguments, "model", "tasks", "output", "batch_size", "dtype", "seed", model="m", tasks=["gsm8k"],
        output=HOME, num_fewshot=1, include_path=HOME, batch_size=1, dtype="auto", device="cpu", limit=1, seed=0,
    ),
    "lm_eval.read_results": call(lm_eval.read_results, "path", path=HARNESS_FILE, models=["m"]),
    "read_results": call(reading.read_results, "sources", sources=[HARNESS_FILE], models=["m"]),
    "to_frame": call(results.to_frame, "results", results=[ROW]),
    "results.to_markdown": call(results.to_markdown, "results", results=[ROW]),
    "save": call(
        lambda **arguments: results.save(overwrite=True, **arguments), "results", "directory", "resolved",
        results=[ROW], directory=HOME / "saved", resolved="a: 1",
    ),
    "read_questions": call(mt_bench.read_questions, "path", path=QUESTIONS),
    "generate_answers": call(
        mt_bench.generate_answers, "model", "tokenizer", "questions", "model_id", "num_choices", "max_new_tokens",
        "top_p", "top_k", "batch_size", "seed", model=MODEL, tokenizer=TOKENIZER,
        questions=mt_bench.read_questions(QUESTIONS), model_id="m", num_choices=1, max_new_tokens=1, top_p=1.0, top_k=5,
        batch_size=1, seed=0,
    ),
    "count_answers": call(mt_bench.count_answers, "rows", rows=ANSWERS),
    "commands": call(
        mt_bench.commands, "answers", "model_id", "fastchat", "judge", "parallel", answers=GENERATED, model_id="m",
        fastchat=HOME, judge="j", parallel=1,
    ),
    "read_judgments": call(mt_bench.read_judgments, "path", path=JUDGED, models=["m"]),
    "GoldStudy": call(
        GoldStudy, "model", "gold", "train_prompts", "coverage", "label_temperature", "noise", "beta", "etas",
        "learning_rate", "seeds", model="m", gold={"length": 1.0}, prompts="p.txt", train_prompts=1, coverage=0.5,
        label_temperature=1.0, noise=0.5, beta=0.5, etas=[0.5], learning_rate=0.1, seeds=(0, 1),
    ),
    "split_prompts": call(
        prompts.split_prompts, "prompts", "train", "evaluation", "seed", prompts=list("abc"), train=1, evaluation=2,
        seed=0,
    ),
    "read_prompts": call(prompts.read_prompts, "path", path=GENERATED),
    "best_of_n": call(measure.best_of_n, "samples", "n", samples=SAMPLED, n=1),
    "load_preferences": call(
        data.load_preferences, "source", "split", source=PREFERENCES, split="train", name="n", revision="r"
    ),
    "prepare_pairs": call(
        lambda **arguments: data.prepare_pairs(progress=False, **arguments), "rows", "tokenizer", "truncation_mode",
        "on_refused", rows=COLUMNS, tokenizer=TOKENIZER, max_length=9, max_prompt_length=3, truncation_mode="drop",
        on_refused="error", base_column="other", weight_column="weight", chat_template="{{ messages }}",
    ),
    "stream_pairs": call(
        lambda **arguments: list(data.stream_pairs(**arguments)), "rows", "tokenizer", "on_refused", rows=COLUMNS,
        tokenizer=TOKENIZER, max_length=9, on_refused="error", base_column="other", weight_column="weight",
    ),
    "check_pairs": call(data.check_pairs, "prepared", "samples", prepared=PREPARED, tokenizer=TOKENIZER, samples=1),
    "binarize": call(
        lambda **arguments: list(data.binarize(**arguments)), "rows", "strategy", "rng", "on_refused", rows=SCORES,
        strategy="best_vs_random", rng=0, on_refused="error",
    ),
    "ultrafeedback": call(
        lambda **arguments: list(data.ultrafeedback(**arguments)), "rows", "score", "on_refused", rows=RATED,
        score="aspects", on_refused="error",
    ),
    "singles": call(
        lambda **arguments: list(data.singles(**arguments)), "rows", "on_refused", rows=SCORES, on_refused="error"
    ),
    "agreed": call(
        lambda **arguments: list(data.agreed(**arguments)), "rows", "second", "on_refused",
        rows=[SCORES[0] | {"b": [1.0, 0.0]}], second="b", on_refused="error",
    ),
    "agreement": call(data.agreement, "first", "second", first=[2.0, 1.0], second=[2.0, 1.0]),
    "reward_augmented": call(
        lambda **arguments: list(data.reward_augmented(**arguments)), "rows", "where", "text", "on_refused",
        rows=[PREFERENCES[0] | {"score_chosen": 2, "score_rejected": 1}], where="prompt", text="{goal}",
        on_refused="error",
    ),
    "best_by_direction": call(
        lambda **arguments: list(data.best_by_direction(**arguments)), "rows", "directions", "rng", "where", "text",
        "on_refused", rows=[SCORES[0] | {"aspects": {"x": [1, 2]}}], directions=[{"x": 1.0}], rng=0, where="prompt",
        text="{direction}", on_refused="error",
    ),
    "controlled": call(
        lambda **arguments: list(data.controlled(**arguments)), "rows", "where", "on_refused", rows=PREFERENCES,
        good="g", bad="b", where="prompt", on_refused="error",
    ),
    "with_condition": call(data.with_condition, "prompt", "where", prompt="p", condition="c", where="system"),
    "mix": call(
        lambda **arguments: list(data.mix(**arguments)), "sources", "rng", "strategy", "split",
        sources=[(PREFERENCES, 1.0)], rng=0, strategy="all_exhausted", split="train",
    ),
}  # fmt: skip

# For these a text, a callable or another number is as good as what the call has.
FREE = """model_a model_b response_a response_b prompt model_id judge resolved directory output dtype device outputs
reference_outputs fastchat answers prompts generator revision"""
ANY_TEXT: dict[str, Any] = dict.fromkeys(FREE.split(), (str,))
NOT_READ = {"prompts": (object,)}
OPEN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("Length()", "Repetition()", "Weighted()", "Ensemble()", "Function()"), NOT_READ),
    "Repetition": {"name": (str,)},
    "RewardModel": {"name": (str,)},
    "Function": {"function": (Callable,), "name": (str,)},
    "Endpoint": {"model": (str,), "options": (dict,)},
    "VerdictStore": {"path": (str,)},
    "arguments": {"model": (str,)},
    "GoldStudy": {"model": (str,)},
    "load_preferences": {"source": (list,), "split": (str,), "name": (str,)},  # rows are judged when they are read
    "prepare_pairs": {"chat_template": (str,)},
    "mix": {"split": (str,)},
    "controlled": {"good": (str,), "bad": (str,)},
    "with_condition": {"condition": (str,), "prompt": (str,)},
    "agreed": {},
    "Ensemble": {"centred": (bool,)},
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_refused_by_a_typed_error(name: str) -> None:
    found = answered(CALLS[name], ANY_TEXT | OPEN.get(name, {}))
    assert not found, f"{name}\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "given", "names"),
    [
        (Prices, {}, ["input", "output"]),
        (Calls, {}, ["concurrency", "per_minute", "attempts", "first_wait", "max_wait", "give_up_after", "seed"]),
        (Scored, {"scorer": LENGTH}, ["margin", "at_once"]),
        (scorers.Repetition, {}, ["n"]),
        (GoldStudy, {"model": "m"}, ["train_prompts", "label_temperature", "beta", "learning_rate", "coverage"]),
        (
            RPOConfig,
            {"output_dir": "nowhere"},
            ["max_tokens_per_batch", "learning_rate", "weight_decay", "seed", "max_steps"],
        ),
        (RPOConfig, {"output_dir": "nowhere", "use_cpu": True}, ["kl_prompts", "num_train_epochs"]),
        (LogRatio, {}, ["beta"]),
        (WeighedReference, {"beta": 1.0, "weight": 1.0}, ["beta", "weight"]),
    ],
)
def test_a_number_that_is_taken_is_kept_as_pythons_own(kind: Any, given: dict[str, Any], names: list[str]) -> None:
    """A Decimal, as of money, would fail at the first product with a float, in the middle of the work."""
    for name in names:
        made = kind(**{**given, name: Decimal(1)})
        assert getattr(made, name) == 1 and type(getattr(made, name)) in (int, float), name


@pytest.mark.parametrize(
    ("function", "arguments", "wrong"),
    [
        (lm_eval.run, {"options": [], "output": "nowhere"}, {"options": "text", "output": 5}),
        (study.run_study, {"output": "nowhere"}, {"study": GoldStudy}),
        (report.read_study, {"folder": "nowhere"}, {"study": {}}),
        (report.write_gold_report, {"output": "nowhere"}, {"result": None}),
        (report.gold_against_kl, {}, {"result": None}),
        (report.by_step, {}, {"result": {}}),
    ],
)
def test_long_calls_refuse_before_they_start(
    function: Callable[..., Any], arguments: dict[str, Any], wrong: dict[str, Any]
) -> None:
    for name, item in wrong.items():
        with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
            function(**{**arguments, name: item})
