"""`rpo.fit` on language models, end to end; and what it says to input it cannot use."""

from __future__ import annotations

import json
import math

import models_for_tests
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rpo
from rpo.core.errors import InvalidArgument, RPOError
from rpo.core.records import Run
from rpo.llm.training.checkpoints import complete_checkpoints

QUICK = {
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def rows(n=12, *, seed=0):
    """Conversations with a system message; chosen answers repeat w1, rejected ones w2, among random words."""
    rng = np.random.default_rng(seed)

    def words(extra):
        drawn = [f"w{k}" for k in rng.integers(3, 50, size=rng.integers(1, 5))]
        return " ".join([*drawn, *[extra] * int(rng.integers(1, 4))])

    return [
        {
            "prompt": [{"role": "system", "content": "w0"}, {"role": "user", "content": words("w5")}],
            "chosen": [{"role": "assistant", "content": words("w1")}],
            "rejected": [{"role": "assistant", "content": words("w2")}],
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama and its tokenizer, saved as a user's model is."""
    target = tmp_path_factory.mktemp("model")
    models_for_tests.tiny_model("llama").save_pretrained(target)
    models_for_tests.tiny_tokenizer().save_pretrained(target)
    return target


def test_a_run_from_a_file_to_a_folder(folder, tmp_path):
    """JSONL in; a model that reloads and generates, a card, a record that loads, metrics under TRL's names out."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    out = tmp_path / "out"
    objective = rpo.RPO(beta=0.1, eta=0.05)
    run = rpo.fit(str(folder), str(data), objective, output_dir=out, eval_dataset=rows(4, seed=1), **QUICK)
    assert run.status == "completed" and run.objective == objective.to_dict()
    first, last = run.history[0], [row for row in run.history if "loss" in row][-1]
    assert first["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["loss"] < first["loss"] and last["rewards/accuracies"] == 1.0
    assert "eval_rewards/margins" in run.history[-1]
    assert run.config["data"]["train"]["pairs"] == 12 and run.config["self_check"]["chosen_ending_with_eos"] == 1.0
    loaded = Run.load(out)
    assert loaded.history == json.loads(json.dumps(run.history)) and loaded.environment["transformers"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(rows(1)[0]["prompt"], add_generation_prompt=True, return_tensors="pt")
    generated = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > ids["input_ids"].shape[1]
    for name, value in model.named_parameters():
        assert torch.equal(value, dict(run.artifact.named_parameters())[name])
    card = (out / "README.md").read_text()
    assert "arxiv" in card.lower() and "0.05" in card
    assert not list(out.glob(".saving-*")) and not list(out.glob("*.bin.tmp"))


def test_dpo_lowers_what_rpo_keeps(folder, tmp_path):
    """With eta large the chosen log-probability ends higher than with eta = 0, on the same data and seed."""
    ends = {}
    for name, objective in (("rpo", rpo.RPO(beta=0.1, eta=1.0)), ("dpo", rpo.DPO(beta=0.1))):
        run = rpo.fit(str(folder), rows(), objective, output_dir=tmp_path / name, **QUICK)
        ends[name] = run.history[-1]["logps/chosen"]
    assert ends["rpo"] > ends["dpo"]


def test_lora_trains_the_adapter_alone_and_saves_it(folder, tmp_path):
    """The base under the saved adapter is bit for bit what it was; the reference is the base; the adapter moved."""
    pytest.importorskip("peft")
    from peft import AutoPeftModelForCausalLM

    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    run = rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), output_dir=tmp_path, peft_config=lora, **QUICK)
    assert run.config["trainable_parameters"] < run.config["parameters"] / 2
    base = AutoModelForCausalLM.from_pretrained(folder)
    trained = dict(run.artifact.get_base_model().named_parameters())
    for name, value in base.named_parameters():
        found = trained[name] if name in trained else trained[name.replace(".weight", ".base_layer.weight")]
        assert torch.equal(value, found)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    b = [value for name, value in loaded.named_parameters() if "lora_B" in name]
    assert b and all(value.abs().max() > 0 for value in b)
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_an_sft_adapter_is_its_own_reference(folder, tmp_path):
    """Go on from an adapter that already contributes: step 0 is ln 2 against it; against the bare base it is not."""
    pytest.importorskip("peft")
    from peft import PeftModel

    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    rpo.fit(str(folder), rows(), rpo.SFT(), output_dir=tmp_path / "sft", peft_config=lora, **QUICK)

    def start(**options):
        base = AutoModelForCausalLM.from_pretrained(folder)
        policy = PeftModel.from_pretrained(base, tmp_path / "sft", is_trainable=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        run = rpo.fit(
            policy,
            rows(),
            rpo.RPO(beta=0.1, eta=0.05),
            tokenizer=tokenizer,
            **({"output_dir": tmp_path / "rpo"} | QUICK | options),
        )
        return run

    run = start(kl_steps=3, kl_prompts=2, kl_max_new_tokens=4)  # keeps the reference at hand
    assert run.config["reference"]["kind"] == "named_adapter"
    assert run.history[0]["kl/reference"] == pytest.approx(0.0, abs=1e-5)
    assert next(row for row in run.history if "loss" in row)["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert {path.name for path in (tmp_path / "rpo").iterdir() if path.is_dir()} == set()  # the copy is not saved
    other = start(ref_model=str(folder), output_dir=tmp_path / "other")
    first = next(row for row in other.history if "loss" in row)
    assert abs(first["loss/preference"] - math.log(2)) > 1e-3


def test_sft_and_a_reward_model(folder, tmp_path):
    """SFT raises the likelihood of the chosen responses; a Bradley-Terry model learns to prefer w1 to w2."""
    sft = rpo.fit(str(folder), rows(), rpo.SFT(), output_dir=tmp_path / "sft", **QUICK)
    assert sft.history[-1]["loss"] < sft.history[0]["loss"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "sft").config.vocab_size == models_for_tests.VOCABULARY
    reward = rpo.fit(
        str(folder), rows(), rpo.BradleyTerry(), output_dir=tmp_path / "reward", **(QUICK | {"max_steps": 15})
    )
    assert reward.history[-1]["rewards/accuracies"] == 1.0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


def test_bf16_and_checkpointing_and_a_tracker(folder, tmp_path):
    """Mixed precision on the CPU: policy and reference agree at step 0 to rounding; TensorBoard files are written."""
    pytest.importorskip("tensorboard")
    options = QUICK | {"bf16": True, "gradient_checkpointing": True, "report_to": "tensorboard"}
    run = rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), output_dir=tmp_path, **options)
    assert run.config["self_check"]["start_preference_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_early_stopping_on_displacement(folder, tmp_path):
    """The threshold is passed on the first logs in which most chosen responses fell: DPO at a high rate stops early."""
    run = rpo.fit(
        str(folder),
        rows(),
        rpo.DPO(beta=0.1),
        output_dir=tmp_path,
        displacement_threshold=0.01,
        displacement_patience=1,
        **(QUICK | {"max_steps": 60, "learning_rate": 3e-2}),
    )
    shares = [row["displacement/share"] for row in run.history if "displacement/share" in row]
    assert run.status == "stopped_early" and shares[-1] > 0.01 and max(shares[:-1]) <= 0.01


PAIR = rows(1)[0]
BAD_ROWS = {
    "missing column": ([{"prompt": "w1", "chosen": "w2"}], "rejected"),
    "wrong type": ([{"prompt": "w1", "chosen": 3, "rejected": "w2"}], "row 0.*chosen"),
    "empty response": ([{"prompt": "w1", "chosen": "", "rejected": "w2"}], "row 0.*chosen"),
    "empty dataset": ([], "expected at least one"),
    "not data": (7, "expected"),
    "no file": ("no/such/file.jsonl", "no/such/file.jsonl"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_data_is_refused_before_anything_is_written(folder, tmp_path, name):
    data, pattern = BAD_ROWS[name]
    with pytest.raises(RPOError, match=pattern):
        rpo.fit(str(folder), data, rpo.RPO(beta=0.1, eta=0.05), output_dir=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = {
    "unknown field": ({"learning_rat": 1}, "learning_rat: expected a field of RPOConfig, such as learning_rate"),
    "both": ({"beta": 0.1}, "objective: expected either an objective or beta"),
    "prompt longer than the limit": ({"max_length": 2, "max_prompt_length": 5}, "max_prompt_length"),
    "fp16 without CUDA": ({"fp16": True}, "fp16: expected a CUDA device"),
    "truncation": ({"truncation_mode": "middle"}, "truncation_mode"),
    "base weights": ({"base_weights": {"chosen": 0.5}}, "base_weights"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(folder, tmp_path, name):
    options, pattern = BAD_OPTIONS[name]
    with pytest.raises(InvalidArgument, match=pattern):
        rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), output_dir=tmp_path / "out", **(QUICK | options))
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_cannot_do_it(tmp_path):
    """No chat template for conversations, no end of sequence: typed errors; no pad token is no hindrance."""
    model = models_for_tests.tiny_model("llama")
    options = {"output_dir": tmp_path / "out", **QUICK}
    objective = rpo.RPO(beta=0.1, eta=0.05)
    with pytest.raises(InvalidArgument, match="chat template"):
        rpo.fit(model, rows(), objective, tokenizer=models_for_tests.tiny_tokenizer(chat_template=None), **options)
    endless = models_for_tests.tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(InvalidArgument, match="end"):
        plain = [{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}]
        rpo.fit(model, plain, objective, tokenizer=endless, **options)
    with pytest.raises(InvalidArgument, match="tokenizer"):
        rpo.fit(model, rows(), objective, **options)
    padless = models_for_tests.tiny_tokenizer()
    padless.pad_token = None
    run = rpo.fit(model, rows(), objective, tokenizer=padless, **options)
    assert run.status == "completed"


def test_a_damaged_cache_is_refused(folder, tmp_path):
    cache = tmp_path / "reference.safetensors"
    options = {"output_dir": tmp_path / "out", "overwrite": True, "ref_logps_cache": str(cache), **QUICK}
    rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), **options)
    content = bytearray(cache.read_bytes())
    content[-3] ^= 1
    cache.write_bytes(content)
    with pytest.raises(RPOError, match="damaged file"):
        rpo.fit(str(folder), rows(), rpo.RPO(beta=0.2, eta=0.05), **options)


def test_the_cache_serves_another_objective_but_not_another_model(folder, tmp_path):
    cache = tmp_path / "reference.safetensors"
    options = {"output_dir": tmp_path / "out", "overwrite": True, "ref_logps_cache": str(cache), **QUICK}
    rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), **options)
    written = cache.read_bytes()
    rpo.fit(str(folder), rows(), rpo.DPO(beta=0.5), **options)
    assert cache.read_bytes() == written
    other = models_for_tests.tiny_model("llama", seed=1)
    with pytest.raises(RPOError, match="weights of the reference"):
        rpo.fit(other, rows(), rpo.DPO(beta=0.5), tokenizer=models_for_tests.tiny_tokenizer(), **options)
    assert complete_checkpoints(tmp_path / "out") == []


def test_an_earlier_result_is_kept_or_replaced_whole(folder, tmp_path):
    """A full model over an adapter: refused at first; with overwrite no adapter is left to be loaded on top of it."""
    pytest.importorskip("peft")
    lora = {"r": 2, "target_modules": "all-linear"}
    options = {"output_dir": tmp_path, **QUICK}
    rpo.fit(str(folder), rows(), rpo.DPO(beta=0.1), peft_config=lora, **options)
    with pytest.raises(InvalidArgument, match="expected a folder without an earlier result"):
        rpo.fit(str(folder), rows(), rpo.DPO(beta=0.1), **options)
    run = rpo.fit(str(folder), rows(), rpo.DPO(beta=0.1), overwrite=True, **options)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter_*"))
    assert all(torch.equal(v, dict(run.artifact.named_parameters())[n]) for n, v in loaded.named_parameters())


def test_adapters_begin_the_same_for_a_seed(folder, tmp_path):
    """The global random state decides nothing: two runs apart from each other end in the same bits."""
    pytest.importorskip("peft")
    ends = []
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)
        options = {"output_dir": tmp_path / name, "peft_config": {"r": 2, "target_modules": "all-linear"}, **QUICK}
        run = rpo.fit(str(folder), rows(), rpo.RPO(beta=0.1, eta=0.05), **options)
        ends.append({n: v.detach().clone() for n, v in run.artifact.named_parameters() if "lora" in n})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_full_disk_at_the_end(folder, tmp_path, monkeypatch):
    """The weights cannot be written: an OutputError says so, and nothing half-written is left."""
    import transformers

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(
        RPOError, match="writing the model to .* failed .*No space left on device.*No checkpoint was saved"
    ):
        rpo.fit(str(folder), rows(), rpo.DPO(beta=0.1), output_dir=tmp_path, **QUICK)
    assert not list(tmp_path.glob(".saving-*"))
