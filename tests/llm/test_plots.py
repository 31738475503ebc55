"""Figures of training runs: what is read from which file, and what the figure says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.objectives import DPO, RPO, Objective
from rpo.core.records import Run
from rpo.llm.diagnostics.plots import Series, plot_runs, read_runs
from rpo.plotting import COLORS

RPO_RUN, DPO_RUN = RPO(beta=0.1, eta=0.005), DPO(beta=0.1)


def history(slope: float = -1.0, **more: Any) -> list[dict[str, Any]]:
    """Logs at steps 0, 10, 20 with logps/chosen = -100 + slope * step."""
    return [{"step": step, "epoch": step / 20, "logps/chosen": -100 + slope * step, **more} for step in (0, 10, 20)]


def run(label: str = "run", objective: Objective = RPO_RUN, rows: list[dict[str, Any]] | None = None) -> Run:
    return Run(
        label=label,
        objective=objective.to_dict(),
        config={},
        status="converged",
        message="",
        history=history() if rows is None else rows,
        arrays={"policy": np.ones((1, 1))},
    )


def trainer_folder(folder: Path, rows: list[dict[str, Any]], objective: Objective | None = None) -> Path:
    """Write what a trainer leaves: trainer_state.json, and where the objective is known its manifest."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    if objective is not None:
        (folder / "manifest.json").write_text(json.dumps({"files": {}, "run": {"objective": objective.to_dict()}}))
    return folder


def words(figure: Figure) -> str:
    figure.draw_without_rendering()
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


# --- reading ---------------------------------------------------------------------------------------


def test_a_saved_run_a_run_and_a_trainers_folder_are_read_alike(tmp_path: Path) -> None:
    run("saved").save(tmp_path / "a")
    trainer_folder(tmp_path / "b", history(), RPO_RUN)
    found = read_runs([tmp_path / "a", str(tmp_path / "b"), run("given")])
    assert [one.label for one in found] == [f"{name} (beta = 0.1, eta = 0.005)" for name in ("saved", "b", "given")]
    for one in found:
        steps, values = one.values("logps/chosen")
        assert steps.tolist() == [0, 10, 20] and values.tolist() == [-100, -110, -120]


def test_the_newest_checkpoint_speaks_for_an_unfinished_run(tmp_path: Path) -> None:
    """By its number, 100 after 20; the folder's own state, written at the end, goes before both."""
    for step in (20, 100):
        trainer_folder(tmp_path / "run" / f"checkpoint-{step}", [{"step": step, "loss": 1.0}], DPO_RUN)
    (found,) = read_runs(tmp_path / "run")
    assert found.label == "run (beta = 0.1)" and found.values("loss")[0].tolist() == [100]
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 120, "loss": 1.0}]}))
    (found,) = read_runs(tmp_path / "run")
    assert found.label == "run (beta = 0.1)" and found.values("loss")[0].tolist() == [120]
    (found,) = read_runs(tmp_path / "run" / "checkpoint-20")
    assert found.label == "run/checkpoint-20 (beta = 0.1)"


def test_records_hold_nan_as_text_and_the_last_row_of_a_step_counts() -> None:
    rows = [{"step": 1, "x": 1.0}, {"step": 0, "x": "nan"}, {"step": 1, "x": 2}, {"step": 2, "x": "a sentence"}]
    steps, values = Series("", {}, rows).values("x")
    assert steps.tolist() == [0, 1] and math.isnan(values[0]) and values[1] == 2


def test_runs_of_one_name_stay_apart() -> None:
    assert [one.name for one in read_runs([run(), run(), run(objective=DPO_RUN), run()])] == [
        "run",
        "run #2",
        "run",
        "run #3",
    ]


def test_what_is_no_run_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = r"run\.json, trainer_state\.json or checkpoint-<step>/trainer_state\.json, got .*"
    with pytest.raises(InvalidArgument, match=wanted + "which has none of them"):
        plot_runs(tmp_path)
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(InvalidArgument, match=wanted + "which is not a folder"):
            plot_runs([path])
    with pytest.raises(InvalidArgument, match="at least one run"):
        plot_runs([])
    along_beta = run()
    along_beta.path = "beta"
    with pytest.raises(InvalidArgument, match="run, which runs along beta"):
        plot_runs(along_beta)


@pytest.mark.parametrize("text", ["[" * 50_000, "{", "[]", '{"log_history": 3}', '{"log_history": [3]}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(OutputError, match=r"trainer_state\.json"):
        plot_runs(tmp_path)


# --- drawing ---------------------------------------------------------------------------------------


def test_runs_are_overlaid_in_their_colours_with_evaluations_and_errors() -> None:
    """One panel a metric, the first as tall as the figure; RPO and DPO keep the colours they have elsewhere."""
    rows = [row | {"kl/reference": row["step"] / 10, "kl/reference_se": 0.5} for row in history()]
    rows += [{"step": 20, "eval_logps/chosen": -130.0}]
    figure = plot_runs(
        [run("a", rows=rows), run("b", DPO_RUN, history(-2.0))], metrics=("logps/chosen", "kl/reference")
    )
    large, small = figure.axes
    solid = {line.get_color(): list(line.get_ydata()) for line in large.lines if line.get_linestyle() == "-"}
    dashed = next(line for line in large.lines if line.get_linestyle() == "--" and len(line.get_xdata()))
    assert list(dashed.get_xdata()) == [20] and list(dashed.get_ydata()) == [-130]
    assert {COLORS["RPO"], COLORS["DPO"]} <= set(solid)
    band = small.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.0, 3.0))  # 0 - 2 * 0.5, but no KL is below 0; 2 + 2 * 0.5
    said = words(figure)
    labels = ("a (beta = 0.1, eta = 0.005)", "b (beta = 0.1)")
    for text in (*labels, "evaluation", "two standard errors", "Not logged by b (beta = 0.1): kl/reference."):
        assert text in said
    assert large.get_position().height > 0.6


def test_a_metric_nobody_logged_has_no_panel_but_a_note() -> None:
    figure = plot_runs(run(rows=history(**{"loss/preference": 0.5})))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Log-probability of chosen responses",
        "Preference loss",
    ]
    assert "Not logged: logps/rejected, rewards/margins" in words(figure)
    with pytest.raises(InvalidArgument, match="expected a metric that some run logged: logps/chosen, got gold"):
        plot_runs(run(), metrics="gold")


def test_a_trailing_mean_by_hand() -> None:
    """-100, -110, -120 over windows of two logs: -100, -105, -115; the raw line stays, faint."""
    figure = plot_runs(run(), metrics="logps/chosen", window=2)
    raw, mean = (list(line.get_ydata()) for line in figure.axes[0].lines[:2])
    assert raw == [-100, -110, -120] and mean == [-100, -105, -115]
    assert "trailing mean of 2 logs" in words(figure)


@pytest.mark.parametrize("runs", [1, 2, 7, 9])
def test_every_run_has_a_colour_of_its_own(runs: int) -> None:
    figure = plot_runs([run(objective=RPO(beta=0.1, eta=0.01 * k)) for k in range(runs)], metrics="logps/chosen")
    assert len({str(line.get_color()) for line in figure.axes[0].lines if len(line.get_xdata())}) == runs


def test_the_picture_is_written_with_its_data(tmp_path: Path) -> None:
    target = tmp_path / "new" / "runs.png"
    plot_runs([run("a"), run("b", DPO_RUN)], output=target)
    with Image.open(target) as image:
        assert image.size[0] > 400
    data = pd.read_csv(target.with_suffix(".csv"))
    assert list(data) == ["run", "metric", "step", "value"] and len(data) == 6
    plot_runs([run("a")], output=target.with_suffix(".pdf"))
    assert target.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InvalidArgument, match=r"ending in \.png"):
        plot_runs(run(), output=tmp_path / "runs.jpg")
    with pytest.raises(OutputError, match="writing"):
        plot_runs(run(), output=target / "below-a-file.png")


def test_an_evaluation_that_starts_at_zero_is_drawn_from_there_and_others_are_not() -> None:
    """A change since the start is zero at step 0 by definition; a log-probability there is not known."""
    history = [{"step": 4, "eval_displacement/chosen_change": -2.0, "eval_logps/chosen": -50.0}]
    run = Run(label="a", objective={}, config={}, status="", message="", history=history, arrays={})
    figure = plot_runs(run, metrics=("displacement/chosen_change", "logps/chosen"), title="What it shows")
    drawn = {axis.get_title(loc="left"): [line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes}
    assert [[0.0, 0.0], [4.0, -2.0]] in drawn["Chosen responses, change since the start"]
    assert [[4.0, -50.0]] in drawn["Log-probability of chosen responses"]
    assert figure.legends[0].get_title().get_text() == "What it shows"
