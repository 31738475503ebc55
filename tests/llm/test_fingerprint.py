"""A fingerprint says whether two models compute the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.llm.reference import AsGiven, DisabledAdapter, fingerprint, resolve_reference
from rpo.llm.reference.fingerprint import weights_fingerprint

# peft asks transformers >= 5.18 for a property under its old name when a model is wrapped.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def lora(model: Any, *, seed: int = 0, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{"target_modules": ["q_proj"], **options}))


def test_the_same_weights_have_the_same_fingerprint_wherever_they_come_from(tiny_model: Any, tmp_path: Path) -> None:
    """A second construction, a file, a copy in another memory layout, another piece size."""
    model = tiny_model("llama")
    expected = weights_fingerprint(model)
    assert len(expected) == 32
    assert weights_fingerprint(tiny_model("llama")) == expected
    model.save_pretrained(tmp_path)
    assert weights_fingerprint(type(model).from_pretrained(tmp_path)) == expected
    weight = model.lm_head.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous() and weights_fingerprint(model) == expected


def test_long_tensors_are_cut_into_pieces_and_every_piece_counts(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 64 bytes a piece (16 numbers), a change in any place of a weight changes the fingerprint."""
    monkeypatch.setattr(fingerprint, "PIECE_BYTES", 64)
    model = tiny_model("gpt2")
    seen = {weights_fingerprint(model)}
    weight = model.transformer.h[0].mlp.c_fc.weight.data.view(-1)
    for place in (0, 15, 16, 17, len(weight) - 1):
        weight[place] += 1.0
        seen.add(weights_fingerprint(model))
        weight[place] -= 1.0
    assert len(seen) == 6


def test_whatever_changes_the_numbers_changes_it(tiny_model: Any) -> None:
    model = tiny_model("gemma2")
    variants = [model, tiny_model("gemma2", seed=1), tiny_model("gemma2", dtype=torch.bfloat16)]
    variants += [tiny_model("gemma2", final_logit_softcapping=6.0), tiny_model("gemma2", rms_norm_eps=1e-3)]
    bit = copy.deepcopy(model)
    bit.model.norm.weight.data.view(torch.int32)[0] ^= 1
    buffer = copy.deepcopy(model)
    buffer.register_buffer("extra", torch.zeros(1))
    variants += [bit, buffer]
    for zeros in (torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1)):  # the same bytes, another meaning
        variants.append(copy.deepcopy(buffer))
        variants[-1].register_buffer("extra", zeros)
    assert len({weights_fingerprint(variant) for variant in variants}) == len(variants)


def test_what_changes_no_number_does_not(tiny_model: Any) -> None:
    model = tiny_model("llama")
    expected = weights_fingerprint(model)
    model.config.use_cache, model.config.pad_token_id, model.config._name_or_path = False, 5, "elsewhere"
    model.requires_grad_(False)
    assert weights_fingerprint(model.train()) == expected


def test_base_and_adapter_are_told_apart(tiny_model: Any) -> None:
    """Runs on one base share its fingerprint, with or without peft; an adapter adds its own, scaling included."""
    model = tiny_model("llama")
    base = weights_fingerprint(model)
    policy = lora(model, modules_to_save=["lm_head"])
    assert DisabledAdapter(policy).fingerprint() == base
    assert AsGiven(policy).fingerprint() == AsGiven(lora(model, seed=1)).fingerprint() == base
    stem, _, own = weights_fingerprint(policy).partition("+")
    assert stem == base and len(own) == 32
    assert weights_fingerprint(lora(model, seed=1, modules_to_save=["lm_head"])).partition("+")[2] != own
    assert weights_fingerprint(lora(model, modules_to_save=["lm_head"], lora_alpha=16)).partition("+")[2] != own
    same = lora(model, modules_to_save=["lm_head"], lora_dropout=0.5)  # off in evaluation
    assert weights_fingerprint(same).partition("+")[2] == own


def test_an_adapter_keeps_its_fingerprint_under_another_name(tiny_model: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    policy = lora(tiny_model("llama"), init_lora_weights=False)
    expected = weights_fingerprint(policy)
    assert resolve_reference(policy).fingerprint() == AsGiven(policy).fingerprint() == expected
    policy.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path, adapter_name="sft")
    assert weights_fingerprint(reloaded) == expected


def test_weights_that_are_not_there_are_refused(tiny_model: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected weights in memory, got lm_head.weight without values"):
        weights_fingerprint(tiny_model("llama").to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_does_not_matter(tiny_model: Any) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert weights_fingerprint(copy.deepcopy(model).cuda()) == weights_fingerprint(model)
