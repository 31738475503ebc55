"""`SFTTrainer`: its updates are the gradient of the loss written out here, its rows those of preference data."""

from __future__ import annotations

import json
import math

import models_for_tests
import numpy as np
import pytest
import torch
from models_for_tests import EOS, FIRST_WORD
from training import masked_pairs, tiny_pairs, weights_of

from rpo.core.errors import InvalidArgument, NonFiniteLoss
from rpo.core.likelihoods import SFT
from rpo.core.objectives import RPO
from rpo.llm.data import RefusedRow
from rpo.llm.data.pairs import PreparedPairs, TokenizedPair
from rpo.llm.training.checkpoints import CheckpointError
from rpo.llm.training.selfcheck import SelfCheckFailed
from rpo.llm.training.sft import SFTConfig, SFTTrainer

RATE = 0.1
# peft 0.21 asks models for a property that transformers 5.23 renamed.
PEFT_DEPRECATION = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# (batch, accumulation): ten rows as one batch, evenly split, with a smaller last batch, one by one.
SPLITS = ((10, 1), (5, 2), (4, 3), (1, 10))


def config(folder, **options) -> SFTConfig:
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
        "path": "padded",
    }
    return SFTConfig(**(defaults | options))


def fresh():
    return models_for_tests.tiny_model("llama", dtype=torch.float64)


def trainer(folder, data, *, model=None, objective=None, **options) -> SFTTrainer:
    names = ("eval_dataset", "processing_class", "peft_config")
    mine = {name: options.pop(name) for name in names if name in options}
    model = fresh() if model is None else model
    return SFTTrainer(model, config(folder, **options), train_dataset=data, objective=objective, **mine)


def naive_logp(model, prompt, response):
    """Sum of the response's token log-probabilities: one sequence, no padding, no mask."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + k - 1, token] for k, token in enumerate(response))


def naive_loss(model, pairs, reduction, response="chosen_ids"):
    """Minus the weighted log-probabilities over: the weights, the weights (of logp a token), the weighted tokens."""
    above = below = 0.0
    for pair in pairs:
        ids = getattr(pair, response)
        logp = naive_logp(model, pair.prompt_ids, ids)
        above = above - pair.weight * (logp / len(ids) if reduction == "sequence_mean" else logp)
        below += pair.weight * (len(ids) if reduction == "batch_token_mean" else 1)
    return above / below


def descend(pairs, reduction, *, updates=3, rate=RATE, **options):
    """Return the weights after plain gradient descent on the naive loss of all pairs."""
    model = fresh()
    for _ in range(updates):
        naive_loss(model, pairs, reduction, **options).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= rate * value.grad
                value.grad = None
    return weights_of(model)


def largest_difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["batch_token_mean", "sequence_mean", "sequence_sum"])
def test_updates_are_gradient_steps_on_the_naive_loss_however_they_are_split(tmp_path, reduction) -> None:
    """Three SGD updates on ten weighted rows in float64, as 10 x 1, 5 x 2, 4 + 4 + 2 and 1 x 10.

    The control is the same without weights. "sequence_sum" gets a smaller rate: its gradients are larger.
    """
    pairs, rate = tiny_pairs(10, weights=True), RATE / 10 if reduction == "sequence_sum" else RATE
    expected = descend(pairs, reduction, rate=rate)
    assert largest_difference(expected, weights_of(fresh())) > 1e-2
    assert largest_difference(expected, descend(tiny_pairs(10), reduction, rate=rate)) > 1e-4
    for batch, accumulation in SPLITS:
        run = trainer(
            tmp_path,
            pairs,
            objective=SFT(reduction=reduction),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=rate,
        )
        run.train()
        assert largest_difference(weights_of(run.model), expected) < 1e-11
        first = run.state.log_history[0]
        with torch.no_grad():
            loss = naive_loss(fresh(), pairs, reduction).item()
        assert first["loss"] == pytest.approx(loss, rel=1e-6)  # Trainer's sum is float32
        assert first["loss/sft"] == pytest.approx(loss, rel=1e-12)


def test_a_mean_of_micro_batch_means_is_another_loss(tmp_path, monkeypatch) -> None:
    """Control of the test above: what the split changes when every micro-batch divides by its own tokens."""
    pairs = tiny_pairs(10)
    ends = []
    for wrong in (False, True):
        run = trainer(tmp_path, pairs, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=1)
        if wrong:
            right = run.compute_loss
            monkeypatch.setattr(
                run, "compute_loss", lambda model, inputs, right=right, **more: right(model, inputs) / 3
            )
        run.train()
        ends.append(weights_of(run.model))
    assert largest_difference(*ends) > 1e-5


def test_evaluation_is_the_token_mean_of_the_whole_set(tmp_path) -> None:
    """Ten rows in batches of 3, 3, 3, 1; the mean of the four batches' means is another number (control)."""
    pairs = tiny_pairs(10, weights=True)
    run = trainer(tmp_path, pairs, eval_dataset=pairs, per_device_eval_batch_size=3)
    found = run.evaluate()
    with torch.no_grad():
        expected = naive_loss(fresh(), pairs, "batch_token_mean").item()
        logps = [naive_logp(fresh(), pair.prompt_ids, pair.chosen_ids).item() for pair in pairs]
        parts = [naive_loss(fresh(), pairs[k : k + 3], "batch_token_mean").item() for k in (0, 3, 6, 9)]
    weights = [pair.weight for pair in pairs]
    assert found["eval_loss"] == found["eval_loss/sft"] == pytest.approx(expected, rel=1e-12)
    assert found["eval_logps/response"] == pytest.approx(np.average(logps, weights=weights), rel=1e-12)
    assert abs(np.mean(parts) - expected) > 1e-3
    assert run.evaluate(pairs)["eval_loss"] == pytest.approx(expected, rel=1e-12)


def test_tokens_that_are_not_scored_are_not_learnt(tmp_path) -> None:
    """The token mean is over the scored ones, of either response."""
    pairs = masked_pairs(6)
    for response in ("chosen", "rejected"):
        found = trainer(tmp_path, pairs, eval_dataset=pairs, response=response).evaluate()
        above, below = 0.0, 0
        for pair in pairs:
            ids = getattr(pair, f"{response}_ids")
            logits = fresh()(torch.tensor([[*pair.prompt_ids, *ids]])).logits[0].log_softmax(-1)
            places = [k for k in range(len(ids)) if k != 1 or response == "rejected"]
            above -= sum(logits[len(pair.prompt_ids) + k - 1, ids[k]].item() for k in places)
            below += len(places)
        assert found["eval_loss/sft"] == pytest.approx(above / below, rel=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TRL's own use of transformers
def test_loss_equals_trl(tmp_path, tiny_tokenizer) -> None:
    """TRL's SFTTrainer on prompt-completion rows, one batch: its completion-only loss is our token mean."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def words(ids) -> str:
        return " ".join(f"w{k - FIRST_WORD}" for k in ids if k != EOS)

    rows = [{"prompt": words(p.prompt_ids) + " ", "completion": words(p.chosen_ids)} for p in tiny_pairs(7)]
    rows = [row for row in rows if row["completion"]]
    theirs = trl.SFTTrainer(
        model=models_for_tests.tiny_model("llama"),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=len(rows), use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    batch = theirs.data_collator([theirs.train_dataset[k] for k in range(len(rows))])
    expected = theirs.compute_loss(theirs.model, batch).item()
    model = models_for_tests.tiny_model("llama")
    ours = trainer(tmp_path, rows, model=model, processing_class=tiny_tokenizer())
    loss = ours.compute_loss(ours.model, ours.data_collator(ours.train_dataset.pairs)).item()
    assert loss == pytest.approx(expected, rel=1e-6)


# --- rows ----------------------------------------------------------------------------------------

USER, ASSISTANT = 4, 5  # <|user|>, <|assistant|>
ASKED = [{"role": "user", "content": "w0 w1"}]
TEXT, CHAT = ((6, 7), (8, 9, EOS)), ((USER, 6, 7, EOS, ASSISTANT), (8, 9, EOS))


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "response", "expected"),
    [
        ({"prompt": "w0 w1 ", "completion": "w2 w3"}, "chosen", TEXT),
        ({"prompt": ASKED, "completion": said("w2 w3")}, "chosen", CHAT),
        ({"prompt_ids": [6, 7], "completion_ids": [8, 9, EOS]}, "chosen", TEXT),
        (
            {"prompt": "w0 w1 ", "completion": "w2 w3", "completion_finish_reason": "length"},
            "chosen",
            (TEXT[0], (8, 9)),
        ),
        ({"prompt": "w0 w1 ", "chosen": "w2 w3", "rejected": "w4"}, "chosen", TEXT),
        ({"prompt": "w0 w1 ", "chosen": "w4", "rejected": "w2 w3"}, "rejected", TEXT),
        ({"prompt": "w0 w1 ", "chosen": "w2 w3"}, "chosen", TEXT),
        ({"chosen": "w0 w1 w2 w3", "rejected": "w0 w1 w4"}, "chosen", TEXT),
        ({"chosen": "w0 w1 w4", "rejected": "w0 w1 w2 w3"}, "rejected", TEXT),
        ({"prompt": ASKED, "chosen": said("w2 w3"), "rejected": said("w4")}, "chosen", CHAT),
        ({"chosen": ASKED + said("w2 w3"), "rejected": ASKED + said("w4")}, "chosen", CHAT),
        ({"chosen": ASKED + said("w4"), "rejected": ASKED + said("w2 w3")}, "rejected", CHAT),
        ({"prompt_ids": [6, 7], "chosen_ids": [8, 9, EOS], "rejected_ids": [8]}, "chosen", TEXT),
    ],
)
def test_every_format_gives_the_tokens_that_are_learnt(tmp_path, tiny_tokenizer, row, response, expected) -> None:
    """w0 is token 6; a text ends with the EOS, an answer with its one end of turn, a cut one with neither."""
    run = trainer(tmp_path, [row], processing_class=tiny_tokenizer(), response=response)
    batch = run.data_collator(run.train_dataset.pairs)
    ids, mask = batch["input_ids"][0], batch["response_mask"][0]
    assert (tuple(ids[~mask].tolist()), tuple(ids[mask].tolist())) == expected
    assert batch["input_ids"].shape == (1, len(expected[0]) + len(expected[1]))


def test_the_other_response_does_not_matter(tmp_path, tiny_tokenizer) -> None:
    """A rejected response of 50 words would push the prompt out of 8 tokens; the learnt one leaves it whole."""
    long = {"prompt": "w0 w1 w2 w3 ", "chosen": "w4", "rejected": "w5 " * 50}
    run = trainer(tmp_path, [long], processing_class=tiny_tokenizer(), max_length=8)
    assert run.train_dataset.pairs[0].prompt_ids == (6, 7, 8, 9)
    report = run.data_reports["train"]
    assert (report["prompts_truncated"], report["chosen_truncated"]) == (0, 0)
    assert "identical" not in report
    run = trainer(tmp_path, [long], processing_class=tiny_tokenizer(), max_length=8, response="rejected")  # the control
    assert run.data_reports["train"]["prompts_truncated"] == 0 < run.data_reports["train"]["chosen_truncated"]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"text": "w0 w1"}, "chosen"),
        ({"completion": "w0 w1"}, "prompt"),
        ({"prompt": "w0 ", "completion": " "}, "chosen"),
        ({"prompt": "w0 ", "completion": 3}, "chosen"),
        ({"chosen": "w0 w1"}, "rejected"),
        ("w0 w1", "row"),
    ],
)
def test_bad_rows_are_named(tmp_path, tiny_tokenizer, row, column) -> None:
    """The second row is refused, or counted and left out."""
    rows = [{"prompt": "w0 w1 ", "completion": "w2 w3"}, row]
    with pytest.raises(RefusedRow) as caught:
        trainer(tmp_path, rows, processing_class=tiny_tokenizer())
    assert (caught.value.row, caught.value.column) == (1, column)
    run = trainer(tmp_path, rows, processing_class=tiny_tokenizer(), on_refused="drop")
    assert (run.data_reports["train"]["rows"], run.data_reports["train"]["pairs"]) == (2, 1)
    assert sum(run.data_reports["train"]["refused"].values()) == 1


def test_rows_are_read_from_files_and_streams(tmp_path, tiny_tokenizer) -> None:
    """A JSON Lines file, and a streamed dataset for two passes; a generator, which has one pass, is refused."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"w{k} ", "completion": f"w{k + 1} w{k + 2}"} for k in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = trainer(tmp_path, path, processing_class=tiny_tokenizer(), eval_dataset={"file": str(path)})
    assert [pair.row for pair in run.train_dataset.pairs] == list(range(6))
    assert math.isfinite(run.evaluate()["eval_file_loss"])
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    run = trainer(tmp_path, stream, processing_class=tiny_tokenizer(), per_device_train_batch_size=3, max_steps=4)
    run.train()
    assert run.state.global_step == 4  # 12 rows: two passes over 6
    with pytest.raises(InvalidArgument, match="generator"):
        trainer(tmp_path, (row for row in rows), processing_class=tiny_tokenizer())


# --- training ------------------------------------------------------------------------------------


def test_it_raises_the_log_probability_of_responses(tmp_path, tiny_tokenizer) -> None:
    """After 20 updates the responses are likelier, by more than a nat a token; the others' are not (control)."""
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"w{k} ", "chosen": f"w{k + 1} w{k + 2}", "rejected": f"w{k + 30}"} for k in rng.permutation(16)]
    options = {"processing_class": tiny_tokenizer(), "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 20}
    run = trainer(tmp_path, rows, per_device_train_batch_size=16, eval_dataset=rows, **options)
    before = run.evaluate()["eval_logps/response_per_token"]
    run.train()
    assert run.evaluate()["eval_logps/response_per_token"] > before + 1
    rejected = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows]
    others = [trainer(tmp_path, rows, model=model, **options).evaluate(rejected) for model in (fresh(), run.model)]
    assert others[1]["eval_logps/response"] < others[0]["eval_logps/response"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_resumed_run_ends_where_the_other_does(tmp_path) -> None:
    """Bit for bit; with another objective the checkpoint is refused."""
    pairs = tiny_pairs(16)
    options = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", pairs, **options)
    whole.train()
    resumed = trainer(tmp_path / "whole", pairs, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert largest_difference(weights_of(whole.model), weights_of(resumed.model)) == 0
    assert largest_difference(weights_of(whole.model), weights_of(fresh())) > 1e-3
    other = trainer(tmp_path / "whole", pairs, objective=SFT(reduction="sequence_sum"), **options)
    with pytest.raises(CheckpointError, match="objective"):
        other.train(resume_from_checkpoint=True)


@PEFT_DEPRECATION
def test_an_adapter_is_all_that_is_trained(tmp_path) -> None:
    pytest.importorskip("peft")
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    run = trainer(tmp_path, tiny_pairs(8), peft_config=lora)
    before = weights_of(run.model)
    run.train()
    moved = {name for name, value in weights_of(run.model).items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)


def test_a_loss_that_is_not_finite_names_its_row(tmp_path) -> None:
    """Word 40 has an infinite embedding; row 2 holds it."""
    model = fresh()
    with torch.no_grad():
        model.get_input_embeddings().weight[40] = float("inf")
    pairs = PreparedPairs(TokenizedPair((6, 7), (40 if row == 2 else 8, EOS), (8, EOS), row) for row in range(4))
    with pytest.raises(NonFiniteLoss, match=r"row\(s\) 2 "):
        trainer(tmp_path, pairs, model=model).train()


def test_responses_without_an_end_are_found_before_training(tmp_path, tiny_tokenizer) -> None:
    rows = [{"prompt_ids": [6, 7], "completion_ids": [8, 9]}]
    with pytest.raises(SelfCheckFailed, match="a token at which the model stops"):
        trainer(tmp_path, rows, processing_class=tiny_tokenizer()).train()
    trainer(tmp_path, rows, processing_class=tiny_tokenizer(), self_check=False).train()


def test_arguments_of_another_trainer_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="beta: expected a field of SFTConfig"):
        config(tmp_path, beta=0.1)
    with pytest.raises(InvalidArgument, match="response"):
        config(tmp_path, response="best")
    with pytest.raises(InvalidArgument, match="PreferenceTrainer"):
        trainer(tmp_path, tiny_pairs(4), objective=RPO(beta=0.1, eta=0.1))
