"""The proof's pieces by hand, on one prompt, and the exercises of notebook 05 by independent arithmetic."""

import math

import numpy as np
import pytest

import rpo
from rpo.bandit import Unconstrained, solve
from rpo.core.errors import InvalidArgument
from rpo.teaching import exercises
from rpo.teaching.lessons import shadow

BETA, ETA = 0.5, 0.3
# won[a][b]: how often a beat b, from the text of the notebook.
WON = {"AB": 8, "BA": 2, "BC": 6, "CB": 4, "AC": 4, "CA": 1, "CD": 5, "DC": 3}
REFERENCE = dict(zip("ABCDE", (0.15, 0.25, 0.2, 0.15, 0.25), strict=True))


def loss(policy: dict[str, float], base: dict[str, float], eta: float = ETA, beta: float = BETA) -> float:
    """DPO + eta beta SFT of a policy, in plain Python."""
    total, n = 0.0, sum(WON.values())
    for (w, lost), count in ((tuple(pair), count) for pair, count in WON.items()):
        margin = beta * math.log(policy[w] / REFERENCE[w] * REFERENCE[lost] / policy[lost])
        total += count / n * math.log1p(math.exp(-margin))
    return total - eta * beta * sum(mass * math.log(policy[a]) for a, mass in base.items() if mass)


def chosen() -> dict[str, float]:
    n = sum(WON.values())
    return {a: sum(count for pair, count in WON.items() if pair[0] == a) / n for a in "ABCDE"}


def softmax(logits: dict[str, float]) -> dict[str, float]:
    total = sum(math.exp(value) for value in logits.values())
    return {a: math.exp(value) / total for a, value in logits.items()}


def test_the_problem_is_the_one_described() -> None:
    problem, data = shadow.five_responses()
    labels = problem.response_labels
    assert labels == tuple("ABCDE")
    assert dict(zip(labels, problem.reference[0], strict=True)) == REFERENCE
    counted = {labels[w] + labels[y]: n for w, y, n in zip(data.chosen, data.rejected, data.count, strict=True)}
    assert counted == WON
    assert shadow.unseen(problem, data).tolist() == [False] * 4 + [True]


def test_the_reward_is_the_implicit_one_up_to_a_constant() -> None:
    problem, data = shadow.five_responses()
    theory = solve(problem, data, rpo.RPO(beta=BETA, eta=ETA, base="reference"), reward_class=Unconstrained())
    frame = shadow.implicit_reward(problem, theory)
    by_hand = BETA * np.log(frame["policy"] / np.array(list(REFERENCE.values())))
    np.testing.assert_allclose(frame["implicit"], by_hand, atol=1e-12)
    assert np.ptp(frame["difference"]) < 1e-7


def test_reward_side_and_loss_differ_by_the_same_number() -> None:
    problem, data = shadow.five_responses()
    frame = shadow.reward_and_loss(problem, data, rpo.RPO(beta=BETA, eta=ETA, base="reference"), tables=6, rng=1)
    constant = ETA * BETA * sum(p * math.log(p) for p in REFERENCE.values())
    np.testing.assert_allclose(frame["difference"], constant, atol=1e-12)
    assert frame["loss"].std() > 0.01  # not the same table six times


@pytest.mark.parametrize("eta", [0.0, ETA])
def test_pushes_are_the_slopes_of_the_loss_in_the_logits(eta: float) -> None:
    problem, data = shadow.five_responses()
    policy = {"A": 0.3, "B": 0.2, "C": 0.1, "D": 0.3, "E": 0.1}
    objective = rpo.RPO(beta=BETA, eta=eta)
    frame = shadow.pushes(problem, data, objective, policy=np.array([list(policy.values())]))
    logits, step = {a: math.log(p) for a, p in policy.items()}, 1e-5
    for index, a in enumerate("ABCDE"):
        slopes = []
        for weight in (eta, 0.0):
            up, down = (softmax(logits | {a: logits[a] + sign * step}) for sign in (1, -1))
            slopes.append((loss(down, chosen(), weight) - loss(up, chosen(), weight)) / (2 * step))
        assert frame["total"][index] == pytest.approx(slopes[0], abs=1e-8)
        assert frame["preference"][index] == pytest.approx(slopes[1], abs=1e-8)
    assert frame["preference"][4] == 0.0
    np.testing.assert_allclose(frame["sft"], eta * BETA * (frame["base"] - frame["policy"]), atol=1e-12)


def test_moving_mass_to_the_unseen_leaves_the_preference_loss_alone() -> None:
    problem, data = shadow.five_responses()
    objective = rpo.RPO(beta=BETA, eta=ETA, base="reference")
    frame = shadow.move_mass(problem, data, objective, problem.reference, [0.1, 0.25, 0.7])
    assert np.ptp(frame["preference"]) < 1e-12 and frame["loss"].idxmin() == 1
    for _, row in frame.iterrows():
        moved = {a: p * (1 - row["unseen"]) / 0.75 for a, p in REFERENCE.items()} | {"E": row["unseen"]}
        assert row["loss"] == pytest.approx(loss(moved, REFERENCE), abs=1e-12)


def test_a_problem_without_unseen_responses_is_refused() -> None:
    problem = rpo.bandit.instances.coverage_skew(arms=3, rng=0)
    with pytest.raises(InvalidArgument, match="data: expected responses with and without"):
        shadow.unseen(problem, problem.sample_preferences(1000, rng=0))


def test_figures_show_the_numbers() -> None:
    problem, data = shadow.five_responses()
    frame = shadow.pushes(problem, data, rpo.RPO(beta=BETA, eta=ETA))
    right = shadow.push_figure(frame).axes[1]
    np.testing.assert_allclose([bar.get_height() for bar in right.containers[1]], frame["sft"])
    figure = shadow.shadow(problem, data, beta=BETA, eta=ETA, base="reference")
    bars = [bar.get_height() for bar in figure.axes[0].containers[0]]
    table = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(bars, table, atol=1e-6)  # theory and table
    flat, curve = (line.get_ydata() for line in figure.axes[1].lines[:2])
    assert np.ptp(flat) < 1e-12 < np.ptp(curve)
    assert len(shadow.shadow(problem, data, beta=BETA, eta=0.0, base="reference").axes[1].lines) == 2  # DPO, the base
    run = rpo.Run(
        label="table", objective={}, config={}, status="", message="", arrays={},
        history=[{"step": 0, "gap": 1.0, "tv": 0.5}, {"step": 9, "gap": 0.1, "tv": 0.2}, {"step": 9, "loss": 1.0}],
    )  # fmt: skip
    assert shadow.approach([run]).axes[1].lines[0].get_ydata().tolist() == [0.5, 0.2]


def test_the_exercises_by_hand() -> None:
    book = exercises("05")
    assert book["05.1"].accepts(0.5 * math.log(6))
    # The slope of DPO's loss in E's logit, by differences.
    logits = {a: math.log(p) for a, p in REFERENCE.items()}
    moved = softmax(logits | {"E": logits["E"] + 0.1})
    assert loss(moved, chosen(), 0.0) == pytest.approx(loss(REFERENCE, chosen(), 0.0), abs=1e-12)
    assert book["05.2"].solve() == "leaves it alone"
    # One step on the SFT term's logit: eta beta d/dlogit of -E_b[log pi] with b(E) = 0, by differences.
    policy = {"A": 0.75, "E": 0.25}
    up = softmax({a: math.log(p) + (1e-6 if a == "E" else 0.0) for a, p in policy.items()})
    slope = 0.2 * 0.5 * (math.log(policy["A"]) - math.log(up["A"])) / 1e-6
    assert book["05.3"].accepts(-slope)
    # pi(E) minimises -0.25 log p - 0.75 log(1 - p), whatever the weight.
    grid = np.linspace(0.01, 0.99, 99)
    assert book["05.4"].accepts(grid[np.argmin(-0.25 * np.log(grid) - 0.75 * np.log1p(-grid))])
    # At eta = 0.3 the unconstrained rewards of A and D lie more than 0.5 apart.
    assert book["05.5"].solve() == "rewards confined to [0, 0.5]"
