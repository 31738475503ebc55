"""Typed exceptions whose message says what was expected, what came and what to do."""

from __future__ import annotations

LONGEST = 200


def shown(value: object) -> str:
    """Return `value` on one line of a message: cut short, and an integer of thousands of digits by its size."""
    try:
        return brief(repr(value))
    except ValueError:  # Python spells out no integer of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def brief(text: str) -> str:
    """Return `text` on one line of a message, cut short."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


class RPOError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidArgument(RPOError, ValueError):
    """An argument that cannot be used; `name`, `expected`, `got`, `remedy` are kept as fields."""

    def __init__(self, name: str, *, expected: str, got: object, remedy: str) -> None:
        spelled = shown(got) if isinstance(got, int) else str(got)
        self.name, self.expected, self.got, self.remedy = name, expected, spelled, remedy
        super().__init__(f"{name}: expected {expected}, got {self.got}. {remedy}")


class NoMinimizer(RPOError):
    """The objective has no minimiser on this data (docs/theory.md, section 1)."""


class SolverFailed(RPOError):
    """No convex program returned a usable point."""


class OutputError(RPOError, OSError):
    """A file or folder cannot be read or written."""


class MissingDependency(RPOError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class NonFiniteLoss(RPOError):
    """A loss or gradient became NaN or infinite; the message says at which step and what to change."""


class InaccurateSolution(UserWarning):
    """A solution whose certificate is over tolerance; its status says by how much."""


class LookAlikeLabels(UserWarning):
    """Labels that a reader cannot tell apart are counted as different responses or prompts."""
