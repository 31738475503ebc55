"""Rows laid out by hand, what responses may not know of each other, and which models get which path."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from models_for_tests import COMMON, EOS, FAMILIES, PAD
from test_parity import PAIRS, Float64, gradient_error, gradients, logp_error, naive_logps, score

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.attention import ROUTED, Segments
from rpo.llm.logps.packing import PackedPath, SharedPrefixPath, choose_path, misfit
from rpo.llm.logps.scoring import PATHS, PaddedPath, PromptGroup, ScoringPath
from rpo.llm.reference import resolve_reference

PATHS_HERE = {"packed": PackedPath, "shared": SharedPrefixPath}
every_path = pytest.mark.parametrize("kind", PATHS_HERE.values(), ids=PATHS_HERE)
GROUPS = [PromptGroup([5, 6], ([7], [8, 9, 10])), PromptGroup([11], ([12, 13], [14]))]
# peft still reads a property that transformers renamed
DEPRECATED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def test_the_packed_row_by_hand() -> None:
    """5 6 | 5 6 8 9 | 11 12 | 11: the last tokens 7, 10, 13 and 14 are predicted, never fed."""
    inputs = PackedPath().collate(GROUPS)
    assert inputs["input_ids"].tolist() == [[5, 6, 5, 6, 8, 9, 11, 12, 11]]
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 0]]
    assert inputs["segment_lengths"].tolist() == [2, 4, 2, 1]
    assert inputs["segment_prefixes"].tolist() == [-1, -1, -1, -1]
    assert inputs["predicting"].tolist() == [1, 3, 4, 5, 6, 7, 8]
    assert inputs["targets"].tolist() == [7, 8, 9, 10, 12, 13, 14]
    assert inputs["lengths"].tolist() == [[1, 3], [2, 1]]


def test_the_shared_row_by_hand() -> None:
    """5 6 | 8 9 | 11 | 12: a response of one token is predicted by its prompt and has no segment."""
    inputs = SharedPrefixPath().collate(GROUPS)
    assert inputs["input_ids"].tolist() == [[5, 6, 8, 9, 11, 12]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert inputs["segment_lengths"].tolist() == [2, 2, 1, 1]
    assert inputs["segment_prefixes"].tolist() == [-1, 0, -1, 2]
    assert inputs["predicting"].tolist() == [1, 1, 2, 3, 4, 5, 4]
    assert inputs["targets"].tolist() == [7, 8, 9, 10, 12, 13, 14]
    assert inputs["lengths"].tolist() == [[1, 3], [2, 1]]


@every_path
def test_fed_tokens_are_the_row(kind) -> None:
    path = kind()
    assert sum(map(path.fed_tokens, PAIRS)) == path.collate(PAIRS)["input_ids"].shape[1]
    assert isinstance(path, ScoringPath)
    assert PATHS[kind.name] is kind


@every_path
def test_batches_that_cannot_be_scored_are_refused(kind) -> None:
    with pytest.raises(InvalidArgument, match=r"groups\[0\].responses\[1\]: expected at least one token"):
        kind().collate([PromptGroup([1], [[2], []])])


# --- what responses know of each other -----------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
@every_path
def test_a_response_does_not_know_of_the_others(tiny_model, kind, family) -> None:
    """Another rejected response, longer too, leaves the chosen one's log-probability and gradient, float64 to 1e-12.

    The control is another first token of the prompt.
    """
    model, path = tiny_model(family, dtype=torch.float64), kind()
    (prompt, (chosen, rejected), _), *rest = PAIRS

    def results(prompt: Any, rejected: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with Float64():
            logp = score(path, model, [PromptGroup(prompt, (chosen, rejected)), *rest])[0, 0]
            return logp.detach(), gradients(logp, model)

    logp, gradient = results(prompt, rejected)
    for other in ([*rejected[:-1], 9], [9, 9, *rejected], [9]):
        other_logp, other_gradient = results(prompt, other)
        assert logp_error(other_logp, logp) < 1e-12
        assert gradient_error(other_gradient, gradient) < 1e-12
    assert logp_error(results([9, *prompt[1:]], rejected)[0], logp) > 1e-3


@pytest.mark.parametrize("m", [1, 3, 5])
@every_path
def test_any_number_of_responses_to_a_prompt(tiny_model, kind, m) -> None:
    """Against one sequence at a time, in float64 to 1e-10; lengths 1 to 5 after prompts of 1 to 4 tokens."""
    groups = [PromptGroup(range(10, 11 + p), [range(20 + k, 21 + 2 * k) for k in range(m)]) for p in range(4)]
    model = tiny_model("qwen2", dtype=torch.float64)
    with Float64():
        logps = score(kind(), model, groups)
        assert logps.shape == (4, m)
        assert logp_error(logps, naive_logps(model, groups)) < 1e-10


@pytest.mark.parametrize("reentrant", [True, False])
@every_path
def test_gradient_checkpointing_recomputes_by_segments(tiny_model, kind, reentrant) -> None:
    """The same gradient; layers run again in the backward pass, after the call, so their attention stays routed.

    The control takes the route away between the two: another gradient, or none at all.
    """
    path, plain, model = kind(), tiny_model("llama"), tiny_model("llama").train()
    expected = gradients(score(path, plain).sum(), plain)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()

    def gradient() -> dict[str, torch.Tensor]:
        return {name: parameter.grad.double() for name, parameter in model.named_parameters()}

    score(path, model).sum().backward()
    assert gradient_error(gradient(), expected) < 1e-6
    model.zero_grad()
    logps = score(path, model).sum()
    model.config._attn_implementation = model.config._attn_implementation.removeprefix(ROUTED)
    try:
        logps.backward()
    except (RuntimeError, TypeError):
        return
    assert gradient_error(gradient(), expected) > 1e-3


@pytest.mark.filterwarnings(DEPRECATED)
@every_path
def test_wrapped_models_score_as_the_model_itself(tiny_model, tmp_path, kind) -> None:
    """DDP adds nothing, and a fresh adapter zero: the same bits; as does a copy of a model already routed."""
    peft = pytest.importorskip("peft")
    model, path = tiny_model("llama"), kind()
    plain = score(path, model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert torch.equal(score(path, torch.nn.parallel.DistributedDataParallel(model)), plain)
    finally:
        torch.distributed.destroy_process_group()
    reference = resolve_reference(model, None)
    assert torch.equal(reference.logps(path, path.collate(PAIRS)), plain)
    with torch.random.fork_rng(devices=[]):
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    assert misfit(path, adapted) is None
    assert torch.equal(score(path, adapted), plain)


# --- which path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_path_fits_every_family_here(tiny_model, caplog, family) -> None:
    """And the choice leaves weights, flags and random numbers alone."""
    model = tiny_model(family).train()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    caplog.clear()  # what transformers had to say while it was made
    with caplog.at_level(logging.WARNING):
        assert type(choose_path(model, PAD)) is SharedPrefixPath
        assert type(choose_path(model, PAD, "packed")) is PackedPath
        assert type(choose_path(model, PAD, "padded")) is PaddedPath
    assert not caplog.records
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rounding_is_no_misfit(tiny_model, dtype) -> None:
    assert misfit(SharedPrefixPath(), tiny_model("llama", dtype=dtype)) is None


def build(family: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(COMMON | fields))).to(dtype).eval()


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "gptj": ({"rotary_dim": 4, "n_embd": 32, "n_layer": 2, "n_head": 4}, "does not go through transformers'"),
    "bloom": ({}, "does not go through transformers'"),  # ALiBi
    "mamba": ({}, "does not go through transformers'"),
    "llama4_text": ({"num_local_experts": 2, "attention_chunk_size": 5, "head_dim": 8}, r"kind \(chunked_attention\)"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of rare models
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", MISFITS)
def test_a_misfit_is_padded_with_one_message(caplog, family, dtype) -> None:
    """Its attention is left as it was."""
    fields, why = MISFITS[family]
    model = build(family, dtype, **fields)
    with caplog.at_level(logging.WARNING, logger="rpo.llm.logps.packing"):
        assert type(choose_path(model, PAD)) is PaddedPath
    (record,) = (record for record in caplog.records if record.name == "rpo.llm.logps.packing")
    assert re.search(f"is scored with padding instead of path 'auto': .*{why}", record.getMessage())
    assert not model.config._attn_implementation.startswith(ROUTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_attends_otherwise_is_a_misfit(tiny_model, monkeypatch, dtype, layer) -> None:
    """One layer's output off by a part of itself, as where something is left out; judged a token, in 16 bits too.

    The control is the model as it is.
    """
    model = tiny_model("llama", dtype=dtype, initializer_range=0.15)
    assert misfit(SharedPrefixPath(), model) is None
    attend, calls = Segments.attend, []

    def partly(self: Segments, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return attend(self, *args, **kwargs) * (0.6 if (len(calls) - 1) % 2 == layer else 1.0)

    monkeypatch.setattr(Segments, "attend", partly)
    assert re.search("differ by .* nats a token", str(misfit(SharedPrefixPath(), model)))


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_kernel_that_fails_is_replaced_before_anything_is_padded(caplog, tiny_model, monkeypatch) -> None:
    """As a compiler that has no kernel for a model: sequence by sequence, with its error in one message."""
    attend = Segments.attend

    def fails(self: Segments, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.kernel != "segment":
            raise RuntimeError("LoweringException: NoValidChoicesError")
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(Segments, "attend", fails)
    model = tiny_model("llama")
    path = choose_path(model, PAD)
    assert type(path) is SharedPrefixPath and path.kernel == "segment"
    assert re.search("sequence by sequence, since .*NoValidChoicesError", caplog.text)
    logps = [each.logps(model, each.collate(GROUPS)) for each in (path, PaddedPath(PAD))]
    torch.testing.assert_close(*logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_kernels_are_tried_in_what_training_computes_in(tiny_model, monkeypatch, dtype) -> None:
    seen: set[torch.dtype] = set()
    attend = Segments.by_segment

    def noted(self: Segments, query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.add(query.dtype)
        return attend(self, query, *args, **kwargs)

    monkeypatch.setattr(Segments, "by_segment", noted)
    assert type(choose_path(tiny_model("llama"), PAD, autocast_dtype=dtype)) is SharedPrefixPath
    assert seen == {dtype or torch.float32}


def test_virtual_tokens_before_a_row_are_a_misfit(tiny_model) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with torch.random.fork_rng(devices=[]):
        tuned = peft.get_peft_model(tiny_model("llama"), config)
    assert "its adapter puts tokens of its own before every row" in str(misfit(SharedPrefixPath(), tuned))


def test_layers_that_are_not_told_their_window_are_a_misfit(tiny_model) -> None:
    """A window that the test's short sequences do not reach is seen in what the layers' attention is told."""
    model = tiny_model("mistral", sliding_window=4096)
    assert misfit(SharedPrefixPath(), model) is None
    for layer in model.model.layers:
        layer.self_attn.config = layer.self_attn.config.__class__.from_dict(model.config.to_dict())
        layer.self_attn.config.sliding_window = None
        layer.self_attn.config._attn_implementation = ROUTED + "sdpa"
    assert "attend over windows [None, None]" in str(misfit(SharedPrefixPath(), model))


def test_a_sharded_model_is_taken_by_its_configuration(tiny_model) -> None:
    """Parameters without data, as before a sharded load: nothing runs."""
    with torch.device("meta"):
        model = build("llama")
    assert misfit(SharedPrefixPath(), model) is None


def test_another_name_is_refused(tiny_model) -> None:
    with pytest.raises(InvalidArgument, match="path: expected one of 'auto', 'padded', 'packed', 'shared'"):
        choose_path(tiny_model("llama"), PAD, "flat")


def test_no_model_of_transformers_is_padded() -> None:
    assert type(choose_path(torch.nn.Linear(2, 2), EOS)) is PaddedPath
