"""`rpo judge`, as its user meets it: files of responses, a judge on loopback, a folder of results."""

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

from judge_server import JudgeServer, often, truth
from models_for_tests import tiny_model, tiny_tokenizer

from rpo import cli
from rpo.eval.verdicts import is_cost, read_rows

ROOT = Path(__file__).parents[1]
KEY = "sk-never-shown-4711"
FAST = ["--first_wait", "0.001", "--timeout", "5"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder; the key is in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(item) for item in arguments])
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def write(path: str, model: str | None, qualities: list[int], cut: int = 0) -> str:
    """Write what `rpo generate` writes: prompts p0, p1, ...; the first `cut` responses ended at the length limit."""
    rows: list[dict[str, Any]] = [
        {
            "prompt": [{"role": "user", "content": f"p{k}"}],
            "responses": [f"{path} {k} q{quality}"],
            "finish_reasons": ["length" if k < cut else "stop"],
        }
        for k, quality in enumerate(qualities)
    ]
    rows = [row if model is None else {"model": model, **row} for row in rows]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def everything(folder: Path, *results: subprocess.CompletedProcess[str]) -> str:
    """All that a run leaves: every file, standard output and error."""
    files = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    return "\n".join(files + [result.stdout + result.stderr for result in results])


def test_three_models_are_judged_compared_and_ranked(here: Path) -> None:
    """By hand over 12 prompts, qualities: a 2; b 1 (9 of them) or 3; c 2 (3 of them), 3 (3) or 0 (6).

    a-b: 9 wins, 3 losses. a-c: 3 ties, 3 losses, 6 wins: 7.5 of 12. b has 1 nine times, so against c's
    2 2 2 3 3 3 0 0 0 it loses 6 and wins 3, and its three 3s win against 0: 6 of 12.
    """
    files = [
        write("a.jsonl", "good", [2] * 12),
        write("b.jsonl", "mixed", [1] * 9 + [3] * 3, cut=2),
        write("c.jsonl", None, [2] * 3 + [3] * 3 + [0] * 6),
    ]
    with JudgeServer(fault=often(0.2, kinds=("500", "429", "prose", "echo"))) as server:
        options = ["--judge", "endpoint:gpt-4", "--base_url", server.url, "--output", "out", *FAST, "--attempts", "20"]
        options += ["--temperature", "0.7"]
        result = rpo("judge", *files, *options)
        assert result.returncode == 0, result.stderr
        asked = server.asked.total()
        assert asked > 72 and set(server.answered.values()) == {1} and set(server.keys) == {f"Bearer {KEY}"}
        refused = rpo("judge", *files, *options)
        assert refused.returncode == 2 and "overwrite" in refused.stderr
        (here / "out" / "results.json").unlink()
        again = rpo("judge", *files, *options)
        assert again.returncode == 0 and server.asked.total() == asked
    record = json.loads((here / "out" / "results.json").read_text())
    rates = {(one["model_a"], one["model_b"]): one["win"]["rate"] for one in record["comparisons"]}
    assert rates == {("good", "mixed"): 0.75, ("good", "c"): 0.625, ("mixed", "c"): 0.5}
    assert record["status"] == "complete" and record["judging"]["questions"] == 72 == record["judging"]["stored"]
    assert record["cut_at_length_limit"] == {"good": 0, "mixed": 2, "c": 0}
    assert record["ranking"]["models"][0] == "good" and record["judge"]["model"] == "gpt-4"
    assert record["judging"]["models"] == ["judge-2026"] and "commit" in record["environment"]
    assert "| good | - | 75.0 [" in (here / "out" / "matrix.md").read_text()
    assert (here / "out" / "matrix.csv").read_text().splitlines()[1] == "good,,0.75,0.625"
    assert (here / "out" / "verdicts.jsonl").read_text().count('"verdict":') == 72
    assert record["judging"]["spent"]["input_tokens"] == 100 * (72 + server.faults["prose"])
    config = yaml.safe_load((here / "out" / "config.yaml").read_text())
    assert config["judge"] == "endpoint:gpt-4" and config["api_key_env"] == "OPENAI_API_KEY"
    for part in (
        "mixed: 2 responses cut",
        "good against mixed: 75.0 %",
        "Bradley-Terry strengths",
        "both orders agree",
    ):
        assert part in result.stdout
    assert "72 have a verdict, 0 to ask" in again.stdout


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_goes_on_and_asks_and_counts_nothing_twice(here: Path, kills: int) -> None:
    """SIGKILL at random moments from the first request on, of a run whose requests fail in five ways.

    After each kill some file ends in a torn line. No question with a stored verdict is asked again; a question is
    answered twice only if it was under way at a kill; the verdicts are the truth, and the record's cost is that of the
    replies in the file, which are those that the server sent but for what was under way.
    """
    rng, at_once = random.Random(7), 4
    qualities = [[rng.randrange(4) for _ in range(24 * kills)] for _ in "ab"]
    files = [write(f"{name}.jsonl", name, row) for name, row in zip("ab", qualities, strict=True)]
    path, results = here / "out" / "verdicts.jsonl", here / "out" / "results.json"
    command = [sys.executable, "-m", "rpo.cli", "judge", *files, "--judge", "endpoint:gpt-4", "--output", "out"]
    command += ["--concurrency", str(at_once), "--attempts", "25", "--temperature", "0.7", "--max_wait", "0.05", *FAST]
    command += ["--prompts", "1000", "--resamples", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    fault = often(0.3, kinds=("500", "drop", "cut", "prose", "length"))
    with JudgeServer(fault=fault, delay=0.05) as server:
        command += ["--base_url", server.url]
        kept: dict[tuple[str, str, str], int] = {}
        killed = 0
        while killed < kills:
            before = server.asked.total()
            run = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.DEVNULL)
            while server.asked.total() == before and run.poll() is None:
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(rng.uniform(0.0, 0.5))
            run.kill()
            assert run.wait() == -signal.SIGKILL and not results.exists()  # there was more to ask than that
            killed += 1
            time.sleep(0.1)  # requests of the dead client run out
            assert all(server.answered[asked] == count for asked, count in kept.items())
            rows, _ = read_rows(path) if path.exists() else ([], 0)
            kept = {
                asked: server.answered[asked]
                for row in rows
                if not is_cost(row)
                for asked in [(row["prompt"][0]["content"], row["first"], row["second"])]
            }
            if path.exists() and rng.random() < 0.5:
                with path.open("ab") as file:
                    file.write(b'{"key": "torn')
        ended = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert all(server.answered[asked] == count for asked, count in kept.items())
        twice = sum(count - 1 for count in server.answered.values())
        assert len(server.answered) == 48 * kills and twice <= at_once * kills
        sent = server.answered.total() + server.faults["prose"] + server.faults["length"]
    rows, _ = read_rows(path)
    verdicts, told = [row for row in rows if not is_cost(row)], sum(row["input_tokens"] > 0 for row in rows)
    words = {"A": "first", "B": "second", "tie": "tie"}
    assert len({row["key"] for row in verdicts}) == len(verdicts) == 48 * kills
    assert all(row["verdict"] == words[truth((row["prompt"], row["first"], row["second"]))] for row in verdicts)
    record = json.loads(results.read_text())
    signs = np.sign(np.subtract(*qualities))
    assert record["status"] == "complete" and record["comparisons"][0]["win"]["rate"] == np.mean(signs + 1) / 2
    assert record["judging"]["spent"]["input_tokens"] == 100 * told and 0 <= sent - told <= at_once * kills


def test_no_key_is_left_anywhere(here: Path) -> None:
    """The server echoes the header in errors and in replies, then refuses. Control: it did receive the key."""
    files = [write("a.jsonl", "a", [1, 2, 3]), write("b.jsonl", "b", [3, 2, 1])]
    common = [*files, "--judge", "endpoint:m", *FAST]
    results = []
    for number, fault in enumerate(("echo", "echo in a reply", "401")):
        with JudgeServer(fault=lambda asked, attempt, fault=fault: fault) as server:
            options = ["--base_url", server.url, "--attempts", "2", "--output", f"out{number}"]
            results.append(rpo("judge", *common, *options))
            assert set(server.keys) == {f"Bearer {KEY}"}
    results.append(rpo("judge", *common, "--api_key_env", KEY, "--output", "out3"))
    results.append(rpo("judge", *common, "--base_url", f"http://u:{KEY}@localhost/v1", "--output", "out4"))
    assert [result.returncode for result in results] == [2, 0, 2, 2, 2]
    text = everything(here, *results)
    assert KEY not in text and KEY[3:] not in text
    assert "[key]" in text and "you sent Bearer [key]" in results[0].stderr


def test_a_dry_run_tells_the_cost_and_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 common prompts, 150 of them drawn: 300 questions of at most 512 tokens out. No key and no server needed."""
    monkeypatch.delenv("OPENAI_API_KEY")
    files = [write("a.jsonl", "a", [1] * 200), write("b.jsonl", "b", [2] * 210)]
    before = sorted(here.rglob("*"))
    options = ["--judge", "endpoint:gpt-4", "--output", "out"]
    result = rpo("judge", *files, *options, "--dry_run", "true")
    assert result.returncode == 0, result.stderr
    assert "2 models, 150 of 200 common prompts; b: 10 prompts that another lacks, left out" in result.stdout
    assert "300 to ask" in result.stdout and "153,600 out, without retries; cost: unknown" in result.stdout
    prices = ["--price_input", "30", "--price_output", "60"]
    assert "cost: up to about " in rpo("judge", *files, *options, "--dry_run", "true", *prices).stdout
    refused = rpo("judge", *files, *options, *prices, "--max_cost", "0.5")
    assert refused.returncode == 2 and "max_cost: expected questions that cost at most 0.5" in refused.stderr
    refused = rpo("judge", *files, *options)
    assert refused.returncode == 2 and "OPENAI_API_KEY, got none" in refused.stderr
    assert sorted(here.rglob("*")) == before


def test_a_run_with_failures_says_so_and_is_continued(here: Path) -> None:
    """One order of prompt 1 is never answered: 5 of 6 verdicts, 2 of 3 pairs; then all."""
    files = [write("a.jsonl", "a", [3, 3, 0]), write("b.jsonl", "b", [1, 1, 1])]

    def fault(asked: Any, attempt: int) -> str | None:
        return "prose" if asked[1] == "b.jsonl 1 q1" else None

    with JudgeServer(fault=fault) as server:
        options = ["--judge", "endpoint:m", "--base_url", server.url, "--output", "out", *FAST, "--attempts", "2"]
        result = rpo("judge", *files, *options)
        assert result.returncode == 2 and "1 of 6 questions have no verdict (1 invalid)" in result.stderr
        record = json.loads((here / "out" / "results.json").read_text())
        assert record["status"] == "incomplete" and record["comparisons"][0]["undecided"] == 1
        assert record["comparisons"][0]["win"]["rate"] == 0.5 and record["judging"]["invalid"] == 1
        server.fault = lambda asked, attempt: None
        before = server.asked.total()
        assert rpo("judge", *files, *options).returncode == 0 and server.asked.total() == before + 1
    record = json.loads((here / "out" / "results.json").read_text())
    assert record["status"] == "complete" and record["comparisons"][0]["win"]["rate"] == pytest.approx(2 / 3)


def test_rates_are_shown_for_the_models_that_have_results(here: Path) -> None:
    """c is never judged against b: the other two comparisons are written, and the ranking through a."""
    files = [write(f"{name}.jsonl", name, [quality] * 3) for name, quality in {"a": 2, "b": 1, "c": 2}.items()]
    fault = lambda asked, attempt: "prose" if {asked[1][0], asked[2][0]} == {"b", "c"} else None  # noqa: E731
    with JudgeServer(fault=fault) as server:
        options = ["--judge", "endpoint:m", "--base_url", server.url, "--output", "out", *FAST, "--attempts", "1"]
        result = rpo("judge", *files, *options)
    record = json.loads((here / "out" / "results.json").read_text())
    assert result.returncode == 2 and "6 of 18 questions have no verdict" in result.stderr
    assert [one["win"]["rate"] for one in record["comparisons"]] == [1.0, 0.5]
    assert "No win rate of b against c: none" in result.stdout and "a, c never lost" in record["ranking"]["message"]
    assert "nan" not in result.stdout


def test_lengths_that_tell_nothing_cost_no_result(here: Path) -> None:
    """a's answers are 10,000 characters longer, give or take three: no rate at equal length, and all the others."""
    rng = random.Random(3)
    for name, size in (("a", 10000), ("b", 0)):
        rows = [
            {"prompt": f"p{k}", "responses": [f"{name}{k} q{rng.randrange(3)} " + "x" * (size + rng.randrange(7))]}
            for k in range(30)
        ]
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with JudgeServer() as server:
        options = ["--judge", "endpoint:m", "--base_url", server.url, "--output", "out", *FAST]
        result = rpo("judge", "a.jsonl", "b.jsonl", *options)
    assert result.returncode == 0 and "no rate at equal length: the lengths differ equally" in result.stdout
    record = json.loads((here / "out" / "results.json").read_text())["comparisons"][0]
    assert 0 < record["win"]["rate"] < 1 and record["length_controlled"]["rate"] == "nan"


def test_a_judge_without_information_is_told(here: Path) -> None:
    files = [write("a.jsonl", "a", [2] * 3), write("b.jsonl", "b", [1] * 3)]
    with JudgeServer(answer=lambda asked: "A") as server:
        result = rpo("judge", *files, "--judge", "endpoint:m", "--base_url", server.url, "--output", "out", *FAST)
    assert result.returncode == 0 and "The verdicts carry no information" in result.stdout
    assert "50.0 to 50.0" not in result.stdout and "nan" not in result.stdout


def test_nothing_judged_is_written_without_rates(here: Path) -> None:
    files = [write("a.jsonl", "a", [3, 3]), write("b.jsonl", "b", [1, 1])]
    with JudgeServer(fault=lambda asked, attempt: "401") as server:
        result = rpo("judge", *files, "--judge", "endpoint:m", "--base_url", server.url, "--output", "out")
    assert result.returncode == 2 and "The judge refuses: HTTP 401" in result.stderr
    assert json.loads((here / "out" / "results.json").read_text())["comparisons"] == []
    assert "No win rates" in result.stdout and "nan" not in result.stdout
    assert (here / "out" / "matrix.csv").read_text() == "win rate of row against column\n"


def test_a_scorer_and_a_file_of_its_verdicts_judge_alike(here: Path) -> None:
    """Longer wins: 3 of 4. The prompts of one file are texts, of the other lone user messages: the same ones."""
    for name, lengths in {"a": (5, 5, 5, 1), "b": (2, 2, 2, 2)}.items():
        rows = [
            {"model": name, "prompt": f"p{k}" if name == "a" else [{"role": "user", "content": f"p{k}"}],
             "responses": ["w " * count], "finish_reasons": ["stop"]}
            for k, count in enumerate(lengths)
        ]  # fmt: skip
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rpo("judge", "a.jsonl", "b.jsonl", "--judge", "scorer:length", "--output", "x").returncode == 0
    recorded = ["--judge", "recorded:x/verdicts.jsonl", "--output", "y"]
    assert rpo("judge", "b.jsonl", "a.jsonl", *recorded).returncode == 0
    assert rpo("judge", "a.jsonl", "b.jsonl", *recorded, "--overwrite", "true").returncode == 0
    one, two = (json.loads((here / name / "results.json").read_text()) for name in "xy")
    assert one["comparisons"] == two["comparisons"] and one["comparisons"][0]["win"]["rate"] == 0.75
    assert one["cost"] == 0.0 and one["judge"]["scorer"] == "length"


def test_the_prompts_drawn_depend_on_the_seed_alone(here: Path) -> None:
    files = [write("a.jsonl", "a", [1] * 30), write("b.jsonl", "b", [2] * 30)]
    lines = (here / "a.jsonl").read_text().splitlines(keepends=True)
    (here / "a.jsonl").write_text("".join(reversed(lines)))
    drawn = {}
    for name, order, seed in (("x", files, 0), ("y", files[::-1], 0), ("z", files, 1)):
        options = ["--judge", "scorer:length", "--prompts", "10", "--seed", seed, "--output", name]
        assert rpo("judge", *order, *options).returncode == 0
        rows = [json.loads(line) for line in (here / name / "verdicts.jsonl").read_text().splitlines()]
        drawn[name] = {row["prompt"][0]["content"] for row in rows}
    assert len(drawn["x"]) == 10 and drawn["x"] == drawn["y"] != drawn["z"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b.jsonl": '{"prompt": "p"}\n'}, "b.jsonl, line 1: expected a row"),
        ({"b.jsonl": "nonsense\n"}, "b.jsonl, line 1: expected a row"),
        ({"b.jsonl": '{"prompt": "other", "responses": ["x"]}\n'}, "a prompt that all models answer"),
        ({"b.jsonl": '{"model": "a", "prompt": "other", "responses": ["x"]}\n'}, "at least two models, got a"),
        ({"b.jsonl": '{"model": "a", "prompt": "p0", "responses": ["x"]}\n'}, "one row per prompt for a"),
        ({"--judge": "gpt-4"}, "endpoint:MODEL, scorer:NAME or recorded:FILE"),
        ({"--samples": "2"}, "samples: expected at most 1"),
        ({"--level": "95"}, "level: expected a number in (0, 1)"),
        ({"--prompts": "0"}, "prompts: expected an integer >= 1"),
        ({"none.jsonl": None}, "none.jsonl"),
    ],
)
def test_what_cannot_be_judged_is_refused_and_leaves_nothing(here: Path, change: dict[str, Any], words: str) -> None:
    write("a.jsonl", "a", [1, 2])
    write("b.jsonl", "b", [2, 1])
    options, files = {"--judge": "scorer:length", "--output": "out"}, ["a.jsonl", "b.jsonl"]
    for name, value in change.items():
        if name.startswith("--"):
            options[name] = value
        elif value is None:
            files.append(name)
        else:
            (here / name).write_text(value)
    before = sorted(here.rglob("*"))
    result = rpo("judge", *files, *(part for item in options.items() for part in item))
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.jsonl", b"[" * 100000, "b.jsonl, line 1: expected a row"),
        ("b.jsonl", b'{"prompt": "p0", "responses": ["\xff"]}', "b.jsonl ('utf-8' codec"),
        ("b.jsonl", b"1" * 5000, "b.jsonl, line 1: expected a row"),
        ("b.jsonl", b'{"prompt": ' + b"9" * 400 + b', "responses": ["x"]}', "b.jsonl, line 1: expected a row"),
        ("b.jsonl", b'{"prompt": [{"role": "user", "content": {"a": 1}}], "responses": ["x"]}', "all models answer"),
        ("b.jsonl", None, "b.jsonl ([Errno"),
        ("out/verdicts.jsonl", b"[" * 100000 + b"\n{}\n", "verdicts.jsonl, line 1: expected JSON"),
        ("out/verdicts.jsonl", b"\xff\xfe\n{}\n", "verdicts.jsonl, line 1: expected JSON"),
        ("out/verdicts.jsonl", b"null\n", "verdicts.jsonl, line 1: expected a row"),
        ("out/verdicts.jsonl", b'{"prompt": [{"a": ' + b"[" * 900 + b"]" * 900 + b'}], "first": "a", "second": "b", '
         b'"verdict": "tie", "key": [], "judge": 7}\n', "its key is not the digest"),
        ("out/verdicts.jsonl", b'{"failure": 7, "key": {}, "input_tokens": ' + b"9" * 400 + b"}\n", ""),
        ("out/verdicts.jsonl", None, "which is a folder"),
        ("out/results.json", b"[" * 100000, "expected a folder without an earlier result"),
        ("out/results.json", b'{"status": {}}', ""),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(here: Path, name: str, content: bytes | None, words: str) -> None:
    """Deep, not UTF-8, numbers of hundreds of digits, folders, other kinds; what does no harm is read past."""
    files = [write("a.jsonl", "a", [1, 2]), write("b.jsonl", "b", [2, 1])]
    path = here / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    result = rpo("judge", *files, "--judge", "scorer:length", "--output", "out")
    assert result.returncode == (2 if words else 0) and words in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == (1 if words else 0)
    assert content is None or not words or path.read_bytes() == content


def test_names_of_models_are_shown_as_words(here: Path) -> None:
    """Written and printed, in the plan, the matrices and the sentences: no escape sequence, script, link or formula."""
    name = "=1+1|<script>[x](javascript:y)\x1b[2J\n"
    files = [
        write("a.jsonl", name, [3, 1, 2]),
        write("b.jsonl", "b", [1, 2, 1]),
        write("c.jsonl", "c\u202e", [1, 1, 3]),
    ]
    result = rpo("judge", *files, "--judge", "scorer:length", "--output", "out")
    assert result.returncode == 0, result.stderr
    said = result.stdout + "".join((here / "out" / f"matrix.{end}").read_text() for end in ("md", "csv"))
    assert "\x1b" not in said and "\u202e" not in said and "\\x1b[2J\\n" in result.stdout
    table = (here / "out" / "matrix.md").read_text()
    assert "&lt;script&gt;\\[x\\]" in table and len({line.count(" | ") for line in table.splitlines()}) == 1
    corner, *cells = next(csv.reader(io.StringIO((here / "out" / "matrix.csv").read_text())))
    assert cells[0].startswith("'=1+1|") and corner == "win rate of row against column"
    assert json.loads((here / "out" / "results.json").read_text())["models"][0] == name


def test_several_models_answer_one_file_of_prompts(here: Path) -> None:
    """Two tiny models, one with its head turned over; judged by length, then by a tiny reward model."""
    from rpo.llm.training.reward_model import as_reward_model, score

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    for name, sign in {"one": 1, "two": -1}.items():
        model.get_output_embeddings().weight.data *= sign
        model.save_pretrained(here / name)
        tokenizer.save_pretrained(here / name)
    (here / "prompts.txt").write_text("w1 w2\nw3\n")
    options = ["--prompts", "prompts.txt", "--max_new_tokens", "6", "--output", "all.jsonl", "--temperature", "0"]
    result = rpo("generate", "--model", "[./one, ./two]", *options)
    assert result.returncode == 0, result.stderr
    assert "2 prompts, 1 responses each of 2 models" in result.stdout
    rows = [json.loads(line) for line in (here / "all.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["./one", "./one", "./two", "./two"]
    assert rows[0]["responses"] != rows[2]["responses"]
    assert rpo("judge", "all.jsonl", "--judge", "scorer:length", "--output", "out").returncode == 0
    record = json.loads((here / "out" / "results.json").read_text())
    words = [len(row["responses"][0].split()) for row in rows]
    expected = np.mean((np.sign(np.subtract(words[:2], words[2:])) + 1) / 2)
    assert record["models"] == ["./one", "./two"] and record["comparisons"][0]["win"]["rate"] == expected
    reward = as_reward_model(tiny_model("llama"), new_head_seed=0)
    reward.save_pretrained(here / "reward")
    tokenizer.save_pretrained(here / "reward")
    result = rpo("judge", "all.jsonl", "--judge", "scorer:model:./reward", "--output", "by_reward")
    assert result.returncode == 0, result.stderr
    record = json.loads((here / "by_reward" / "results.json").read_text())
    rewards = score(reward, tokenizer, [row["prompt"] for row in rows], [row["responses"][0] for row in rows])
    assert record["comparisons"][0]["win"]["rate"] == np.mean(rewards[:2] > rewards[2:])
    refused = rpo("generate", "--model", "[./one, ./one]", "--prompts", "w1")
    assert refused.returncode == 2 and "model: expected different names" in refused.stderr
