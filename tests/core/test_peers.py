"""The objective against the official formula, written out here, and against TRL's own trainer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rpo.core.conversions import to_official, trl_batch_weight
from rpo.core.objectives import RPO

torch = pytest.importorskip("torch")

BETA, ETA = 0.1, 0.05


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: threads only wait for each other, for ten times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def official_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta, eta):
    """Mean over pairs of -log sigmoid(beta (log-ratio chosen - log-ratio rejected)) - beta eta log pi(chosen).

    Paper, Algorithm 2, with pi_base the chosen responses.
    """
    logits = beta * ((policy_chosen - policy_rejected) - (reference_chosen - reference_rejected))
    return (-torch.nn.functional.logsigmoid(logits) - beta * eta * policy_chosen).mean()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_official_formula(dtype):
    """Loss and gradients agree to 1e-6 on 50 random batches; with a weight 1e-3 off, the loss does not.

    Log-probabilities are multiples of 1/1024, whose differences float32 holds exactly: otherwise the
    order of the three subtractions alone costs about 2e-6 at -300 nats.
    """
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = int(rng.integers(1, 9))
        beta, eta = (float(np.exp(rng.uniform(np.log(lo), np.log(hi)))) for lo, hi in ((0.01, 1.0), (0.001, 1.0)))
        objective = RPO(beta=beta, eta=eta)
        settings = to_official(objective).settings
        reference = rng.uniform(-300.0, -5.0, size=(2, size))
        policy = reference + rng.normal(scale=5.0, size=(2, size))
        reference, policy = np.round(reference * 1024) / 1024, np.round(policy * 1024) / 1024
        values, gradients = [], []
        for loss in (
            lambda *logps, objective=objective: objective(*logps)[0],
            lambda *logps, settings=settings: official_loss(*logps, **settings),
        ):
            leaves = [torch.tensor(row, dtype=getattr(torch, dtype), requires_grad=True) for row in policy]
            fixed = [torch.tensor(row, dtype=getattr(torch, dtype)) for row in reference]
            value = loss(*leaves, *fixed)
            values.append(value.item())
            gradients.append(torch.stack(torch.autograd.grad(value, leaves)))
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        assert relative_error(gradients[0], gradients[1]) < 1e-6
        off = official_loss(*leaves, *fixed, beta=beta, eta=eta * 1.001).item()
        assert abs(off - values[0]) > 1e-7 * abs(values[0])


def relative_error(ours, theirs) -> float:
    """Return ||ours - theirs|| / ||theirs||."""
    return float((ours - theirs).norm() / theirs.norm())


# --- TRL ---------------------------------------------------------------------------------------

# Words of the prompt, chosen and rejected of four pairs; each response is followed by one end of sequence.
WORDS = [(3, 2, 6), (5, 17, 4), (2, 1, 1), (4, 9, 30)]
CHOSEN_LENGTHS = [words[1] + 1 for words in WORDS]
VOCABULARY = 64


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *(f"w{k}" for k in range(VOCABULARY - 3))]
    base = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def pairs() -> list[dict[str, str]]:
    rng = np.random.default_rng(1)

    def words(n: int) -> str:
        return " ".join(f"w{k}" for k in rng.integers(0, VOCABULARY - 3, size=n))

    return [{"prompt": words(p) + " ", "chosen": words(w), "rejected": words(lost)} for p, w, lost in WORDS]


def llama(seed: int, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # large, so that margins and gradients are far from zero
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(dtype)


def sequence_logps(model, prompt_ids: list[int], response_ids: list[int]):
    """Sum of the response's token log-probabilities, one sequence at a time: no padding, no mask, no fused head."""
    logits = model(torch.tensor([prompt_ids + response_ids])).logits[0]
    start = len(prompt_ids)
    return sum(logits[start + k - 1].log_softmax(-1)[token] for k, token in enumerate(response_ids))


def trl_trainer(monkeypatch, tmp_path, dtype, weight: float):
    """Return TRL's trainer on a tiny random policy and reference, and its batch of all four pairs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    trainer = trl.DPOTrainer(
        model=llama(0, dtype),
        ref_model=llama(1, dtype),
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=BETA,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, weight],
            per_device_train_batch_size=len(WORDS),
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list(pairs()),
        processing_class=tokenizer(),
    )
    return trainer, [trainer.train_dataset[k] for k in range(len(WORDS))]


def compare(trainer, rows, objective: RPO) -> tuple[float, float]:
    """Return the relative errors of TRL's loss and of the gradient of all parameters against the objective's."""
    assert [len(row["chosen_ids"]) for row in rows] == CHOSEN_LENGTHS
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    theirs.backward()
    policy, reference = (llama(seed, trainer.model.dtype) for seed in (0, 1))  # the same weights, untouched by TRL
    logps = [
        torch.stack([sequence_logps(model, row["prompt_ids"], row[which]) for row in rows])
        for model in (policy, reference.requires_grad_(False))
        for which in ("chosen_ids", "rejected_ids")
    ]
    ours, _ = objective(*logps, chosen_lengths=torch.tensor(CHOSEN_LENGTHS))
    ours.backward()
    gradients = [torch.cat([weight.grad.flatten() for weight in m.parameters()]) for m in (policy, trainer.model)]
    return abs(ours.item() - theirs.item()) / abs(theirs.item()), relative_error(*gradients)


def use_plain_head(model) -> None:
    """Have TRL score tokens with torch's log_softmax in the model's dtype, in place of its float32 kernel."""
    original = type(model).forward

    def forward(*, labels, fused_lm_head, **inputs):
        if not fused_lm_head:
            raise NotImplementedError
        labels = labels[:, 1:]
        scores = original(model, **inputs).logits[:, :-1].log_softmax(-1)
        chosen = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0.0)
        unused = torch.zeros_like(chosen)  # entropy and the like, which are only logged
        return SimpleNamespace(log_probs=chosen, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    model.forward = forward


# transformers deprecates names that TRL and its configuration still use
DEPRECATED = "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-6)])
def test_trl_as_it_is(monkeypatch, tmp_path, dtype, tolerance):
    """TRL with the weight of the batch equals the objective: its loss, and the gradient of all parameters.

    Seen: 1e-6 in float32, and 3e-7 in float64, since TRL's head works in float32 all the same. Chosen
    lengths 3, 18, 2, 10 (with the end of sequence): weight 0.005 * 33 / 4 = 0.04125. The control is a
    weight that does not know the batch, TRL's documented 0.005.
    """
    objective = RPO(beta=BETA, eta=ETA)
    weight = trl_batch_weight(objective, CHOSEN_LENGTHS)
    assert weight == pytest.approx(0.04125, rel=1e-12)
    trainer, rows = trl_trainer(monkeypatch, tmp_path, getattr(torch, dtype), weight)
    loss_error, gradient_error = compare(trainer, rows, objective)
    assert loss_error < 1e-6
    assert gradient_error < tolerance
    trainer.model.zero_grad()
    trainer.loss_weights = [1.0, 0.005]
    loss_error, gradient_error = compare(trainer, rows, objective)
    assert loss_error > 1e-3
    assert gradient_error > 1e-3


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("reduction", ["sequence_sum", "batch_token_mean"])
def test_trl_loss_in_float64(monkeypatch, tmp_path, reduction):
    """With its float32 kernel out of the way, TRL's loss and gradients equal the objective's to 1e-12."""
    objective = RPO(beta=BETA, eta=ETA, sft_reduction=reduction)
    trainer, rows = trl_trainer(monkeypatch, tmp_path, torch.float64, trl_batch_weight(objective, CHOSEN_LENGTHS))
    use_plain_head(trainer.model)
    use_plain_head(trainer.ref_model)
    loss_error, gradient_error = compare(trainer, rows, objective)
    assert loss_error < 1e-12
    assert gradient_error < 1e-12
