"""`rpo convert-config`: recipes of other trainers, every key of them answered, and what comes of it trains."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli_objective import lines, run

from rpo.commands.foreign_config import convert
from rpo.core.errors import InvalidArgument
from rpo.llm.training.arguments import REFUSED
from rpo.llm.training.config import RPOConfig

FIELDS = RPOConfig.__dataclass_fields__
WHY = {name: why for name, (_, why) in REFUSED.items()}
# The keys of alignment-handbook's zephyr DPO recipe, and their values.
ZEPHYR = """
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixer:
  HuggingFaceH4/ultrafeedback_binarized: 1.0
dataset_splits: [train_prefs, test_prefs]
preprocessing_num_workers: 12
bf16: true
beta: 0.01
do_eval: true
evaluation_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
"""
TRL = """
model_name_or_path: m
dtype: bfloat16
use_peft: true
lora_r: 32
lora_target_modules: [q_proj, v_proj]
load_in_4bit: true
dataset_name: trl-lib/ultrafeedback_binarized
eval_strategy: steps
loss_type: [sigmoid, sft]
loss_weights: [1.0, 0.05]
beta: 0.1
precompute_ref_batch_size: 4
max_length: 512
truncation_mode: keep_start
label_names: [a]
something_new: 3
"""
FACTORY = """
model_name_or_path: m
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_ftx: 0.2
pref_loss: sigmoid
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
output_dir: saves/dpo
per_device_train_batch_size: 1
learning_rate: 5.0e-6
warmup_ratio: 0.1
bf16: true
flash_attn: fa2
quantization_bit: 4
"""


def converted(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    made = convert(yaml.safe_load(text), FIELDS, WHY)
    return made.options, {key: why for key, _, why in made.notes}


def test_the_zephyr_recipe() -> None:
    options, notes = converted(ZEPHYR)
    source = {"source": "HuggingFaceH4/ultrafeedback_binarized"}
    assert options["model"] == "alignment-handbook/zephyr-7b-sft-full"
    assert options["dataset"] == source | {"split": "train_prefs"}
    assert options["eval_dataset"] == source | {"split": "test_prefs"}
    assert options["objective"] == {"name": "DPO", "beta": 0.01, "base": "chosen"}
    same = yaml.safe_load(ZEPHYR)
    training = options["training"]
    assert (training.pop("eval_strategy"), training.pop("warmup_steps")) == ("steps", 0.1)
    assert training == {key: same[key] for key in training} and len(training) == 22
    assert notes.keys() == {"preprocessing_num_workers", "do_eval"}


def test_a_recipe_of_trl() -> None:
    """4 rows of two responses of at most 512 tokens; 0.05 of TRL's token mean is eta 0.5."""
    options, notes = converted(TRL)
    source = {"source": "trl-lib/ultrafeedback_binarized"}
    assert options == {
        "model": "m",
        "dataset": source | {"split": "train"},
        "eval_dataset": source | {"split": "test"},
        "objective": {
            "name": "RPO", "beta": 0.1, "eta": 0.5, "sft_reduction": "batch_token_mean", "base": "chosen",
        },
        "quantization": "4bit",
        "lora": {"r": 32, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "dtype": "bfloat16",
        "training": {
            "eval_strategy": "steps", "max_length": 512, "precompute_ref_batch_tokens": 4096,
            "output_dir": "runs/converted",
        },
    }  # fmt: skip
    unset = {"bf16", "gradient_checkpointing"}
    assert notes.keys() == {"use_peft", "truncation_mode", "label_names", "something_new", *unset}
    assert notes["bf16"] == "on in TRL where it is not set, off here" and "bf16" not in options["training"]
    assert notes["something_new"] == "not known here, and left out"


def test_a_recipe_of_llama_factory() -> None:
    """0.2 of its mean over a response's tokens is eta 2 of beta 0.1."""
    options, notes = converted(FACTORY)
    assert options["objective"] == {
        "name": "RPO", "beta": 0.1, "eta": 2.0, "sft_reduction": "sequence_mean", "base": "chosen",
    }  # fmt: skip
    assert options["lora"] == {"r": 8, "alpha": 16, "target_modules": "all-linear"}
    assert (options["quantization"], options["attn_implementation"]) == ("4bit", "flash_attention_2")
    assert options["training"]["max_length"] == 2048 and "dataset" not in options
    assert "cut the file" in notes["max_samples"] and "training.learning_rate" not in notes
    for line, value in (("", True), ("disable_gradient_checkpointing: true", False)):
        options, notes = converted(FACTORY + line)
        assert options["training"]["gradient_checkpointing"] is value and "disable_gradient_checkpointing" not in notes
        assert "LLaMA-Factory's" in notes["training.gradient_checkpointing"]
    given, said = converted(FACTORY + "gradient_checkpointing: false")
    assert given["training"]["gradient_checkpointing"] is False and "training.gradient_checkpointing" not in said


def test_data_that_only_llama_factory_knows_are_left_to_fill_in(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(FACTORY + "eval_dataset: held_out")
    code, out, _ = run("convert-config", str(tmp_path / "f.yaml"))
    assert code == 0 and "\n# dataset: dpo_en_demo\n" in out and "\n# eval_dataset: held_out\n" in out
    assert "dataset" not in yaml.safe_load(out)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("", {"name": "DPO", "beta": 0.1, "base": "chosen"}),
        ("pref_loss: ipo\npref_beta: 0.3", {"name": "IPO", "tau": 0.3, "per_token": True}),
        ("pref_loss: orpo", {"name": "ORPO", "weight": 0.1, "sft_reduction": "batch_token_mean"}),
        ("pref_loss: simpo\npref_beta: 2\nsimpo_gamma: 1.2", {"name": "SimPO", "beta": 2.0, "gamma": 1.2}),
        ("dpo_label_smoothing: 0.1", {"name": "ConservativeDPO", "beta": 0.1, "epsilon": 0.1}),
    ],
)
def test_losses_of_llama_factory(loss: str, expected: dict[str, Any]) -> None:
    options, _ = converted(f"stage: dpo\nmodel_name_or_path: m\n{loss}\n")
    assert options["objective"].items() >= {k: v for k, v in expected.items() if k != "sft_reduction"}.items()


@pytest.mark.parametrize("text", [ZEPHYR, TRL, FACTORY], ids=["zephyr", "trl", "factory"])
def test_every_key_is_answered_and_the_result_parses(text: str, tmp_path: Path) -> None:
    """A key of each alone with what it needs is an option or a note: none is lost on the way."""
    recipe = yaml.safe_load(text)
    values = yaml.safe_dump(converted(text)[0])
    for key, value in recipe.items():
        without = {one: other for one, other in recipe.items() if one != key}
        made = convert(recipe, FIELDS, WHY)
        try:
            fewer = convert(without, FIELDS, WHY)
        except InvalidArgument:
            continue  # of several that belong together
        default = {"seed", "loss_type", "stage", "pref_loss", "pref_beta", "beta", "cutoff_len", "lora_rank"}
        same = made == fewer
        assert value is None or key in default or not same, key
    (tmp_path / "ours.yaml").write_text(values)
    code, out, err = run("train", "--config", tmp_path / "ours.yaml", "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["objective"] == converted(text)[0]["objective"]


def test_a_converted_recipe_trains_after_two_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model and other data, as on any machine without a network; what the hub and a GPU need, on the line."""
    import models_for_tests

    monkeypatch.chdir(tmp_path)
    models_for_tests.tiny_model("llama").save_pretrained("model")
    models_for_tests.tiny_tokenizer().save_pretrained("model")
    rows = [f'{{"prompt": "w1 ", "chosen": "w{k}", "rejected": "w3 w{k}"}}\n' for k in range(4, 12)]
    Path("pairs.jsonl").write_text("".join(rows))
    Path("zephyr.yaml").write_text(ZEPHYR)
    code, out, _ = run("convert-config", "zephyr.yaml")
    assert code == 0 and "preprocessing_num_workers: 12 (no effect: texts are tokenised in one process)" in out
    recipe = yaml.safe_load(out)
    recipe["model"], recipe["dataset"], recipe["eval_dataset"] = "model", "pairs.jsonl", "pairs.jsonl"
    Path("ours.yaml").write_text(yaml.safe_dump(recipe))
    offline = ["--training.push_to_hub", "false", "--training.max_length", "64", "--training.max_prompt_length", "32"]
    code, out, err = run("train", "--config", "ours.yaml", *offline, "--training.use_cpu", "true")
    assert code == 0, err
    assert "Trained 1 of 1 updates" in out and (tmp_path / "data" / "zephyr-7b-dpo-full" / "run.json").is_file()
    shutil.rmtree("data")


def test_train_names_the_command_that_converts(tmp_path: Path) -> None:
    (tmp_path / "zephyr.yaml").write_text(ZEPHYR)
    (found,) = lines("train", "--config", str(tmp_path / "zephyr.yaml"))
    assert f"rpo convert-config {tmp_path / 'zephyr.yaml'} > train.yaml" in found


@pytest.mark.parametrize(
    ("key", "words"), [("warmup_ratio", "did you mean training.warmup_steps?"), ("do_eval", "leave it out")]
)
def test_train_answers_a_single_key(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "own.yaml").write_text(f"model: m\ndataset: d\n{key}: 0.1\n")
    assert words in " ".join(lines("train", "--config", str(tmp_path / "own.yaml")))


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    for text, words in (
        ("stage: sft\nmodel_name_or_path: m", "stage: expected dpo"),
        ("model_name_or_path: m\nloss_type: aot", "sorts the batch"),
        ("- 1", "recipe: expected keys and values"),
        ("a: [", "recipe: expected YAML"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        (found,) = lines("convert-config", str(tmp_path / "r.yaml"))
        assert words in found
    assert "recipe: expected a YAML file" in lines("convert-config", str(tmp_path / "none.yaml"))[0]
