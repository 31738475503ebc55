"""The coverage figures draw what they are given: nodes, edges, currents, bins and margins are counted."""

import io
from typing import Any

import numpy as np
import pandas
import pytest
from matplotlib.patches import Circle, FancyArrowPatch, Wedge

from rpo.bandit import instances
from rpo.bandit.coverage.resistance import effective_resistance
from rpo.bandit.plots.coverage import gap_against_coverage
from rpo.bandit.plots.network import comparison_network
from rpo.core.errors import InvalidArgument

PATH = np.diag([1.0, 2.0, 0.0, 4.0], k=1) + np.diag([1.0, 2.0, 0.0, 4.0], k=-1)  # 0-1-2 and 3-4, separate


def patches(figure: Any, kind: type) -> list[Any]:
    return [patch for patch in figure.axes[0].patches if type(patch) is kind]


def test_network_draws_every_response_pair_component_and_current() -> None:
    """0-1-2 carries .2 from 2 to 0 over two edges, 3-4 carries .1 from 3 to 4: .04/1 + .04/2 + .01/4 = .0625."""
    p, q = np.array([0.4, 0.1, 0.1, 0.1, 0.3]), np.array([0.2, 0.1, 0.3, 0.2, 0.2])
    figure = comparison_network(PATH, p=p, q=q)
    assert len(patches(figure, Wedge)) == 10  # two halves a response
    assert len(patches(figure, Circle)) == 2  # a frame a component
    assert len(figure.axes[0].lines) == 3
    widths = sorted(line.get_linewidth() for line in figure.axes[0].lines)
    assert np.array(widths) / widths[-1] == pytest.approx([0.25, 0.5, 1.0])
    assert len(patches(figure, FancyArrowPatch)) == 3
    assert "0.0625" in figure.axes[0].get_title(loc="center")
    assert effective_resistance(PATH, p, q) == pytest.approx(0.0625, rel=1e-13)
    areas = [wedge.r**2 for wedge in patches(figure, Wedge)]
    assert areas[0] / areas[1] == pytest.approx(q[0] / p[0])  # area proportional to mass
    assert not patches(comparison_network(PATH, p=p, q=q, currents=False), FancyArrowPatch)


def test_network_arrows_point_to_the_comparator() -> None:
    figure = comparison_network(np.array([[0.0, 1.0], [1.0, 0.0]]), p=[0.7, 0.3], q=[0.4, 0.6])
    (arrow,) = patches(figure, FancyArrowPatch)
    (start, end) = arrow._posA_posB
    first, second = (np.array(w.center) for w in patches(figure, Wedge)[::2])
    assert (np.array(end) - np.array(start)) @ (first - second) > 0


def test_network_says_infinite_and_draws_no_current_across() -> None:
    figure = comparison_network(PATH, p=[1.0, 0, 0, 0, 0], q=[0, 0, 0, 0.5, 0.5])
    title = figure.axes[0].get_title(loc="center")
    assert "infinite" in title and "mass 1 changes component" in title
    assert not patches(figure, FancyArrowPatch)
    colors = {circle.get_edgecolor() for circle in patches(figure, Circle)}
    same = comparison_network(PATH, p=[0.5, 0, 0, 0.5, 0], q=[0, 0.5, 0, 0, 0.5])
    assert colors.isdisjoint(circle.get_edgecolor() for circle in patches(same, Circle))


@pytest.mark.parametrize("arms", [2, 3, 5, 12])
def test_network_of_a_problem_keeps_nodes_apart_and_renders(arms: int) -> None:
    problem = instances.coverage_skew(arms=arms, prompts=2, rng=0)
    figure = comparison_network(problem, prompt=1)
    figure.savefig(io.BytesIO(), format="png")
    centers = np.array([w.center for w in patches(figure, Wedge)[::2]])
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=2) + 10 * np.eye(arms)
    assert distance.min() >= 0.99
    assert "prompt 1" in figure.axes[0].get_title(loc="center")


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (PATH, {}, "p, q"),
        (np.triu(PATH), {"p": np.full(5, 0.2), "q": np.full(5, 0.2)}, "source"),
        (PATH, {"p": np.full(5, 0.3), "q": np.full(5, 0.2)}, "p"),
        (PATH, {"p": np.full(5, 0.2), "q": np.full((2, 5), 0.2), "prompt": 2}, "prompt"),
        (PATH, {"p": np.full(5, 0.2), "q": np.full(5, 0.2), "labels": ["a"]}, "labels"),
    ],
)
def test_network_refuses(source: Any, options: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        comparison_network(source, **options)
    assert error.value.name == named


def table(seed: int = 0) -> Any:
    g = np.random.default_rng(seed)
    coverage = np.concatenate([np.exp(g.normal(size=60)), np.full(10, np.inf), np.zeros(5)])
    rows = [
        pandas.DataFrame({"coverage": coverage, "gap": g.random(75) + shift, "method": name})
        for name, shift in (("RPO", 0.0), ("DPO", 0.5))
    ]
    return pandas.concat(rows, ignore_index=True)


def test_gap_bins_hold_means_and_standard_errors() -> None:
    """Four bins of fifteen: the curve's points are their means, infinite and zero coverage stand at the margins."""
    frame = table()
    figure = gap_against_coverage(frame, bins=4)
    figure.savefig(io.BytesIO(), format="png")
    axis = figure.axes[0]
    # Per method: the curve, then the margin at zero, then the one at infinity.
    assert len(axis.containers) == 6
    curve, zero, infinite = (axis.containers[i] for i in range(3))
    mine = frame[(frame.method == "RPO") & np.isfinite(frame.coverage) & (frame.coverage > 0)].sort_values("coverage")
    for b in range(4):
        gaps = mine.gap.to_numpy()[15 * b : 15 * b + 15]
        assert curve.lines[0].get_ydata()[b] == pytest.approx(gaps.mean())
        low, high = curve.lines[2][0].get_segments()[b][:, 1]
        assert (high - low) / 2 == pytest.approx(gaps.std(ddof=1) / np.sqrt(15))
    far = frame[(frame.method == "RPO") & np.isinf(frame.coverage)]
    assert infinite.lines[0].get_ydata()[0] == pytest.approx(far.gap.mean())
    assert zero.lines[0].get_xdata()[0] < mine.coverage.min()
    assert infinite.lines[0].get_xdata()[0] > mine.coverage.max() * 1.25
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels[-2:] == ["infinite", "0"] and axis.get_xscale() == "log"
    assert axis.get_legend_handles_labels()[1] == ["RPO", "DPO"]


def test_gap_figure_of_one_kind_of_row_only() -> None:
    frame = table()
    gap_against_coverage(frame[np.isinf(frame.coverage)]).savefig(io.BytesIO(), format="png")
    gap_against_coverage(frame.iloc[:1], points=False).savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"coverage": -1.0}, "frame['coverage']"),
        ({"coverage": np.nan}, "frame['coverage']"),
        ({"gap": np.nan}, "frame['gap']"),
    ],
)
def test_gap_figure_refuses(change: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        gap_against_coverage(table().assign(**change))
    assert error.value.name == named
    with pytest.raises(InvalidArgument, match="gap"):
        gap_against_coverage(table().drop(columns="gap"))
