"""`RPOTrainer`: its updates are the objective's gradient, whatever the split; its logs are what it optimised."""

from __future__ import annotations

import math

import models_for_tests
import pytest
import torch
from training import OBJECTIVE, config, masked_pairs, tiny_pairs, trainer, weights_of

from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO
from rpo.llm.data import PreparedPairs, stream_pairs
from rpo.llm.data.collate import PairDataset
from rpo.llm.models import load_model, load_tokenizer
from rpo.llm.sampling import prompt_token_ids


def naive_logp(model, prompt, response):
    """Sum of the response's token log-probabilities: one sequence, no padding, no mask."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + k - 1, token] for k, token in enumerate(response))


def naive_loss(model, reference, pairs, *, beta, eta, base=None):
    """Weighted mean of -log sigmoid(beta (h_w - h_l)) - beta eta base(pair), the paper's Algorithm 2, pair by pair."""
    total, weight = 0.0, 0.0
    for pair in pairs:
        chosen, rejected = (naive_logp(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids))
        with torch.no_grad():
            anchors = [naive_logp(reference, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
        margin = (chosen - anchors[0]) - (rejected - anchors[1])
        sft = chosen if base is None else base(model, pair, chosen, rejected)
        total = total + pair.weight * (-torch.nn.functional.logsigmoid(beta * margin) - beta * eta * sft)
        weight += pair.weight
    return total / weight


def fresh():
    return models_for_tests.tiny_model("llama", dtype=torch.float64)


def descend(pairs, *, updates, batch, rate=0.1, **options):
    """Return the weights after plain gradient descent on the naive loss over the given batches of rows."""
    model, reference = fresh(), fresh()
    for k in range(updates):
        rows = [pairs[row] for row in batch[k]]
        naive_loss(model, reference, rows, beta=OBJECTIVE.beta, eta=OBJECTIVE.eta, **options).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= rate * value.grad
                value.grad = None
    return weights_of(model)


def largest_difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_updates_are_gradient_steps_on_the_naive_loss(tmp_path):
    """Three SGD updates on all eight pairs equal descent on the loss written out above, in float64."""
    pairs = tiny_pairs(8)
    run = trainer(tmp_path, pairs, per_device_train_batch_size=8)
    run.train()
    expected = descend(pairs, updates=3, batch=[range(8)] * 3)
    moved = largest_difference(expected, weights_of(fresh()))
    assert moved > 1e-2
    assert largest_difference(weights_of(run.model), expected) < 1e-11


def test_weighted_pairs(tmp_path):
    """With weights the loss is sum(w l) / sum(w); without them the update is another one (control)."""
    pairs = tiny_pairs(8, weights=True)
    run = trainer(tmp_path, pairs, per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=1)
    run.train()
    expected = descend(pairs, updates=1, batch=[range(8)])
    assert largest_difference(weights_of(run.model), expected) < 1e-12
    unweighted = descend(tiny_pairs(8), updates=1, batch=[range(8)])
    assert largest_difference(unweighted, expected) > 1e-4


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "batch_token_mean"])
def test_the_split_into_micro_batches_does_not_matter(tmp_path, reduction):
    """10 pairs as 10 x 1, 5 x 2, 4 + 4 + 2 and 1 x 10 take the same path, with the last micro-batch smaller too.

    The control: a mean of the three micro-batch means of 4 + 4 + 2 pairs would weigh the last two pairs double.
    """
    pairs, objective = tiny_pairs(10), RPO(beta=0.1, eta=0.5, sft_reduction=reduction)
    ends = []
    for batch, accumulation in ((10, 1), (5, 2), (4, 3), (1, 10)):
        run = trainer(
            tmp_path,
            pairs,
            objective=objective,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        ends.append(weights_of(run.model))
        assert run.state.log_history[0]["loss"] == pytest.approx(
            run.state.log_history[0]["loss/preference"] + objective.sft_weight * run.state.log_history[0]["loss/sft"],
            rel=1e-6,
        )
    assert largest_difference(ends[0], weights_of(fresh())) > 1e-3
    assert max(largest_difference(ends[0], end) for end in ends[1:]) < 1e-11


def test_mean_of_micro_batch_means_is_another_loss(tmp_path, monkeypatch):
    """Control of the test above: dropping the shares changes the path."""
    pairs = tiny_pairs(10)
    right = trainer(tmp_path, pairs, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=1)
    right.train()
    wrong = trainer(tmp_path, pairs, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=1)
    compute = wrong.compute_loss

    def mean_of_means(model, inputs, return_outputs=False, num_items_in_batch=None):
        return compute(model, inputs) / 3

    monkeypatch.setattr(wrong, "compute_loss", mean_of_means)
    wrong.train()
    assert largest_difference(weights_of(right.model), weights_of(wrong.model)) > 1e-5


def test_the_number_logged_is_the_number_optimised(tmp_path):
    """At step 1 the loss is ln 2 + eta*beta * mean(-log pi(chosen)), all naive; rewards are zero, no pair has moved."""
    pairs = tiny_pairs(8)
    run = trainer(
        tmp_path, pairs, per_device_train_batch_size=8, eval_dataset=pairs, eval_strategy="steps", eval_steps=3
    )
    run.train()
    first, last = run.state.log_history[0], [row for row in run.state.log_history if "eval_loss" in row][-1]
    model = fresh()
    with torch.no_grad():
        sft = -sum(naive_logp(model, pair.prompt_ids, pair.chosen_ids) for pair in pairs).item() / 8
        ending = naive_loss(run.model, model, pairs, beta=OBJECTIVE.beta, eta=OBJECTIVE.eta).item()
    assert first["loss/sft"] == pytest.approx(sft, rel=1e-12)
    assert first["loss"] == pytest.approx(math.log(2) + 0.05 * 0.1 * sft, rel=1e-6)  # Trainer's sum is float32
    assert first["loss/preference"] == pytest.approx(math.log(2), rel=1e-12)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-12)
    assert first["logps/chosen"] == pytest.approx(-sft, rel=1e-12)
    assert last["eval_loss"] == pytest.approx(ending, rel=1e-6)
    assert last["eval_rewards/accuracies"] > 0.5
    shares = [
        last[f"eval_displacement/{name}"]
        for name in (
            "chosen_up_rejected_up",
            "chosen_up_rejected_down",
            "chosen_down_rejected_up",
            "chosen_down_rejected_down",
            "unchanged",
        )
    ]
    assert sum(shares) == pytest.approx(1.0)


def test_pi_base_of_every_kind(tmp_path):
    """The SFT term's gradient under each base equals the naive one: responses, rejected, a column, a mixture."""
    pairs = tiny_pairs(4, base=2)

    def column(model, pair):
        return sum(naive_logp(model, pair.prompt_ids, ids) for ids in pair.base_ids) / 2

    cases = {
        "rejected": ({}, lambda model, pair, w, y: y),
        "responses": ({}, lambda model, pair, w, y: (w + y) / 2),
        "custom": (
            {"base_weights": {"chosen": 0.25, "column": 0.75}, "base_column": "base"},
            lambda model, pair, w, y: 0.25 * w + 0.75 * column(model, pair),
        ),
    }
    for base, (options, expected) in cases.items():
        objective = RPO(beta=OBJECTIVE.beta, eta=OBJECTIVE.eta, base=base)
        # The pairs carry two responses more than "rejected" and "responses" look at.
        run = trainer(
            tmp_path, pairs if base == "custom" else tiny_pairs(4), objective=objective, max_steps=1, **options
        )
        run.train()
        rows = pairs if base == "custom" else tiny_pairs(4)
        assert (
            largest_difference(weights_of(run.model), descend(rows, updates=1, batch=[range(4)], base=expected)) < 1e-11
        ), base


def test_base_sampled_from_the_reference(tmp_path):
    """Responses drawn from the reference join the pairs', repeat for a seed, and end in EOS or the limit."""
    runs = []
    for _ in range(2):
        run = trainer(
            tmp_path,
            tiny_pairs(4),
            objective=RPO(beta=0.1, eta=0.05, base="reference"),
            base_num_samples=3,
            base_max_new_tokens=6,
            processing_class=models_for_tests.tiny_tokenizer(),
            max_steps=1,
        )
        run.train()
        runs.append(run)
    first, second = ([pair.base_ids for pair in run.train_dataset.pairs] for run in runs)
    assert first == second
    assert all(len(drawn) == 3 for drawn in first)
    assert all(ids[-1] == models_for_tests.EOS or len(ids) == 6 for drawn in first for ids in drawn)

    def sampled(model, pair, w, y):
        return sum(naive_logp(model, pair.prompt_ids, ids) for ids in pair.base_ids) / 3

    expected = descend(runs[0].train_dataset.pairs, updates=1, batch=[range(4)], base=sampled)
    assert largest_difference(weights_of(runs[0].model), expected) < 1e-11


@pytest.mark.parametrize("precompute", [True, False])
def test_reference_before_or_during_training(tmp_path, precompute):
    """Both ways give the path of the naive loss, shuffling included: scoring beforehand does not move the RNG."""
    run = trainer(tmp_path, tiny_pairs(12), precompute_ref_log_probs=precompute, per_device_train_batch_size=4)
    order = []
    collate = run.data_collator

    def recording(items):
        batch = collate(items)
        order.append(batch["rows"].tolist())
        return batch

    run.data_collator = recording
    run.train()
    expected = descend(tiny_pairs(12), updates=3, batch=order)
    assert largest_difference(weights_of(run.model), expected) < 1e-11
    assert sorted(row for rows in order[:3] for row in rows) == list(range(12))


def test_another_reference_on_purpose(tmp_path):
    """With ref_model the preference loss does not start at ln 2, nothing complains; displacement is since the start."""
    other = models_for_tests.tiny_model("llama", dtype=torch.float64, seed=1)
    run = trainer(tmp_path, tiny_pairs(8), ref_model=other, per_device_train_batch_size=8, max_steps=1)
    run.train()
    first = run.state.log_history[0]
    assert abs(first["loss/preference"] - math.log(2)) > 1e-3
    assert first["displacement/chosen_change"] == pytest.approx(0.0, abs=1e-10)


def test_dpo_logs_its_sft_term_and_does_not_optimise_it(tmp_path):
    run = trainer(tmp_path, tiny_pairs(8), objective=DPO(beta=0.1), per_device_train_batch_size=8, max_steps=1)
    run.train()
    first = run.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["loss/sft"] > 1


def test_gradient_diagnostics(tmp_path):
    """||g||^2 = a^2 + b^2 + 2ab cos at every scheduled update, with the norm Trainer logs."""
    run = trainer(tmp_path, tiny_pairs(8), per_device_train_batch_size=8, gradient_diagnostics_steps=2, max_steps=4)
    run.train()
    rows = [row for row in run.state.log_history if "gradients/cosine" in row]
    assert [row["step"] for row in rows] == [1, 3]
    for row in rows:
        a, b = row["gradients/preference_norm"], row["gradients/sft_norm"]
        assert row["grad_norm"] ** 2 == pytest.approx(a * a + b * b + 2 * a * b * row["gradients/cosine"], rel=1e-6)


def test_streaming(tmp_path):
    """A stream of rows trains as the same rows in memory do, in their order; caching the reference is refused."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in tiny_pairs(12)
    ]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    run = trainer(tmp_path, stream)
    run.train()
    expected = descend(tiny_pairs(12), updates=3, batch=[range(4), range(4, 8), range(8, 12)])
    assert largest_difference(weights_of(run.model), expected) < 1e-11
    with pytest.raises(InvalidArgument, match="precompute_ref_log_probs: expected False for a streaming"):
        trainer(tmp_path, stream, precompute_ref_log_probs=True)
    with pytest.raises(InvalidArgument, match="train_dataset: expected data that are not .* samples responses"):
        sampled = RPO(beta=0.1, eta=0.05, base="reference")
        trainer(tmp_path, stream, objective=sampled, precompute_ref_log_probs=False)


@pytest.mark.parametrize("path", ["padded", "packed", "shared"])
@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "batch_token_mean"])
def test_tokens_that_are_not_scored_count_nowhere(tmp_path, path, reduction):
    """Neither in sums nor in lengths, nor in the reference values, so that the preference loss starts at ln 2."""
    pairs, objective = masked_pairs(6), RPO(beta=0.1, eta=0.5, sft_reduction=reduction)
    run = trainer(tmp_path, pairs, objective=objective, eval_dataset=pairs, path=path, per_device_eval_batch_size=4)
    found = run.evaluate()
    model, sums, lengths = fresh(), [], []
    for pair in pairs:
        logits = model(torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]])).logits[0].log_softmax(-1)
        places = [k for k in range(len(pair.chosen_ids)) if k != 1]
        sums.append(sum(logits[len(pair.prompt_ids) + k - 1, pair.chosen_ids[k]].item() for k in places))
        lengths.append(len(places))
    sft = {
        "sequence_sum": -sum(sums) / 6,
        "sequence_mean": -sum(total / length for total, length in zip(sums, lengths, strict=True)) / 6,
        "batch_token_mean": -sum(sums) / sum(lengths),
    }[reduction]
    assert found["eval_loss/sft"] == pytest.approx(sft, rel=1e-6)
    assert found["eval_loss/preference"] == pytest.approx(math.log(2), rel=1e-12)
    assert found["eval_logps/chosen"] == pytest.approx(sum(sums) / 6, rel=1e-6)
    run.train()
    assert run.state.global_step == 3


def splits(n):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in tiny_pairs(n)
    ]
    half = {"train": datasets.Dataset.from_list(rows[: n // 2]), "test": datasets.Dataset.from_list(rows[n // 2 :])}
    return datasets.DatasetDict(half)


def test_splits_are_evaluation_sets_by_name(tmp_path, caplog):
    """Each under its own name, and none in place of another; for training the split "train" is taken, and said."""
    data = splits(12)
    run = trainer(tmp_path, data, eval_dataset=data)
    assert "train data: the split 'train' of 'train', 'test'" in caplog.text
    assert len(run.train_dataset) == 6
    metrics = run.evaluate()
    for name, rows in (("train", tiny_pairs(12)[:6]), ("test", tiny_pairs(12)[6:])):
        alone = trainer(tmp_path, PreparedPairs(rows), eval_dataset=PreparedPairs(rows)).evaluate()
        assert metrics[f"eval_{name}_loss"] == pytest.approx(alone["eval_loss"], rel=1e-12)
    assert metrics["eval_train_loss"] != metrics["eval_test_loss"]
    later = run.evaluate(data)
    assert later["eval_test_loss"] == metrics["eval_test_loss"]
    del data["train"]
    with pytest.raises(InvalidArgument, match="^train_dataset: .* splits 'test'. Pass one of them, train_dataset="):
        trainer(tmp_path, data)


def test_an_unused_column_that_looks_like_the_prompt_warns(tmp_path):
    tokenizer = models_for_tests.tiny_tokenizer()
    rows = [{"system": "w9", "prompt": "w1 ", "chosen": f"w{k}", "rejected": "w9"} for k in range(3, 7)]
    said = "dataset: the prompt is in the column 'prompt', and nothing reads 'system'"
    with pytest.warns(UserWarning, match=said):
        run = trainer(tmp_path, rows, processing_class=tokenizer)
    assert run.data_reports["train"]["unused_columns"] == {"system": 4}
    with pytest.warns(UserWarning, match=said):
        list(stream_pairs(rows, tokenizer))


def test_evaluation_does_not_depend_on_its_batches(tmp_path):
    """A token mean over 10 pairs is one mean, in batches of 10, 4 + 4 + 2 and one; a mean of means is not (control)."""
    pairs, objective = tiny_pairs(10), RPO(beta=0.1, eta=0.5, sft_reduction="batch_token_mean")
    found = []
    for size in (10, 4, 1):
        run = trainer(tmp_path, pairs, objective=objective, eval_dataset=pairs, per_device_eval_batch_size=size)
        found.append(run.evaluate())
    model = fresh()
    with torch.no_grad():
        logps = [naive_logp(model, pair.prompt_ids, pair.chosen_ids).item() for pair in pairs]
    lengths = [len(pair.chosen_ids) for pair in pairs]
    sft = -sum(logps) / sum(lengths)
    for metrics in found:
        assert metrics["eval_loss"] == pytest.approx(math.log(2) + objective.sft_weight * sft, rel=1e-12)
        assert metrics["eval_loss/sft"] == pytest.approx(sft, rel=1e-12)
    assert abs(-sum(logp / n for logp, n in zip(logps, lengths, strict=True)) / 10 - sft) > 1e-3


def test_a_stream_is_cut_into_updates_as_one_endless_list(tmp_path):
    """10 rows in micro-batches of 4, accumulated twice: updates of 8 rows run on over the end of each pass."""
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in tiny_pairs(10)
    ]
    stream = stream_pairs(rows, None)
    run = trainer(
        tmp_path,
        stream,
        precompute_ref_log_probs=False,
        gradient_accumulation_steps=2,
        max_steps=4,
        eval_dataset=stream,
    )
    before = run.evaluate()
    run.train()
    endless = [row % 10 for row in range(32)]
    expected = descend(tiny_pairs(10), updates=4, batch=[endless[8 * k : 8 * k + 8] for k in range(4)])
    assert largest_difference(weights_of(run.model), expected) < 1e-11
    assert before["eval_loss/preference"] == pytest.approx(math.log(2), rel=1e-12)
    after = run.evaluate(tiny_pairs(10))
    assert after["eval_rewards/margins"] > 0.01  # the reference was kept, and is asked


def test_new_data_after_training_needs_a_reference_that_was_kept(tmp_path):
    run = trainer(tmp_path, tiny_pairs(8), max_steps=1)
    run.train()
    for data in (tiny_pairs(4, seed=1), PairDataset(tiny_pairs(4, seed=1))):
        with pytest.raises(InvalidArgument, match="no reference model was kept"):
            run.evaluate(data)
    assert run.evaluate(run.train_dataset)["eval_loss"] > 0  # control: these were scored before


def test_a_model_without_anything_to_train(tmp_path):
    model = fresh().requires_grad_(False)
    with pytest.raises(InvalidArgument, match="none that requires a gradient"):
        trainer(tmp_path, tiny_pairs(4), model=model)


def test_dropout_and_checks_go_together(tmp_path):
    """With dropout left on, policy and reference differ at step 0 for that reason alone: nothing is claimed."""
    model = models_for_tests.tiny_model("gpt2", resid_pdrop=0.3)
    run = trainer(tmp_path, tiny_pairs(8), model=model, disable_dropout=False, max_steps=1)
    run.train()
    assert "start_difference_per_token" not in run.self_check_results
    assert run.self_check_results["start_gradient_norm"] > 0


def test_the_last_update_is_logged(tmp_path):
    run = trainer(tmp_path, tiny_pairs(8), max_steps=3, logging_steps=10)
    run.train()
    assert [row["step"] for row in run.state.log_history if "loss" in row] == [3]


@pytest.mark.parametrize(
    "options",
    [
        {"path": "shared"},
        {"path": "packed"},
        {"path": "shared", "max_tokens_per_batch": 30},
        {"path": "padded", "max_tokens_per_batch": 50, "gradient_accumulation_steps": 2},
    ],
)
def test_layouts_and_budgets_take_the_same_path(tmp_path, options):
    """Updates on 10 pairs equal descent on the naive loss to 1e-7: float32 inside the model (see training.py)."""
    pairs, size = tiny_pairs(10), 10 // options.get("gradient_accumulation_steps", 1)
    run = trainer(tmp_path, pairs, per_device_train_batch_size=size, **options)
    run.train()
    assert run.path.name == options["path"]
    expected = descend(pairs, updates=3, batch=[range(10)] * 3)
    assert largest_difference(weights_of(run.model), expected) < 1e-7


# --- what is trained: weights that can move, adapters that go on -----------------------------------

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-6, "max_steps": 1}
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
# peft asks for a name of transformers' that was changed
PEFT_DEPRECATION = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def stored(tmp_path):
    """A folder with a tiny Llama in bfloat16, as checkpoints come."""
    models_for_tests.tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    models_for_tests.tiny_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize(
    ("dtype", "trained", "share"),
    [(None, torch.float32, 0.95), ("auto", torch.bfloat16, None), ("bfloat16", torch.bfloat16, None)],
)
def test_a_bfloat16_checkpoint_is_trained_in_float32(tmp_path, stored, caplog, dtype, trained, share):
    """One AdamW step of 1e-6 moves nearly every weight that has a gradient; where bfloat16 was asked for, few, and it
    says so before and after. The share logged is counted here over all weights that have a gradient."""
    options = {} if dtype is None else {"model_init_kwargs": {"dtype": dtype}}
    run = trainer(tmp_path / "run", tiny_pairs(8), model=stored, **ADAM, **options)
    assert {value.dtype for value in run.model.parameters()} == {trained}
    before = weights_of(run.model)
    run.train()
    moved = [(value != before[name]) for name, value in weights_of(run.model).items() if "embed" not in name]
    counted = sum(int(part.sum()) for part in moved) / sum(part.numel() for part in moved)
    logged = run.state.log_history[0]["weights/moved"]
    assert run.self_check_results["start_moved_share"] == logged == pytest.approx(counted, abs=0.02)
    warned = [record.getMessage() for record in caplog.records if record.name == "rpo.llm.models.movement"]
    if share is not None:
        assert logged > share and not warned
    else:
        assert logged < 0.1
        assert "weights to be trained are bfloat16" in warned[0] and "Only" in warned[1] and "update 1" in warned[1]


def test_weights_are_judged_at_the_full_rate(tmp_path):
    """The first update of a warm-up has rate zero and moves nothing; the third is the first at half of the rate."""
    model = models_for_tests.tiny_model("llama")
    run = trainer(
        tmp_path, tiny_pairs(8), model=model, **ADAM | {"max_steps": 5}, lr_scheduler_type="linear", warmup_steps=4
    )
    run.train()
    assert [row["step"] for row in run.state.log_history if "weights/moved" in row] == [3]
    assert run.self_check_results["start_moved_share"] > 0.9


@PEFT_DEPRECATION
def test_an_adapter_over_a_bfloat16_base_is_float32(tmp_path, stored, caplog):
    """The base stays as stored, and nothing needs to be said."""
    run = trainer(tmp_path / "run", tiny_pairs(8), model=stored, peft_config=LORA, **ADAM | {"learning_rate": 1e-4})
    by_kind = {(value.requires_grad, value.dtype) for value in run.model.parameters()}
    assert by_kind == {(True, torch.float32), (False, torch.bfloat16)}
    run.train()
    assert run.adapter == "new" and run.self_check_results["start_moved_share"] > 0.9
    assert not [record for record in caplog.records if record.name == "rpo.llm.models.movement"]


@PEFT_DEPRECATION
@pytest.mark.parametrize("kept", [False, True], ids=["cached reference", "kept reference"])
def test_an_adapter_folder_goes_on_as_it_is(tmp_path, stored, kept):
    """Policy and reference start at the folder's model, not at its bare base, and a new adapter on it is refused."""
    first = trainer(tmp_path / "first", tiny_pairs(8), model=stored, peft_config=LORA, optim="adamw_torch")
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        expected = load_model(tmp_path / "adapter")(ids).logits
        assert (load_model(stored)(ids).logits - expected).abs().max() > 1e-2
        run = trainer(
            tmp_path / "second", tiny_pairs(8), model=str(tmp_path / "adapter"), precompute_ref_log_probs=not kept
        )
        assert torch.equal(run.model.eval()(ids).logits, expected)
        with run.reference.active() as reference:
            assert torch.equal(reference(ids).logits, expected)
    assert run.adapter == "continued" and run.reference.kind == ("named_adapter" if kept else "policy_as_given")
    run.train()
    assert run.state.log_history[0]["loss/preference"] == pytest.approx(math.log(2), rel=1e-3)
    with pytest.raises(InvalidArgument, match="peft_config: expected None for a model that already has an adapter"):
        trainer(tmp_path / "third", tiny_pairs(8), model=str(tmp_path / "adapter"), peft_config=LORA)
    other = trainer(tmp_path / "fourth", tiny_pairs(8), model=stored, ref_model=str(tmp_path / "adapter"), **ADAM)
    other.train()
    assert other.reference.kind == "frozen_model"
    assert not any(value.requires_grad for value in other.reference.model.parameters())
    with torch.no_grad(), other.reference.active() as reference:
        assert (reference(ids).logits - expected.float()).abs().max() < 0.1  # float32 beside bfloat16
    assert other.state.log_history[0]["rewards/margins"] != 0


def test_models_that_are_not_causal_are_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=64, initializer_range=0.3, **sizes))
    with pytest.raises(InvalidArgument, match="model: expected a causal language model"):
        trainer(tmp_path, tiny_pairs(4), model=model)


# --- the router loss of a mixture of experts ---------------------------------------------------------


def mixture(*, asked, weight=3.0):
    from transformers import MixtralConfig, MixtralForCausalLM

    fields = {name: value for name, value in models_for_tests.COMMON.items() if name != "initializer_range"}
    fields |= {"output_router_logits": asked, "router_aux_loss_coef": weight, "initializer_range": 0.1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtralForCausalLM(MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **fields)).eval()


def naive_router_loss(model, pairs):
    """Experts times the sum over them of (share of tokens sent there) x (mean probability), all layers and rows."""
    sent, probability, tokens = torch.zeros(4), torch.zeros(4), 0
    for pair in pairs:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            row = torch.tensor([[*pair.prompt_ids, *ids]])
            for logits in model(row, output_router_logits=True).router_logits:
                shares = logits.softmax(-1)
                sent += torch.nn.functional.one_hot(shares.topk(2).indices, 4).sum((0, 1))
                probability += shares.sum(0)
                tokens += len(shares)
    return 4 * (sent / tokens * probability / tokens).sum()


def test_the_router_loss_is_added_where_it_is_asked_for(tmp_path, caplog):
    """It is in the loss by its weight, logged apart, moves the router, and pads; control: not asked for, no trace."""
    pairs, runs = tiny_pairs(4), {}
    for asked in (True, False):
        caplog.clear()
        run = trainer(tmp_path / str(asked), pairs, model=mixture(asked=asked), max_steps=1, path="auto")
        run.train()
        runs[asked] = run, run.state.log_history[0], " ".join(caplog.messages)
    (run, log, said), (plain, without, unsaid) = runs[True], runs[False]
    assert (run.path.name, plain.path.name) == ("padded", "shared")
    assert "asks for the router loss" in said and "router" not in unsaid
    assert "loss/router" not in without and (run.router_weight, plain.router_weight) == (3.0, 0.0)
    with torch.no_grad():
        expected = naive_router_loss(mixture(asked=False), pairs).item()
    assert log["loss/router"] == pytest.approx(expected, rel=1e-5)
    own = log["loss/preference"] + OBJECTIVE.sft_weight * log["loss/sft"]
    assert log["loss"] == pytest.approx(own + 3.0 * expected, rel=1e-5)
    assert without["loss"] == pytest.approx(own, rel=1e-5)
    gates = [one.model.model.layers[0].mlp.gate.weight for one in (run, plain)]
    assert (gates[0] - gates[1]).abs().max() > 1e-4
    evaluated = run.evaluate(run.train_dataset)
    assert evaluated["eval_loss/router"] > 0


def test_paths_that_have_no_router_loss_are_refused(tmp_path):
    """Given as an object, a packed path is not tried first; its own numbers do not need the router's."""
    from rpo.llm.logps.packing import SharedPrefixPath
    from rpo.llm.training.trainer import RPOTrainer

    pairs, options = tiny_pairs(4), config(tmp_path, max_steps=1)
    run = RPOTrainer(
        mixture(asked=True), args=options, train_dataset=pairs, objective=OBJECTIVE, path=SharedPrefixPath()
    )
    with pytest.raises(InvalidArgument, match='expected a router loss.*Train on path="padded"'):
        run.train()


# --- what a model cannot do --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pairs_beyond_the_positions_are_refused_before_training(tmp_path, family):
    """Prompts of 1-5 tokens and responses of up to 10 against 8 positions: the first row is named, the others counted.

    In a stream, where it is met. The control has one position more than the longest.
    """
    pairs = tiny_pairs(12)
    lengths = {pair.row: len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs}
    long = [row for row, length in lengths.items() if length > 8]
    model = models_for_tests.tiny_model(family, max_position_embeddings=8)
    said = rf"max_length: expected pairs of at most 8 tokens.*{lengths[long[0]]} tokens in row {long[0]}, and "
    with pytest.raises(InvalidArgument, match=said + f"{len(long) - 1} more"):
        trainer(tmp_path, pairs, model=model)
    trainer(tmp_path, pairs, model=models_for_tests.tiny_model(family, max_position_embeddings=max(lengths.values())))
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in pairs
    ]
    run = trainer(tmp_path, stream_pairs(rows, None), model=model, precompute_ref_log_probs=False)
    with pytest.raises(InvalidArgument, match="at most 8 tokens"):
        run.train()


def test_a_chat_template_is_saved_with_the_model(tmp_path):
    """What samples from the folder renders prompts as training did; the tokenizer that was given stays as it was."""
    template = "{% for m in messages %}<|user|> {{ m['content'] }} {% endfor %}"
    tokenizer = models_for_tests.tiny_tokenizer()
    message = [{"role": "user", "content": "w1"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("w2 </s>", "w3 </s>")]
    row = {"prompt": message, "chosen": answers[0], "rejected": answers[1]}
    model = models_for_tests.tiny_model("llama")
    run = trainer(tmp_path, [row] * 4, model=model, processing_class=tokenizer, chat_template=template)
    run.save_model(str(tmp_path / "saved"))
    saved = load_tokenizer(tmp_path / "saved")
    assert prompt_token_ids(saved, message) == list(run.train_dataset.pairs[0].prompt_ids)
    assert tokenizer.chat_template == models_for_tests.CHAT_TEMPLATE
    assert prompt_token_ids(tokenizer, message) != list(run.train_dataset.pairs[0].prompt_ids)
