"""Judges' replies, and the files that judging and benchmarks read: any words, JSON of any shape, damaged bytes.

The independent reading: a reply made of reasoning and a last line with the verdict asked for is that verdict, one whose
reasoning never ends is none; a whole file of responses gives every pair of it.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import TIERS, chosen, command, damaged, explore, files_in, outcome
from hypothesis import strategies as st

from rpo.eval.benchmarks.reading import read_results
from rpo.eval.judges.wording import read_verdict
from rpo.eval.matchups import draw_pairs, read_responses

CHOICES = {"A": "first", "B": "second", "tie": "tie"}
words = st.sampled_from(["Answer A is right.", "B", "tie", "{", "}", "```", "<think>", "</think>", "**",
                         "\n", "\x00", "é", '{"verdict": "A"}', '{"verdict": "C"}', '{"verdict": ["A"]}',
                         '{"a": {"verdict": "B"}}', "9" * 5000, "[" * 3000, '"', "verdict: A", "null", "\u2028",
                         '{"verdict": "A", "verdict": "B"}'])  # fmt: skip
reasoning = st.sampled_from(["", "A is right.\n", "Both say {x}.\n", "<think>B is longer</think>\n"]) | st.text(
    st.characters(exclude_characters="<{}"), max_size=12
).map(lambda text: text + "\n")


@st.composite
def replies(draw: Any) -> tuple[Any, str | None]:
    """A reply, and its verdict where there is one reading: a choice, "none", or None for any."""
    how = draw(st.integers(0, 9))
    choice = draw(st.sampled_from(sorted(CHOICES)))
    last = json.dumps({"verdict": choice})
    if how <= 2:
        return draw(reasoning) + last, CHOICES[choice]
    if how == 3:
        return f"<think>{draw(st.text(st.characters(exclude_characters='<>{}'), max_size=9))} {last}", "none"
    if how == 4:
        return draw(st.none() | st.integers() | st.binary() | st.lists(st.text(), max_size=1) | st.just({})), "none"
    if how == 5:
        return draw(reasoning) + last[: draw(st.integers(0, 9))], "none"
    return "".join(draw(st.lists(words | st.text(max_size=4), max_size=5))), None


@pytest.mark.parametrize("tier", TIERS)
def test_read_verdict(tier: int, record_property: Any) -> None:
    def read(drawn: tuple[Any, str | None]) -> str:
        reply, meant = drawn
        found = read_verdict(reply)
        assert found in (None, "first", "second", "tie"), found
        assert meant is None or found == (None if meant == "none" else meant), (reply, found, meant)
        return "no verdict" if found is None else "verdict"

    explore("verdict texts", tier, replies(), read, record_property)


texts = st.sampled_from(["p", "q", "yes", "no", "", "é", "\u2028", "=1", "\x1b[1m", "\ud800"]) | st.text(max_size=5)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)


@st.composite
def spoilt(draw: Any, row: dict[str, Any], chance: int) -> Any:
    """Return a row with a field gone, replaced or added, once in `chance`."""
    if draw(st.integers(1, chance)) < chance or not row:
        return row
    how, row = draw(st.integers(0, 3)), dict(row)
    if how == 0:
        row.pop(draw(st.sampled_from(sorted(row))))
    elif how == 1:
        row[draw(st.sampled_from(sorted(row)))] = draw(junk)
    elif how == 2:
        row[draw(texts)] = draw(junk)
    else:
        return draw(junk)
    return row


@st.composite
def judged(draw: Any) -> tuple[dict[str, list[Any]], str | None, int | None]:
    """Rows by file, the file that is damaged, and how."""
    prompts = draw(st.lists(st.sampled_from(["p", "q", "r"]), min_size=1, max_size=3, unique=True))
    models = {name: [{"prompt": one, "responses": [draw(texts)]} for one in prompts] for name in ("one", "two")}
    verdicts = []
    for k, one in enumerate(prompts):
        first, second = (models[name][k]["responses"][0] for name in ("one", "two"))
        for pair in ((first, second), (second, first)):
            choice = draw(st.sampled_from(["first", "second", "tie"]))
            verdicts.append({"prompt": one, "first": pair[0], "second": pair[1], "verdict": choice})
    files = {f"{name}.jsonl": [draw(spoilt(row, 12)) for row in rows] for name, rows in models.items()}
    files["verdicts.jsonl"] = [draw(spoilt(row, 12)) for row in verdicts]
    hurt = draw(st.none() | st.none() | st.sampled_from(sorted(files)))
    return files, hurt, draw(st.integers(0, 2**32)) if hurt else None


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _record(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("tier", TIERS)
def test_rpo_judge(tier: int, record_property: Any) -> None:
    """Recorded verdicts on two models' responses, as the command is used."""

    def judge(drawn: tuple[dict[str, list[Any]], str | None, int | None]) -> str:
        files, hurt, how = drawn
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for name, rows in files.items():
                content = lines(rows)
                (folder / name).write_bytes(damaged(content, how or 0) if name == hurt else content)
            out = folder / "out"
            answers = [str(folder / name) for name in ("one.jsonl", "two.jsonl")]
            outcome(lambda: draw_pairs(read_responses(answers), prompts=5, seed=0))
            options = ["--judge", f"recorded:{folder / 'verdicts.jsonl'}", "--prompts", "5", "--resamples", "20"]
            before, kind = files_in(folder), ""
            try:
                kind = command(["judge", *answers, "--output", str(out), *options], folder)
            except AssertionError:
                # Where verdicts are missing the exit code is 2 as well, and what was judged is kept for the next try.
                assert files_in(folder) != before and _record(out)["status"] == "incomplete"
                return "exit 2, verdicts missing"
            if kind == "exit 0":
                record = _record(out)
                assert record["status"] == "complete" and len(record["comparisons"]) == 1
                assert record["judging"]["questions"] <= 2 * record["prompts"]["judged"]
            return kind

    explore("judge files", tier, judged(), judge, record_property)


BENCHMARKS: dict[str, Any] = {
    "leaderboard.csv": b",win_rate,standard_error,n_total,avg_length,length_controlled_winrate\n"
    b"m,50.0,1.5,805,1800,48.0\n",
    "annotations.json": [
        {"instruction": "p", "generator_1": "gpt", "generator_2": "m", "preference": 1.5, "output_1": "a",
         "output_2": "b", "annotator": "judge"},
        {"instruction": "q", "generator_1": "gpt", "generator_2": "m", "preference": 2.0, "output_1": "a",
         "output_2": "b", "annotator": "judge"},
    ],
    "gpt-4_single.jsonl": [
        {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": 7},
        {"question_id": 82, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": -1},
    ],
    "results_1.json": {
        "results": {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.0625}},
        "versions": {"arc": 1}, "n-shot": {"arc": 0}, "config": {"model": "hf"}, "model_name": "m",
        "higher_is_better": {"arc": {"acc": True}}, "n-samples": {"arc": {"original": 8, "effective": 8}},
    },
}  # fmt: skip


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """Return JSON with one value in it replaced, at any depth."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 4)):
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = chosen(draw, list(keys))
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = draw(changed(value[key]))
        if isinstance(copy, dict) and not draw(st.integers(0, 5)):
            copy.pop(key)
        return copy
    return draw(junk)


@st.composite
def benchmark_files(draw: Any) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(BENCHMARKS)))
    content = BENCHMARKS[name]
    how = draw(st.integers(0, 4))
    if not isinstance(content, bytes):
        content = draw(changed(content)) if how >= 2 else content
        rows = content if name.endswith(".jsonl") and isinstance(content, list) else None
        content = json.dumps(content).encode() if rows is None else lines(rows)
    return name, damaged(content, draw(st.integers(0, 2**32))) if how in (1, 2) else content


@pytest.mark.parametrize("tier", TIERS)
def test_benchmark_results(tier: int, record_property: Any) -> None:
    """Every way in: the reader and `rpo benchmark table`, which must agree."""

    def read(drawn: tuple[str, bytes]) -> str:
        name, content = drawn
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            (folder / name).write_bytes(content)

            def check(results: Any) -> None:
                values = [one.value for one in results if one.value is not None]
                assert values and all(map(math.isfinite, values))

            found = outcome(lambda: read_results([folder]), check)
            shown = command(["benchmark", "table", str(folder)], folder)
            assert (shown == "exit 0") == (found == "result"), (shown, found)
            return found

    explore("benchmark files", tier, benchmark_files(), read, record_property)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_benchmark_files_are_read_unspoilt(name: str, tmp_path: Path) -> None:
    content = BENCHMARKS[name]
    if not isinstance(content, bytes):
        content = lines(content) if name.endswith(".jsonl") else json.dumps(content).encode()
    (tmp_path / name).write_bytes(content)
    assert read_results([tmp_path])[0].model == "m"
