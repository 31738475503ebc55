"""Lists of four sampled answers with a known score: made, learnt by two methods, and measured.

`python examples/smollm2/lists.py --model smollm2 --output runs/lists` trains on lists.jsonl, a few minutes a method on
two cores; what is finished is not done again. `--sample` draws the lists anew and writes them, and does nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import rpo
from rpo.core.objectives import Objective
from rpo.core.records import Run
from rpo.llm.models import load_model, load_tokenizer
from rpo.llm.sampling import generate
from rpo.plotting import color_of, new_figure, save, style

HERE = Path(__file__).parent
ANSWERS, TOKENS = 4, 48  # to a prompt; new tokens of an answer
TRAINING, HELD_OUT = 80, 24  # prompts
FRESH = 4  # answers to each held-out prompt, for the gold score of a model
METHODS: dict[str, Objective] = {
    "PlackettLuceDPO": rpo.PlackettLuceDPO(beta=0.1),
    "LiPO": rpo.LiPO(beta=0.1),
}


def scored(texts: Sequence[str]) -> list[float]:
    """Return VADER's compound score of each answer, moved to [0, 1]."""
    scorer = SentimentIntensityAnalyzer()
    return [round((1.0 + scorer.polarity_scores(text)["compound"]) / 2.0, 5) for text in texts]


def sampled(model: Any, tokenizer: Any, prompts: Sequence[Any], answers: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of a prompt with sampled answers, their scores and why each ended."""
    drawn = generate(model, tokenizer, prompts, num_samples=answers, max_new_tokens=TOKENS, batch_size=32, seed=seed)
    return [
        {
            "prompt": prompt,
            "responses": [answer.text for answer in found],
            "scores": scored([answer.text for answer in found]),
            "responses_finish_reason": [answer.finish_reason for answer in found],
        }
        for prompt, found in zip(prompts, drawn, strict=True)
    ]


def make(name: str) -> None:
    """Draw the lists, training and held out, from the model as it is, and write them beside this file."""
    lines = (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    order = np.random.default_rng(0).permutation(len(prompts))[: TRAINING + HELD_OUT]
    model, tokenizer = load_model(name, dtype="float32"), load_tokenizer(name)
    rows = sampled(model, tokenizer, [prompts[k] for k in order], ANSWERS, seed=1)
    usable = [all(text.strip() and "\ufffd" not in text for text in row["responses"]) for row in rows]
    for file, part in (("lists.jsonl", slice(None, TRAINING)), ("eval_lists.jsonl", slice(TRAINING, None))):
        kept = [row for row, good in zip(rows[part], usable[part], strict=True) if good]
        (HERE / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        print(f"{file}: {len(kept)} lists, {len(rows[part]) - len(kept)} left out")


def train(name: str, model: str, folder: Path, seed: int) -> Run:
    """Train one method and return its run, or read it where it is finished."""
    if (folder / name / "run.json").is_file():
        return Run.load(folder / name)
    return rpo.fit(
        model,
        str(HERE / "lists.jsonl"),
        METHODS[name],
        eval_dataset=str(HERE / "eval_lists.jsonl"),
        output_dir=folder / name,
        peft_config={"r": 16, "lora_alpha": 32},
        max_steps=20,  # one pass
        per_device_train_batch_size=4,
        per_device_eval_batch_size=10,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        ref_logps_cache=str(folder / "reference.safetensors"),
    )


def gold(model: Any, tokenizer: Any, seed: int) -> list[float]:
    """Return the mean score of fresh answers to each held-out prompt."""
    prompts = [json.loads(line)["prompt"] for line in (HERE / "eval_lists.jsonl").read_text("utf-8").splitlines()]
    return [float(np.mean(row["scores"])) for row in sampled(model, tokenizer, prompts, FRESH, seed)]


def draw(scores: pandas.DataFrame, target: Path) -> None:
    """Draw how much more fresh answers score than the untrained model's to the same prompts, with standard errors."""
    with style():
        figure, axes = new_figure(1, 1, width=6.5, height=2.6)
        for place, row in enumerate(scores.itertuples()):
            color = "#777777" if row.gain_error == 0 else color_of(row.model)
            axes[0][0].errorbar(row.gain, place, xerr=row.gain_error, fmt="o", color=color, capsize=3)
        axes[0][0].axvline(0.0, color="0.6", linewidth=1)
        axes[0][0].set_yticks(range(len(scores)), list(scores["model"]))
        axes[0][0].invert_yaxis()
        axes[0][0].margins(y=0.25)
        axes[0][0].set(
            title="Fresh answers score a little higher after 20 updates on lists",
            xlabel="gold score over the model's own, same prompts, one standard error",
        )
    save(figure, target, scores)


def main() -> None:
    """Make the lists where asked to, train what is not finished, sample from every model, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--output", type=Path, default=Path("runs/lists"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true")
    options = parser.parse_args()
    if options.sample:
        make(options.model)
        return
    tokenizer = load_tokenizer(options.model)
    found = {"as it is": gold(load_model(options.model, dtype="float32"), tokenizer, options.seed)}
    rows = []
    for name in METHODS:
        run = train(name, options.model, options.output, options.seed)
        rows += [
            {"method": name, "step": row["step"], "accuracy": row["eval_rewards/accuracies"]}
            for row in run.history
            if "eval_rewards/accuracies" in row
        ]
        found[name] = gold(load_model(str(options.output / name), dtype="float32"), tokenizer, options.seed)
    scores = pandas.DataFrame(
        [
            {"model": name, "gold": np.mean(values), "error": np.std(values, ddof=1) / len(values) ** 0.5,
             "gain": np.mean(np.subtract(values, found["as it is"])),
             "gain_error": np.std(np.subtract(values, found["as it is"]), ddof=1) / len(values) ** 0.5}
            for name, values in found.items()
        ]
    )  # fmt: skip
    history = pandas.DataFrame(rows).drop_duplicates(["method", "step"], keep="last")
    draw(scores, options.figure or options.output / "lists.png")
    print(history.to_string(index=False, float_format="{:.3f}".format))
    print(scores.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
