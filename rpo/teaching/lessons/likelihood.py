"""Why chosen responses become less likely under DPO: a language model small enough to be watched whole.

Log-probabilities in nats per response; changes are counted from the reference, which is where training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Solvable, preference_derivatives
from rpo.core.records import Run
from rpo.plotting import COLORS, CYCLE, new_figure, style

if TYPE_CHECKING:
    import pandas

    from rpo.compare.enumerable import EnumerableLM

__all__ = [
    "changes",
    "changes_figure",
    "ends",
    "forces",
    "forces_figure",
    "mass_figure",
    "near_pairs",
    "outcome_figure",
    "quadrants",
    "recorded",
    "watch",
]

REWARD_BOUND = 3.0
PARTS = {"chosen": CYCLE[2], "rejected": CYCLE[4], "unseen": "#bbbbbb"}
QUADRANTS = {
    "both up": (1, 1),
    "chosen up, rejected down": (1, -1),
    "chosen down, rejected up": (-1, 1),
    "both down": (-1, -1),
}


def near_pairs(*, num_preferences: int = 24, seed: int = 0) -> tuple[EnumerableLM, ContextualBandit, PreferenceCounts]:
    """Return a tiny GPT-2 (3 prompts, 5 tokens, responses of 3: 125 of them), its bandit, and preferences.

    The two responses of a pair differ in one token, as two samples of one model often nearly agree; pairs of such
    responses are drawn in proportion to pi_ref(a) pi_ref(a'). r* is uniform on [0, 3], labels are Bradley-Terry.
    """
    from rpo.compare.enumerable import tiny_gpt2

    model_rng, reward_rng, data_rng = np.random.default_rng(checks.integer("seed", seed, minimum=0)).spawn(3)
    lm = tiny_gpt2(prompts=3, vocab_size=5, length=3, rng=model_rng)
    policy, tokens = lm.policy(), lm.responses.numpy()
    apart = (tokens[:, None] != tokens[None]).sum(axis=-1)
    pairs = policy[:, :, None] * policy[:, None, :] * (apart == 1)
    problem = lm.bandit(
        reward_rng.uniform(0.0, REWARD_BOUND, size=policy.shape),
        reward_bound=REWARD_BOUND,
        behavior=pairs / pairs.sum(axis=(1, 2), keepdims=True),
    )
    return lm, problem, problem.sample_preferences(num_preferences, rng=data_rng)


def watch(problem: ContextualBandit, data: PreferenceCounts) -> Callable[[Array], dict[str, float]]:
    """Return what `rpo.fit` takes as extra_metrics: displacement of every pair, and where the probability is.

    displacement/*: as `rpo.llm.diagnostics.displacement`. mass/chosen, mass/rejected, mass/unseen: probability, mean
    over d0, of responses that were chosen at least once, only rejected, and in no pair.
    """
    import torch

    from rpo.llm.diagnostics import displacement

    x, w, lost = data.to_pairs()
    parts = _parts(data)

    def metrics(logps: Array) -> dict[str, float]:
        change = logps - problem.log_reference
        found = displacement(torch.as_tensor(change[x, w]), torch.as_tensor(change[x, lost]))
        policy = np.exp(logps)
        return found | {
            f"mass/{name}": float(problem.d0 @ np.where(part, policy, 0.0).sum(axis=1)) for name, part in parts.items()
        }

    return metrics


def changes(run: Run, problem: ContextualBandit, data: PreferenceCounts) -> pandas.DataFrame:
    """Return how far each pair's log-probabilities moved, a row a preference.

    Columns: prompt, chosen, rejected (tokens), chosen_change, rejected_change (nats), quadrant.
    """
    import pandas

    x, w, lost = data.to_pairs()
    change = np.log(run.policy) - problem.log_reference
    labels = np.asarray(problem.response_labels)
    frame = pandas.DataFrame(
        {
            "prompt": x,
            "chosen": labels[w],
            "rejected": labels[lost],
            "chosen_change": change[x, w],
            "rejected_change": change[x, lost],
        }
    )
    signs = np.sign(frame[["chosen_change", "rejected_change"]].to_numpy())
    names = {pair: name for name, pair in QUADRANTS.items()}
    frame["quadrant"] = [names.get((int(first), int(second)), "unchanged") for first, second in signs]
    return frame


def quadrants(frames: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """Return the share of preferences in each quadrant, a column a run. frames: label -> `changes`."""
    import pandas

    shares = {name: frame["quadrant"].value_counts(normalize=True) for name, frame in frames.items()}
    return pandas.DataFrame(shares).reindex(list(QUADRANTS)).fillna(0.0)


def ends(runs: Mapping[float, Run]) -> pandas.DataFrame:
    """Return where runs ended, a row each: eta -> `Run` with the columns of `watch`; the first row is their start."""
    import pandas

    columns = {
        "logps/chosen": "chosen",
        "logps/rejected": "rejected",
        "displacement/share": "fell",
        "mass/chosen": "mass chosen",
        "mass/unseen": "mass unseen",
        "loss/preference": "preference",
        "kl/reference": "KL",
        "reward/gold": "gold",
    }
    first = next(iter(runs.values()))
    rows = {"start": first.history[0], **{f"eta = {eta:g}": run.history[-1] for eta, run in runs.items()}}
    return pandas.DataFrame(
        [{new: row[old] for old, new in columns.items()} for row in rows.values()], index=list(rows)
    )


def changes_figure(frames: Mapping[str, pandas.DataFrame]) -> Figure:
    """Draw each preference as a point, change of its chosen against change of its rejected response, a panel a run.

    frames: label -> `changes`. The scale is linear within one nat of zero and logarithmic beyond.
    """
    with style():
        figure, axes = new_figure(1, len(frames), width=1.2 + 3.1 * len(frames), height=3.5, sharex=True, sharey=True)
        for axis, (label, frame) in zip(axes[0], frames.items(), strict=True):
            _draw_changes(axis, frame, color=COLORS.get(label.split(",")[0], CYCLE[0]))
            axis.set_title(label)
        axes[0, 0].set_ylabel("change of the chosen, nats")
    return figure


def mass_figure(runs: Sequence[Run]) -> Figure:
    """Draw where the probability is along training: chosen, only rejected, unseen. Histories need `watch`'s columns."""
    with style():
        figure, axes = new_figure(1, len(runs), width=1.2 + 3.1 * len(runs), height=3.2, sharex=True, sharey=True)
        for axis, run in zip(axes[0], runs, strict=True):
            _draw_mass(axis, run)
            axis.set_title(_name(run))
        axes[0, 0].set_ylabel("probability")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def outcome_figure(run: Run, problem: ContextualBandit, data: PreferenceCounts) -> Figure:
    """Draw one run: where each preference went, and where the probability was along training."""
    with style():
        figure, axes = new_figure(1, 2, width=8.2, height=3.6)
        left, right = axes[0]
        _draw_changes(left, changes(run, problem, data), color=COLORS.get(run.label, CYCLE[0]))
        left.set_ylabel("change of the chosen, nats")
        left.set_title(_name(run))
        _draw_mass(right, run)
        right.set_ylabel("probability")
        right.set_title("where the probability is")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _name(run: Run) -> str:
    eta = run.objective.get("eta", 0.0)
    return f"{run.label}, eta = {eta:g}" if eta else run.label


def _draw_changes(axis: Any, frame: pandas.DataFrame, *, color: str) -> None:
    axis.axhline(0.0, color="#777777", linewidth=0.8)
    axis.axvline(0.0, color="#777777", linewidth=0.8)
    axis.plot(frame["rejected_change"], frame["chosen_change"], "o", color=color, alpha=0.65, markersize=5)
    ticks, texts = [-100, -10, -1, 0, 1, 10], ["-100", "-10", "-1", "0", "1", "10"]
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_xticks(ticks, texts)
    axis.set_yticks(ticks, texts)
    axis.minorticks_off()
    axis.set_xlim(-130.0, 40.0)
    axis.set_ylim(-130.0, 40.0)
    axis.set_xlabel("change of the rejected, nats")
    share = frame["quadrant"].value_counts(normalize=True)
    for name, (first, second) in QUADRANTS.items():
        place = (0.97 if second > 0 else 0.53, 0.96 if first > 0 else 0.03)
        align = {"ha": "right", "va": "top" if first > 0 else "bottom"}
        axis.annotate(f"{share.get(name, 0.0):.0%}", place, xycoords="axes fraction", fontsize=9, **align)


def _draw_mass(axis: Any, run: Run) -> None:
    steps = [row["step"] for row in run.history]
    values = [[row[f"mass/{name}"] for row in run.history] for name in PARTS]
    texts = ["chosen in some pair", "rejected only", "in no pair"]
    axis.stackplot(steps, *values, colors=list(PARTS.values()), labels=texts, alpha=0.85)
    axis.set_xlabel("training step")
    axis.set_xlim(steps[0], steps[-1])
    axis.set_ylim(0.0, 1.0)


def forces(
    lm: EnumerableLM, data: PreferenceCounts, objective: Solvable, *, reference: EnumerableLM | None = None
) -> pandas.DataFrame:
    """Return what moves each chosen log-probability at `lm`, to first order, per unit of gradient descent's rate.

    Columns: prompt, chosen, rejected (tokens), ratio = <g_w, g_l> / |g_w|^2 with the gradients of the pair's two
    log-probabilities, own (the preference term of this very pair), others (of the other pairs), sft, total: their sum.
    A row a distinct pair. reference: pi_ref, default `lm` itself, as at the start. pi_base is the chosen responses.
    """
    import pandas
    import torch

    if objective.base != "chosen":
        raise InvalidArgument("objective.base", expected="'chosen'", got=objective.base, remedy="Leave it out.")
    parameters = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    logps = lm.logps()
    x, w, lost = (index.tolist() for index in (data.prompt, data.chosen, data.rejected))
    rows = sorted({*zip(x, w, strict=True), *zip(x, lost, strict=True)})
    flat = []
    for prompt, response in rows:
        found = torch.autograd.grad(logps[prompt, response], parameters, retain_graph=True, allow_unused=True)
        flat.append(torch.cat([torch.zeros(0, dtype=logps.dtype), *(g.reshape(-1) for g in found if g is not None)]))
    table = torch.stack(flat).numpy()
    gram = table @ table.T
    place = {row: index for index, row in enumerate(rows)}
    i, j = (np.array([place[pair] for pair in zip(x, side, strict=True)]) for side in (w, lost))
    change = logps.detach().numpy() - (lm if reference is None else reference).logps().detach().numpy()
    margins = change[x, w] - change[x, lost]
    slopes, _ = preference_derivatives(margins, objective.beta)  # -beta s
    push = -data.weights * slopes
    pull = push * (gram[np.ix_(i, i)] - gram[np.ix_(i, j)])  # [k, m]: what pair m does to the chosen of k
    sft = objective.sft_weight * gram[np.ix_(i, i)] @ data.weights
    own = np.diag(pull)
    labels = np.asarray(["".join(map(str, row)) for row in lm.responses.tolist()])
    return pandas.DataFrame(
        {
            "prompt": x,
            "chosen": labels[w],
            "rejected": labels[lost],
            "ratio": gram[i, j] / gram[i, i],
            "own": own,
            "others": pull.sum(axis=1) - own,
            "sft": sft,
            "total": pull.sum(axis=1) + sft,
        }
    )


def forces_figure(frames: Mapping[str, pandas.DataFrame]) -> Figure:
    """Draw `forces` as stacked bars, a pair each, sorted by the total (black), a panel a frame: label -> `forces`."""
    parts = {
        "own": ("its own pair", CYCLE[2]),
        "others": ("the other pairs", COLORS["DPO"]),
        "sft": ("SFT", COLORS["RPO"]),
    }
    with style():
        figure, axes = new_figure(1, len(frames), width=1.0 + 3.4 * len(frames), height=3.5, sharey=True)
        for axis, (label, frame) in zip(axes[0], frames.items(), strict=True):
            rows = frame.sort_values("total")
            position = np.arange(len(rows))
            up, down = np.zeros(len(rows)), np.zeros(len(rows))
            for key, (name, color) in parts.items():
                values = rows[key].to_numpy()
                if not values.any():
                    continue
                axis.bar(position, values, bottom=np.where(values > 0, up, down), color=color, label=name, width=0.85)
                up, down = up + np.maximum(values, 0.0), down + np.minimum(values, 0.0)
            axis.plot(position, rows["total"], "o", color="black", markersize=3.5, label="sum")
            axis.axhline(0.0, color="#777777", linewidth=0.8)
            axis.set_title(label)
            axis.set_xlabel("pair, sorted by the sum")
        axes[0, 0].set_ylabel("change of log pi(chosen)\nper unit of rate")
        handles, names = axes[0, -1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def recorded(path: str | Path) -> pandas.DataFrame:
    """Return the last held-out values of the runs in a CSV that `rpo plot` wrote, a row a run.

    Columns: updates, chosen, rejected (log-probabilities, nats per response), fell (share of pairs whose chosen
    response became less likely), preference (loss).
    """
    import pandas

    table = pandas.read_csv(path)
    columns = {
        "eval_logps/chosen": "chosen",
        "eval_logps/rejected": "rejected",
        "eval_displacement/share": "fell",
        "eval_loss/preference": "preference",
    }
    held_out = table[table["metric"].isin(columns)]
    last = held_out.sort_values("step").groupby(["run", "metric"])["value"].last().unstack()
    updates = held_out.groupby("run")["step"].max().rename("updates")
    return last[list(columns)].rename(columns=columns).rename_axis(columns=None).join(updates)


def _parts(data: PreferenceCounts) -> dict[str, NDArray[np.bool_]]:
    """Return which responses were chosen at least once, only rejected, and in no pair, each (X, A)."""
    chosen, seen = data.response_counts("chosen") > 0, data.response_counts("responses") > 0
    return {"chosen": chosen, "rejected": seen & ~chosen, "unseen": ~seen}
