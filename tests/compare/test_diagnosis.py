"""A diagnosis by tokens against exact sums on the enumerable model, and against the bandit's own diagnostics."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from rpo.bandit import ContextualBandit, LinearSoftmaxPolicy, PreferenceCounts, diagnostics
from rpo.compare import EnumerableLM, fit_language_model, tiny_gpt2
from rpo.compare.sampled_kl import exact_kl
from rpo.compare.with_trainer import as_pairs
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO
from rpo.core.pair_diagnostics import CASES
from rpo.llm.data.collate import group_of
from rpo.llm.diagnostics import gradient_entanglement
from rpo.llm.diagnostics.diagnosis import Diagnosis, diagnose
from rpo.llm.logps.scoring import PaddedPath
from rpo.llm.reference import AsGiven, FrozenModel

Small = tuple[EnumerableLM, ContextualBandit, PreferenceCounts]
BETA, RATE = 0.3, 0.6


@pytest.fixture(scope="module")
def trained(small: Small) -> EnumerableLM:
    lm, problem, data = small
    return fit_language_model(
        lm, data, DPO(beta=BETA), problem=problem, steps=25, log_every=25, progress=False
    ).artifact


def diagnosed(small: Small, trained: EnumerableLM, **options: Any) -> Diagnosis:
    lm, _, data = small
    pairs = as_pairs(lm, data)
    given = {"gradient_pairs": len(pairs), "kl_prompts": 0, "chosen_rate": RATE, "eta": 0.01, "tokenizer": None}
    given |= {"path": "padded"}
    reference = FrozenModel(copy.deepcopy(lm.model))
    return diagnose(trained.model, pairs, reference=reference, beta=BETA, **{**given, **options})


def margins(table: Any, data: PreferenceCounts) -> Any:
    return table[data.prompt, data.chosen] - table[data.prompt, data.rejected]


def test_every_number_is_the_tables(small: Small, trained: EnumerableLM) -> None:
    """Rankings by the bandit's functions; what moved by sums over the table of all responses, with their weights."""
    lm, _, data = small
    found = diagnosed(small, trained)
    before, now = (np.log(one.policy()) for one in (lm, trained))
    weights, h = np.asarray(data.weights), now - before
    wrong = margins(before, data) < 0
    expected = {
        "ranking/accuracy": diagnostics.ranking_accuracy(now, data),
        "ranking/accuracy_per_token": diagnostics.ranking_accuracy(now, data),  # all of one length
        "ranking/reference": diagnostics.ranking_accuracy(before, data),
        "ranking/idealised": diagnostics.idealised_ranking_accuracy(before, data, BETA, RATE),
        "ranking/threshold": np.median(diagnostics.ranking_loss(before, data, BETA)[wrong]),
        "ranking/turned": weights[wrong] @ (margins(now, data)[wrong] >= 0) / weights[wrong].sum(),
        "rewards/accuracies": weights @ (margins(h, data) > 0),
        "rewards/margins": BETA * weights @ margins(h, data),
        "loss/preference": weights @ np.logaddexp(0, -BETA * margins(h, data)),
        "displacement/share": weights @ (h[data.prompt, data.chosen] < 0),
        "displacement/chosen_change": weights @ h[data.prompt, data.chosen],
    }
    assert {name: found.numbers[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.2 < expected["ranking/reference"] < expected["ranking/idealised"] < 1
    assert expected["displacement/share"] > 0
    means = np.log(lm.policy()).mean()  # control: of another table they are others
    assert abs(found.numbers["displacement/chosen_change"] - weights @ (now - means)[data.prompt, data.chosen]) > 0.1


def test_the_report_in_words() -> None:
    """Shares in percent, other numbers as they are, and no error of a mean of equal numbers."""
    numbers = {"ranking/accuracy": 0.625, "ranking/accuracy_se": 0.05, "ranking/accuracy_per_token": 0.5}
    numbers |= {"ranking/reference": 1.0, "ranking/reference_se": 6.94e-17, "ranking/wrong": 0.0}
    numbers |= {"gradients/pair_cosine": 0.25, "gradients/pair_cosine_se": 0.125}
    nothing: Any = np.zeros((0, 2))
    given = {"eta": None, "untrained": False, "policy": nothing, "reference": nothing}
    rows = Diagnosis(pairs=8, beta=0.1, chosen_rate=0.999, numbers=numbers, **given).rows()
    assert [number for _, number, _ in rows] == ["62.5% +- 5.0%", "100.0%", "0.250 +- 0.125"]
    assert rows[0][2].endswith("by the mean over tokens 50.0%")


def test_gradients_are_those_of_the_table(small: Small, trained: EnumerableLM) -> None:
    """Inner products by autograd through the enumerated table; shares of cases and the least eta by the one formula."""
    _, _, data = small
    lm, pairs = small[0], as_pairs(small[0], data)
    table, weights = trained.logps(), list(trained.model.parameters())

    def gradient(x: int, a: int) -> torch.Tensor:
        found = torch.autograd.grad(table[x, a], weights, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).ravel() for p, g in zip(weights, found, strict=True)]
        )

    each = [(gradient(x, w), gradient(x, y)) for x, w, y in zip(data.prompt, data.chosen, data.rejected, strict=True)]
    exact = np.array([[float(w @ w), float(y @ y), float(w @ y)] for w, y in each]).T
    found = gradient_entanglement(trained.model, PaddedPath(0), [group_of(pair) for pair in pairs])
    assert np.stack([found.chosen, found.rejected, found.inner]) == pytest.approx(exact, rel=1e-6)
    numbers = diagnosed(small, trained).numbers
    shares = {case: float(data.weights @ (found.case == case)) for case in CASES}
    assert {case: numbers[f"gradients/{case.replace(' ', '_')}"] for case in CASES} == pytest.approx(shares)
    assert shares["both fall"] > 0 and shares["ideal"] > 0
    least = found.least_eta(margins(np.log(trained.policy() / lm.policy()), data), BETA)
    assert numbers["gradients/least_eta"] == pytest.approx(least.max(), rel=1e-6)
    fallen = np.asarray(data.weights)[least > 0]
    assert numbers["gradients/lifted"] == pytest.approx(fallen @ (least[least > 0] < 0.01) / fallen.sum())


def test_where_the_head_alone_is_trained_it_is_the_bandits_linear_policy() -> None:
    """log pi = W h(x) less its log-sum-exp: features are h(x) in the row of each token; equal to 1e-6."""
    lm = tiny_gpt2(prompts=3, vocab_size=4, length=1, hidden_size=8, rng=3)
    lm.model.requires_grad_(False)
    lm.model.lm_head.weight.requires_grad_(True)
    with torch.no_grad():
        hidden = lm.model.transformer(lm.prompts).last_hidden_state[:, -1].numpy()  # (X, D)
    features = np.einsum("ab,xd->xabd", np.eye(4), hidden).reshape(3, 4, -1)
    policy = lm.policy()
    problem = ContextualBandit(d0=np.ones(3) / 3, reference=policy / policy.sum(1, keepdims=True), features=features)
    data = PreferenceCounts.from_pairs([0, 1, 2, 2], [0, 1, 2, 3], [1, 3, 0, 1], num_prompts=3, num_responses=4)
    table = diagnostics.gradient_entanglement(LinearSoftmaxPolicy(problem), data)
    tokens = gradient_entanglement(lm.model, PaddedPath(0), [group_of(pair) for pair in as_pairs(lm, data)])
    for name in ("chosen", "rejected", "inner"):
        assert getattr(tokens, name) == pytest.approx(getattr(table, name), rel=1e-6)


def test_the_least_eta_is_where_a_step_of_rpo_lifts_the_chosen_response(small: Small, trained: EnumerableLM) -> None:
    """Of the pair whose responses both fall most, after a small step along minus the gradient of RPO's loss."""
    lm, _, data = small
    pairs = as_pairs(lm, data)
    reference = np.log(lm.policy())
    found = gradient_entanglement(trained.model, PaddedPath(0), [group_of(pair) for pair in pairs])
    least = found.least_eta(margins(np.log(trained.policy()) - reference, data), BETA)
    k = int(least.argmax())
    x, w, y = (int(column[k]) for column in (data.prompt, data.chosen, data.rejected))
    assert found.case[k] == "both fall"

    def change(eta: float) -> float:
        one = EnumerableLM(model=copy.deepcopy(trained.model), prompts=lm.prompts, length=lm.length)
        logps = one.logps()[x]
        margin = logps[w] - logps[y] - (reference[x, w] - reference[x, y])
        loss = torch.nn.functional.softplus(-BETA * margin) - BETA * eta * logps[w]
        parameters = list(one.model.parameters())
        slope = torch.autograd.grad(loss, parameters, allow_unused=True)
        length = sum(float((g**2).sum()) for g in slope if g is not None) ** 0.5
        with torch.no_grad():
            for p, g in zip(parameters, slope, strict=True):
                if g is not None:
                    p -= 1e-6 * g / length
            return float(one.logps()[x, w] - logps[w])

    assert change(1.5 * least[k]) > 0 > change(0.5 * least[k])


def test_explicit_and_implicit_rewards_are_compared_pair_by_pair(small: Small, trained: EnumerableLM) -> None:
    """The implicit reward itself as the explicit one leads by nothing; negated it is wrong where the other is right."""
    lm, _, data = small
    pairs = as_pairs(lm, data)
    h = np.log(trained.policy() / lm.policy())
    own = np.stack([h[data.prompt, data.chosen], h[data.prompt, data.rejected]], axis=1)
    same = diagnosed(small, trained, rewards=own, shifted=pairs, shifted_rewards=-own, gradient_pairs=0).numbers
    assert same["explicit/lead"] == same["explicit/lead_se"] == 0
    assert same["explicit/agreement"] == pytest.approx(1)
    assert same["explicit/accuracies"] == same["rewards/accuracies"] == same["shifted/implicit/accuracies"]
    assert same["shifted/explicit/agreement"] == 0
    assert same["shifted/explicit/lead"] == pytest.approx(1 - 2 * same["rewards/accuracies"])


def test_an_untrained_model_is_compared_with_nothing(small: Small) -> None:
    lm, _, data = small
    model = copy.deepcopy(lm.model)
    found = diagnose(
        model, as_pairs(lm, data), reference=AsGiven(model), tokenizer=None, beta=BETA, path="padded", gradient_pairs=2
    )
    assert found.numbers["ranking/accuracy"] == found.numbers["ranking/reference"]
    assert not [name for name in found.numbers if name.startswith(("rewards", "displacement", "kl", "loss"))]
    assert "turned" not in str(found.rows()) and "idealised" in str(found.rows())
    assert found.numbers["gradients/pairs"] == 2


def test_the_sampled_kl_is_near_the_exact_one(small: Small, trained: EnumerableLM) -> None:
    """Within four of its standard errors, of a model in whose vocabulary no token ends a response."""

    class Tokenizer:
        pad_token_id, eos_token_id = 0, None

    lm, _, _ = small
    trained.model.generation_config.eos_token_id = 10**6
    options = {"tokenizer": Tokenizer(), "max_new_tokens": lm.length, "gradient_pairs": 0, "kl_prompts": 9}
    estimates = [diagnosed(small, trained, **options, seed=seed).numbers["kl/reference"] for seed in range(30)]
    error = np.std(estimates, ddof=1) / 30**0.5
    assert abs(np.mean(estimates) - exact_kl(trained, lm)) < 4 * error < 0.5 * exact_kl(trained, lm)


def test_what_cannot_be_diagnosed_is_refused_by_name(small: Small, trained: EnumerableLM) -> None:
    pairs = as_pairs(small[0], small[2])
    frozen = copy.deepcopy(trained.model).requires_grad_(False)
    for match, ask in {
        "^rewards": lambda: diagnosed(small, trained, rewards=np.zeros((3, 2)), gradient_pairs=0),
        "^shifted_rewards": lambda: diagnosed(
            small, trained, shifted=pairs, shifted_rewards=[[0.0, 1.0]], gradient_pairs=0
        ),
        "^shifted: expected pairs, at least one, got none": lambda: diagnosed(
            small, trained, shifted=[], gradient_pairs=0
        ),
        "^chosen_rate": lambda: diagnosed(small, trained, chosen_rate=1.0),
        "^model: expected a whole model with parameters": lambda: gradient_entanglement(frozen, PaddedPath(0), []),
    }.items():
        with pytest.raises(InvalidArgument, match=match):
            ask()
