"""Part `paths` of benchmarks/gpu.py: gradients, steps, memory and compiled graphs of every path in a model.

First the gradient of one batch, of every path and type, against the padded path's in float32. Then RPOTrainer as a
user runs it, bfloat16 autocast over float32 weights, the reference computed before: eight updates of six pairs of
UltraFeedback-like lengths, but the sixth, which is one pair of 40 tokens. The learning rate is 0, so that every run
starts from the same weights and the preference term stays ln 2 but for rounding.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from typing import Any

import torch
import transformers
import vs_trl
from gpu_record import Recorder
from vs_trl_sides import OBJECTIVE
from vs_trl_workload import LLAMA, make_model, make_reference, random_pairs

from rpo.llm.data import PreparedPairs, TokenizedGroup, TokenizedPair
from rpo.llm.data.collate import group_of
from rpo.llm.logps.packing import choose_path
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.trainer import RPOTrainer

UPDATES, PAIRS = 8, 6
FLOAT32, BFLOAT16 = "float32", "bfloat16"
GRADIENTS = [  # path, type, gradient checkpointing; the first is what the others are held against
    ("padded", FLOAT32, False),
    ("padded", BFLOAT16, False),
    ("shared", BFLOAT16, False),
    ("shared", BFLOAT16, True),
    ("packed", BFLOAT16, False),
    ("shared", FLOAT32, False),
]
RUNS = [  # path, gradient checkpointing, reference computed before
    ("shared", False, True),
    ("padded", False, True),
    ("packed", False, True),
    ("shared", True, True),
    ("padded", True, True),
    ("shared", False, False),
]


def run(recorder: Recorder) -> None:
    """Measure gradients, then runs, as far as there is time."""
    transformers.logging.set_verbosity_error()
    name = "tiny" if recorder.dry else "llama-1b"
    arguments = vs_trl.parse(["--model", name, "--device", recorder.device])
    with recorder.measured(kind="model", name=name):
        model, _ = make_model(arguments)
    pairs = random_pairs((UPDATES - 3) * PAIRS, LLAMA[name]["vocab_size"], 0.05 if recorder.dry else 1.0)
    gradients(recorder, model, pairs[:4])
    short = TokenizedPair(tuple(range(4, 24)), tuple(range(24, 34)), tuple(range(34, 44)), row=len(pairs))
    for path, checkpointing, precomputed in RUNS:
        if recorder.left() < 12:
            recorder.row(kind="left out", path=path, checkpointing=checkpointing, precomputed=precomputed)
            continue
        train(recorder, model, [*pairs, short], path, checkpointing=checkpointing, precomputed=precomputed)


def gradients(recorder: Recorder, model: Any, batch: list[TokenizedGroup]) -> None:
    """Write loss and gradient of the batch, of every path, type and with checkpointing, against the first of them."""
    groups, device = [group_of(pair) for pair in batch], recorder.device
    reference = make_reference(model)
    exact: list[torch.Tensor] = []
    loss_32 = fixed = None
    for name, dtype, checkpointing in GRADIENTS:
        case = f"{name} {dtype}" + checkpointing * " checkpointing"
        with recorder.measured(kind="gradient", case=case, path=name, dtype=dtype, checkpointing=checkpointing) as row:
            set_checkpointing(model, checkpointing)
            path = choose_path(model, 0, name)
            row["taken"] = path.name
            inputs = {key: tensor.to(device) for key, tensor in path.collate(groups).items()}
            if fixed is None:
                with torch.no_grad():
                    fixed = path.logps(reference, inputs)
                del reference
            for attempt in ("first_s", "later_s"):
                model.zero_grad(set_to_none=True)
                recorder.synchronize()
                start = time.perf_counter()
                with recorder.memory(row, static=size_of(model)):
                    with torch.autocast(device, torch.bfloat16, enabled=dtype == BFLOAT16):
                        logps = path.logps(model, inputs)
                    loss = OBJECTIVE(*logps.unbind(1), *fixed.unbind(1))[0]
                    loss.backward()
                row[attempt] = time.perf_counter() - start
            row["loss"] = float(loss.detach())
            made = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            row["gradient_norm"] = norm(made)
            if not exact:
                exact, loss_32 = [gradient.clone() for gradient in made], row["loss"]
            row["loss_off"] = abs(row["loss"] - loss_32) / abs(loss_32)
            row["gradient_off"] = norm([a - b for a, b in zip(made, exact, strict=True)]) / norm(exact)
    set_checkpointing(model, False)
    model.zero_grad(set_to_none=True)


def norm(tensors: list[torch.Tensor]) -> float:
    """Return the norm of all of them together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def size_of(model: Any) -> int:
    """Return the bytes of the gradients of what is trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def set_checkpointing(model: Any, on: bool) -> None:
    """Switch gradient checkpointing."""
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


# --- the trainer ------------------------------------------------------------------------------------------


class InOrder(RPOTrainer):
    """An RPOTrainer that takes its pairs in the order they are given."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Watch(transformers.TrainerCallback):
    """Writes one row an update."""

    def __init__(self, recorder: Recorder, model: Any, case: dict[str, Any]) -> None:
        self.recorder, self.static, self.case = recorder, size_of(model), case
        self.stack: Any = None
        self.row: dict[str, Any] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.row = {}
        self.stack = self.recorder.memory(self.row, static=self.static)
        self.stack.__enter__()
        self.recorder.synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.recorder.synchronize()
        self.row["ms"] = 1e3 * (time.perf_counter() - self.start)
        self.stack.__exit__(None, None, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the row: what was logged of the update is known only here."""
        if logs and "loss/preference" in logs:
            kept = {key: logs[name] for key, name in (("loss", "loss"), ("gradient_norm", "grad_norm")) if name in logs}
            off = logs["loss/preference"] - math.log(2)
            with self.recorder.measured(kind="update", **self.case, update=state.global_step) as row:
                row |= {"ms": self.row["ms"], **kept, "off_ln_2": off, **self.row}


def train(
    recorder: Recorder, model: Any, pairs: list[TokenizedGroup], path: str, *, checkpointing: bool, precomputed: bool
) -> None:
    """Run the trainer over the pairs."""
    name = path + checkpointing * " checkpointing" + (" cached" if precomputed else " live")
    case = {"case": name, "path": path, "checkpointing": checkpointing, "precomputed": precomputed}
    with recorder.measured(kind="run", **case) as row, tempfile.TemporaryDirectory() as folder:
        set_checkpointing(model, False)
        config = RPOConfig(
            output_dir=folder,
            path=path,
            bf16=True,
            use_cpu=recorder.device == "cpu",
            per_device_train_batch_size=PAIRS,
            max_steps=UPDATES,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            precompute_ref_log_probs=precomputed,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer: Any = InOrder(model, args=config, train_dataset=PreparedPairs(pairs), objective=OBJECTIVE)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(Watch(recorder, model, case))
        start = time.perf_counter()
        trainer.train()
        row |= {
            "seconds": time.perf_counter() - start,
            "taken": trainer.path.name,
            "checks": trainer.self_check_results,
        }
        del trainer
    model.zero_grad(set_to_none=True)
    gc.collect()
