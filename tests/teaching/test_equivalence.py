"""Distances to the free maximin, against problems small enough to solve by other means."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar

from rpo import RPO
from rpo.bandit import ContextualBandit, PreferenceCounts, instances
from rpo.compare import tiny_gpt2
from rpo.core.errors import InvalidArgument
from rpo.teaching.lessons import equivalence

BETA, ETA = 0.5, 0.2
OBJECTIVE = RPO(beta=BETA, eta=ETA, base="reference")
SHARES = [0.25, 0.5, 0.9, 1.01, 2.0]


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + np.exp(-z))


def two_responses() -> tuple[ContextualBandit, PreferenceCounts, float]:
    """One prompt, 7 wins against 3; the free reward difference is the root of a scalar equation."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 2), 0.5), reward=np.array([[1.0, 0.0]]))
    data = PreferenceCounts.from_wins([[[0, 7], [3, 0]]])

    def slope(u: float) -> float:
        return -0.7 * sigmoid(-u) + 0.3 * sigmoid(u) + ETA * (sigmoid(u / BETA) - 0.5)

    return problem, data, float(brentq(slope, -5.0, 5.0, xtol=1e-14))


def test_a_box_clips_the_reward_difference() -> None:
    problem, data, free = two_responses()
    assert equivalence.reward_spread(equivalence.free_maximin(problem, data, OBJECTIVE)) == pytest.approx(free)
    frame = equivalence.box_distances(problem, data, OBJECTIVE, shares=SHARES)
    expected = [sigmoid(free / BETA) - sigmoid(min(1.0, share) * free / BETA) for share in SHARES]
    assert frame["tv"].to_numpy() == pytest.approx(expected, abs=1e-8)
    assert frame["active"].tolist() == [share < 1.0 for share in SHARES]
    assert frame["bound"].to_numpy() == pytest.approx(np.array(SHARES) * free)
    assert (frame["loss/excess"][:3] > 0).all() and frame["loss/excess"][3:].to_numpy() == pytest.approx(0.0, abs=1e-12)


def test_a_ball_of_all_tables_clips_the_same_way() -> None:
    """Two responses: the reward of least norm is (u/2, -u/2), so a share of the norm is that share of u."""
    problem, data, free = two_responses()
    frame = equivalence.ball_radii(problem, data, OBJECTIVE, shares=SHARES, rng=0)
    expected = [sigmoid(free / BETA) - sigmoid(min(1.0, share) * free / BETA) for share in SHARES]
    assert frame["tv"].to_numpy() == pytest.approx(expected, abs=1e-7)
    assert frame["radius"].to_numpy() == pytest.approx(np.array(SHARES) * free / np.sqrt(2.0))
    assert frame["active"].tolist() == [share < 1.0 for share in SHARES]


def test_one_feature_is_a_scalar_problem() -> None:
    problem = instances.random(prompts=2, arms=3, rng=0)
    data = problem.sample_preferences(60, rng=1)
    frame = equivalence.feature_dimensions(problem, data, OBJECTIVE, dimensions=[1, 4, 6], rng=5)
    square = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    phi = square[:, 0].reshape(2, 3)

    def policy(theta: float) -> np.ndarray:
        tilted = problem.reference * np.exp(theta * phi)
        return tilted / tilted.sum(axis=1, keepdims=True)

    def loss(theta: float) -> float:
        h = theta * phi
        margins = h[data.prompt, data.chosen] - h[data.prompt, data.rejected]
        sft = -(data.prompt_frequencies[:, None] * problem.reference * np.log(policy(theta))).sum()
        return float(data.weights @ np.log1p(np.exp(-BETA * margins)) + ETA * BETA * sft)

    best = policy(minimize_scalar(loss, bounds=(-30, 30), method="bounded", options={"xatol": 1e-10}).x)
    free = equivalence.free_maximin(problem, data, OBJECTIVE).policy
    apart = 0.5 * np.abs(best - free).sum(axis=1).max()
    assert frame["tv"][0] == pytest.approx(apart, abs=1e-6) and frame["tv/softmax"][0] == pytest.approx(apart, abs=1e-6)
    assert frame["tv/between"].to_numpy() == pytest.approx(0.0, abs=1e-8)
    # X (A - 1) = 4 features reach every policy
    assert frame["tv"][0] > 1e-3 and frame["tv"][1:].to_numpy() == pytest.approx(0.0, abs=1e-8)


def test_prompt_weights_matter_with_several_prompts_only() -> None:
    one = instances.random(prompts=1, arms=3, rng=0)
    assert equivalence.weight_distances(one, OBJECTIVE, ns=[30], draws=3, rng=0)["tv"][0] == pytest.approx(
        0.0, abs=1e-9
    )
    several = instances.coverage_skew(prompts=3, arms=3, rng=0)
    few, many = equivalence.weight_distances(several, OBJECTIVE, ns=[30, 30000], draws=5, rng=0)["tv"]
    assert few > 5 * many > 0


def test_two_rewards_by_brute_force() -> None:
    margin, beta, eta = 0.8, 0.3, 0.5
    p = np.linspace(1e-6, 1 - 1e-6, 20001)
    divergence = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    likelihood = 0.5 * np.log1p(np.exp(-margin)) + 0.5 * np.log1p(np.exp(margin))
    phi = [likelihood + eta * (sign * (p - 0.5) * margin - beta * divergence) for sign in (1.0, -1.0)]
    found = equivalence.two_rewards(margin=margin, beta=beta, eta=eta)
    assert found["maximin"] == pytest.approx(np.minimum(*phi).max(), abs=1e-6)
    assert found["minimax"] == pytest.approx(min(values.max() for values in phi), abs=1e-6)
    assert found["policy"] == pytest.approx(p[phi[0].argmax()], abs=1e-4)
    assert found["convex"] == pytest.approx(np.log(2.0))
    assert found["maximin"] < found["minimax"]


def test_rotary_positions_tie_what_learned_ones_do_not() -> None:
    """P(second token = t | prompt p, first p) against P(first token = t | prompt p), at other weights, too."""
    llama = equivalence.tiny_llama(vocab_size=3, length=2, rng=0)
    with torch.no_grad():
        for weight in llama.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(1)))
    gaps = []
    for lm in (llama, tiny_gpt2(prompts=3, vocab_size=3, length=2, rng=0)):
        table = lm.policy().reshape(3, 3, 3)  # prompt, first, second
        first = table.sum(axis=2)
        gaps.append(max(np.abs(table[p, p] / first[p, p] - first[p]).max() for p in range(3)))
    assert gaps[0] < 1e-12 and gaps[1] > 1e-2


def test_transformers_are_measured_and_refused() -> None:
    frame = equivalence.transformer_distances(OBJECTIVE, vocab_size=3, widths=(8,), num_preferences=100, steps=2)
    lm = tiny_gpt2(prompts=3, vocab_size=3, length=1, hidden_size=8, rng=0)
    assert frame["parameters"][0] == sum(weight.numel() for weight in lm.model.parameters())
    assert 0.0 < frame["tv"][0] < 1.0 and frame["loss/excess"][0] > 0 and not frame["converged"][0]
    with pytest.raises(InvalidArgument, match="objective.base"):
        equivalence.transformer_distances(RPO(beta=0.1, eta=0.1))
    with pytest.raises(InvalidArgument, match="widths: expected multiples of 4"):
        equivalence.transformer_distances(OBJECTIVE, widths=(10,))
    with pytest.raises(InvalidArgument, match="family"):
        equivalence.transformer_distances(OBJECTIVE, family="rnn")
    assert "width" in equivalence.transformer_figure(frame, rank=2).axes[0].get_xlabel()


def test_figures_say_what_they_show() -> None:
    problem, data, _ = two_responses()
    boxes = equivalence.box_distances(problem, data, OBJECTIVE, shares=SHARES)
    assert all(axis.get_ylabel() for axis in equivalence.box_figure(boxes).axes)
    dimensions = equivalence.feature_dimensions(problem, data, OBJECTIVE, dimensions=[1, 2], rng=0)
    radii = equivalence.ball_radii(problem, data, OBJECTIVE, shares=SHARES, rng=0)
    assert all(axis.get_xlabel() for axis in equivalence.features_figure(dimensions, radii).axes)
    assert "does not bind" in equivalence.box_policies(problem, data, OBJECTIVE, share=1.5).axes[0].get_title(
        loc="left"
    )
    axis = equivalence.two_rewards_figure(margin=1.0, beta=0.3, eta=0.5).axes[0]
    tent = axis.lines[0]
    assert tent.get_xdata()[np.argmax(tent.get_ydata())] == pytest.approx(0.5)
