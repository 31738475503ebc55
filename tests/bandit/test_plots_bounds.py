"""The two figures: what is drawn is what the tables say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rpo.bandit.bounds.intervals import loglog_slope
from rpo.bandit.plots.bounds import gap_against_n, slack_waterfall
from rpo.core.errors import InvalidArgument
from rpo.plotting import save

ROOT = Path(__file__).parents[2]


def steps(chain: str, gap: float = 0.1) -> pd.DataFrame:
    slack = np.array([0.1, 0.2, 0.4])
    return pd.DataFrame(
        {
            "chain": chain,
            "number": [1, 2, 3],
            "name": ["optimality", "coverage", "concentration"],
            "slack_reward": slack,
            "share": slack / slack.sum(),
            "upper_bound": gap + np.cumsum(slack),
        }
    )


def test_waterfall_bars_join() -> None:
    """Each bar starts where the one before ends; the last ends at the bound; shares are the labels."""
    figure = slack_waterfall(pd.concat([steps("paper"), steps("hellinger")]))
    assert [axis.get_title(loc="left").split(":")[0] for axis in figure.axes] == ["paper", "hellinger"]
    bars = figure.axes[0].patches
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
    assert [right for _, right in edges] == pytest.approx([0.1, 0.2, 0.4, 0.8, 0.8])
    assert [left for left, _ in edges[1:4]] == pytest.approx([0.1, 0.2, 0.4])
    assert [text.get_text() for text in figure.axes[0].texts] == ["14 %", "29 %", "57 %"]
    assert figure.axes[0].get_xscale() == "log"


def test_waterfall_of_a_vanished_gap_is_linear() -> None:
    """A gap of zero has no place on a logarithmic axis."""
    figure = slack_waterfall(steps("paper", gap=-1e-17))
    assert figure.axes[0].get_xscale() == "linear"


def test_gap_against_n(tmp_path: Path) -> None:
    """One legend entry a series with its slope, one a bound; points under 3 standard errors are hollow."""
    n = np.array([1e2, 1e3, 1e4, 1e5])
    mean = n**-0.5
    gaps = pd.DataFrame({"series": "RPO", "n": n, "mean": mean, "standard_error": mean * [0.1, 0.1, 0.1, 0.5]})
    line = loglog_slope(n, mean, gaps["standard_error"])
    bounds = pd.DataFrame({"route": "paper", "n": n, "value": 20 * mean})
    figure = gap_against_n(gaps, slopes={"RPO": line}, bounds=bounds, reward_bound=1.0)
    axis = figure.axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert any("slope -0.50" in label for label in labels)
    assert "bound: paper" in labels
    marks = [drawn for drawn in axis.lines if drawn.get_marker() == "o" and len(drawn.get_xdata())]
    assert sorted(len(drawn.get_xdata()) for drawn in marks) == [1, 3]
    hollow = next(drawn for drawn in marks if len(drawn.get_xdata()) == 1)
    assert hollow.get_markerfacecolor() == "none"
    save(figure, tmp_path / "gap.png", gaps)
    assert (tmp_path / "gap.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "gap.csv")) == 4


def test_refuses() -> None:
    """Missing columns and empty tables are named."""
    with pytest.raises(InvalidArgument, match="upper_bound"):
        slack_waterfall(steps("paper").drop(columns="upper_bound"))
    with pytest.raises(InvalidArgument, match="gaps"):
        gap_against_n(pd.DataFrame({"series": [], "n": [], "mean": [], "standard_error": []}))


def test_study_runs(tmp_path: Path) -> None:
    """The benchmark's smoke size writes its tables, every bound holds and the small constant does not."""
    command = [sys.executable, "-W", "error", "benchmarks/bounds.py", "--smoke", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    validity = pd.read_csv(tmp_path / "bounds_validity.csv")
    assert (validity["held"] == 1.0).all() and (validity["omitted"] == 0).all()
    concentration = pd.read_csv(tmp_path / "bounds_concentration.csv")
    assert (concentration.loc[concentration["constant"] < 1, "high"] < 0.95).all()
    assert (concentration.loc[concentration["constant"] > 1, "held"] > 0.95).all()
    slopes = pd.read_csv(tmp_path / "bounds_slopes.csv").set_index("series")
    assert slopes.loc["shrinking, paper", "high"] < -0.4
    assert slopes.loc["disconnected, eta = 0", "low"] > -0.1
    assert (tmp_path / "bounds.json").exists()
