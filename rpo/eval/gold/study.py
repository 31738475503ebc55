"""Run a gold-reward study: stages a seed, each stored whole when it ends, so that a killed study continues.

Of seed s, in `output/seed-<s>/`: pairs (sampled and labelled), proxy (a reward model trained on them; proxy-1 and so on
are those of other seeds), reference (samples of pi_ref and best-of-n), then one policy a folder.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.likelihoods import BradleyTerry
from rpo.core.locks import alone
from rpo.core.objectives import RPO
from rpo.core.progress import track
from rpo.core.records import environment, json_text, read_json, staged_output, write_file, write_json
from rpo.eval.gold.measure import Instruments, Sampled, best_of_ensemble, best_of_n, judged, sample, snapshot
from rpo.eval.gold.preferences import label_pairs, tokenized
from rpo.eval.gold.prompts import read_prompts, review_openings, split_prompts
from rpo.eval.gold.settings import PROXY, GoldStudy, method_name
from rpo.eval.scorers import Weighted, load_scorer
from rpo.llm.models import load_model, load_tokenizer
from rpo.llm.reference import FrozenModel
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.reward_model import RewardConfig, RewardTrainer, load_reward_model
from rpo.llm.training.trainer import RPOTrainer

MARKER = "result.json"
STUDY = "study.json"


def run_study(study: GoldStudy, output: str | Path, *, progress: bool | None = None) -> Path:
    """Run what is not there yet and return the folder; `rpo.eval.gold.report` reads it.

    A folder with the results of another study is refused; more seeds and etas may join. Raises
    InvalidArgument, OutputError and what the trainers raise.
    """
    checks.instance("study", study, GoldStudy)
    with alone(checks.path("output", output)):
        folder = _claim(study, Path(output))
        laboratory = _Laboratory(study)
        for seed, run in track(_stages(study, folder), "stages", show=progress):
            run(laboratory, seed)
    return folder


def _stages(study: GoldStudy, folder: Path) -> list[tuple[int, Callable[[_Laboratory, int], None]]]:
    """Return the stages that are missing, in order."""
    stages: list[tuple[int, Callable[[_Laboratory, int], None]]] = []

    def add(seed: int, name: str, make: Callable[[_Laboratory, int, Path], dict[str, Any]]) -> None:
        target = folder / f"seed-{seed}" / name
        if (target / MARKER).exists():
            return

        def run(laboratory: _Laboratory, seed: int) -> None:
            shutil.rmtree(target, ignore_errors=True)  # moved in part when the run was killed
            with staged_output(target, overwrite=False, marker=MARKER) as stage:
                write_json(stage / MARKER, make(laboratory, seed, stage))

        stages.append((seed, run))

    for seed in study.seeds:
        home = folder / f"seed-{seed}"
        add(seed, "pairs", lambda lab, s, stage: lab.make_pairs(s))
        for name in study.proxy_folders():
            add(seed, name, lambda lab, s, stage, home=home, name=name: lab.train_proxy(s, home, stage, name))  # type: ignore[misc]
        add(seed, "reference", lambda lab, s, stage, home=home: lab.measure_reference(s, home))  # type: ignore[misc]
        for objective in study.objectives():
            add(
                seed,
                policy_folder(objective),
                lambda lab, s, stage, home=home, objective=objective: lab.train_policy(s, home, objective),  # type: ignore[misc]
            )
    return stages


def policy_folder(objective: RPO) -> str:
    """Return the name of a policy's folder."""
    return method_name(objective).replace(" ", "-")


def read_stage(folder: Path, seed: int, name: str) -> dict[str, Any]:
    """Return what a stage stored. Raises OutputError."""
    path = folder / f"seed-{seed}" / name / MARKER
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"output: expected a finished stage, got {path} ({error}). Run the study again.") from error
    return found


class _Laboratory:
    """The model, its tokenizer and the gold scorer, loaded once; the stages as methods."""

    def __init__(self, study: GoldStudy) -> None:
        self.study = study
        self.gold = Weighted({load_scorer(name): weight for name, weight in study.gold.items()})
        self.tokenizer = load_tokenizer(study.model)
        self.base = load_model(study.model, dtype="float32")
        self.prompts = review_openings() if study.prompts is None else read_prompts(study.prompts)

    def split(self, seed: int) -> tuple[list[str], list[str]]:
        """Return training and evaluation prompts."""
        return split_prompts(
            self.prompts, train=self.study.train_prompts, evaluation=self.study.eval_prompts, seed=seed
        )

    def make_pairs(self, seed: int) -> dict[str, Any]:
        study = self.study
        self._place()
        with self._autocast():
            made = label_pairs(
                self.base,
                self.tokenizer,
                self.split(seed)[0],
                self.gold,
                pairs_per_prompt=study.pairs_per_prompt,
                max_new_tokens=study.max_new_tokens,
                coverage=study.coverage,
                label_temperature=study.label_temperature,
                noise=study.noise,
                seed=seed,
            )
        counts = {"refused": made.refused, "missing": made.missing, "flipped": made.flipped, "margin": made.margin}
        return {"gold": self.gold.name, "pairs": len(made.rows), **counts, "rows": made.rows}

    def train_proxy(self, seed: int, home: Path, stage: Path, name: str) -> dict[str, Any]:
        study = self.study
        pairs = tokenized(read_stage(home.parent, seed, "pairs")["rows"], self.tokenizer)
        with tempfile.TemporaryDirectory(prefix="rpo-") as scratch:
            trainer = RewardTrainer(
                self.base,
                RewardConfig(
                    learning_rate=study.proxy_learning_rate,
                    num_train_epochs=study.proxy_epochs,
                    **self._training(scratch, seed, "training" if name == PROXY else name),
                ),
                train_dataset=pairs,
                processing_class=self.tokenizer,
                objective=BradleyTerry(),
            )
            trainer.train()
            trainer.model.save_pretrained(stage / "model")
        last = [row for row in trainer.state.log_history if "loss/preference" in row][-1]
        return {"loss": last["loss/preference"], "accuracy": last["rewards/accuracies"], "pairs": len(pairs)}

    def measure_reference(self, seed: int, home: Path) -> dict[str, Any]:
        self._place()
        instruments = self.instruments(seed, home)
        with self._autocast():  # as policies are measured
            found = sample(self.base, instruments, num_samples=self.study.best_of, seed=_seed(seed, "reference"))
            others = [
                judged(self._proxy(home, name), found.ids, instruments) for name in self.study.proxy_folders()[1:]
            ]
        sizes = [2**k for k in range(self.study.best_of.bit_length()) if 2**k <= self.study.best_of]
        gaps = found.gold[:, :, None] - found.gold[:, None, :]
        agreed = (gaps > 0) & (found.proxy[:, :, None] > found.proxy[:, None, :])
        return {
            "texts": found.texts,
            "gold": found.gold,
            "proxy": found.proxy,
            "gold_sd": found.gold.std(),
            "proxy_sd": found.proxy.std(),
            "proxy_accuracy": agreed.sum() / max(1, (gaps > 0).sum()),
            "best_of_n": [{"n": n, **best_of_n(found, n)} for n in sizes],
            "ensembles": best_of_ensemble(found, [found.proxy, *others], sizes, self.study.variance_penalty)
            if others
            else {},
        }

    def train_policy(self, seed: int, home: Path, objective: RPO) -> dict[str, Any]:
        study = self.study
        pairs = tokenized(read_stage(home.parent, seed, "pairs")["rows"], self.tokenizer)
        stored = read_stage(home.parent, seed, "reference")
        baseline = Sampled(stored["texts"], [], np.array(stored["gold"]), np.array(stored["proxy"]))
        with tempfile.TemporaryDirectory(prefix="rpo-") as scratch:
            trainer = RPOTrainer(
                copy.deepcopy(self.base).requires_grad_(True),
                args=RPOConfig(
                    learning_rate=study.learning_rate,
                    num_train_epochs=study.epochs,
                    ref_logps_cache=str(home / "reference_logps.safetensors"),
                    **self._training(scratch, seed),
                ),
                train_dataset=pairs,
                processing_class=self.tokenizer,
                objective=objective,
            )
            self.base.to(trainer.args.device)
            snapshots = _Snapshots(trainer, self, study.schedule(len(pairs)), home, baseline, seed)
            trainer.add_callback(snapshots)
            trainer.train()
        return {
            "objective": objective.to_dict(),
            "snapshots": snapshots.rows,
            "examples": snapshots.examples,
            "log": trainer.state.log_history,
            "path": trainer.path.name,
        }

    def instruments(self, seed: int, home: Path) -> Instruments:
        """Return prompts, gold and the proxy of this seed."""
        proxy = self._proxy(home, PROXY)
        return Instruments(self.tokenizer, self.split(seed)[1], self.gold, proxy, self.study.max_new_tokens)

    def _proxy(self, home: Path, name: str) -> Any:
        return load_reward_model(home / name / "model").to(self.base.device)

    def _autocast(self) -> Any:
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.study.bf16)

    def _place(self) -> None:
        if torch.cuda.is_available():
            self.base.to("cuda")

    def _training(self, scratch: str, seed: int, purpose: str = "training") -> dict[str, Any]:
        return {
            "output_dir": scratch,
            "per_device_train_batch_size": self.study.batch_size,
            # A constant rate: the steps of one run are then the path along which gold is measured.
            "lr_scheduler_type": "constant",
            "max_length": None,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "log": "none",
            "logging_steps": 1,
            "bf16": self.study.bf16,
            "use_cpu": not torch.cuda.is_available(),  # transformers wants it said before it takes bf16 there
            # It wants ends of turns: these are continuations, most of them cut at the limit, on purpose.
            "self_check": False,
            "seed": _seed(seed, purpose),
        }


class _Snapshots(TrainerCallback):
    """Measures the policy after the updates of the schedule."""

    def __init__(
        self, trainer: RPOTrainer, laboratory: _Laboratory, steps: list[int], home: Path, baseline: Sampled, seed: int
    ) -> None:
        self.trainer, self.steps, self.baseline = trainer, set(steps), baseline
        self.reference = FrozenModel(laboratory.base)
        self.instruments = laboratory.instruments(seed, home)
        self.num_samples, self.seed = laboratory.study.eval_samples, seed
        self.rows: list[dict[str, float]] = []
        self.examples: dict[str, list[str]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        with self.trainer.accelerator.autocast():
            metrics, texts = snapshot(
                self.trainer.model,
                self.reference,
                self.instruments,
                self.baseline,
                num_samples=self.num_samples,
                seed=_seed(self.seed, f"snapshot {state.global_step}"),
            )
        self.rows.append({"step": state.global_step, **metrics})
        self.examples[str(state.global_step)] = texts[:4]


def _seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for each purpose."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1)[0])


def _claim(study: GoldStudy, folder: Path) -> Path:
    """Write study.json, or check that the one there is of the same study."""
    path = folder / STUDY
    if path.exists():
        try:
            known = read_json(path)
        except (OSError, ValueError) as error:
            raise OutputError(f"output: {path} cannot be read ({error}). Choose another folder.") from error
        if known.get("digest") != study.digest():
            before, now = known.get("study", {}), study.to_dict()
            changed = [name for name in now if before.get(name) != now[name] and name not in ("seeds", "etas")]
            raise InvalidArgument(
                "output",
                expected="a new folder, or one with results of this study",
                got=f"{folder}, where {', '.join(changed) or 'the settings'} differ",
                remedy="Choose another folder, or the same settings (more seeds and etas may be added).",
            )
    record = {"digest": study.digest(), "study": study.to_dict(), "environment": environment()}
    write_file(path, json_text(record))
    return folder
