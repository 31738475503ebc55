"""From DPO to imitation: paths, gaps and distances against small problems worked out by other means."""

import numpy as np
import pandas
import pytest
from scipy.optimize import minimize

from rpo.bandit import Box, ContextualBandit, PreferenceCounts, Unconstrained, baselines, instances, simulate
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO
from rpo.teaching.lessons import pessimism

INSTANCES = {"even": ("coverage_skew", {"skew": [0.0], "arms": [4]}), "halves": ("disconnected", {"arms": [4]})}


def test_the_rare_response_is_rare() -> None:
    problem = pessimism.three_responses(rare=0.1)
    assert problem.behavior[0] == pytest.approx([0.54, 0.36, 0.1])  # type: ignore[index]
    assert problem.greedy_policy()[0].tolist() == [1.0, 0.0, 0.0]


def test_a_path_is_optimal_and_ends_at_the_base() -> None:
    """The reward side minimised by SciPy over the box, at one point of the path."""
    problem = pessimism.three_responses()
    wins = np.array([[0, 9, 1], [4, 0, 1], [2, 1, 0]], dtype=float)
    data = PreferenceCounts.from_wins(wins[None])
    beta, eta, base = 0.5, 0.3, wins.sum(axis=1) / wins.sum()
    frame = pessimism.eta_path(problem, data, betas=[beta], etas=[1e4, eta])

    def reward_side(r: np.ndarray) -> float:
        likelihood = (wins / wins.sum() * np.log1p(np.exp(-(r[:, None] - r[None, :])))).sum()
        return float(likelihood + eta * (-base @ r + beta * np.log(np.exp(r / beta).mean())))

    found = minimize(reward_side, np.ones(3), bounds=[(0.0, 2.0)] * 3, method="L-BFGS-B", options={"ftol": 1e-15})
    policy = np.exp(found.x / beta) / np.exp(found.x / beta).sum()
    points = frame[["p0", "p1", "p2"]].to_numpy()
    assert points[0] == pytest.approx(policy, abs=1e-4)  # sorted: the smaller eta first
    assert points[1] == pytest.approx(base, abs=1e-3)
    assert frame["gold"].to_numpy() == pytest.approx(points @ [1.0, 0.0, 0.4])
    with pytest.raises(InvalidArgument, match="problem: expected 3 responses"):
        pessimism.eta_path(instances.coverage_skew(rng=0), data, betas=[beta], etas=[eta])


def test_imitation_of_two_responses_by_hand() -> None:
    """pi_1 - b_1 = (w_1 p_1 - w_2 p_2) / eta, with p = sigmoid(-z) at z = beta log(pi_1 / pi_2)."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 2), 0.5), reward=np.array([[1.0, 0.0]]))
    data = PreferenceCounts.from_wins([[[0, 6], [2, 0]]])
    frame = pessimism.imitation(problem, data, beta=0.7, etas=[0.5, 5.0], reward_class=Unconstrained())
    for row in frame.itertuples():
        sides = []
        for sign in (1.0, -1.0):  # the policy is on one side of b = (3/4, 1/4) or on the other
            first = 0.75 + sign * row.tv
            if 0 < first < 1:
                z = 0.7 * np.log(first / (1 - first))
                lost = 0.75 / (1 + np.exp(z)), 0.25 / (1 + np.exp(-z))
                sides.append((abs(first - 0.75 - (lost[0] - lost[1]) / row.eta), sum(lost) / row.eta))
        error, bound = min(sides)
        assert error < 1e-9 and row.bound == pytest.approx(bound) and row.tv <= row.bound


def test_a_small_box_stops_short_of_the_base() -> None:
    """At eta large the box holds the log-odds of the policy at R / beta."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 2), 0.5), reward=np.array([[1.0, 0.0]]))
    data = PreferenceCounts.from_wins([[[0, 6], [2, 0]]])
    frame = pessimism.imitation(problem, data, beta=0.5, etas=[100.0], reward_class=Box(0.3))
    assert frame["tv"][0] == pytest.approx(0.75 - 1 / (1 + np.exp(-0.3 / 0.5)), abs=1e-9)
    assert frame["reward_class"][0] == "Box(0.3)" and frame["active"][0]
    figure = pessimism.imitation_figure(frame, frame.assign(reward_class="Unconstrained", bound=0.5))
    assert "Box(0.3)" in figure.axes[0].get_legend_handles_labels()[1]


def test_the_ends_of_the_dial_are_dpo_and_the_base() -> None:
    frame = pessimism.gap_against_eta(INSTANCES, ns=[20], beta=0.1, etas=[0.1, 1.0], seeds=4, rng=7)
    assert len(frame) == 2 * 4 * (2 + 2) and set(frame["eta"]) == {0.0, 0.1, 1.0, np.inf}
    grid = {**INSTANCES["even"][1], "n": [20]}
    for method, eta in ((DPO(beta=0.1), 0.0), (baselines.BasePolicy(), np.inf)):
        alone = simulate("coverage_skew", method, grid, 4, rng=7, proxy=False, progress=False)
        mine = frame[(frame["instance"] == "even") & (frame["eta"] == eta)].sort_values("seed")
        assert mine["gap"].to_numpy() == pytest.approx(alone.sort_values("seed")["gap"].to_numpy())
    axes = pessimism.gap_figure(frame).axes
    assert [axis.get_title(loc="left") for axis in axes] == ["even", "halves"]


def test_the_gain_is_chosen_on_the_other_half() -> None:
    """Seeds 0 and 2 prefer eta = 1, seeds 1 and 3 prefer 0.1: each half is scored at the other's choice."""
    gaps = {0.0: (5.0, 5.0, 5.0, 5.0), 0.1: (4.0, 1.0, 4.0, 1.0), 1.0: (1.0, 3.0, 1.0, 3.0), np.inf: (9.0,) * 4}
    rows = [
        {"instance": "made", "n": 10, "eta": eta, "seed": seed, "gap": gap, "status": "certified"}
        for eta, values in gaps.items()
        for seed, gap in enumerate(values)
    ]
    row = pessimism.gap_table(pandas.DataFrame(rows)).iloc[0]
    assert row["best eta"] == 1.0 and row["gap, DPO"] == 5.0 and row["gap, pi_base"] == 9.0
    assert row["gap, best"] == pytest.approx(3.5)  # 4, 3, 4, 3
    assert row["gain"] == pytest.approx(1.5) and row["gain/se"] == pytest.approx(np.std([1, 2, 1, 2], ddof=1) / 2)


def test_coverage_of_two_arms_by_hand() -> None:
    """C = |pi(1) - base(1)| with two arms; the chosen response is the better one with probability sigmoid(margin)."""
    found = pessimism.coverage_table(
        {"two": ("coverage_skew", {"arms": [2]}), "halves": ("disconnected", {"arms": [4]})}, seeds=5, rng=2
    )
    margins = [
        np.ptp(instances.coverage_skew(arms=2, rng=child).true_reward()) for child in np.random.default_rng(2).spawn(5)
    ]
    assert found["C"][0] == pytest.approx(sorted(1 / (1 + np.exp(margins)))[2])
    assert np.isinf(found["C"][1]) and found["uncovered"].tolist() == [0.0, 1.0]


def test_figures_of_one_problem() -> None:
    problem = pessimism.three_responses()
    data = problem.sample_preferences(60, rng=44)
    path = pessimism.eta_path(problem, data, betas=[0.1, 0.5], etas=[0.0, 0.1, 1.0])
    names = pessimism.eta_simplex(path, problem, data).axes[0].get_legend_handles_labels()[1]
    assert names == ["beta = 0.1, along eta", "beta = 0.5, along eta", "pi_base (chosen)"]
    for eta in (0.0, 0.1):
        assert f"eta = {eta:g}" in pessimism.policies_at(problem, data, beta=0.1, eta=eta).axes[0].get_title(loc="left")
