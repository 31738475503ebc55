"""The page's Python side without a browser: every request is answered, also those that fail."""

from typing import Any

import pytest

from rpo.core.errors import SolverFailed
from rpo.explore import Settings

pytest.importorskip("panel", reason="panel is not installed: pip install 'rpo-lab[explore]'")

from rpo.explore import server


@pytest.fixture
def page() -> Any:
    return server.Explorer(Settings(arms=4), (), {"rpo-lab": "1"})


def ask(page: Any, serial: int, **settings: str) -> Any:
    page.request = {"serial": serial, "settings": {name: [text] for name, text in settings.items()}}
    return page.answer


def test_the_first_answer_is_there_before_anything_is_asked(page: Any) -> None:
    assert page.answer["serial"] == page.answer["problems"] == 0 and "arms=4" in page.answer["query"]
    assert "rpo-lab 1" in page.answer["html"]


def test_a_request_is_answered_with_its_serial_and_settings(page: Any) -> None:
    answer = ask(page, 7, arms="5", method="dpo")
    assert answer["serial"] == 7 and answer["query"] == Settings(arms=5, method="dpo").to_query()
    assert answer["said"].startswith("DPO: gold")
    assert ask(page, 8, arms="99")["problems"] == 1 and "arms: expected" in page.answer["html"]


@pytest.mark.parametrize(
    ("error", "says"),
    [(SolverFailed("no <point>."), "no &lt;point&gt;."), (ZeroDivisionError("x"), "ZeroDivisionError")],
)
def test_a_failure_is_an_answer_too(
    page: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, says: str
) -> None:
    """What is not an RPOError leaves its traceback in the terminal's log; the page gets a name and goes on."""

    def fail(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(server, "state", fail)
    answer = ask(page, 1)
    assert answer["serial"] == 1 and says in answer["html"] and "Traceback" not in answer["html"]
    assert bool(caplog.records) == isinstance(error, ZeroDivisionError)
    monkeypatch.undo()
    assert ask(page, 2, arms="3")["problems"] == 0  # control: the next one is answered
