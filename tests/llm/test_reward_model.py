"""Reward models: scores of batches against one row at a time in float64, training against the loss written out."""

from __future__ import annotations

import json
import logging
import math

import models_for_tests
import numpy as np
import pytest
import torch
from models_for_tests import EOS, FAMILIES, FIRST_WORD, PAD, VOCABULARY
from training import tiny_pairs, weights_of
from transformers import AutoModelForSequenceClassification

from rpo.core.errors import InvalidArgument
from rpo.core.likelihoods import SFT, BradleyTerry
from rpo.llm.data.pairs import PreparedPairs, TokenizedPair
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.models.soundness import ModelNotLoaded
from rpo.llm.training.reward_model import (
    RewardConfig,
    RewardTrainer,
    as_reward_model,
    load_reward_model,
    rewards,
    score,
)

RATE = 0.05
# peft 0.21 asks models for a property that transformers 5.23 renamed.
PEFT_DEPRECATION = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SPLITS = ((10, 1), (5, 2), (4, 3), (1, 10))


def fresh(family="llama", *, dtype=torch.float64, **more):
    """Return a tiny random reward model; every dtype has the same weights, rounded to float32."""
    return as_reward_model(models_for_tests.tiny_model(family, **more), new_head_seed=5).to(dtype)


def config(folder, **options) -> RewardConfig:
    """Return the arguments of a short run on the CPU: plain SGD, so that updates are gradients."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return RewardConfig(**(defaults | options))


def trainer(folder, data, *, model=None, objective=None, **options) -> RewardTrainer:
    names = ("eval_dataset", "processing_class", "peft_config")
    mine = {name: options.pop(name) for name in names if name in options}
    model = fresh() if model is None else model
    return RewardTrainer(model, config(folder, **options), train_dataset=data, objective=objective, **mine)


def naive_reward(model, prompt, response):
    """The head on the last token's hidden state: one sequence, no padding, no mask."""
    hidden = model.base_model(torch.tensor([[*prompt, *response]])).last_hidden_state[0, -1]
    return (model.score.weight @ hidden).squeeze()


def naive_loss(model, pairs, coefficient=0.0):
    """Weighted mean of -log sigmoid(r_w - r_l) + coefficient (r_w + r_l)^2, pair by pair."""
    total = weight = 0.0
    for pair in pairs:
        won, lost = (naive_reward(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids))
        loss = -torch.nn.functional.logsigmoid(won - lost) + coefficient * (won + lost) ** 2
        total, weight = total + pair.weight * loss, weight + pair.weight
    return total / weight


def descend(pairs, coefficient, updates=3):
    """Return the weights after plain gradient descent on the naive loss of all pairs."""
    model = fresh()
    for _ in range(updates):
        naive_loss(model, pairs, coefficient).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= RATE * value.grad
                value.grad = None
    return weights_of(model)


def largest_difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# --- the reward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_of_a_padded_row_is_that_of_the_row_alone(family) -> None:
    """Read at the last token that is no padding; float32 against float64. The control is padding taken for text."""
    pairs = tiny_pairs(6)
    batch = PaddedPath(PAD).collate([PromptGroup(p.prompt_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs])
    assert 0 < batch["attention_mask"].float().mean() < 0.9
    exact, model = fresh(family), fresh(family, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.stack(
            [
                torch.stack([naive_reward(exact, p.prompt_ids, ids) for ids in (p.chosen_ids, p.rejected_ids)])
                for p in pairs
            ]
        )
        found = rewards(model, batch)
        model.config.pad_token_id = VOCABULARY - 1
        wrong = rewards(model, batch)
    assert (found.shape, found.dtype) == ((6, 2), torch.float32)
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()  # seen: 1.3e-6
    assert (wrong.double() - expected).abs().max() > 1e-1 * expected.abs().max()


def test_score_is_the_reward_of_text_as_it_is_trained_on(tiny_tokenizer) -> None:
    """Texts and messages, with template and end of turn, in batches of any size; the global RNG stays."""
    model, tokenizer = fresh(attention_dropout=0.5), tiny_tokenizer()
    prompts = ["w0 w1 ", [{"role": "user", "content": "w2"}], "w3 "]
    responses = ["w4 w5", "w6", "w7 w8 w9 w10"]
    user, assistant = 4, 5
    tokens = [((6, 7), (10, 11)), ((user, 8, EOS, assistant), (12,)), ((9,), (13, 14, 15, 16))]
    with torch.no_grad():
        expected = [naive_reward(model, prompt, (*response, EOS)).item() for prompt, response in tokens]
        unended = [naive_reward(model, prompt, response).item() for prompt, response in tokens]
    model.train()
    state = torch.get_rng_state()
    for size in (1, 2, 16):
        found = score(model, tokenizer, prompts, responses, batch_size=size)
        assert (found.shape, found.dtype) == ((3,), np.float64)
        assert found == pytest.approx(expected, rel=1e-10)
        assert np.abs(found - unended).min() > 1e-3  # the control
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InvalidArgument, match="one a prompt"):
        score(model, tokenizer, prompts, responses[:2])


# --- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_updates_are_gradient_steps_on_the_naive_loss_however_they_are_split(tmp_path, coefficient) -> None:
    """Three SGD updates on ten weighted pairs in float64, as 10 x 1, 5 x 2, 4 + 4 + 2 and 1 x 10, for every tensor.

    The controls are the same without weights, and with the other coefficient.
    """
    pairs = tiny_pairs(10, weights=True)
    expected = descend(pairs, coefficient)
    assert min(float((value - fresh().state_dict()[name]).norm()) for name, value in expected.items()) > 1e-5
    for other in (descend(tiny_pairs(10), coefficient), descend(pairs, 0.1 - coefficient)):
        assert largest_difference(expected, other) > 1e-4
    for batch, accumulation in SPLITS:
        run = trainer(
            tmp_path,
            pairs,
            objective=BradleyTerry(center_rewards_coefficient=coefficient),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        assert largest_difference(weights_of(run.model), expected) < 1e-10


def test_the_metrics_are_those_of_the_pairs(tmp_path) -> None:
    """Before any update, weighted, in evaluation batches of 3, 3, 3 and 1; and as logged with the first update."""
    pairs = tiny_pairs(10, weights=True)
    run = trainer(
        tmp_path,
        pairs,
        eval_dataset=pairs,
        center_rewards_coefficient=0.1,
        per_device_eval_batch_size=3,
        per_device_train_batch_size=10,
    )
    found = run.evaluate()
    model = fresh()
    with torch.no_grad():
        pair_rewards = np.array(
            [[naive_reward(model, p.prompt_ids, ids).item() for ids in (p.chosen_ids, p.rejected_ids)] for p in pairs]
        )
        parts = [naive_loss(model, pairs, coefficient).item() for coefficient in (0.0, 0.1)]
    weights = np.array([pair.weight for pair in pairs])
    won, lost = pair_rewards.T
    expected = {
        "loss/preference": parts[0],
        "loss/centering": (parts[1] - parts[0]) / 0.1,
        "rewards/chosen": np.average(won, weights=weights),
        "rewards/rejected": np.average(lost, weights=weights),
        "rewards/margins": np.average(won - lost, weights=weights),
        "rewards/accuracies": np.average(won > lost, weights=weights),
    }
    run.train()
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-9)
        assert run.state.log_history[0][name] == pytest.approx(value, rel=1e-9)
    assert found["eval_loss"] == pytest.approx(parts[1], rel=1e-9)
    assert run.state.log_history[0]["loss"] == pytest.approx(parts[1], rel=1e-6)  # Trainer's sum is float32


def test_it_learns_a_linear_reward(tmp_path) -> None:
    """Gold: how many more of the words w0 to w28 than of the others; 256 pairs decide it, 128 others are told apart.

    The control is the model as it began, which is right on about half.
    """
    rng = np.random.default_rng(0)
    middle = FIRST_WORD + 29

    def pair(row: int) -> TokenizedPair:
        words = [rng.integers(FIRST_WORD, VOCABULARY, size=6) for _ in range(2)]
        golds = [int((ids < middle).sum()) for ids in words]
        if golds[0] == golds[1]:
            return pair(row)
        better = int(golds[1] > golds[0])
        chosen, rejected = (tuple(int(k) for k in words[k]) for k in (better, 1 - better))
        return TokenizedPair((3,), (*chosen, EOS), (*rejected, EOS), row)

    learnt, held_out = (PreparedPairs(pair(row) for row in range(n)) for n in (256, 128))
    run = trainer(
        tmp_path,
        learnt,
        model=fresh(dtype=torch.float32, initializer_range=0.05),
        eval_dataset=held_out,
        optim="adamw_torch",
        learning_rate=1e-2,
        max_steps=60,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
    )
    assert 0.2 < run.evaluate()["eval_rewards/accuracies"] < 0.8
    run.train()
    assert run.evaluate()["eval_rewards/accuracies"] > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TRL's own use of transformers
@pytest.mark.parametrize("coefficient", [None, 0.1])
def test_loss_equals_trl(tmp_path, tiny_tokenizer, coefficient) -> None:
    """TRL's RewardTrainer on one batch of the same texts."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [{"prompt": f"w{k} ", "chosen": f"w{k + 1} w{k}", "rejected": f"w{k + 9} " * k + "w0"} for k in range(5)]
    theirs = trl.RewardTrainer(
        model=fresh(dtype=torch.float32),
        args=trl.RewardConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=5, use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False, center_rewards_coefficient=coefficient,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    batch = theirs.data_collator([theirs.train_dataset[k] for k in range(5)])
    expected = theirs.compute_loss(theirs.model, batch).item()
    model = fresh(dtype=torch.float32)
    ours = trainer(
        tmp_path, rows, model=model, processing_class=tiny_tokenizer(), center_rewards_coefficient=coefficient
    )
    loss = ours.compute_loss(ours.model, ours.data_collator(ours.train_dataset.pairs)).item()
    assert loss == pytest.approx(expected, rel=1e-6)


# --- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_becomes_a_reward_model(family) -> None:
    """A copy of its layers under a head of one label, which the seed alone decides; it and the RNG stay."""
    causal = models_for_tests.tiny_model(family)
    before, state = weights_of(causal), torch.get_rng_state()
    models = [as_reward_model(causal, new_head_seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(state, torch.get_rng_state())
    heads = [model.score.weight for model in models]
    assert heads[0].shape == (1, 32)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    for name, value in models[0].base_model.state_dict().items():
        assert torch.equal(value, causal.base_model.state_dict()[name])
    with torch.no_grad():
        models[0].get_input_embeddings().weight.zero_()
    assert largest_difference(before, weights_of(causal)) == 0
    assert causal.config.num_labels == 2


def test_a_saved_reward_model_scores_the_same(tmp_path, tiny_tokenizer) -> None:
    """By transformers and by `load_reward_model`; what has no trained head is refused unless a new one is asked for."""
    run = trainer(tmp_path, tiny_pairs(4), model=fresh(dtype=torch.float32), processing_class=tiny_tokenizer())
    run.train()
    run.save_model(str(tmp_path / "reward"))
    tokenizer, texts = tiny_tokenizer(), (["w0 ", "w1 w2 "], ["w3", "w4 w5"])
    expected = score(run.model, tokenizer, *texts)
    for load in (AutoModelForSequenceClassification.from_pretrained, load_reward_model):
        model = load(tmp_path / "reward")
        assert (model.config.num_labels, model.config.pad_token_id) == (1, PAD)
        assert score(model, tokenizer, *texts) == pytest.approx(expected, rel=1e-6)
    causal = models_for_tests.tiny_model("llama")
    causal.save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelNotLoaded, match="score.weight"):
        load_reward_model(tmp_path / "causal")
    state = torch.get_rng_state()
    heads = [load_reward_model(tmp_path / "causal", new_head_seed=seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    with pytest.raises(ModelNotLoaded):
        load_reward_model(tmp_path / "nothing")
    run = trainer(tmp_path, tiny_pairs(4), model=str(tmp_path / "causal"), processing_class=tokenizer, seed=1)
    assert torch.equal(run.model.score.weight, heads[0])


def test_the_pad_token_is_the_tokenizers_and_the_tokenizer_stays(tmp_path, tiny_tokenizer, caplog) -> None:
    """The config follows it, with a warning; another warns where padding is the end of turn, so is not read."""
    rows = [{"prompt": "w0 ", "chosen": "w1", "rejected": "w2 w3"}]
    causal = models_for_tests.tiny_model("llama", pad_token_id=None)
    bare = tiny_tokenizer()
    bare.pad_token = None
    with pytest.raises(InvalidArgument, match="pad token"):
        trainer(tmp_path, rows, model=causal, processing_class=bare)
    assert bare.pad_token is None
    with caplog.at_level(logging.WARNING, logger="rpo.llm.training.reward_model"):
        run = trainer(tmp_path, rows, model=causal, processing_class=tiny_tokenizer())
        assert run.model.config.pad_token_id == PAD
        assert caplog.messages == ["model.config.pad_token_id: None becomes 0, the tokenizer's."]
        ending = tiny_tokenizer()
        ending.pad_token = ending.eos_token
        run = trainer(tmp_path, rows, model=fresh(), processing_class=ending)
    assert "rewards are read at the token before it" in caplog.messages[-1]
    pair = run.train_dataset.pairs[0]
    with torch.no_grad():
        found = rewards(run.model, run.data_collator([pair]))[0]
        expected = [
            naive_reward(run.model, pair.prompt_ids, ids[:-1]).item() for ids in (pair.chosen_ids, pair.rejected_ids)
        ]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@PEFT_DEPRECATION
def test_an_adapter_is_trained_with_the_head(tmp_path, tiny_tokenizer) -> None:
    """Keywords become a SEQ_CLS adapter, saved with its head; a kind whose head would stay random is refused."""
    peft = pytest.importorskip("peft")
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    models_for_tests.tiny_model("llama").save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    run = trainer(tmp_path, tiny_pairs(8), model=tmp_path / "base", processing_class=tokenizer, peft_config=lora)
    before = weights_of(run.model)
    run.train()
    moved = {name for name, value in weights_of(run.model).items() if not torch.equal(value, before[name])}
    assert any("score" in name for name in moved)
    assert all("lora_" in name or "score.modules_to_save" in name for name in moved)
    run.save_model(str(tmp_path / "adapter"))
    found = score(load_reward_model(tmp_path / "adapter"), tokenizer, ["w0 "], ["w1"])
    assert found == pytest.approx(score(run.model, tokenizer, ["w0 "], ["w1"]), rel=1e-5)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | {"task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelNotLoaded, match=r"task_type SEQ_CLS.*Merge a language model's adapter first"):
        load_reward_model(tmp_path / "adapter", new_head_seed=0)
    for wrong in (peft.LoraConfig(**lora), peft.LoraConfig(task_type="CAUSAL_LM", **lora)):
        with pytest.raises(InvalidArgument, match="SEQ_CLS"):
            trainer(tmp_path, tiny_pairs(4), peft_config=wrong)


def test_what_is_no_reward_model_is_refused(tmp_path) -> None:
    two = AutoModelForSequenceClassification.from_config(models_for_tests.tiny_model("llama").config)
    with pytest.raises(InvalidArgument, match="2 labels"):
        trainer(tmp_path, tiny_pairs(4), model=two)
    with pytest.raises(InvalidArgument, match="sequence classifier"):
        trainer(tmp_path, tiny_pairs(4), model=torch.nn.Linear(2, 2))
    with pytest.raises(InvalidArgument, match="LlamaForCausalLM"):
        as_reward_model(models_for_tests.tiny_model("llama"))
    with pytest.raises(InvalidArgument, match="SFTTrainer"):
        trainer(tmp_path, tiny_pairs(4), objective=SFT())
    with pytest.raises(InvalidArgument, match="both"):
        trainer(tmp_path, tiny_pairs(4), objective=BradleyTerry(), center_rewards_coefficient=0.1)
    with pytest.raises(InvalidArgument, match="beta: expected a field of RewardConfig"):
        config(tmp_path, beta=0.1)


def test_the_first_loss_of_a_head_of_zeros_is_ln_2(tmp_path) -> None:
    model = fresh()
    with torch.no_grad():
        model.score.weight.zero_()
    run = trainer(tmp_path, tiny_pairs(8), model=model, max_steps=1)
    run.train()
    assert run.state.log_history[0]["loss/preference"] == pytest.approx(math.log(2), rel=1e-12)
