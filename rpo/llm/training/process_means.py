"""Weighted sums of metrics on the device, reduced over processes only when they are logged."""

from __future__ import annotations

from typing import Any

import torch


class Meter:
    """Adds up named metrics as (sum, weight); `drain` returns their means over all processes."""

    def __init__(self) -> None:
        self._totals: dict[str, torch.Tensor] = {}

    def add(self, values: dict[str, torch.Tensor], weights: torch.Tensor) -> None:
        """Add metrics, each (B,) or a scalar for all of them, with weights (B,)."""
        wide = torch.float32 if weights.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        weights = weights.to(wide)
        total = weights.sum()
        for name, value in values.items():
            value = value.detach().to(wide)
            # A scalar stands for each of the B entries.
            summed = (value * weights).sum() if value.ndim else value * total
            pair = torch.stack([summed, total])
            self._totals[name] = self._totals[name] + pair if name in self._totals else pair

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Return the mean of every metric over all processes, those without any weight left out, and forget them.

        Every process must call.
        """
        if not self._totals:
            return {}
        names = sorted(self._totals)
        table = torch.stack([self._totals[name] for name in names])
        self._totals = {}
        table = accelerator.reduce(table, reduction="sum")
        return {name: (row[0] / row[1]).item() for name, row in zip(names, table, strict=True) if row[1] > 0}
