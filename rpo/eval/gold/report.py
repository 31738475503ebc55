"""A gold-reward study as tables, figures and one page: gold and proxy against KL, by method, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import t

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.gao import GaoFit
from rpo.core.records import environment, staged_output, write_json
from rpo.eval.gold.settings import GoldStudy, method_name
from rpo.eval.gold.study import policy_folder, read_stage
from rpo.plotting import NORMAL_95, band, band_key, colors_of, new_figure, page, save, style
from rpo.plotting.overoptimization import (
    KL,
    REFERENCE,
    REWARDS,
    curves,
    fits,
    message,
    over_reference,
    overoptimization,
    root_scale,
    root_ticks,
)

MARKER = "report.json"
GOLD, PROXY = REWARDS
BEST = "best-of-n"
ENSEMBLE_NAMES = {
    "mean": "best-of-n, mean of {} proxies",
    "worst": "best-of-n, worst of {} proxies",
    "variance": "best-of-n, mean less variance of {} proxies",
}
PANELS = {
    GOLD: "gold over pi_ref's",
    KL: "KL to pi_ref, nats",
    "win_rate/gold": "win rate against pi_ref, by gold",
    "text/repetition": "share of repeated bigrams",
    "text/length": "words",
    "logps/chosen": "chosen log-probability, nats",
}
START = {GOLD: 0.0, KL: 0.0, "win_rate/gold": 0.5}  # of pi_ref itself, at step 0
FEW = 5  # seeds


@dataclass(frozen=True)
class GoldResult:
    """What a study found.

    frame: a row a (method, seed, step): metrics in the scorers' units, and reward/gold, reward/proxy in
    standard deviations of pi_ref's own, from its mean. best_of_n: the same by n, and under ensembles. fits: Gao's law
    for each method. finals: a row a method, gold at the last step and at its best one, with intervals over seeds.
    """

    study: GoldStudy
    frame: pandas.DataFrame
    best_of_n: pandas.DataFrame
    fits: dict[str, GaoFit]
    finals: pandas.DataFrame
    proxies: pandas.DataFrame

    def verdict(self) -> str:
        """Return in one sentence what became of DPO and of the RPO that ended best."""
        rows = self.finals.set_index("method")
        parts = []
        for method in ("DPO", *[name for name in rows.index if name != "DPO"]):
            if method in rows.index:
                row = rows.loc[method]
                parts.append(
                    f"{method} ends at {_interval(row, 'final')} ({_interval(row, 'drop')} below its best checkpoint)"
                )
        seeds = len(self.study.seeds)
        return (
            f"Gold reward over pi_ref's, in its standard deviations, mean and 95 % interval over {seeds} seed(s): "
            + "; ".join(parts)
            + "."
        )


def read_study(study: GoldStudy, folder: str | Path, *, resamples: int = 500, rng: Any = 0) -> GoldResult:
    """Return the result of a finished study. Raises OutputError where a stage is missing, InvalidArgument."""
    checks.instance("study", study, GoldStudy)
    folder = checks.path("folder", folder)
    rows, best, proxies = [], [], []
    for seed in study.seeds:
        stored = read_stage(folder, seed, "reference")
        made, proxy = read_stage(folder, seed, "pairs"), read_stage(folder, seed, "proxy")
        gold, judged = np.array(stored["gold"]), np.array(stored["proxy"])
        scale = {GOLD: (gold.mean(), gold.std()), PROXY: (judged.mean(), judged.std())}
        if not gold.std() > 0 or not judged.std() > 0:
            raise InvalidArgument(
                "gold", expected="scores that vary over pi_ref's responses", got="one value", remedy="Change scorers."
            )
        rows.append({"method": REFERENCE, "seed": seed, "step": 0, KL: 0.0, GOLD: 0.0, PROXY: 0.0})
        best += [{"method": BEST, "seed": seed, **_scaled(row, scale)} for row in stored["best_of_n"]]
        for how, found in stored["ensembles"].items():
            name = ENSEMBLE_NAMES[how].format(study.proxies)
            # Their own units are no reward model's: of a combined reward there is no scale to share.
            best += [{"method": name, "seed": seed, **_scaled(row, {GOLD: scale[GOLD]})} for row in found]
        for objective in study.objectives():
            found = read_stage(folder, seed, policy_folder(objective))
            logged = {row["step"]: row for row in found["log"] if "logps/chosen" in row}
            for row in found["snapshots"]:
                more = {name: logged[row["step"]][name] for name in ("logps/chosen", "loss/preference", "loss/sft")}
                rows.append({"method": method_name(objective), "seed": seed, **_scaled(row, scale), **more})
        proxies.append(
            {
                "seed": seed,
                "pairs": made["pairs"],
                "labels against gold": made["flipped"],
                "proxy accuracy, training pairs": proxy["accuracy"],
                "proxy agrees with gold, pi_ref's samples": stored["proxy_accuracy"],
            }
        )
    frame, chosen = pandas.DataFrame(rows), pandas.DataFrame(best)
    fitted: dict[str, GaoFit] = {}
    if len(study.seeds) > 1 and study.checkpoints >= 3:
        fitted = fits(frame, path="step", resamples=resamples, rng=rng)
    return GoldResult(study, frame, chosen, fitted, _finals(frame), pandas.DataFrame(proxies))


def write_gold_report(result: GoldResult, output: str | Path, *, config: str = "") -> Path:
    """Write report.html, report.json, tables as CSV and figures as PNG into the study's folder. Raises OutputError."""
    checks.instance("result", result, GoldResult)
    checks.instance("config", config, str)
    with staged_output(checks.path("output", output), overwrite=True, marker=MARKER) as stage:
        (stage / "config.yaml").write_text(config, encoding="utf-8")
        result.frame.to_csv(stage / "snapshots.csv", index=False)
        captions = {
            "gold_against_kl": "Gold reward against KL. A curve runs along training; points are means over seeds, with "
            "each seed (or 95 % bands of more than five). Grey: best-of-n under the proxy.",
            "by_step": "The same policies by update: means, and each seed or 95 % bands.",
            "overoptimization": "Gold and proxy, one panel a method, with the law of Gao, Schulman and Hilton.",
        }
        drawn = {"gold_against_kl": gold_against_kl(result), "by_step": by_step(result)}
        if result.fits:
            drawn["overoptimization"] = overoptimization(result.frame, result.fits, path="step", unit="pi_ref's SD")
        pictures = []
        for name, figure in drawn.items():
            save(figure, stage / f"{name}.png", result.frame)
            pictures.append(page.section(TITLES[name], page.picture(stage / f"{name}.png", captions[name])))
        tables = [
            page.section("Gold at the end", page.table(*_text(result.finals), numbers=range(1, 9))),
            page.section("Best-of-n", page.table(*_text(best_of_n_ends(result.best_of_n)), numbers=range(1, 5))),
            page.section("Labels and proxy", page.table(*_text(result.proxies), numbers=range(5))),
        ]
        laws = [page.paragraph(f"{method}: {fit.message}") for method, fit in result.fits.items()]
        machine = environment()
        text = page.page(
            "Overoptimization under a known gold reward",
            result.verdict(),
            [
                *pictures,
                *tables,
                *([page.section("Gao's law", *laws)] if laws else []),
                page.section("Configuration", page.listing(result.study.to_dict())),
                page.section("Environment", page.listing(machine)),
            ],
        )
        (stage / "report.html").write_text(text, encoding="utf-8")
        write_json(
            stage / MARKER,
            {
                "verdict": result.verdict(),
                "study": result.study.to_dict(),
                "finals": result.finals.to_dict("records"),
                "proxies": result.proxies.to_dict("records"),
                "best_of_n": result.best_of_n.to_dict("records"),
                "best_of_n_ends": best_of_n_ends(result.best_of_n).to_dict("records"),
                "fits": {method: fit.to_dict() for method, fit in result.fits.items()},
                "environment": machine,
            },
        )
    return Path(output) / "report.html"


def gold_against_kl(result: GoldResult) -> Figure:
    """Draw gold against KL, every method in one panel, and best-of-n."""
    checks.instance("result", result, GoldResult)
    return draw_gold(result.frame, result.best_of_n, unit="in its SD")


def by_step(result: GoldResult) -> Figure:
    """Draw what happens along training: one small panel a metric, a line a method."""
    checks.instance("result", result, GoldResult)
    return draw_steps(result.frame, unit="pi_ref's SD")


def draw_gold(frame: pandas.DataFrame, best_of_n: pandas.DataFrame | None = None, *, unit: str) -> Figure:
    """Draw gold over pi_ref's against KL from rows as of `GoldResult`, from the start of training on."""
    table, moving = curves(frame, path="step"), over_reference(frame)
    with style():
        figure, axes = new_figure(1, 1, width=7.2, height=4.6)
        axis, said = axes[0, 0], []
        for color, (method, rows) in zip(_colors(table), table.groupby("method", sort=False), strict=True):
            kl, mean, error = (np.r_[0.0, rows[name]] for name in (KL, GOLD, f"{GOLD}/se"))
            axis.plot(kl, mean, "-o", markersize=4, color=color, label=method)
            said.append(f"{method}: {message(mean)}")
            runs = [(np.r_[0.0, run[KL]], np.r_[0.0, run[GOLD]]) for run in _runs(moving, method)]
            _spread(axis, GOLD, kl, mean, error, runs, color)
        if best_of_n is not None:
            for (name, drawn), marker in zip(best_of_n.groupby("method", sort=False), "s^vD", strict=False):
                best = drawn.groupby("n")[[KL, GOLD]].mean()
                label = "best-of-n by the proxy" if name == BEST else name
                axis.plot(best[KL], best[GOLD], f"--{marker}", markersize=3.5, color="#777777", label=label)
        axis.axhline(0.0, color="#777777", linewidth=0.8)
        root_scale(axis)
        axis.set_xlim(left=0.0)
        axis.set_xticks(root_ticks(float(axis.get_xlim()[1])))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title("; ".join(said))
        axis.set_xlabel("KL(pi || pi_ref), nats (square-root scale)")
        axis.set_ylabel(f"gold reward over pi_ref's, {unit}")
        axis.legend(handles=[*axis.get_legend_handles_labels()[0], *_spread_key(moving)])
    return figure


def draw_steps(frame: pandas.DataFrame, *, unit: str) -> Figure:
    """Draw the metrics that a frame has along training, from step 0 where pi_ref's own value is known."""
    moving = over_reference(frame)
    shown = {name: label for name, label in PANELS.items() if name in frame}
    columns = min(3, len(shown))
    with style():
        figure, axes = new_figure(-(-len(shown) // columns), columns, width=3.5 * columns, height=6.0)
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, (name, label) in zip(axes.flat, shown.items(), strict=False):
            start = START.get(name)
            for color, (method, rows) in zip(_colors(moving), moving.groupby("method", sort=False), strict=True):
                table = rows.pivot(index="step", columns="seed", values=name)
                if start is not None:
                    table.loc[0] = start
                    table = table.sort_index()
                steps, mean, error = table.index.to_numpy(), table.mean(axis=1), table.sem(axis=1, ddof=1).fillna(0.0)
                axis.plot(steps, mean, "-o", markersize=3.5, color=color, label=method)
                _spread(axis, name, steps, mean, error, [(steps, table[seed]) for seed in table], color)
            axis.set_title(f"gold over pi_ref's, {unit}" if name == GOLD else label)
            axis.set_xscale("symlog", linthresh=1.0, linscale=0.4)
            axis.set_xlim(left=-0.1)
            axis.set_xticks([0, 1, 10, 100][: 2 + int(np.log10(max(10, moving["step"].max())))], minor=False)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("update")
        handles = [*axes[0, 0].get_legend_handles_labels()[0], *_spread_key(moving)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _runs(moving: pandas.DataFrame, method: object) -> list[pandas.DataFrame]:
    return [run.sort_values("step") for _, run in moving[moving["method"] == method].groupby("seed")]


def _spread(axis: Any, name: str, x: Any, mean: Any, error: Any, runs: list[tuple[Any, Any]], color: str) -> None:
    """Draw each seed where there are few, whose band would be a guess at a shape, else a 95 % band."""
    if 1 < len(runs) <= FEW:
        for steps, values in runs:
            axis.plot(steps, values, color=color, linewidth=0.8, alpha=0.45)
    elif len(runs) > 1:
        band(axis, name, x, mean, NORMAL_95 * np.asarray(error), color=color)


def _spread_key(moving: pandas.DataFrame) -> list[Any]:
    seeds = moving["seed"].nunique()
    if 1 < seeds <= FEW:
        return [Line2D([], [], color="#777777", linewidth=0.8, alpha=0.6, label="one seed")]
    return [band_key()] if seeds > 1 else []


def _finals(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return gold of each method at its last step and at its best mean step, and DPO's difference, over seeds.

    Intervals are Student's over seeds. The best step is chosen on the same numbers: `drop` is biased upwards.
    """
    rows = []
    moving = frame[frame["method"] != REFERENCE]
    tables = {
        method: part.pivot(index="seed", columns="step", values=GOLD)
        for method, part in moving.groupby("method", sort=False)
    }
    for method, table in tables.items():
        last, best = table.columns.max(), table.mean().idxmax()
        final = moving[(moving["method"] == method) & (moving["step"] == last)]
        row: dict[str, Any] = {"method": method, "best_step": best, "last_step": last, "kl": float(final[KL].mean())}
        row |= _student("best", table[best]) | _student("final", table[last])
        row |= _student("drop", table[best] - table[last])
        row |= _student("win_rate", final["win_rate/gold"])
        if "DPO" in tables and method != "DPO" and last in tables["DPO"]:
            row |= _student("over_dpo", table[last] - tables["DPO"][last])
        rows.append(row)
    return pandas.DataFrame(rows)


def best_of_n_ends(chosen: pandas.DataFrame) -> pandas.DataFrame:
    """Return gold of best-of-n at the largest n, its drop below the best n, and what ensembles have above one proxy."""
    tables = {
        method: part.pivot(index="seed", columns="n", values=GOLD)
        for method, part in chosen.groupby("method", sort=False)
    }
    rows = []
    for method, table in tables.items():
        last = table.columns.max()
        row: dict[str, Any] = {"method": method, "n": last} | _student("gold", table[last])
        row |= _student("drop", table[table.mean().idxmax()] - table[last])
        if method != BEST:
            row |= _student("over_one_proxy", table[last] - tables[BEST][last])
        rows.append(row)
    return pandas.DataFrame(rows)


def _student(name: str, values: pandas.Series) -> dict[str, float]:
    """Return mean and 95 % interval over seeds; NaN bounds of a single seed."""
    mean, count = float(values.mean()), len(values)
    half = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _scaled(row: dict[str, Any], scale: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the row with rewards in pi_ref's standard deviations, and as they were under raw/*."""
    moved = dict(row)
    for name, (mean, deviation) in scale.items():
        moved[f"raw/{name}"] = row[name]
        moved[name] = (row[name] - mean) / deviation
        moved[f"{name}_se"] = row[f"{name}_se"] / deviation
    return moved


def _colors(table: pandas.DataFrame) -> list[str]:
    """Return a colour a method, in the order they come."""
    return colors_of(dict.fromkeys(table["method"]))


def _interval(row: Any, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _text(frame: pandas.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return head and rows, an interval in one cell."""
    names = [name for name in map(str, frame) if not name.endswith(("_low", "_high"))]
    rows = []
    for _, row in frame.iterrows():
        cells = []
        for name in names:
            value = row[name]
            known = not isinstance(value, float) or not np.isnan(value)
            if f"{name}_low" in frame:
                cells.append(_interval(row, name) if known else "")
            else:
                cells.append(f"{value:.3g}" if isinstance(value, float) else str(value))
        rows.append(cells)
    return names, rows


TITLES = {
    "gold_against_kl": "Gold reward against KL",
    "by_step": "Along training",
    "overoptimization": "Gold, proxy, and Gao's law",
}
