"""The padded path against layouts and log-probabilities worked out by hand; parity is in test_parity.py."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models_for_tests import PAD, VOCABULARY

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.head import takes_logits_to_keep
from rpo.llm.logps.scoring import PATHS, PaddedPath, PromptGroup, ScoringPath

GROUPS = [PromptGroup([1, 2], ([1], [2, 0])), PromptGroup([2], ([0, 1], [1]))]


class Bigram(torch.nn.Module):
    """P(next token | this token), of a table; it has no logits_to_keep."""

    def __init__(self, table: list[list[float]], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor(table, dtype=dtype).log())
        self.seen: dict[str, Any] = {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool, **more: Any) -> Any:
        self.seen = {"input_ids": input_ids, "use_cache": use_cache, **more}
        return SimpleNamespace(logits=self.scores[input_ids])


class KeepingBigram(Bigram):
    """The same, with logits only where they are asked for."""

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **more: Any) -> Any:  # type: ignore[override]
        out = super().forward(input_ids, logits_to_keep=logits_to_keep, **more)
        return SimpleNamespace(logits=out.logits[:, logits_to_keep])


TABLE = [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.25, 0.5, 0.25]]


def test_the_layout_of_a_batch() -> None:
    """Rows are response 0 and 1 of group 0, then of group 1; the longest has 4 tokens; padding is 0, a token too."""
    right = PaddedPath(0).collate(GROUPS)
    assert right["input_ids"].tolist() == [[1, 2, 1, 0], [1, 2, 2, 0], [2, 0, 1, 0], [2, 1, 0, 0]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert right["response_mask"].int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert right["lengths"].tolist() == [[1, 2], [2, 1]]
    assert right["response_mask"].dtype == torch.bool
    assert "position_ids" not in right
    left = PaddedPath(0, padding_side="left").collate(GROUPS)
    assert left["input_ids"].tolist() == [[0, 1, 2, 1], [1, 2, 2, 0], [0, 2, 0, 1], [0, 0, 2, 1]]
    assert left["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1]]
    assert left["response_mask"].int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert PaddedPath(0, pad_to_multiple_of=8).collate(GROUPS)["input_ids"].shape == (4, 8)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model", [Bigram(TABLE), KeepingBigram(TABLE)], ids=["all logits", "kept logits"])
def test_log_probabilities_by_hand(model: Bigram, side: str) -> None:
    """Group 0, after 2: P(1|2) = .5; P(2|2) P(0|2) = .25 * .25. Group 1, after 2: P(0|2) P(1|0) = .25 * .3; .5.

    The gradient of the first in the scores of state 2 is indicator - probabilities: (-.25, .5, -.25);
    states 0 and 1 get none, though both occur in the row.
    """
    path = PaddedPath(0, padding_side=side)
    inputs = path.collate(GROUPS)
    logps = path.logps(model, inputs)
    expected = torch.tensor([[0.5, 0.0625], [0.075, 0.5]], dtype=torch.float64).log()
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-15)
    (gradient,) = torch.autograd.grad(logps[0, 0], model.scores)
    torch.testing.assert_close(gradient[2], torch.tensor([-0.25, 0.5, -0.25], dtype=torch.float64))
    assert gradient[:2].abs().max() == 0.0
    assert model.seen["use_cache"] is False
    assert ("position_ids" in model.seen) is (side == "left")


def test_the_head_runs_only_where_a_response_token_is_predicted(tiny_model) -> None:
    """Prompts of 6 and 8 tokens, responses of 1 and 2: positions 5 to 8 of 10 predict one; padding needs none.

    These are 6 tokens in all: what the fused head returns, after one call in which the model is looked at.
    """
    model, shapes = tiny_model("llama"), []
    model.lm_head.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    for fused_head in (False, True):
        path = PaddedPath(PAD, pad_to_multiple_of=16, fused_head=fused_head)
        path.logps(model, path.collate([PromptGroup([7] * 6, [[8], [9, 1]]), PromptGroup([7] * 8, [[8], [9, 1]])]))
    assert shapes == [(4, 4, VOCABULARY), (1, 1, VOCABULARY), (1, 6, 1)]


@pytest.mark.parametrize(("given", "answered"), [("bfloat16", "float32"), ("float32", "float32"), ("float64",) * 2])
def test_sums_are_in_float32_at_least(given: str, answered: str) -> None:
    """300 tokens at ln(1/2): -207.94, which bfloat16, with spacing 1 there, can neither hold nor sum."""
    model, path = Bigram([[0.5, 0.5]] * 2, getattr(torch, given)), PaddedPath(0)
    logps = path.logps(model, path.collate([PromptGroup([1], [[0] * 300])]))
    assert logps.dtype == getattr(torch, answered)
    assert logps.item() == pytest.approx(300 * math.log(0.5), rel=1e-6)


def test_the_protocol_and_the_registry() -> None:
    assert PATHS["padded"] is PaddedPath
    assert isinstance(PaddedPath(0), ScoringPath)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "groups: expected at least one prompt"),
        ([PromptGroup([1], [])], "groups: expected at least one prompt"),
        ([GROUPS[0], PromptGroup([1], [])], "groups: expected at least one prompt, each with"),
        ([PromptGroup([], [[2]])], r"groups\[0\].prompt_ids: expected at least one token"),
        ([PromptGroup([1], [[2], []])], r"groups\[0\].responses\[1\]: expected at least one token"),
    ],
)
def test_batches_that_cannot_be_scored_are_refused(groups: list[PromptGroup], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        PaddedPath(0).collate(groups)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_token_id": None}, "Give the tokenizer a pad token"),
        ({"pad_token_id": 0, "padding_side": "both"}, "padding_side: expected one of 'right', 'left'"),
        ({"pad_token_id": 0, "pad_to_multiple_of": 0}, "pad_to_multiple_of: expected an integer >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        PaddedPath(**arguments)


# --- wrapped models ------------------------------------------------------------------------------

# peft still reads a property that transformers renamed
DEPRECATED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
BATCH = [PromptGroup([7, 8, 9], [[10, 1], [11, 12, 13, 1]]), PromptGroup([20, 21], [[22, 23, 1], [24, 1]])]


@pytest.mark.filterwarnings(DEPRECATED)
def test_distributed_and_lora_models_score_as_the_model_itself(tiny_model, tmp_path) -> None:
    """A fresh adapter adds zero and DDP nothing: the same bits, and the head still runs at chosen positions only."""
    peft = pytest.importorskip("peft")
    path, model = PaddedPath(PAD), tiny_model("llama")
    inputs = path.collate(BATCH)
    plain = path.logps(model, inputs)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed = torch.nn.parallel.DistributedDataParallel(model)
        assert takes_logits_to_keep(distributed)
        assert torch.equal(path.logps(distributed, inputs), plain)
    finally:
        torch.distributed.destroy_process_group()
    with torch.random.fork_rng(devices=[]):
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    assert takes_logits_to_keep(adapted)
    assert torch.equal(path.logps(adapted, inputs), plain)


@pytest.mark.filterwarnings(DEPRECATED)
def test_prompt_tuning_scores_the_response_and_not_its_virtual_tokens(tiny_model) -> None:
    """Three virtual tokens before each row shift the model's output; counted from its end, nothing moves.

    Expected: the virtual tokens' embeddings and the sequence's, one sequence at a time.
    """
    peft = pytest.importorskip("peft")
    model, path = tiny_model("llama"), PaddedPath(PAD)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with torch.random.fork_rng(devices=[]):
        tuned = peft.get_peft_model(model, config).eval()
    logps = path.logps(tuned, path.collate(BATCH))
    virtual = tuned.get_prompt(batch_size=1)[0]
    for g, (prompt, responses, _) in enumerate(BATCH):
        for k, response in enumerate(responses):
            embedded = model.get_input_embeddings()(torch.tensor([*prompt, *response]))
            scores = model(inputs_embeds=torch.cat([virtual, embedded])[None]).logits[0].double().log_softmax(-1)
            start = 3 + len(prompt)
            expected = sum(scores[start + i - 1, token].item() for i, token in enumerate(response))
            assert logps[g, k].item() == pytest.approx(expected, rel=1e-5)
