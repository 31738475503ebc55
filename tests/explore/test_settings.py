"""The address of the explorer's page: read back exactly, and never an exception."""

import dataclasses
from typing import Any
from urllib.parse import parse_qs

import pytest

from rpo.core.errors import InvalidArgument
from rpo.explore.settings import (
    BASELINES,
    CHOICES,
    METHODS,
    PESSIMISTIC,
    REGISTERED,
    RULES,
    SLIDERS,
    Settings,
    read_settings,
)
from rpo.methods import registry

OTHER = Settings(
    method="ipo",
    arms=7,
    skew=0.3,
    noise=0.07,
    n=123456,
    beta=1 / 3,
    eta=1e-9,
    seed=10**9,
    reference="uniform",
    along="eta",
)  # off every slider's positions


@pytest.mark.parametrize("settings", [Settings(), OTHER])
def test_an_address_restores_its_settings_exactly(settings: Settings) -> None:
    assert read_settings(parse_qs(settings.to_query())) == (settings, ())


def test_a_missing_parameter_takes_its_default() -> None:
    """Control of the test above: the default is not what the other settings have."""
    assert read_settings({"beta": ["0.5"]}) == (Settings(beta=0.5), ())
    assert all(getattr(OTHER, name) != getattr(Settings(), name) for name in RULES)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("beta=-1", "beta: expected a number in [0.02, 10], got -1"),
        ("beta=0.01", "beta: expected a number in [0.02, 10], got 0.01"),
        ("beta=nan", "beta: expected a number in [0.02, 10], got nan"),
        ("beta=x", "beta: expected a number, got 'x'"),
        ("beta=1&beta=2", "beta: expected one value, got 2"),
        ("arms=3.5", "arms: expected an integer in [3, 12], got 3.5"),
        ("arms=13", "arms: expected an integer in [3, 12], got 13"),
        ("n=1e7", "n: expected an integer in [1, 1000000]"),
        ("seed=-1", "seed: expected an integer in [0, 1000000000]"),
        ("method=ppo", "method: expected one of 'rpo', 'dpo', 'ipo'"),
        ("bta=0.1", "bta: expected one of method, arms, skew"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence_and_the_rest_is_kept(query: str, says: str) -> None:
    settings, problems = read_settings(parse_qs(query + "&skew=1.25", keep_blank_values=True))
    assert len(problems) == 1 and problems[0].startswith(says)
    assert settings == Settings(skew=1.25)


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(read_settings(parse_qs("beta=-1&eta=x&method=ppo"))[1]) == 3


def test_settings_refuse_what_an_address_may_not_say() -> None:
    with pytest.raises(InvalidArgument, match=r"noise: expected a number in \[0, 0.45\], got 0.5"):
        Settings(noise=0.5)


def test_every_position_of_every_slider_is_a_setting_and_the_positions_rise() -> None:
    for slider in SLIDERS:
        positions = slider.positions
        assert list(positions) == sorted(set(positions)) and getattr(Settings(), slider.name) in positions
        for value in positions:
            assert getattr(Settings(**{slider.name: value}), slider.name) == value
        assert slider.with_value(positions[0]) == positions
        between = (positions[0] + positions[1]) / 2
        assert slider.with_value(between) == (positions[0], between, *positions[1:])
    assert {slider.name for slider in SLIDERS} | set(CHOICES) == set(RULES)


def test_the_methods_are_those_of_pairs_that_have_a_path() -> None:
    """Left out: lists, what a table shows nothing of, and the hinge; the rest is the registry's, none by hand."""
    left = set(METHODS.values()) ^ {*registry.METHODS, *BASELINES.values()}
    of_lists = {name for name, row in registry.METHODS.items() if made(row.load()).takes_lists}
    pathless = {name for name, row in registry.METHODS.items() if row.path is None}
    assert left == of_lists | pathless | {"SLiC"} and len(METHODS) == 22
    for key, row in REGISTERED.items():
        given = {f.name for f in dataclasses.fields(row.load())}
        assert (key in PESSIMISTIC) == ("eta" in given) and Settings(method=key).knob in given


def made(kind: Any) -> Any:
    missing = (f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING)
    return kind(**{f.name: 0.1 for f in missing})
