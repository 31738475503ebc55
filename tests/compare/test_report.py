"""The report is whole, self-contained and says the numbers of the comparison."""

import json
from pathlib import Path

import pandas
import pytest

from rpo.compare import Comparison, plot, write_report
from rpo.core.errors import InvalidArgument

FIGURES = ("policies", "likelihood", "overoptimization", "convergence")


def test_every_figure_has_its_data_beside_it(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    assert names == {"report.html", "report.json", "config.yaml"} | {
        f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "csv")
    }
    for name in FIGURES:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pandas.read_csv(report / f"{name}.csv")) > 0


def test_the_page_is_self_contained_and_shows_the_numbers(report: Path, comparison: Comparison) -> None:
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert "http:" not in page and "https:" not in page  # of a picture's letters "http" alone may come by chance
    assert "<script" not in page
    assert f"{comparison.agreement['transformer']['max_total_variation']:.1e}" in page


def test_the_record_holds_configuration_certificate_and_history(report: Path, comparison: Comparison) -> None:
    record = json.loads((report / "report.json").read_text())
    assert record["config"]["seed"] == 1
    assert record["config"]["objective"]["eta"] == 0.3
    assert record["theory"]["certificate"]["relative_gap"] == comparison.theory.certificate.relative_gap
    assert record["theory"]["programs"]["policy"]["status"] == "optimal"
    assert [run["label"] for run in record["runs"]] == ["table", "transformer", "transformer, DPO"]
    assert record["runs"][1]["history"][-1]["loss"] == comparison.transformer.loss
    assert record["environment"]["commit"]


def test_the_policies_saved_are_the_policies_compared(report: Path, comparison: Comparison) -> None:
    frame = pandas.read_csv(report / "policies.csv")
    row = frame[(frame["prompt"] == 1) & (frame["response"] == 4)].iloc[0]
    assert row["theory"] == pytest.approx(comparison.theory.policy[1, 4], rel=1e-12)
    assert row["transformer"] == pytest.approx(comparison.transformer.policy[1, 4], rel=1e-12)


def test_the_same_comparison_draws_the_same_bytes(report: Path, comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison, tmp_path / "again")
    for name in FIGURES:
        assert (tmp_path / "again" / f"{name}.png").read_bytes() == (report / f"{name}.png").read_bytes()


def test_a_failing_figure_leaves_no_report(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Comparison) -> None:
        raise RuntimeError("drawing failed")

    monkeypatch.setitem(__import__("rpo.compare.report", fromlist=["FIGURES"]).FIGURES, "convergence", (fail, ""))
    with pytest.raises(RuntimeError, match="drawing failed"):
        write_report(comparison, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_plot_takes_theory_and_runs_and_refuses_different_problems(comparison: Comparison) -> None:
    figure = plot([comparison.theory, comparison.table, comparison.dpo])
    assert len(figure.axes) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["RPO (beta = 0.2, eta = 0.3)", "table", "transformer, DPO"]
    heights = sorted((bar.get_height() for bar in figure.axes[0].patches), reverse=True)
    assert heights == pytest.approx(sorted(comparison.theory.policy[0], reverse=True))
    named = plot([comparison.theory, comparison.dpo], labels=["theory", "practice"])
    assert {text.get_text() for text in named.legends[0].get_texts()} == {"theory", "practice"}
    assert len(plot(comparison.theory).axes) == 2
    with pytest.raises(InvalidArgument, match="labels: expected 2 labels"):
        plot([comparison.theory, comparison.dpo], labels=["theory"])
    with pytest.raises(InvalidArgument, match="results: expected at least one"):
        plot([])

    class Other:
        label = "other"
        policy = comparison.theory.policy[:, :3]

    with pytest.raises(InvalidArgument, match=r"expected policies of one shape, \(2, 9\)"):
        plot([comparison.theory, Other()])
