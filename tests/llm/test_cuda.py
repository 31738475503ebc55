"""On a GPU: bf16 parity and step 0, a 1B random-weight model trains, and 4-bit adapters. Skipped without one."""

from __future__ import annotations

import math

import models_for_tests
import pytest
import torch
from training import OBJECTIVE, config, tiny_pairs, trainer

from rpo.llm.logps import head_kernel
from rpo.llm.logps.head import Epilogue, _picked_
from rpo.llm.logps.packing import SharedPrefixPath, choose_path
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.training.trainer import RPOTrainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

ON_GPU = {"use_cpu": False, "optim": "adamw_torch", "learning_rate": 1e-3}


@pytest.mark.parametrize("kind", [PaddedPath, SharedPrefixPath])
@pytest.mark.parametrize("family", models_for_tests.FAMILIES)
def test_bf16_autocast_stays_near_float64(family, kind):
    """Summed log-probabilities under autocast are within 0.1 nats a token of the float64 CPU values."""
    path = kind(models_for_tests.PAD)
    groups = [PromptGroup(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in tiny_pairs(6)]
    inputs = path.collate(groups)
    exact = path.logps(models_for_tests.tiny_model(family, dtype=torch.float64), inputs)
    model = models_for_tests.tiny_model(family).cuda()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found = path.logps(model, {name: value.cuda() for name, value in inputs.items()})
    assert found.dtype == torch.float32
    assert float(((found.cpu() - exact).abs() / inputs["lengths"]).max()) < 0.1


@pytest.mark.parametrize("kernel", ["varlen", "flex", "segment"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_every_kernel_trains_as_padding_does(monkeypatch, family, kernel):
    """In float32 and under autocast, heads of 32: log-probabilities, and the gradient of every weight."""
    monkeypatch.setenv("RPO_ATTENTION", kernel)
    groups = [PromptGroup(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in tiny_pairs(6)]
    model = models_for_tests.tiny_model(family, head_dim=32).cuda()
    for dtype, tolerance in ((None, 1e-4), (torch.bfloat16, 5e-2)):
        chosen = choose_path(model, models_for_tests.PAD, autocast_dtype=dtype)
        assert type(chosen) is SharedPrefixPath and chosen.kernel is None
        found = []
        for path in (PaddedPath(models_for_tests.PAD), chosen):
            model.zero_grad()
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                logps = path.logps(model, {name: value.cuda() for name, value in path.collate(groups).items()})
            (logps * torch.linspace(-1, 1, logps.numel(), device="cuda").view(logps.shape)).sum().backward()
            found.append([logps.detach(), *(each.grad for each in model.parameters() if each.grad is not None)])
        for ours, theirs in zip(*found[::-1], strict=True):
            assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm()) + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "epilogue", [Epilogue(), Epilogue(scale=0.3), Epilogue(softcap=5.0), Epilogue(0.3, 5.0)], ids=str
)
@pytest.mark.parametrize("size", [100, 4096, 128_256])
def test_the_kernel_of_the_head_equals_float64(dtype, epilogue, size):
    """Log-probabilities and slopes; a logit of -inf is a token that cannot be; a wrong target is NaN, not a number."""
    generator = torch.Generator().manual_seed(0)
    scores = (8 * torch.randn(9, size, generator=generator)).to(dtype).cuda()
    scores[2, 5] = -math.inf
    targets = torch.randint(6, size, (9,), generator=generator).cuda()
    exact = scores.double()
    expected = _picked_(exact, targets, epilogue, slopes=True)
    assert head_kernel.takes(scores) and not head_kernel.takes(exact)
    kept = scores.clone()
    assert torch.equal(
        head_kernel.picked_logps_(scores, targets, slopes=False, **epilogue._asdict()),
        head_kernel.picked_logps_(scores, targets, slopes=True, **epilogue._asdict()),
    )
    torch.testing.assert_close(_picked_(kept, targets, epilogue, slopes=True).double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(kept, scores, rtol=0, atol=0)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(scores.double(), exact, rtol=rounding, atol=1e-6)
    targets[0], targets[1] = size, -1
    found = head_kernel.picked_logps_(kept, targets, slopes=False, scale=1.0, softcap=None)
    assert found.isnan().tolist() == [True, True] + [False] * 7


@pytest.mark.parametrize("precompute", [True, False])
def test_bf16_starts_at_ln_2_and_learns(tmp_path, precompute):
    run = trainer(
        tmp_path,
        tiny_pairs(16),
        model=models_for_tests.tiny_model("llama"),
        bf16=True,
        max_steps=20,
        precompute_ref_log_probs=precompute,
        **ON_GPU,
    )
    run.train()
    history = [row for row in run.state.log_history if "loss" in row]
    assert history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-2)
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_1b_model_trains_in_bf16(tmp_path):
    """Llama 3.2 1B's shape with random weights, gradient checkpointing, 4 updates of 4 pairs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    args = config(
        tmp_path,
        bf16=True,
        gradient_checkpointing=True,
        max_steps=4,
        per_device_train_batch_size=4,
        path="auto",
        **(ON_GPU | {"learning_rate": 1e-5}),
    )
    run = RPOTrainer(model, args=args, train_dataset=tiny_pairs(16), objective=OBJECTIVE)
    assert run.path.name == "shared" and run.path.kernel is None
    run.train()
    assert all(math.isfinite(row["loss"]) for row in run.state.log_history if "loss" in row)


def test_a_4_bit_base_trains_an_adapter(tmp_path):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    import rpo

    folder = tmp_path / "model"
    models_for_tests.tiny_model("llama", hidden_size=64).save_pretrained(folder)
    models_for_tests.tiny_tokenizer().save_pretrained(folder)
    rows = [{"prompt": "w1 ", "chosen": "w2 w3", "rejected": "w4"} for _ in range(8)]
    run = rpo.fit(
        str(folder),
        rows,
        OBJECTIVE,
        output_dir=tmp_path / "out",
        peft_config={"r": 4, "target_modules": "all-linear"},
        model_init_kwargs={"quantization": "4bit"},
        max_steps=3,
        bf16=True,
        report_to="none",
        disable_tqdm=True,
    )
    assert run.status == "completed"
