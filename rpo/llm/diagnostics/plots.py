"""Training runs overlaid, as in the paper's Figure 1: the chosen log-probability along training, RPO beside DPO."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.records import Run, read_json
from rpo.llm.training.checkpoints import MANIFEST
from rpo.plotting import CYCLE, FORMATS, band, band_key, colors_of, figure_size, save, style

if TYPE_CHECKING:
    import pandas

RECORD, STATE = "run.json", "trainer_state.json"
EVAL, ERROR = "eval_", "_se"
# Title and unit of a metric; one not listed goes by its name.
TITLES = {
    "logps/chosen": ("Log-probability of chosen responses", "nats per response"),
    "logps/rejected": ("Rejected responses", "nats per response"),
    "logps/chosen_per_token": ("Chosen, per token", "nats per token"),
    "logps/rejected_per_token": ("Rejected, per token", "nats per token"),
    "rewards/margins": ("Implicit reward margin", "reward units"),
    "rewards/accuracies": ("Pairs ranked right", "share"),
    "loss/preference": ("Preference loss", "nats"),
    "loss/sft": ("SFT loss, unweighted", "nats"),
    "displacement/chosen_change": ("Chosen responses, change since the start", "nats per response"),
    "displacement/share": ("Pairs whose chosen fell", "share"),
    "kl/reference": ("KL to the reference", "nats per response"),
}
METRICS = (
    "logps/chosen",
    "logps/rejected",
    "rewards/margins",
    "displacement/share",
    "loss/preference",
    "loss/sft",
    "kl/reference",
)
# Zero before the first update, whatever the method.
FROM_ZERO = ("displacement/chosen_change", "displacement/rejected_change", "displacement/share", "kl/reference")
LEVELS = {"rewards/margins": 0.0, "loss/preference": math.log(2.0)}  # where an untrained policy is


@dataclass(frozen=True)
class Series:
    """A run as it is drawn: its name, its objective as recorded ({} where it was not), its logged rows."""

    name: str
    objective: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @property
    def label(self) -> str:
        """The name with beta and eta, for legends."""
        known = [f"{key} = {self.objective[key]:g}" for key in ("beta", "eta") if key in self.objective]
        return f"{self.name} ({', '.join(known)})" if known else self.name

    def values(self, metric: str) -> tuple[Array, Array]:
        """Return steps and values of a metric, (K,) each; of rows with the same step the last counts."""
        found = {row.get("step"): _number(row.get(metric)) for row in self.history if metric in row}
        kept = sorted((step, value) for step, value in found.items() if step is not None and value is not None)
        table = np.asarray(kept, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def has(self, metric: str) -> bool:
        """Whether it was logged, in training or in evaluation."""
        return any(self.values(name)[0].size for name in (metric, EVAL + metric))


def plot_runs(
    runs: str | Path | Run | Iterable[str | Path | Run],
    *,
    metrics: Sequence[str] = METRICS,
    window: int = 1,
    title: str = "",
    output: str | Path | None = None,
) -> Figure:
    """Overlay runs along training: the first metric in a large panel, the others in small ones.

    runs: each a `Run`, a folder that `Run.save` wrote, or a trainer's output folder (trainer_state.json
    in it, or in its newest checkpoint). Solid lines are training batches, dashed ones evaluations, bands
    two standard errors where those were logged. An evaluation that is zero at the start by its definition, a change
    or a distance, is drawn from there. window: logs in a trailing mean, the raw lines then faint. title: above all.
    A metric that no run logged has no panel; a note names what is missing. output: a .png,
    .pdf or .svg to write, with the data as CSV beside it. Raises InvalidArgument, OutputError.
    """
    window = checks.integer("window", window, minimum=1)
    target = None if output is None else Path(output)
    if target is not None and target.suffix.lower().removeprefix(".") not in FORMATS:
        expected = "a name ending in .png, .pdf or .svg"
        raise InvalidArgument("output", expected=expected, got=str(output), remedy="Rename it.")
    series = read_runs(runs)
    wanted = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    drawn = [metric for metric in wanted if any(one.has(metric) for one in series)]
    if not drawn:
        logged = {name for one in series for row in one.history for name in row if one.has(name)} - {"step", "epoch"}
        raise InvalidArgument(
            "metrics",
            expected="a metric that some run logged: " + (", ".join(sorted(logged)) or "none was"),
            got=", ".join(wanted) or "none",
            remedy="Choose among them.",
        )
    colors = _colors(series)
    with style():
        figure, axes = _layout(len(drawn))
        for metric, axis in zip(drawn, axes, strict=True):
            _draw(axis, metric, series, colors, window)
        handles = [axes[0].plot([], [], color=color)[0] for color in colors]
        labels = [one.label for one in series]
        if any(one.values(EVAL + metric)[0].size for one in series for metric in drawn):
            handles.append(axes[0].plot([], [], "o--", markersize=3.5, color="#777777")[0])
            labels.append("evaluation")
        if any(one.values(metric + ERROR)[0].size for one in series for metric in drawn):
            handles.append(band_key())
            labels.append("two standard errors")
        per_row = max(1, int(14 * figure.get_figwidth()) // (9 + max(len(label) for label in labels)))
        named = {"title": checks.instance("title", title, str) or None, "title_fontsize": 11, "alignment": "left"}
        figure.legend(handles, labels, loc="outside upper left", ncols=min(per_row, len(labels)), **named)
        notes = _notes(series, wanted, drawn, window)
        if notes:
            text = "\n".join(textwrap.wrap(notes, int(17 * figure.get_figwidth())))
            figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555555")
    if target is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save(figure, target, runs_frame(series, drawn))
        except OSError as error:
            raise OutputError(f"output: writing {target} failed ({error}). Choose another path.") from error
    return figure


def runs_frame(series: Sequence[Series], metrics: Sequence[str]) -> pandas.DataFrame:
    """Return what `plot_runs` draws as tidy rows: run, metric (eval_ in front for evaluations), step, value."""
    import pandas

    names = [name for metric in metrics for name in (metric, metric + ERROR, EVAL + metric)]
    rows = [
        (one.label, name, int(step), value)
        for one in series
        for name in names
        for step, value in zip(*one.values(name), strict=True)
    ]
    return pandas.DataFrame(rows, columns=["run", "metric", "step", "value"])


# --- reading -------------------------------------------------------------------------------------


def read_runs(runs: str | Path | Run | Iterable[str | Path | Run]) -> list[Series]:
    """Return the runs with distinct names; arguments and errors as for `plot_runs`."""
    given = [runs] if isinstance(runs, (str, Path, Run)) else list(runs)
    if not given:
        raise InvalidArgument("runs", expected="at least one run", got="none", remedy="Pass folders of runs.")
    series: list[Series] = []
    for run in given:
        one = _from_record(run.to_dict(), run.label) if isinstance(run, Run) else _from_folder(Path(run))
        taken = {other.label for other in series}
        name, copy = one.name, 1
        while one.label in taken:
            copy += 1
            one = replace(one, name=f"{name} #{copy}")
        series.append(one)
    return series


def _from_folder(folder: Path) -> Series:
    if (folder / RECORD).is_file():
        return _from_record(_json(folder / RECORD), str(folder))
    checkpoints = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}") if path.parent.name[11:].isdecimal()]
    places = [folder, *sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True)]
    state = next((place / STATE for place in places if (place / STATE).is_file()), None)
    if state is None:
        raise InvalidArgument(
            "runs",
            expected=f"a run's folder, with {RECORD}, {STATE} or checkpoint-<step>/{STATE}",
            got=f"{folder}, " + ("which has none of them" if folder.is_dir() else "which is not a folder"),
            remedy="Pass the output folder of a training run.",
        )
    history = _json(state).get("log_history")
    manifest = next((place / MANIFEST for place in places if (place / MANIFEST).is_file()), None)
    identity = {} if manifest is None else _json(manifest).get("run", {})
    objective = identity.get("objective") if isinstance(identity, dict) else None
    path = folder.resolve()
    name = f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name
    return Series(name, objective if isinstance(objective, dict) else {}, _rows(history, state))


def _from_record(record: Mapping[str, Any], source: str) -> Series:
    if record.get("path", "step") != "step":
        raise InvalidArgument(
            "runs",
            expected="runs along training steps",
            got=f"{source}, which runs along {record['path']}",
            remedy="Leave it out, or use rpo.compare.plot.",
        )
    objective = record.get("objective")
    objective = objective if isinstance(objective, dict) else {}
    return Series(str(record.get("label", source)), objective, _rows(record.get("history"), source))


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"runs: {path} cannot be read ({error}). Pass a run whose files are whole.") from error


def _rows(history: Any, source: object) -> list[dict[str, Any]]:
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise OutputError(f"runs: expected a list of logged rows in {source}, got something else. Pass another run.")
    return history


def _number(value: Any) -> float | None:
    """Return a logged number; records hold NaN and infinity as text. None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None


# --- drawing -------------------------------------------------------------------------------------


def _colors(series: Sequence[Series]) -> list[Any]:
    """Return a colour a run: its method's, tints of it for further runs; a scale for many runs of one method."""
    methods = [str(one.objective.get("name", one.name)) for one in series]
    if len(series) > len(CYCLE) and len(set(methods)) == 1:
        return [matplotlib.colormaps["viridis"](place) for place in np.linspace(0.0, 0.92, len(series))]
    return colors_of(methods)


def _layout(panels: int) -> tuple[Figure, list[Any]]:
    """Return a large panel on the left and the others, small, in up to three columns beside it."""
    small = panels - 1
    columns = min(3, (small + 1) // 2)
    rows = max(1, -(-small // max(1, columns)))
    figure = Figure(figsize=figure_size(5.0 + 2.75 * columns, 0.9 + max(3.3, 2.15 * rows)))
    grid = figure.add_gridspec(rows, 1 + columns, width_ratios=[1.75] + [1.0] * columns)
    axes = [figure.add_subplot(grid[:, 0])]
    for place in range(small):
        axes.append(figure.add_subplot(grid[place // columns, 1 + place % columns], sharex=axes[0]))
    return figure, axes


def _draw(axis: Any, metric: str, series: Sequence[Series], colors: Sequence[Any], window: int) -> None:
    large = axis.get_subplotspec().colspan.start == 0
    width = 2.0 if large else 1.4
    if metric in LEVELS:
        axis.axhline(LEVELS[metric], color="#777777", linewidth=0.8, linestyle=":")
    for one, color in zip(series, colors, strict=True):
        steps, values = one.values(metric)
        if window > 1:
            axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        line = [values[max(0, k + 1 - window) : k + 1].mean() for k in range(values.size)]
        axis.plot(steps, line, color=color, linewidth=width, marker="o" if steps.size == 1 else "", markersize=4)
        at, error = one.values(metric + ERROR)
        if np.array_equal(at, steps):
            band(axis, metric, steps, values, 2 * error, color=color)
        at, evaluated = one.values(EVAL + metric)
        if metric in FROM_ZERO and at.size and at[0] > 0:
            at, evaluated = np.r_[0.0, at], np.r_[0.0, evaluated]
        axis.plot(at, evaluated, "o--", color=color, linewidth=0.8 * width, markersize=3.5)
    title, unit = TITLES.get(metric, (metric, ""))
    axis.set_title(title, fontsize=11 if large else 9)
    axis.set_ylabel(unit, fontsize=10 if large else 8)
    axis.tick_params(labelsize=9 if large else 8)
    axis.set_xlabel("training step", fontsize=10 if large else 8)
    if unit == "share":
        axis.set_ylim(-0.03, 1.03)


def _notes(series: Sequence[Series], wanted: Sequence[str], drawn: Sequence[str], window: int) -> str:
    notes = []
    absent = [metric for metric in wanted if metric not in drawn]
    if absent:
        notes.append("Not logged: " + ", ".join(absent) + ".")
    for one in series:
        lacking = [metric for metric in drawn if not one.has(metric)]
        if lacking:
            notes.append(f"Not logged by {one.label}: {', '.join(lacking)}.")
    if window > 1:
        notes.append(f"Lines: trailing mean of {window} logs; faint: each log.")
    return " ".join(notes)
