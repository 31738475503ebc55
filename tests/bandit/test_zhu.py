"""benchmarks/zhu.py in small: the claim's shape, the slope on a known law, the files."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def zhu() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "zhu.py"
    spec = importlib.util.spec_from_file_location("zhu_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smoke_shows_greedy_failing_and_the_others_falling(zhu: Any, tmp_path: Path) -> None:
    """20 seeds, N = 1e2, 1e3, 1e4. Greedy's mean gap is about 0.27 or more; RPO against the chosen is the control."""
    result = zhu.main(["--smoke", "--output", str(tmp_path)])
    assert result["uncertified"] == dict.fromkeys(zhu.METHODS, 0)
    mean = {(row["method"], row["n"]): row["mean_gap"] for row in result["rows"]}
    assert all(mean["greedy", n] >= 0.1 for n in (100, 1_000, 10_000))
    assert all(mean[method, 10_000] < 0.2 * mean[method, 100] for method in ("rpo", "pessimistic_wald"))
    assert mean["rpo_base_chosen", 10_000] > 0.9
    with (tmp_path / "zhu.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result["rows"]) == 15
    assert json.loads((tmp_path / "zhu.json").read_text())["slopes"]["rpo"]["upper"] < -0.4


def test_slope_recovers_a_power_law_and_its_interval_covers(zhu: Any) -> None:
    """Gaps 0.2 N^-1/2 times an exponential of mean 1, 200 seeds, 40 tables: 95 % intervals cover -1/2 33 times or more.

    P(fewer than 33 of 40 | 0.95) is about 1e-3; the control, flat gaps, never has an upper limit below -0.4.
    """
    g = np.random.default_rng(0)
    sizes = [100, 1_000, 10_000, 100_000]
    scale = 0.2 * np.array(sizes)[:, None] ** -0.5
    covered = 0
    for _ in range(40):
        s = zhu.slope(sizes, scale * g.exponential(size=(4, 200)), g)
        covered += s["lower"] <= -0.5 <= s["upper"]
    assert covered >= 33
    assert zhu.slope(sizes, g.exponential(size=(4, 200)), g)["upper"] > -0.4
    assert zhu.slope(sizes, np.zeros((4, 200)), g)["slope"] is None


def test_the_committed_results_show_what_is_claimed_of_them(zhu: Any) -> None:
    """At least 1,000 seeds, N to 1e6; greedy >= 0.1 throughout; RPO's and pessimism's slopes, tail too, <= -0.4."""
    folder = Path(zhu.__file__).parent / "results"
    found = json.loads((folder / "zhu.json").read_text())
    with (folder / "zhu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert found["settings"]["seeds"] >= 1000 and max(found["settings"]["sizes"]) == 10**6
    assert min(float(row["mean_gap"]) for row in rows if row["method"] == "greedy") >= 0.1
    assert not any(found["uncertified"].values())
    for method in ("rpo", "pessimistic_wald"):
        fitted = found["slopes"][method]
        assert fitted["upper"] <= -0.4 and fitted["tail"]["upper"] <= -0.4
        assert fitted["sizes"] == found["settings"]["sizes"]
