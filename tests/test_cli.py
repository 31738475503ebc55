"""The command line as its user meets it: in subprocesses, from files."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from rpo.cli import main

ROOT = Path(__file__).parents[1]
CITATIONS = ROOT / "rpo" / "bandit" / "datasets" / "citations.csv"


def rpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process; `test_a_subprocess_behaves_the_same` holds it to the real one."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(item) for item in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """Exit code 2, one line on stderr, nothing on stdout, no traceback; return the line."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_version_and_help() -> None:
    assert rpo("--version").stdout.strip().startswith("rpo 0.")
    page = rpo("--help").stdout
    assert "solve" in page
    assert "compare" in page
    assert "--reward_bound" in rpo("solve", "--help").stdout


def test_a_subprocess_behaves_the_same(tmp_path: Path) -> None:
    for arguments in (["solve", str(CITATIONS)], ["solve", "missing.csv"]):
        command = [sys.executable, "-m", "rpo.cli", *arguments]
        real = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        here = rpo(*arguments)
        assert (real.returncode, real.stdout, real.stderr) == (here.returncode, here.stdout, here.stderr)


def test_solve_prints_and_writes_the_certified_policy(tmp_path: Path) -> None:
    result = rpo("solve", CITATIONS, "--objective.beta", "1", "--output", tmp_path / "out")
    assert result.returncode == 0
    assert "Certified optimal" in result.stdout
    assert "3727 comparisons" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "policy.csv", "solution.json"]
    record = json.loads((tmp_path / "out" / "solution.json").read_text())
    assert record["certificate"]["relative_gap"] <= 1e-7
    assert record["objective"] == {
        "name": "RPO", "beta": 1.0, "eta": 0.01, "sft_reduction": "sequence_sum", "base": "chosen",
    }  # fmt: skip
    frame = pandas.read_csv(tmp_path / "out" / "policy.csv", keep_default_na=False)
    assert frame["response"].iloc[0] == "JRSS-B"
    assert frame["policy"].sum() == pytest.approx(1.0)
    assert frame["wins"].sum() == frame["losses"].sum() == 3727


def test_the_saved_configuration_runs_again_and_flags_override_it(tmp_path: Path) -> None:
    first = rpo("solve", CITATIONS, "--objective.eta", "0.5", "--output", tmp_path / "a")
    assert first.returncode == 0
    again = rpo("solve", "--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "b")
    assert again.returncode == 0
    assert (tmp_path / "a" / "policy.csv").read_bytes() == (tmp_path / "b" / "policy.csv").read_bytes()
    changed = rpo(
        "solve", "--config", tmp_path / "a" / "config.yaml", "--objective.eta", "0.01", "--output", tmp_path / "c"
    )
    assert changed.returncode == 0
    assert (tmp_path / "a" / "policy.csv").read_bytes() != (tmp_path / "c" / "policy.csv").read_bytes()
    assert "eta: 0.01" in (tmp_path / "c" / "config.yaml").read_text()


def test_arena_votes_with_ties_are_counted_and_reported(tmp_path: Path) -> None:
    """Three wins a over b, one b over a, one tie; DPO, beta = 1, reference uniform: pi = (3/4, 1/4)."""
    rows = ["model_a,model_b,winner", "a,b,model_a", "b,a,model_b", "a,b,model_a", "a,b,model_b", "a,b,tie"]
    (tmp_path / "votes.csv").write_text("\n".join(rows) + "\n")
    result = rpo("solve", tmp_path / "votes.csv", "--objective.eta", "0", "--reward_class", "unconstrained")
    assert result.returncode == 0, result
    assert "4 comparisons" in result.stdout
    assert "left out: 1 rows (tie)" in result.stdout
    assert [line.split()[4] for line in result.stdout.splitlines() if line.split()[0] in "ab"] == ["0.75", "0.25"]
    assert "this is DPO" in result.stdout


def test_bad_cells_and_labels_that_look_alike_are_counted_and_named(tmp_path: Path) -> None:
    """One cell is missing; "A" and "A " stay two responses; everything goes to stdout, where the answer is."""
    (tmp_path / "t.csv").write_text("chosen,rejected\nA,B\nA ,B\nB,A\n,B\nesc\x1b[31m\x85,B\n", encoding="utf-8")
    result = rpo("solve", tmp_path / "t.csv", "--output", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert "4 comparisons" in result.stdout
    assert "\x1b" not in result.stdout and r"esc\x1b[31m\x85" in result.stdout  # shown, not sent to the terminal
    assert "left out: 1 rows (missing chosen, first '' at line 5)" in result.stdout
    assert "warning: 1 group(s) of labels" in result.stdout and "'A' and 'A '" in result.stdout
    record = json.loads((tmp_path / "out" / "solution.json").read_text())
    assert record["look_alikes"] == [["A", "A "]]
    assert record["dropped"] == {"missing chosen, first '' at line 5": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "missing.csv"], ["path", "expected a readable file", "missing.csv"]),
        (["solve", CITATIONS, "--objective.beta", "-1"], ["beta", "expected a finite number > 0", "got -1.0"]),
        (["solve", CITATIONS, "--objective.eta", "-1"], ["eta", "expected a finite number >= 0", "use eta >= 0"]),
        (["solve", CITATIONS, "--objective.beta", "many"], ["beta"]),
        (["solve", CITATIONS, "--reward_bound", "0"], ["reward_bound", "> 0"]),
        (["solve", CITATIONS, "--typo", "1"], ["--typo"]),
        (["solve", CITATIONS, "--reward_class", "sphere"], ["reward_class", "sphere"]),
        (["solve", CITATIONS, "--output", "/proc/nowhere/out"], ["output", "expected a writable folder"]),
        (["compare", "--output", "/proc/nowhere/out"], ["output", "expected a writable folder"]),
        (["compare", "--output", "unused", "--objective.eta", "0"], ["objective", "eta > 0"]),
        (["compare"], ["output"]),
        (["solve"], ["pairs"]),
        (["train"], ["train"]),
        ([], ["command"]),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(rpo(*arguments))
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def models(path: Path, size: int, n: int) -> Path:
    """Write n comparisons of `size` models whose strengths are standard normal."""
    g = np.random.default_rng(0)
    strength = g.normal(size=size)
    a = g.integers(size, size=n)
    b = (a + g.integers(1, size, size=n)) % size
    won = g.random(n) < 1 / (1 + np.exp(strength[b] - strength[a]))
    outcome = np.where(won, "model_a", "model_b")
    pandas.DataFrame({"model_a": a, "model_b": b, "winner": outcome}).to_csv(path, index=False)
    return path


def texts(path: Path, n: int) -> Path:
    """Write n comparisons of two texts of their own, at a prompt of its own."""
    long = "word " * 40
    rows = {name: [f"{long}{name} {i}" for i in range(n)] for name in ("prompt", "chosen", "rejected")}
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("options", [[], ["--reward_class", "unconstrained", "--objective.base", "reference"]])
def test_texts_that_occur_once_take_memory_for_themselves_only(tmp_path: Path, options: list[str]) -> None:
    """2,000 rows: one table over all prompts and texts would be 64 MB, one of wins 32 GB. Lines stay short."""
    path = texts(tmp_path / "t.csv", 2000)
    tracemalloc.start()
    result = rpo("solve", path, *options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.returncode == 0 and "Certified optimal" in result.stdout, result
    assert "2000 distinct comparisons at 2000 prompt(s)" in result.stdout
    assert peak < 60e6
    assert max(map(len, result.stdout.splitlines()[1:30])) < 250


@pytest.mark.parametrize(
    ("write", "memory"),
    [
        pytest.param(lambda path: models(path, 1000, 10**6), 1e9, id="1,000 models, 1e6 comparisons"),
        pytest.param(lambda path: texts(path, 3000), 5e8, id="3,000 rows of free text"),
        pytest.param(lambda path: texts(path, 30_000), 1e9, id="30,000 rows of free text"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_solve_at_scale_in_a_minute_and_modest_memory(tmp_path: Path, write: Any, memory: float) -> None:
    """The peak is that of the process itself, as the kernel counts it; a minute on an idle core, three on a busy."""
    path = write(tmp_path / "t.csv")
    script = (
        "import sys\nfrom pathlib import Path\nfrom rpo.cli import main\ncode = main(sys.argv[1:])\n"
        "print('peak', Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\nsys.exit(code)"
    )
    command = [sys.executable, "-c", script, "solve", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "Certified optimal" in done.stdout
    assert float(done.stdout.split("peak ")[1]) * 1024 < memory


def test_an_unknown_configuration_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("reward_bounds: 3\n")
    assert "reward_bounds" in refused(rpo("solve", CITATIONS, "--config", tmp_path / "bad.yaml"))
    (tmp_path / "broken.yaml").write_text("reward_bound: [3\n")
    assert "config" in refused(rpo("solve", CITATIONS, "--config", tmp_path / "broken.yaml"))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
CONFIGS: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"pairs: \xff\n", "config: expected text in UTF-8"),
    "UTF-16": ("reward_bound: 3".encode("utf-16"), "config: expected text in UTF-8"),
    "bytes": (bytes(range(256)), "config: expected text in UTF-8"),
    "bomb": (BOMB.encode(), "its aliases stand for more than 1,000,000 values"),
    "holds itself": (b"objective: &a [*a]\n", "aliases"),
    "deep": (b"objective: " + b"[" * 5000 + b"]" * 5000, "nest"),
    "a config in a config": (b"config: other.yaml\n", "config: expected options in"),
    "a list": (b"- 1\n", "Unexpected config"),
    "a NUL": (b'output: "a\\0b"\n', "output: expected text without a NUL"),
    "a tag": (b"pairs: !!python/name:os.system\n", "tag"),
    "a control character": (b'output: "\x07"\n', "control characters"),
    "an integer of 400 digits": (b"max_rows: 1\nreward_bound: " + b"9" * 400, "reward_bound"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_files_that_no_parser_likes(name: str, tmp_path: Path) -> None:
    content, words = CONFIGS[name]
    (tmp_path / "c.yaml").write_bytes(content)
    result = rpo("solve", CITATIONS, "--config", tmp_path / "c.yaml")
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert words in result.stderr and max(map(len, result.stderr.split())) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["solve", CITATIONS, "--reward_bound", "9" * 400],
        ["solve", CITATIONS, "--objective.beta", "9" * 400],
        ["solve", CITATIONS, "--reward_bound", "9" * 5000],
        ["simulate", "--output", "s", "--grid", '{"n": [%s]}' % ("9" * 400)],
        ["simulate", "--output", "s", "--grid", "[" * 5000 + "]" * 5000],
        ["simulate", "--output", "s", "--grid", '{"n": [3], "beta": [1], "eta": [1]}', "--seed", "9" * 400],
        ["compare", "--output", "s", "--prompts", "9" * 400],
        ["explore", "--port", "9" * 400],
        ["solve", "o" * 5000],
        ["solve", CITATIONS, "--output", "o" * 5000],
        ["solve", CITATIONS, "--output", "/".join("o" * 200 for _ in range(100))],
        ["solve", CITATIONS, "--config", "o" * 5000],
        ["9" * 5000],
    ],
    ids=lambda arguments: " ".join(str(one)[:14] for one in arguments),
)
def test_long_numbers_deep_values_and_long_paths(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(refused(rpo(*arguments))) < 2000
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_no_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "expected a folder" in refused(rpo("solve", CITATIONS, "--output", tmp_path / "pipe", "--overwrite", "true"))
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "policy.csv")
    result = rpo("solve", CITATIONS, "--output", tmp_path / "out")
    assert result.returncode == 2 and "special file" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["policy.csv"]


@pytest.mark.parametrize(
    "command",
    [["solve", CITATIONS], ["compare"], ["simulate", "--grid", '{"n": [30], "beta": [0.1], "eta": [0.1]}']],
    ids=lambda command: command[0],
)
def test_a_folder_that_another_run_has_is_refused(command: list[str], tmp_path: Path) -> None:
    code = "import sys, time; from rpo.core.locks import alone\nwith alone(sys.argv[1]): print(1, flush=True), input()"
    holder = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        line = refused(rpo(*command, "--output", tmp_path / "out"))
        assert "is in use by another run" in line and f"process {process.pid} on" in line
        process.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line_that_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the parser, in the work, in a simulation between two chunks, which the same command then ends."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("rpo.cli.build_parser", "rpo.bandit.maximin.build_saddle"):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupt)
            result = rpo("solve", CITATIONS, "--output", tmp_path / "out")
        assert (result.returncode, result.stdout) == (130, "")
        assert result.stderr == "rpo solve: interrupted. Nothing was written; the same command starts again.\n"
        assert list(tmp_path.iterdir()) == []
    command = ["simulate", "--grid", '{"n": [30, 60], "beta": [0.1], "eta": [0.1]}', "--seeds", 3, "--output", tmp_path]
    from rpo.bandit.simulation.store import GridStore

    with monkeypatch.context() as patched:  # before it is known which folder it is
        patched.setattr("rpo.cli.build_parser", interrupt)
        result = rpo(*command)
    assert (result.returncode, result.stderr.count("\n")) == (130, 1) and "Nothing was written" in result.stderr

    save = GridStore.save
    with monkeypatch.context() as patched:
        patched.setattr(GridStore, "save", lambda self, index, *a: interrupt() if index else save(self, index, *a))
        result = rpo(*command)
    assert result.returncode == 130
    assert f"The finished chunks are kept in {tmp_path}; the same command continues." in result.stderr
    assert rpo(*command).returncode == 0 and (tmp_path / "table.parquet").exists()


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    command = [sys.executable, "-m", "rpo.cli", "solve", str(CITATIONS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr is not None and process.stderr.read() == ""


def test_secrets_do_not_reach_the_saved_configuration(tmp_path: Path) -> None:
    """Of `rpo judge`, whose further options may hold one; the file says which was left out, and still parses."""
    from rpo.cli import build_parser
    from rpo.commands.parsing import resolved_text

    _, parser = build_parser("judge")
    options = parser.parse_args(
        ["a.jsonl", "--judge", "x", "--output", "o", "--options", '{"api_key": "sk-1", "max_completion_tokens": 5}']
    )
    text = resolved_text(parser, options)
    assert "sk-1" not in text and "max_completion_tokens: 5" in text and "api_key_env: OPENAI_API_KEY" in text
    assert text.startswith("# Not kept here, for it is secret: options.api_key. Give it again where it is needed.\n")
    (tmp_path / "c.yaml").write_text(text)
    again = parser.parse_args(["--config", str(tmp_path / "c.yaml")])
    assert again["options"] == {"api_key": None, "max_completion_tokens": 5}


def test_data_without_a_minimiser_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("chosen,rejected\na,b\nb,c\n")
    line = refused(
        rpo("solve", tmp_path / "pairs.csv", "--reward_class", "unconstrained", "--output", tmp_path / "out")
    )
    assert "response 2 has no mass under pi_base" in line
    assert "response 2 is 'c'" in line
    assert "Use Box(R) (--reward_class box), or a base of full support" in line
    assert not (tmp_path / "out").exists()


def test_at_eta_zero_no_base_is_offered_as_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("question,chosen,rejected\nq,a,b\n")
    options = ["--reward_class", "unconstrained", "--objective.eta", "0", "--prompt_column", "question"]
    line = refused(rpo("solve", tmp_path / "pairs.csv", *options))
    assert "response 0 is 'a', response 1 is 'b'" in line
    assert "base" not in line.split("Use Box(R)")[1]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("my question,chosen,rejected,note\nq,a,b,x\n")
    assert "columns not used: my question, note" in rpo("solve", tmp_path / "pairs.csv").stdout


def test_an_earlier_result_is_kept_unless_overwrite_is_asked(tmp_path: Path) -> None:
    assert rpo("solve", CITATIONS, "--output", tmp_path / "out").returncode == 0
    before = (tmp_path / "out" / "solution.json").read_bytes()
    assert "overwrite" in refused(rpo("solve", CITATIONS, "--output", tmp_path / "out"))
    assert (tmp_path / "out" / "solution.json").read_bytes() == before
    again = rpo("solve", CITATIONS, "--output", tmp_path / "out", "--overwrite", "true")
    assert again.returncode == 0


def test_compare_writes_its_report_and_is_quiet_when_not_a_terminal(tmp_path: Path) -> None:
    small = [
        "--prompts",
        2,
        "--vocab_size",
        2,
        "--length",
        2,
        "--num_preferences",
        200,
        "--steps",
        40,
        "--skew_draws",
        2,
    ]
    result = rpo("compare", "--output", tmp_path / "out", "--objective.beta", 0.5, *small)
    assert result.returncode == 0, result
    assert result.stderr == ""
    assert "against the convex program" in result.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert "steps: 40" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["compare", "solve"])
def test_each_recipe_parses_and_comments_every_key(name: str) -> None:
    recipe = ROOT / "recipes" / f"{name}.yaml"
    extra = [str(CITATIONS)] if name == "solve" else ["--output", "unused"]
    result = rpo(name, *extra, "--config", recipe, "--print_config")
    assert result.returncode == 0, result
    for line in recipe.read_text().splitlines():
        if line and not line.startswith("#") and line != "objective:":
            assert "#" in line, line
