"""AlpacaEval 2: prompts in, the file `alpaca_eval --model_outputs` takes, its results back.

The judge and the length-controlled win rate are the tool's own (Dubois et al. 2024); it asks OpenAI, so it
needs OPENAI_API_KEY and costs money. Nothing here runs it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.eval.benchmarks.files import read_json, read_lines, read_text, require
from rpo.eval.benchmarks.results import BenchmarkResult, mean_and_error, numbers

BENCHMARK = "AlpacaEval"
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # what makes it AlpacaEval 2
# Column of leaderboard.csv: that of its standard error.
METRICS = {
    "win_rate": "standard_error",
    "length_controlled_winrate": "lc_standard_error",
    "discrete_win_rate": None,
    "avg_length": None,
}
OF_ALL = "avg_length"  # of every output, judged or not
DRAWS = (0.0, 1.5)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What went into a file of model outputs, counted.

    generator: the model's name there. outputs: rows. truncated: cut at the token limit. empty: without text.
    repeated: rows whose instruction came before (AlpacaEval joins by instruction, so they count several times).
    unasked: prompts generated for but not among the instructions given, left out. unused: further responses to the
    same prompt.
    """

    generator: str
    outputs: int
    truncated: int
    empty: int
    repeated: int
    unasked: int
    unused: int

    @property
    def message(self) -> str:
        """One line for a reader."""
        counts = {name: value for name, value in asdict(self).items() if name not in ("generator", "outputs") and value}
        notes = "".join(f", {value} {name}" for name, value in counts.items())
        return f"{self.outputs} outputs of {self.generator}{notes}"


def prompt_rows(instructions: str | Path) -> list[dict[str, str]]:
    """Return rows {"prompt": text} for `rpo generate`, from an evaluation set in AlpacaEval's format.

    instructions: a JSON list of {"instruction", ...}, as alpaca_eval.json of the tatsu-lab/alpaca_eval data set.
    Raises InvalidArgument.
    """
    return [{"prompt": row["instruction"]} for row in _instructions(instructions)]


def model_outputs(
    generations: str | Path,
    *,
    model: str | None = None,
    generator: str | None = None,
    instructions: str | Path | None = None,
    sample: int = 0,
) -> tuple[list[dict[str, str]], Export]:
    """Return the rows {"instruction", "output", "generator", "dataset"} of --model_outputs, and what was counted.

    generations: JSONL of `rpo generate`: rows {"prompt", "responses", "finish_reasons"}, perhaps with "model".
    A prompt is a text, or one user message, with or without a system message before it. model: which model's rows to
    take, where there are several. generator: name on the leaderboard; the model's, or the file's, by default.
    instructions: the evaluation set; its order and data set names are kept, and every instruction must have an
    output. sample: which response to a prompt. Raises InvalidArgument.
    """
    rows, torn = read_lines("generations", generations)
    if torn:
        raise InvalidArgument(
            "generations",
            expected="a whole JSONL file",
            got=f"{generations}, whose last line is cut short",
            remedy="Generate again.",
        )
    rows, name = _rows_of_one_model(rows, model, generations)
    generator = (
        ("" if generator is None else checks.instance("generator", generator, str)) or name or Path(generations).stem
    )
    wanted = None if instructions is None else _instructions(instructions)
    answers = _answers(rows, checks.integer("sample", sample, minimum=0))
    unasked = 0
    if wanted is None:
        chosen = [(text, "", answer) for text, answer in answers]
    else:
        known = dict(reversed(answers))  # the first answer to an instruction asked twice
        missing = [row["instruction"] for row in wanted if row["instruction"] not in known]
        if missing:
            raise InvalidArgument(
                "generations",
                expected=f"an output for each of the {len(wanted)} instructions",
                got=f"{len(missing)} without one, the first {missing[0][:60]!r}",
                remedy="Generate for the prompts of that evaluation set; AlpacaEval matches them letter by letter.",
            )
        asked = {row["instruction"] for row in wanted}
        unasked = sum(text not in asked for text, _ in answers)
        chosen = [(row["instruction"], str(row.get("dataset", "")), known[row["instruction"]]) for row in wanted]
    outputs = [
        {"instruction": text, "output": output, "generator": generator, "dataset": dataset}
        for text, dataset, (output, _) in chosen
    ]
    return outputs, Export(
        generator=generator,
        outputs=len(outputs),
        truncated=sum(reason == "length" for _, _, (_, reason) in chosen),
        empty=sum(not output.strip() for _, _, (output, _) in chosen),
        repeated=len(outputs) - len({row["instruction"] for row in outputs}),
        unasked=unasked,
        unused=sum(len(row["responses"]) - 1 for row in rows),
    )


def command(outputs: str | Path, output: str | Path, *, reference_outputs: str | Path | None = None) -> list[str]:
    """Return the command that judges a file of model outputs against GPT-4 Turbo's, or `reference_outputs`."""
    reference = (
        []
        if reference_outputs is None
        else ["--reference_outputs", str(checks.path("reference_outputs", reference_outputs))]
    )
    return [
        "alpaca_eval",
        *("--model_outputs", str(checks.path("outputs", outputs))),
        *reference,
        *("--annotators_config", ANNOTATOR),
        *("--output_path", str(checks.path("output", output))),
    ]


def read_leaderboard(path: str | Path, models: Collection[str] | None = None) -> list[BenchmarkResult]:
    """Return the results in a leaderboard.csv; values in per cent, avg_length in characters.

    The file lists every model of the published leaderboard too. models: which to return; by default those that
    annotations.json beside it judged, or all where there is none. A cell that is no number keeps its row, without a
    value. Raises InvalidArgument.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text("leaderboard", path))))
    except csv.Error as error:
        raise InvalidArgument("leaderboard", expected="CSV", got=f"{path} ({error})", remedy="Look at it.") from error
    if not rows:
        raise InvalidArgument("leaderboard", expected="at least one row", got=f"none in {path}", remedy="Look at it.")
    require("leaderboard", rows[0], ("win_rate", "standard_error", "n_total"), str(path))
    judged: dict[str, dict[str, Any]] = {}
    beside = Path(path).with_name("annotations.json")
    if beside.exists():
        judged = {name: _settings(group) for name, group in _by_generator(beside).items()}
    names = set(checks.instances("models", models, str)) if models is not None else set(judged) or None
    label = next(iter(rows[0]))  # pandas' index column, without a name or called model_name
    found = []
    for row in rows:
        name = str(row[label])
        if names is not None and name not in names:
            continue
        context = judged.get(name, {})
        for metric, of_error in METRICS.items():
            if row.get(metric) in (None, ""):
                continue
            cells = {metric: row[metric], str(of_error): row.get(str(of_error)), "n_total": row["n_total"]}
            read, bad = numbers(cells)
            value, deviation, count = read.values()
            found.append(
                BenchmarkResult(
                    model=name,
                    benchmark=BENCHMARK,
                    metric=metric,
                    value=value,
                    standard_error=deviation,
                    n=None if count is None or metric == OF_ALL else int(count),
                    missing=0 if metric == OF_ALL else context.get("missing", 0),
                    source=str(path),
                    settings={key: item for key, item in context.items() if key != "missing"} | bad,
                )
            )
    return found


def read_annotations(path: str | Path) -> list[BenchmarkResult]:
    """Return win rates computed from an annotations.json, in per cent, where no leaderboard was written.

    An annotation's preference p is between 1 (the baseline won) and 2; 0 and 1.5 are draws. Its win rate is p - 1;
    the length-controlled one is the tool's own "glm_preference". Annotations without a preference, or with one that
    is no number from 1 to 2, are counted as missing. Raises InvalidArgument.
    """
    found = []
    for name, group in _by_generator(path).items():
        context = _settings(group)
        context.pop("missing")
        preferences = [_preference(row) for row in group]
        if not any(preference is not None for preference in preferences):
            raise InvalidArgument(
                "annotations",
                expected="preferences from 1 to 2",
                got=f"{[row['preference'] for row in group][:3]} for {name} in {path}",
                remedy="Judge again.",
            )
        controlled = [numbers({"": row.get("glm_preference")})[0][""] for row in group]
        columns = {"win_rate": preferences, "length_controlled_winrate": controlled}
        for metric, column in columns.items():
            values = [value for value in column if value is not None]
            if values:
                mean, error = mean_and_error([100.0 * value for value in values])
                found.append(
                    BenchmarkResult(
                        model=name,
                        benchmark=BENCHMARK,
                        metric=metric,
                        value=mean,
                        standard_error=error,
                        n=len(values),
                        missing=len(column) - len(values),
                        source=str(path),
                        settings=context,
                    )
                )
    return found


def _instructions(path: str | Path) -> list[dict[str, Any]]:
    rows = read_json("instructions", path)
    if not isinstance(rows, list) or not rows:
        raise InvalidArgument(
            "instructions", expected="a JSON list with at least one row", got=str(path), remedy="Look at the file."
        )
    for number, row in enumerate(rows):
        require("instructions", row, ("instruction",), f"row {number} of {path}")
        _text("instructions", row["instruction"], f"row {number} of {path}")
    return rows


def _rows_of_one_model(
    rows: Sequence[dict[str, Any]], model: str | None, path: str | Path
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the rows of the model asked for, and its name where the file says it."""
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {path}"
        require("generations", row, ("prompt", "responses", "finish_reasons"), where)
        for column in ("responses", "finish_reasons"):
            for text in row[column] if isinstance(row[column], list) else [row[column]]:
                _text("generations", text, f"{column} in {where}")
        if not isinstance(row["responses"], list) or not isinstance(row["finish_reasons"], list):
            raise InvalidArgument(
                "generations", expected="lists of texts", got=f"a text in {where}", remedy="Write [text] for one."
            )
        if row.get("model") is not None:
            _text("generations", row["model"], f"model in {where}")
    names = list(dict.fromkeys(row.get("model") for row in rows))
    if model is None and len(names) > 1:
        raise InvalidArgument(
            "model",
            expected="one of " + ", ".join(map(str, names)),
            got=f"none, and {path} has the outputs of all of them",
            remedy="Say whose to export.",
        )
    if model is not None and model not in names:
        raise InvalidArgument("model", expected=f"one of {names}", got=model, remedy=f"Look at {path}.")
    name = names[0] if model is None else model
    return [row for row in rows if row.get("model") == name], name


def _answers(rows: Sequence[Mapping[str, Any]], sample: int) -> list[tuple[str, tuple[str, str]]]:
    """Return (instruction, (response, finish reason)) of each row."""
    found = []
    for row in rows:
        instruction = _instruction(row["prompt"])
        if len(row["responses"]) <= sample or len(row["finish_reasons"]) != len(row["responses"]):
            raise InvalidArgument(
                "sample",
                expected=f"a row with more than {sample} responses, and a finish reason for each",
                got=f"{len(row['responses'])} and {len(row['finish_reasons'])} for {instruction[:60]!r}",
                remedy="Lower sample, or generate with more num_samples.",
            )
        found.append((instruction, (row["responses"][sample], row["finish_reasons"][sample])))
    return found


def _text(name: str, value: Any, where: str) -> None:
    """Refuse what is no text, or none that a file in UTF-8 can hold. Raises InvalidArgument."""
    try:
        fine = isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        fine = False
    if not fine:
        raise InvalidArgument(name, expected="text", got=f"{ascii(value)[:60]} for {where}", remedy="Mend that row.")


def _instruction(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt):
        asked = prompt[1:] if prompt[0].get("role") == "system" else prompt
        if len(asked) == 1 and asked[0].get("role") == "user" and isinstance(asked[0].get("content"), str):
            return str(asked[0]["content"])
    raise InvalidArgument(
        "generations",
        expected="prompts that are a text or one user message",
        got=str(prompt)[:80],
        remedy="AlpacaEval has single instructions; MT-Bench has two turns.",
    )


def _by_generator(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Return the annotations of each model that was judged, generator_2 in the file."""
    rows = read_json("annotations", path)
    if not isinstance(rows, list) or not rows:
        raise InvalidArgument(
            "annotations", expected="a JSON list with at least one row", got=str(path), remedy="Look at the file."
        )
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        require("annotations", row, ("generator_1", "generator_2", "preference"), f"row {number} of {path}")
        groups.setdefault(str(row["generator_2"]), []).append(row)
    return groups


def _settings(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "baseline": ", ".join(sorted({str(row["generator_1"]) for row in group})),
        "annotator": ", ".join(sorted({str(row["annotator"]) for row in group if row.get("annotator")})),
        "missing": sum(_preference(row) is None for row in group),
    }


def _preference(row: Mapping[str, Any]) -> float | None:
    """Return the model's share of an annotation, in [0, 1]; None where it has no preference."""
    given = numbers({"": row["preference"]})[0][""]
    if given in DRAWS:
        return 0.5
    return given - 1.0 if given is not None and 1 <= given <= 2 else None
