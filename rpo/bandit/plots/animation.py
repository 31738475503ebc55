"""An animation of one run: the policy over the data, and the chosen and rejected log-probabilities, DPO beside RPO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit
from rpo.bandit.maximin import solve
from rpo.bandit.metrics import policy_metrics
from rpo.bandit.problem import ContextualBandit, SoftmaxPolicy
from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.objectives import DPO, RPO, Solvable
from rpo.plotting import COLORS, new_figure, style

if TYPE_CHECKING:
    import pandas

ALONG = ("step", "beta")
HOLD = 2000  # milliseconds on the last frame
LOGPS = ("logps/chosen", "logps/rejected")


def run_frame(
    problem: ContextualBandit,
    data: PreferenceCounts,
    *,
    beta: float,
    eta: float,
    along: str = "step",
    policy: SoftmaxPolicy | None = None,
    points: Sequence[float] | None = None,
    learning_rate: float = 1.0,
) -> pandas.DataFrame:
    """Return DPO's and RPO's policies and log-probabilities along a path, one row a (method, point).

    along: "step", gradient descent from `policy` (default a table at pi_ref), at these step counts; or
    "beta", certified optima at these temperatures, largest first (`beta` is then not used). points: None
    for 40 of either. Columns: method, `along`, loss, logps/chosen, logps/rejected, reward/gold where
    known, p<x>.<a>. Raises InvalidArgument.
    """
    import pandas

    checks.one_of("along", along, ALONG)
    checks.instance("problem", problem, ContextualBandit)
    checks.instance("data", data, PreferenceCounts)
    if along == "beta":
        values = np.geomspace(2.0, 0.02, 40) if points is None else checks.finite("points", points)
        rows = _beta_rows(problem, data, eta, sorted((checks.positive("points", v) for v in values), reverse=True))
    else:
        values = np.unique(np.geomspace(1, 3000, 40).round()) if points is None else checks.numbers("points", points)
        steps = sorted({0, *(checks.integer("points", v, minimum=0) for v in values)})
        start = problem.softmax_policy() if policy is None else policy
        rows = []
        pair: tuple[tuple[str, Solvable], ...] = (("DPO", DPO(beta=beta)), ("RPO", RPO(beta=beta, eta=eta)))
        for method, objective in pair:
            rows += [
                {"method": method, **row}
                for row in _step_rows(start, data, objective, steps, learning_rate=learning_rate)
            ]
    return pandas.DataFrame(rows)


def animate_run(
    frame: pandas.DataFrame,
    problem: ContextualBandit,
    data: PreferenceCounts,
    path: str | Path,
    *,
    prompt: int = 0,
    title: str = "",
    frames_per_second: int = 8,
    dpi: int = 84,
) -> Path:
    """Write a GIF of `run_frame`'s run and return its path: policy bars above, log-probabilities below.

    Bars stand over the share of comparisons (light); curves ahead of the moment are faint, so that
    any single frame, the first included, shows the whole run. The last frame is held for two seconds.
    path: ends in .gif. Raises InvalidArgument, OutputError.
    """
    checks.instance("problem", problem, ContextualBandit)
    checks.instance("data", data, PreferenceCounts)
    target = checks.path("path", path)
    if target.suffix.lower() != ".gif":
        raise InvalidArgument("path", expected="a name ending in .gif", got=str(path), remedy="Rename it.")
    checks.table("frame", frame, ("method", *LOGPS), remedy="Use run_frame.")
    along = next((name for name in ALONG if name in frame), None)
    if along is None:
        raise InvalidArgument("frame", expected="the columns of run_frame", got=list(frame), remedy="Use run_frame.")
    x = checks.integer("prompt", prompt, minimum=0, maximum=problem.num_prompts - 1)
    speed = checks.integer("frames_per_second", frames_per_second, minimum=1, maximum=50)
    share = data.response_frequencies("responses")[x]
    order = np.argsort(-share, kind="stable")
    columns = [f"p{x}.{index}" for index in order]
    runs = {str(name): rows.reset_index(drop=True) for name, rows in frame.groupby("method", sort=False)}
    moments = len(next(iter(runs.values())))
    with style():
        figure, axes = new_figure(2, len(runs), width=8.4, height=5.6, sharey="row", height_ratios=[1.25, 1])
        figure.set_dpi(checks.integer("dpi", dpi, minimum=20))
        canvas = FigureCanvasAgg(figure)
        drawn = []
        best = None if problem.reward is None else int(np.argmax(problem.reward[x, order]))
        for column, (method, rows) in enumerate(runs.items()):
            top, bottom = axes[:, column]
            top.bar(np.arange(order.size), share[order], width=0.94, color="#cccccc", label="share of comparisons")
            color = COLORS[method]
            bars = top.bar(
                np.arange(order.size), rows.loc[0, columns], width=0.55, color=color, label=f"{method}'s policy"
            )
            tall = max(float(share.max()), max(float(r[columns].to_numpy().max()) for r in runs.values()))
            top.set_ylim(0.0, min(1.02, 1.15 * tall))
            top.set_xticks(np.arange(order.size), [f"{a}*" if k == best else str(a) for k, a in enumerate(order)])
            top.set_xlabel("response, most compared first" + (" (* best)" if best is not None else ""))
            moment = rows[along].to_numpy(dtype=np.float64)
            lines = []
            for key, color, line in zip(LOGPS, (COLORS["gold"], COLORS["proxy"]), ("-", "--"), strict=True):
                values = rows[key].to_numpy()
                bottom.plot(moment, values, line, color=color, alpha=0.45)
                (now,) = bottom.plot(moment[:1], values[:1], line, color=color, label=key.split("/")[1])
                (dot,) = bottom.plot(moment[:1], values[:1], "o", color=color, markersize=6)
                lines.append((now, dot, values))
            bottom.set_xscale("log" if along == "beta" else "symlog", **({} if along == "beta" else {"linthresh": 1.0}))
            if along == "beta":
                bottom.invert_xaxis()
            else:
                bottom.set_xlim(0.0, 1.1 * float(moment[-1]))
            bottom.set_xlabel("beta, falling (exact optima)" if along == "beta" else "gradient-descent step")
            drawn.append((method, rows, top, bars, lines, moment))
        axes[0, 0].set_ylabel("probability")
        axes[1, 0].set_ylabel("mean log-probability, nats")
        # One legend below everything: in the panels it would lie on moving bars.
        handles = axes[0, 0].get_legend_handles_labels()[0]
        handles += [h for axis in axes[0, 1:] for h in axis.get_legend_handles_labels()[0][1:]]
        handles += axes[1, 0].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)

        def draw(at: int) -> Image.Image:
            for method, rows, top, bars, lines, moment in drawn:
                for bar, height in zip(bars, rows.loc[at, columns], strict=True):
                    bar.set_height(height)
                for now, dot, values in lines:
                    now.set_data(moment[: at + 1], values[: at + 1])
                    dot.set_data(moment[at : at + 1], values[at : at + 1])
                where = f"step {moment[at]:.0f}" if along == "step" else f"beta {moment[at]:.3g}"
                gold = f", gold {float(rows['reward/gold'].to_numpy()[at]):.2f}" if "reward/gold" in rows else ""
                top.set_title(f"{method}: {where}{gold}")
            canvas.draw()
            return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

        draw(0)
        figure.set_layout_engine("none")  # the layout is solved once: bars must not jump between frames
        # One palette for all frames, from the last, which holds every colour: none drifts.
        palette = draw(moments - 1).quantize(colors=128, method=Image.Quantize.MAXCOVERAGE)
        pictures = [draw(at).quantize(palette=palette, dither=Image.Dither.NONE) for at in range(moments)]
    waits = [1000 // speed] * (moments - 1) + [HOLD]
    try:
        pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=waits, loop=0)
    except OSError as error:
        raise OutputError(f"path: writing {target} failed ({error}). Choose another folder.") from error
    return target


def _step_rows(
    policy: SoftmaxPolicy, data: PreferenceCounts, objective: Solvable, steps: list[int], *, learning_rate: float
) -> list[dict[str, Any]]:
    """Return metrics and policy at these step counts; each leg of `fit` starts where the last ended."""
    rows, current, done = [], policy, 0
    for step in steps:
        history: dict[str, float]
        if step == done:
            # One step from here: its first record is the present point.
            history = _leg(current, data, objective, 1, learning_rate).history[0]
        else:
            run = _leg(current, data, objective, step - done, learning_rate)
            history, current, done = run.history[-1], run.artifact, step
        rows.append({**_numbers(history), "step": step, **_cells(np.exp(current.logps))})
    return rows


def _leg(policy: SoftmaxPolicy, data: PreferenceCounts, objective: Solvable, steps: int, rate: float) -> Any:
    return fit(
        policy, data, objective, optimizer="gradient_descent", learning_rate=rate, max_steps=steps, log_every=steps,
        tolerance=1e-300, proxy_reward=None,
    )  # fmt: skip


def _beta_rows(
    problem: ContextualBandit, data: PreferenceCounts, eta: float, betas: list[float]
) -> list[dict[str, Any]]:
    rows = []
    for method in ("DPO", "RPO"):
        start = None
        for beta in betas:
            objective = DPO(beta=beta) if method == "DPO" else RPO(beta=beta, eta=eta)
            solution = solve(problem, data, objective, method="newton", start=start)
            start = solution.reward
            metrics = policy_metrics(solution.logps, solution.saddle, problem)
            rows.append({"method": method, **_numbers(metrics), "beta": beta, **_cells(solution.policy)})
    return rows


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("loss", *LOGPS, "reward/gold") if name in metrics}


def _cells(policy: Any) -> dict[str, float]:
    return {f"p{x}.{a}": float(value) for (x, a), value in np.ndenumerate(policy)}
