"""Alerts: once when a limit is passed, again only after it was kept, and when the loss is not finite."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training import tiny_pairs, trainer

from rpo.core.errors import InvalidArgument, NonFiniteLoss
from rpo.llm.training.alerts import Alerts, send_to_trackio


class Sent(list[tuple[str, str, bool]]):
    def __call__(self, title: str, text: str, *, serious: bool) -> None:
        self.append((title, text, serious))


def test_a_limit_is_said_once_until_it_is_kept_again() -> None:
    sent = Sent()
    alerts = Alerts(displacement=0.5, kl=10.0, send=sent)
    shares = [0.4, 0.6, 0.7, 0.5, 0.8]
    for step, share in enumerate(shares, 1):
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        alerts.on_log(None, state, None, {"displacement/share": share, "kl/reference": 20.0 * (step == 3)})
    assert [(title, text.partition(",")[0], serious) for title, text, serious in sent] == [
        ("displacement/share", "0.6 at step 2", False),
        ("kl/reference", "20 at step 3", False),
        ("displacement/share", "0.8 at step 5", False),
    ]
    alerts.on_log(None, SimpleNamespace(global_step=9, is_world_process_zero=False), None, {"kl/reference": 99.0})
    assert len(sent) == 3  # another process says nothing


def test_training_that_breaks_off_is_said(tmp_path: Path) -> None:
    sent = Sent()
    run = trainer(tmp_path, tiny_pairs(8), learning_rate=1e300, max_steps=3)
    run.add_callback(Alerts(send=sent))
    with pytest.raises(NonFiniteLoss) as error:
        run.train()
    assert sent[-1] == ("NonFiniteLoss", str(error.value), True)


def test_trackio_gets_them_where_it_is_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in trackio's place, with the one function and the levels that are used."""
    run = trainer(tmp_path, tiny_pairs(4))
    called: list[dict[str, Any]] = []
    levels = SimpleNamespace(WARN="warn", ERROR="error")
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(alert=lambda **c: called.append(c), AlertLevel=levels))
    send_to_trackio("a", "b", serious=False)
    send_to_trackio("a", "c", serious=True)
    assert [one["level"] for one in called] == ["warn", "error"] and called[1]["text"] == "c"
    assert not any(isinstance(one, Alerts) for one in run.callback_handler.callbacks)
    run.args.report_to, run.args.displacement_threshold = ["trackio"], 0.3
    run._add_diagnostics()
    (alerts,) = (one for one in run.callback_handler.callbacks if isinstance(one, Alerts))
    assert alerts.limits["displacement/share"] == 0.3


def test_trackio_itself(tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    assert callable(trackio.alert) and {"WARN", "ERROR"} <= set(trackio.AlertLevel.__members__)


@pytest.mark.parametrize("given", [{"displacement": 1.5}, {"kl": 0.0}])
def test_limits_that_are_none_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(given))):
        Alerts(**given)
