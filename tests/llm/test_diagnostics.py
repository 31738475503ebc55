"""Diagnostics against numbers worked out by hand, plain autograd, and enumeration of every response."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.llm import diagnostics
from rpo.llm.diagnostics import displacement, displacement_values, measure_kl, prefix_kl, sampled_kl, split_gradients
from rpo.llm.reference import DisabledAdapter, FrozenModel

# transformers >= 5.18 renames what 5.17 and peft know by its old name.
RENAMED = "ignore:.*gradient_checkpointing.*:FutureWarning"

# --- displacement ------------------------------------------------------------------------------

CHOSEN = torch.tensor([1.0, -1.0, -2.0, 3.0, 0.0, -4.0, 0.5, -0.5])
REJECTED = torch.tensor([-1.0, -2.0, 1.0, 2.0, 1.0, -1.0, -2.0, -3.0])
CHOSEN_LENGTHS = torch.tensor([1, 2, 4, 3, 5, 8, 1, 1])
REJECTED_LENGTHS = torch.tensor([2, 1, 1, 2, 1, 4, 8, 3])


def test_displacement_by_hand() -> None:
    """Eight pairs, one of which has an unmoved side: (0, 1).

    Chosen fell in 4. Quadrants: up-up (3, 2); up-down (1, -1) and (1/2, -2); down-up (-2, 1); down-down the three
    others. Changes sum to -3 and -5; a token, to 1 - 1/2 - 1/2 + 1 + 0 - 1/2 + 1/2 - 1/2 = 1/2 and
    -1/2 - 2 + 1 + 1 + 1 - 1/4 - 1/4 - 1 = -1.
    """
    found = displacement(CHOSEN, REJECTED, CHOSEN_LENGTHS, REJECTED_LENGTHS)
    expected = {
        "share": 4 / 8,
        "chosen_up_rejected_up": 1 / 8,
        "chosen_up_rejected_down": 2 / 8,
        "chosen_down_rejected_up": 1 / 8,
        "chosen_down_rejected_down": 3 / 8,
        "unchanged": 1 / 8,
        "chosen_change": -3 / 8,
        "chosen_change_per_token": 0.5 / 8,
        "rejected_change": -5 / 8,
        "rejected_change_per_token": -1 / 8,
    }
    assert found == pytest.approx({f"displacement/{name}": value for name, value in expected.items()})


def test_displacement_adds_up_over_micro_batches() -> None:
    """Halves of 3 and 5 pairs, weighted by their counts, are the whole; the mean of their means is not."""
    whole = displacement(CHOSEN, REJECTED)
    halves = [displacement_values(CHOSEN[part], REJECTED[part]) for part in (slice(0, 3), slice(3, 8))]
    for name, value in whole.items():
        assert sum(half[name].sum().item() for half in halves) / 8 == pytest.approx(value)
    means = sum(half["displacement/share"].mean().item() for half in halves) / 2
    assert abs(means - whole["displacement/share"]) > 0.01


def test_at_the_start_every_pair_is_unchanged_and_lengths_are_optional() -> None:
    found = displacement(torch.zeros(3), torch.zeros(3))
    assert found["displacement/unchanged"] == 1 and found["displacement/share"] == 0
    assert not [name for name in found if name.endswith("per_token")]


def test_displacement_refuses_other_shapes_and_empty_responses() -> None:
    with pytest.raises(InvalidArgument, match=r"rejected_change: expected shape \(8\)"):
        displacement(CHOSEN, REJECTED[:3])
    with pytest.raises(InvalidArgument, match=r"chosen_lengths: expected lengths > 0, got 0"):
        displacement(CHOSEN, REJECTED, CHOSEN_LENGTHS - 1)
    with pytest.raises(InvalidArgument, match="N >= 1 pairs"):
        displacement(CHOSEN[:0], REJECTED[:0])


# --- split gradients -----------------------------------------------------------------------------


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_split_gradients_by_hand() -> None:
    """Gradients (3, 4) and (0, 2) at weight 1/2: norms 5 and 1, cosine 4 * 2 / (5 * 2) = 4/5.

    At weight 0 the SFT part does not enter, but its direction is still known.
    """
    w = parameter(1.0, 2.0)
    preference, sft = 3 * w[0] + 4 * w[1], 2 * w[1]
    found = split_gradients(preference, sft, [w], sft_weight=0.5)
    assert found == pytest.approx(
        {"gradients/preference_norm": 5.0, "gradients/sft_norm": 1.0, "gradients/cosine": 0.8}, rel=1e-14
    )
    silent = split_gradients(preference, sft, [w], sft_weight=0.0)
    assert silent["gradients/sft_norm"] == 0 and silent["gradients/cosine"] == pytest.approx(0.8)


def network() -> tuple[list[torch.nn.Parameter], torch.Tensor, torch.Tensor]:
    """A tied weight, a parameter of each part alone, one of neither, a frozen one; two scalar losses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tied, first, second = (torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64)) for _ in range(3))
        x = torch.randn(5, 4, dtype=torch.float64)
    frozen = torch.nn.Parameter(torch.eye(4, dtype=torch.float64), requires_grad=False)
    hidden = torch.tanh(x @ tied) @ frozen @ tied.T
    parameters = [tied, first, second, parameter(1.0), frozen]
    return parameters, (hidden @ first).square().mean(), (hidden @ second).cos().mean()


def test_the_parts_make_up_the_gradient_of_the_loss() -> None:
    """||grad||^2 = a^2 + b^2 + 2ab cosine, with one tied weight and parameters that a part does not use."""
    parameters, preference, sft = network()
    found = split_gradients(preference, sft, parameters, sft_weight=0.3)
    used = parameters[:3]
    gradient = torch.autograd.grad(preference + 0.3 * sft, used)
    a, b, cosine = found.values()
    assert a**2 + b**2 + 2 * a * b * cosine == pytest.approx(sum(g.square().sum().item() for g in gradient), rel=1e-12)
    assert 0.01 < abs(cosine) < 0.99  # control: without its last term the identity would fail


def test_training_goes_on_as_if_nothing_had_been_measured() -> None:
    """No .grad, no leaf hook fires (DDP's are of that kind), no hook stays, and backward gives the same bits."""
    parameters, preference, sft = network()
    fired: list[int] = []
    for p in parameters[:3]:
        p.register_post_accumulate_grad_hook(lambda p: fired.append(1))
    state = torch.get_rng_state()
    split_gradients(preference, sft, parameters, sft_weight=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not fired and all(p.grad is None and not p._backward_hooks for p in parameters)
    (preference + 0.3 * sft).backward()
    assert len(fired) == 3
    plain, preference, sft = network()
    (preference + 0.3 * sft).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(parameters[:3], plain[:3], strict=True))


def test_the_second_gradient_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd returns the second time is one number a parameter, of 8 bytes; the first time all 128."""
    parameters, preference, sft = network()
    held, grad = [], torch.autograd.grad

    def spy(*args: Any, **kwargs: Any) -> Any:
        found = grad(*args, **kwargs)
        held.append([g.untyped_storage().nbytes() for g in found if g is not None])
        return found

    monkeypatch.setattr(torch.autograd, "grad", spy)
    split_gradients(preference, sft, parameters, sft_weight=0.3)
    assert held == [[128, 128], [8, 8]]


@pytest.mark.filterwarnings(RENAMED)
def test_gradient_checkpointing_changes_nothing(tiny_model: Any) -> None:
    ids = torch.arange(6, 18).view(2, 6)

    def measured(checkpointing: bool) -> dict[str, float]:
        model = tiny_model("llama", dtype=torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        logps = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        return split_gradients(logps[0].mean(), -logps[1, :, 7].mean(), model.parameters(), sft_weight=0.1)

    assert measured(True) == pytest.approx(measured(False), rel=1e-12)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_distributed_data_parallel_still_reduces_afterwards(one_process: None) -> None:
    linear = torch.nn.Linear(2, 1, bias=False).double()
    model = torch.nn.parallel.DistributedDataParallel(linear)
    out = model(torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64))
    found = split_gradients(out[0].sum(), out[1].sum(), model.parameters(), sft_weight=0.5)
    assert list(found.values()) == pytest.approx([5.0, 1.0, 0.8])
    (out[0] + 0.5 * out[1]).sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.tolist() == [[3.0, 5.0]]


def test_small_half_precision_gradients_need_the_loss_scale() -> None:
    """A gradient of 2^-28 is below float16's least number 2^-24; scaled by 2^14 it is there."""
    w = parameter(1.0, dtype=torch.float16)
    loss = ((w * 2.0**-14).sum() * 2.0**-14).float()
    assert split_gradients(loss, loss, [w], sft_weight=1.0)["gradients/preference_norm"] == 0.0
    found = split_gradients(loss, loss, [w], sft_weight=1.0, scale=2.0**14)
    assert found == {"gradients/preference_norm": 2.0**-28, "gradients/sft_norm": 2.0**-28, "gradients/cosine": 1.0}


def test_gradients_that_vanish_or_are_not_finite_have_no_cosine() -> None:
    w = parameter(0.0)
    for loss in ((w * 0).sum(), w.sqrt().sum()):  # gradients 0 and infinite
        assert math.isnan(split_gradients(loss, w.sum(), [w], sft_weight=1.0)["gradients/cosine"])


def test_sharded_parameters_are_left_out_with_one_message(caplog: pytest.LogCaptureFixture) -> None:
    w = parameter(1.0)
    w.ds_id = 0  # as DeepSpeed ZeRO-3 marks them
    assert [split_gradients(w.sum(), w.sum(), [w], sft_weight=1.0) for _ in range(2)] == [{}, {}]
    assert len(caplog.records) == 1 and "sharded" in caplog.text


def test_split_gradients_refuses_what_has_no_gradient() -> None:
    w = parameter(1.0)
    with pytest.raises(InvalidArgument, match="sft_loss: expected a scalar tensor with its graph, got float"):
        split_gradients(w.sum(), math.nan, [w], sft_weight=1.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="preference_loss"):
        split_gradients(w.sum().detach(), w.sum(), [w], sft_weight=1.0)
    with pytest.raises(InvalidArgument, match="requires_grad"):
        split_gradients(w.sum(), w.sum(), [], sft_weight=1.0)


# --- KL on sampled responses ---------------------------------------------------------------------

EOS, WORDS, LONGEST = 1, 5, 3
PROMPT = [2, 4]


@pytest.fixture(scope="module")
def models(tiny_model: Any) -> tuple[Any, Any]:
    """A policy and its reference over 5 tokens, in float64."""
    policy, reference = (tiny_model("llama", dtype=torch.float64, seed=seed, vocab_size=WORDS) for seed in (0, 1))
    return policy, reference


@pytest.fixture(scope="module")
def table(models: tuple[Any, Any]) -> dict[str, torch.Tensor]:
    """Every response to PROMPT of at most 3 tokens, one by one: its probability, and what each estimator says of it.

    prefix: sum over its prefixes of the KL of the next token. k3: r - 1 - log r, r = pi_ref / pi.
    """
    rows = []
    for length in range(1, LONGEST + 1):
        for y in itertools.product(range(WORDS), repeat=length):
            if EOS in y[:-1] or (length < LONGEST and y[-1] != EOS):
                continue
            ids = torch.tensor([PROMPT + list(y)])
            with torch.no_grad():
                both = [m(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1) for m in models]
            p, q = (rows_of[range(length), list(y)].sum().item() for rows_of in both)
            prefix = (both[0].exp() * (both[0] - both[1])).sum().item()
            rows.append((math.exp(p), p - q, prefix, math.exp(q - p) - 1 - (q - p), float(y[-1] == EOS)))
    columns = torch.tensor(rows, dtype=torch.float64).T
    return dict(zip(("p", "plain", "prefix", "k3", "ended"), columns, strict=True))


def test_every_estimator_is_unbiased_and_the_prefix_one_varies_least(table: dict[str, torch.Tensor]) -> None:
    """Exact means over all 1 + 4 + 16 * 5 responses (ending in EOS, or cut at 3 tokens) equal the KL.

    Controls: responses weighed by another law, or the squared log-ratio (k2), miss it by far.
    """
    p = table["p"]
    assert p.sum().item() == pytest.approx(1.0, abs=1e-12) and len(p) == 1 + 4 + 16 * 5
    kl = (p * table["plain"]).sum().item()
    for name in ("prefix", "k3"):
        assert (p * table[name]).sum().item() == pytest.approx(kl, rel=1e-10)
    variance = {name: (p * (table[name] - kl).square()).sum().item() for name in ("plain", "prefix", "k3")}
    assert variance["prefix"] < 0.5 * variance["plain"] and variance["k3"] > variance["prefix"]
    assert abs((p * table["plain"].square() / 2).sum().item() - kl) > 0.05 * kl
    assert abs(table["plain"].mean().item() - kl) > 0.05 * kl


@pytest.mark.parametrize("estimator", ["prefix", "plain"])
def test_measured_kl_is_the_exact_one_within_its_error(
    models: tuple[Any, Any], table: dict[str, torch.Tensor], estimator: str
) -> None:
    """400 independent samples, mean within 4 standard errors of the exact KL, whose own size is right.

    The standard error's relative spread is about 1 / sqrt(2 * 400) for near-normal values: 20 % is generous. Control:
    the KL to a third model, as would be measured under a wrong reference, is out.
    """
    p = table["p"]
    kl = (p * table["plain"]).sum().item()
    found = measure(models[0], FrozenModel(models[1]), estimator=estimator)
    assert abs(found.mean - kl) < 4 * found.standard_error
    deviation = (p * (table[estimator] - kl).square()).sum().sqrt().item()
    assert found.standard_error == pytest.approx(deviation / 20, rel=0.2)
    cut = 1 - (p * table["ended"]).sum().item()
    assert abs(found.unfinished - cut) < 4 * math.sqrt(cut * (1 - cut) / 400)
    wrong = measure(models[0], FrozenModel(models[0]), estimator=estimator)
    assert abs(wrong.mean - kl) > 4 * found.standard_error and wrong.mean == pytest.approx(0, abs=1e-12)


def measure(policy: Any, reference: Any, *, prompts: int = 400, **options: Any) -> diagnostics.SampledKL:
    options = {"eos_token_id": EOS, "pad_token_id": 0, "max_new_tokens": LONGEST, "batch_size": 100, **options}
    return measure_kl(policy, reference, [PROMPT] * prompts, **options)


def test_standard_errors_are_calibrated(table: dict[str, torch.Tensor]) -> None:
    """400 replicas of 100 draws from the exact law: the sum of z^2 is chi-square with 400 degrees of freedom.

    Its standard deviation is about sqrt(2 * 400) = 28; +-5 of them (and t's heavier tail) are allowed. Control: a
    standard error of the single draw over sqrt(100), made 20 % too small, is out.
    """
    rng = np.random.default_rng(0)
    kl = (table["p"] * table["plain"]).sum().item()
    law = (table["p"] / table["p"].sum()).numpy()
    total = 0.0
    for _ in range(400):
        drawn = table["plain"][rng.choice(len(law), size=100, p=law)]
        found = sampled_kl(drawn, torch.zeros(100))
        total += ((found.mean - kl) / found.standard_error) ** 2
    assert abs(total - 400) < 5 * math.sqrt(800)
    assert abs(total / 0.8**2 - 400) > 5 * math.sqrt(800)


def test_the_samples_of_a_prompt_count_as_one_draw() -> None:
    """Two prompts at 1 and 3 nats, two samples each: mean 2, error sqrt(2) / sqrt(2) = 1; four draws would say 0.58."""
    found = sampled_kl(torch.tensor([[0.5, 1.5], [3.0, 3.0]]), torch.zeros(2, 2))
    assert (found.mean, found.standard_error, found.num_prompts) == pytest.approx((2.0, 1.0, 2))
    assert math.isnan(sampled_kl(torch.tensor([1.0]), torch.zeros(1)).standard_error)


def test_a_token_the_policy_never_says_adds_nothing() -> None:
    """(1/2, 1/2, 0) against (1/4, 1/4, 1/2): ln 2. The other way round the KL is infinite."""
    ours, theirs = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
    assert prefix_kl(ours, theirs).item() == pytest.approx(math.log(2))
    assert prefix_kl(theirs, ours).item() == math.inf


def test_measuring_touches_neither_random_states_nor_modes(models: tuple[Any, Any], tiny_model: Any) -> None:
    policy = tiny_model("gpt2", vocab_size=WORDS, attn_pdrop=0.5).train()
    policy.transformer.h[0].eval()
    modes = [module.training for module in policy.modules()]
    numpy_state = np.random.get_state  # the global state is what is watched
    states = torch.get_rng_state(), numpy_state()[1].copy()
    measure(policy, FrozenModel(tiny_model("gpt2", vocab_size=WORDS, seed=1)), prompts=2)
    assert torch.equal(torch.get_rng_state(), states[0]) and (numpy_state()[1] == states[1]).all()
    assert [module.training for module in policy.modules()] == modes
    policy(input_ids=torch.tensor([PROMPT]))  # control: in its own mode the model draws
    assert not torch.equal(torch.get_rng_state(), states[0])


def test_the_seed_decides_and_the_batch_size_does_not(models: tuple[Any, Any]) -> None:
    anchor = FrozenModel(models[1])
    first, second, other = (
        measure(models[0], anchor, prompts=12, num_samples=2, seed=seed, batch_size=size)
        for seed, size in ((0, 12), (0, 5), (1, 12))
    )
    assert first == pytest.approx(second, rel=1e-12) and first.num_prompts == 12
    assert abs(first.mean - other.mean) > 1e-6


@pytest.mark.filterwarnings(RENAMED)
def test_an_adapter_that_does_nothing_yet_is_at_zero(tiny_model: Any) -> None:
    """Fresh LoRA (B = 0): exactly zero against the base; after B moves, above it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    policy = peft.get_peft_model(tiny_model("llama", vocab_size=WORDS), config)
    reference = DisabledAdapter(policy)
    assert measure(policy, reference, prompts=3).mean == 0.0
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight += 1.0
    assert measure(policy, reference, prompts=3).mean > 1e-3


def test_bad_arguments_are_refused(models: tuple[Any, Any]) -> None:
    anchor = FrozenModel(models[1])
    with pytest.raises(InvalidArgument, match="estimator: expected one of 'prefix', 'plain'"):
        measure(models[0], anchor, estimator="k3")
    with pytest.raises(InvalidArgument, match="at least one prompt"):
        measure(models[0], anchor, prompts=0)
    with pytest.raises(InvalidArgument, match="reference_logps"):
        sampled_kl(torch.zeros(3), torch.zeros(2))
