"""Limits against hand-worked cases, and against what they promise for any lengths."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo.core.errors import InvalidArgument
from rpo.llm.data.truncation import Limits

PROMPT = (9, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("limits", "responses", "prompt", "fitted"),
    [
        (Limits(9), [(7,) * 3, (8,)], PROMPT, [(7,) * 3, (8,)]),  # 6 + 3 fits
        (Limits(8), [(7,) * 3, (8,)], (1, 2, 3, 4, 5), [(7,) * 3, (8,)]),  # no further than needed: 5 + 3
        (Limits(8), [(7,) * 7, (8,)], (2, 3, 4, 5), [(7,) * 4, (8,)]),  # half at least: 4 + 4
        (Limits(8, 2), [(7,) * 7, (8,)], (4, 5), [(7,) * 6, (8,)]),
        (Limits(8, 7), [(7,) * 9, (8,)], PROMPT, [(7,) * 2, (8,)]),  # a prompt under its limit is whole
        (Limits(None), [(7,) * 99], PROMPT, [(7,) * 99]),
    ],
)
def test_by_hand(limits: Limits, responses: list[Any], prompt: tuple[int, ...], fitted: list[Any]) -> None:
    assert limits.fit(PROMPT, responses) == (prompt, fitted)


def test_a_leading_bos_stays() -> None:
    """With BOS 9: 4 tokens of prompt are 9 3 4 5, not 2 3 4 5; a token that also occurs later is no BOS."""
    assert Limits(8).fit(PROMPT, [(7,) * 4], first=9) == ((9, 3, 4, 5), [(7,) * 4])
    assert Limits(8).fit((9, 1, 9, 3, 4, 5), [(7,) * 4], first=9) == ((9, 3, 4, 5), [(7,) * 4])
    assert Limits(8).fit((9, 1, 2, 9, 4, 5), [(7,) * 5], first=9) == ((2, 9, 4, 5), [(7,) * 4])
    assert Limits(3, 1).fit(PROMPT, [(7,) * 4], first=9) == ((9,), [(7,) * 2])


def test_drop() -> None:
    limits = Limits(8, truncation_mode="drop")
    assert limits.fit(PROMPT, [(7,) * 3]) is None
    assert limits.fit(PROMPT, [(7,) * 2]) == (PROMPT, [(7,) * 2])


@given(
    size=st.integers(1, 40),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    limit=st.integers(2, 40),
    data=st.data(),
)
def test_promises(size: int, lengths: list[int], limit: int, data: st.DataObject) -> None:
    """Within the limit, nothing empty, the prompt a suffix of at least its share, responses prefixes; full when cut."""
    floor = data.draw(st.integers(1, limit - 1))
    prompt, responses = tuple(range(size)), [tuple(range(length)) for length in lengths]
    fitted = Limits(limit, floor).fit(prompt, responses)
    assert fitted is not None
    short, kept = fitted
    assert short == prompt[size - len(short) :] and len(short) >= min(size, floor)
    assert all(ids and ids == whole[: len(ids)] for ids, whole in zip(kept, responses, strict=True))
    assert len(short) + max(map(len, kept)) == min(limit, size + max(lengths))
    if len(short) < size and len(short) > floor:
        assert kept == responses  # the prompt gave way only as far as the responses needed


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_length": 1}, "max_length"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length"),
        ({"max_length": 8, "max_prompt_length": 0}, "max_prompt_length"),
        ({"max_length": None, "max_prompt_length": 8}, "max_prompt_length"),
        ({"truncation_mode": "keep_start"}, "truncation_mode"),
    ],
)
def test_limits_that_would_leave_nothing(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: "):
        Limits(**arguments)
