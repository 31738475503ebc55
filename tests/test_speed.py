"""Speed against frozen references in the same run: a ratio that falls by more than a third is a regression.

The references are written here and stay as they are: the plain way to the same numbers. EXPECTED holds the ratios
measured when a row was added (processor time, median of paired ratios), so that the machine's speed cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.bandit.batched import sample_wins, solve_batch

pytestmark = pytest.mark.slow

EXPECTED = {"solve_batch": 11.5, "solve": 1.2, "training step": 2.5, "head": 1.3, "simulate": 18.0}
OBJECTIVE = rpo.RPO(beta=0.1, eta=0.05, base="reference")


def paired_ratio(slow: Callable[[], Any], fast: Callable[[], Any], turns: int = 7) -> float:
    """Return the median of the paired ratios of processor times, after one turn that warms up."""
    ratios = []
    for turn in range(turns + 1):
        seconds = {}
        for name, call in [("slow", slow), ("fast", fast)][:: 1 if turn % 2 else -1]:
            began = time.process_time()
            call()
            seconds[name] = time.process_time() - began
        if turn:
            ratios.append(seconds["slow"] / seconds["fast"])
    return median(ratios)


def check(name: str, ratio: float) -> None:
    print(f"{name}: {ratio:.2f} times the frozen reference, {EXPECTED[name]} expected")
    assert ratio > EXPECTED[name] * 2 / 3, f"{name}: {ratio:.2f} times the frozen reference, expected {EXPECTED[name]}"


def newton(wins: np.ndarray, reference: np.ndarray, beta: float, eta: float) -> np.ndarray:
    """Frozen: rewards of one prompt that minimise loss plus eta * (beta log-sum-exp - mean under the reference).

    Newton's method on one instance, the first response's reward fixed at 0.
    """
    n = wins / wins.sum()
    r = np.zeros(len(reference))
    for _ in range(30):
        p = 1 / (1 + np.exp(-(r[:, None] - r[None, :])))
        weights = reference * np.exp(r / beta)
        pi = weights / weights.sum()
        both = n + n.T
        gradient = (both * p - n).sum(1) + eta * (pi - reference)
        curvature = both * p * (1 - p)
        hessian = np.diag(curvature.sum(1)) - curvature + eta / beta * (np.diag(pi) - np.outer(pi, pi))
        step = np.zeros_like(r)
        step[1:] = np.linalg.solve(hessian[1:, 1:], gradient[1:])
        size = np.abs(step).max()
        r = r - step * min(1.0, 1.0 / max(size, 1e-300))
        if size < 1e-10:
            break
    return r


def instances(seeds: int) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    problem = rpo.bandit.ContextualBandit(
        d0=np.ones(1), reference=rng.dirichlet(np.full(8, 2.0), size=1), reward=rng.uniform(0, 2, size=(1, 8))
    )
    return problem, sample_wins(problem, 2000, seeds, rng=rng)


def test_the_batched_solver() -> None:
    problem, wins = instances(400)

    def slow() -> list[np.ndarray]:
        return [newton(w[0].astype(float), problem.reference[0], 0.1, 0.05) for w in wins]

    def fast() -> Any:
        return solve_batch(wins, OBJECTIVE, reference=problem.reference, reward_class=rpo.bandit.Unconstrained())

    found, expected = fast(), slow()
    for k in range(0, 400, 40):  # the frozen reference does the same work
        difference = found.reward[k, 0] - expected[k]
        assert np.ptp(difference) < 1e-6
    check("solve_batch", paired_ratio(slow, fast))


def test_one_solve() -> None:
    problem, wins = instances(20)
    counts = [rpo.bandit.PreferenceCounts.from_wins(w) for w in wins]

    def slow() -> list[np.ndarray]:
        return [newton(w[0].astype(float), problem.reference[0], 0.1, 0.05) for w in wins for _ in range(10)]

    def fast() -> Any:
        return [rpo.bandit.solve(problem, each, OBJECTIVE, method="newton") for each in counts]

    check("solve", paired_ratio(slow, fast))


def test_a_sweep() -> None:
    """Against drawing each seed's data and solving it by the frozen Newton."""
    seeds = 300

    def slow() -> float:
        total = 0.0
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            reward, reference = rng.uniform(0, 3, 10), rng.dirichlet(np.ones(10))
            wins = np.zeros((10, 10))
            for _ in range(100):
                i, j = rng.choice(10, size=2, replace=False)
                first = rng.uniform() < 1 / (1 + np.exp(reward[j] - reward[i]))
                wins[(i, j) if first else (j, i)] += 1
            total += newton(wins + 1e-6, reference, 0.05, 0.1).sum()
        return total

    grid = {"n": [100], "beta": [0.05], "eta": [0.1], "arms": [10], "prompts": [1], "reward_bound": [3.0]}

    def fast() -> Any:
        return rpo.bandit.simulate("coverage_skew", [rpo.RPO], grid, seeds, rng=0, proxy=False)

    check("simulate", paired_ratio(slow, fast))


def llama() -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def plain_logps(model: Any, rows: list[tuple[list[int], list[int]]]) -> Any:
    """Frozen: padded on the right, all logits in float32, one gather."""
    import torch

    width = max(len(p) + len(r) for p, r in rows)
    ids, mask, scored = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for k, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        ids[k, :length] = torch.tensor([*prompt, *response])
        mask[k, :length] = 1
        scored[k, len(prompt) : length] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (logps * scored[:, 1:]).sum(1)


def test_a_training_step() -> None:
    torch = pytest.importorskip("torch")
    from rpo.llm.logps.packing import choose_path
    from rpo.llm.logps.scoring import PromptGroup

    torch.manual_seed(0)
    model, rng = llama(), np.random.default_rng(0)
    pairs = [
        (rng.integers(4, 8192, 160).tolist(), [rng.integers(4, 8192, n).tolist() for n in rng.integers(20, 100, 2)])
        for _ in range(4)
    ]
    path = choose_path(model, 0)
    groups = [PromptGroup(prompt, responses) for prompt, responses in pairs]

    def slow() -> float:
        logps = plain_logps(model, [(prompt, response) for prompt, responses in pairs for response in responses])
        margin = 0.1 * (logps[0::2] - logps[1::2])
        loss = -torch.nn.functional.logsigmoid(margin).mean() - 0.005 * logps[0::2].mean()
        loss.backward()
        model.zero_grad()
        return loss.item()

    def fast() -> float:
        chosen, rejected = path.logps(model, path.collate(groups)).unbind(1)
        zeros = torch.zeros_like(chosen)
        loss = rpo.RPO(beta=0.1, eta=0.05)(chosen, rejected, zeros, zeros)[0]
        loss.backward()
        model.zero_grad()
        return loss.item()

    assert slow() == pytest.approx(fast(), rel=1e-5)
    check("training step", paired_ratio(slow, fast))


def test_the_head() -> None:
    torch = pytest.importorskip("torch")
    from rpo.llm.logps.head import head_logps

    torch.manual_seed(0)
    hidden = torch.randn(600, 256, requires_grad=True)
    weight = (0.05 * torch.randn(32_000, 256)).requires_grad_()
    targets = torch.randint(0, 32_000, (600,))

    def slow() -> float:
        found = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).sum()
        found.backward()
        return found.item()

    def fast() -> float:
        found = head_logps(hidden, weight, None, targets).sum()
        found.backward()
        return found.item()

    assert slow() == pytest.approx(fast(), rel=1e-5)
    check("head", paired_ratio(slow, fast))
