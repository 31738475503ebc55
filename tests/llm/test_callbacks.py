"""The callbacks inside a real transformers Trainer, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from rpo.core.errors import InvalidArgument
from rpo.llm.reference import AsGiven, FrozenModel
from rpo.llm.training.callbacks import DisplacementEarlyStopping, SampledKLCallback

WORDS, EOS, PAD = 8, 1, 0
PROMPTS = [[2, 3], [4], [5, 6, 7]]
SHARES = [0.6, 0.4, 0.7, 0.8, 0.9, 0.9, 0.1]


class Shares(Trainer):
    """A trainer that has a reference, and whose log of step k holds the k-th share of SHARES."""

    reference: Any = None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["displacement/share"] = SHARES[self.state.global_step - 1]
        super().log(logs, *args, **kwargs)


def trainer(tiny_model: Any, folder: Path, *, steps: int = 5, **settings: Any) -> Shares:
    """Five updates on two texts, one log an update; the reference starts as the policy."""
    settings = {"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, **settings}
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=0.05, use_cpu=True, **settings
    )
    texts = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([2, 3, 4], [5, 6, 1])]
    made = Shares(tiny_model("gpt2", vocab_size=WORDS, resid_pdrop=0.1), args, train_dataset=texts)
    made.reference = FrozenModel(tiny_model("gpt2", vocab_size=WORDS))
    return made


def kl_callback(of: Trainer, **options: Any) -> SampledKLCallback:
    options = {"every": 2, "eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": 3, **options}
    return SampledKLCallback(of, PROMPTS, **options)


# --- KL ------------------------------------------------------------------------------------------


def test_kl_is_logged_on_its_schedule_beside_the_loss(tiny_model: Any, tmp_path: Path) -> None:
    """Before training (zero), every 2 of 5 updates, and after the last; every update keeps its loss.

    Control: a callback that logs as this one does, but lets the log clear should_log, costs the loss of its step.
    """
    made = trainer(tiny_model, tmp_path)
    made.add_callback(kl_callback(made))
    made.train()
    rows = {row["step"]: row for row in made.state.log_history if "kl/reference" in row}
    assert list(rows) == [0, 2, 4, 5]
    assert rows[0]["kl/reference"] == 0 and rows[0]["kl/reference_se"] == 0
    assert all(row["kl/reference"] > 0 and row["kl/reference_se"] > 0 for step, row in rows.items() if step)
    assert all(0 <= row["kl/unfinished"] <= 1 for row in rows.values())
    assert [row["step"] for row in made.state.log_history if "loss" in row] == [1, 2, 3, 4, 5]

    class Careless(SampledKLCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                self.trainer.log({"kl/reference": 0.0})

    control = trainer(tiny_model, tmp_path)
    control.add_callback(Careless(control, PROMPTS, every=2, eos_token_id=EOS, pad_token_id=PAD))
    control.train()
    assert [row["step"] for row in control.state.log_history if "loss" in row] == [1, 3, 4, 5]


def test_training_is_the_same_with_and_without_it(tiny_model: Any, tmp_path: Path) -> None:
    """The same weights to the last bit, dropout included; another training seed (control) gives others."""

    def weights(measured: bool, seed: int = 0) -> torch.Tensor:
        made = trainer(tiny_model, tmp_path, seed=seed)
        if measured:
            made.add_callback(kl_callback(made, every=1))
        made.train()
        return torch.cat([p.detach().flatten() for p in made.model.parameters()])

    plain = weights(False)
    assert torch.equal(weights(True), plain)
    assert not torch.equal(weights(False, seed=1), plain)


def test_a_measurement_depends_on_seed_and_step_alone(tiny_model: Any, tmp_path: Path) -> None:
    """So a run that is resumed at step 4 logs there what the uninterrupted one did."""
    made = trainer(tiny_model, tmp_path)
    logged: list[float] = []

    def at(step: int, seed: int = 0) -> float:
        kl_callback(made, seed=seed).on_step_end(made.args, TrainerState(global_step=step, max_steps=9), made.control)
        return made.state.log_history[-1]["kl/reference"]

    made.reference = FrozenModel(tiny_model("gpt2", vocab_size=WORDS, seed=1))
    logged = [at(4), at(4), at(6), at(4, seed=1)]
    assert logged[0] == logged[1] and len(set(logged)) == 3


def test_kl_refuses_sharded_models_and_bad_arguments(tiny_model: Any, tmp_path: Path) -> None:
    made = trainer(tiny_model, tmp_path)
    with pytest.raises(InvalidArgument, match="prompts: expected at least one prompt, each of at least one token"):
        SampledKLCallback(made, [[2], []], every=1, eos_token_id=EOS, pad_token_id=PAD)
    with pytest.raises(InvalidArgument, match="every"):
        kl_callback(made, every=0)
    made.reference = AsGiven(made.model)
    with pytest.raises(InvalidArgument, match="reference: expected a reference that stays"):
        kl_callback(made)
    made.reference = FrozenModel(tiny_model("gpt2", vocab_size=WORDS))
    made.add_callback(kl_callback(made))
    next(made.model.parameters()).ds_id = 0  # as DeepSpeed ZeRO-3 marks them
    with pytest.raises(InvalidArgument, match="sharded parameters"):
        made.train()


# --- early stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "patience", "last"),
    [(0.5, 1, 1), (0.5, 2, 4), (0.5, 3, 5), (0.95, 1, 7), (0.8, 2, 6)],
)
def test_stops_after_patience_logs_in_a_row_above_the_threshold(
    tiny_model: Any, tmp_path: Path, threshold: float, patience: int, last: int
) -> None:
    """SHARES = 0.6 0.4 0.7 0.8 0.9 0.9 0.1: two above 0.5 in a row first at step 4; 0.8 is not above 0.8."""
    made = trainer(tiny_model, tmp_path, steps=7)
    made.add_callback(DisplacementEarlyStopping(threshold, patience))
    made.train()
    assert made.state.global_step == last
    reasons = [row for row in made.state.log_history if "stopped" in row]
    assert len(reasons) == (threshold < 0.95)
    if reasons:
        assert reasons[0]["step"] == last and f"above {threshold:g}" in reasons[0]["stopped"]


def test_the_reason_is_in_the_saved_state_and_the_count_survives_a_resume(tiny_model: Any, tmp_path: Path) -> None:
    """Interrupted after step 3 (shares 0.6 0.4 0.7) and resumed, patience 2 is up at step 4 as without interruption."""
    made = trainer(tiny_model, tmp_path, steps=6, save_strategy="steps", save_steps=3)
    made.train()
    resumed = trainer(tiny_model, tmp_path, steps=6)
    resumed.add_callback(DisplacementEarlyStopping(0.5, 2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4
    resumed.save_state()
    saved = json.loads((tmp_path / "trainer_state.json").read_text())
    assert "was 0.7, 0.8 in the last 2" in next(row for row in saved["log_history"] if "stopped" in row)["stopped"]


def test_evaluation_can_be_watched_and_a_metric_that_never_comes_is_said(
    tiny_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = DisplacementEarlyStopping(0.5, 1, metric="eval_displacement/share")
    state, control = TrainerState(), TrainerControl()
    for logs, stopped in (({"displacement/share": 0.9}, False), ({"eval_displacement/share": 0.9}, True)):
        state.log_history.append(logs)
        stopping.on_log(None, state, control, logs=logs)
        assert control.should_training_stop == stopped
    made = trainer(tiny_model, tmp_path, steps=1)
    made.add_callback(stopping)
    made.train()
    assert "eval_displacement/share was never logged" in caplog.text


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("threshold", {"threshold": 1.0}),
        ("threshold", {"threshold": "half"}),
        ("patience", {"threshold": 0.5, "patience": 0}),
        ("metric", {"threshold": 0.5, "metric": "logps/chosen"}),
    ],
)
def test_bad_arguments_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: expected"):
        DisplacementEarlyStopping(**arguments)
