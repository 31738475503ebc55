"""The fused head against a naive one in float64, on real output layers, and by what it holds in memory."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest
import torch
from models_for_tests import COMMON, PAD
from torch.utils._python_dispatch import TorchDispatchMode

from rpo.llm.logps import head
from rpo.llm.logps.head import head_logps, plain_token_logps, token_logps_of
from rpo.llm.logps.scoring import PaddedPath, PromptGroup

K, D, V = 11, 6, 37
EPILOGUES = [{}, {"softcap": 3.0}, {"scale": 0.25}, {"scale": 2.0, "softcap": 5.0}]


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Return hidden, weight and bias with gradients, targets, and the gradient that comes in."""
    rng = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((K, D), (V, D), (V,), (K,))]
    targets = torch.randint(V, (K,), generator=rng)
    return *(tensor.to(dtype).requires_grad_() for tensor in made[:3]), targets, made[3]


def naive(hidden: Any, weight: Any, bias: Any, targets: Any, scale: float = 1.0, softcap: Any = None) -> torch.Tensor:
    logits = (hidden @ weight.T + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1)[range(K), targets]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.detach().double() - expected.detach()).norm() / expected.detach().norm())


# --- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, K, 1000], ids="{} rows a chunk".format)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)], ids=str)
def test_log_probabilities_and_gradients(monkeypatch, dtype, tolerance, epilogue, rows) -> None:
    """Chunks of any size, blocks of two rows in them. The control is the naive head without the epilogue."""
    monkeypatch.setitem(head.BLOCK_BYTES, "cpu", 2 * V * 4)
    *inputs, targets, incoming = tensors(dtype)
    logps = head_logps(*inputs, targets, **epilogue, chunk_bytes=rows * V * dtype.itemsize)
    *exact, _, _ = tensors()
    expected = naive(*exact, targets, **epilogue)
    assert logps.dtype == dtype
    assert relative(logps.detach(), expected) < tolerance
    ours = torch.autograd.grad(logps, inputs, incoming.to(dtype))
    theirs = torch.autograd.grad(expected, exact, incoming)
    assert max(map(relative, ours, theirs)) < tolerance
    assert not epilogue or relative(naive(*exact, targets), expected) > 1e-2


def test_a_second_backward_pass_finds_what_the_first_did() -> None:
    """As two gradients are taken of one graph when preference and SFT are told apart."""
    *inputs, targets, incoming = tensors()
    logps = head_logps(*inputs, targets)
    first = torch.autograd.grad(logps, inputs, incoming, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(logps, inputs, incoming)))


@pytest.mark.parametrize("trained", ["hidden", "weight", "hidden and weight", "bias", "nothing"])
@pytest.mark.parametrize("rows", [4, 1000])
def test_only_what_is_trained_gets_a_gradient(trained, rows) -> None:
    *inputs, targets, incoming = tensors()
    wanted = [name in trained for name in ("hidden", "weight", "bias")]
    full = torch.autograd.grad(naive(*inputs, targets), inputs, incoming)
    for tensor, flag in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(flag)
    logps = head_logps(*inputs, targets, chunk_bytes=rows * V * 8)
    assert logps.requires_grad is any(wanted)
    if any(wanted):
        logps.backward(incoming)
    for tensor, flag, expected in zip(inputs, wanted, full, strict=True):
        assert (tensor.grad is None) is not flag
        assert not flag or relative(tensor.grad, expected) < 1e-13


def test_far_targets_are_finite() -> None:
    """Scores x and 0, the first the target: log p = -softplus(-x), its slope 1 - p = sigmoid(-x).

    At -200 p is 1e-87, which in float32 is 0, with logarithm -inf.
    """
    x = torch.tensor([5.0, 1.0, -200.0])
    weight = torch.stack([torch.ones(3), torch.zeros(3)]).requires_grad_()
    hidden = torch.diag(x).requires_grad_()
    logps = head_logps(hidden, weight, None, torch.zeros(3, dtype=torch.long))
    assert relative(logps, -torch.nn.functional.softplus(-x.double())) < 1e-6
    (gradient,) = torch.autograd.grad(logps.sum(), hidden)
    slope = torch.sigmoid(-x.double())
    torch.testing.assert_close(gradient.double(), slope[:, None].expand(3, 3), rtol=1e-5, atol=0.0)


def test_a_large_vocabulary_sums_in_float32_without_a_bias() -> None:
    """4 tokens over 49,152: to 1e-7 of float64; log_softmax is at 1e-6, the control."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 8, generator=rng), torch.randn(49_152, 8, generator=rng)
    targets = torch.arange(4)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[range(4), targets]
    assert relative(head_logps(hidden, weight, None, targets), exact) < 1e-6


def test_under_autocast_products_are_in_bfloat16_and_sums_in_float32() -> None:
    """Within bfloat16's 2^-8 of float64, gradients in the parameters' type; as near as autocast itself comes."""
    *inputs, targets, incoming = tensors(torch.float32)
    *exact, _, _ = tensors()
    expected = naive(*exact, targets)
    theirs = torch.autograd.grad(expected, exact, incoming)
    for rows in (4, 1000):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = head_logps(*inputs, targets, chunk_bytes=rows * V * 2)
        gradients = torch.autograd.grad(ours, inputs, incoming.float())
        assert ours.dtype == torch.float32 and all(g.dtype == torch.float32 for g in gradients)
        assert 1e-5 < relative(ours.detach(), expected) < 2**-8
        assert 1e-5 < max(map(relative, gradients, theirs)) < 2**-7


# --- memory --------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("tokens", [50, 400])
def test_nothing_grows_with_tokens_times_vocabulary(tokens) -> None:
    """V = 300, D = 4: above the budget of ten rows the largest tensor is W itself, or the hidden states, forward and
    backward; the naive head's is K x V."""
    vocabulary = 300
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    with Largest() as ours:
        head_logps(hidden, weight, None, targets, chunk_bytes=10 * vocabulary * 4).sum().backward()
    assert ours.elements <= max(10 * vocabulary, weight.numel(), hidden.numel())
    with Largest() as plain:
        (hidden @ weight.T).log_softmax(-1)[range(tokens), targets].sum().backward()
    assert plain.elements == tokens * vocabulary


def test_a_frozen_weight_keeps_no_scores() -> None:
    """What is saved for the backward pass: of size K x D and V x D, never K x V."""
    hidden, weight = torch.randn(K, D, requires_grad=True), torch.randn(V, D)
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        head_logps(hidden, weight, None, torch.arange(K))
        assert (K, V) not in saved
        head_logps(hidden, weight.requires_grad_(), None, torch.arange(K))
        assert (K, V) in saved


# --- in a model ------------------------------------------------------------------------------------------

GROUPS = [PromptGroup([7, 8, 9], [[10, 1], [11, 12, 13, 1]]), PromptGroup([20, 21], [[22, 23, 1], [24, 1]])]
# Families with something after the output layer, or in it: factors up and down, caps, a bias.
AFTER = {
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8, "attn_implementation": "eager"},
    "gptj": {"n_inner": 64, "rotary_dim": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}


def family_model(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**COMMON, **AFTER[family]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()


def both(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities by the fused and the plain head."""
    paths = PaddedPath(PAD), PaddedPath(PAD, fused_head=False)
    inputs = paths[0].collate(GROUPS)
    return tuple(path.logps(model, inputs) for path in paths)


def gradients(logps: torch.Tensor, model: Any) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad((logps * torch.tensor([[1.0, -2.0], [0.5, 3.0]])).sum(), parameters)


def assert_same(model: Any, tolerance: float = 1e-5) -> None:
    fused, plain = both(model)
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(gradients(fused, model), gradients(plain, model), strict=True):
        assert (ours - theirs).norm() <= 10 * tolerance * theirs.norm() + 1e-7


@pytest.mark.parametrize(
    ("family", "expected"),
    [("granite", (0.25, None)), ("cohere", (0.25, None)), ("gemma2", (1.0, 3.0)), ("gptj", (1.0, None))],
)
def test_what_follows_the_output_layer_is_observed(monkeypatch, caplog, family, expected) -> None:
    """Scaled and capped logits, values and gradients; the control is to leave out what was observed."""
    model = family_model(family)
    assert_same(model)
    assert "read from its logits" not in caplog.text
    scale, softcap = head._epilogues[model]
    assert (scale, softcap) == (pytest.approx(expected[0], rel=1e-6), expected[1])
    if family == "gptj":
        return
    plain = both(model)[1]
    monkeypatch.setitem(head._epilogues, model, head.Epilogue())
    assert (both(model)[0] - plain).abs().max() > 1e-2


@pytest.mark.parametrize("chunk_bytes", [64 * 4 * 3, head.CHUNK_BYTES["cpu"]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tied_embeddings_and_gradient_checkpointing(monkeypatch, tiny_model, checkpointing, chunk_bytes) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": chunk_bytes})
    model = tiny_model("qwen2").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(model)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["LoRA", "full copy", "frozen"])
def test_adapters_on_the_output_layer(monkeypatch, tiny_model, kind) -> None:
    """LoRA on it and a trained copy of it are called in chunks; beside a frozen one LoRA trains other layers.

    Both at chunks of three rows. The control: the adapter's weights are not zero, so that the base's would differ.
    """
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 64 * 4 * 3})
    targets = {"LoRA": {"target_modules": ["q_proj", "lm_head"]}, "full copy": {"modules_to_save": ["lm_head"]}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            init_lora_weights=False,
            **{"target_modules": ["q_proj"], **targets.get(kind, {})},
        )
        model = peft.get_peft_model(tiny_model("llama"), config)
    assert_same(model)
    with model.disable_adapter():
        assert_same_values(*both(model))
        base = both(model)[0]
    assert (both(model)[0] - base).abs().max() > 1e-3


def assert_same_values(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_sharded_parameters(tiny_model, tmp_path) -> None:
    """FSDP2 over one process on the CPU, layers and root: sharded while nothing runs, whole inside forward only."""
    from torch.distributed.fsdp import fully_shard

    plain_model, model = tiny_model("qwen2"), tiny_model("qwen2")
    expected = gradients(both(plain_model)[1], plain_model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        logps = both(model)[0]
        (logps * torch.tensor([[1.0, -2.0], [0.5, 3.0]])).sum().backward()
        found = [parameter.grad.full_tensor() for parameter in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_a_position_may_predict_more_than_one_token(tiny_model) -> None:
    """As the prompt's last does where responses share it: the log-softmax of one row, at two targets."""
    model, ids = tiny_model("llama"), torch.tensor([[7, 8, 9, 10]])
    positions, targets = torch.tensor([2, 1, 2]), torch.tensor([5, 6, 11])
    expected = model(ids).logits[0].log_softmax(-1)[positions, targets]
    for logps_of in (token_logps_of, plain_token_logps):
        assert_same_values(logps_of(model, positions, targets, input_ids=ids), expected)


def test_a_model_that_does_more_to_its_logits_falls_back_with_one_message(tiny_model, caplog) -> None:
    """A constant added to token 3's logit is none of the known ends: the model's logits are used, and said so once."""
    model = tiny_model("llama").train()
    original = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = output.logits + 5.0 * (torch.arange(output.logits.shape[-1]) == 3)
        return output

    model.forward = types.MethodType(forward, model)
    with caplog.at_level(logging.WARNING):
        fused, plain = both(model)
        both(model)
    assert torch.equal(fused, plain)
    assert caplog.text.count("LlamaForCausalLM: log-probabilities are read from its logits") == 1
    del model.forward
    assert (both(model)[0] - fused).abs().max() > 1e-3  # the constant mattered


def test_the_output_layer_is_itself_again_even_after_an_error(tiny_model) -> None:
    model = tiny_model("llama")
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    expected = model(**inputs).logits
    with pytest.raises(IndexError):
        token_logps_of(model, torch.tensor([99]), torch.tensor([1]), **inputs)
    assert "forward" not in model.lm_head.__dict__
    assert torch.equal(model(**inputs).logits, expected)


def test_looking_at_the_model_leaves_the_random_numbers(tiny_model) -> None:
    """Dropout is on and would draw; the control is the forward pass of training itself."""
    model = tiny_model("gpt2", attn_pdrop=0.5, embd_pdrop=0.5).train()
    before = torch.get_rng_state()
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    assert head._epilogue_of(model, model, inputs) == head.Epilogue()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    with torch.random.fork_rng(devices=[]):
        model(**inputs)
        assert not torch.equal(torch.get_rng_state(), before)
