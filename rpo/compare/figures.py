"""The figures of the comparison, and `plot` for any solutions and runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rpo.compare.curves import NOISE, SKEW, mean_and_error
from rpo.compare.equivalence import SKEW_PREFERENCES, Comparison
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.plotting import COLORS, band, band_key, colors_of, new_figure, style

FLOOR = 1e-17
ORDERED = 20
MARKERS = ("o", "x", "+", "s", "^")


def plot(results: Any, *, labels: Sequence[str] | None = None) -> Figure:
    """Draw the policies of solutions and runs on the same problem, one panel a prompt.

    results: one object, or several, with `.label` and `.policy` (X, A), such as Solution and Run.
    labels: for the legend, default their own. Up to 20 responses stand in their own order; more are
    sorted by the first result's probability, each prompt for itself. Raises InvalidArgument.
    """
    if hasattr(results, "policy"):
        results = [results]
    results = checks.listed("results", results)
    for result in results:
        if not (hasattr(result, "policy") and hasattr(result, "label")) or isinstance(result, type):
            raise InvalidArgument(
                "results",
                expected="solutions and runs",
                got=type(result).__name__,
                remedy="Pass what solve or fit gave.",
            )
    if not results:
        raise InvalidArgument("results", expected="at least one solution or run", got="none", remedy="Pass some.")
    shape = np.shape(results[0].policy)
    for result in results:
        if np.shape(result.policy) != shape:
            raise InvalidArgument(
                "results",
                expected=f"policies of one shape, {shape} as the first",
                got=f"{np.shape(result.policy)} from {result.label!r}",
                remedy="Compare results on the same problem.",
            )
    names = checks.labels("labels", labels, len(results)) or [result.label for result in results]
    in_order = shape[1] <= ORDERED
    colors = ["#bbbbbb", *colors_of(names[1:])]
    with style():
        figure, axes = new_figure(shape[0], 1, width=8.0, height=0.6 + 2.0 * shape[0], sharex=True)
        for x, axis in enumerate(axes[:, 0]):
            order = np.arange(shape[1]) if in_order else np.argsort(-results[0].policy[x], kind="stable")
            position = np.arange(shape[1])
            for index, result in enumerate(results):
                color = colors[index]
                if index == 0:
                    axis.bar(position, result.policy[x, order], color=color, width=0.9, label=names[index])
                else:
                    axis.plot(
                        position,
                        result.policy[x, order],
                        MARKERS[(index - 1) % len(MARKERS)],
                        markersize=4.5,
                        fillstyle="none",
                        color=color,
                        label=names[index],
                    )
            axis.set_ylabel("probability")
            axis.set_title(f"prompt {x}")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=min(len(names), 3))
        axes[-1, 0].set_xlabel("response" if in_order else f"response, sorted by {names[0]}")
        if in_order:
            axes[-1, 0].set_xticks(np.arange(shape[1]))
    return figure


def policies(comparison: Comparison) -> Figure:
    """Draw theory, table and transformer side by side, and the absolute differences below."""
    theory, others = comparison.theory, (comparison.table, comparison.transformer)
    x, a = theory.policy.shape
    with style():
        figure, axes = new_figure(2, x, width=3.6 * x + 0.8, height=5.6, sharex=True, sharey="row")
        for prompt in range(x):
            order = np.argsort(-theory.policy[prompt], kind="stable")
            top, bottom = axes[:, prompt]
            top.bar(np.arange(a), theory.policy[prompt, order], color="#bbbbbb", width=0.9, label="theory (cvxpy)")
            for run, marker in zip(others, MARKERS, strict=False):
                color = COLORS[run.label]
                top.plot(
                    run.policy[prompt, order], marker, color=color, markersize=4, fillstyle="none", label=run.label
                )
                difference = np.abs(run.policy[prompt] - theory.policy[prompt])[order]
                bottom.semilogy(np.maximum(difference, FLOOR), marker, color=color, markersize=4, fillstyle="none")
            top.set_title(f"prompt {prompt}")
            bottom.set_xlabel("response, sorted by theory")
        axes[0, 0].set_ylabel("probability")
        axes[1, 0].set_ylabel("|difference from theory|")
        axes[0, -1].legend(loc="upper right")
        apart = max(float(np.abs(run.policy - theory.policy).max()) for run in others)
        figure.suptitle(
            f"Convex program, table and transformer end at one policy: within {apart:.0e} everywhere",
            x=0.01,
            ha="left",
            fontsize=10.5,
        )
    return figure


def likelihood(comparison: Comparison) -> Figure:
    """Draw chosen and rejected log-probability over training, DPO against RPO (the paper's Figure 1, right)."""
    with style():
        figure, axes = new_figure(1, 2, width=8.6, height=3.6, sharey=True)
        for axis, key in zip(axes[0], ("chosen", "rejected"), strict=True):
            for name, run in (("DPO", comparison.dpo), (_name(comparison), comparison.transformer)):
                color = COLORS[name.split(" ")[0]]
                axis.plot(_column(run, "step"), _column(run, f"logps/{key}"), color=color, label=name)
            axis.set_title(f"{key} responses")
            axis.set_xlabel("training step (transformer)")
        axes[0, 0].set_ylabel("mean log-probability, nats")
        axes[0, 1].legend(loc="best")
    return figure


def overoptimization(comparison: Comparison) -> Figure:
    """Draw gold and proxy reward against KL: this problem, and the mean over fresh skewed problems."""
    eta = comparison.theory.saddle.eta
    with style():
        figure, axes = new_figure(1, 2, width=9.4, height=4.0)
        for column, (axis, title) in enumerate(
            zip(
                axes[0],
                (
                    "this problem, path: beta (exact)",
                    f"{comparison.config['skew_draws']} draws, skew {SKEW:g}, noise {NOISE:g}, N = {SKEW_PREFERENCES}",
                ),
                strict=True,
            )
        ):
            for value, name in ((0.0, "eta = 0 (DPO)"), (eta, f"eta = {eta:g} (RPO)")):
                color = COLORS["DPO" if value == 0 else "RPO"]
                for key, line in (("gold", "-"), ("proxy", "--")):
                    if column == 0:
                        rows = [row for row in comparison.curves if row["eta"] == value]
                        kl = np.array([row["kl/reference"] for row in rows])
                        reward = np.array([row[f"reward/{key}"] - row[f"reward/{key}/reference"] for row in rows])
                    else:
                        moved = [
                            {**row, "over": row[f"reward/{key}"] - row[f"reward/{key}/reference"]}
                            for row in comparison.skew_curves
                        ]
                        kl, _ = mean_and_error(moved, "kl/reference", eta=value)
                        reward, error = mean_and_error(moved, "over", eta=value)
                        band(axis, f"reward/{key}", kl, reward, error, color=color)
                    axis.plot(kl, reward, line, color=color, label=f"{key}, {name}", marker=".", markersize=5)
            axis.axhline(0.0, color="#777777", linewidth=0.8)
            axis.set_title(title)
            axis.set_xlabel("KL(pi || pi_ref), nats")
        for run, color in ((comparison.dpo, COLORS["DPO"]), (comparison.transformer, COLORS["RPO"])):
            last = run.history[-1]
            label = f"gold, trained {'DPO' if run is comparison.dpo else 'RPO'}"
            mark = {"color": color, "markersize": 7, "fillstyle": "none", "linestyle": "none", "label": label}
            gold = last["reward/gold"] - comparison.curves[0]["reward/gold/reference"]
            axes[0, 0].plot(last["kl/reference"], gold, "D", **mark)
        axes[0, 0].set_ylabel("reward over pi_ref's, log-odds")
        handles = [*axes[0, 0].get_legend_handles_labels()[0], band_key("standard error")]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=3.0, fontsize=8.5)
    return figure


def convergence(comparison: Comparison) -> Figure:
    """Draw the duality gap and the total variation from the theory's policy over training."""
    with style():
        figure, axes = new_figure(1, 2, width=8.6, height=3.6)
        for axis, key, title in zip(
            axes[0], ("gap", "tv"), ("duality gap", "total variation, worst prompt"), strict=True
        ):
            for name, run in (("DPO", comparison.dpo), (_name(comparison), comparison.transformer)):
                values = np.maximum(np.abs(_column(run, key)), FLOOR)
                axis.semilogy(_column(run, "step"), values, color=COLORS[name.split(" ")[0]], label=name)
            axis.set_title(title)
            axis.set_xlabel("training step (transformer)")
        axes[0, 0].legend(loc="best")
    return figure


def _name(comparison: Comparison) -> str:
    return f"RPO (eta = {comparison.theory.saddle.eta:g})"


def _column(run: Any, key: str) -> Array:
    return np.array([row[key] for row in run.history])
