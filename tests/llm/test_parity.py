"""Every path against a naive float64 computation and against TRL: log-probabilities, loss, gradients.

A further path joins by a row in PATHS_UNDER_TEST. Errors are relative: of a log-probability to
max(1, |logp|), of a loss to its value, of a gradient to the norm of its tensor. Tolerances: 1e-5
and per-tensor 1e-4 in float32, 1e-10 in float64; beside each stands the largest error seen.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import EOS, FAMILIES, FIRST_WORD, PAD, VOCABULARY
from torch.overrides import TorchFunctionMode

from rpo.core.conversions import trl_batch_weight
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO
from rpo.llm.logps.packing import PackedPath, SharedPrefixPath
from rpo.llm.logps.scoring import PaddedPath, PromptGroup, ScoringPath

PATHS_UNDER_TEST: dict[str, Callable[[], ScoringPath]] = {
    "padded right": lambda: PaddedPath(PAD),
    "padded, plain head": lambda: PaddedPath(PAD, fused_head=False),
    "padded left": lambda: PaddedPath(PAD, padding_side="left"),
    "padded to 32": lambda: PaddedPath(PAD, pad_to_multiple_of=32),
    "packed": PackedPath,
    "packed, plain head": lambda: PackedPath(fused_head=False),
    "shared": SharedPrefixPath,
}
BETA, ETA = 0.1, 0.05
OBJECTIVE = RPO(beta=BETA, eta=ETA)
TOLERANCES = {  # logps, loss, gradients of every tensor
    torch.float32: (1e-5, 1e-5, 1e-4),  # seen: 4e-7, 3e-7, 6e-6
    torch.float64: (1e-10, 1e-10, 1e-10),  # seen: 1e-15, 6e-16, 5e-15
}
POLICY, REFERENCE = 0, 1  # seeds
# Tokens of prompt, chosen and rejected, before the end of sequence: past the sliding windows, and as short as can be.
LENGTHS = [(3, 2, 6), (9, 17, 4), (1, 0, 1), (4, 9, 20), (7, 5, 5), (12, 1, 3)]

every_path = pytest.mark.parametrize("path", [pytest.param(make(), id=name) for name, make in PATHS_UNDER_TEST.items()])
every_family = pytest.mark.parametrize("family", FAMILIES)


def random_pairs() -> list[PromptGroup]:
    rng = np.random.default_rng(0)

    def words(n: int) -> list[int]:
        return rng.integers(FIRST_WORD, VOCABULARY, size=n).tolist()

    return [PromptGroup(words(p), ([*words(w), EOS], [*words(lost), EOS])) for p, w, lost in LENGTHS]


PAIRS = random_pairs()


class Float64(TorchFunctionMode):
    """Models cast to float32 inside norms, rotations and softmaxes, even after .double(); here they cast to float64.

    Without it Gemma's float64 gradients agree to 1e-7, and Gemma2's rows of padding are 0 * -inf.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = torch.Tensor.double if function is torch.Tensor.float else function
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def naive_logps(model: Any, pairs: Sequence[PromptGroup]) -> torch.Tensor:
    """Return (G, m): one sequence at a time, no padding, no mask, every logit in float64."""

    def one(prompt: Sequence[int], response: Sequence[int], mask: bytes) -> torch.Tensor:
        scores = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        each = scores[range(len(prompt) - 1, len(prompt) + len(response) - 1), response]
        return (each * torch.tensor(list(mask))).sum()

    return torch.stack(
        [torch.stack([one(g.prompt_ids, *each) for each in zip(g.responses, g.masks, strict=True)]) for g in pairs]
    )


def naive_loss(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(beta (h_w - h_l)) - eta beta log pi(chosen), from (G, 2) log-probabilities."""
    h = policy - reference
    return (-torch.nn.functional.logsigmoid(BETA * (h[:, 0] - h[:, 1])) - ETA * BETA * policy[:, 0]).mean()


def objective_loss(objective: RPO | DPO, policy: torch.Tensor, reference: torch.Tensor, **more: Any) -> torch.Tensor:
    return objective(*policy.unbind(1), *reference.unbind(1), **more)[0]


def score(path: ScoringPath, model: Any, pairs: Sequence[PromptGroup] = PAIRS) -> torch.Tensor:
    return path.logps(model, path.collate(pairs))


def gradients(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    names, tensors = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, (g.double() for g in torch.autograd.grad(loss, tensors)), strict=True))


def logp_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((ours.double() - expected).abs() / expected.abs().clamp(min=1.0)).detach().max())


def loss_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return abs(ours.item() - expected.item()) / abs(expected.item())


def gradient_error(ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the largest relative error of any tensor; every tensor has a gradient."""
    assert ours.keys() == expected.keys()
    assert all(g.norm() > 0 for g in expected.values())
    return max(float((ours[name] - g).norm() / g.norm()) for name, g in expected.items())


# --- against float64 -----------------------------------------------------------------------------


MASKS = [[bytes(k % (3 + g) != 1 for k in range(len(r))) for r in group.responses] for g, group in enumerate(PAIRS)]


@every_family
@every_path
def test_collisions_equal_float64(path: ScoringPath, family: str, tiny_model) -> None:
    """Sums over a response of log sum_v p_v^2, of masked responses too; log-probabilities stay what they are."""
    model = tiny_model(family)
    masked = [group._replace(scored=tuple(masks)) for group, masks in zip(PAIRS, MASKS, strict=True)]
    for pairs in (PAIRS, masked):
        found: list[torch.Tensor] = []
        batch = path.collate(pairs)
        logps = path.logps(model, batch, found)
        assert torch.equal(logps, path.logps(model, batch)) and not found[0].requires_grad
        assert found[0].shape == logps.shape and len(found) == 1
        for g, group in enumerate(pairs):
            for k, (response, mask) in enumerate(zip(group.responses, group.masks, strict=True)):
                with torch.no_grad():
                    p = model(torch.tensor([[*group.prompt_ids, *response]])).logits[0].double().softmax(-1)
                each = (p**2).sum(-1).log()[len(group.prompt_ids) - 1 : -1]
                expected = float((each * torch.tensor(list(mask))).sum())
                assert float(found[0][g, k]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@every_path
def test_every_path_scores_what_is_marked_and_reads_the_rest(tiny_model, path, family) -> None:  # type: ignore[no-untyped-def]
    """By masks of their own, or none for one of the two: the sums and lengths of the marked tokens."""
    model = tiny_model(family, dtype=torch.float64)
    masked = [PromptGroup(prompt, responses, masks) for (prompt, responses, _), masks in zip(PAIRS, MASKS, strict=True)]
    masked[1] = masked[1]._replace(scored=(None, MASKS[1][1]))
    with Float64():
        inputs = path.collate(masked)
        found = path.logps(model, inputs)
        expected = naive_logps(model, masked)
        whole = naive_logps(model, PAIRS)
    assert logp_error(found, expected) < TOLERANCES[torch.float64][0]
    assert logp_error(found, whole) > 0.1  # the control: all the tokens
    assert inputs["lengths"].tolist() == [list(map(sum, group.masks)) for group in masked]


def test_masks_that_do_not_fit_are_refused() -> None:
    for scored in ((b"\1", None), (b"\0\0\0", None)):
        for path in (PaddedPath(PAD), PackedPath(), SharedPrefixPath()):
            with pytest.raises(InvalidArgument, match="groups.0..scored: expected 1 or 0 for each token"):
                path.collate([PromptGroup([6, 7], ([8, 9, 10], [9]), scored)])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@every_family
@every_path
def test_every_path_equals_the_naive_computation(tiny_model, path, family, dtype) -> None:
    """Log-probabilities of policy and reference, the RPO loss, and its gradient in each tensor of the policy.

    The control is one wrong token of the prompt.
    """
    tolerances = TOLERANCES[dtype]
    exact = [tiny_model(family, seed=seed).double() for seed in (POLICY, REFERENCE)]  # the float32 weights
    with Float64():
        expected = [naive_logps(model, PAIRS) for model in exact]
    expected_loss = naive_loss(*expected)
    policy, reference = (tiny_model(family, seed=seed).to(dtype) for seed in (POLICY, REFERENCE))
    with Float64() if dtype is torch.float64 else contextlib.nullcontext():
        logps = [score(path, policy), score(path, reference)]
        wrong = score(path, policy, [PromptGroup([*prompt[:-1], EOS], responses) for prompt, responses, _ in PAIRS])
    loss = objective_loss(OBJECTIVE, *logps)
    assert [logp.dtype for logp in logps] == [dtype, dtype]
    assert max(map(logp_error, logps, expected)) < tolerances[0]
    assert loss_error(loss, expected_loss) < tolerances[1]
    assert gradient_error(gradients(loss, policy), gradients(expected_loss, exact[0])) < tolerances[2]
    assert logp_error(wrong, expected[0]) > 1e-2


@every_family
def test_padding_on_the_left_needs_its_mask_and_positions(tiny_model, family) -> None:
    """Attended padding is wrong everywhere; missing position_ids only where positions are learned, not relative."""
    model, path = tiny_model(family, dtype=torch.float64), PATHS_UNDER_TEST["padded left"]()
    inputs = path.collate(PAIRS)
    with Float64():
        expected = naive_logps(model, PAIRS)
        attended = path.logps(model, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])})
        unplaced = path.logps(model, {key: value for key, value in inputs.items() if key != "position_ids"})
    assert logp_error(attended, expected) > 1e-3
    assert logp_error(unplaced, expected) > 1e-3 if family == "gpt2" else logp_error(unplaced, expected) < 1e-10


# --- invariance ----------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_order_split_and_company_of_a_batch_change_nothing(tiny_model, path, family) -> None:
    """In float64 to 1e-12: a permuted batch, a batch of one, and the responses of a pair exchanged."""
    model = tiny_model(family, dtype=torch.float64)
    logps = score(path, model)
    order = [3, 0, 5, 1, 4, 2]
    assert logp_error(score(path, model, [PAIRS[k] for k in order]), logps[order]) < 1e-12
    assert logp_error(torch.cat([score(path, model, [pair]) for pair in PAIRS]), logps) < 1e-12
    exchanged = [PromptGroup(prompt, responses[::-1]) for prompt, responses, _ in PAIRS]
    assert logp_error(score(path, model, exchanged), logps.flip(1)) < 1e-12
    assert logp_error(logps.flip(1), logps) > 1e-2  # the control: rows are told apart


@pytest.mark.parametrize("family", ["llama", "gemma"])
@every_path
def test_one_batch_of_six_is_three_of_two_is_six_of_one(tiny_model, path, family) -> None:
    """Mean loss and accumulated gradient in float64 to 1e-12, since the SFT term is a mean over pairs.

    The control is TRL's reduction, a token mean over each micro-batch, which depends on the split as lengths differ.
    """
    policy, reference = (tiny_model(family, dtype=torch.float64, seed=seed) for seed in (POLICY, REFERENCE))
    token_mean = RPO(beta=BETA, eta=1.0, sft_reduction="batch_token_mean")

    def accumulated(objective: RPO, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(PAIRS), size):
            inputs = path.collate(PAIRS[start : start + size])
            with Float64():
                logps, fixed = path.logps(policy, inputs), path.logps(reference, inputs)
            lengths = inputs["lengths"][:, 0]
            total = total + objective_loss(objective, logps, fixed, chosen_lengths=lengths) * size / len(PAIRS)
        return total, gradients(total, policy)

    whole, split_differs = accumulated(OBJECTIVE, 6), accumulated(token_mean, 6)
    for size in (2, 1):
        loss, gradient = accumulated(OBJECTIVE, size)
        assert loss_error(loss, whole[0]) < 1e-12
        assert gradient_error(gradient, whole[1]) < 1e-12
        loss, gradient = accumulated(token_mean, size)
        assert loss_error(loss, split_differs[0]) > 1e-3
        assert gradient_error(gradient, split_differs[1]) > 1e-3


@every_family
@every_path
def test_step_0_is_ln_2_under_bfloat16(tiny_model, path, family) -> None:
    """Policy and reference with the same weights under the same autocast: the same bits, so the loss is ln 2.

    The control is a reference in float32: a step 0 as precomputing outside autocast would give.
    """
    policy, reference = tiny_model(family), tiny_model(family).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, fixed = score(path, policy), score(path, reference)
    assert logps.dtype == fixed.dtype == torch.float32
    assert torch.equal(logps, fixed)
    assert abs(objective_loss(DPO(beta=BETA), logps, fixed).item() - math.log(2.0)) < 1e-6
    assert abs(objective_loss(DPO(beta=BETA), logps, score(path, reference)).item() - math.log(2.0)) > 1e-6


# --- TRL and a real model ------------------------------------------------------------------------

# transformers renamed a setting that TRL still passes
DEPRECATED = "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning"
every_trl_loss = pytest.mark.parametrize("objective", [DPO(beta=BETA), OBJECTIVE], ids=["sigmoid", "sigmoid+sft"])
CHATS = [  # question, chosen, rejected
    ("What is the capital of France?", "The capital of France is Paris.", "I think it might be Lyon, or perhaps Nice."),
    ("Name a prime number above ten.", "Eleven.", "Twelve is a prime number above ten, since it is large and even."),
    ("Write one line about the sea.", "The sea keeps its own slow time, and lends it to the shore.", "Sea. Blue. Wet."),
    (
        "Is it safe to look at the Sun?",
        "No: without a proper filter it can harm your eyes.",
        "Yes, for a minute or so.",
    ),
]


def trl_result(
    policy: Any, reference: Any, tokenizer: Any, rows: list[dict[str, Any]], objective: RPO | DPO, folder: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[PromptGroup]]:
    """Return the loss and gradients of TRL's DPOTrainer on one batch of all rows, and the pairs as tokenised."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with_sft = objective.eta > 0
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=folder,
            beta=objective.beta,
            loss_type=["sigmoid", "sft"] if with_sft else ["sigmoid"],
            per_device_train_batch_size=len(rows),
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = [trainer.train_dataset[k] for k in range(len(rows))]
    pairs = [PromptGroup(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in batch]
    weights = [1.0, trl_batch_weight(objective, [len(row["chosen_ids"]) for row in batch])]
    trainer.loss_weights = weights if with_sft else [1.0]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch))
    return loss.detach(), gradients(loss, trainer.model), pairs


@pytest.mark.filterwarnings(DEPRECATED)
@every_trl_loss
@every_family
def test_every_path_equals_trl(tiny_model, tiny_tokenizer, tmp_path, family, objective) -> None:
    """The trainer of TRL on the same tokens, with the SFT weight of the batch: 0.005 * 40 tokens / 6 pairs.

    Its words and ours are the same tokens, each response with one end of sequence. Seen: 4e-7 and 4e-6.
    """

    def text(ids: Sequence[int]) -> str:
        return " ".join(f"w{k - FIRST_WORD}" for k in ids if k != EOS)

    rows = [{"prompt": text(p) + " ", "chosen": text(w), "rejected": text(lost)} for p, (w, lost), _ in PAIRS]
    models = (tiny_model(family, seed=seed) for seed in (POLICY, REFERENCE))
    their_loss, theirs, pairs = trl_result(*models, tiny_tokenizer(), rows, objective, str(tmp_path))
    assert pairs == PAIRS
    policy, reference = (tiny_model(family, seed=seed) for seed in (POLICY, REFERENCE))  # untouched by TRL
    for make in PATHS_UNDER_TEST.values():
        loss = objective_loss(objective, score(make(), policy), score(make(), reference).detach())
        gradient = gradients(loss, policy)
        assert loss_error(loss, their_loss) < 1e-5
        assert gradient_error(gradient, theirs) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings(DEPRECATED)
def test_smollm2_equals_trl_and_the_naive_computation(smollm2, tmp_path) -> None:
    """Four chats on SmolLM2-135M-Instruct in float32, against a reference moved away by 2 % of its last norm.

    Seen: log-probabilities 3e-6; loss and gradients 2e-6 and 2e-5 from float64, 4e-7 and 8e-6 from TRL.
    """
    policy, tokenizer = smollm2
    reference = copy.deepcopy(policy).requires_grad_(False)
    reference.model.norm.weight.mul_(1.02)
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            **{
                which: [{"role": "assistant", "content": answer}]
                for which, answer in (("chosen", chosen), ("rejected", rejected))
            },
        }
        for question, chosen, rejected in CHATS
    ]
    their_loss, theirs, pairs = trl_result(
        copy.deepcopy(policy), copy.deepcopy(reference), tokenizer, rows, OBJECTIVE, str(tmp_path)
    )
    exact = [copy.deepcopy(model).double() for model in (policy, reference)]
    with Float64():
        expected = [naive_logps(model, pairs) for model in exact]
    expected_loss = naive_loss(*expected)
    expected_gradient = gradients(expected_loss, exact[0])
    del exact  # at most three models and two gradients at a time
    for make in PATHS_UNDER_TEST.values():
        logps = [score(make(), model, pairs) for model in (policy, reference)]
        loss = objective_loss(OBJECTIVE, *logps)
        gradient = gradients(loss, policy)
        assert max(map(logp_error, logps, expected)) < 1e-5
        for value, tensors in ((expected_loss, expected_gradient), (their_loss, theirs)):
            assert loss_error(loss, value) < 1e-5
            assert gradient_error(gradient, tensors) < 1e-4
