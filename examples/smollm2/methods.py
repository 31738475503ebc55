"""Six objectives on the same pairs, from the same start: trained one after another, then drawn in one figure.

`python examples/smollm2/methods.py --model smollm2 --output runs/methods` takes about twelve minutes on two cores. A
method whose folder is finished is not trained again. `--figure PATH` names the PNG; its numbers are beside it as CSV.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas
import torch

import rpo
from rpo.core.records import Run
from rpo.plotting import COLORS, new_figure, save, style

HERE = Path(__file__).parent
HELD_OUT = 70  # pairs
# One learning rate for all, and the methods' own defaults but for chi-PO: its link is twice as steep at pi_ref.
METHODS = {
    "DPO": rpo.DPO(beta=0.1),
    "RPO": rpo.RPO(beta=0.1, eta=0.05),
    "IPO": rpo.IPO(tau=0.1),
    "SimPO": rpo.SimPO(beta=2.0, gamma=0.5),
    "ChiPO": rpo.ChiPO(beta=0.05),
    "KTO": rpo.KTO(beta=0.1),
}
CHANGES = ("eval_displacement/chosen_change", "eval_displacement/rejected_change")
PANELS = {
    "margin": ("Margin, change since the start", "nats per pair"),
    "chosen": ("Chosen responses, change", "nats per response"),
    "accuracy": ("Pairs ranked right", "share, by its own reward"),
}


def train(name: str, model: str, folder: Path, seed: int) -> Run:
    """Train one method and return its run, or read it where it is finished."""
    if (folder / name / "run.json").is_file():
        return Run.load(folder / name)
    return rpo.fit(
        model,
        str(HERE / "pairs.jsonl"),
        METHODS[name],
        eval_dataset=str(HERE / "eval_pairs.jsonl"),
        output_dir=folder / name,
        peft_config={"r": 16, "lora_alpha": 32},
        max_steps=30,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=10,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=10,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        ref_logps_cache=str(folder / "reference.safetensors"),
        # Where there is no reference, it has the log-probabilities at the start scored; it never stops a run.
        displacement_threshold=0.999,
        displacement_patience=1_000,
    )


def measured(name: str, run: Run) -> pandas.DataFrame:
    """Return what the held-out pairs say along training; all changes are zero at the start."""
    rows = [{"method": name, "step": 0, "margin": 0.0, "chosen": 0.0, "accuracy": float("nan")}]
    for row in run.history:
        if CHANGES[0] in row:
            chosen, rejected = (row[change] for change in CHANGES)
            found = {"margin": chosen - rejected, "chosen": chosen, "accuracy": row["eval_rewards/accuracies"]}
            rows.append({"method": name, "step": row["step"], **found})
    return pandas.DataFrame(rows).drop_duplicates("step", keep="last")


def draw(table: pandas.DataFrame, target: Path) -> None:
    """Draw margin, displacement and accuracy against updates, one colour a method."""
    with style():
        figure, axes = new_figure(1, 3, width=10, height=3.5)
        for axis, (column, (title, unit)) in zip(axes[0], PANELS.items(), strict=True):
            for name, rows in table.groupby("method", sort=False):
                axis.plot(rows["step"], rows[column], "o-", markersize=4, color=COLORS[name], label=name)
            axis.set(title=title, xlabel="update", ylabel=unit, xticks=sorted(set(table["step"])))
        axes[0][0].axhline(0.0, color="0.6", linewidth=1)
        axes[0][1].axhline(0.0, color="0.6", linewidth=1)
        error = 0.5 / HELD_OUT**0.5
        axes[0][2].axhline(0.5, color="0.6", linewidth=1)
        axes[0][2].axhspan(0.5 - error, 0.5 + error, color="0.9", label="a coin, one standard error")
        handles = {
            label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, ncols=len(handles), loc="outside lower center", fontsize=9)
        message = "After 30 updates no method ranks held-out pairs better than a coin; what good answers lose differs"
        figure.suptitle(message, x=0.01, ha="left", fontsize=10.5)
    save(figure, target, table)


def main() -> None:
    """Train what is not finished, and draw all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = pandas.concat(
        [measured(name, train(name, options.model, options.output, options.seed)) for name in METHODS],
        ignore_index=True,
    )
    draw(table, options.figure or options.output / "methods.png")
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
