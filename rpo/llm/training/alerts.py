"""Alerts through trackio, where it is the tracker: displacement, a KL that grows, a loss that is not finite."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from rpo.core import checks

DISPLACEMENT, KL = "displacement/share", "kl/reference"


def send_to_trackio(title: str, text: str, *, serious: bool) -> None:
    """Send an alert of the run that trackio tracks. Raises ImportError without trackio."""
    trackio = importlib.import_module("trackio")
    trackio.alert(title=title, text=text, level=trackio.AlertLevel.ERROR if serious else trackio.AlertLevel.WARN)


class Alerts(TrainerCallback):
    """Sends an alert when a logged number passes its limit, once until it is below again, and when training breaks off.

    displacement: share of pairs whose chosen response lost probability, in (0, 1). kl: nats a response, of the sampled
    KL to the reference (`kl_steps`). send: takes title, text and serious. A trainer whose report_to has trackio adds
    one, with the limit of displacement_threshold where that is set; add one of your own for other limits. Raises
    InvalidArgument.
    """

    def __init__(
        self, *, displacement: float = 0.9, kl: float = 20.0, send: Callable[..., None] = send_to_trackio
    ) -> None:
        self.limits = {DISPLACEMENT: checks.fraction("displacement", displacement), KL: checks.positive("kl", kl)}
        self.send, self.above = send, set[str]()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Hold the numbers of a log against their limits."""
        for name, limit in self.limits.items() if state.is_world_process_zero else ():
            value = (logs or {}).get(name)
            if not isinstance(value, int | float):
                continue
            if value > limit and name not in self.above:
                self.above.add(name)
                text = f"{value:.4g} at step {state.global_step}, above {limit:g}. " + (
                    "Chosen responses are losing probability: raise eta, or lower the learning rate."
                    if name == DISPLACEMENT
                    else "The policy leaves the reference: raise beta, lower the learning rate, or stop here."
                )
                self.send(name, text, serious=False)
            elif value <= limit:
                self.above.discard(name)

    def broken_off(self, reason: Exception) -> None:
        """Send that training ended by an error."""
        self.send(type(reason).__name__, str(reason), serious=True)
