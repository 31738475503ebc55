"""Lists of K responses: every path and every method against a loop in float64, whatever the sizes and the cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import models_for_tests
import numpy as np
import pytest
import torch
from models_for_tests import EOS
from test_parity import PATHS_UNDER_TEST, Float64, logp_error, naive_logps
from training import tiny_lists, tiny_pairs, trainer, weights_of

import rpo
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Objective
from rpo.llm.data import PreparedPairs, TokenizedGroup, prepare_pairs
from rpo.llm.data.collate import PairDataset, data_digest, group_of, parted_by_size
from rpo.llm.data.report import RefusedRow
from rpo.llm.logps.packing import PackedPath, SharedPrefixPath
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.reference.cache import LogpCache, plan_batches
from rpo.llm.training.reward_model import RewardConfig, RewardTrainer
from rpo.methods import registry
from rpo.methods.lists import LIPO_LOSSES

every_path = pytest.mark.parametrize("path", [pytest.param(make(), id=name) for name, make in PATHS_UNDER_TEST.items()])


def _is_of_lists(kind: type[Objective]) -> bool:
    return kind.__module__ == "rpo.methods.lists" and kind().takes_lists


METHODS = {name: method.load()() for name, method in registry.METHODS.items() if _is_of_lists(method.load())}
METHODS |= {f"LiPO {variant}": rpo.LiPO(variant=variant) for variant in LIPO_LOSSES}
PlackettLuce = rpo.PlackettLuceDPO


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@every_path
def test_every_path_scores_ragged_groups(tiny_model, path, family) -> None:  # type: ignore[no-untyped-def]
    """Each response as by itself in float64 to 1e-10, one alone included; zeros where there is none."""
    groups = [group_of(group) for group in tiny_lists([3, 2, 5, 4, 1])]
    model = tiny_model(family, dtype=torch.float64)
    with Float64():
        inputs = path.collate(groups)
        found = path.logps(model, inputs)
        expected = [naive_logps(model, [group])[0] for group in groups]
    assert found.shape == inputs["lengths"].shape == (5, 5)
    for row, lengths, group, values in zip(found, inputs["lengths"], groups, expected, strict=True):
        k = len(group.responses)
        assert logp_error(row[:k], values) < 1e-10
        assert row[k:].tolist() == [0.0] * (5 - k)
        assert lengths.tolist() == [len(response) for response in group.responses] + [0] * (5 - k)


@pytest.mark.parametrize(
    ("path", "tokens"), [(PaddedPath(0), 4 * (4 + 3)), (PackedPath(), 4 * (4 + 3 - 1)), (SharedPrefixPath(), 4 + 4 * 2)]
)
def test_absent_responses_are_not_fed(path, tokens: int) -> None:  # type: ignore[no-untyped-def]
    """A prompt of 4 with 3 responses of 3 tokens beside one with a single one: the tokens of four responses."""
    prompt = (7, 8, 9, 10)
    groups = [PromptGroup(prompt, ((11, 12, EOS),) * 3), PromptGroup(prompt, ((11, 12, EOS),))]
    fed = path.collate(groups)["input_ids"].numel()
    assert fed == (tokens if path.name != "shared" else tokens + 4)


# --- the loss: every list method on every path --------------------------------------------------------


def naive_loss(policy: Any, reference: Any, data: PreparedPairs, objective: Objective) -> torch.Tensor:
    """Return the weighted mean over groups, one group and one sequence at a time, in float64."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for group in data:
        one = [group_of(group)]
        logps, fixed = naive_logps(policy, one), naive_logps(reference, one).detach()
        columns = Columns(
            logps=logps.unbind(1),
            reference=fixed.unbind(1),
            lengths=torch.tensor([group.lengths], dtype=torch.float64).unbind(1),
            scores=torch.tensor([group.scores], dtype=torch.float64).unbind(1) if group.scores else None,
        )
        (loss,) = objective.per_pair(columns)
        if objective.anchor.weight:
            loss = loss - objective.anchor.weight * logps[0, 0]
        total, weights = total + group.weight * loss, weights + group.weight
    return total / weights


def by_hand(policy: Any, reference: Any, data: PreparedPairs, beta: float) -> torch.Tensor:
    """Return Plackett-Luce's loss: minus the log-probability of drawing the responses in order, without replacement."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for group in data:
        one = [group_of(group)]
        strengths = torch.exp(beta * (naive_logps(policy, one) - naive_logps(reference, one).detach())[0])
        for k in range(len(strengths)):
            total = total - group.weight * torch.log(strengths[k] / strengths[k:].sum())
        weights += group.weight
    return total / weights


def one_update(folder: Any, data: Any, objective: Objective, **options: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Return the gradient by which one update of SGD moved each tensor, and the loss it logged."""
    policy = models_for_tests.tiny_model("llama", dtype=torch.float64)
    before = weights_of(policy)
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 1e-3} | options
    if "reference" in objective.needs:
        options |= {"ref_model": models_for_tests.tiny_model("llama", dtype=torch.float64, seed=1)}
    run = trainer(folder, data, model=policy, objective=objective, **options)
    with Float64():
        run.train()
    moved = {name: (before[name] - value) / 1e-3 for name, value in weights_of(policy).items()}
    return moved, run.state.log_history[0]["loss"]


def assert_same(moved: dict[str, torch.Tensor], loss: torch.Tensor, policy: Any) -> None:
    names, tensors = zip(*policy.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, tensors), strict=True):
        assert float((moved[name] - gradient).norm() / gradient.norm()) < 1e-6, name


@pytest.mark.parametrize("path", ["padded", "packed", "shared"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_lists_on_every_path(tmp_path: Any, name: str, path: str) -> None:
    """Loss and gradient of one update on ragged groups with weights, against the loop in float64, to 1e-6."""
    data, objective = tiny_lists(), METHODS[name]
    moved, logged = one_update(tmp_path, data, objective, path=path)
    policy, reference = (models_for_tests.tiny_model("llama", dtype=torch.float64, seed=seed) for seed in (0, 1))
    with Float64():
        loss = naive_loss(policy, reference, data, objective)
    assert logged == pytest.approx(loss.item(), rel=1e-6)
    assert_same(moved, loss, policy)


@pytest.mark.parametrize("path", ["padded", "packed", "shared"])
def test_plackett_luce_by_hand(tmp_path: Any, path: str) -> None:
    data = tiny_lists()
    moved, logged = one_update(tmp_path, data, PlackettLuce(beta=0.5), path=path)
    policy, reference = (models_for_tests.tiny_model("llama", dtype=torch.float64, seed=seed) for seed in (0, 1))
    with Float64():
        loss = by_hand(policy, reference, data, 0.5)
    assert logged == pytest.approx(loss.item(), rel=1e-6)
    assert_same(moved, loss, policy)


CUTS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "micro-batches of 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "single groups": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "by tokens": {"max_tokens_per_batch": 60},
    "reference live": {"precompute_ref_log_probs": False},
}


@pytest.mark.parametrize("path", ["padded", "shared"])
@pytest.mark.parametrize("name", CUTS)
def test_the_update_does_not_depend_on_how_a_batch_is_cut(tmp_path: Any, name: str, path: str) -> None:
    """Against the loop over groups; the control leaves the weights of the groups out."""
    data, objective = tiny_lists(), PlackettLuce(beta=0.5)
    moved, logged = one_update(tmp_path, data, objective, path=path, **CUTS[name])
    policy, reference = (models_for_tests.tiny_model("llama", dtype=torch.float64, seed=seed) for seed in (0, 1))
    with Float64():
        loss = naive_loss(policy, reference, data, objective)
        plain = naive_loss(policy, reference, PreparedPairs(replace(g, weight=1.0) for g in data), objective)
    assert logged == pytest.approx(loss.item(), rel=1e-6)
    assert_same(moved, loss, policy)
    assert abs(plain.item() - loss.item()) > 1e-2


def test_lists_of_two_train_as_pairs_do_bit_for_bit(tmp_path: Any, tiny_tokenizer: Any) -> None:
    """RPO on rows of pairs and on the same as lists with scores, of which half have the worse response first."""
    rng = np.random.default_rng(0)
    texts = [
        [" ".join(f"w{k}" for k in rng.integers(0, 50, size=rng.integers(2, 8))) for _ in range(3)] for _ in "12345678"
    ]
    pairs = [{"prompt": p, "chosen": f" {a}", "rejected": f" {b}"} for p, a, b in texts]
    lists = [
        {"prompt": p, "responses": [f" {a}", f" {b}"][:: 1 - 2 * (k % 2)], "scores": [2, 1][:: 1 - 2 * (k % 2)]}
        for k, (p, a, b) in enumerate(texts)
    ]
    tokenizer = tiny_tokenizer(chat_template=None)
    ends = []
    for name, data in (
        ("pairs", prepare_pairs(pairs, tokenizer)),
        ("lists", prepare_pairs(lists, tokenizer, lists=True)),
    ):
        run = trainer(tmp_path / name, data, objective=RPO(beta=0.1, eta=0.05), path="shared")
        run.train()
        ends.append((weights_of(run.model), [row for row in run.state.log_history if "loss" in row]))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    drop = ("grad_norm", "train_runtime")
    first, second = ([{k: v for k, v in row.items() if k not in drop} for row in each[1]] for each in ends)
    assert first == second


def test_plackett_luce_of_two_is_dpo(tmp_path: Any) -> None:
    """The same update to 1e-9: softplus and a log-sum-exp of two round apart."""
    data = tiny_pairs(8, weights=True)
    ranked, _ = one_update(tmp_path / "lists", data, PlackettLuce(beta=0.3))
    compared, _ = one_update(tmp_path / "pairs", data, DPO(beta=0.3))
    assert max(float((ranked[name] - compared[name]).abs().max()) for name in ranked) < 1e-9


# --- metrics ----------------------------------------------------------------------------------------


def test_the_metrics_of_lists_by_hand(tmp_path: Any) -> None:
    """chosen the best, rejected the worst, margins between neighbours, ordered pairs; ties in scores do not count."""
    data, objective = tiny_lists(), PlackettLuce(beta=0.5)
    policy, reference = (models_for_tests.tiny_model("llama", dtype=torch.float64, seed=seed) for seed in (0, 1))
    run = trainer(tmp_path, data, model=policy, objective=objective, ref_model=reference, max_steps=1)
    found = run.evaluate(data)
    expected: dict[str, list[float]] = {"chosen": [], "rejected": [], "margins": [], "accuracies": []}
    with torch.no_grad():
        for group in data:
            one = [group_of(group)]
            r = (0.5 * (naive_logps(policy, one) - naive_logps(reference, one))[0]).tolist()
            expected["chosen"].append(r[0])
            expected["rejected"].append(r[-1])
            expected["margins"].append(float(np.mean([a - b for a, b in pairwise(r)])))
            ordered = [
                r[i] > r[j] for i in range(len(r)) for j in range(i + 1, len(r)) if group.scores[i] > group.scores[j]
            ]
            expected["accuracies"].append(float(np.mean(ordered)))
    weights = [group.weight for group in data]
    for name, values in expected.items():
        assert found[f"eval_rewards/{name}"] == pytest.approx(np.average(values, weights=weights), abs=1e-5), name
    assert {"eval_logps/chosen", "eval_logps/rejected_per_token"} <= found.keys()


def test_displacement_is_of_the_best_response(tmp_path: Any) -> None:
    """Also where the list is a pair: processes that hold other sizes must log the same names."""
    run = trainer(tmp_path, tiny_lists([4, 2, 3, 2]), objective=PlackettLuce(beta=0.5), max_steps=2)
    run.train()
    logged = [row for row in run.state.log_history if "loss" in row][-1]
    names = {name for name in logged if name.startswith("displacement/")}
    assert names == {f"displacement/{name}" for name in ("share", "chosen_change", "chosen_change_per_token")}
    assert logged["displacement/chosen_change"] != 0


# --- reference values, parts, identity ------------------------------------------------------------------


def test_values_cached_for_pairs_serve_lists_and_only_the_rest_is_scored(tmp_path: Any) -> None:
    lists = tiny_lists([3, 4, 2, 2], scores=False)
    pairs = PreparedPairs(replace(group, own=group.own[:2]) for group in lists)
    file = tmp_path / "reference.safetensors"
    first = trainer(tmp_path / "pairs", pairs, objective=DPO(beta=0.1), ref_logps_cache=str(file), max_steps=1)
    first.train()
    key = first_key(file)
    lacking = plan_batches([group_of(group) for group in lists], LogpCache.load(file, key), 1000)
    assert sum(len(todo.digests) for batch in lacking for todo in batch) == 3  # 3 + 4 - 2 * 2
    second = trainer(tmp_path / "lists", lists, objective=PlackettLuce(), ref_logps_cache=str(file), max_steps=1)
    second.train()
    values = second.train_dataset.known["reference_logps"]
    assert values.shape == (4, 4) and np.isnan(values).sum() == 5
    assert len(LogpCache.load(file, key)) == 11
    np.testing.assert_array_equal(values[:, :2], first.train_dataset.known["reference_logps"])


def first_key(file: Any) -> Any:
    import json

    from rpo.llm.reference.cache import CacheKey

    content = file.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return CacheKey(**{name: metadata[name] for name in ("weights", "dtype", "template", "code")})


def test_parts_by_size() -> None:
    """Sizes 2, 3, 2 with one further response each: rows are left-aligned, and zeros at the end go."""
    tensors = {"x": torch.tensor([[1, 2, 9, 0], [3, 4, 5, 8], [6, 7, 9, 0]]), "w": torch.tensor([1, 2, 3])}
    (two, first), (three, second) = parted_by_size(tensors, [2, 3, 2])
    assert (two, three) == (2, 3)
    assert first["x"].tolist() == [[1, 2, 9], [6, 7, 9]] and first["w"].tolist() == [1, 3]
    assert second["x"].tolist() == [[3, 4, 5, 8]] and second["w"].tolist() == [2]
    ((k, whole),) = parted_by_size(tensors, [3, 3, 3])
    assert k == 3 and whole["x"] is tensors["x"]


def test_a_list_is_not_a_pair_with_a_base_response() -> None:
    own = ((5, 1), (6, 1), (7, 1))
    digests = [
        data_digest(PairDataset(PreparedPairs([group])))
        for group in (TokenizedGroup((2,), own, 0), TokenizedGroup((2,), own[:2], 0, base_ids=own[2:]))
    ]
    assert digests[0] != digests[1]


# --- refusals -----------------------------------------------------------------------------------------


def test_methods_of_pairs_refuse_lists_and_say_what_to_do(tmp_path: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"expected pairs, which DPO is about, got lists of up to 8.*binarize"):
        trainer(tmp_path, tiny_lists(), objective=DPO(beta=0.1))
    rows = [{"prompt": "w1 w1", "responses": ["w2", "w3"], "scores": [1, 2]}]
    with pytest.raises(RefusedRow, match=r"expected a column 'chosen'.*binarize"):
        trainer(tmp_path, rows, objective=DPO(beta=0.1), processing_class=tiny_tokenizer(chat_template=None))
    with pytest.raises(InvalidArgument, match=r"ranked_lists: expected False with DPO"):
        trainer(tmp_path, tiny_pairs(2), objective=DPO(beta=0.1), ranked_lists=True)
    model, tokenizer = models_for_tests.tiny_model("llama"), tiny_tokenizer()
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(InvalidArgument, match="expected pairs, which BradleyTerry is about"):
        RewardTrainer(model, args, train_dataset=tiny_lists(), processing_class=tokenizer)


@pytest.mark.parametrize("path", ["padded", "shared"])
def test_single_scored_responses(tmp_path: Any, path: str) -> None:
    """A-LoL, ratio and KL included, of K = 1 with scores of both signs, against the loop; and what is logged of it."""
    lists, objective = tiny_lists([1] * 6), rpo.ALoL(clip=0.5, kl_weight=0.1)
    data = PreparedPairs(replace(group, scores=(float(k - 2),)) for k, group in enumerate(lists))
    moved, logged = one_update(tmp_path / "a", data, objective, path=path)
    policy, reference = (models_for_tests.tiny_model("llama", dtype=torch.float64, seed=seed) for seed in (0, 1))
    with Float64():
        loss = naive_loss(policy, reference, data, objective)
    assert logged == pytest.approx(loss.item(), rel=1e-6)
    assert_same(moved, loss, policy)
    run = trainer(tmp_path / "b", data, objective=objective, max_steps=1)
    assert {"eval_rewards/response", "eval_logps/response_per_token"} <= run.evaluate(data).keys()
    with pytest.raises(
        InvalidArgument, match=r"expected single responses with a score, which ALoL is about, got pairs"
    ):
        trainer(tmp_path / "c", tiny_lists([2] * 4), objective=objective)
    with pytest.raises(InvalidArgument, match=r"expected single responses, which ALoL is about, got lists.*singles"):
        trainer(tmp_path / "c", tiny_lists([3] * 4), objective=objective)


def test_scores_outside_the_unit_interval_are_refused_by_row(tmp_path: Any) -> None:
    data = PreparedPairs(replace(g, scores=tuple(5 * s for s in g.scores)) if g.row == 2 else g for g in tiny_lists())
    with pytest.raises(InvalidArgument, match=r"scores: expected numbers in \[0, 1\], got .* in row 2"):
        trainer(tmp_path, data, objective=rpo.LiPO())
    trainer(tmp_path, data, objective=rpo.InfoNCA())  # the control: any scores


def test_rows_of_lists_go_through_fit(tmp_path: Any, tiny_tokenizer: Any) -> None:
    """Ragged rows with a missing score and a tie, ranked ones where it is said; the report is the run's."""
    rows = [
        {"prompt": "w1 w1", "responses": ["w2", "w3 w4", "w5"], "scores": [1, 2, 2]},
        {"prompt": "w6 w6", "responses": ["w2", "w3"], "scores": [1, 3]},
        {"prompt": "w7 w6", "responses": ["w2", "w3", "w9"], "scores": [1, 3, None]},
        {"prompt": "w8 w6", "responses": ["w2", "w3", "w9"], "scores": [1, None, None]},
    ]
    tokenizer = tiny_tokenizer(chat_template=None)
    run = trainer(tmp_path / "a", rows, objective=PlackettLuce(), processing_class=tokenizer, max_steps=1)
    run.train()
    report = run.data_reports["train"]
    assert (report["pairs"], report["ties"], report["unscored"]) == (3, 1, 1)
    assert report["refused"] == {"too_few_scores": 1}
    ordered = [{"prompt": "w1 w1", "responses": ["w2", "w3 w4", "w5"]}]
    with pytest.raises(RefusedRow, match="without scores or ranks"):
        trainer(tmp_path / "b", ordered, objective=PlackettLuce(), processing_class=tokenizer)
    options = {"processing_class": tokenizer, "ranked_lists": True}
    run = trainer(tmp_path / "b", ordered, objective=PlackettLuce(), **options)
    assert [len(ids) for ids in run.train_dataset.pairs[0].own] == [2, 3, 2]
