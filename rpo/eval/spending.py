"""What judging took and cost: every reply counts, and no request starts that could pass a limit."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rpo.core import checks
from rpo.eval.judges import Usage

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars (or any money) per million tokens; None where unknown."""

    input: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checks.nonnegative(f"prices.{name}", getattr(self, name)))

    def cost(self, input_tokens: float, output_tokens: float) -> float | None:
        """Return the price of so many tokens; None where it is unknown."""
        total = 0.0
        for tokens, price in ((input_tokens, self.input), (output_tokens, self.output)):
            if tokens and price is None:
                return None
            total += tokens * (price or 0.0) / 1e6
        return total


@dataclass
class Spent:
    """Tokens of requests, replies without a verdict among them.

    untold: requests that the judge gave no count for, though it may charge for them (a reply that came too late,
    say); they are estimated, and their reply is taken to be as long as it may be.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    untold: int = 0
    untold_input_tokens: int = 0
    untold_output_tokens: int = 0

    def add(self, usage: Usage, estimate: tuple[int, int]) -> None:
        """Count a request."""
        if usage.told:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
        elif any(estimate):
            self.untold += 1
            self.untold_input_tokens += estimate[0]
            self.untold_output_tokens += estimate[1]

    def cost(self, prices: Prices) -> float | None:
        """Return the price of all of it; None where it is unknown."""
        return prices.cost(self.input_tokens + self.untold_input_tokens, self.output_tokens + self.untold_output_tokens)

    def sentence(self) -> str:
        """Return it in words."""
        words = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if self.untold:
            words += (
                f", and up to about {self.untold_input_tokens:,} in, {self.untold_output_tokens:,} out for "
                f"{self.untold} requests whose tokens the judge did not tell"
            )
        return words


class Budget:
    """Counts requests into `spent`, and lets one start only if it fits under `limit` with all that are under way.

    A request is taken to cost what its estimate says, or more as far as replies have been dearer than theirs; the
    first one goes alone to show it. Thread-safe. limit: None for none; else `prices` are known.
    """

    def __init__(self, spent: Spent, prices: Prices, limit: float | None, stop: threading.Event) -> None:
        self.spent = spent
        self._prices, self._limit, self._stop = prices, limit, stop
        self._changed = threading.Condition()
        self._under_way: list[float] = []
        self._dearer, self._longest, self._seen = 1.0, 0, spent.input_tokens > 0

    def start(self, estimate: tuple[int, int]) -> float | None:
        """Return the price set aside for a request; None when stopped, or where it does not fit. May wait."""
        if self._limit is None:
            return 0.0
        with self._changed:
            while not self._stop.is_set():
                price = self._price(estimate)
                fits = self._total() + price <= self._limit * (1 + ROUNDING)
                if fits and (self._seen or not self._under_way):
                    self._under_way.append(price)
                    return price
                if not self._under_way:
                    return None
                self._changed.wait(0.1)
        return None

    def end(self, price: float, usage: Usage, estimate: tuple[int, int]) -> None:
        """Count a request that was started at `price`."""
        with self._changed:
            self.spent.add(usage, estimate)
            self._seen = self._seen or usage != Usage()  # a refusal shows nothing
            if usage.told:
                self._dearer = max(self._dearer, usage.input_tokens / max(1, estimate[0]))
                self._longest = max(self._longest, usage.output_tokens)
            if self._limit is not None:
                self._under_way.remove(price)
                self._changed.notify_all()

    def refusal(self, estimate: tuple[int, int]) -> str:
        """Return why `start` let no request begin."""
        spent = self.spent.cost(self._prices) or 0.0
        price = self._price(estimate)
        return (
            f"max_cost: {spent:.4g} of {self._limit:.4g} spent, and a request may cost {price:.2g}; raise it to go on"
        )

    def _total(self) -> float:
        return (self.spent.cost(self._prices) or 0.0) + sum(self._under_way)

    def _price(self, estimate: tuple[int, int]) -> float:
        return self._prices.cost(estimate[0] * self._dearer, max(estimate[1], self._longest)) or 0.0
