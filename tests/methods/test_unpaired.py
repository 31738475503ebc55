"""Responses alone with labels; the shifts of KTO and BCO: estimated by hand, whatever the cut, kept by checkpoints."""

import json
from dataclasses import replace

import models_for_tests
import numpy as np
import pytest
import torch
from training import OBJECTIVE, tiny_pairs, trainer, weights_of
from transformers import TrainerCallback

import rpo
from rpo.core.errors import InvalidArgument
from rpo.llm.data import RefusedRow, check_pairs, prepare_pairs, read_preference
from rpo.llm.data.mismatched import with_mismatched
from rpo.llm.data.pairs import PreparedPairs, TokenizedGroup, TokenizedPair

ROWS = [
    {"prompt": "1 + 1 =", "completion": " 2", "label": True},
    {"prompt": "1 + 1 =", "completion": " 3", "label": False},
    {"prompt": "2 + 2 =", "completion": " 4", "label": 1},
]


def singles(n: int, **options) -> PreparedPairs:
    """Return the chosen and rejected responses of n tiny pairs as 2n rows with labels, in turn."""
    pairs = tiny_pairs(n, **options)
    return PreparedPairs(
        replace(pair, own=(ids,), row=2 * k + j, label=not j)
        for k, pair in enumerate(pairs)
        for j, ids in enumerate(pair.own)
    )


def h(model, start, pair: TokenizedGroup, response) -> float:
    """Return log(pi / pi_ref) of a response, one sequence at a time."""
    ids = torch.tensor([[*pair.prompt_ids, *response]])
    places = range(len(pair.prompt_ids) - 1, ids.shape[1] - 1)
    with torch.no_grad():
        logps = [one(ids).logits[0].double().log_softmax(-1)[places, list(response)].sum() for one in (model, start)]
    return float(logps[0] - logps[1])


# --- data ------------------------------------------------------------------------------------------


def test_rows_of_one_completion_and_its_label_are_read() -> None:
    record = read_preference(ROWS[1], 1, unpaired=True)
    assert (record.prompt, record.label, record.columns) == ("1 + 1 =", False, ("completion",))
    assert [response.content for response in record.responses] == [" 3"] and not record.extra
    chat = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yes"}]}
    assert read_preference(chat | {"label": 0}, 0, unpaired=True).kind == "chat"
    ids = {"prompt_ids": [1], "completion_ids": [2, 3], "label": True}
    assert read_preference(ids, 0, unpaired=True).responses[0].content == (2, 3)
    # A preference row stays one, whatever else is in it.
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c"}
    assert read_preference(pair, 0, unpaired=True).label is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "good"}, "label"),
        ({"label": None}, "label"),
        ({"label": 0.5}, "label"),
        ({"completion": " "}, "empty"),
    ],
    ids=str,
)
def test_rows_alone_that_cannot_be_used_are_refused(change, reason: str) -> None:
    with pytest.raises(RefusedRow) as caught:
        read_preference(ROWS[0] | change, 4, unpaired=True)
    assert caught.value.reason.startswith(reason) and caught.value.row == 4


def test_scores_are_read_where_they_are_asked_for_and_must_agree_with_the_preference() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for names in (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")):
        scored = row | dict(zip(names, (4, 1.5), strict=True))
        record = read_preference(scored, 0, scores=True)
        assert record.scores == (4.0, 1.5) and not record.extra
        assert read_preference(scored, 0).extra == {names[0]: 4, names[1]: 1.5}
        for tie in ((1, 1), (1, 2), (float("inf"), 1), ("N/A", 1), (True, 0)):
            with pytest.raises(RefusedRow, match=f"{names[0]}, {names[1]}: expected finite numbers, the first larger"):
                read_preference(row | dict(zip(names, tie, strict=True)), 0, scores=True)
    with pytest.raises(RefusedRow, match="score_chosen: expected a column"):
        read_preference(row, 0, scores=True)


def test_a_pair_loss_says_whom_rows_alone_are_for() -> None:
    with pytest.raises(RefusedRow, match=r"rpo\.SFT, with labels for rpo\.KTO and rpo\.BCO"):
        read_preference(ROWS[0], 0)


def test_rows_alone_are_tokenised_and_counted_and_not_mixed_with_pairs() -> None:
    tokenizer = None
    rows = [{"prompt_ids": [5, 6], "completion_ids": [7, 8 + k], "label": k % 2 == 0} for k in range(5)]
    pairs = prepare_pairs(rows, tokenizer, unpaired=True)
    assert [pair.label for pair in pairs] == [True, False, True, False, True]
    assert pairs[1].own == pairs[1].responses == ((7, 9),) and pairs[1].rejected_ids == ()
    assert (pairs.report.unpaired, pairs.report.desirable, pairs.report.identical) == (5, 3, 0)
    found = check_pairs(pairs)
    assert (found.unpaired, found.desirable, found.length_bias) == (5, 3, None)
    assert "5 responses alone, 3 of them desirable" in found.render()
    with pytest.raises(RefusedRow, match="row 1, chosen: expected a completion and its label, as in the first row"):
        prepare_pairs([rows[0], {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}], tokenizer, unpaired=True)


def test_a_response_to_another_prompt_is_the_next_rows_in_a_circle() -> None:
    """Rows 0 and 1 share a prompt, so both take row 2's; row 2 takes row 0's; all cut at five tokens."""
    rows = [((1, 2), (10, 11)), ((1, 2), (12,)), ((3,), (13, 14, 15, 16))]
    pairs = [TokenizedPair(prompt, ids, (), k, label=True) for k, (prompt, ids) in enumerate(rows)]
    found = with_mismatched(pairs, 5)
    assert [pair.base_ids for pair in found] == [((13, 14, 15),), ((13, 14, 15),), ((10, 11),)]
    # Of pairs the chosen and the rejected response in turn.
    both = [TokenizedPair((k,), (10 + k,), (20 + k,), k) for k in range(4)]
    assert [pair.base_ids for pair in with_mismatched(both, None)] == [((11,),), ((22,),), ((13,),), ((20,),)]
    with pytest.raises(InvalidArgument, match=r"at least two prompts.*got one prompt in 2 rows.*rpo\.BCO"):
        with_mismatched(pairs[:2], None)


# --- the trainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "pairs"])
@pytest.mark.parametrize("path", ["padded", "shared"])
def test_the_shift_is_that_of_the_update_before_by_hand(tmp_path, path: str, alone: bool) -> None:
    """z0 = max(0, the weighted mean of h over exchanged responses), from the policy that the update started with."""
    data = singles(4, weights=True) if alone else tiny_pairs(8, weights=True)
    start = models_for_tests.tiny_model("llama", dtype=torch.float64)
    one = trainer(
        tmp_path, data, objective=rpo.KTO(beta=0.5, undesirable_weight=0.2), path=path, max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=0.2,
    )  # fmt: skip
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            exchanged = with_mismatched(data, None)
            values = [h(one.model, start, pair, pair.base_ids[-1]) for pair in exchanged]
            seen.append(max(0.0, np.average(values, weights=[pair.weight for pair in data])))

    one.add_callback(Watch())
    one.train()
    logged = [row["rewards/shift"] / 0.5 for row in one.state.log_history if "rewards/shift" in row]
    assert logged[0] == 0.0 and seen[0] == pytest.approx(0.0, abs=1e-6)
    assert logged[1:] == pytest.approx(seen[:-1], abs=2e-5)
    assert one.carried["shift"] == pytest.approx(seen[-1], abs=2e-5) and seen[-1] > 1e-2
    desirable = np.average([1.0 if pair.label else 0.2 for pair in data], weights=[pair.weight for pair in data])
    assert one.state.log_history[0]["loss"] == pytest.approx(0.5 * (desirable if alone else 0.6), abs=1e-6)  # sigma(0)


@pytest.mark.parametrize("objective", [rpo.KTO(beta=0.5, undesirable_weight=0.7), rpo.BCO(beta=0.5)], ids=repr)
def test_how_an_update_is_cut_does_not_matter(tmp_path, objective) -> None:
    """Eight rows of unequal weight at once, two by two, and by tokens: one trajectory, shift included."""
    cuts = ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    cuts += ({"per_device_train_batch_size": 8, "max_tokens_per_batch": 24},)
    runs = []
    for k, cut in enumerate(cuts):
        one = trainer(tmp_path / str(k), singles(4, weights=True), objective=objective, learning_rate=1.0, **cut)
        one.train()
        runs.append((weights_of(one.model), one.carried["shift"], one.state.log_history[2]))
    for weights, shift, last in runs[1:]:
        assert shift == pytest.approx(runs[0][1], rel=1e-4) and shift != 0.0
        assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in runs[0][0].items())
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "rewards/shift"):
            assert last[name] == pytest.approx(runs[0][2][name], rel=1e-3, abs=1e-5)


def test_two_batches_seen_each_alone_would_have_shifts_of_their_own(tmp_path) -> None:
    """The control: the shift of half the rows is not that of all of them."""
    one = trainer(tmp_path / "all", singles(4), objective=rpo.BCO(beta=0.5), per_device_train_batch_size=8)
    half = trainer(tmp_path / "half", singles(4), objective=rpo.BCO(beta=0.5), per_device_train_batch_size=4)
    for run in (one, half):
        run.train()
    assert abs(one.carried["shift"] - half.carried["shift"]) > 1e-4


@pytest.mark.parametrize("objective", [rpo.KTO(beta=0.5), rpo.BCO(beta=0.5)], ids=repr)
def test_a_resumed_run_goes_on_with_the_shift(tmp_path, objective) -> None:
    options = {"objective": objective, "learning_rate": 0.2, "max_steps": 5, "per_device_train_batch_size": 8}
    data = singles(4, weights=True)
    whole = trainer(tmp_path / "whole", data, **options)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "cut", data, **options, **saving).train()
    stored = json.loads((tmp_path / "cut" / "checkpoint-3" / "manifest.json").read_text())["run"]["carried"]
    again = trainer(tmp_path / "cut", data, **options, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert stored["shift"] != 0.0 and again.carried == whole.carried
    assert all(torch.equal(weights_of(again.model)[name], value) for name, value in weights_of(whole.model).items())
    assert again.state.log_history[-2]["rewards/shift"] == whole.state.log_history[-2]["rewards/shift"]


def test_metrics_of_responses_alone_are_means_by_label(tmp_path) -> None:
    data = singles(4, weights=True)
    one = trainer(
        tmp_path, data, objective=rpo.KTO(), per_device_train_batch_size=8, max_steps=1, eval_dataset=data,
        learning_rate=1.0,
    )  # fmt: skip
    start = models_for_tests.tiny_model("llama", dtype=torch.float64)
    one.train()
    metrics = one.evaluate()
    for side, label in (("chosen", True), ("rejected", False)):
        kept = [pair for pair in data if pair.label is label]
        rewards = [0.1 * h(one.model, start, pair, pair.chosen_ids) for pair in kept]
        mean = np.average(rewards, weights=[pair.weight for pair in kept])
        assert metrics[f"eval_rewards/{side}"] == pytest.approx(mean, abs=2e-5)
    assert metrics["eval_rewards/margins"] == metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"]
    assert not any(name.startswith(("eval_displacement", "eval_loss/sft")) for name in metrics)


def test_what_does_not_go_with_responses_alone_is_refused(tmp_path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"^train_dataset: expected pairs, which RPO compares, got responses alone"
    ):
        trainer(tmp_path, singles(2), objective=OBJECTIVE)
    for setting, value in (("displacement_threshold", 0.5), ("gradient_diagnostics_steps", 1)):
        with pytest.raises(InvalidArgument, match=rf"^{setting}: expected none with responses alone"):
            trainer(tmp_path, singles(2), objective=rpo.KTO(), **{setting: value})
    with pytest.raises(InvalidArgument, match=r"^train_dataset: expected scores, which ODPO reads, got none"):
        trainer(tmp_path, tiny_pairs(2), objective=rpo.ODPO())
    stream = rpo.llm.data.stream_pairs([{"prompt_ids": [1], "completion_ids": [2], "label": 1}], None, unpaired=True)
    with pytest.raises(InvalidArgument, match=r"^train_dataset: expected data that are not streamed with KTO"):
        trainer(tmp_path, stream, objective=rpo.KTO(), precompute_ref_log_probs=False)
