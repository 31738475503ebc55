"""Figures speak one language: colours by method, bands that can be, files for print, tables from frames."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas
import pytest

from rpo.core.errors import InvalidArgument
from rpo.methods.registry import METHODS
from rpo.plotting import COLORS, band, color_of, colors_of, mean_table, new_figure, paper, possible, save, style
from rpo.plotting.colors import METHODS as COLORED
from rpo.plotting.colors import ROLES
from rpo.plotting.overoptimization import message


def test_every_method_has_one_colour_that_is_neither_golds_nor_proxys() -> None:
    own = {name: color_of(name) for name in METHODS}
    assert len(set(own.values())) == len(own)
    assert not set(own.values()) & {ROLES["gold"], ROLES["proxy"]}
    assert (own["DPO"], own["RPO"]) == ("#D55E00", "#0072B2")
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in (*COLORED.values(), *ROLES.values()))


@pytest.mark.parametrize("label", ["DPO", "DPO, eta = 0.1", "DPO (beta = 0.1, eta = 0)", "DPO eta=1", " DPO"])
def test_the_name_at_the_head_of_a_label_gives_the_colour(label: str) -> None:
    assert color_of(label) == COLORS["DPO"]


def test_a_colour_does_not_change_with_what_else_is_drawn() -> None:
    """In every order and company of four methods, one of them unknown; of two DPOs the second is a tint."""
    names = ["DPO", "KTO", "MyMethod", "SimPO"]
    for some in itertools.chain.from_iterable(itertools.permutations(names, k) for k in range(1, 5)):
        assert colors_of(some) == [color_of(name) for name in some]
    assert color_of("MyMethod") not in COLORED.values()
    first, second = colors_of(["DPO a", "DPO b"])
    assert first == COLORS["DPO"] != second
    assert all(int(first[k : k + 2], 16) <= int(second[k : k + 2], 16) for k in (1, 3, 5))


@pytest.mark.parametrize(
    ("name", "mean", "ends"),
    [
        ("win_rate/gold", 0.1, (0.0, 0.6)),
        ("rewards/accuracies", 0.9, (0.4, 1.0)),
        ("logps/chosen", -0.2, (-0.7, 0.0)),
        ("kl/reference", 0.3, (0.0, 0.8)),
        ("displacement/chosen_change", 0.2, (-0.3, 0.7)),
        ("gold", 0.2, (-0.3, 0.7)),
    ],
)
def test_bands_end_where_numbers_do(name: str, mean: float, ends: tuple[float, float]) -> None:
    with style():
        _, axes = new_figure(1, 1, width=3, height=3)
        band(axes[0, 0], name, [0.0, 1.0], [mean, mean], [0.5, 0.5])
        drawn = axes[0, 0].collections[0].get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == pytest.approx(ends)
    assert possible(name)[0] <= ends[0] and ends[1] <= possible(name)[1]


def test_figures_for_print_have_their_width_and_small_letters() -> None:
    for given, inches in (("column", 3.25), ("page", 6.75), (5.0, 5.0)):
        with paper(given), style():
            figure, axes = new_figure(1, 2, width=8.0, height=6.0)
            assert figure.get_figwidth() == inches
            assert figure.get_figheight() == pytest.approx(0.75 * inches)
            assert axes[0, 0].title.get_fontsize() < 9
    with paper("slide"), style():
        figure, axes = new_figure(1, 2, width=8.0, height=6.0)
        assert figure.get_figwidth() / figure.get_figheight() == pytest.approx(16 / 9, rel=1e-3)
        assert 16 <= axes[0, 0].xaxis.label.get_fontsize() <= axes[0, 0].title.get_fontsize() <= 18
    with style():
        assert new_figure(1, 1, width=8.0, height=6.0)[0].get_figwidth() == 8.0
    with pytest.raises(InvalidArgument, match="width"), paper("poster"):
        pass


def test_files_have_truetype_fonts_and_the_same_bytes(tmp_path: Path) -> None:
    """A PDF names its fonts' kind: Type 3 is matplotlib's own default, the control."""
    import matplotlib

    data = pandas.DataFrame({"x": [1]})

    def drawn(name: str) -> bytes:
        with style():
            figure, axes = new_figure(1, 1, width=3, height=3)
            axes[0, 0].plot([1, 2], label="beta = 0.1")
            axes[0, 0].set_title("Greek and $\\beta$")
            axes[0, 0].legend()
        save(figure, tmp_path / name, data)
        return (tmp_path / name).read_bytes()

    for kind in ("png", "pdf", "svg"):
        assert drawn(f"a.{kind}") == drawn(f"b.{kind}")
    assert (b"/Type3" not in drawn("a.pdf") and b"/Subtype /TrueType" in drawn("a.pdf")) or b"/CIDFontType2" in drawn(
        "a.pdf"
    )
    figure = matplotlib.figure.Figure()
    figure.subplots().set_title("x")
    figure.savefig(tmp_path / "control.pdf")
    assert b"/Type3" in (tmp_path / "control.pdf").read_bytes()
    assert b"beta = 0.1" in drawn("a.svg")  # text, not outlines
    alone = tmp_path / "alone.png"
    save(figure, str(alone))
    assert alone.exists() and not alone.with_suffix(".csv").exists()
    with pytest.raises(InvalidArgument, match="output"):
        drawn("a.jpg")


FRAME = pandas.DataFrame(
    {
        "method": ["RPO", "RPO", "RPO", "DPO_x", "DPO_x"],
        "eta": [0.1] * 3 + [0.0] * 2,
        "gap": [1.0, 2.0, 3.0, 0.5, 0.5],
        "kl": [10.0, 20.0, 30.0, 4.0, 8.0],
    }
)


def test_tables_have_means_with_standard_errors() -> None:
    """RPO: mean 2, standard deviation 1 over three, so 1 / sqrt 3 = 0.577; KL 20 (5.77). DPO: no spread; 6 (2)."""
    lines = mean_table(FRAME, ["gap", "kl"], by=["method", "eta"]).splitlines()
    assert lines[0] == "| method | eta | gap | kl |" and lines[1] == "| --- | --- | ---: | ---: |"
    assert lines[2:] == ["| RPO | 0.1 | 2.00 (0.58) | 20.0 (5.8) |", "| DPO_x | 0 | 0.5 | 6.0 (2.0) |"]


def test_latex_escapes_and_sets_numbers_right() -> None:
    text = mean_table(FRAME, "gap", form="latex")
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule\nmethod & gap \\\\\n\\midrule\n")
    assert "RPO & 2.00 (0.58) \\\\" in text and "DPO\\_x & 0.5 \\\\" in text
    for wrong in ({"values": "gaps"}, {"values": "gap", "by": "arm"}, {"values": "gap", "form": "html"}):
        with pytest.raises(InvalidArgument):
            mean_table(FRAME, **wrong)  # type: ignore[arg-type]
    assert "nan" not in mean_table(FRAME.assign(gap=np.nan), "gap")


@pytest.mark.parametrize(
    ("gold", "proxy", "says"),
    [
        ([0.1, 0.5, 0.2], [0.2, 0.6, 0.9], "gold falls by 0.30, the proxy rises"),
        ([0.1, 0.5, 0.2], [0.2, 0.6, 0.5], "gold falls by 0.30, the proxy falls too"),
        ([0.1, 0.5, 0.2], None, "gold falls by 0.30"),
        ([0.1, 0.5, 0.49], [0.2, 0.6, 0.9], "gold does not fall"),
        ([-0.2, -0.1], None, "gold does not fall"),
    ],
)
def test_a_curve_is_named_by_what_happens_in_it(gold: list[float], proxy: list[float] | None, says: str) -> None:
    assert message(np.array(gold), None if proxy is None else np.array(proxy)) == says
