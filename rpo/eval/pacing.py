"""When a call may start: so many a minute, pauses that a server asks for, and waits that grow."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from rpo.core import checks
from rpo.core.fields import hold


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How a judge is called.

    concurrency: calls at a time. per_minute: calls started a minute; None for no limit. attempts: a question
    is asked, seconds between them growing from first_wait by doubling, up to max_wait, each shortened by a
    random part of up to a half. A server that asks for a longer pause than max_wait ends the run, and so do
    give_up_after questions in a row that used up their attempts. seed: of the waits. Raises InvalidArgument.
    """

    concurrency: int = 8
    per_minute: float | None = None
    attempts: int = 6
    first_wait: float = 1.0
    max_wait: float = 120.0
    give_up_after: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        hold(self, checks.integer, "concurrency", "attempts", "give_up_after", minimum=1)
        if self.per_minute is not None:
            hold(self, checks.positive, "per_minute")
        hold(self, checks.nonnegative, "first_wait", "max_wait")
        hold(self, checks.integer, "seed", minimum=0)

    def waits(self, key: str) -> list[float]:
        """Return the seconds between the attempts at the question of this key (hexadecimal), the same in any order."""
        rng = np.random.default_rng([self.seed, int(key[:16], 16)])
        full = np.minimum(self.max_wait, self.first_wait * 2.0 ** np.arange(self.attempts - 1))
        return list(full * rng.uniform(0.5, 1.0, full.size))


class Pacer:
    """Lets threads start calls no faster than `per_minute`, none during a pause, and none once stopped."""

    def __init__(self, per_minute: float | None, stop: threading.Event) -> None:
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._stop = stop
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        """Return when it is this call's turn, or at once when stopped."""
        while not self._stop.is_set():
            with self._lock:
                now = time.monotonic()
                if self._next <= now:
                    self._next = now + self._interval
                    return
                delay = self._next - now
            self._stop.wait(delay)

    def pause(self, seconds: float) -> None:
        """Start no call for so many seconds from now."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
