"""Make preference pairs: two sampled answers to each prompt, labelled by VADER's sentiment score.

    python examples/smollm2/make_pairs.py --model MODEL_FOLDER --output FOLDER

Writes pairs.jsonl and eval_pairs.jsonl (other prompts), one pair a line in TRL's conversational format, and
pairs.meta.json with everything that decided them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rpo.core.records import environment, staged_output, write_json
from rpo.llm.models import load_model, load_tokenizer
from rpo.llm.reference.fingerprint import weights_fingerprint
from rpo.llm.sampling import Sample, generate

HERE = Path(__file__).parent


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a hub name, a .gguf file or a wheel with one inside")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--eval-prompts", type=int, default=70, help="prompts set aside for evaluation")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=4, help="draws of two answers before a prompt is dropped")
    parser.add_argument("--noise", type=float, default=0.0, help="T > 0: Bradley-Terry labels, sigmoid(difference / T)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def refusal(answers: list[Sample], scores: list[float]) -> str | None:
    """Return why two answers make no pair, or None."""
    if any(not answer.text.strip() for answer in answers):
        return "empty answer"
    if any("\ufffd" in answer.text for answer in answers):
        return "cut inside a character"
    if answers[0].text == answers[1].text:
        return "identical answers"
    return "tied scores" if scores[0] == scores[1] else None


def pair(prompt: Any, answers: list[Sample], scores: list[float], first_wins: bool) -> dict[str, Any]:
    """Return one row; the scores stay those of the scorer, also where noise turned the label around."""
    order = (0, 1) if first_wins else (1, 0)
    row: dict[str, Any] = {"prompt": prompt}
    for name, k in zip(("chosen", "rejected"), order, strict=True):
        row[name] = [{"role": "assistant", "content": answers[k].text}]
        row[f"{name}_score"] = scores[k]
        row[f"{name}_finish_reason"] = answers[k].finish_reason
    return row


def main() -> None:
    """Sample, label, split and write."""
    settings = parse()
    prompts = [json.loads(line)["prompt"] for line in settings.prompts.read_text(encoding="utf-8").splitlines()]
    model, tokenizer = load_model(settings.model, dtype="float32"), load_tokenizer(settings.model)
    scorer = SentimentIntensityAnalyzer()
    split_seed, label_seed, *round_seeds = np.random.SeedSequence(settings.seed).spawn(2 + settings.rounds)
    labels = np.random.default_rng(label_seed)

    rows: dict[int, dict[str, Any]] = {}
    redrawn: Counter[str] = Counter()
    flipped = 0
    for seed in round_seeds:
        waiting = [place for place in range(len(prompts)) if place not in rows]
        if not waiting:
            break
        sampled = generate(
            model,
            tokenizer,
            [prompts[place] for place in waiting],
            num_samples=2,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=int(seed.generate_state(1)[0]),
        )
        refused: Counter[str] = Counter()
        for place, answers in zip(waiting, sampled, strict=True):
            scores = [scorer.polarity_scores(answer.text)["compound"] for answer in answers]
            reason = refusal(answers, scores)
            if reason is not None:
                refused[reason] += 1
                continue
            better = scores[0] > scores[1]
            noisy = better
            if settings.noise > 0:
                noisy = bool(labels.random() < 1 / (1 + math.exp((scores[1] - scores[0]) / settings.noise)))
            flipped += noisy != better
            rows[place] = pair(prompts[place], answers, scores, noisy)
        redrawn += refused
        print(f"{len(rows)} of {len(prompts)} prompts have a pair; refused: {dict(refused)}", flush=True)

    shuffled = np.random.default_rng(split_seed).permutation(len(prompts)).tolist()
    evaluation = sorted(place for place in shuffled[: settings.eval_prompts] if place in rows)
    training = sorted(place for place in shuffled[settings.eval_prompts :] if place in rows)
    kept = [rows[place] for place in (*training, *evaluation)]
    finished = [row[f"{name}_finish_reason"] == "stop" for row in kept for name in ("chosen", "rejected")]
    meta = {
        "settings": {**vars(settings), **{name: Path(getattr(settings, name)).name for name in ("model", "prompts")}},
        "model": {"licence": "Apache-2.0", "weights_fingerprint": weights_fingerprint(model)},
        "decoding": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "scorer": {"name": "vaderSentiment compound score of the answer", "version": version("vaderSentiment")},
        "counts": {
            "prompts": len(prompts),
            "pairs": len(training),
            "eval_pairs": len(evaluation),
            "redrawn": {**redrawn},
            "dropped": len(prompts) - len(rows),
            "labels_flipped_by_noise": flipped,
        },
        "answers_that_stopped_by_themselves": float(np.mean(finished)),
        "mean_score": {name: float(np.mean([row[f"{name}_score"] for row in kept])) for name in ("chosen", "rejected")},
        "environment": environment(),
    }
    del meta["settings"]["output"], meta["settings"]["overwrite"]
    with staged_output(settings.output, overwrite=settings.overwrite, marker="pairs.meta.json") as stage:
        for name, places in (("pairs.jsonl", training), ("eval_pairs.jsonl", evaluation)):
            lines = (json.dumps(rows[place], ensure_ascii=False) + "\n" for place in places)
            (stage / name).write_text("".join(lines), encoding="utf-8")
        write_json(stage / "pairs.meta.json", meta)


if __name__ == "__main__":
    main()
