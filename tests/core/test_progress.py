"""The progress bar: one a terminal."""

import pytest

from rpo.core.progress import track


def test_a_bar_within_a_bar_is_not_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner loop gives its items all the same; after a loop that was left early the next bar is drawn again."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    pairs = [(i, j) for i in track(range(2), "outer", show=True) for j in track(range(2), "inner", show=True)]
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    drawn = capsys.readouterr().err
    assert "outer" in drawn and "inner" not in drawn
    for _ in track(range(3), "left", show=True):
        break
    assert list(track(range(2), "again", show=True)) == [0, 1]
    assert "again" in capsys.readouterr().err


def test_a_bar_of_sizes_counts_them_and_not_the_items(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two items of 3 and 7 tokens: the bar is full at 10."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track("ab", "tokens", show=True, sizes=[3, 7])) == ["a", "b"]
    assert "10/10" in capsys.readouterr().err
