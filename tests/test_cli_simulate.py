"""`rpo simulate` as its user meets it."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

from rpo.bandit.simulation.engine import simulate
from rpo.cli import main
from rpo.core.objectives import DPO, RPO

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("simulate_*.yaml"))
GRID = '{"n": [30, 60], "beta": [0.1], "eta": [0.1], "arms": [4]}'


def rpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `rpo simulate` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["simulate", *(str(item) for item in arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def test_the_table_is_that_of_the_function_and_the_summary_says_what_is_in_it(tmp_path: Path) -> None:
    result = rpo("--grid", GRID, "--seeds", 5, "--output", tmp_path / "out")
    assert result.returncode == 0, result
    assert result.stderr == ""
    assert "20 rows: 20 certified" in result.stdout
    frame = pandas.read_parquet(tmp_path / "out" / "table.parquet")
    grid = {"n": [30, 60], "beta": [0.1], "eta": [0.1], "arms": [4]}
    pandas.testing.assert_frame_equal(frame, simulate("coverage_skew", [RPO, DPO], grid, 5, rng=0), check_exact=True)
    mean = frame[(frame["n"] == 60) & (frame["method"] == "DPO")]["gap"].mean()
    assert f"{mean:.4g}" in result.stdout
    names = {"config.yaml", "manifest.json", "shards", "table.parquet", "timings.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_of_many_cells_the_extremes_are_printed(tmp_path: Path) -> None:
    """Twelve cells of DPO, two methods: four rows, which are the smallest and largest mean gaps of the table."""
    grid = '{"n": [30, 60, 90, 120], "beta": [0.1, 0.2, 0.4], "eta": [0.1], "arms": [3]}'
    result = rpo("--grid", grid, "--seeds", 3, "--proxy", "false", "--output", tmp_path / "out")
    assert result.returncode == 0, result
    assert len(result.stdout.splitlines()) < 12 and "24 cells" in result.stdout
    means = pandas.read_parquet(tmp_path / "out" / "table.parquet").groupby(["method", "n", "beta"])["gap"].mean()
    for method in ("RPO", "DPO"):
        rows = [line.split() for line in result.stdout.splitlines() if line.split()[0] == method]
        assert [(row[1], row[2]) for row in rows] == [
            (str(cell[0]), f"{cell[1]:.4g}") for cell in (means[method].idxmin(), means[method].idxmax())
        ]


def test_a_knob_that_a_method_does_not_have_is_blank(tmp_path: Path) -> None:
    """Two beta and two eta: RPO has four rows, DPO two, imitation one, over three seeds each."""
    grid = '{"n": [30], "beta": [0.1, 0.2], "eta": [0.1, 0.2], "arms": [3]}'
    options = ("--methods", "[RPO, DPO, BasePolicy]", "--seeds", 3, "--proxy", "false", "--output", tmp_path / "out")
    result = rpo("--grid", grid, *options)
    assert result.returncode == 0, result
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = {name: [line for line in lines if line[0] == name] for name in ("RPO", "DPO", "BasePolicy")}
    assert [row[1:3] for row in rows["RPO"]] == [["0.1", "0.1"], ["0.1", "0.2"], ["0.2", "0.1"], ["0.2", "0.2"]]
    assert [row[1] for row in rows["DPO"]] == ["0.1", "0.2"] and all(len(row) == 6 for row in rows["DPO"])
    assert [len(row) for row in rows["BasePolicy"]] == [5] and all(row[-1] == "3" for of in rows.values() for row in of)


def test_the_saved_configuration_runs_again_to_the_same_bytes(tmp_path: Path) -> None:
    assert rpo("--grid", GRID, "--seeds", "[3, 1]", "--seed", 9, "--output", tmp_path / "a").returncode == 0
    again = rpo("--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "b", "--jobs", 2)
    assert again.returncode == 0, again
    tables = [(tmp_path / name / "table.parquet").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    assert rpo("--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "c", "--seed", 8).returncode == 0
    assert (tmp_path / "c" / "table.parquet").read_bytes() != tables[0]


def test_the_same_command_continues_and_another_grid_is_refused(tmp_path: Path) -> None:
    command: list[Any] = ["--seeds", 5, "--output", tmp_path, "--table_format", "csv"]
    assert rpo("--grid", GRID, *command).returncode == 0
    table = (tmp_path / "table.csv").read_bytes()
    assert "20 of them taken from an earlier run, 0 computed" in rpo("--grid", GRID, *command).stdout
    shard = tmp_path / "shards" / "0000001.json"
    shard.write_bytes(shard.read_bytes()[:100])
    result = rpo("--grid", GRID, *command)
    assert result.returncode == 0 and "10 of them taken from an earlier run, 10 computed" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "warning" in result.stderr and "0000001.json" in result.stderr and "computed again" in result.stderr
    assert (tmp_path / "table.csv").read_bytes() == table
    other = rpo("--grid", GRID.replace("60", "61"), *command)
    assert other.returncode == 2 and other.stdout == ""
    assert other.stderr.count("\n") == 1
    assert "grid.n: [30, 60] there, [30, 61] here" in other.stderr and "--overwrite true" in other.stderr
    assert (tmp_path / "table.csv").read_bytes() == table
    assert rpo("--grid", GRID.replace("60", "61"), *command, "--overwrite", "true").returncode == 0


def test_what_failed_is_counted_and_said(tmp_path: Path) -> None:
    """Two preferences over four arms leave some arm without a win: no minimiser without a bound."""
    methods = '[{"method": "DPO", "name": "free", "reward_class": "unconstrained"}]'
    grid = '{"n": [2], "beta": [1.0], "arms": [4]}'
    result = rpo("--grid", grid, "--methods", methods, "--seeds", 3, "--output", tmp_path)
    assert result.returncode == 2
    assert "3 rows: 3 failed" in result.stdout and (tmp_path / "table.parquet").exists()
    warning, error = result.stderr.splitlines()
    assert "warning: 3 of 3 rows failed" in warning and "no minimiser" in warning
    assert "error: methods: expected a row with an answer, got 3 that failed." in error
    both = methods.replace("}]", '}, {"method": "DPO"}]')
    result = rpo("--grid", grid, "--methods", both, "--seeds", 3, "--output", tmp_path / "both")
    assert result.returncode == 0 and "6 rows: 3 certified, 3 failed" in result.stdout
    assert result.stderr.count("\n") == 1 and "3 of 6 rows failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["grid"]),
        (["--grid", "[1]"], ["grid"]),
        (["--grid", '{"n": 30}'], ["grid"]),
        (["--grid", '{"beta": [1], "eta": [1]}'], ["grid", "'n'"]),
        (["--grid", '{"n": [30], "beta": [-1], "eta": [1]}'], ["grid.beta", "> 0", "got -1"]),
        (["--grid", GRID, "--instance", "zhou"], ["instance", "coverage_skew"]),
        (["--grid", GRID, "--methods", '[{"method": "PPO"}]'], ["methods", "PPO"]),
        (["--grid", GRID, "--methods", '[{"method": "RPO"}, {"method": "RPO"}]'], ["methods", "different names"]),
        (["--grid", GRID, "--methods", '[{"method": "RPO", "base": "nobody"}]'], ["base", "nobody"]),
        (["--grid", GRID, "--seeds", "0"], ["seeds", "integer in [1, "]),
        (["--grid", GRID, "--seed", "-1"], ["rng", "-1"]),
        (["--grid", GRID, "--jobs", "0"], ["jobs"]),
        (["--grid", GRID, "--backend", "cloud"], ["backend", "cloud"]),
        (["--grid", GRID, "--table_format", "xlsx"], ["table_format", "xlsx"]),
        (["--grid", GRID, "--output", "/proc/nowhere/out"], ["output", "expected a writable folder"]),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = rpo(*([] if "--output" in arguments else ["--output", "out"]), *arguments)
    assert result.returncode == 2, result
    assert result.stdout == "" and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr, result
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_recipe_for_each_figure_family() -> None:
    assert [path.stem for path in RECIPES] == [
        "simulate_coverage",
        "simulate_gap_vs_n",
        "simulate_heatmap",
        "simulate_overoptimization",
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_parses_runs_and_comments_every_key(recipe: Path, tmp_path: Path) -> None:
    """Run with two seeds: every method and cell of the recipe, in about a second."""
    for line in recipe.read_text().splitlines():
        assert not line or "#" in line, line
    assert rpo("--output", "unused", "--config", recipe, "--print_config").returncode == 0
    result = rpo("--config", recipe, "--output", tmp_path, "--seeds", 2)
    assert result.returncode == 0 and result.stderr == "", result
    frame = pandas.read_parquet(tmp_path / "table.parquet")
    assert not (frame["status"] == "failed").any() and frame["gap"].notna().all()


GUIDE = (ROOT / "docs" / "guides" / "own_method.md").read_text()


@pytest.fixture
def boosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with the files of docs/guides/own_method.md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "boosted.py").write_text(re.findall(r"```python\n(.*?)print", GUIDE, re.DOTALL)[0])
    (tmp_path / "boosted.yaml").write_text(re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)[0])
    monkeypatch.delitem(sys.modules, "boosted", raising=False)
    return tmp_path


def test_the_guides_own_method_runs_beside_rpo_and_is_recorded(boosted: Path) -> None:
    command = ["--config", "boosted.yaml", "--output", "out"]
    result = rpo(*command)
    assert result.returncode == 0 and result.stderr == "", result
    printed = "\n".join(result.stdout.splitlines()[:-2])
    assert f"```text\n{printed}\n```" in GUIDE, printed
    frame = pandas.read_parquet(boosted / "out" / "table.parquet")
    found = frame.groupby("method")["status"].unique().map(list).to_dict()
    assert found == {"RPO": ["certified"], "Boosted": ["certified"], "ORPO": ["stationary"]}
    manifest = json.loads((boosted / "out" / "manifest.json").read_text())["config"]
    assert manifest["methods"]["Boosted"][0] | {"name": "Boosted", "beta": 0.5} == manifest["methods"]["Boosted"][0]
    assert list(manifest["code"]) == ["methods.Boosted"]
    assert "60 of them taken from an earlier run" in rpo(*command).stdout

    text = (boosted / "boosted.py").read_text()
    (boosted / "boosted.py").write_text(text.replace("numerics.exp(-z)", "numerics.exp(-2.0 * z)"))
    del sys.modules["boosted"]
    again = rpo(*command)
    assert again.returncode == 2 and "code.methods.Boosted" in again.stderr, again


def test_own_instances_and_baselines_are_named_like_own_methods(boosted: Path) -> None:
    (boosted / "mine.py").write_text(
        "from rpo.bandit import instances\nfrom rpo.bandit.baselines import Greedy\n\n\n"
        "def steep(*, arms, rng):\n    return instances.coverage_skew(arms=arms, skew=2.0, rng=rng)\n\n\n"
        "greedy = Greedy()\n"
    )
    grid = '{"n": [30], "arms": [4]}'
    methods = '[{"method": "mine:greedy", "name": "g"}, {"method": "DPO", "beta": 0.5}]'
    result = rpo("--instance", "mine:steep", "--grid", grid, "--methods", methods, "--seeds", 4, "--output", "out")
    assert result.returncode == 0, result
    frame = pandas.read_parquet(boosted / "out" / "table.parquet")
    assert sorted(set(frame["method"])) == ["DPO", "g"] and (frame["status"] != "failed").all()
    manifest = json.loads((boosted / "out" / "manifest.json").read_text())["config"]
    assert manifest["instance"] == "mine.steep" and "instance" in manifest["code"]
    for methods, word in (
        ('["nowhere:X"]', "No module named 'nowhere'"),
        ('["mine:steep"]', "an objective, a Maximin or a Baseline"),
        ('[{"method": "mine:greedy", "n": 3}]', "no field"),
        ('[{"method": "FDPO", "divergence": "js"}]', "divergence: expected one of 'KL'"),
        (
            '[{"method": "FDPO", "divergence": {"name": "Alpha", "beta": 1}}]',
            "divergence.beta: expected a field of Alpha",
        ),
        ('[{"method": "ORPO", "reward_class": "box"}]', "a convex program"),
    ):
        refused = rpo("--grid", '{"n": [30], "arms": [4]}', "--methods", methods, "--output", "other")
        assert refused.returncode == 2 and word in refused.stderr, refused
