"""The reference policy: the right weights, and a policy left as it was found."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rpo.core.errors import InvalidArgument
from rpo.llm.logps.packing import SharedPrefixPath
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.models import check_embeddings, load_model
from rpo.llm.reference import (
    AsGiven,
    DisabledAdapter,
    FrozenModel,
    NamedAdapter,
    Reference,
    is_peft_model,
    resolve_reference,
)

peft = pytest.importorskip("peft")

# transformers >= 5.18 deprecates the names that peft, and these tests for the sake of 5.17, call it by.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning")

ALPHA, RANK = 8, 2
GROUPS = [PromptGroup([7, 8, 9], [[10, 11, 1], [12, 1]]), PromptGroup([20], [[21, 22, 23, 24, 1], [25]])]
PATH = PaddedPath(0)
INPUTS = PATH.collate(GROUPS)


def lora(model: Any, **options: Any) -> Any:
    """Return the model under a fresh LoRA on its query and value projections (B = 0: it changes nothing)."""
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(model, peft.LoraConfig(**{**config, **options}))


def after_sft(model: Any, adapter: str = "default", *, seed: int = 2) -> Any:
    """Give the adapter's B, and whatever else of it is trained, random values, as training would."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}" in name and "lora_A" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=random).to(parameter) * 0.2)
    return model


def merged(plain: Any, adapted: Any, adapter: str = "default") -> Any:
    """Return `plain` with W + (alpha / r) B A of the adapter written into its weights by hand."""
    model, weights = copy.deepcopy(plain), dict(adapted.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            a = weights.get(f"base_model.model.{name}".replace(".weight", f".lora_A.{adapter}.weight"))
            if a is not None:
                b = weights[f"base_model.model.{name}".replace(".weight", f".lora_B.{adapter}.weight")]
                weight += ALPHA / RANK * b @ a
    return model


def naive(model: Any) -> torch.Tensor:
    """Return the log-probabilities of GROUPS in float64: one sequence at a time, token by token."""
    model = copy.deepcopy(model).double().eval()

    def logp(prompt: list[int], response: list[int]) -> float:
        total = 0.0
        with torch.no_grad():
            for k, token in enumerate(response):
                logits = model(input_ids=torch.tensor([[*prompt, *response[:k]]])).logits[0, -1]
                total += float(logits[token] - logits.logsumexp(0))
        return total

    return torch.tensor([[logp(prompt, r) for r in responses] for prompt, responses, _ in GROUPS], dtype=torch.float64)


def policy_logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return PATH.logps(copy.deepcopy(model).eval(), INPUTS)


@pytest.fixture
def plain(tiny_model: Any) -> Any:
    return tiny_model("llama", dtype=torch.float64)


# --- the right numbers -------------------------------------------------------------------------


def test_every_kind_computes_what_its_weights_say(plain: Any) -> None:
    """Expected by hand: the plain model's weights, with (alpha/r) B A added where an adapter speaks.

    The control: the two differ by far more than the tolerance, so none of them can pass as another.
    """
    adapted = after_sft(lora(copy.deepcopy(plain)))
    adapted.add_adapter("other", adapted.peft_config["default"])
    after_sft(adapted, "other", seed=3)
    base, default, other = naive(plain), naive(merged(plain, adapted)), naive(merged(plain, adapted, "other"))
    found = {
        "frozen": (FrozenModel(copy.deepcopy(plain)).logps(PATH, INPUTS), base),
        "disabled": (DisabledAdapter(adapted).logps(PATH, INPUTS), base),
        "named": (NamedAdapter(adapted, "other").logps(PATH, INPUTS), other),
        "as given": (AsGiven(adapted).logps(PATH, INPUTS), default),
    }
    for kind, (logps, expected) in found.items():
        assert not logps.requires_grad, kind
        torch.testing.assert_close(logps, expected, rtol=1e-10, atol=1e-10, msg=kind)
    assert (base - default).abs().min() > 1e-2 and (other - default).abs().min() > 1e-2


@pytest.mark.parametrize(
    ("options", "trained", "kind"),
    [
        ({}, False, DisabledAdapter),
        ({}, True, NamedAdapter),
        ({"init_lora_weights": False}, False, NamedAdapter),
        ({"init_lora_weights": "pissa"}, False, NamedAdapter),
        ({"use_rslora": True}, True, NamedAdapter),
        ({"use_dora": True}, False, NamedAdapter),
        ({"modules_to_save": ["lm_head"]}, False, DisabledAdapter),
        ({"modules_to_save": ["lm_head"]}, True, NamedAdapter),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False, DisabledAdapter),
        ({"target_modules": ["q_proj", "embed_tokens"]}, True, NamedAdapter),
        ({"layer_replication": [(0, 2), (1, 2)]}, True, NamedAdapter),
        ({"trainable_token_indices": [3, 4]}, False, FrozenModel),
    ],
)
def test_the_reference_is_the_policy_as_given(
    plain: Any, options: dict[str, Any], trained: bool, kind: type[Reference]
) -> None:
    """Whatever was given; and it stays so when the policy moves, which the last line shows it did."""
    policy = lora(plain.float(), **options).double()  # PiSSA is computed in float32
    if trained:
        after_sft(policy)
    start, weights = policy_logps(policy), {name: t.clone() for name, t in policy.state_dict().items()}
    reference = resolve_reference(policy)
    assert type(reference) is kind
    state = policy.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    torch.testing.assert_close(reference.logps(PATH, INPUTS), start, rtol=0, atol=1e-12)
    after_sft(policy, seed=5)
    torch.testing.assert_close(reference.logps(PATH, INPUTS), start, rtol=0, atol=1e-12)
    assert (policy_logps(policy) - start).abs().max() > 1e-2


def test_without_peft_a_copy_stands_for_the_policy(plain: Any) -> None:
    start, reference = naive(plain), resolve_reference(plain)
    assert isinstance(reference, FrozenModel) and reference.model is not plain
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(reference.logps(PATH, INPUTS), start, rtol=1e-10, atol=1e-10)


def test_where_the_base_is_trained_too_disabling_the_adapter_would_not_do(plain: Any) -> None:
    """LoRA with trained biases, or a norm unfrozen by hand: the base moves, so the whole policy is copied."""
    policy = lora(plain)
    policy.get_base_model().model.norm.weight.requires_grad_(True)
    reference, start = resolve_reference(policy), policy_logps(policy)
    assert isinstance(reference, FrozenModel)
    with torch.no_grad():
        policy.get_base_model().model.norm.weight.mul_(2.0)
    torch.testing.assert_close(reference.logps(PATH, INPUTS), start, rtol=0, atol=1e-12)
    assert (DisabledAdapter(policy).logps(PATH, INPUTS) - start).abs().max() > 1e-2  # the control


def test_a_folder_is_loaded_in_the_policy_s_type(plain: Any, tiny_model: Any, tmp_path: Path) -> None:
    other = tiny_model("llama", seed=4)
    other.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    reference = resolve_reference(plain, str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert reference.model.dtype == torch.float64
    torch.testing.assert_close(reference.logps(PATH, INPUTS), naive(other), rtol=1e-10, atol=1e-10)


def test_half_precision_is_kept_by_the_copy(tiny_model: Any) -> None:
    """A copy in another type would compute other numbers: here they are equal bit for bit."""
    policy = after_sft(lora(tiny_model("llama", dtype=torch.bfloat16)))
    for autocast in (True, False):
        fresh = copy.deepcopy(policy)
        if not autocast:
            fresh = fresh.to(torch.bfloat16)
        start = policy_logps(fresh)
        assert torch.equal(resolve_reference(fresh).logps(PATH, INPUTS), start)


# --- nothing of the policy's is touched ---------------------------------------------------------


def references(plain: Any) -> list[Reference]:
    adapted = after_sft(lora(copy.deepcopy(plain), lora_dropout=0.5))
    return [
        resolve_reference(plain),
        AsGiven(plain),
        resolve_reference(adapted),
        DisabledAdapter(after_sft(lora(plain, lora_dropout=0.5))),
    ]


def flags(model: Any) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        list(model.active_adapters) if is_peft_model(model) else None,
        model.active_adapter if is_peft_model(model) else None,
    )


def test_modes_flags_and_adapter_come_back_also_after_an_error(plain: Any) -> None:
    class Breaks(PaddedPath):
        def logps(self, model: Any, inputs: Any) -> torch.Tensor:
            assert not any(module.training for module in model.modules())
            raise RuntimeError("in the middle")

    for reference in references(plain):
        model = reference.model.train()
        if is_peft_model(model):  # some modules in another mode, and a weight that the user froze
            model.get_base_model().lm_head.eval()
            next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
        before = flags(model)
        reference.logps(PATH, INPUTS)
        assert flags(model) == before
        with pytest.raises(RuntimeError, match="in the middle"):
            reference.logps(Breaks(0), INPUTS)
        assert flags(model) == before


def test_peft_alone_would_make_a_frozen_weight_trainable(plain: Any) -> None:
    """The control of the test above."""
    policy = lora(plain)
    next(p for p in policy.parameters() if p.requires_grad).requires_grad_(False)
    before = flags(policy)
    with policy.disable_adapter():
        pass
    assert flags(policy) != before


def test_neither_making_nor_asking_moves_the_global_generator(plain: Any) -> None:
    before = torch.get_rng_state()
    for reference in references(plain):
        reference.model.train()
        first = reference.logps(PATH, INPUTS)
        assert torch.equal(reference.logps(PATH, INPUTS), first)  # no dropout
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_and_a_new_adapter_would_move_it(plain: Any) -> None:
    """The control of the test above."""
    policy = after_sft(lora(plain, lora_dropout=0.5)).train()
    before = torch.get_rng_state()
    PATH.logps(policy, INPUTS)
    moved = torch.get_rng_state()
    assert not torch.equal(moved, before)
    policy.add_adapter("second", policy.peft_config["default"])
    assert not torch.equal(torch.get_rng_state(), moved)


@pytest.mark.parametrize("trained", [False, True])
def test_asked_between_forward_and_backward_the_gradients_are_the_same(plain: Any, trained: bool) -> None:
    """With gradient checkpointing, whose second forward pass runs when the reference has been asked."""
    policy = lora(plain)
    if trained:
        after_sft(policy)
    reference = resolve_reference(policy)
    policy.train()
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    found = []
    for asked in (False, True):
        loss = PATH.logps(policy, INPUTS).sum()
        if asked:
            reference.logps(PATH, INPUTS)
        loss.backward()
        found.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        policy.zero_grad()
    assert found[0].keys() == found[1].keys() and len(found[0]) == 8
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(bool(gradient.any()) for gradient in found[0].values())


def test_the_copied_adapter_is_frozen_and_saved_only_if_not_hidden(plain: Any, tmp_path: Path) -> None:
    policy = after_sft(lora(copy.deepcopy(plain)))
    names, start = set(policy.state_dict()), policy_logps(policy)
    reference = resolve_reference(policy)
    assert reference.describe()["adapter"] == "reference"
    assert not any(p.requires_grad for name, p in policy.named_parameters() if ".reference." in name)
    with reference.hidden():
        policy.save_pretrained(tmp_path / "hidden")
    policy.save_pretrained(tmp_path / "shown")
    assert not (tmp_path / "hidden" / "reference").exists()
    assert not [name for name in load_file(tmp_path / "hidden" / "adapter_model.safetensors") if "reference" in name]
    assert len(load_file(tmp_path / "hidden" / "adapter_model.safetensors")) == 8
    assert (tmp_path / "shown" / "reference").is_dir()  # the control
    reloaded = peft.PeftModel.from_pretrained(plain, tmp_path / "hidden")
    torch.testing.assert_close(policy_logps(reloaded), start, rtol=0, atol=1e-12)
    before = {name: p.requires_grad for name, p in policy.named_parameters() if ".reference." not in name}
    reference.release()
    assert set(policy.state_dict()) == names and list(policy.peft_config) == ["default"]
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == before
    torch.testing.assert_close(policy_logps(policy), start, rtol=0, atol=0)


def test_an_adapter_of_the_user_s_is_used_frozen_and_kept(plain: Any) -> None:
    policy = lora(plain)
    policy.add_adapter("sft", policy.peft_config["default"])
    reference = resolve_reference(policy, ref_adapter_name="sft")
    policy.set_adapter("sft")
    assert reference.model is policy
    policy.set_adapter("default")
    reference.release()
    assert set(policy.peft_config) == {"default", "sft"}


# --- refusals ----------------------------------------------------------------------------------


def test_a_reference_that_would_train_along_is_refused(plain: Any) -> None:
    with pytest.raises(InvalidArgument, match="ref_model: expected a model with weights of its own"):
        resolve_reference(plain, plain)
    policy = lora(plain)  # peft puts its layers into `plain` itself
    with pytest.raises(InvalidArgument, match="would be trained with it. Leave ref_model out"):
        resolve_reference(policy, plain)


def test_wrong_references_are_refused(plain: Any, tiny_model: Any) -> None:
    policy = lora(copy.deepcopy(plain))
    with pytest.raises(InvalidArgument, match="ref_model: expected a vocabulary of 64, as the policy's, got 60"):
        resolve_reference(plain, tiny_model("llama", vocab_size=60))
    with pytest.raises(InvalidArgument, match="ref_model: expected a model, a name or a folder, got int"):
        resolve_reference(plain, 3)
    with pytest.raises(InvalidArgument, match="ref_model: expected None beside ref_adapter_name"):
        resolve_reference(policy, plain, ref_adapter_name="default")
    with pytest.raises(InvalidArgument, match="model: expected a peft model, got LlamaForCausalLM"):
        resolve_reference(plain, ref_adapter_name="default")
    for name in ("default", "absent"):
        with pytest.raises(InvalidArgument, match=f"that is not the one being trained, got '{name}'"):
            resolve_reference(policy, ref_adapter_name=name)
    policy.add_adapter("reference", policy.peft_config["default"])
    with pytest.raises(InvalidArgument, match="Pass ref_adapter_name='reference' to use that adapter"):
        resolve_reference(after_sft(policy))


# --- accelerate --------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [False, True])
def test_prepared_it_computes_under_the_policy_s_autocast(tiny_model: Any, adapted: bool) -> None:
    """Bit for bit the policy's numbers in bf16 before the first update; unprepared, a copy misses them (control)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    policy = after_sft(lora(tiny_model("llama"))) if adapted else tiny_model("llama")
    reference = resolve_reference(policy)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's trainer may have made one
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        prepared = accelerator.prepare_model(policy)
        unprepared = reference.logps(PATH, INPUTS)
        reference.prepare(accelerator)
        with torch.no_grad():
            expected = PATH.logps(prepared, INPUTS)
        assert torch.equal(reference.logps(PATH, INPUTS), expected)
        assert torch.equal(unprepared, expected) == adapted  # an adapter is inside the prepared policy
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_under_zero_3_a_separate_model_is_refused(plain: Any) -> None:
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))
    with pytest.raises(InvalidArgument, match="Set precompute_ref_log_probs=True, or train an adapter"):
        FrozenModel(plain).prepare(accelerator)


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "single tokens": {"trainable_token_indices": [7, 8, 20, 25]},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft on tied embeddings
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapters_of_embeddings_and_heads(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, kind: str, tied: bool):
    """Scored, kept as reference, saved and loaded to 1e-10: every path against one sequence at a time in float64.

    The control is the base, whose log-probabilities are others.
    """
    base = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    start = naive(base)
    policy = lora(base, **EMBEDDINGS[kind])
    policy.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    torch.testing.assert_close(naive(policy), start, rtol=0, atol=1e-10)
    check_embeddings(policy, tiny_tokenizer())
    with torch.no_grad():
        random = torch.Generator().manual_seed(3)
        for value in policy.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=random).to(value)
    expected = naive(policy)
    assert (expected - start).abs().max() > 1e-2
    for path in (PATH, SharedPrefixPath()):
        assert path.logps(policy, path.collate(GROUPS)).sub(expected).abs().max() < 1e-5  # float32 in the rotations
    reference = resolve_reference(policy)
    with reference.active() as model:
        torch.testing.assert_close(naive(model), expected, rtol=0, atol=1e-10)
    with reference.hidden():
        policy.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(naive(load_model(tmp_path / "adapter")), expected, rtol=0, atol=1e-10)
