"""`grid:` in a recipe of `rpo train`: which runs there are, what is skipped and continued, the table and the figure."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from test_cli_train import QUIET, SMALL, here, refusals, rpo, tiny  # noqa: F401 (fixtures)

from rpo.commands.sweep import cells, sweep_table
from rpo.core.errors import InvalidArgument

RECIPE: dict[str, Any] = {
    "model": "./model",
    "dataset": "pairs.jsonl",
    "training": {"output_dir": "runs/sweep"},
    "grid": {"objective": ["DPO", {"name": "SimPO", "gamma": 1.0}], "training.seed": [1, 2]},
}
NAMES = ["objective=DPO_seed=1", "objective=DPO_seed=2", "objective=SimPO-1.0_seed=1", "objective=SimPO-1.0_seed=2"]


def sweep(*more: object, recipe: dict[str, Any] = RECIPE) -> Any:
    Path("sweep.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return rpo("train", "--config", "sweep.yaml", *SMALL, *QUIET, *more)


def test_every_combination_is_a_run_and_finished_ones_are_skipped(here: Path) -> None:  # noqa: F811
    """A run without a record is trained again, alike; the table has a row a seed, its Markdown a mean over seeds."""
    done = sweep()
    assert done.returncode == 0, done.stderr
    base = Path("runs/sweep")
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == NAMES
    config = yaml.safe_load((base / NAMES[2] / "config.yaml").read_text())
    assert (config["objective"]["name"], config["objective"]["gamma"], config["training"]["seed"]) == ("SimPO", 1.0, 1)
    frame = pandas.read_csv(base / "sweep.csv")
    assert list(frame["run"]) == NAMES and set(frame["status"]) == {"completed"}
    record = json.loads((base / NAMES[1] / "run.json").read_text())
    last: dict[str, float] = {}
    for row in record["history"]:
        last |= row
    assert frame["loss"][1] == pytest.approx(last["loss"])
    mean = (frame["rewards/margins"][0] + frame["rewards/margins"][1]) / 2
    rows = [line.split("|") for line in (base / "sweep.md").read_text().splitlines()]
    assert [row[1].strip() for row in rows[2:4]] == ["DPO", "SimPO-1.0"] and "training.seed" not in rows[0]
    shown = rows[2][[name.strip() for name in rows[0]].index("rewards/margins")].split()[0]
    assert float(shown) == pytest.approx(mean, rel=0.1)
    weights = (base / NAMES[1] / "model.safetensors").read_bytes()
    shutil.rmtree(base / NAMES[1])
    stamps = [(base / name / "run.json").stat().st_mtime_ns for name in (NAMES[0], *NAMES[2:])]
    again = sweep()
    assert again.returncode == 0 and again.stdout.count("done already") == 3
    assert (base / NAMES[1] / "model.safetensors").read_bytes() == weights
    assert [(base / name / "run.json").stat().st_mtime_ns for name in (NAMES[0], *NAMES[2:])] == stamps
    assert rpo("plot", "runs/sweep", "--output", "a.png").returncode == 0
    assert pandas.read_csv("a.csv")["run"].nunique() == 4


def test_a_killed_run_goes_on_from_its_checkpoint(here: Path) -> None:  # noqa: F811
    recipe = RECIPE | {"grid": {"training.seed": [1]}}
    saving = ["--training.save_strategy", "steps", "--training.save_steps", "2"]
    assert sweep(*saving, recipe=recipe).returncode == 0
    folder = Path("runs/sweep/seed=1")
    weights = (folder / "model.safetensors").read_bytes()
    for name in ("run.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-3")
    kept = (folder / "checkpoint-2" / "manifest.json").stat().st_mtime_ns
    assert sweep(*saving, recipe=recipe).returncode == 0
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "checkpoint-2" / "manifest.json").stat().st_mtime_ns == kept
    (line,) = refusals("train", "--config", "sweep.yaml", *SMALL, *QUIET, *saving, "--training.learning_rate", "1e-2")
    assert "training.learning_rate: expected 0.001, as of the run in" in line


def test_a_run_that_fails_is_said_and_the_others_go_on(here: Path) -> None:  # noqa: F811
    recipe = RECIPE | {"grid": {"training.learning_rate": [1e30, 1e-3]}}
    done = sweep("--training.max_grad_norm", "0", "--training.optim", "sgd", recipe=recipe)
    assert done.returncode == 2 and "loss: expected finite" in done.stderr
    assert list(pandas.read_csv("runs/sweep/sweep.csv")["status"]) == ["not finished", "completed"]


def test_ctrl_c_keeps_the_finished_runs_and_says_how_to_go_on(
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rpo.llm.training import fitting

    fit = fitting.fit

    def interrupted(*given: Any, args: Any, **more: Any) -> Any:
        if args.seed == 2:
            Path(args.output_dir).mkdir(parents=True)
            (Path(args.output_dir) / "config.yaml").write_text("")  # training had begun
            raise KeyboardInterrupt
        return fit(*given, args=args, **more)

    monkeypatch.setattr(fitting, "fit", interrupted)
    done = sweep(recipe=RECIPE | {"grid": {"training.seed": [1, 2, 3]}})
    assert done.returncode == 130
    assert "The finished runs are kept" in done.stderr and "start again with: rpo train --config" in done.stderr
    assert "runs/sweep/seed=2/config.yaml" in done.stderr
    assert (Path("runs/sweep/seed=1") / "run.json").is_file() and not Path("runs/sweep/seed=3").exists()


def test_mistakes_in_any_run_are_said_before_the_first_begins(here: Path) -> None:  # noqa: F811
    done = sweep(recipe=RECIPE | {"grid": {"objective.beta": [0.1, -1.0]}})
    assert (done.returncode, done.stdout) == (2, "") and "beta: expected a finite number > 0" in done.stderr
    done = sweep(recipe=RECIPE | {"grid": {"objective.betta": [0.1]}})
    assert done.returncode == 2 and "betta" in done.stderr
    assert not Path("runs").exists()


def test_the_grid_may_stand_on_the_line(here: Path) -> None:  # noqa: F811
    plain = {key: value for key, value in RECIPE.items() if key != "grid"}
    done = sweep("--grid", "{objective.beta: [0.1, 0.2]}", "--training.max_steps", "1", recipe=plain)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path("runs/sweep").iterdir() if path.is_dir()) == ["beta=0.1", "beta=0.2"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1], "grid: expected lists of values by option"),
        ({"objective.beta": 0.1}, "grid.objective.beta: expected a list of values"),
        ({"training.output_dir": ["a"]}, "grid: expected options that tell runs apart"),
        ({"training.seed": list(range(1001))}, "grid: expected at most 1000 runs"),
    ],
)
def test_what_is_no_grid_is_refused(grid: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        cells(grid)


def test_the_table_has_held_out_numbers_and_no_total_losses_of_several_objectives() -> None:
    """With eta 1 the total is larger by the SFT term, whatever was learned."""
    held_out = {"eval_loss/preference": 0.5, "eval_rewards/margins": 0.2, "eval_displacement/share": 0.75}
    rows = [{"loss": 3.0 + eta, "eval_loss": 4.0 + eta, "loss/preference": 0.4, **held_out} for eta in (0, 1)]
    ends = {"status": ["completed"] * 2}
    for key, dropped in (("objective.eta", True), ("training.learning_rate", False)):
        table = sweep_table(pandas.DataFrame(rows).assign(**{key: ["0", "1"], **ends}), [key])
        names = [name.strip() for name in table.splitlines()[0].split("|")]
        assert {"loss/preference", *held_out} <= set(names)
        assert {"loss", "eval_loss"}.isdisjoint(names) is dropped
        assert ("Not shown: loss, eval_loss" in table) is dropped
    bare = sweep_table(pandas.DataFrame([{"loss": 3.0}] * 2).assign(objective=["SFT", "DPO"], **ends), ["objective"])
    assert "| loss |" in bare


def test_names_are_distinct_and_say_the_key_where_its_end_is_not_enough() -> None:
    found = cells({"a.beta": [0.1], "b.beta": ["x/y", "x y"]})
    assert [one.name for one in found] == ["a.beta=0.1_b.beta=x-y", "a.beta=0.1_b.beta=x-y_1"]
    assert found[0].options() == ["--a.beta=0.1", "--b.beta=x/y"]
    (one,) = cells({"lora": [{"r": 8, "target_modules": ["q_proj"]}]})
    assert one.options() == ["--lora={r: 8, target_modules: [q_proj]}"]
    assert cells({"x": [True, None, 5e-7]})[1].options() == ["--x=null"]
