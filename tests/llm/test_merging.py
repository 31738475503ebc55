"""Weights averaged: identities of distributions where models differ in the head alone, sums by hand, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import tiny_model, tiny_tokenizer

from rpo.bandit.diagnostics import bhattacharyya, geometric_mean
from rpo.core.errors import InvalidArgument
from rpo.llm.models import average_models, block_ratios, load_model

IDS = torch.tensor([[7, 9, 11, 13]])


def saved(folder: Path, name: str, model: Any, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder / name)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder / name)
    return folder / name


def distributions(model: Any) -> Any:
    """Next-token distributions after each of the tokens, (4, V), float64."""
    with torch.no_grad():
        found = model.double()(input_ids=IDS).logits[0].softmax(-1).numpy()
    return found / found.sum(-1, keepdims=True)


@pytest.fixture
def heads(tmp_path: Path) -> list[Path]:
    """Two models that differ in the head alone."""
    first, second = tiny_model("llama", seed=0), tiny_model("llama", seed=0)
    with torch.no_grad():
        second.lm_head.weight.copy_(tiny_model("llama", seed=1).lm_head.weight)
    return [saved(tmp_path, name, model) for name, model in (("one", first), ("two", second))]


def test_two_heads_averaged_are_nearer_to_any_policy_by_their_bhattacharyya_distance(
    heads: list[Path], tmp_path: Path
) -> None:
    """SALSA's identity: KL(p || soup) = the mean of KL(p || s_i) less -log sum sqrt(s_1 s_2). Control: whole models."""
    average_models(heads, tmp_path / "soup")
    soup, *ones = (distributions(load_model(folder)) for folder in (tmp_path / "soup", *heads))
    assert soup == pytest.approx(geometric_mean(ones), abs=1e-6)
    p = np.random.default_rng(0).dirichlet(np.ones(soup.shape[1]), size=len(soup))

    def kl(q: Any) -> Any:
        return (p * np.log(p / q)).sum(-1)

    apart = bhattacharyya(*ones)
    assert kl(soup) - (kl(ones[0]) + kl(ones[1])) / 2 == pytest.approx(-apart, abs=1e-5)
    assert apart.min() > 0.05
    whole = [saved(tmp_path, f"whole{seed}", tiny_model("llama", seed=seed)) for seed in (0, 1)]
    average_models(whole, tmp_path / "mixed")
    mixed, *ones = (distributions(load_model(folder)) for folder in (tmp_path / "mixed", *whole))
    assert np.abs(mixed - geometric_mean(ones)).max() > 0.01


def test_averaging_with_the_reference_undoes_training_in_part(heads: list[Path], tmp_path: Path) -> None:
    """Of logits that differ by r / beta, weights 1 - a and a give those of beta / a; a = 2 goes as far again."""
    start, end = (distributions(load_model(folder)) for folder in heads)
    for a in (0.25, 2.0):
        average_models(heads, tmp_path / f"at{a}", weights=[1 - a, a])
        tempered = start * (end / start) ** a
        tempered /= tempered.sum(-1, keepdims=True)
        assert distributions(load_model(tmp_path / f"at{a}")) == pytest.approx(tempered, abs=1e-5)


def test_blocks_have_weights_of_their_own_and_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    models = [tiny_model("qwen2", seed=seed) for seed in (0, 1)]
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight
    folders = [saved(tmp_path, f"m{k}", model) for k, model in enumerate(models)]
    blocks = {"model.layers.0.": [0.9, 0.1], "model.layers.0.mlp.": [0.0, 1.0]}
    average_models(folders, tmp_path / "out", weights=[0.5, 0.5], blocks=blocks)
    found, (one, two) = load_model(tmp_path / "out").state_dict(), (model.state_dict() for model in models)
    for name, share in (
        ("model.embed_tokens.weight", 0.5),
        ("lm_head.weight", 0.5),
        ("model.layers.0.self_attn.q_proj.weight", 0.9),
        ("model.layers.0.mlp.up_proj.weight", 0.0),
        ("model.layers.1.mlp.up_proj.weight", 0.5),
    ):
        assert torch.allclose(found[name], share * one[name] + (1 - share) * two[name], atol=1e-7), name


def test_sixteen_bits_are_summed_in_thirty_two_and_rounded_once(tmp_path: Path) -> None:
    """Three models, exactly: a sum in bfloat16 differs. The difference that is returned is that of the rounding."""
    models = [tiny_model("llama", dtype=torch.bfloat16, seed=seed) for seed in range(3)]
    folders = [saved(tmp_path, f"m{k}", model) for k, model in enumerate(models)]
    rounding = average_models(folders, tmp_path / "out", weights=[0.5, 0.25, 0.25])
    name = "model.layers.1.mlp.up_proj.weight"
    found = load_model(tmp_path / "out").state_dict()[name]
    one, two, three = (model.state_dict()[name] for model in models)
    exact = 0.5 * one.float() + 0.25 * two.float() + 0.25 * three.float()
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    assert not torch.equal(found, 0.5 * one + 0.25 * two + 0.25 * three)
    assert 1e-4 < rounding < 1
    assert average_models(folders, tmp_path / "full", dtype="float32") == 0.0


def test_block_ratios_by_hand() -> None:
    """sigma(0) = 1/2 and sigma(log 3) = 3/4, each with .25 added: .75 and 1 about their mean .875."""
    found = block_ratios([0.0, np.log(3.0)], mean=0.35, floor=0.25)
    assert found == pytest.approx([0.3, 0.4])
    assert block_ratios([2.0, 2.0, 2.0]) == pytest.approx([0.2] * 3)


# peft reads a property that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_models_that_are_not_alike_are_refused_by_name(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = saved(tmp_path, "base", tiny_model("llama"))
    other = {
        "intermediate_size": saved(tmp_path, "wide", tiny_model("llama", intermediate_size=32)),
        "rope": saved(
            tmp_path, "rope", tiny_model("llama", rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
        ),
        "class": saved(tmp_path, "qwen", tiny_model("qwen2")),
        "another vocabulary": saved(tmp_path, "words", tiny_model("llama"), tiny_tokenizer(vocabulary=60)),
        "another type. Say which type to write": saved(tmp_path, "half", tiny_model("llama", dtype=torch.bfloat16)),
    }
    for match, folder in other.items():
        with pytest.raises(InvalidArgument, match=f"^models: expected models like the first.*{match}"):
            average_models([base, folder], tmp_path / "out")
    average_models([base, tmp_path / "half"], tmp_path / "named", dtype="float32")
    adapter = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    adapter.save_pretrained(tmp_path / "adapter")
    for match, ask in {
        "^models: expected two or more whole models, got 1": {"models": [base]},
        "^models: expected two or more whole models, got adapters": {"models": [base, tmp_path / "adapter"]},
        "^weights: expected a sum of one": {"weights": [0.5, 0.6]},
        r"^blocks\[model\.\]: expected shape": {"blocks": {"model.": [1.0]}},
        "^blocks: expected beginnings": {"blocks": {"layers.": [0.5, 0.5]}},
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            average_models(**{"models": [base, base], "output": tmp_path / "out", **ask})
    assert not (tmp_path / "out" / "config.json").exists()
