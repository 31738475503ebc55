"""Each check accepts what it should unchanged, and refuses the rest by name."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from rpo.bandit import Existence
from rpo.core import checks
from rpo.core.errors import InvalidArgument, RPOError, shown


def test_error_carries_its_fields_and_is_a_value_error() -> None:
    error = InvalidArgument("beta", expected="a number", got=None, remedy="Pass one.")
    assert str(error) == "beta: expected a number, got None. Pass one."
    assert (error.name, error.expected, error.got, error.remedy) == ("beta", "a number", "None", "Pass one.")
    assert isinstance(error, ValueError) and isinstance(error, RPOError)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", b"1", None, True, [1.0, 2.0], 1j])
def test_positive_refuses(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^size: expected a finite number > 0"):
        checks.positive("size", value)


@pytest.mark.parametrize("value", [-1e-300, math.nan, -math.inf, "0", None, False])
def test_nonnegative_refuses(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^size: expected a finite number >= 0"):
        checks.nonnegative("size", value)


def test_integers_too_large_for_a_float_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^size: expected"):
        checks.positive("size", 10**400)


def test_numbers_come_back_as_floats() -> None:
    assert checks.positive("size", np.float32(0.5)) == 0.5
    assert checks.nonnegative("size", 0) == 0.0 and isinstance(checks.nonnegative("size", 0), float)


@pytest.mark.parametrize("value", [1.5, 0, 11, "3", math.nan])
def test_integer_refuses_fractions_and_values_out_of_range(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^n: expected an integer in \[1, 10\]"):
        checks.integer("n", value, minimum=1, maximum=10)


def test_integer_accepts_whole_floats_and_both_ends() -> None:
    assert [checks.integer("n", v, minimum=1, maximum=10) for v in (1, 10, 3.0, np.int64(4))] == [1, 10, 3, 4]
    assert checks.integer("n", 1e12, minimum=1) == 10**12


def test_one_of_lists_the_options() -> None:
    assert checks.one_of("kind", "a", ("a", "b")) == "a"
    for value in ("c", None, 1):
        with pytest.raises(InvalidArgument, match=r"^kind: expected one of 'a', 'b'"):
            checks.one_of("kind", value, ("a", "b"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, math.nan]], r"nan at index \(0, 1\) \(1 such entries\)"),
        ([[math.inf, math.nan]], r"inf at index \(0, 0\) \(2 such entries\)"),
        ([1.0, 2.0], r"shape \(any, 2\), got shape \(2,\)"),
        ([[1.0, 2.0, 3.0]], r"shape \(any, 2\), got shape \(1, 3\)"),
        ([[1.0], [2.0, 3.0]], "an array of numbers"),
        ([["a", "b"]], "an array of numbers"),
    ],
)
def test_finite_says_what_is_wrong_and_where(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^table: expected.*{message}"):
        checks.finite("table", value, shape=(None, 2))


def test_finite_keeps_the_values() -> None:
    assert checks.finite("table", [[1, 2]], shape=(None, 2)).tolist() == [[1.0, 2.0]]
    same = np.array([0.1, 2.0])
    assert checks.finite("table", same) is same


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([1.0, 2.5], mask=False),
        np.array([1, 2.5], dtype=object),
        [Fraction(1), Decimal("2.5")],
        (np.float32(1), np.longdouble(2.5)),
        pandas.Series([1.0, 2.5]),
        pandas.array([1.0, 2.5], dtype="Float64"),
        torch.tensor([1.0, 2.5], requires_grad=True),
        torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
        [torch.tensor(1.0, requires_grad=True), torch.tensor(2.5)],
    ],
)
def test_what_holds_numbers_is_read_rightly(value: Any) -> None:
    found = checks.finite("table", value)
    assert type(found) is np.ndarray and found.dtype == np.float64 and found.tolist() == [1.0, 2.5]


def test_integers_that_no_float_equals_are_refused_and_others_exact() -> None:
    """2^53 + 1 is the first; a power of two is a float however large."""
    assert checks.finite("table", [2**53, 2**60]).tolist() == [2.0**53, 2.0**60]
    for value in ([2**53 + 1, 0.5], np.array([2**53 + 1]), np.array([2**64 - 1], dtype=np.uint64), 2**53 + 1):
        with pytest.raises(InvalidArgument, match=r"^table: expected an array of numbers.*which no float64 equals"):
            checks.finite("table", value)
    for exact in (2**53 + 1, np.int64(2**53 + 1), 2**63 - 1):
        assert checks.integer("seed", exact, minimum=0) == exact
    for large in (2**63, 10**400, 10**5000, np.timedelta64(3, "s"), torch.tensor(True)):
        with pytest.raises(InvalidArgument, match=r"^seed: expected an integer >= 0, got .{1,260}\. Pass a whole"):
            checks.integer("seed", large, minimum=0)


def test_a_message_is_one_line_and_not_long() -> None:
    assert shown(10**5000) == "an integer of 16610 bits"
    assert "\n" not in shown(np.zeros((9, 9))) and len(shown("x" * 10_000)) < 240
    assert shown("a") == "'a'"


def test_instance_labels_and_path_refuse_by_name() -> None:
    assert checks.instance("data", 3, int) == 3 and checks.labels("names", ["a", "b"], 2) == ("a", "b")
    with pytest.raises(
        InvalidArgument, match=r"^data: expected an Existence, got the class int\. Pass an Existence\.$"
    ):
        checks.instance("data", int, Existence)
    for value in ("ab", 3, ["a"], np.ma.masked, {"a": 1, "b": 2}, {"a", "b"}):
        with pytest.raises(InvalidArgument, match=r"^names: expected 2 labels"):
            checks.labels("names", value, 2)
    for value in ("a\0b", 3, None, b"a"):
        with pytest.raises(InvalidArgument, match=r"^output: expected the path"):
            checks.path("output", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0.4], "a sum of 0.9"),
        ([1.5, -0.5], r"-0.5 at index \(1,\)"),
        ([], "an empty array"),
        ([[0.5, 0.5], [0.5, 0.6]], "a sum of 1.1"),
    ],
)
def test_probabilities_refuse(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^d0: .*{message}"):
        checks.probabilities("d0", value)


def test_probabilities_renormalise_nothing() -> None:
    """Within 1e-9 of one is accepted as it came; 1e-8 off is refused."""
    value = np.array([0.5, 0.5 + 5e-10])
    assert (checks.probabilities("d0", value) == value).all()
    with pytest.raises(InvalidArgument, match="sum"):
        checks.probabilities("d0", [0.5, 0.5 + 1e-8])


@pytest.mark.parametrize("rng", [None, -1, 1.0, True, "0"])
def test_generator_refuses_what_cannot_be_repeated(rng: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^rng: expected a numpy Generator"):
        checks.generator("rng", rng)


def test_generator_accepts_a_seed_a_sequence_and_a_generator() -> None:
    first = checks.generator("rng", 3).random()
    assert first == np.random.default_rng(3).random() == checks.generator("rng", np.random.SeedSequence(3)).random()
    own = np.random.default_rng(0)
    assert checks.generator("rng", own) is own
