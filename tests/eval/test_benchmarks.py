"""Benchmarks: files in each tool's format, there and back; scores worked out by hand; what is missing, counted."""

import csv
import importlib.util
import io
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from models_for_tests import EOS, SPECIAL, tiny_model, tiny_tokenizer

from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.eval.benchmarks import alpaca_eval, lm_eval, mt_bench
from rpo.eval.benchmarks.reading import read_results
from rpo.eval.benchmarks.results import COLUMNS, BenchmarkResult, save, to_frame, to_markdown, unreadable
from rpo.llm.logps.logprobs import response_logps
from rpo.llm.sampling import generate


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_lines(path: Path, rows: list[dict[str, Any]], end: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def row(prompt: Any, *responses: str, reason: str = "stop", **more: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": list(responses), "finish_reasons": [reason] * len(responses), **more}


def by_metric(results: list[BenchmarkResult]) -> dict[str, BenchmarkResult]:
    assert len({result.metric for result in results}) == len(results)
    return {result.metric: result for result in results}


# AlpacaEval


@pytest.fixture
def evaluation_set(tmp_path: Path) -> Path:
    rows = [{"instruction": text, "output": "-", "generator": "baseline", "dataset": f"d{text}"} for text in "abc"]
    return write_json(tmp_path / "alpaca_eval.json", rows)


def chat(text: str, system: bool = False) -> list[dict[str, str]]:
    first = [{"role": "system", "content": "be brief"}] if system else []
    return [*first, {"role": "user", "content": text}]


def test_outputs_keep_the_order_and_the_data_sets_of_the_evaluation_set(tmp_path: Path, evaluation_set: Path) -> None:
    """Generated in another order, as text and as messages; one was cut, one is empty, one was not asked for."""
    assert alpaca_eval.prompt_rows(evaluation_set) == [{"prompt": text} for text in "abc"]
    rows = [row("c", "C", "C2", reason="length"), row(chat("a"), "A"), row("z", "Z"), row(chat("b", system=True), " ")]
    generations = write_lines(tmp_path / "tuned.jsonl", rows)
    outputs, export = alpaca_eval.model_outputs(generations, instructions=evaluation_set)
    assert outputs == [
        {"instruction": text, "output": output, "generator": "tuned", "dataset": f"d{text}"}
        for text, output in zip("abc", ["A", " ", "C"], strict=True)
    ]
    assert export.message == "3 outputs of tuned, 1 truncated, 1 empty, 1 unasked, 1 unused"
    plain, export = alpaca_eval.model_outputs(generations, generator="ours")
    assert [item["instruction"] for item in plain] == ["c", "a", "z", "b"] and plain[0]["generator"] == "ours"
    assert export.outputs == 4 and export.unasked == 0


def test_an_instruction_without_output_is_refused_by_name(tmp_path: Path, evaluation_set: Path) -> None:
    generations = write_lines(tmp_path / "g.jsonl", [row("a", "A"), row("b ", "B"), row("c", "C")])
    with pytest.raises(InvalidArgument, match="1 without one, the first 'b'"):
        alpaca_eval.model_outputs(generations, instructions=evaluation_set)
    assert alpaca_eval.model_outputs(generations)[1].outputs == 3  # control: nothing is wrong with the rows


@pytest.mark.parametrize("instruction", [None, 5, ["a"], {}, "\ud800"])
def test_instructions_are_texts(tmp_path: Path, instruction: Any) -> None:
    with pytest.raises(InvalidArgument, match="instructions: expected text, got .* for row 1"):
        alpaca_eval.prompt_rows(write_json(tmp_path / "i.json", [{"instruction": "a"}, {"instruction": instruction}]))


def test_the_model_is_named_where_there_are_several(tmp_path: Path) -> None:
    rows = [row("a", "A", model="m1"), row("a", "B", model="m2"), row("a", "again", model="m2")]
    generations = write_lines(tmp_path / "g.jsonl", rows)
    with pytest.raises(InvalidArgument, match="model: expected one of m1, m2, got none"):
        alpaca_eval.model_outputs(generations)
    with pytest.raises(InvalidArgument, match="got m3"):
        alpaca_eval.model_outputs(generations, model="m3")
    outputs, export = alpaca_eval.model_outputs(generations, model="m2")
    assert [(item["output"], item["generator"]) for item in outputs] == [("B", "m2"), ("again", "m2")]
    assert export.repeated == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "A"}], "without responses, finish_reasons"),
        ([row([*chat("a"), {"role": "assistant", "content": "A"}, *chat("b")], "B")], "one user message"),
        ([{"prompt": "a", "responses": ["A", "B"], "finish_reasons": ["stop"]}], "a finish reason for each"),
        ([{"prompt": "a", "responses": "A", "finish_reasons": ["stop"]}], "lists of texts, got a text in row 1"),
        ([{"prompt": "a", "responses": [None], "finish_reasons": ["stop"]}], "text, got None for responses in row 1"),
        ([{"prompt": "a", "responses": {}, "finish_reasons": ["stop"]}], "text, got {} for responses in row 1"),
        ([{"prompt": "a", "responses": ["\ud800"], "finish_reasons": ["stop"]}], "ud800' for responses in row 1"),
        ([row("a", "A") | {"model": ["m"]}], "got \\['m'\\] for model in row 1"),
    ],
)
def test_generations_that_cannot_be_exported_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        alpaca_eval.model_outputs(write_lines(tmp_path / "g.jsonl", rows))


def test_generations_cut_short_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cut short"):
        alpaca_eval.model_outputs(write_lines(tmp_path / "g.jsonl", [row("a", "A")], end='{"prompt": "b", "resp'))
    with pytest.raises(InvalidArgument, match="generations, line 1: expected a JSON object"):
        alpaca_eval.model_outputs(write_lines(tmp_path / "h.jsonl", [], end="no\n" + json.dumps(row("a", "A")) + "\n"))


def annotation(preference: float | None, model: str = "ours", glm: float | None = None) -> dict[str, Any]:
    names = {"generator_1": "gpt4_turbo", "generator_2": model, "annotator": alpaca_eval.ANNOTATOR}
    return {"instruction": "a", "output_1": "x", "output_2": "y", **names, "preference": preference} | (
        {} if glm is None else {"glm_preference": glm}
    )


LEADERBOARD = {
    "ours": {"win_rate": 17.5, "standard_error": 1.25, "n_total": 800, "discrete_win_rate": 16.0, "mode": "community",
             "avg_length": 1900, "length_controlled_winrate": 20.5, "lc_standard_error": 0.5},
    "gpt4": {"win_rate": 23.6, "standard_error": 1.3, "n_total": 805, "discrete_win_rate": 22.0, "mode": "minimal",
             "avg_length": 1365, "length_controlled_winrate": 38.1, "lc_standard_error": ""},
}  # fmt: skip


def leaderboard(folder: Path, rows: dict[str, dict[str, Any]]) -> Path:
    """As pandas writes it: the model in a first column without a name."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "leaderboard.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *next(iter(rows.values()))])
        writer.writeheader()
        writer.writerows({"": name, **columns} for name, columns in rows.items())
    return folder / "leaderboard.csv"


def test_a_leaderboard_is_read_for_the_models_judged(tmp_path: Path) -> None:
    """The published models are in the file too; annotations.json says which one was judged here."""
    path = leaderboard(tmp_path / "run", LEADERBOARD)
    assert {result.model for result in alpaca_eval.read_leaderboard(path)} == {
        "ours",
        "gpt4",
    }  # control: no annotations
    write_json(path.with_name("annotations.json"), [annotation(1.9), annotation(None), annotation(1.0)])
    results = by_metric(read_results([tmp_path]))
    assert {name: (result.value, result.standard_error) for name, result in results.items()} == {
        "win_rate": (17.5, 1.25),
        "length_controlled_winrate": (20.5, 0.5),
        "discrete_win_rate": (16.0, None),
        "avg_length": (1900.0, None),
    }
    one = results["win_rate"]
    assert (one.model, one.n, one.missing, one.settings["baseline"]) == ("ours", 800, 1, "gpt4_turbo")
    assert (results["avg_length"].n, results["avg_length"].missing) == (None, 0)  # of all outputs, judged or not
    assert one.interval == pytest.approx((17.5 - 2.45, 17.5 + 2.45), abs=1e-3)
    other = by_metric(alpaca_eval.read_leaderboard(path, models=["gpt4"]))
    assert other["length_controlled_winrate"].standard_error is None and other["win_rate"].missing == 0


def test_annotations_alone_give_the_win_rate(tmp_path: Path) -> None:
    """Preferences 2, 1, 1.5, 1.8 and none: (100 + 0 + 50 + 80) / 4 = 57.5; squares 5675, error sqrt(5675 / 3 / 4)."""
    rows = [annotation(2), annotation(1), annotation(1.5), annotation(1.8, glm=0.25), annotation(None)]
    path = write_json(tmp_path / "annotations.json", rows)
    results = by_metric(read_results([path]))
    win = results["win_rate"]
    assert (win.value, win.n, win.missing) == (pytest.approx(57.5), 4, 1)
    assert win.standard_error == pytest.approx(math.sqrt(5675 / 12))
    assert results["length_controlled_winrate"].value == 25.0
    assert by_metric(alpaca_eval.read_annotations(write_json(path, [annotation(0), annotation(2)])))[
        "win_rate"
    ].value == pytest.approx(75.0)  # 0 is a draw in older files


def test_a_leaderboard_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = leaderboard(tmp_path, {"ours": {"accuracy": 1.0}})
    with pytest.raises(InvalidArgument, match="without win_rate, standard_error, n_total"):
        read_results([path])
    path = leaderboard(tmp_path, {"ours": {**LEADERBOARD["ours"], "win_rate": "high"}})
    bad = dict.fromkeys(("win_rate", "length_controlled_winrate", "discrete_win_rate", "avg_length"), "high")
    path = leaderboard(tmp_path, {"ours": {**LEADERBOARD["ours"], **bad}})
    with pytest.raises(InvalidArgument, match=r"at least one number.*win_rate: 'high'"):
        read_results([path])


@pytest.mark.parametrize("cell", ["N/A", "nan", "inf", "1e999", "--", "[1]"])
def test_a_bad_cell_of_a_leaderboard_costs_that_cell(tmp_path: Path, cell: str) -> None:
    """Its value, its error, or its count; what stands there is named, the rest of the table is there."""
    path = leaderboard(tmp_path, {**LEADERBOARD, "ours": {**LEADERBOARD["ours"], "win_rate": cell}})
    results = read_results([path])
    (bad,) = [result for result in results if result.value is None]
    assert (bad.model, bad.metric, bad.interval, len(results)) == ("ours", "win_rate", None, 8)
    assert bad.settings["unreadable"] == [f"win_rate: {cell!r}"]
    (line,) = unreadable(results)
    assert line.startswith("1 cells left out, for they are no numbers (win_rate of ours, AlpacaEval")
    save(results, tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "nan" not in text and "None" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    assert [row["value"] for row in rows].count("") == 1
    path = leaderboard(tmp_path, {"ours": {**LEADERBOARD["ours"], "n_total": cell, "standard_error": cell}})
    win = by_metric(read_results([path]))["win_rate"]
    assert (win.value, win.standard_error, win.n) == (17.5, None, None) and len(win.settings["unreadable"]) == 2


@pytest.mark.parametrize("cell", ["N/A", {}, [1], float("nan"), 10**400, True, "two", -7])
def test_a_bad_cell_of_annotations_or_judgments_or_harness_results_costs_that_cell(tmp_path: Path, cell: Any) -> None:
    """Annotations: 2, 1, bad, so 50 of two. MT-Bench: 8, 6, bad. The harness: one metric of three."""
    path = write_json(tmp_path / "annotations.json", [annotation(2), annotation(1), annotation(cell)])
    win = by_metric(read_results([path]))["win_rate"]
    assert (win.value, win.n, win.missing) == (50.0, 2, 1)
    rows = [judgment(1, 1, 8), judgment(1, 2, 6), judgment(2, 1, cell)]
    score = by_metric(read_results([write_lines(tmp_path / "a_single.jsonl", rows)]))["score"]
    assert (score.value, score.n, score.missing, len(score.settings["unreadable"])) == (7.0, 2, 1, 1)
    if cell != -7:  # which is a number
        record = harness_record()
        record["results"]["arc_easy"]["acc,none"] = cell
        record["results"]["gsm8k"]["exact_match_stderr,strict-match"] = cell
        results = read_results([write_json(tmp_path / "results_1.json", record)])
        assert [result.value for result in results] == [0.25, 0.5, None]
        assert results[0].standard_error is None and len(unreadable(results)) == 2 - (cell == "N/A")


def test_rows_and_blocks_of_another_kind_cost_themselves(tmp_path: Path) -> None:
    """A judgment without a turn, models that are numbers; blocks of the harness that are no mappings."""
    rows = [*JUDGED, {**judgment(9, 1, 5), "turn": None}, {**judgment(8, 1, 5), "question_id": "q"}]
    score = by_metric(read_results([write_lines(tmp_path / "a_single.jsonl", rows)]))["score"]
    assert (score.n, len(score.settings["unreadable"])) == (5, 2) and "line 8" in score.settings["unreadable"][0]
    record = harness_record()
    record |= {"groups": [], "n-samples": 7, "config": None, "versions": [1], "n-shot": "x"}
    record["results"]["broken"] = None
    results = read_results([write_json(tmp_path / "results_1.json", record)])
    assert len(results) == 3 and results[0].n is None


def test_names_in_tables_are_words(tmp_path: Path) -> None:
    rows = [judgment(k, 1, 5, model="=cmd|'/C x'!A0<script>[x](javascript:y)\x1b[2J") for k in (1, 2)]
    results = read_results([write_lines(tmp_path / "a_single.jsonl", rows)])
    save(results, tmp_path / "out")
    text = (tmp_path / "out" / "results.md").read_text()
    assert "<script>" not in text and "\\[x\\]" in text and "\x1b" not in text and text.count("cmd\\|") == 2
    line = (tmp_path / "out" / "results.csv").read_text().splitlines()[1]
    assert line.startswith("'=cmd") and "\x1b" not in line


# MT-Bench


def question(number: int, category: str, *turns: str) -> dict[str, Any]:
    return {"question_id": number, "category": category, "turns": list(turns)}


@pytest.fixture
def questions(tmp_path: Path) -> list[mt_bench.Question]:
    rows = [
        question(103, "roleplay", "w1 w2", "w3"),
        question(101, "math", "w4 w5 w6", "w7 w8"),
        question(102, "stem", "w9"),
        question(104, "poetry", "w2 w2", "w1"),
    ]
    return mt_bench.read_questions(write_lines(tmp_path / "question.jsonl", rows))


def greedy(text: str, count: int) -> str:
    """Return the likeliest continuation of a rendered conversation, a whole forward pass a token."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids, first = list(tokenizer(text).input_ids), len(tokenizer(text).input_ids)
    while len(ids) < first + count and ids[-1:] != [EOS]:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return " ".join(word for word in tokenizer.convert_ids_to_tokens(ids[first:]) if word not in SPECIAL)


def test_the_second_turn_sees_the_answer_to_the_first(questions: list[mt_bench.Question]) -> None:
    """At temperature 0 (math), both answers are those of the conversation spelled out by hand."""
    assert [q.question_id for q in questions] == [101, 102, 103, 104]
    rows = mt_bench.generate_answers(
        tiny_model("llama"), tiny_tokenizer(), questions, model_id="tiny", max_new_tokens=6, progress=False
    )
    first = greedy("<|user|> w4 w5 w6 </s> <|assistant|> ", 6)
    asked = "<|user|> w4 w5 w6 </s> <|assistant|> {} </s> <|user|> w7 w8 </s> <|assistant|> "
    second = greedy(asked.format(first), 6)
    choice = rows[0]["choices"][0]
    assert first and second and choice["turns"] == [first, second]
    assert second != greedy(asked.format("w1"), 6)  # control: another first answer brings another second
    assert [len(row["choices"][0]["turns"]) for row in rows] == [2, 1, 2, 2]
    assert [row["model_id"] for row in rows] == ["tiny"] * 4 and len({row["answer_id"] for row in rows}) == 4
    counts = mt_bench.count_answers(rows)
    reasons = [reason for row in rows for choice in row["choices"] for reason in choice["finish_reasons"]]
    assert (counts["questions"], counts["answers"]) == (4, 7) and counts["truncated"] == reasons.count("length") > 0


def test_temperature_follows_the_category(questions: list[mt_bench.Question], monkeypatch: pytest.MonkeyPatch) -> None:
    import rpo.llm.sampling as home

    used: dict[str, set[float]] = {}
    plain = home.generate

    def recording(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        for prompt in prompts:
            used.setdefault(prompt[0]["content"], set()).add(options["temperature"])
        return plain(model, tokenizer, prompts, **options)

    monkeypatch.setattr(home, "generate", recording)
    made = {}
    for seed in (0, 0, 1):
        rows = mt_bench.generate_answers(
            tiny_model("llama"), tiny_tokenizer(), questions, model_id="tiny", max_new_tokens=8, num_choices=2,
            seed=seed, progress=False,
        )  # fmt: skip
        turns = {row["question_id"]: [choice["turns"] for choice in row["choices"]] for row in rows}
        assert made.setdefault(seed, turns) == turns  # the same seed, the same answers
    assert used == {"w4 w5 w6": {0.0}, "w9": {0.1}, "w1 w2": {0.7}, "w2 w2": {0.7}}
    assert made[0][101] == made[1][101] and made[0][101][0] == made[0][101][1]  # greedy
    assert made[0][103] != made[1][103] and made[0][103][0] != made[0][103][1]  # sampled


def test_questions_that_cannot_be_asked_are_refused(tmp_path: Path, questions: list[mt_bench.Question]) -> None:
    path = tmp_path / "q.jsonl"
    for row_, message in [
        ({"question_id": 1, "category": "math"}, "without turns"),
        (question(1, "math"), "turns: a list of texts"),
        (question(81, "math", "w1"), "81 again in line 2"),
    ]:
        with pytest.raises(InvalidArgument, match=message):
            mt_bench.read_questions(write_lines(path, [question(81, "math", "w1"), row_]))
    with pytest.raises(InvalidArgument, match="256 tokens, the model's positions, got up to 260 in question 101"):
        # <|user|> w4 w5 w6 </s> <|assistant|> </s> <|user|> w7 w8 </s> <|assistant|>: 12 tokens, and 2 x 124
        mt_bench.generate_answers(
            tiny_model("llama"), tiny_tokenizer(), questions, model_id="tiny", max_new_tokens=124, progress=False
        )


def judgment(number: int, turn: int, score: float, model: str = "ours") -> dict[str, Any]:
    judge = ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"]
    return {"question_id": number, "model": model, "judge": judge, "score": score, "turn": turn, "tstamp": 0.0}


JUDGED = [
    judgment(1, 1, 8), judgment(1, 2, 6), judgment(2, 1, 4), judgment(2, 2, -1), judgment(3, 1, 7), judgment(3, 2, 1),
    judgment(3, 2, 9),
]  # fmt: skip


def test_scores_are_averaged_without_the_failed_ones(tmp_path: Path) -> None:
    """Question 2 failed in turn 2, question 3 was judged again there (1, then 9).

    All: 34 / 5 = 6.8. Questions differ from 6.8 a judgment by 0.4, -2.8 and 2.4, whose squares sum to 13.76: the error
    is 3 sqrt(13.76 / 2 / 3) / 5. Turns: 19 / 3 and 15 / 2, the latter's error sqrt(4.5 / 2) = 1.5.
    """
    path = write_lines(tmp_path / "gpt-4_single.jsonl", JUDGED, end='{"question_id": 4, "mod')
    results = by_metric(read_results([tmp_path]))
    score = results["score"]
    assert (score.value, score.n, score.missing) == (pytest.approx(6.8), 5, 1)
    assert score.standard_error == pytest.approx(0.6 * math.sqrt(13.76 / 6))
    assert (results["turn_1"].value, results["turn_1"].n) == (pytest.approx(19 / 3), 3)
    assert (results["turn_2"].value, results["turn_2"].missing) == (7.5, 1)
    assert results["turn_2"].standard_error == pytest.approx(1.5)
    assert score.settings == {"judge": "gpt-4", "repeated": 1, "torn_lines": 1} and score.source == str(path)
    # Control: scores that do count move the mean, to (34 + 4) / 6.
    write_lines(path, [*JUDGED, judgment(2, 2, 4)])
    assert by_metric(read_results([path]))["score"].value == pytest.approx(38 / 6)


def test_two_turns_of_a_question_are_not_two_observations(tmp_path: Path) -> None:
    """With equal scores in both turns the error is that of the questions: here of 2, 4, 9, not of 2, 2, 4, 4, 9, 9."""
    rows = [judgment(k, turn, score) for k, score in enumerate((2, 4, 9)) for turn in (1, 2)]
    results = by_metric(mt_bench.read_judgments(write_lines(tmp_path / "a_single.jsonl", rows)))
    assert results["score"].standard_error == pytest.approx(math.sqrt(13 / 3))  # (9 + 1 + 16) / 2 = 13
    assert results["score"].standard_error == pytest.approx(results["turn_1"].standard_error or 0.0)


def test_judgments_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_single.jsonl"
    with pytest.raises(InvalidArgument, match="without model, judge, score, turn"):
        mt_bench.read_judgments(write_lines(path, [*JUDGED, {"question_id": 1, "model_1": "a"}]))
    with pytest.raises(InvalidArgument, match="2 failed ones"):
        mt_bench.read_judgments(write_lines(path, [judgment(1, 1, -1), judgment(2, 1, -1)]))


# lm-eval


def harness_record() -> dict[str, Any]:
    """As the harness writes it: a task with two filters, a multiple-choice one, a metric without an error."""
    return {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.0625,
                "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.125,
            },
            "arc_easy": {"alias": "arc_easy", "acc,none": 0.75, "acc_stderr,none": "N/A"},
        },
        "configs": {}, "versions": {"gsm8k": 3.0, "arc_easy": 1.0}, "n-shot": {"gsm8k": 5, "arc_easy": 0},
        "n-samples": {"gsm8k": {"original": 1319, "effective": 48}, "arc_easy": {"original": 4, "effective": 4}},
        "config": {"model": "hf", "model_args": "pretrained=m", "limit": 48.0, "random_seed": 0},
        "lm_eval_version": "0.4.9", "model_name": "m", "chat_template": None,
    }  # fmt: skip


def test_results_of_the_harness_keep_errors_shots_and_versions(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m" / "results_2026-01-01.json", harness_record())
    results = {(result.benchmark, result.metric): result for result in read_results([tmp_path])}
    assert {key: (result.value, result.standard_error, result.n) for key, result in results.items()} == {
        ("gsm8k", "exact_match,strict-match"): (0.25, 0.0625, 48),
        ("gsm8k", "exact_match,flexible-extract"): (0.5, 0.125, 48),
        ("arc_easy", "acc"): (0.75, None, 4),
    }
    settings = results["gsm8k", "exact_match,strict-match"].settings
    assert (settings["n_shot"], settings["version"], settings["limit"], settings["chat_template"]) == (
        5,
        3.0,
        48,
        False,
    )
    record = harness_record()
    del record["n-shot"]
    with pytest.raises(InvalidArgument, match="without n-shot"):
        read_results([write_json(path, record)])


def test_code_is_run_only_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="mbpp, which runs programs written by the model"):
        lm_eval.arguments("m", ["gsm8k", "mbpp"], tmp_path)
    options = lm_eval.arguments("m", ["gsm8k", "mbpp"], tmp_path, confirm_run_unsafe_code=True)
    assert "--confirm_run_unsafe_code" in options
    assert "--confirm_run_unsafe_code" not in lm_eval.arguments("m", ["gsm8k"], tmp_path)


def test_an_adapter_is_evaluated_on_its_base(tmp_path: Path) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "base/model"})
    options = lm_eval.arguments(str(tmp_path), ["gsm8k"], "out", dtype="bfloat16", num_fewshot=8, limit=10)
    assert options[options.index("--model_args") + 1] == f"pretrained=base/model,peft={tmp_path},dtype=bfloat16"
    assert options[options.index("--num_fewshot") + 1] == "8"
    with pytest.raises(InvalidArgument, match="without a comma"):
        lm_eval.arguments("runs/a,b", ["gsm8k"], "out")


def test_without_the_harness_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"rpo-lab\[eval\]"):
        lm_eval.run([], tmp_path)


def test_a_run_that_fails_or_writes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the harness; the variable that lets it run code is set with the opt-in only."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    seen: list[dict[str, str]] = []

    def ended(code: int, writes: bool) -> Any:
        def run(command: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
            seen.append(env)
            if writes:
                write_json(tmp_path / "m" / f"results_{len(seen)}.json", harness_record())
            return subprocess.CompletedProcess(command, code)

        return run

    for code, message in ((3, "ended with code 3"), (0, "without writing results")):
        monkeypatch.setattr(subprocess, "run", ended(code, writes=code != 0))
        with pytest.raises(lm_eval.BenchmarkFailed, match=message):
            lm_eval.run([], tmp_path)  # the second time, what the first wrote is not taken for its own
    monkeypatch.setattr(subprocess, "run", ended(0, writes=True))
    assert len(lm_eval.run(["--confirm_run_unsafe_code"], tmp_path)) == 3
    assert [env.get("HF_ALLOW_CODE_EVAL") for env in seen] == [None, None, "1"]


MULTIPLE_CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
FREE_TEXT = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/text.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</s>"], do_sample: false, max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def likeliest(model: Any, tokenizer: Any, question: str, choices: list[str]) -> int:
    """Return which choice has the largest summed log-probability after the question, by rpo.llm."""
    start = len(tokenizer(question).input_ids)
    ids = [tokenizer(f"{question} {choice}").input_ids for choice in choices]
    with torch.no_grad():
        logps = [
            response_logps(model(tokens[None]).logits, tokens[None], torch.arange(len(tokens))[None] >= start)
            for tokens in map(torch.tensor, ids)
        ]
    return int(torch.cat(logps).argmax())


def test_the_harness_runs_local_tasks_and_agrees_with_our_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiple choice: accuracy of the likeliest choice by rpo.llm. Free text: 3 of 8 targets are greedy answers."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'rpo-lab[eval]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(chat_template=None)
    model.save_pretrained(tmp_path / "eta=0.1")
    tokenizer.save_pretrained(tmp_path / "eta=0.1")
    tasks = tmp_path / "tasks"
    docs = [
        {"question": f"w{k} w{k + 3}", "choices": [f"w{2 * k}", f"w{k + 7} w{k}", f"w{k + 9}"], "label": k % 3}
        for k in range(20)
    ]
    write_lines(tasks / "choice.jsonl", docs)
    questions = [f"w{k + 5} w{k}" for k in range(8)]
    answers = [sample.text for (sample,) in generate(model, tokenizer, questions, max_new_tokens=4, temperature=0.0)]
    targets = [answer if k < 3 else "w0" for k, answer in enumerate(answers)]
    write_lines(tasks / "text.jsonl", [{"question": q, "answer": a} for q, a in zip(questions, targets, strict=True)])
    for name, text in {"choice": MULTIPLE_CHOICE, "text": FREE_TEXT}.items():
        (tasks / f"{name}.yaml").write_text(text.format(folder=tasks))

    options = lm_eval.arguments(
        str(tmp_path / "eta=0.1"), ["local_choice", "local_text"], tmp_path / "out", include_path=tasks, batch_size=4,
        dtype="float32", device="cpu", num_fewshot=0,
    )  # fmt: skip
    results = {result.benchmark: result for result in lm_eval.run(options, tmp_path / "out")}
    hits = [likeliest(model, tokenizer, doc["question"], doc["choices"]) == doc["label"] for doc in docs]
    accuracy = sum(hits) / 20
    shifted = sum(likeliest(model, tokenizer, d["question"], d["choices"]) == (d["label"] + 1) % 3 for d in docs) / 20
    assert 0 < accuracy < 1 and shifted != accuracy  # control: other labels would give another accuracy
    choice, text = results["local_choice"], results["local_text"]
    assert (choice.metric, choice.value, choice.n) == ("acc", pytest.approx(accuracy), 20)
    assert choice.standard_error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 19))
    assert (text.metric, text.value, text.n) == ("exact_match", pytest.approx(3 / 8), 8)
    assert choice.settings["version"] == 2.0 and choice.settings["n_shot"] == 0
    assert choice.model == str(tmp_path / "eta=0.1")


# The table


def test_one_table_for_all_three(tmp_path: Path) -> None:
    leaderboard(tmp_path / "a", {"ours": LEADERBOARD["ours"]})
    write_lines(tmp_path / "b" / "gpt-4_single.jsonl", JUDGED)
    write_json(tmp_path / "c" / "results_1.json", {**harness_record(), "model_name": "ours"})
    results = read_results([tmp_path, tmp_path / "c"])  # the folder named twice is read once
    frame = to_frame(results)
    assert tuple(frame.columns) == COLUMNS and len(frame) == 4 + 3 + 3
    assert set(frame["benchmark"]) == {"AlpacaEval", "MT-Bench", "gsm8k", "arc_easy"} and set(frame["model"]) == {
        "ours"
    }
    save(results, tmp_path / "out", resolved="sources: [a]\n")
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(item["value"]) for item in rows] == [result.value for result in results]
    assert json.loads(rows[-1]["settings"])["lm_eval_version"] == "0.4.9"
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(record["results"]) == len(rows) and "python" in record["environment"]
    text = to_markdown(results)
    assert text == (tmp_path / "out" / "results.md").read_text().rstrip("\n")
    assert len(text.splitlines()) == 2 + len(rows) and "| score " in text
    with pytest.raises(InvalidArgument, match="without an earlier result"):
        save(results, tmp_path / "out")


def test_sources_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="leaderboard.csv, annotations.json"):
        read_results([tmp_path])
    write_lines(tmp_path / "gpt-4_single.jsonl", JUDGED)
    with pytest.raises(InvalidArgument, match="names that occur in the sources, got mine"):
        read_results([tmp_path], models=["ours", "mine"])
    with pytest.raises(InvalidArgument, match="a readable text file"):
        read_results([tmp_path / "none.json"])
