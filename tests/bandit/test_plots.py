"""The figures: the numbers behind them by hand or by planted truth, and what the figures say."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from rpo.bandit import instances, plots
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit
from rpo.bandit.maximin import solve
from rpo.bandit.plots import animation, eta_heatmap, gold_proxy, phase, policies
from rpo.bandit.problem import ContextualBandit
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO
from rpo.plotting import paper

KL = np.array([0.05, 0.2, 0.5, 1.0, 2.0, 4.0])


def texts(axis: Any) -> str:
    return " ".join(text.get_text() for text in axis.texts)


# --- overoptimization -------------------------------------------------------------------------------


def point(*values: Any) -> dict[str, Any]:
    names = ("method", "beta", "seed", "kl/reference", "reward/gold", "reward/proxy")
    return dict(zip(names, values, strict=True))


def planted(form: str, alpha: float = 1.0, gamma: float = 0.5, seeds: int = 4) -> pd.DataFrame:
    """Curves of a known law; seed s has gold 10 s at the reference, and proxy = 2 sqrt(KL) above -1."""
    d = np.sqrt(KL)
    gold = d * (alpha - gamma * (d if form == "best_of_n" else np.log(d)))
    rows: list[dict[str, Any]] = []
    for s in range(seeds):
        rows.append(point("reference", np.inf, s, 0.0, 10.0 * s, -1.0))
        for k, g, root in zip(KL, gold, d, strict=True):
            rows.append(point("RPO", 1 / k, s, k, g + 10.0 * s, 2 * root - 1.0))
    return pd.DataFrame(rows)


def test_curves_count_rewards_from_the_reference() -> None:
    """Gold 10 s at the reference of seed s is taken off: no spread is left between seeds."""
    frame = planted("best_of_n")
    table = gold_proxy.curves(frame)
    d = np.sqrt(KL)
    assert table["reward/gold"].to_numpy() == pytest.approx(d * (1.0 - 0.5 * d), abs=1e-12)
    assert table["reward/proxy"].to_numpy() == pytest.approx(2 * d, abs=1e-12)
    assert table["reward/gold/se"].max() < 1e-12 and set(table["seeds"]) == {4}
    frame.loc[frame["method"] == "reference", "reward/gold"] = 0.0  # control: without it the seeds differ
    assert gold_proxy.curves(frame)["reward/gold/se"].min() > 1.0


@pytest.mark.parametrize("form", ["best_of_n", "policy"])
def test_the_closest_law_is_the_planted_one(form: str) -> None:
    fitted = gold_proxy.fits(planted(form), form="closest", resamples=20, rng=0)["RPO"]
    assert fitted.form == form and (fitted.alpha, fitted.gamma) == pytest.approx((1.0, 0.5), abs=1e-9)


def test_the_figure_marks_the_peak_and_names_the_path() -> None:
    """d(1 - d / 2) peaks at d = 1: KL = 1 nat, gold 1/2."""
    frame = planted("best_of_n")
    figure = gold_proxy.overoptimization(frame, gold_proxy.fits(frame, form="closest", resamples=20, rng=0))
    axis = figure.axes[0]
    marked = [line for line in axis.lines if line.get_marker() == "D"]
    assert len(marked) == 1 and (marked[0].get_xdata()[0], marked[0].get_ydata()[0]) == pytest.approx((1.0, 0.5))
    assert "peak at 1.00 nats" in texts(axis) and "path: beta" in figure.get_suptitle()
    rising = planted("best_of_n", gamma=-0.1)
    figure = gold_proxy.overoptimization(rising, gold_proxy.fits(rising, form="best_of_n", resamples=20, rng=0))
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "D"] and "no peak" in texts(
        figure.axes[0]
    )


def test_a_frame_without_its_reference_is_refused() -> None:
    frame = planted("policy")
    for bad in (frame[frame["method"] != "reference"], frame[frame["seed"] != 0].replace({"seed": {1: 0}}).iloc[1:]):
        with pytest.raises(InvalidArgument, match="reference"):
            gold_proxy.curves(bad)
    with pytest.raises(InvalidArgument, match="kl/reference"):
        gold_proxy.curves(frame.drop(columns="kl/reference"))
    with pytest.raises(InvalidArgument, match="every seed"):
        gold_proxy.fits(frame.drop(index=frame.index[-1]), rng=0)


# --- the best eta -----------------------------------------------------------------------------------

NS = np.geomspace(20, 2000, 8)
ETAS = np.geomspace(1e-4, 1.0, 17)


def bowls(exponent: float, *, noise: float = 0.0, seeds: int = 12, rng: Any = None, scale: float = 0.5) -> pd.DataFrame:
    """Return gap = (log eta - log(scale N^exponent) - u_s)^2 / 20, u_s normal a seed: the mean's minimum is planted."""
    shift = np.zeros((NS.size, seeds)) if rng is None else noise * rng.normal(size=(NS.size, seeds))
    n, eta, seed = np.meshgrid(np.arange(NS.size), ETAS, np.arange(seeds), indexing="ij")
    target = np.log(scale) + exponent * np.log(NS[n]) + shift[n, seed]
    gap = (np.log(eta) - target) ** 2 / 20
    return pd.DataFrame({"n": NS[n].ravel(), "beta": 0.1, "eta": eta.ravel(), "seed": seed.ravel(), "gap": gap.ravel()})


@pytest.mark.parametrize("exponent", [-0.5, -0.9])
def test_a_planted_exponent_is_recovered(exponent: float) -> None:
    """Parabolas in log eta: the local fit is exact, whatever the grid."""
    result = eta_heatmap.best_eta_exponent(bowls(exponent), resamples=20, rng=0)
    assert result.exponent == pytest.approx(exponent, abs=1e-9) and result.censored == ()
    assert result.best_eta == pytest.approx(0.5 * NS**exponent, rel=1e-9)
    assert f"N^{exponent:.2f}" in result.message
    title = eta_heatmap.movement(result).axes[0].get_title(loc="left")
    assert "falls" in title


def test_the_exponents_interval_covers_the_truth() -> None:
    """60 noisy frames, 80 % intervals: between 60 % and 95 % hold the truth; hardly any hold a wrong exponent."""
    rng = np.random.default_rng(0)
    hits = wrong = 0
    for _ in range(60):
        frame = bowls(-0.6, noise=0.5, rng=rng)
        low, high = eta_heatmap.best_eta_exponent(frame, level=0.8, resamples=60, rng=rng).interval
        hits += low <= -0.6 <= high
        wrong += low <= -0.9 <= high
    assert 36 <= hits <= 57 and wrong <= 5


def test_an_optimum_at_the_end_of_the_grid_is_left_out_and_named() -> None:
    """scale 10: N = 20 has its best eta at 10 / 20^0.8 = 0.91, the last point but none."""
    result = eta_heatmap.best_eta_exponent(bowls(-0.8, scale=10.0), resamples=20, rng=0)
    assert result.censored[0] == 20.0 and result.exponent == pytest.approx(-0.8, abs=1e-9)
    assert "end of the grid" in result.message and len(result.to_frame()) + len(result.censored) == NS.size


def test_small_grids_and_gaps_in_them_are_refused() -> None:
    frame = bowls(-0.5)
    for bad in (frame[frame["n"] > 20], frame[frame["eta"] > 1e-3], frame.iloc[1:]):
        with pytest.raises(InvalidArgument, match="frame"):
            eta_heatmap.best_eta_exponent(bad, resamples=20, rng=0)


def test_the_heat_map_marks_the_least_mean_gap() -> None:
    """Two beta, three eta: gap |log10 eta + 2| + beta, least at beta = 0.1, eta = 0.01, second column, first row."""
    rows = [
        {"n": n, "beta": beta, "eta": eta, "seed": s, "gap": abs(np.log10(eta) + 2) + beta + 0.01 * s * (eta == 0.01)}
        for n in (10, 100) for beta in (0.1, 1.0) for eta in (0.001, 0.01, 0.1) for s in range(3)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    best = eta_heatmap.optima(frame)
    assert list(best["beta"]) == [0.1, 0.1] and list(best["eta"]) == [0.01, 0.01]
    assert best["gap"].to_numpy() == pytest.approx(0.11) and best["gap/se"].to_numpy() == pytest.approx(0.01 / 3**0.5)
    axis = eta_heatmap.heatmap(frame).axes[0]
    cross = next(line for line in axis.lines if line.get_marker() == "X")
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (1.5, 0.5)


# --- policies ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[ContextualBandit, PreferenceCounts]:
    problem = ContextualBandit(
        d0=np.ones(1), reference=np.array([[0.5, 0.3, 0.2]]), reward=np.array([[1.0, 0.2, 0.0]]), reward_bound=2.0
    )
    data = PreferenceCounts.from_pairs([0, 0, 0], [0, 1, 0], [1, 0, 2], num_prompts=1, num_responses=3, count=[5, 2, 1])
    return problem, data


def test_bars_are_counts_and_policies(small: Any) -> None:
    """Response 0: 6 wins, 2 losses, 8 of 16 appearances; 1: 2, 5; 2: 0, 1."""
    problem, data = small
    table = np.array([[0.1, 0.2, 0.7]])
    frame = policies.mass_frame(problem, data, {"reference": problem.reference, "DPO": table})
    assert list(frame["response"]) == ["0", "1", "2"]
    assert list(frame["wins"]) == [6, 2, 0] and list(frame["losses"]) == [2, 5, 1]
    assert frame["share"].to_numpy() == pytest.approx(np.array([8, 7, 1]) / 16)
    figure = policies.mass(frame)
    light, reference, dpo = figure.axes[1].containers
    assert [bar.get_height() for bar in light] == pytest.approx(list(np.array([8, 7, 1]) / 16))
    assert [bar.get_height() for bar in reference] == [0.5, 0.3, 0.2] and [b.get_height() for b in dpo] == [
        0.1,
        0.2,
        0.7,
    ]
    assert "unseen" not in texts(figure.axes[1])
    rest = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=3)
    assert texts(policies.mass(policies.mass_frame(problem, rest, {"DPO": table})).axes[1]).count("unseen") == 1


def test_simplex_paths_start_at_the_reference_and_are_solutions(small: Any) -> None:
    problem, data = small
    frame = policies.simplex_frame(problem, data, etas=(0.0, 0.2), betas=(0.1, 1.0, 0.4))
    for eta, rows in frame.groupby("eta"):
        assert list(rows["beta"]) == [np.inf, 1.0, 0.4, 0.1]
        assert rows.iloc[0][["p0", "p1", "p2"]].to_numpy(float) == pytest.approx(problem.reference[0])
        objective = RPO(beta=0.4, eta=float(eta)) if eta else DPO(beta=0.4)
        other = solve(problem, data, objective)
        assert rows.iloc[2][["p0", "p1", "p2"]].to_numpy(float) == pytest.approx(other.policy[0], abs=1e-5)
        assert rows.iloc[2]["gold"] == pytest.approx(problem.expected_reward(other.policy), abs=1e-5)
        assert rows["relative_gap"].max() <= 1e-7
    figure = policies.simplex(frame, problem, data)
    line = next(line for line in figure.axes[0].lines if str(line.get_label()).startswith("DPO"))
    assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((0.3 + 0.1, 0.2 * 0.75**0.5))  # by hand
    assert "beta" in figure.get_suptitle()
    with pytest.raises(InvalidArgument, match="3 responses"):
        policies.simplex_frame(instances.coverage_skew(arms=4, rng=0), data, etas=(0.0,), betas=(1.0,))


def sheet_figures(small: Any) -> dict[str, Any]:
    """One of each figure, with as much text as it comes to have."""
    problem, data = small
    ten = instances.coverage_skew(arms=10, skew=2.0, rng=33)
    names = ("reference", "beta = 0.3", "beta = 0.03")
    bars = policies.mass_frame(ten, ten.sample_preferences(100, rng=33), dict.fromkeys(names, ten.reference))
    n = np.array([1e2, 1e3, 1e4, 1e5])
    gaps = pd.DataFrame({"series": "RPO, eta fixed", "n": n, "mean": n**-0.5, "standard_error": 0.5 * n**-0.5})
    curves = planted("best_of_n")
    paths = pd.DataFrame([{"method": m, "beta": 0.1, "p0": 1.0, "p1": 0.0, "p2": 0.0} for m in ("DPO", "RPO eta = 1")])
    tail = pd.DataFrame({"coverage": [0.0, 0.1, 1.0, 5.0, np.inf], "gap": 1.0, "method": "RPO"})
    return {
        "mass": lambda: policies.mass(bars, title="At beta = 0.03 the mass sits on two that were compared once each"),
        "simplex": lambda: policies.simplex(paths, problem, data),
        "overoptimization": lambda: gold_proxy.overoptimization(
            curves, gold_proxy.fits(curves, form="closest", resamples=20, rng=0)
        ),
        "movement": lambda: eta_heatmap.movement(eta_heatmap.best_eta_exponent(bowls(-0.5), resamples=20, rng=0)),
        "gap_against_n": lambda: plots.gap_against_n(
            gaps, bounds=pd.DataFrame({"route": "paper", "n": n, "value": 20 * n**-0.5}), reward_bound=1.0
        ),
        "network": lambda: plots.comparison_network(ten),
        "coverage": lambda: plots.gap_against_coverage(tail, bins=2),
    }


@pytest.mark.parametrize("sheet", ["column", "page", "slide"])
@pytest.mark.parametrize(
    "name", ["mass", "simplex", "overoptimization", "movement", "gap_against_n", "network", "coverage"]
)
def test_nothing_leaves_the_canvas_on_any_sheet(small: Any, name: str, sheet: str) -> None:
    """Text, legends and marks, by the box around all that is drawn; ticks of one axis do not touch."""
    with paper(sheet):
        figure = sheet_figures(small)[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01
    if name == "simplex":
        corners = [text.get_window_extent() for text in figure.axes[0].texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(corners, 2))
    for axis in figure.axes:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text() and axis.axison]
        shown = [box for box in boxes if axis.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axis.bbox.x1 + 1]
        assert all(left.x1 <= right.x0 + 0.5 for left, right in itertools.pairwise(sorted(shown, key=lambda b: b.x0)))


# --- phases -----------------------------------------------------------------------------------------


def test_regions_by_hand() -> None:
    """Threshold 1: (DPO, RPO) means (0, 0), (2, 0), (0, 2), (2, 2) are regions 0 to 3; 1.01 +- 0.1 is unsure."""
    cells = {(0, 1): (0.0, 0.0), (1, 1): (2.0, 0.0), (0, 2): (0.0, 2.0), (1, 2): (2.0, 2.0), (2, 1): (1.01, 0.0)}
    rows = [
        {"skew": k, "n": n, "seed": s, "method": m, "gap": gap + 0.1 * (s - 1) * 3**0.5}
        for (k, n), gaps in cells.items() for m, gap in zip(("DPO", "RPO"), gaps, strict=True) for s in range(3)
    ]  # fmt: skip
    table = phase.regions(pd.DataFrame(rows), x="skew", y="n", threshold=1.0).set_index(["skew", "n"])
    assert [table.loc[cell, "region"] for cell in cells] == [0, 1, 2, 3, 1]
    assert [bool(table.loc[cell, "unsure"]) for cell in cells] == [False] * 4 + [True]


def test_phase_cells_are_solutions_and_share_their_draws() -> None:
    """The same seed has the same r* in every cell; a gap is that of `solve` on the same counts."""
    made: list[ContextualBandit] = []

    def make(skew: float, rng: np.random.Generator) -> ContextualBandit:
        made.append(instances.coverage_skew(arms=4, skew=skew, rng=rng))
        return made[-1]

    frame = phase.phase_frame(make, (0.0, 2.0), (20, 200), seeds=3, beta=0.1, eta=lambda n: 2.0 / n, knob="skew", rng=5)
    assert len(frame) == 2 * 2 * 3 * 2 and frame["certified"].all()
    assert set(frame.loc[frame["method"] == "RPO", "eta"]) == {0.1, 0.01}
    for seed in range(3):
        assert (made[seed].reward == made[3 + seed].reward).all() and (
            made[seed].behavior != made[3 + seed].behavior
        ).any()
    words = np.random.default_rng(5).integers(2**63, size=(3, 2))
    data = made[0].sample_preferences(20, rng=np.random.SeedSequence(int(words[0, 1])))
    cell = frame[(frame["skew"] == 0.0) & (frame["n"] == 20) & (frame["seed"] == 0)].set_index("method")["gap"]
    for method, objective in (("DPO", DPO(beta=0.1)), ("RPO", RPO(beta=0.1, eta=0.1))):
        assert cell[method] == pytest.approx(made[0].suboptimality(solve(made[0], data, objective).policy), abs=1e-5)
    figure = phase.phase_diagram(frame, x="skew", y="n", threshold=0.3)
    assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == [
        "mean gap above 0.3",
        "DPO: mean gap",
        "RPO: mean gap",
    ]


def test_phase_problems_must_share_the_reference() -> None:
    with pytest.raises(InvalidArgument, match="make_problem"):
        phase.phase_frame(lambda _, rng: instances.random(prompts=1, rng=rng), (0.0,), (20,), seeds=2, rng=0)


# --- animation --------------------------------------------------------------------------------------


def test_legs_of_gradient_descent_are_one_run(small: Any) -> None:
    """Stopping at 0, 3 and 10 steps and going on is the same as ten steps in one call."""
    problem, data = small
    frame = animation.run_frame(problem, data, beta=0.5, eta=0.2, points=[3, 10], learning_rate=2.0)
    assert list(frame["step"]) == [0, 3, 10] * 2
    for method, objective in (("DPO", DPO(beta=0.5)), ("RPO", RPO(beta=0.5, eta=0.2))):
        rows = frame[frame["method"] == method]
        run = fit(
            problem.softmax_policy(), data, objective, optimizer="gradient_descent", learning_rate=2.0, max_steps=10
        )
        history = run.to_frame().set_index("step").loc[[0, 3, 10]]
        for column in ("loss", "logps/chosen", "logps/rejected", "reward/gold"):
            assert rows[column].to_numpy() == pytest.approx(history[column].to_numpy(), abs=1e-12)
        assert rows.iloc[-1][["p0.0", "p0.1", "p0.2"]].to_numpy(float) == pytest.approx(run.policy[0], abs=1e-12)


def test_the_beta_path_is_made_of_solutions(small: Any) -> None:
    problem, data = small
    frame = animation.run_frame(problem, data, beta=0.5, eta=0.2, along="beta", points=[0.1, 1.0])
    rows = frame[frame["method"] == "RPO"]
    assert list(rows["beta"]) == [1.0, 0.1]
    other = solve(problem, data, RPO(beta=0.1, eta=0.2))
    assert rows.iloc[1][["p0.0", "p0.1", "p0.2"]].to_numpy(float) == pytest.approx(other.policy[0], abs=1e-5)


def test_the_gif_is_small_and_its_first_frame_shows_something(small: Any, tmp_path: Path) -> None:
    problem, data = small
    frame = animation.run_frame(problem, data, beta=0.5, eta=0.2, points=[1, 5, 20])
    path = animation.animate_run(frame, problem, data, tmp_path / "run.gif", frames_per_second=2, dpi=50)
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as picture:
        first = np.asarray(picture.convert("L"), dtype=float)
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("L"), dtype=float)
        assert picture.n_frames >= 4
    assert (first < 128).mean() > 0.01  # ink: bars, text
    assert np.abs(first - last).mean() > 0.1  # control: it moves
    other = frame.copy()
    ends, columns = other["step"] == 20, ["p0.0", "p0.1", "p0.2"]
    other.loc[ends, columns] = other.loc[ends, columns[::-1]].to_numpy()  # reversed: the axis stays as it is
    changed = animation.animate_run(other, problem, data, tmp_path / "other.gif", frames_per_second=2, dpi=50)
    with Image.open(changed) as picture:
        assert np.abs(np.asarray(picture.convert("L"), dtype=float) - first).mean() < 0.5
        picture.seek(picture.n_frames - 1)  # the bars follow the policy, not only the curves the step
        assert np.abs(np.asarray(picture.convert("L"), dtype=float) - last).mean() > 1.0
    with pytest.raises(InvalidArgument, match=r"\.gif"):
        animation.animate_run(frame, problem, data, tmp_path / "run.png")
