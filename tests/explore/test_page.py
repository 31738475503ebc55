"""The page's text: figures that measure what they show, exact numbers, labelled controls, escaped words."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from rpo.explore import Settings, state
from rpo.explore.drawing import bars, curves, simplex
from rpo.explore.page import controls, results, said
from rpo.explore.settings import METHODS, RULES

PLOT = 330 - 76 - 46  # height of the bars' axis from 0 to 1, in units of the viewBox


class Outline(HTMLParser):
    """Collects start tags, and checks that every element that must be closed is, in order."""

    VOID = frozenset({"input", "br", "meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("arms", [3, 12])
def test_a_bar_is_as_high_as_its_probability(arms: int) -> None:
    """The axis is 208 units from 0 to 1, so a bar's height is 208 p; heights are written to a tenth."""
    view = state(Settings(arms=arms))
    drawn = ElementTree.fromstring(bars(view))
    rects = [e.attrib for e in drawn.iter() if e.tag == "rect" and e.get("fill") == "#D55E00"]
    assert len(rects) == arms + 1  # and the legend's
    heights = np.array([float(r["height"]) for r in rects[:arms]])
    np.testing.assert_allclose(heights, PLOT * view.policy, atol=0.051)
    assert np.abs(heights - PLOT * view.base).max() > 1  # control: another policy has other bars


def test_the_path_is_drawn_at_its_barycentric_coordinates() -> None:
    """Corners (60, 338), (360, 338) and (210, 338 - 300 sin 60 = 78.2): a point is their mean under the policy."""
    view = state(Settings())
    line = next(e for e in ElementTree.fromstring(simplex(view)).iter("polyline") if e.get("stroke") == "#D55E00")
    points = np.array([pair.split(",") for pair in line.attrib["points"].split()], dtype=float)
    corners = np.array([[60.0, 338.0], [360.0, 338.0], [210.0, 338.0 - 300.0 * np.sqrt(0.75)]])
    np.testing.assert_allclose(points, view.path @ corners, atol=0.051)
    assert "3 arms" in simplex(state(Settings(arms=4)))


def test_the_curves_are_on_square_root_kl_and_rise_as_their_numbers_do() -> None:
    view = state(Settings())
    lines = {e.get("stroke"): e.attrib["points"] for e in ElementTree.fromstring(curves(view)).iter("polyline")}
    gold = np.array([pair.split(",") for pair in lines["#009E73"].split()], dtype=float)
    right = 472 - 66  # from KL = 0 to 1.04 times the largest
    reach = max(view.curve.kl.max(), view.contrast.kl.max())
    np.testing.assert_allclose(gold[:, 0], 66 + right * np.sqrt(view.curve.kl / (1.04 * reach)), atol=0.051)
    slope = np.polyfit(view.curve.gold, gold[:, 1], 1)
    np.testing.assert_allclose(gold[:, 1], np.polyval(slope, view.curve.gold), atol=0.11)
    assert slope[0] < 0 and set(lines) == {"#009E73", "#CC79A7", "#0072B2"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arms", [3, 5])
def test_every_number_is_on_the_page_exactly_and_each_figure_says_what_it_shows(method: str, arms: int) -> None:
    view = state(Settings(method=method, arms=arms, n=3))
    outline = Outline(results(view, (), {"rpo-lab": "1"}))
    shown = {cell["data-name"]: cell["data-value"] for cell in outline.of("td")}
    assert len(shown) == 10
    for name, text in shown.items():
        assert text is not None and name is not None
        np.testing.assert_array_equal(float(text), getattr(view, name))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in outline.of("svg"))
    assert len(outline.of("svg")) == 3 and not re.search(r"\binf\b", said(view))


def test_every_control_has_a_label_and_stands_at_its_setting() -> None:
    settings = Settings(beta=0.123, method="greedy", n=77)
    outline = Outline(controls(settings))
    names = {c["name"] for tag in ("input", "select") for c in outline.of(tag)}
    assert names == set(RULES) == {label["for"] for label in outline.of("label")}
    for slider in outline.of("input"):
        positions = [float(p) for p in str(slider["data-positions"]).strip("[]").split(",")]
        assert positions[int(str(slider["value"]))] == getattr(settings, str(slider["name"]))
    assert [o["value"] for o in outline.of("option") if "selected" in o] == ["greedy", "behavior", "beta"]


def test_the_methods_stand_under_what_is_known_of_their_optimum_and_name_their_knob() -> None:
    text = controls(Settings(method="orpo"))
    groups = dict(re.findall(r'<optgroup label="([^"]+)">(.*?)</optgroup>', text))
    assert list(groups) == ["certified", "stationary", "baselines"]
    assert ">RPO<" in groups["certified"] and ">ORPO<" in groups["stationary"] and ">IPO<" in groups["certified"]
    assert '<label for="beta">weight of the preference term</label>' in text
    assert '<option value="ipo" data-knob="tau of IPO">IPO</option>' in text
    assert ">beta, KL temperature</label>" in controls(Settings())  # control


def test_eta_can_be_moved_where_the_method_has_one() -> None:
    def eta(method: str) -> str:
        return next(tag for tag in re.findall("<input[^>]*>", controls(Settings(method=method))) if 'id="eta"' in tag)

    assert " disabled" in eta("dpo") and " disabled" not in eta("rpo")
    assert re.findall(r'value="(\w+)"[^>]* data-eta', controls(Settings())) == ["rpo", "frpo"]


def test_a_fit_without_a_bound_on_its_policy_says_so() -> None:
    """At eta = 0 equal rewards' fits may have any policy; with eta > 0 the total variation is bounded."""
    words = "reward fit certified; the policy has no bound"
    free, held = (state(Settings(method=method)) for method in ("dpo", "rpo"))
    assert words in results(free, (), {}) and words not in results(held, (), {})
    assert "dots: the mean at this beta" in results(free, (), {})


def test_a_curve_below_the_reference_is_called_so() -> None:
    assert "SimPO: gold below the reference throughout" in results(state(Settings(method="simpo")), (), {})
    assert "throughout" not in results(state(Settings(method="dpo")), (), {})


def test_words_from_an_address_are_escaped() -> None:
    wicked = "<script>alert(1)</script>"
    text = results(state(Settings()), (wicked,), {})
    assert "<script" not in text and "&lt;script&gt;" in text and 'role="alert"' in text
    assert 'role="alert"' not in results(state(Settings()), (), {})  # control: no mistake, no alert


def test_the_sentence_for_the_ear_has_the_numbers() -> None:
    view = dataclasses.replace(state(Settings(method="rpo")), gold=1.2345, gold_best=2.0, kl=0.5, coverage=float("inf"))
    assert said(view) == "RPO: gold 1.234 of at most 2.000, KL 0.5 nats, coverage infinite, certified."
