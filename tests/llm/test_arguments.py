"""Every argument inherited from transformers is honoured, translated or refused; what is recorded is what was used."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import models_for_tests
import pytest
import transformers
from training import config, tiny_pairs, trainer

import rpo
from rpo.core.errors import InvalidArgument, MissingDependency, OutputError, RPOError
from rpo.llm.training.arguments import OPTIMIZER, REFUSED
from rpo.llm.training.config import RPOConfig, TrainerConfig
from rpo.llm.training.fitting import record
from rpo.llm.training.reward_model import RewardConfig
from rpo.llm.training.sft import SFTConfig

HONOURED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
    liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps logging_strategy logging_steps
    logging_first_step log_on_each_node include_num_input_tokens_seen log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
    eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start save_only_model save_strategy save_steps
    save_on_each_node enable_jit_checkpoint push_to_hub hub_private_repo hub_model_id hub_strategy hub_always_push
    hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    parallelism_config dataloader_drop_last dataloader_num_workers dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict local_rank
"""  # do_train, do_eval and do_predict are for scripts: transformers' own Trainer reads none of them
TRANSLATED = {
    "gradient_checkpointing": "activation_checkpointing, where transformers has that name",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs, likewise",
    "resume_from_checkpoint": "train(resume_from_checkpoint=...), which wins",
    "dataloader_pin_memory": "by default, whether there is CUDA",
    "hub_token": "used, and left out of every record",
    "save_total_limit": "older checkpoints go once the new one is whole",
}
SAVING = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 1e-2}


def test_no_inherited_argument_is_without_a_decision() -> None:
    """A field that a new transformers brings makes this fail until it is put in one of the three lists."""
    found = {one.name for one in dataclasses.fields(transformers.TrainingArguments)}
    lists = [set(HONOURED.split()), set(TRANSLATED), set(REFUSED)]
    assert sum(map(len, lists)) == len(set().union(*lists)), "an argument is in two lists"
    assert found - set().union(*lists) == set(), "arguments without a decision"
    if transformers.__version__.startswith("5.23"):
        assert set().union(*lists) - found == set(), "decisions about arguments that do not exist"


OTHER = {bool: lambda value: not value, float: lambda value: value + 0.5, type(None): lambda value: ["x"]}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_arguments_have_one_value(name: str) -> None:
    only = REFUSED[name][0]
    assert getattr(RPOConfig(output_dir="unused", use_cpu=True, **{name: only}), name) == only  # control
    other = {"length_column_name": "len", "include_for_metrics": ["loss"], "eval_accumulation_steps": 2}
    value = other.get(name, OTHER[type(only)](only) if type(only) in OTHER else None)
    with pytest.raises(InvalidArgument, match=f"^{name}: expected .*Leave it out"):
        RPOConfig(output_dir="unused", use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1), ("learning_rate", float("nan")), ("learning_rate", "fast"), ("weight_decay", -1),
        ("per_device_train_batch_size", 0), ("per_device_eval_batch_size", 0), ("gradient_accumulation_steps", 0),
        ("num_train_epochs", 0), ("num_train_epochs", -2), ("max_steps", 0), ("max_steps", -7), ("seed", -1),
        ("seed", 2**32), ("data_seed", -1), ("adam_beta1", 1), ("adam_beta2", -0.1), ("max_grad_norm", -1),
        ("warmup_steps", -1), ("logging_steps", 0), ("dataloader_num_workers", -1), ("report_to", "mlfloo"),
        ("neftune_noise_alpha", "x"),
        ("train_sampling_strategy", "group_by_length"), ("accelerator_config", {"split_batches": True}),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused_when_the_arguments_are_made(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}"):
        TrainerConfig(**{"output_dir": "unused", "use_cpu": True, name: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"report_to": "mlfloo"}, "report_to: .*mlflow.*, or set report_to to none"),
        ({"report_to": "clearml"}, r"report_to: .*pip install clearml\), or set report_to to none"),
        ({"bf16": True, "use_cpu": False}, "bf16: expected a GPU that has bfloat16, got none. Set use_cpu=True"),
    ],
)
def test_what_this_machine_lacks_is_refused_with_a_way_on(
    fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpo.llm.training.config.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr("rpo.llm.training.arguments.get_available_reporting_integrations", lambda: [])
    with pytest.raises(InvalidArgument, match=words):
        TrainerConfig(**{"output_dir": "unused", "use_cpu": True, **fields})


@pytest.mark.parametrize(
    "fields", [{"optim": "adam7"}, {"lr_scheduler_kwargs": "{a"}, {"save_strategy": "now"}, {"debug": "x"}]
)
def test_what_transformers_refuses_is_a_typed_error_too(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="^args: expected training arguments that transformers takes"):
        TrainerConfig(output_dir="unused", use_cpu=True, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"optim": "adamw_bnb_8bit"},
        {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"gone": 1}},
        {"fsdp": "full_shard"},
    ],
)
def test_what_transformers_refuses_later_is_typed_as_well(fields: dict[str, Any], tmp_path: Path) -> None:
    """The optimiser's library, the schedule's keywords, sharding in one process: known when training begins."""
    with pytest.raises(InvalidArgument, match="^args: expected training arguments that transformers takes"):
        trainer(tmp_path, tiny_pairs(4), **fields).train()


def test_what_would_do_nothing_or_is_not_installed_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="^save_strategy: expected checkpoints to choose from, got 'no'"):
        RPOConfig(output_dir="unused", use_cpu=True, load_best_model_at_end=True, save_strategy="no")
    with pytest.raises(InvalidArgument, match="^dataloader_num_workers: expected workers that persist, got 0"):
        RPOConfig(output_dir="unused", use_cpu=True, dataloader_persistent_workers=True)
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(MissingDependency, match="use_liger_kernel needs liger-kernel"):
            RPOConfig(output_dir="unused", use_cpu=True, use_liger_kernel=True)


def test_a_column_of_pi_base_is_not_ignored(tmp_path: Any) -> None:
    for options in ({}, {"base_weights": None}):
        with pytest.raises(InvalidArgument, match='base_column: expected None unless base="custom"'):
            trainer(tmp_path, tiny_pairs(4), base_column="x", **options)
    with pytest.raises(InvalidArgument, match="base_column: expected None where base_weights has no column"):
        config(tmp_path, base="custom", base_column="x", base_weights={"chosen": 1.0})
    rows = [{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}] * 4
    options = {"use_cpu": True, "report_to": "none", "base_column": "gone", "base": "custom", "beta": 0.1, "eta": 0.1}
    tokenizer = models_for_tests.tiny_tokenizer()
    with pytest.raises(RPOError, match="gone"):
        rpo.fit(models_for_tests.tiny_model("llama"), rows, tokenizer=tokenizer, output_dir=tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_arguments_that_do_not_fit_the_data_are_refused_before_the_reference_is_scored(tmp_path: Any) -> None:
    with pytest.raises(InvalidArgument, match="dataloader_drop_last: expected at least 4 pairs.*got 3"):
        trainer(tmp_path / "o", tiny_pairs(3), dataloader_drop_last=True)
    trainer(tmp_path / "o", tiny_pairs(4), dataloader_drop_last=True, max_steps=1).train()  # control
    for fields in ({"eval_strategy": "steps"}, {"eval_on_start": True}):
        with pytest.raises(InvalidArgument, match=f"{next(iter(fields))}: expected .* without an eval_dataset"):
            trainer(tmp_path / "o", tiny_pairs(4), **fields)


def test_a_cache_is_never_written_over_a_special_file(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="ref_logps_cache: .*a device or another special file"):
        config(tmp_path, ref_logps_cache=str(tmp_path / "pipe"))
    run = trainer(tmp_path / "o", tiny_pairs(4))
    run.args.ref_logps_cache = str(tmp_path / "pipe")  # one that became special after the arguments were made
    with pytest.raises(OutputError, match="special file"):
        run.train()
    assert (tmp_path / "pipe").is_fifo()


WRONG = {
    "model": 3, "objective": "rpo", "tokenizer": "gpt2", "peft_config": 3, "callbacks": 3, "args": {"a": 1},
    "label": 3, "dataset_name": ["x"], "dataset": None,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_another_object_than_was_asked_for_is_named(tmp_path: Any, name: str) -> None:
    given: dict[str, Any] = {"model": models_for_tests.tiny_model("llama"), "dataset": [], "objective": rpo.DPO(beta=1)}
    with pytest.raises(InvalidArgument, match="processing_class" if name == "tokenizer" else f"^{name}: expected"):
        rpo.llm.fit(**(given | {name: WRONG[name]}), **({} if name == "args" else {"output_dir": tmp_path / "o"}))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", [transformers.TrainingArguments, rpo.llm.SFTConfig, rpo.llm.RewardConfig])
def test_arguments_of_another_trainer_are_refused(tmp_path: Any, kind: Any) -> None:
    args = kind(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(InvalidArgument, match="args: expected an? RPOConfig"):
        rpo.llm.fit(models_for_tests.tiny_model("llama"), [], rpo.DPO(beta=1.0), args=args)


# --- what is continued, and what is recorded ------------------------------------------------------------------


def start(folder: Any, **options: Any) -> Any:
    return trainer(folder, tiny_pairs(12), **({"max_steps": 4} | SAVING | options))


@pytest.mark.parametrize("name", [name for name in OPTIMIZER if name not in ("optim_target_modules", "optim_args")])
def test_another_optimizer_is_not_mixed_into_a_run(tmp_path: Any, name: str) -> None:
    """Its states would bring back the old rate, decay and schedule, and the record would hold the new ones."""
    values = {"optim": "sgd", "lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"a": 1}, "warmup_steps": 2}
    start(tmp_path, max_steps=1).train()
    with pytest.raises(RPOError, match=rf"expected optimizer {{'{name}': .*got {{'{name}'"):
        start(tmp_path, **{name: values.get(name, 0.5)}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "change",
    [
        {"logging_steps": 2}, {"save_steps": 2}, {"save_total_limit": 1}, {"run_name": "other"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, {"dataloader_num_workers": 1},
        {"precompute_ref_batch_tokens": 64}, {"path": "packed"}, {"checkpoint_checksums": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_goes_on_whatever_changed_around_its_inputs(tmp_path: Any, change: dict[str, Any]) -> None:
    """The folder moved, too. Weights as of an uninterrupted run: to rounding, since parts of a batch sum otherwise."""
    whole = start(tmp_path / "whole")
    whole.train()
    start(tmp_path / "before", max_steps=2, lr_scheduler_type="constant").train()
    (tmp_path / "before").rename(tmp_path / "after")
    again = start(str(tmp_path / "x" / ".." / "after"), **change)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-6, name


def test_the_best_checkpoint_is_found_where_the_folder_is_now(tmp_path: Any) -> None:
    """The third of four evaluations is the best: its weights are loaded, protected and recorded, after a move too."""
    options = {
        "eval_dataset": tiny_pairs(4, seed=1), "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.5, "save_total_limit": 2,
    }  # fmt: skip
    whole = start(tmp_path / "whole", **options)
    whole.train()
    best = whole.state.best_model_checkpoint
    start(tmp_path / "before", **(options | {"max_steps": 3})).train()
    (tmp_path / "before").rename(tmp_path / "after")
    for _ in range(2):  # continued, and then once more when all is done
        again = start(tmp_path / "after", **options)
        output = again.train(resume_from_checkpoint=True)
        assert str(again.state.best_model_checkpoint) == str(best).replace("whole", "after")
        run = record(again, output)
        assert run.config["weights_of"] == "checkpoint-3" and "weights are those of checkpoint-3" in run.message
        for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert (one == other).all()


def test_the_last_of_every_metric_is_what_a_record_shows(tmp_path: Any) -> None:
    """Training and evaluation log rows of their own; a token of the hub is in none of the record."""
    run_trainer = start(tmp_path, max_steps=2, eval_dataset=tiny_pairs(4, seed=1), hub_token="hf_secret")
    output = run_trainer.train()
    run_trainer.evaluate()
    run = record(run_trainer, output)
    assert {"loss", "eval_loss"} <= run.last_metrics().keys() and run.loss == run.last_metrics()["loss"]
    assert run.config["training"]["hub_token"] is None and "hf_secret" not in json.dumps(run.to_dict(), default=str)
    assert run.config["weights_of"] is None


def test_resume_from_checkpoint_may_stand_in_the_arguments(tmp_path: Any) -> None:
    start(tmp_path, max_steps=2).train()
    again = start(tmp_path, resume_from_checkpoint="auto")
    again.train()
    assert again.state.log_history[0]["step"] == 1 and again.state.global_step == 4


def test_names_of_trls_losses_answer_with_the_method() -> None:
    from rpo.methods.foreign import OPTIONS

    for kind in (RPOConfig, SFTConfig, RewardConfig):
        assert not set(OPTIONS) & set(kind.__dataclass_fields__)
        for name in OPTIONS.keys() - kind._TRANSLATED:  # RPOConfig reads those of DPOConfig: test_trl_fields.py
            with pytest.raises(InvalidArgument, match=f"{name}: expected an option of {kind.__name__}"):
                kind(output_dir="unused", **{name: 1})
    with pytest.raises(InvalidArgument, match="gamma is that number"):
        rpo.fit("nowhere", [], rpo.SimPO(), simpo_gamma=1.0)
    with pytest.raises(InvalidArgument, match="typo: expected a field of RPOConfig"):
        RPOConfig(output_dir="unused", typo=1)
    assert copy.deepcopy(RPOConfig(output_dir="unused", beta=0.2)).beta == 0.2
