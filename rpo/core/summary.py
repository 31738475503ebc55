"""How results print: a line or two that say what they are, and a small table in notebooks."""

from __future__ import annotations

from html import escape


class Summarised:
    """An object that prints as its `summary`: a headline, and facts by name. A dataclass says repr=False beside it."""

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """The headline, and the facts under it in words."""
        raise NotImplementedError

    def __repr__(self) -> str:
        headline, facts = self.summary
        return "\n  ".join([headline, ", ".join(f"{name} {value}" for name, value in facts.items())]).rstrip()

    def _repr_html_(self) -> str:
        headline, facts = self.summary
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
        return f"<p>{escape(headline)}</p><table>{rows}</table>"


def counted(number: float, noun: str) -> str:
    """Return "1 prompt" or "1,200 prompts"."""
    return f"{number:,.10g} {noun}" + ("" if number == 1 else "s")
