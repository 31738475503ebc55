"""A gold-reward experiment as a folder: figure with its data, tables, one self-contained page, a JSON record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rpo.compare.gold import GoldExperiment
from rpo.compare.gold_evidence import ALL_DRAWS, BEST_OF_N, THEORY, TRAINED, by_source, methods, path_of
from rpo.core import checks
from rpo.core.records import staged_output, write_json
from rpo.plotting import COLORS, NORMAL_95, band, band_key, new_figure, page, save, style
from rpo.plotting.overoptimization import KL, REFERENCE, REWARDS, curves, message, root_scale

MARKER = "gold.json"
TICKS = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
CAPTION = (
    "Lines: the exact solutions, mean and 95 % band over the draws trained on. Hollow points: the transformers trained "
    "on the same preferences. Triangles: the largest gold. Dotted: the exact gold over all draws. Both rewards are "
    "counted from the reference policy's."
)
SELECTED = (
    "The fall is from the largest mean gold to the end of the path, with a 95 % interval by bootstrap over draws of "
    "the data, the peak being picked again each time. The default instance was selected with the exact solver, before "
    "anything was trained, so that DPO overoptimises on it: it shows that this happens, not how often."
)
TOLERANCE = (
    "Largest distances of the transformers' outcomes from the exact ones. The tolerance is what the total variation "
    "between the two policies allows: T (max - min) for a reward; for the KL also h(T) + T log(A - 1). Converged: the "
    "largest gradient entry is at most 1e-6. Best of n ranks "
    "by r_MLE in theory and by the implicit reward of the transformer that DPO trained: where r_MLE ties, which "
    "mirror-image data make it do exactly, theory shares and the transformer decides by its last digits."
)
PEAKS = ("curve", "method", "largest gold at", "KL there, nats", "gold there", "fall to the end of the path", "draws")
LAWS = ("curve", "method", "law", "alpha", "gamma", "residual", "peak")
AGREEMENT = (
    "method",
    "points",
    "converged",
    "total variation",
    "KL",
    "gold",
    "proxy",
    "tolerance of gold",
    "within tolerance",
)


def gold_figure(result: GoldExperiment) -> Figure:
    """Draw gold and proxy against KL, one panel a method: theory as lines, transformers as points."""
    sources = by_source(result.frame)
    names = methods(result.frame)
    tables = {
        source: {name: _curve(sources[source], name).sort_values(KL) for name in names} for source in (THEORY, TRAINED)
    }
    every = {name: _curve(sources[ALL_DRAWS], name).sort_values(KL) for name in names}
    top = max(float(table[KL].max()) for table in tables[THEORY].values())
    with style():
        figure, axes = new_figure(1, len(names), width=1.2 + 3.4 * len(names), height=4.0, sharex=True, sharey=True)
        for axis, name in zip(axes[0], names, strict=True):
            theory, trained = tables[THEORY][name], tables[TRAINED][name]
            for column, line, marker in zip(REWARDS, ("-", "--"), ("o", "s"), strict=True):
                label = column.split("/")[1]
                mean, error = theory[column].to_numpy(), NORMAL_95 * theory[f"{column}/se"].to_numpy()
                color, kl = COLORS[label], theory[KL].to_numpy()
                band(axis, column, kl, mean, error, color=color)
                axis.plot(kl, mean, line, color=color, label=f"{label}, exact")
                points = (trained[KL], trained[column], marker)
                axis.plot(*points, color=color, markersize=6, fillstyle="none", label=f"{label}, transformer")
            label = f"gold, exact, all {result.config['draws']} draws"
            axis.plot(every[name][KL], every[name][REWARDS[0]], ":", color=COLORS["gold"], linewidth=1.3, label=label)
            best = theory[REWARDS[0]].idxmax()
            mark = {"color": COLORS["theory"], "markersize": 6, "zorder": 5, "label": "highest gold, exact"}
            axis.plot(theory.loc[best, KL], theory.loc[best, REWARDS[0]], "v", linestyle="none", **mark)
            axis.axhline(0.0, color="#777777", linewidth=0.8)
            axis.set_title(f"{name}: {message(*(theory[column].to_numpy() for column in REWARDS))}", fontsize=9)
            axis.set_xlabel("KL(pi || pi_ref), nats")
        root_scale(axes[0, 0])
        axes[0, 0].set_xlim(0.0, 1.03 * top)
        axes[0, 0].set_xticks([tick for tick in TICKS if tick <= top])
        axes[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0, 0].set_ylabel("mean reward over pi_ref's, log-odds")
        handles, _ = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles=[*handles, band_key()], loc="outside lower center", ncols=min(4, len(handles) + 1))
        figure.suptitle(
            f"{result.config['trained_draws']} draws of the data; path: beta falling, or n rising",
            x=0.01,
            ha="left",
            fontsize=10,
        )
    return figure


def figure_data(result: GoldExperiment) -> pandas.DataFrame:
    """Return what `gold_figure` draws: means and standard errors over draws, one row a (source, method, beta or n)."""
    return pandas.concat(
        [
            _curve(rows, name).assign(source=source)
            for source, rows in by_source(result.frame).items()
            for name in methods(result.frame)
        ],
        ignore_index=True,
    )


def save_gold(
    result: GoldExperiment, directory: str | Path, *, overwrite: bool = False, config: str | None = None
) -> Path:
    """Write gold.html, gold.json, gold.png with gold.csv, outcomes.csv, sampled_kl.csv. Raises OutputError.

    config: text of config.yaml, if any. All of it is written, or nothing.
    """
    checks.instance("result", result, GoldExperiment, remedy="Pass what rpo.compare.gold_experiment returns.")
    with staged_output(directory, overwrite=overwrite, marker=MARKER) as stage:
        if config is not None:
            (stage / "config.yaml").write_text(config, encoding="utf-8")
        result.frame.to_csv(stage / "outcomes.csv", index=False)
        result.sampled_kl.to_csv(stage / "sampled_kl.csv", index=False)
        save(gold_figure(result), stage / "gold.png", figure_data(result))
        text = page.page(
            "Gold reward, known: trained transformers on the exact curves",
            verdict(result),
            [
                page.section("Gold and proxy reward against KL", page.picture(stage / "gold.png", CAPTION)),
                page.section(
                    "Peaks", page.table(PEAKS, peak_rows(result), numbers=(3, 4, 5, 6)), page.paragraph(SELECTED)
                ),
                page.section(
                    "Laws of gold against d = sqrt(KL)", page.table(LAWS, _law_rows(result), numbers=(3, 4, 5))
                ),
                page.section(
                    "Agreement",
                    page.table(AGREEMENT, agreement_rows(result), numbers=(1, 2, 3, 4, 5, 6, 7)),
                    page.paragraph(TOLERANCE),
                ),
                page.section("Gold of RPO minus gold of DPO", page.table(*_gap_table(result), numbers=(2, 3, 4))),
                page.section("Sampled KL", page.paragraph(sampled_sentence(result))),
                page.section("Configuration", page.listing(result.config)),
                page.section("Environment", page.listing(result.environment)),
            ],
        )
        (stage / "gold.html").write_text(text, encoding="utf-8")
        write_json(
            stage / MARKER,
            {
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": result.config,
                "verdict": verdict(result),
                "evidence": result.evidence,
                "environment": result.environment,
            },
        )
    return Path(directory) / "gold.html"


def verdict(result: GoldExperiment) -> str:
    """Return what was found in three sentences, with the numbers."""
    found = result.evidence["peaks"][ALL_DRAWS]
    falls = "; ".join(
        f"{name}: {entry['fall']:.2f} [{entry['fall_interval'][0]:.2f}, {entry['fall_interval'][1]:.2f}]"
        for name, entry in found.items()
    )
    gold, apart, tolerance = 0.0, 0.0, 0.0
    for name, entry in result.evidence["agreement"].items():
        if name == BEST_OF_N:  # ranked, not trained
            continue
        apart = max(apart, entry["max_total_variation"])
        gold = max(gold, entry["max_difference/gold"])
        tolerance = max(tolerance, entry["max_bound/gold"])
    doubt = result.evidence["not_certified"]
    warning = f"{doubt} exact solutions are over tolerance. " if doubt else ""
    return warning + (
        f"Gold falls from its largest value to the end of the path by {falls} (exact, "
        f"{result.config['draws']} draws). The trained transformers are within total variation {apart:.1e} of the "
        f"exact policies, and their gold within {gold:.1e} of the exact gold (tolerance from the total variation: "
        f"{tolerance:.1e}). {sampled_sentence(result)}"
    )


def sampled_sentence(result: GoldExperiment) -> str:
    """Return how often the sampled KL's 95 % interval held the exact KL."""
    parts = [
        f"{name} {found['covered']} of {found['trials']} ({100 * found['interval'][0]:.0f} to "
        f"{100 * found['interval'][1]:.0f} %)"
        for name, found in result.evidence["sampled_kl"].items()
    ]
    return f"The 95 % interval of the sampled KL held the exact one: {', '.join(parts)}."


def peak_rows(result: GoldExperiment) -> list[tuple[str, ...]]:
    """Return the rows of the table of peaks, as text."""
    return [
        (
            source,
            name,
            f"{found['along']} = {found['at']:g}",
            _interval(found["kl"], found["kl_interval"]),
            f"{found['gold']:.3f}",
            _interval(found["fall"], found["fall_interval"]),
            str(found["seeds"]),
        )
        for source, peaks in result.evidence["peaks"].items()
        for name, found in peaks.items()
    ]


def agreement_rows(result: GoldExperiment) -> list[tuple[str, ...]]:
    """Return the largest distances between transformers and exact solutions, as text, one row a method."""
    return [
        (
            name,
            str(found["points"]),
            str(found["converged"]),
            f"{found['max_total_variation']:.1e}",
            *(f"{found[f'max_difference/{key}']:.1e}" for key in ("kl", "gold", "proxy")),
            f"{found['max_bound/gold']:.1e}",
            "yes" if found["within"] else "no",
        )
        for name, found in result.evidence["agreement"].items()
    ]


def _gap_table(result: GoldExperiment) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    gaps = result.evidence["gaps"]
    rows = [
        (
            theory["method"],
            f"{theory['beta']:g}",
            *(f"{found['gap']:.4f} ± {found['standard_error']:.4f}" for found in (theory, trained, every)),
        )
        for theory, trained, every in zip(*(gaps[source] for source in (THEORY, TRAINED, ALL_DRAWS)), strict=True)
    ]
    return ("method", "beta", "exact", "transformer", "exact, all draws"), rows


def _law_rows(result: GoldExperiment) -> list[tuple[str, ...]]:
    return [
        (source, name, law["form"], *(f"{law[key]:.3f}" for key in ("alpha", "gamma", "residual")), law["message"])
        for source, laws in result.evidence["gao"].items()
        for name, law in laws.items()
    ]


def _curve(rows: Any, method: str) -> Any:
    return curves(rows[rows["method"].isin([method, REFERENCE])], path=path_of(method))


def _interval(value: float, ends: list[float]) -> str:
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
