"""`WinRateCallback`: during training, how often a judge prefers the policy's responses to those before training."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.utils import logging

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.records import read_json, write_json
from rpo.eval.judges import Judge
from rpo.eval.judges.loading import load
from rpo.eval.judging import judge_pairs
from rpo.eval.pacing import Calls
from rpo.eval.planning import Pair
from rpo.eval.scorers import Prompt, Scorer
from rpo.eval.verdicts import VerdictStore, canonical
from rpo.eval.win_rates import win_rate
from rpo.llm.data.collate import PairDataset
from rpo.llm.diagnostics.gradients import is_sharded
from rpo.llm.logps.scoring import pad_token
from rpo.llm.reference import AsGiven, NoReference
from rpo.llm.sampling import prompt_token_ids, sample_ids

logger = logging.get_logger(__name__)

FOLDER, BASELINE, VERDICTS = "win_rate", "baseline.json", "verdicts.jsonl"


class WinRateCallback(TrainerCallback):
    """Logs eval_win_rate, with eval_win_rate_low and _high (Wilson's interval), at every evaluation.

    judge: a `Judge`, a scorer (`rpo.eval.scorers.Function` makes one of a function), or its name as of `rpo judge`,
    "scorer:length" for example. trainer: a trainer of `rpo.llm` with a tokenizer; add the callback to it by
    `trainer.add_callback`. prompts: texts or messages; by default those of the
    evaluation set (the training set without one), the first num_prompts. every: updates between measurements, in place
    of evaluations. Each prompt has one response, judged in both orders against one of the reference, which is the
    policy as it was where no reference model is kept. Those responses and all verdicts are kept in output_dir/win_rate,
    so that a resumed run goes on with them and asks nothing twice. Of several processes the first asks. Verdicts that
    are missing are logged as eval_win_rate_undecided. Raises InvalidArgument, and what the judge raises.
    """

    def __init__(
        self,
        judge: Judge | Scorer | str,
        trainer: Any,
        *,
        prompts: Sequence[Prompt] | None = None,
        num_prompts: int = 64,
        every: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        batch_size: int = 16,
        seed: int | None = None,
        level: float = 0.95,
        calls: Calls | None = None,
    ) -> None:
        self.judge = load(judge)
        if getattr(trainer, "tokenizer", None) is None:
            remedy = "Pass processing_class to the trainer."
            raise InvalidArgument("trainer", expected="a trainer with a tokenizer", got=None, remedy=remedy)
        self.trainer, self.calls = trainer, calls
        self.every = None if every is None else checks.integer("every", every, minimum=1)
        self.seed = trainer.args.seed if seed is None else checks.integer("seed", seed, minimum=0)
        self.level = checks.fraction("level", level)
        count = checks.integer("num_prompts", num_prompts, minimum=1)
        self.prompts, self.prompt_ids = self._prompts(prompts, count)
        self.sampling: dict[str, Any] = {
            "max_new_tokens": checks.integer("max_new_tokens", max_new_tokens, minimum=1),
            "temperature": checks.nonnegative("temperature", temperature),
            "batch_size": checks.integer("batch_size", batch_size, minimum=1),
        }
        self.folder = Path(trainer.args.output_dir) / FOLDER
        self.baseline: list[str] = []

    def _prompts(self, given: Sequence[Prompt] | None, count: int) -> tuple[list[Prompt], list[Sequence[int]]]:
        tokenizer = self.trainer.tokenizer
        if given is not None:
            prompts: list[Prompt] = list(given)[:count]
            ids: list[Sequence[int]] = [prompt_token_ids(tokenizer, prompt) for prompt in prompts]
        else:
            data = self.trainer.eval_dataset
            data = data if isinstance(data, PairDataset) else self.trainer.train_dataset
            pairs = data.pairs if isinstance(data, PairDataset) else ()
            ids = [pairs[k].prompt_ids for k in range(min(count, len(pairs)))]
            prompts = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        if not prompts:
            remedy = "Pass texts or messages, or a data set that is not streamed."
            raise InvalidArgument("prompts", expected="at least one prompt", got="none", remedy=remedy)
        return prompts, ids

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sample, or read, what the policy is compared with."""
        if is_sharded(self.trainer.model.parameters()):
            got = "sharded parameters (FSDP or DeepSpeed ZeRO-3)"
            remedy = "Leave the callback out, and compare saved models by rpo judge."
            raise InvalidArgument("trainer", expected="a model whole on each process", got=got, remedy=remedy)
        file = self.folder / BASELINE
        asked = {"prompts": list(map(list, self.prompt_ids)), "seed": self.seed, **self.sampling}
        key = hashlib.sha256(canonical(asked).encode()).hexdigest()
        kept = read_json(file) if file.is_file() else {}
        if kept.get("key") == key and state.global_step > 0:
            self.baseline = list(kept["responses"])
            return
        reference: Any = getattr(self.trainer, "reference", None)
        separate = reference is not None and not isinstance(reference, AsGiven | NoReference)
        if state.global_step > 0 and not separate:
            raise InvalidArgument(
                "trainer",
                expected=f"the responses before training in {file}, of a run that is resumed",
                got="none for these prompts and settings",
                remedy="Resume with what the run began with, or set precompute_ref_log_probs=False.",
            )
        with reference.active() if separate else contextlib.nullcontext(self.trainer.model) as model:
            self.baseline = self._sample(model, 0)
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(file, {"key": key, "responses": self.baseline})

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, unless it is done every so many updates."""
        if self.every is None and self.baseline:
            self._measure(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, where it is done every so many updates."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if self.every is not None and (state.global_step % self.every == 0 or last):
            self._measure(state, control)

    def _sample(self, model: Any, step: int) -> list[str]:
        """Return one response to each prompt, as texts."""
        tokenizer = self.trainer.tokenizer
        with self.trainer.accelerator.autocast():
            drawn = sample_ids(
                model,
                self.prompt_ids,
                seed=int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]),
                eos_token_id=sorted(self.trainer.eos_token_ids),
                pad_token_id=pad_token(tokenizer),
                progress=False,
                **self.sampling,
            )
        return [tokenizer.decode(one[0], skip_special_tokens=True) for one in drawn]

    def _measure(self, state: Any, control: Any) -> None:
        responses = self._sample(self.trainer.model, state.global_step + 1)
        if not state.is_world_process_zero:
            return
        pairs = [
            Pair(prompt, "policy", "reference", *texts)
            for prompt, *texts in zip(self.prompts, responses, self.baseline, strict=True)
        ]
        with VerdictStore(self.folder / VERDICTS) as store:
            judged = judge_pairs(pairs, self.judge, store, calls=self.calls, progress=False)
        known = np.flatnonzero(~np.isnan(judged.results))
        logs = {"eval_win_rate_undecided": float(len(pairs) - known.size)} if known.size < len(pairs) else {}
        if known.size:
            names = [canonical(self.prompts[k]) for k in known]
            found = win_rate(judged.results[known], names, level=self.level, resamples=20, rng=self.seed)
            low, high = found.wilson
            logs |= {"eval_win_rate": found.rate, "eval_win_rate_low": low, "eval_win_rate_high": high}
        else:
            logger.warning(f"The judge gave no verdict at step {state.global_step}: {judged.stopped or 'see its log'}.")
        # Logging clears should_log, and with it the loss that is due at this step.
        due = control.should_log
        self.trainer.log(logs)
        control.should_log = due
